//! Models brought from a hub that misbehaves: a small server here, on the loopback address alone.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use assert_cmd::cargo::cargo_bin_cmd;
use sha2::{Digest, Sha256};

use crate::{cli::MODEL, model::golden};

const WEIGHTS: &str = "model.safetensors";

/// How a server treats those who ask it.
#[derive(Clone)]
enum Manner {
    /// As it should.
    Good,
    /// It ends the connection in the middle of the weights, each time but the last.
    Cuts(usize),
    /// It stops in the middle of the weights and says nothing more.
    Stalls,
    /// The weights are others than it says.
    Lies,
    /// It sends whoever wants the weights to this server.
    SendsAway(String),
    /// It gives files to those alone who have this authorization.
    Asks(String),
    /// It answers everything with this status.
    Says(u16),
}

/// What is asked of a server: the path, and the headers by their names.
type Requests = Arc<Mutex<Vec<(String, BTreeMap<String, String>)>>>;

struct Hub {
    address: String,
    requests: Requests,
}

impl Hub {
    /// A server that has the tiny model as `o/m`; it serves until the test ends.
    fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Requests::default();
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            let mut cuts = 0;
            for stream in listener.incoming().flatten() {
                // A client that goes away is its own affair.
                let _ = serve(stream, &manner, &mut cuts, &seen);
            }
        });
        Self { address, requests }
    }

    fn paths(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|(path, _)| path.clone()).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    manner: &Manner,
    cuts: &mut usize,
    seen: &Requests,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        })
        .collect();
    seen.lock().unwrap().push((path.clone(), headers.clone()));
    let mut answer = |status: u16, headers: &str, body: &[u8], length: usize| {
        let head = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        stream.flush()
    };
    if let Manner::Says(status) = manner {
        return answer(*status, "", b"no", 2);
    }
    if path.starts_with("/api/models/o/m") {
        let files = [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            WEIGHTS,
        ];
        let files = files.map(|name| serde_json::json!({ "rfilename": name }));
        let body = serde_json::json!({ "siblings": files, "sha": "c0ffee" }).to_string();
        return answer(
            200,
            "Content-Type: application/json\r\n",
            body.as_bytes(),
            body.len(),
        );
    }
    if path.starts_with("/api/datasets/o/d") {
        let files = ["README.md", "test/chats.parquet", "train/facts.parquet"];
        let files = files.map(|name| serde_json::json!({ "rfilename": name }));
        let body = serde_json::json!({ "siblings": files, "sha": "c0ffee" }).to_string();
        return answer(
            200,
            "Content-Type: application/json\r\n",
            body.as_bytes(),
            body.len(),
        );
    }
    let name = path.rsplit('/').next().unwrap();
    if matches!(manner, Manner::Asks(wanted) if headers.get("authorization") != Some(wanted)) {
        return answer(401, "", b"no", 2);
    }
    let folder = if name.ends_with(".parquet") {
        "parquet"
    } else {
        "llama"
    };
    let Ok(mut content) = fs::read(golden(folder).join(name)) else {
        return answer(404, "", b"no", 2);
    };
    let sum = format!("{:x}", Sha256::digest(&content));
    let etag = if name == WEIGHTS {
        &sum[..]
    } else {
        &sum[..40]
    };
    let is_weights = name == WEIGHTS;
    if let (Manner::SendsAway(address), true) = (manner, is_weights) {
        let away =
            format!("Location: {address}{path}\r\nETag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\n");
        return answer(302, &away, b"", 0);
    }
    if let (Manner::Lies, true) = (manner, is_weights) {
        content[1000] ^= 1;
    }
    let range = headers.get("range").cloned().unwrap_or_default();
    let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let (start, all) = (start.parse::<usize>().unwrap(), content.len());
    let end = end.parse::<usize>().map_or(all, |end| end + 1);
    let body = &content[start..end];
    let told = format!(
        "ETag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\nContent-Range: bytes {start}-{}/{all}\r\n",
        end - 1
    );
    let half = body.len().div_ceil(2);
    match manner {
        Manner::Cuts(times) if is_weights && body.len() > 1 && *cuts < *times => {
            *cuts += 1;
            answer(206, &told, &body[..half], body.len())
        }
        Manner::Stalls if is_weights && body.len() > 1 => {
            answer(206, &told, &body[..half], body.len())?;
            thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        _ => answer(206, &told, body, body.len()),
    }
}

