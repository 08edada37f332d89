//! Downloads from a hub that misbehaves: a small server on the loopback address.

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
const TEMPLATE: &str = "additional_chat_templates/rag.jinja";

/// How a server responds.
#[derive(Clone)]
enum Behaviour {
    /// Correctly.
    Good,
    /// Closes the connection in the middle of the weights, this number of times.
    Interrupts(usize),
    /// Stops in the middle of the weights and keeps the connection open.
    Stalls,
    /// Sends weights that do not match their checksum.
    WrongBytes,
    /// Redirects requests for the weights to this server.
    Redirects(String),
    /// Sends files only with this authorization.
    Gated(String),
    /// Answers every request with this status.
    Status(u16),
}

/// Received requests: path, and headers by name.
type Requests = Arc<Mutex<Vec<(String, BTreeMap<String, String>)>>>;

struct Hub {
    address: String,
    requests: Requests,
}

impl Hub {
    /// A server with the tiny model as `o/m`; it runs until the test ends.
    fn new(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Requests::default();
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            let mut cuts = 0;
            for stream in listener.incoming().flatten() {
                // A client may close the connection.
                let _ = serve(stream, &behaviour, &mut cuts, &seen);
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
    behaviour: &Behaviour,
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
    if let Behaviour::Status(status) = behaviour {
        return answer(*status, "", b"no", 2);
    }
    if path.starts_with("/api/models/o/m") {
        let files = [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            TEMPLATE,
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
    if matches!(behaviour, Behaviour::Gated(wanted) if headers.get("authorization") != Some(wanted))
    {
        return answer(401, "", b"no", 2);
    }
    let folder = if name.ends_with(".parquet") {
        "parquet"
    } else {
        "llama"
    };
    let content = if path.ends_with(TEMPLATE) {
        Ok(b"{{ messages }}".to_vec())
    } else {
        fs::read(golden(folder).join(name))
    };
    let Ok(mut content) = content else {
        return answer(404, "", b"no", 2);
    };
    let sum = format!("{:x}", Sha256::digest(&content));
    let etag = if name == WEIGHTS {
        &sum[..]
    } else {
        &sum[..40]
    };
    let is_weights = name == WEIGHTS;
    if let (Behaviour::Redirects(address), true) = (behaviour, is_weights) {
        let away =
            format!("Location: {address}{path}\r\nETag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\n");
        return answer(302, &away, b"", 0);
    }
    if let (Behaviour::WrongBytes, true) = (behaviour, is_weights) {
        content[1000] ^= 1;
    }
    let range = headers.get("range").cloned().unwrap_or_default();
    let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let (start, all) = (start.parse::<usize>().unwrap(), content.len());
    let end = end.parse::<usize>().map_or(all, |end| end + 1);
    let body = &content[start..end];
    let response_headers = format!(
        "ETag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\nContent-Range: bytes {start}-{}/{all}\r\n",
        end - 1
    );
    let half = body.len().div_ceil(2);
    match behaviour {
        Behaviour::Interrupts(times) if is_weights && body.len() > 1 && *cuts < *times => {
            *cuts += 1;
            answer(206, &response_headers, &body[..half], body.len())
        }
        Behaviour::Stalls if is_weights && body.len() > 1 => {
            answer(206, &response_headers, &body[..half], body.len())?;
            thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        _ => answer(206, &response_headers, body, body.len()),
    }
}

fn pull(home: &Path, hub: &str, more: &[(&str, &str)]) -> Output {
    call(&["pull", "o/m"], home, hub, more)
}

pub fn call(args: &[&str], home: &Path, hub: &str, more: &[(&str, &str)]) -> Output {
    cargo_bin_cmd!("unforget")
        .current_dir(home)
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", hub)
        .env_remove("HF_TOKEN")
        .env_remove("HF_TOKEN_PATH")
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

pub fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a call printed a directory with the right weights.
fn is_complete(output: &Output) -> bool {
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let weights = fs::read(Path::new(&folder).join(WEIGHTS));
    weights.is_ok_and(|weights| weights == fs::read(golden("llama").join(WEIGHTS)).unwrap())
}

#[test]
fn a_second_pull_sends_no_request() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Behaviour::Good));
    let offline = [("HF_HUB_OFFLINE", "1")];
    let refused = pull(home.path(), &hub.address, &offline);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr_of(&refused));
    assert!(
        stderr_of(&refused).contains("HF_HUB_OFFLINE is set"),
        "{}",
        stderr_of(&refused)
    );
    assert_eq!(hub.paths().len(), 0);

    let first = pull(home.path(), &hub.address, &[]);
    assert!(
        first.status.success() && is_complete(&first),
        "{}",
        stderr_of(&first)
    );
    let folder = String::from_utf8_lossy(&first.stdout).trim().to_owned();
    let template = fs::read_to_string(Path::new(&folder).join(TEMPLATE));
    assert_eq!(template.unwrap(), "{{ messages }}");
    let asked = hub.paths().len();
    assert!(asked > 0);
    for more in [&[][..], &offline] {
        let again = pull(home.path(), &hub.address, more);
        assert!(
            again.status.success() && is_complete(&again),
            "{}",
            stderr_of(&again)
        );
    }
    assert_eq!(hub.paths().len(), asked);
}

#[test]
fn a_data_set_is_its_train_split() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Behaviour::Good));
    let data = ["data", "o/d", "--model", MODEL, "--json"];
    for _ in 0..2 {
        let output = call(&data, home.path(), &hub.address, &[]);
        assert!(output.status.success(), "{}", stderr_of(&output));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&told["kind"], &told["items"]),
            (&"facts".into(), &3.into())
        );
    }
    let downloaded = hub
        .paths()
        .into_iter()
        .filter(|path| path.contains("resolve"));
    assert!(downloaded.clone().count() > 0);
    assert!(
        downloaded
            .into_iter()
            .all(|path| path.ends_with("train/facts.parquet"))
    );
    let offline = call(&data, home.path(), &hub.address, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(offline.status.code(), Some(2), "{}", stderr_of(&offline));
    assert!(
        stderr_of(&offline).contains("name local files"),
        "{}",
        stderr_of(&offline)
    );
    let missing = call(
        &["data", "o/none", "--model", MODEL],
        home.path(),
        &hub.address,
        &[],
    );
    assert!(
        stderr_of(&missing)
            .contains("`o/none` not found: no such directory, and the hub has no such data set"),
        "{}",
        stderr_of(&missing)
    );
}

