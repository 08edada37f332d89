//! Downloads from the Hugging Face hub into the cache that `transformers` and `datasets` share, uploads, and the model registry.
//!
//! The environment variables are those of `huggingface_hub`: `HF_HOME` (the cache), `HF_ENDPOINT` (the hub), `HF_TOKEN` or the file
//! `HF_TOKEN_PATH` (the token; the stored login is used without them), `HF_HUB_OFFLINE` (no requests), `HF_HUB_DOWNLOAD_TIMEOUT` (seconds without data before a
//! download fails).

pub(crate) mod checksum;
mod push;
pub(crate) mod registry;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use hf_hub::{
    Repo,
    api::{
        Progress, RepoInfo,
        sync::{ApiBuilder, ApiError},
    },
};
use indicatif::{ProgressBar, ProgressStyle};

pub use self::push::{HubCommit, HubRepository};
pub(crate) use self::registry::cache_dir;
use crate::{Error, Result};

/// Hint for a name that is not a model.
pub(crate) const MODEL_FORMS: &str = "a model is a Hugging Face directory, a .gguf file, a hub id, a name in the registry or a PEFT adapter directory";

/// Files besides the weights that are downloaded if the repository has them.
const CONFIG_FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    ADAPTER_CONFIG,
];

/// The folder of named chat templates besides the default one.
const CHAT_TEMPLATES: &str = "additional_chat_templates/";

/// The settings of a PEFT adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Its weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Extensions of data files.
const DATA_EXTENSIONS: [&str; 5] = ["parquet", "jsonl", "json", "csv", "tsv"];

/// How many times an interrupted download is resumed.
const RETRIES: usize = 3;

/// Seconds without data before a download fails; `HF_HUB_DOWNLOAD_TIMEOUT` replaces it.
const TIMEOUT_SECONDS: u64 = 60;

/// The type of a repository on the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RepoType {
    Model,
    Dataset,
}

impl RepoType {
    fn repository(self, id: &str) -> Repo {
        match self {
            Self::Model => Repo::model(id.to_owned()),
            Self::Dataset => Repo::dataset(id.to_owned()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }
}

/// The snapshot directory of the model `id` (`organisation/name`), downloaded if it is not in the cache.
pub(crate) fn model_snapshot(id: &str) -> Result<PathBuf> {
    if let Some(snapshot) = cached_snapshot(id) {
        return Ok(snapshot);
    }
    let files = pull(id, RepoType::Model)?;
    let snapshot = files.last().and_then(|path| path.parent());
    snapshot
        .map(PathBuf::from)
        .ok_or_else(|| Error::input(format!("`{id}` on the hub is empty")))
}

/// The data files of the data set `id`: those of its `train` split if it has one.
pub(crate) fn dataset_files(id: &str) -> Result<Vec<PathBuf>> {
    pull(id, RepoType::Dataset)
}

/// The useful files of a repository, downloaded if they are not in the cache.
fn pull(id: &str, repo_type: RepoType) -> Result<Vec<PathBuf>> {
    if is_offline() {
        return Err(match repo_type {
            RepoType::Model => Error::input_hint(
                format!(
                    "`{id}` not found: no such directory, not in the hub cache, and HF_HUB_OFFLINE is set"
                ),
                format!(
                    "unset HF_HUB_OFFLINE to download it, or name a local directory or .gguf file{}",
                    models_in_cache()
                ),
            ),
            RepoType::Dataset => Error::input_hint(
                format!("`{id}` not found: no such file, and HF_HUB_OFFLINE is set"),
                "unset HF_HUB_OFFLINE to download the data set, or name local files",
            ),
        });
    }
    let bytes = Arc::new(AtomicU64::new(0));
    let work = {
        let (id, bytes) = (id.to_owned(), Arc::clone(&bytes));
        move || download(&id, repo_type, &bytes)
    };
    let timeout = env_var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|seconds| seconds.parse().ok());
    let timeout = timeout.unwrap_or(TIMEOUT_SECONDS);
    with_stall_timeout(work, &bytes, Duration::from_secs(timeout)).unwrap_or_else(|| {
        Err(Error::Failed {
            message: format!("download of `{id}` from the hub: no data for {timeout} seconds"),
            hint: Some(
                "run the command again to continue the download; HF_HUB_DOWNLOAD_TIMEOUT sets the number of seconds"
                    .into(),
            ),
        })
    })
}

/// The value of an environment variable, unless it is empty.
fn env_var(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the user wants no requests.
fn is_offline() -> bool {
    env_var("HF_HUB_OFFLINE").is_some_and(|value| !["0", "false"].contains(&&value[..]))
}

/// The token for the hub, if the user has one.
fn token() -> Option<String> {
    let from_file = || fs::read_to_string(env_var("HF_TOKEN_PATH")?).ok();
    let token = env_var("HF_TOKEN")
        .or_else(from_file)
        .or_else(|| hf_hub::Cache::from_env().token())?;
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

/// Runs `work` in a thread of its own and returns its result; `None` once `bytes` has not grown for `timeout`. The thread is not
/// stopped.
fn with_stall_timeout<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    bytes: &AtomicU64,
    timeout: Duration,
) -> Option<T> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || {
        // After a timeout there is no receiver.
        let _ = done.send(work());
    });
    let mut seen = 0;
    loop {
        match result.recv_timeout(timeout) {
            Ok(result) => return Some(result),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                let now = bytes.load(Ordering::Relaxed);
                if now == seen {
                    return None;
                }
                seen = now;
            }
        }
    }
}