fn pull(home: &Path, hub: &str, more: &[(&str, &str)]) -> Output {
    call(&["pull", "o/m"], home, hub, more)
}

fn call(args: &[&str], home: &Path, hub: &str, more: &[(&str, &str)]) -> Output {
    cargo_bin_cmd!("unforget")
        .current_dir(home)
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", hub)
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .env_remove("ALL_PROXY")
        .env_remove("all_proxy")
        .envs(more.iter().copied())
        .args(args)
        .timeout(Duration::from_secs(60))
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether what a call printed is a folder with the weights as they should be.
fn is_whole(output: &Output) -> bool {
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let weights = fs::read(Path::new(&folder).join(WEIGHTS));
    weights.is_ok_and(|weights| weights == fs::read(golden("llama").join(WEIGHTS)).unwrap())
}

#[test]
fn a_model_is_brought_once_and_then_without_a_request() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Manner::Good));
    let offline = [("HF_HUB_OFFLINE", "1")];
    let refused = pull(home.path(), &hub.address, &offline);
    assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
    assert!(
        told(&refused).contains("HF_HUB_OFFLINE is set"),
        "{}",
        told(&refused)
    );
    assert_eq!(hub.paths().len(), 0);

    let first = pull(home.path(), &hub.address, &[]);
    assert!(
        first.status.success() && is_whole(&first),
        "{}",
        told(&first)
    );
    let asked = hub.paths().len();
    assert!(asked > 0);
    for more in [&[][..], &offline] {
        let again = pull(home.path(), &hub.address, more);
        assert!(
            again.status.success() && is_whole(&again),
            "{}",
            told(&again)
        );
    }
    assert_eq!(hub.paths().len(), asked);
}

#[test]
fn a_data_set_is_its_training_part() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Manner::Good));
    let data = ["data", "o/d", "--model", MODEL, "--json"];
    for _ in 0..2 {
        let output = call(&data, home.path(), &hub.address, &[]);
        assert!(output.status.success(), "{}", told(&output));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&told["kind"], &told["items"]),
            (&"facts".into(), &3.into())
        );
    }
    let brought = hub
        .paths()
        .into_iter()
        .filter(|path| path.contains("resolve"));
    assert!(brought.clone().count() > 0);
    assert!(
        brought
            .into_iter()
            .all(|path| path.ends_with("train/facts.parquet"))
    );
    let offline = call(&data, home.path(), &hub.address, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(offline.status.code(), Some(2), "{}", told(&offline));
    assert!(
        told(&offline).contains("name files that are here"),
        "{}",
        told(&offline)
    );
    let missing = call(
        &["data", "o/none", "--model", MODEL],
        home.path(),
        &hub.address,
        &[],
    );
    assert!(
        told(&missing).contains("no data set `o/none`"),
        "{}",
        told(&missing)
    );
}

#[test]
fn a_download_that_breaks_off_is_gone_on_with() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Manner::Cuts(2)));
    let output = pull(home.path(), &hub.address, &[]);
    assert!(
        output.status.success() && is_whole(&output),
        "{}",
        told(&output)
    );
    let requests = hub.requests.lock().unwrap();
    let ranges = requests.iter().filter(|(path, _)| path.ends_with(WEIGHTS));
    let ranges: Vec<&str> = ranges.map(|(_, headers)| &headers["range"][..]).collect();
    let length = fs::metadata(golden("llama").join(WEIGHTS)).unwrap().len();
    let half = format!("bytes={}-", length.div_ceil(2));
    assert!(ranges.contains(&&half[..]), "{ranges:?}");
}

#[test]
fn a_hub_that_falls_silent_is_not_waited_for_and_the_next_call_goes_on() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Manner::Stalls));
    let silent = pull(
        home.path(),
        &hub.address,
        &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")],
    );
    assert_eq!(silent.status.code(), Some(1), "{}", told(&silent));
    for words in ["nothing came for 1 seconds", "goes on where it was"] {
        assert!(told(&silent).contains(words), "{}", told(&silent));
    }
    let good = Hub::new(Manner::Good);
    let output = pull(home.path(), &good.address, &[]);
    assert!(
        output.status.success() && is_whole(&output),
        "{}",
        told(&output)
    );
    let requests = good.requests.lock().unwrap();
    let small = requests
        .iter()
        .any(|(path, _)| path.ends_with("resolve/main/config.json"));
    assert!(!small, "what is there is not brought again");
}