#[test]
fn an_interrupted_download_is_resumed() {
    let (home, hub) = (
        tempfile::tempdir().unwrap(),
        Hub::new(Behaviour::Interrupts(2)),
    );
    let output = pull(home.path(), &hub.address, &[]);
    assert!(
        output.status.success() && is_complete(&output),
        "{}",
        stderr_of(&output)
    );
    let requests = hub.requests.lock().unwrap();
    let ranges = requests.iter().filter(|(path, _)| path.ends_with(WEIGHTS));
    let ranges: Vec<&str> = ranges.map(|(_, headers)| &headers["range"][..]).collect();
    let length = fs::metadata(golden("llama").join(WEIGHTS)).unwrap().len();
    let half = format!("bytes={}-", length.div_ceil(2));
    assert!(ranges.contains(&&half[..]), "{ranges:?}");
}

#[test]
fn a_stalled_download_fails_and_the_next_call_continues_it() {
    let (home, hub) = (tempfile::tempdir().unwrap(), Hub::new(Behaviour::Stalls));
    let silent = pull(
        home.path(),
        &hub.address,
        &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")],
    );
    assert_eq!(silent.status.code(), Some(1), "{}", stderr_of(&silent));
    for words in ["no data for 1 seconds", "to continue the download"] {
        assert!(stderr_of(&silent).contains(words), "{}", stderr_of(&silent));
    }
    let good = Hub::new(Behaviour::Good);
    let output = pull(home.path(), &good.address, &[]);
    assert!(
        output.status.success() && is_complete(&output),
        "{}",
        stderr_of(&output)
    );
    let requests = good.requests.lock().unwrap();
    let small = requests
        .iter()
        .any(|(path, _)| path.ends_with("resolve/main/config.json"));
    assert!(!small, "files in the cache are not downloaded again");
}

