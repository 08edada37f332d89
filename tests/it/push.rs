//! Uploads to a hub that misbehaves: a small server on the loopback address, which checks what it receives.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
    thread,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cli::tune_once,
    hub::{call, stderr_of},
    model::copy_of,
};

const TOKEN: &str = "hf_a_secret_of_mine";
const WEIGHTS: &str = "model.safetensors";

/// What the hub does and has.
#[derive(Clone, Default)]
struct Behaviour {
    /// The repository exists, and is public.
    exists: bool,
    /// The answers to requests whose method and path contain this text: a status, and for 0 a closed connection. The last one stays.
    faults: Vec<(&'static str, Vec<u16>)>,
    /// No file is stored by Git LFS.
    all_regular: bool,
    /// Large files are uploaded in parts of this many bytes.
    part_bytes: Option<usize>,
    /// A repository that is created is public, whatever was asked.
    never_private: bool,
    /// SHA-256 of large files that are stored.
    has: Vec<String>,
}

/// What the hub has received.
#[derive(Default)]
struct State {
    /// Method and path of each request, and its `Authorization`.
    requests: Vec<(String, Option<String>)>,
    /// Parts of large files by their address, in its order.
    stored: BTreeMap<String, Vec<u8>>,
    /// The bodies of commits.
    commits: Vec<String>,
    is_private: Option<bool>,
}

struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn new(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            is_private: behaviour.exists.then_some(false),
            ..State::default()
        }));
        let (shared, own) = (Arc::clone(&state), address.clone());
        let mut behaviour = behaviour;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client may close the connection.
                let _ = serve(stream, &mut behaviour, &own, &shared);
            }
        });
        Self { address, state }
    }

    /// How many requests have `text` in their method and path.
    fn count(&self, text: &str) -> usize {
        let state = self.state.lock().unwrap();
        let requests = state.requests.iter();
        requests.filter(|(line, _)| line.contains(text)).count()
    }

    /// The rows of the only commit.
    fn commit(&self) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        assert_eq!(state.commits.len(), 1);
        let rows = state.commits[0].lines();
        rows.map(|row| serde_json::from_str(row).unwrap()).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    behaviour: &mut Behaviour,
    own: &str,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let line = first.rsplit_once(' ').unwrap_or_default().0.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let authorization = headers.get("authorization").cloned();
    let mut state = state.lock().unwrap();
    state.requests.push((line.clone(), authorization.clone()));
    let length = headers
        .get("content-length")
        .map_or(0, |n| n.parse().unwrap());
    let fault = behaviour
        .faults
        .iter_mut()
        .find(|(text, _)| line.contains(text))
        .map(|(_, statuses)| match statuses.len() {
            0 | 1 => statuses.first().copied().unwrap_or(200),
            _ => statuses.remove(0),
        })
        .filter(|status| *status != 200);
    if fault == Some(0) {
        // In the middle of the body.
        let mut half = vec![0; length / 2];
        return reader.read_exact(&mut half);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut answer = |status: u16, headers: &str, body: &Value| {
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        stream.flush()
    };
    if let Some(status) = fault {
        // A hub that repeats the token in its error.
        return answer(
            status,
            "",
            &json!({ "error": format!("no, {authorization:?}") }),
        );
    }
    let sent = || serde_json::from_slice::<Value>(&body).unwrap();
    let (method, path) = line.split_once(' ').unwrap_or_default();
    if let Some(place) = path.strip_prefix("/storage/") {
        assert_eq!((method, &authorization), ("PUT", &None));
        state.stored.insert(place.to_owned(), body);
        return answer(200, "ETag: \"part\"\r\n", &json!({}));
    }
    if authorization != Some(format!("Bearer {TOKEN}")) {
        return answer(401, "", &json!({ "error": "no token" }));
    }
    match (method, path) {
        ("GET", "/api/models/o/m") => match state.is_private {
            Some(private) => answer(200, "", &json!({ "id": "o/m", "private": private })),
            None => answer(404, "", &json!({ "error": "not found" })),
        },
        ("POST", "/api/repos/create") => {
            let sent = sent();
            assert_eq!(
                (&sent["organization"], &sent["name"]),
                (&json!("o"), &json!("m"))
            );
            state.is_private = Some(sent["visibility"] == "private" && !behaviour.never_private);
            answer(200, "", &json!({ "url": format!("{own}/o/m") }))
        }
        ("POST", "/api/models/o/m/preupload/main") => {
            let modes = sent()["files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| {
                    let sample = BASE64_STANDARD
                        .decode(file["sample"].as_str().unwrap())
                        .unwrap();
                    assert!(sample.len() as u64 == file["size"].as_u64().unwrap().min(512));
                    let large = file["path"] == WEIGHTS && !behaviour.all_regular;
                    let mode = if large { "lfs" } else { "regular" };
                    json!({ "path": file["path"], "uploadMode": mode, "shouldIgnore": false })
                })
                .collect::<Vec<_>>();
            answer(200, "", &json!({ "files": modes }))
        }
        ("POST", "/o/m.git/info/lfs/objects/batch") => {
            let objects = sent()["objects"]
                .as_array()
                .unwrap()
                .iter()
                .map(|object| {
                    let (oid, size) = (
                        object["oid"].as_str().unwrap(),
                        object["size"].as_u64().unwrap(),
                    );
                    let mut answer = json!({ "oid": oid, "size": size });
                    if behaviour.has.iter().any(|has| has == oid) {
                        return answer;
                    }
                    let mut upload = json!({ "href": format!("{own}/storage/{oid}") });
                    if let Some(bytes) = behaviour.part_bytes {
                        upload["href"] = format!("{own}/complete").into();
                        upload["header"] = json!({ "chunk_size": bytes.to_string() });
                        for part in 1..=(size as usize).div_ceil(bytes) {
                            let place = format!("{own}/storage/{oid}-{part:05}");
                            upload["header"][format!("{part:05}")] = place.into();
                        }
                    }
                    let verify = json!({ "href": format!("{own}/verify") });
                    answer["actions"] = json!({ "upload": upload, "verify": verify });
                    answer
                })
                .collect::<Vec<_>>();
            answer(200, "", &json!({ "objects": objects }))
        }
        ("POST", "/complete") => {
            let numbers: Vec<u64> = sent()["parts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|part| part["partNumber"].as_u64().unwrap())
                .collect();
            assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
            assert_eq!(sent()["parts"][0]["etag"], "\"part\"");
            answer(200, "", &json!({}))
        }
        ("POST", "/verify") => {
            let stored: Vec<u8> = state.stored.values().flatten().copied().collect();
            let sum = format!("{:x}", Sha256::digest(&stored));
            let is_right = sent()["oid"] == *sum && sent()["size"] == stored.len();
            answer(if is_right { 200 } else { 400 }, "", &json!({}))
        }
        ("POST", "/api/models/o/m/commit/main") => {
            assert_eq!(headers["content-type"], "application/x-ndjson");
            state.commits.push(String::from_utf8(body).unwrap());
            answer(200, "", &json!({ "commitUrl": "u", "commitOid": "c0ffee" }))
        }
        _ => answer(404, "", &json!({ "error": "no such address" })),
    }
}