#[test]
fn weights_that_are_not_what_the_hub_says_are_thrown_away() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Manner::Lies));
    let output = pull(home.path(), &hub.address, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(
        told(&output).contains("has the SHA-256"),
        "{}",
        told(&output)
    );
    let good = Hub::new(Manner::Good);
    let output = pull(home.path(), &good.address, &[]);
    assert!(
        output.status.success() && is_whole(&output),
        "{}",
        told(&output)
    );
}

#[test]
fn a_token_is_told_only_to_a_hub_that_asks_for_it_and_to_nobody_else() {
    let token = "hf_a_secret_of_mine";
    let bearer = format!("Bearer {token}");
    let has_token = |hub: &Hub| {
        let requests = hub.requests.lock().unwrap();
        let given =
            |headers: &BTreeMap<String, String>| headers.get("authorization") == Some(&bearer);
        requests.iter().any(|(_, headers)| given(headers))
    };
    let more = [("HF_TOKEN", token)];
    let elsewhere = Hub::new(Manner::Good);
    // Another name for the same address is another host.
    let address = elsewhere.address.replace("127.0.0.1", "localhost");
    let open = Hub::new(Manner::SendsAway(address));
    let asking = Hub::new(Manner::Asks(bearer.clone()));
    let refusing = Hub::new(Manner::Says(401));
    for (hub, is_told, code) in [(&open, false, 0), (&asking, true, 0), (&refusing, true, 2)] {
        let home = tempfile::tempdir().unwrap();
        let output = pull(home.path(), &hub.address, &more);
        assert_eq!(output.status.code(), Some(code), "{}", told(&output));
        assert_eq!(is_whole(&output), code == 0, "{}", told(&output));
        assert_eq!(has_token(hub), is_told);
        let all = [&output.stdout[..], &output.stderr[..]].concat();
        assert!(!String::from_utf8_lossy(&all).contains(token));
        let holds = |bytes: &Vec<u8>| bytes.windows(token.len()).any(|w| w == token.as_bytes());
        assert!(
            !walk(home.path()).iter().any(holds),
            "it is written nowhere"
        );
    }
    assert!(!elsewhere.paths().is_empty() && !has_token(&elsewhere));
}

/// Every file below a folder.
fn walk(folder: &Path) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if let Ok(bytes) = fs::read(path) {
            files.push(bytes);
        }
    }
    files
}

#[test]
fn every_refusal_says_what_to_do() {
    let token = [("HF_TOKEN", "hf_x")];
    for (status, more, code, words) in [
        (
            401,
            &[][..],
            2,
            [
                "no model `o/m`, or keeps it behind a licence",
                "a token in HF_TOKEN",
            ],
        ),
        (
            401,
            &token,
            2,
            ["does not accept the token", "mend HF_TOKEN"],
        ),
        (
            403,
            &[],
            2,
            ["keeps it behind a licence", "its licence accepted"],
        ),
        (
            403,
            &token,
            2,
            ["from the account of this token", "accept its licence"],
        ),
        (
            404,
            &[],
            2,
            [
                "the hub has no model `o/m`",
                "a hub id or a name of the catalogue",
            ],
        ),
        (429, &[], 1, ["asked too often", "wait some minutes"]),
        (
            500,
            &[],
            1,
            ["bringing it from the hub failed", "give the command again"],
        ),
    ] {
        let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Manner::Says(status)));
        let output = pull(home.path(), &hub.address, more);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{status}: {}",
            told(&output)
        );
        for words in words {
            assert!(told(&output).contains(words), "{status}: {}", told(&output));
        }
    }
    // Nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let output = pull(
        tempfile::tempdir().unwrap().path(),
        &format!("http://{nobody}"),
        &[],
    );
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(
        told(&output).contains("check the network and HF_ENDPOINT"),
        "{}",
        told(&output)
    );
}