/// Downloads the useful files of a repository, the weights last, and counts the received bytes in `bytes`.
///
/// The token is sent only after the hub has refused a request without one: `hf-hub` would also send it to the host that serves
/// the files after a redirect.
fn download(id: &str, repo_type: RepoType, bytes: &Arc<AtomicU64>) -> Result<Vec<PathBuf>> {
    let token = token();
    match try_download(id, repo_type, None, bytes) {
        Err((Some(401 | 403), _)) if token.is_some() => try_download(id, repo_type, token, bytes),
        ended => ended,
    }
    .map_err(|(_, error)| error)
}

/// One attempt, with this token or without. An error comes with the HTTP status that caused it, if one did.
fn try_download(
    id: &str,
    repo_type: RepoType,
    token: Option<String>,
    bytes: &Arc<AtomicU64>,
) -> Result<Vec<PathBuf>, (Option<u16>, Error)> {
    let with_token = token.is_some();
    let failed = |error: &ApiError| {
        (
            status(error),
            download_error(id, repo_type, error, with_token),
        )
    };
    let wrong = |error: Error| (None, error);
    let builder = ApiBuilder::from_env()
        .with_retries(RETRIES)
        .with_token(token);
    let api = builder.build().map_err(|e| failed(&e))?;
    let repository = api.repo(repo_type.repository(id));
    let info = repository.info().map_err(|e| failed(&e))?;
    let names = match repo_type {
        RepoType::Model => model_file_names(id, &info),
        RepoType::Dataset => dataset_file_names(id, &info),
    };
    // Files of an earlier call are in the cache.
    let cache = hf_hub::Cache::from_env().repo(repo_type.repository(id));
    let mut files = Vec::new();
    for name in names.map_err(wrong)? {
        let path = if let Some(path) = cache.get(&name) {
            path
        } else {
            let bar = DownloadProgress {
                bar: transfer_bar("", 0),
                bytes: Arc::clone(bytes),
            };
            let path = repository.download_with_progress(&name, bar);
            let path = path.map_err(|e| failed(&e))?;
            verify(&path).map_err(wrong)?;
            path
        };
        files.push(path);
    }
    Ok(files)
}

/// The useful files of a model, the weights last.
fn model_file_names(id: &str, info: &RepoInfo) -> Result<Vec<String>> {
    let names = || info.siblings.iter().map(|file| file.rfilename.as_str());
    let present = |wanted: &&str| names().any(|name| name == *wanted);
    let is_adapter = present(&ADAPTER_CONFIG) && present(&ADAPTER_WEIGHTS);
    if !present(&"config.json") && !is_adapter {
        return Err(Error::input_hint(
            format!("`{id}` on the hub has no config.json"),
            "if it holds GGUF files, download one and name that file",
        ));
    }
    let shard = |name: &&str| {
        !name.contains('/') && name.starts_with("model") && name.contains(".safetensors")
    };
    let mut weights: Vec<&str> = if present(&"model.safetensors") {
        vec!["model.safetensors"]
    } else {
        names().filter(shard).collect()
    };
    if is_adapter {
        weights.push(ADAPTER_WEIGHTS);
    }
    if weights.is_empty() {
        return Err(Error::input_hint(
            format!("`{id}` on the hub has no safetensors weights"),
            "weights in other formats (`pytorch_model.bin`) can run code when they are read: convert them with `save_pretrained` of `transformers`, and name the directory",
        ));
    }
    let templates = names().filter(|name| name.starts_with(CHAT_TEMPLATES));
    let small = CONFIG_FILES.into_iter().filter(present).chain(templates);
    Ok(small.chain(weights).map(str::to_owned).collect())
}