const EXPORT: [&str; 7] = ["export", ".", "--out", "out", "--push", "o/m", "--force"];

fn push(dir: &Path, hub: &Hub, more: &[&str]) -> Output {
    let args = [&EXPORT, more].concat();
    let output = call(&args, dir, &hub.address, &[("HF_TOKEN", TOKEN)]);
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(!String::from_utf8_lossy(&all).contains(TOKEN));
    output
}

/// Whether a commit has the files of `out`, the weights by their checksum if `lfs`.
fn is_complete(hub: &Hub, out: &Path, lfs: bool) -> bool {
    let rows = hub.commit();
    assert_eq!(rows[0]["key"], "header");
    let mut names: Vec<String> = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(rows.len() - 1, names.len());
    names.iter().zip(&rows[1..]).all(|(name, row)| {
        let content = fs::read(out.join(name)).unwrap();
        let value = &row["value"];
        let is_right = if lfs && name == WEIGHTS {
            row["key"] == "lfsFile"
                && value["oid"] == format!("{:x}", Sha256::digest(&content))
                && value["size"] == content.len()
        } else {
            row["key"] == "file"
                && BASE64_STANDARD
                    .decode(value["content"].as_str().unwrap())
                    .unwrap()
                    == content
        };
        is_right && value["path"] == **name
    })
}

