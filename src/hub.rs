//! Models and data sets of the Hugging Face hub, into the cache that `transformers` and `datasets` share.
//!
//! As `huggingface_hub` has it: `HF_HOME` is where the cache is, `HF_ENDPOINT` the hub, `HF_TOKEN` the token (else the one that was
//! logged in with), `HF_HUB_OFFLINE` keeps from asking, and `HF_HUB_DOWNLOAD_TIMEOUT` says for how many seconds nothing may come.

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

use crate::{
    Error, Result,
    model::{checksum, files},
};

/// Files that are of use, where a repository has them.
const CONFIG_FILES: [&str; 5] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// Extensions of files of rows.
const DATA_EXTENSIONS: [&str; 5] = ["parquet", "jsonl", "json", "csv", "tsv"];

/// How often a download that broke off is gone on with.
const RETRIES: usize = 3;

/// Seconds for which nothing may come, unless the environment says otherwise.
const TIMEOUT_SECONDS: u64 = 60;

/// What a repository of the hub holds.
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

/// The directory of the snapshot of the model `id` (`organisation/name`).
pub(crate) fn model_snapshot(id: &str) -> Result<PathBuf> {
    if let Some(snapshot) = cached_snapshot(id) {
        return Ok(snapshot);
    }
    let files = pull(id, RepoType::Model)?;
    let snapshot = files.last().and_then(|path| path.parent());
    snapshot
        .map(PathBuf::from)
        .ok_or_else(|| Error::input(format!("the hub's `{id}` is empty")))
}

/// The files of the data set `id` that training reads: those of its part `train`, where it has parts.
pub(crate) fn dataset_files(id: &str) -> Result<Vec<PathBuf>> {
    pull(id, RepoType::Dataset)
}

/// The files of use of a repository, brought where they are not in the cache.
fn pull(id: &str, kind: RepoType) -> Result<Vec<PathBuf>> {
    if env_var("HF_HUB_OFFLINE").is_some_and(|value| !["0", "false"].contains(&&value[..])) {
        return Err(match kind {
            RepoType::Model => Error::input_hint(
                format!(
                    "`{id}` is no directory here and not in the hub's cache, and HF_HUB_OFFLINE is set"
                ),
                "unset HF_HUB_OFFLINE to bring it, or name a directory or .gguf file that is here",
            ),
            RepoType::Dataset => Error::input_hint(
                format!("`{id}` is no file here, and HF_HUB_OFFLINE is set"),
                "unset HF_HUB_OFFLINE to bring the data set, or name files that are here",
            ),
        });
    }
    let bytes = Arc::new(AtomicU64::new(0));
    let work = {
        let (id, bytes) = (id.to_owned(), Arc::clone(&bytes));
        move || download(&id, kind, &bytes)
    };
    let timeout = env_var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|seconds| seconds.parse().ok());
    let timeout = timeout.unwrap_or(TIMEOUT_SECONDS);
    with_stall_timeout(work, &bytes, Duration::from_secs(timeout)).unwrap_or_else(|| {
        Err(Error::Failed {
            message: format!("bringing `{id}` from the hub: nothing came for {timeout} seconds"),
            hint: Some(
                "give the command again, it goes on where it was; HF_HUB_DOWNLOAD_TIMEOUT says how many seconds are waited for"
                    .into(),
            ),
        })
    })
}