/// The data files of a data set: those with `train` in their name, if there are any.
fn dataset_file_names(id: &str, info: &RepoInfo) -> Result<Vec<String>> {
    let names = info.siblings.iter().map(|file| file.rfilename.clone());
    let rows = names.filter(|name| {
        let packed = [".gz", ".zst"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let extension = Path::new(packed.unwrap_or(name))
            .extension()
            .unwrap_or_default();
        DATA_EXTENSIONS
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    });
    let mut rows: Vec<String> = rows.collect();
    if rows.iter().any(|name| name.contains("train")) {
        rows.retain(|name| name.contains("train"));
    }
    rows.sort_unstable();
    if rows.is_empty() {
        return Err(Error::input_hint(
            format!("the data set `{id}` on the hub has no Parquet, JSONL, JSON, CSV or TSV file"),
            "download it and convert it to one of these formats",
        ));
    }
    Ok(rows)
}

/// A progress bar that also counts the received bytes.
struct DownloadProgress {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
}

impl Progress for DownloadProgress {
    fn init(&mut self, size: usize, filename: &str) {
        self.bar = transfer_bar(filename, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.bar.inc(size as u64);
        self.bytes.fetch_add(size as u64, Ordering::Relaxed);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The progress bar of a file with `bytes` bytes.
fn transfer_bar(name: &str, bytes: u64) -> ProgressBar {
    let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("a valid template");
    ProgressBar::new(bytes)
        .with_style(style)
        .with_prefix(name.to_owned())
}

/// Checks a downloaded file against its SHA-256, by which large files are named in the cache. A wrong file is removed.
fn verify(path: &Path) -> Result<()> {
    let blob = fs::canonicalize(path).map_err(Error::io("read", path))?;
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let is_sha256 = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_sha256 {
        return Ok(());
    }
    let found = checksum::of_file(&blob)?;
    if found == *name {
        return Ok(());
    }
    for broken in [path, &blob] {
        fs::remove_file(broken).map_err(Error::io("remove", broken))?;
    }
    Err(Error::Failed {
        message: format!(
            "{} from the hub has SHA-256 {found}; expected {name}. The file was removed",
            path.file_name().unwrap_or_default().to_string_lossy()
        ),
        hint: Some("run the command again; if it happens twice, a proxy between here and the hub changes files".into()),
    })
}

/// The models that need no download, for the end of a hint.
fn models_in_cache() -> String {
    let snapshots = fs::read_dir(hf_hub::Cache::from_env().path());
    let names = snapshots.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let id = name.strip_prefix("models--")?.replacen("--", "/", 1);
        cached_snapshot(&id).map(|_| id)
    });
    let mut ids: Vec<String> = names.collect();
    ids.extend(registry::cached_names().map(str::to_owned));
    ids.sort();
    if ids.is_empty() {
        return String::new();
    }
    format!("; in the cache are {}", ids.join(", "))
}

/// The snapshot of `id` in the cache, if it is complete.
fn cached_snapshot(id: &str) -> Option<PathBuf> {
    let repository = hf_hub::Cache::from_env().model(id.to_owned());
    if let Some(config) = repository.get(ADAPTER_CONFIG) {
        repository.get(ADAPTER_WEIGHTS)?;
        return Some(config.parent()?.to_owned());
    }
    let config = repository.get("config.json")?;
    repository.get("tokenizer.json")?;
    let directory = config.parent()?.to_owned();
    if repository.get("model.safetensors").is_some() {
        return Some(directory);
    }
    let index = fs::read(repository.get("model.safetensors.index.json")?).ok()?;
    let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
    let shards = index.get("weight_map")?.as_object()?;
    shards
        .values()
        .all(|shard| {
            shard
                .as_str()
                .is_some_and(|name| repository.get(name).is_some())
        })
        .then_some(directory)
}

/// The error message for a failed request. It never contains the token.
fn download_error(id: &str, repo_type: RepoType, error: &ApiError, with_token: bool) -> Error {
    let what = repo_type.name();
    match status(error) {
        Some(401) if with_token => Error::input_hint(
            format!("the hub rejects the token for `{id}`"),
            "fix HF_TOKEN, or log in again (`hf auth login`); public models need no token",
        ),
        Some(401 | 403) if !with_token => Error::input_hint(
            format!(
                "`{id}` not found: no such directory, and the hub has no such {what} or requires a licence for it"
            ),
            "for a gated repository, accept its licence on its page and set HF_TOKEN",
        ),
        Some(403) => Error::input_hint(
            format!("the account of this token has no access to `{id}`"),
            "accept its licence on its page with that account, or set another token in HF_TOKEN",
        ),
        Some(404) => Error::input_hint(
            format!("`{id}` not found: no such directory, and the hub has no such {what}"),
            match repo_type {
                RepoType::Model => MODEL_FORMS,
                RepoType::Dataset => {
                    "data is a file, `pack:world`, or a data set on the hub (`organisation/name`)"
                }
            },
        ),
        Some(429) => Error::Failed {
            message: format!("the hub limits the request rate: `{id}` cannot be downloaded now"),
            hint: Some(
                "wait some minutes and run the command again, or set a token in HF_TOKEN".into(),
            ),
        },
        _ => Error::Failed {
            message: format!(
                "`{id}` not found: no such directory, and the download from the hub failed: {error}"
            ),
            hint: Some(format!(
                "run the command again to continue the download; check the network and HF_ENDPOINT, or name a local file or directory{}",
                match repo_type {
                    RepoType::Model => models_in_cache(),
                    RepoType::Dataset => String::new(),
                }
            )),
        },
    }
}

/// The HTTP status that caused an error.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::TooManyRetries(error) => status(error),
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}