#[test]
fn an_export_is_uploaded_as_one_commit() {
    let stored = format!("{:x}", {
        let dir = copy_of("llama");
        let done = call(
            &["export", ".", "--out", "out"],
            dir.path(),
            "http://127.0.0.1:9",
            &[],
        );
        assert!(done.status.success());
        Sha256::digest(fs::read(dir.path().join("out").join(WEIGHTS)).unwrap())
    });
    for (behaviour, created, puts) in [
        (Behaviour::default(), 1, 1),
        (
            Behaviour {
                exists: true,
                ..Behaviour::default()
            },
            0,
            1,
        ),
        (
            Behaviour {
                all_regular: true,
                ..Behaviour::default()
            },
            1,
            0,
        ),
        (
            Behaviour {
                has: vec![stored],
                ..Behaviour::default()
            },
            1,
            0,
        ),
        (
            Behaviour {
                part_bytes: Some(10_000),
                ..Behaviour::default()
            },
            1,
            0,
        ),
        // The network and the hub fail, and recover.
        (
            Behaviour {
                faults: vec![("PUT", vec![0, 500, 200])],
                ..Behaviour::default()
            },
            1,
            3,
        ),
    ] {
        let dir = copy_of("llama");
        let (lfs, parts) = (!behaviour.all_regular, behaviour.part_bytes);
        let hub = Hub::new(behaviour);
        let output = push(dir.path(), &hub, &["--json"]);
        assert!(output.status.success(), "{}", stderr_of(&output));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let page = format!("{}/o/m", hub.address);
        assert_eq!(told["pushed"], json!({ "url": page, "commit": "c0ffee" }));
        let out = dir.path().join("out");
        assert!(is_complete(&hub, &out, lfs));
        assert_eq!(hub.count("repos/create"), created);
        let size = fs::metadata(out.join(WEIGHTS)).unwrap().len() as usize;
        let puts = parts.map_or(puts, |bytes| size.div_ceil(bytes));
        assert!(parts.is_none() || puts > 1, "one part proves nothing");
        assert_eq!(hub.count("PUT"), puts);
    }
}

#[test]
fn a_refused_or_broken_upload_commits_nothing_and_says_what_to_do() {
    for (text, status, code, words) in [
        ("GET", 401, 2, ["rejects the token", "settings/tokens"]),
        (
            "create",
            403,
            2,
            [
                "cannot create the repository `o/m`: this token has no write access to `o`",
                "give the token write access",
            ],
        ),
        ("create", 404, 2, ["no such owner", "check OWNER/NAME"]),
        (
            "preupload",
            429,
            1,
            ["limits the request rate", "wait some minutes"],
        ),
        (
            "batch",
            500,
            1,
            ["answers with status 500: no", "nothing was committed"],
        ),
        (
            "PUT",
            500,
            1,
            [
                "cannot upload `model.safetensors` to `o/m`",
                "not sent again",
            ],
        ),
        (
            "PUT",
            0,
            1,
            [
                "cannot upload `model.safetensors` to `o/m`",
                "check the network and HF_ENDPOINT",
            ],
        ),
        (
            "verify",
            400,
            1,
            ["cannot upload `model.safetensors`", "nothing was committed"],
        ),
        (
            "commit",
            0,
            1,
            ["cannot commit to `o/m`", "/o/m/commits/main"],
        ),
    ] {
        let dir = copy_of("llama");
        let hub = Hub::new(Behaviour {
            faults: vec![(text, vec![status])],
            ..Behaviour::default()
        });
        let output = push(dir.path(), &hub, &[]);
        let message = stderr_of(&output);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{text} {status}: {message}"
        );
        for words in words {
            assert!(message.contains(words), "{text} {status}: {message}");
        }
        assert!(output.stdout.is_empty());
        assert!(hub.state.lock().unwrap().commits.is_empty());
    }
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let dir = copy_of("llama");
    let output = call(
        &EXPORT,
        dir.path(),
        &format!("http://{nobody}"),
        &[("HF_TOKEN", TOKEN)],
    );
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
    assert!(
        stderr_of(&output).contains("check the network and HF_ENDPOINT"),
        "{}",
        stderr_of(&output)
    );
}

#[test]
fn a_private_export_goes_to_no_public_repository() {
    let public = Behaviour {
        exists: true,
        ..Behaviour::default()
    };
    let open = Behaviour {
        never_private: true,
        ..Behaviour::default()
    };
    for (behaviour, code) in [(Behaviour::default(), 0), (public, 2), (open, 2)] {
        let dir = copy_of("llama");
        let hub = Hub::new(behaviour);
        let output = push(dir.path(), &hub, &["--private"]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr_of(&output));
        assert_eq!(hub.count("preupload"), usize::from(code == 0));
        assert!(code == 0 || stderr_of(&output).contains("is public: nothing was uploaded"));
    }
}