/// An environment variable that is set and not empty.
fn env_var(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// What `work` returns; none once `bytes` has not grown for `patience`, and then the work is left to itself.
fn with_stall_timeout<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    bytes: &AtomicU64,
    timeout: Duration,
) -> Option<T> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || {
        // Nobody waits any more where it stalled.
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

/// Brings what is of use of a repository, the weights last; what has come is counted in `bytes`.
///
/// A token is told only to a hub that asks for one: the library that asks it would tell it also to the host that a hub sends us on
/// to for a file.
fn download(id: &str, kind: RepoType, bytes: &Arc<AtomicU64>) -> Result<Vec<PathBuf>> {
    let token = env_var("HF_TOKEN").or_else(|| hf_hub::Cache::from_env().token());
    match try_download(id, kind, None, bytes) {
        Err((Some(401 | 403), _)) if token.is_some() => try_download(id, kind, token, bytes),
        ended => ended,
    }
    .map_err(|(_, error)| error)
}

/// The same with this token or without one. An error has the status of the answer that it comes of, if it comes of one.
fn try_download(
    id: &str,
    kind: RepoType,
    token: Option<String>,
    bytes: &Arc<AtomicU64>,
) -> Result<Vec<PathBuf>, (Option<u16>, Error)> {
    let with_token = token.is_some();
    let failed = |error: &ApiError| (status(error), failed(id, kind, error, with_token));
    let wrong = |error: Error| (None, error);
    let builder = ApiBuilder::from_env()
        .with_retries(RETRIES)
        .with_token(token);
    let api = builder.build().map_err(|e| failed(&e))?;
    let repository = api.repo(kind.repository(id));
    let info = repository.info().map_err(|e| failed(&e))?;
    let names = match kind {
        RepoType::Model => model_file_names(id, &info),
        RepoType::Dataset => dataset_file_names(id, &info),
    };
    // What an earlier call has brought is not brought again.
    let cache = hf_hub::Cache::from_env().repo(kind.repository(id));
    let mut files = Vec::new();
    for name in names.map_err(wrong)? {
        let path = if let Some(path) = cache.get(&name) {
            path
        } else {
            let bar = DownloadProgress {
                bar: ProgressBar::new(0),
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

/// The files of a model that are of use, the weights last.
fn model_file_names(id: &str, info: &RepoInfo) -> Result<Vec<String>> {
    let names = || info.siblings.iter().map(|file| file.rfilename.as_str());
    let present = |wanted: &&str| names().any(|name| name == *wanted);
    if !present(&"config.json") {
        return Err(Error::input_hint(
            format!("the hub's `{id}` has no config.json"),
            "of a repository of GGUF files, download one and name it",
        ));
    }
    let shard = |name: &&str| {
        !name.contains('/') && name.starts_with("model") && name.contains(".safetensors")
    };
    let weights: Vec<&str> = if present(&"model.safetensors") {
        vec!["model.safetensors"]
    } else {
        names().filter(shard).collect()
    };
    if weights.is_empty() {
        return Err(Error::input(format!(
            "the hub's `{id}` has no safetensors weights"
        )));
    }
    let small = CONFIG_FILES.into_iter().filter(present);
    Ok(small.chain(weights).map(str::to_owned).collect())
}

/// The files of a data set that are rows of something, those of `train` where any says that it is.
fn dataset_file_names(id: &str, info: &RepoInfo) -> Result<Vec<String>> {
    let names = info.siblings.iter().map(|file| file.rfilename.clone());
    let rows = names.filter(|name| {
        let extension = Path::new(name).extension().unwrap_or_default();
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
            format!("the hub's data set `{id}` has no Parquet, JSONL, JSON, CSV or TSV file"),
            "download what it has, and save it as one of these",
        ));
    }
    Ok(rows)
}

/// Shows what comes, and counts it.
struct DownloadProgress {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
}

impl Progress for DownloadProgress {
    fn init(&mut self, size: usize, filename: &str) {
        let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
        self.bar.set_style(
            ProgressStyle::with_template(style).expect("its parts are those of indicatif"),
        );
        self.bar.set_length(size as u64);
        self.bar.set_position(0);
        self.bar.set_prefix(filename.to_owned());
    }

    fn update(&mut self, size: usize) {
        self.bar.inc(size as u64);
        self.bytes.fetch_add(size as u64, Ordering::Relaxed);
    }

    fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Refuses a file that is not what the hub says: large ones are named by their SHA-256. Then it is taken out of the cache.
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
            "what came from the hub as {} has the SHA-256 {found}, not {name}: it was thrown away",
            path.file_name().unwrap_or_default().to_string_lossy()
        ),
        hint: Some("give the command again; if it happens twice, something between here and the hub changes files".into()),
    })
}

/// The snapshot of `id` in the cache, if it is whole: the weights come last.
fn cached_snapshot(id: &str) -> Option<PathBuf> {
    let repository = hf_hub::Cache::from_env().model(id.to_owned());
    let config = repository.get("config.json")?;
    repository.get("tokenizer.json")?;
    let directory = config.parent()?.to_owned();
    if repository.get("model.safetensors").is_some() {
        return Some(directory);
    }
    let index = files::read_json(&repository.get("model.safetensors.index.json")?).ok()?;
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

/// What a failed request means to the user. Nothing of the token is told.
fn failed(id: &str, kind: RepoType, error: &ApiError, with_token: bool) -> Error {
    let what = kind.name();
    match status(error) {
        Some(401) if with_token => Error::input_hint(
            format!("the hub does not accept the token that was given for `{id}`"),
            "mend HF_TOKEN, or log in again (`huggingface-cli login`); without a token public models can be brought",
        ),
        Some(401 | 403) if !with_token => Error::input_hint(
            format!("the hub has no {what} `{id}`, or keeps it behind a licence, and there is no such directory here"),
            "what is gated needs its licence accepted on its page and a token in HF_TOKEN",
        ),
        Some(403) => Error::input_hint(
            format!("the hub keeps `{id}` from the account of this token"),
            "accept its licence on its page with that account, or give another token in HF_TOKEN",
        ),
        Some(404) => Error::input_hint(
            format!("the hub has no {what} `{id}`, and there is no such directory here"),
            match kind {
                RepoType::Model => "a model is a Hugging Face directory, a .gguf file, a hub id or a name of the catalogue",
                RepoType::Dataset => "facts and texts are files, `pack:world`, or a data set of the hub (`organisation/name`)",
            },
        ),
        Some(429) => Error::Failed {
            message: format!("the hub is asked too often from here to bring `{id}` now"),
            hint: Some("wait some minutes and give the command again, or give a token in HF_TOKEN".into()),
        },
        _ => Error::Failed {
            message: format!("`{id}` is no directory here, and bringing it from the hub failed: {error}"),
            hint: Some("give the command again, it goes on where it was; else check the network and HF_ENDPOINT, or name what is already here".into()),
        },
    }
}

/// The status of the answer that an error is about.
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