#[test]
fn weights_with_a_wrong_checksum_are_removed() {
    let (home, hub) = (
        tempfile::tempdir().unwrap(),
        Hub::new(Behaviour::WrongBytes),
    );
    let output = pull(home.path(), &hub.address, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
    assert!(
        stderr_of(&output).contains("has SHA-256"),
        "{}",
        stderr_of(&output)
    );
    let good = Hub::new(Behaviour::Good);
    let output = pull(home.path(), &good.address, &[]);
    assert!(
        output.status.success() && is_complete(&output),
        "{}",
        stderr_of(&output)
    );
}

#[test]
fn a_token_is_sent_only_to_a_hub_that_requires_one() {
    let token = "hf_a_secret_of_mine";
    let bearer = format!("Bearer {token}");
    let has_token = |hub: &Hub| {
        let requests = hub.requests.lock().unwrap();
        let given =
            |headers: &BTreeMap<String, String>| headers.get("authorization") == Some(&bearer);
        requests.iter().any(|(_, headers)| given(headers))
    };
    let more = [("HF_TOKEN", token)];
    let other = Hub::new(Behaviour::Good);
    // Another name for the same address is another host.
    let address = other.address.replace("127.0.0.1", "localhost");
    let open = Hub::new(Behaviour::Redirects(address));
    let asking = Hub::new(Behaviour::Gated(bearer.clone()));
    let refusing = Hub::new(Behaviour::Status(401));
    for (hub, is_told, code) in [(&open, false, 0), (&asking, true, 0), (&refusing, true, 2)] {
        let home = tempfile::tempdir().unwrap();
        let output = pull(home.path(), &hub.address, &more);
        assert_eq!(output.status.code(), Some(code), "{}", stderr_of(&output));
        assert_eq!(is_complete(&output), code == 0, "{}", stderr_of(&output));
        assert_eq!(has_token(hub), is_told);
        let all = [&output.stdout[..], &output.stderr[..]].concat();
        assert!(!String::from_utf8_lossy(&all).contains(token));
        let holds = |bytes: &Vec<u8>| bytes.windows(token.len()).any(|w| w == token.as_bytes());
        assert!(
            !walk(home.path()).iter().any(holds),
            "the token is in no file"
        );
    }
    assert!(!other.paths().is_empty() && !has_token(&other));
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
fn every_error_has_a_hint() {
    let token = [("HF_TOKEN", "hf_x")];
    for (status, more, code, words) in [
        (
            401,
            &[][..],
            2,
            [
                "the hub has no such model or requires a licence for it",
                "accept its licence on its page and set HF_TOKEN",
            ],
        ),
        (401, &token, 2, ["rejects the token", "fix HF_TOKEN"]),
        (403, &[], 2, ["requires a licence", "accept its licence"]),
        (
            403,
            &token,
            2,
            [
                "the account of this token has no access",
                "accept its licence",
            ],
        ),
        (
            404,
            &[],
            2,
            [
                "`o/m` not found: no such directory, and the hub has no such model",
                "a hub id, a name in the registry",
            ],
        ),
        (
            429,
            &[],
            1,
            ["limits the request rate", "wait some minutes"],
        ),
        (
            500,
            &[],
            1,
            ["the download from the hub failed", "run the command again"],
        ),
    ] {
        let (home, hub) = (
            tempfile::tempdir().unwrap(),
            Hub::new(Behaviour::Status(status)),
        );
        let output = pull(home.path(), &hub.address, more);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{status}: {}",
            stderr_of(&output)
        );
        for words in words {
            assert!(
                stderr_of(&output).contains(words),
                "{status}: {}",
                stderr_of(&output)
            );
        }
    }
    // No server listens on this address.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let output = pull(
        tempfile::tempdir().unwrap().path(),
        &format!("http://{nobody}"),
        &[],
    );
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
    assert!(
        stderr_of(&output).contains("check the network and HF_ENDPOINT"),
        "{}",
        stderr_of(&output)
    );
}