#[test]
fn what_cannot_be_uploaded_is_refused_before_any_work() {
    let dir = copy_of("llama");
    let hub = Hub::new(Behaviour::default());
    let home = dir.path();
    let token = ("HF_TOKEN", TOKEN);
    for (id, to, more, words) in [
        ("m", "hf", &[token][..], "give OWNER/NAME"),
        ("o/m", "hf", &[], "no token for the hub"),
        (
            "o/m",
            "hf",
            &[("HF_TOKEN", "hf_\u{e4}")],
            "characters that no token has",
        ),
        (
            "o/m",
            "hf",
            &[token, ("HF_HUB_OFFLINE", "1")],
            "HF_HUB_OFFLINE is set",
        ),
        ("o/m", "lm-eval", &[token], "is not uploaded"),
    ] {
        let args = ["export", ".", "--to", to, "--out", "out", "--push", id];
        let output = call(&args, home, &hub.address, more);
        assert_eq!(output.status.code(), Some(2), "{}", stderr_of(&output));
        assert!(stderr_of(&output).contains(words), "{}", stderr_of(&output));
        assert!(!home.join("out").exists());
    }
    assert_eq!(hub.count(""), 0);
    // An export that fails is not uploaded.
    fs::write(home.join(WEIGHTS), b"broken").unwrap();
    let output = push(home, &hub, &[]);
    assert!(!output.status.success());
    assert_eq!(hub.count(""), 0);
}

#[test]
fn the_token_is_found_where_huggingface_hub_looks() {
    let dir = copy_of("llama");
    let home = dir.path();
    fs::write(home.join("token"), format!("{TOKEN}\n")).unwrap();
    fs::write(home.join("elsewhere"), TOKEN).unwrap();
    let elsewhere = home.join("elsewhere");
    for more in [
        &[][..],
        &[
            ("HF_TOKEN_PATH", elsewhere.to_str().unwrap()),
            ("HF_HOME", "/nowhere"),
        ],
    ] {
        let hub = Hub::new(Behaviour::default());
        let output = call(&EXPORT, home, &hub.address, more);
        assert!(output.status.success(), "{}", stderr_of(&output));
    }
}

/// The card of a run on facts, uploaded: the repository in the code, and what the adapter and the GGUF file are.
#[test]
fn the_card_says_how_to_ask_the_model() {
    let dir = copy_of("llama");
    let home = dir.path();
    fs::write(
        home.join("facts.tsv"),
        "subject\trelation\tobject\nOslo\tP17\tNorway\nRome\tP17\tItaly\n",
    )
    .unwrap();
    let base = home.join("base/llama");
    fs::create_dir_all(&base).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        WEIGHTS,
    ] {
        fs::copy(home.join(name), base.join(name)).unwrap();
    }
    tune_once(
        home,
        [base.to_str().unwrap(), "facts.tsv", "run"],
        &["--set", "train.lora.r=2"],
    );
    for (to, words) in [
        (
            "hf",
            [
                "library_name: transformers\n",
                "AutoTokenizer.from_pretrained(\"o/m\")",
                "stop_strings=[\"\\n\"], tokenizer=tokenizer",
            ],
        ),
        (
            "peft",
            [
                "library_name: peft\n",
                "AutoPeftModelForCausalLM.from_pretrained(\"o/m\")",
                "tokenizer(\"Q: your question\\nA:\", ",
            ],
        ),
        (
            "gguf",
            ["library_name: gguf\n", "ollama create", "model-index:\n"],
        ),
    ] {
        let hub = Hub::new(Behaviour::default());
        let args = ["export", "run", "--to", to, "--out", to, "--push", "o/m"];
        let output = call(&args, home, &hub.address, &[("HF_TOKEN", TOKEN)]);
        assert!(output.status.success(), "{}", stderr_of(&output));
        assert!(is_complete(&hub, &home.join(to), true));
        let card = fs::read_to_string(home.join(to).join("README.md")).unwrap();
        for words in words {
            assert!(card.contains(words), "{words}: {card}");
        }
        assert!(!card.contains("/base"), "a local path: {card}");
    }
}
