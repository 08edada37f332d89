//! Uploads of a directory to the Hugging Face hub, as one commit.
//!
//! The requests are those of `huggingface_hub`: the hub says which files it stores by Git LFS, these are uploaded unless it has them,
//! and a commit names all of them. Until the commit the repository is unchanged.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use ureq::{
    Agent, Body, SendBody,
    http::{Response, header::ETAG},
};

use super::{TIMEOUT_SECONDS, checksum, env_var, is_offline, token, transfer_bar};
use crate::{Error, Result};

/// Bytes at the beginning of a file by which the hub decides how to store it.
const SAMPLE_BYTES: u64 = 512;

/// How many times a request is repeated that the network or the hub broke off.
const RETRIES: u32 = 2;

/// Bytes of an answer of the hub that are read, at most.
const MAX_REPLY_BYTES: u64 = 4 << 20;

const LFS_TYPE: &str = "application/vnd.git-lfs+json";

/// Hint after an upload that failed before the commit.
const AGAIN: &str = "nothing was committed. Run the command again with `--force`: files that the hub already has are not sent again";

/// A model repository on the hub that files are uploaded to.
pub struct HubRepository {
    /// `owner/name`.
    id: String,
    endpoint: String,
    token: String,
    private: bool,
    agent: Agent,
}

/// A commit on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubCommit {
    /// The page of the repository.
    pub url: String,
    /// The id of the commit.
    pub id: String,
}

/// A file to upload.
struct Upload {
    path: PathBuf,
    /// The path in the repository.
    name: String,
    size: u64,
    sample: Vec<u8>,
    /// SHA-256 (hex), if the hub stores the file by Git LFS.
    lfs_sha256: Option<String>,
}

/// The answer to a request.
struct Reply {
    status: u16,
    etag: Option<String>,
    body: String,
}

impl Reply {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The reason that the hub gives, behind a colon; empty if there is none.
    fn reason(&self) -> String {
        let json: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let text = json["error"].as_str().or_else(|| json["message"].as_str());
        let line = text.and_then(|text| text.lines().next());
        line.map(|line| format!(": {}", line.chars().take(300).collect::<String>()))
            .unwrap_or_default()
    }
}

impl HubRepository {
    /// The repository `id` (`owner/name`) at `HF_ENDPOINT`, with the token of `HF_TOKEN`, `HF_TOKEN_PATH` or the stored login. Sends
    /// nothing. With `private` it is created as a private one, and a public one is refused.
    ///
    /// # Errors
    /// [`Error::Input`] for an id that the hub does not allow, without a token, and with `HF_HUB_OFFLINE`.
    pub fn new(id: &str, private: bool) -> Result<Self> {
        if !is_repository_id(id) {
            return Err(Error::input_hint(
                format!("`{id}` cannot be the name of a repository on the hub"),
                "give OWNER/NAME: a user or an organisation, and a name of letters, digits, `-`, `_` and `.`",
            ));
        }
        if is_offline() {
            return Err(Error::input_hint(
                format!("cannot upload to `{id}`: HF_HUB_OFFLINE is set"),
                "unset HF_HUB_OFFLINE, or leave `--push` out",
            ));
        }
        let endpoint =
            env_var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let Some(token) = token() else {
            return Err(Error::input_hint(
                format!("cannot upload to `{id}`: no token for the hub"),
                token_hint(&endpoint),
            ));
        };
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::input_hint(
                format!("cannot upload to `{id}`: the token has characters that no token has"),
                token_hint(&endpoint),
            ));
        }
        let silence = Some(Duration::from_secs(TIMEOUT_SECONDS));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(silence)
            .timeout_per_read(silence)
            .timeout_per_write(silence)
            .user_agent(concat!("unforget/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            id: id.to_owned(),
            endpoint,
            token,
            private,
            agent: Agent::new_with_config(config),
        })
    }

    /// Uploads every file in `dir` and its subdirectories, except hidden ones, as one commit with the title `summary`. Creates the
    /// repository if it does not exist. `note` is told what is done.
    ///
    /// # Errors
    /// [`Error::Input`] when the hub rejects the token or denies access; [`Error::Failed`] when the network or the hub fails;
    /// [`Error::Io`] when a file cannot be read.
    pub fn push(&self, dir: &Path, summary: &str, note: &dyn Fn(String)) -> Result<HubCommit> {
        let mut uploads = Vec::new();
        list_files(dir, "", &mut uploads)?;
        self.create_if_missing(note)?;
        self.ask_upload_modes(&mut uploads)?;
        self.upload_large_files(&uploads, note)?;
        let id = self.commit(&uploads, summary)?;
        let url = format!("{}/{}", self.endpoint, self.id);
        let (count, s) = (uploads.len(), if uploads.len() == 1 { "" } else { "s" });
        note(format!("uploaded {count} file{s} to {url}"));
        Ok(HubCommit { url, id })
    }

    /// Creates the repository unless it exists.
    fn create_if_missing(&self, note: &dyn Fn(String)) -> Result<()> {
        let action = format!("cannot read the repository `{}`", self.id);
        let mut info = self.info(&action)?;
        if info.status == 404 {
            let (owner, name) = self.id.split_once('/').expect("checked in `new`");
            let action = format!("cannot create the repository `{}`", self.id);
            let mut body = json!({ "type": "model", "organization": owner, "name": name });
            if self.private {
                body["visibility"] = "private".into();
            }
            let url = format!("{}/api/repos/create", self.endpoint);
            let reply = self.post(&action, &url, "application/json", &body)?;
            // 409: another process has created it meanwhile.
            if !reply.is_success() && reply.status != 409 {
                return Err(self.refusal(&action, &reply));
            }
            note(format!("created {}/{}", self.endpoint, self.id));
            info = self.info(&action)?;
        }
        let info = self.accepted(&action, info)?;
        if self.private && self.parse(&action, &info)?["private"] != true {
            return Err(Error::input_hint(
                format!(
                    "the repository `{}` is public: nothing was uploaded",
                    self.id
                ),
                format!(
                    "make it private at {}/{}/settings, or leave `--private` out",
                    self.endpoint, self.id
                ),
            ));
        }
        Ok(())
    }

    /// What the hub says about the repository.
    fn info(&self, action: &str) -> Result<Reply> {
        let url = self.api("");
        self.send(action, RETRIES, || {
            let request = self.agent.get(&url);
            request.header("Authorization", self.bearer()).call()
        })
    }

    /// Asks which files are stored by Git LFS, and computes their checksums.
    fn ask_upload_modes(&self, uploads: &mut [Upload]) -> Result<()> {
        let action = format!("cannot upload to `{}`", self.id);
        let files: Vec<Value> = uploads
            .iter()
            .map(|file| {
                let sample = BASE64_STANDARD.encode(&file.sample);
                json!({ "path": file.name, "sample": sample, "size": file.size })
            })
            .collect();
        let body = json!({ "files": files });
        let url = self.api("/preupload/main");
        let reply = self.post(&action, &url, "application/json", &body)?;
        let modes = self.parse(&action, &self.accepted(&action, reply)?)?;
        let modes = modes["files"].as_array().map_or(&[][..], Vec::as_slice);
        for file in uploads {
            let mode = modes.iter().find(|mode| mode["path"] == *file.name);
            match mode.and_then(|mode| mode["uploadMode"].as_str()) {
                // The storage takes no empty files.
                Some("lfs") if file.size > 0 => {
                    file.lfs_sha256 = Some(checksum::of_file(&file.path)?);
                }
                Some("lfs" | "regular") => {}
                _ => return Err(self.unexpected(&action)),
            }
        }
        Ok(())
    }

    /// Uploads the files that are stored by Git LFS, except those that the hub has.
    fn upload_large_files(&self, uploads: &[Upload], note: &dyn Fn(String)) -> Result<()> {
        let large: Vec<(&Upload, &str)> = uploads
            .iter()
            .filter_map(|file| Some((file, file.lfs_sha256.as_deref()?)))
            .collect();
        if large.is_empty() {
            return Ok(());
        }
        let action = format!("cannot upload to `{}`", self.id);
        let objects: Vec<Value> = large
            .iter()
            .map(|(file, sha256)| json!({ "oid": sha256, "size": file.size }))
            .collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": { "name": "main" },
        });
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.endpoint, self.id);
        let reply = self.post(&action, &url, LFS_TYPE, &body)?;
        let batch = self.parse(&action, &self.accepted(&action, reply)?)?;
        for (file, sha256) in large {
            let action = format!("cannot upload `{}` to `{}`", file.name, self.id);
            let mut objects = batch["objects"].as_array().into_iter().flatten();
            let object = objects.find(|object| object["oid"] == *sha256);
            let object = object.ok_or_else(|| self.unexpected(&action))?;
            if let Some(reason) = object["error"]["message"].as_str() {
                return Err(Error::Failed {
                    message: format!("{action}: {}", self.without_token(reason)),
                    hint: Some(AGAIN.into()),
                });
            }
            let target = &object["actions"]["upload"];
            if target.is_null() {
                note(format!("the hub already has `{}`", file.name));
                continue;
            }
            let href = target["href"].as_str();
            let href = href.ok_or_else(|| self.unexpected(&action))?;
            if target["header"]["chunk_size"].is_null() {
                self.put(&action, file, href, 0, file.size)?;
            } else {
                self.put_parts(&action, file, sha256, target)?;
            }
            if let Some(href) = object["actions"]["verify"]["href"].as_str() {
                let body = json!({ "oid": sha256, "size": file.size });
                self.accepted(&action, self.post(&action, href, LFS_TYPE, &body)?)?;
            }
        }
        Ok(())
    }

    /// Uploads `file` in parts, whose addresses are in `target` by number.
    fn put_parts(&self, action: &str, file: &Upload, sha256: &str, target: &Value) -> Result<()> {
        let header = &target["header"];
        let chunk = &header["chunk_size"];
        let chunk = chunk
            .as_u64()
            .or_else(|| chunk.as_str()?.parse().ok())
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| self.unexpected(action))?;
        let mut addresses: Vec<(u64, &str)> = header
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(number, address)| Some((number.parse().ok()?, address.as_str()?)))
            .collect();
        addresses.sort_unstable();
        if addresses.len() as u64 != file.size.div_ceil(chunk) {
            return Err(self.unexpected(action));
        }
        let mut parts = Vec::new();
        for (index, (_, address)) in addresses.into_iter().enumerate() {
            let start = index as u64 * chunk;
            let reply = self.put(action, file, address, start, chunk.min(file.size - start))?;
            let etag = reply.etag.ok_or_else(|| self.unexpected(action))?;
            parts.push(json!({ "partNumber": index + 1, "etag": etag }));
        }
        let href = target["href"].as_str().unwrap_or_default();
        let body = json!({ "oid": sha256, "parts": parts });
        self.accepted(action, self.post(action, href, LFS_TYPE, &body)?)?;
        Ok(())
    }

    /// Sends `length` bytes of `file` to the storage, which gets no token: its addresses are signed.
    fn put(
        &self,
        action: &str,
        file: &Upload,
        address: &str,
        start: u64,
        length: u64,
    ) -> Result<Reply> {
        let mut opened = File::open(&file.path).map_err(Error::io("read", &file.path))?;
        let bar = transfer_bar(&file.name, length);
        let reply = self.send(action, RETRIES, || {
            opened.seek(SeekFrom::Start(start))?;
            bar.set_position(0);
            let mut part = bar.wrap_read((&mut opened).take(length));
            self.agent
                .put(address)
                .header("Content-Length", length)
                .send(SendBody::from_reader(&mut part))
        })?;
        bar.finish_and_clear();
        if reply.is_success() {
            return Ok(reply);
        }
        Err(Error::Failed {
            message: format!(
                "{action}: the storage of {} answers with status {}",
                self.endpoint, reply.status
            ),
            hint: Some(AGAIN.into()),
        })
    }

    /// Commits the files, and returns the id of the commit.
    fn commit(&self, uploads: &[Upload], summary: &str) -> Result<String> {
        let action = format!("cannot commit to `{}`", self.id);
        let header = json!({ "key": "header", "value": { "summary": summary, "description": "" } });
        let mut lines = format!("{header}\n");
        for file in uploads {
            let line = if let Some(sha256) = &file.lfs_sha256 {
                json!({
                    "key": "lfsFile",
                    "value": { "path": file.name, "algo": "sha256", "oid": sha256, "size": file.size },
                })
            } else {
                let content = fs::read(&file.path).map_err(Error::io("read", &file.path))?;
                let content = BASE64_STANDARD.encode(content);
                json!({
                    "key": "file",
                    "value": { "path": file.name, "content": content, "encoding": "base64" },
                })
            };
            lines += &format!("{line}\n");
        }
        let url = self.api("/commit/main");
        // Repeated after a lost answer, it would be a second commit.
        let reply = self.send(&action, 0, || {
            self.agent
                .post(&url)
                .header("Authorization", self.bearer())
                .content_type("application/x-ndjson")
                .send(&lines)
        })?;
        let commit = self.parse(&action, &self.accepted(&action, reply)?)?;
        let id = commit["commitOid"].as_str().map(str::to_owned);
        id.ok_or_else(|| self.unexpected(&action))
    }

    /// The address of this repository in the hub's API.
    fn api(&self, rest: &str) -> String {
        format!("{}/api/models/{}{rest}", self.endpoint, self.id)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Posts JSON. The token goes to the hub alone.
    fn post(&self, action: &str, url: &str, content_type: &str, body: &Value) -> Result<Reply> {
        let to_hub = url.strip_prefix(&self.endpoint);
        let to_hub = to_hub.is_some_and(|rest| rest.starts_with('/'));
        self.send(action, RETRIES, || {
            let mut request = self.agent.post(url).content_type(content_type);
            if to_hub {
                request = request.header("Authorization", self.bearer());
            }
            request
                .header("Accept", content_type)
                .send(body.to_string())
        })
    }

    /// Sends a request, again where the network breaks it off or the hub fails.
    fn send(
        &self,
        action: &str,
        retries: u32,
        mut request: impl FnMut() -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Reply> {
        let mut attempt = 0;
        loop {
            let answered = request().and_then(|mut response| {
                let etag = response.headers().get(ETAG);
                Ok(Reply {
                    status: response.status().as_u16(),
                    etag: etag.and_then(|etag| Some(etag.to_str().ok()?.to_owned())),
                    body: response
                        .body_mut()
                        .with_config()
                        .limit(MAX_REPLY_BYTES)
                        .lossy_utf8(true)
                        .read_to_string()?,
                })
            });
            let may_pass = match &answered {
                Ok(reply) => reply.status >= 500,
                Err(error) => !matches!(error, ureq::Error::HostNotFound),
            };
            if may_pass && attempt < retries {
                thread::sleep(Duration::from_secs(1 << attempt));
                attempt += 1;
                continue;
            }
            return answered.map_err(|error| Error::Failed {
                message: format!(
                    "{action}: {} cannot be reached: {}",
                    self.endpoint,
                    self.without_token(&error.to_string())
                ),
                hint: Some(if retries == 0 {
                    format!(
                        "the hub's answer was lost: see at {}/{}/commits/main whether the commit was made, else run the command again with `--force`",
                        self.endpoint, self.id
                    )
                } else {
                    format!("check the network and HF_ENDPOINT; {AGAIN}")
                }),
            });
        }
    }

    /// `reply` if it is a success, else the error for its status.
    fn accepted(&self, action: &str, reply: Reply) -> Result<Reply> {
        if reply.is_success() {
            Ok(reply)
        } else {
            Err(self.refusal(action, &reply))
        }
    }

    fn parse(&self, action: &str, reply: &Reply) -> Result<Value> {
        serde_json::from_str(&reply.body).map_err(|_| self.unexpected(action))
    }

    /// The error for an answer that is not the hub's.
    fn unexpected(&self, action: &str) -> Error {
        Error::Failed {
            message: format!(
                "{action}: the answer of {} is not that of a Hugging Face hub",
                self.endpoint
            ),
            hint: Some(format!("check HF_ENDPOINT and the proxy settings; {AGAIN}")),
        }
    }

    /// The error for a request that the hub refused.
    fn refusal(&self, action: &str, reply: &Reply) -> Error {
        let (endpoint, status) = (&self.endpoint, reply.status);
        let owner = self.id.split('/').next().unwrap_or_default();
        let reason = self.without_token(&reply.reason());
        match status {
            401 => Error::input_hint(
                format!("{action}: {endpoint} rejects the token{reason}"),
                token_hint(endpoint),
            ),
            403 => Error::input_hint(
                format!("{action}: this token has no write access to `{owner}`{reason}"),
                format!(
                    "give the token write access at {endpoint}/settings/tokens, or name a repository of an owner that it may write to"
                ),
            ),
            404 => Error::input_hint(
                format!("{action}: {endpoint} has no such owner or repository{reason}"),
                "check OWNER/NAME",
            ),
            429 => Error::Failed {
                message: format!("{action}: {endpoint} limits the request rate{reason}"),
                hint: Some(format!("wait some minutes; {AGAIN}")),
            },
            _ => Error::Failed {
                message: format!("{action}: {endpoint} answers with status {status}{reason}"),
                hint: Some(AGAIN.into()),
            },
        }
    }

    /// A text of the hub or the network, in which the token may stand.
    fn without_token(&self, text: &str) -> String {
        text.replace(&self.token, "***")
    }
}

/// Hint where a token is missing or rejected.
fn token_hint(endpoint: &str) -> String {
    format!(
        "create a token with write access at {endpoint}/settings/tokens; set it in HF_TOKEN, or log in with `hf auth login`"
    )
}

/// Whether the hub allows `id` as the name of a repository.
fn is_repository_id(id: &str) -> bool {
    let is_name = |name: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !name.is_empty()
            && name.len() <= 96
            && name.chars().all(allowed)
            && !name.starts_with(['-', '.'])
            && !name.ends_with(['-', '.'])
            && !name.contains("--")
            && !name.contains("..")
            && name.strip_suffix(".git").is_none()
    };
    id.split_once('/')
        .is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

/// Adds the files in `dir`, whose path in the repository begins with `prefix`, in the order of their names. Hidden ones are left out.
fn list_files(dir: &Path, prefix: &str, uploads: &mut Vec<Upload>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let entries: Result<Vec<_>, _> = entries.collect();
    let mut paths: Vec<PathBuf> = entries
        .map_err(Error::io("read", dir))?
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::input(format!(
                "{}: the name of a file on the hub is UTF-8",
                path.display()
            )));
        };
        if name.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{name}");
        let metadata = fs::metadata(&path).map_err(Error::io("read", &path))?;
        if metadata.is_dir() {
            list_files(&path, &format!("{name}/"), uploads)?;
            continue;
        }
        let mut sample = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(SAMPLE_BYTES).read_to_end(&mut sample))
            .map_err(Error::io("read", &path))?;
        uploads.push(Upload {
            path,
            name,
            size: metadata.len(),
            sample,
            lfs_sha256: None,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_an_owner_and_a_name() {
        for id in ["o/m", "My-Org/smollm2.p17_v2"] {
            assert!(is_repository_id(id), "{id}");
        }
        for id in [
            "m", "o/", "/m", "o/m/n", "o/-m", "o/m.", "o/a..b", "o/a--b", "o/m.git", "o/ä",
        ] {
            assert!(!is_repository_id(id), "{id}");
        }
    }
}
