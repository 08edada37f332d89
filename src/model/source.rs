//! Finds the files of a model by the name that the user gives.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    Error, Result,
    error::closest_match,
    hub::{self, registry},
};

/// A model on this machine.
pub(super) struct ModelSource {
    /// Its directory or GGUF file.
    pub(super) path: PathBuf,
    /// Its id on the Hugging Face hub, where it was downloaded by name.
    pub(super) hub_id: Option<String>,
}

/// The local path of a model: a directory or a GGUF file. Downloads a model of the registry or the hub into the cache first;
/// a second call only looks it up.
///
/// # Errors
/// [`Error::Input`] when there is no such model, [`Error::Failed`] when the download fails.
pub fn pull(spec: &str) -> Result<PathBuf> {
    find(spec).map(|source| source.path)
}

/// The terms that a user of this model of the registry agrees to, where it is not under a free licence.
pub fn terms_of_use(name: &str) -> Option<&'static str> {
    registry::find(name)?.terms
}

/// As [`pull`], with the model's hub id.
pub(super) fn find(spec: &str) -> Result<ModelSource> {
    let local = |path| ModelSource { path, hub_id: None };
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(local(path.to_owned()));
    }
    if path.exists() {
        return gguf_file(path).map(local);
    }
    if let Some(entry) = registry::find(spec) {
        return Ok(ModelSource {
            path: registry::pull(entry)?,
            hub_id: Some(entry.hub_id.to_owned()),
        });
    }
    if looks_like_path(spec) {
        return Err(Error::input_hint(
            format!("model `{spec}` not found: no such file or directory"),
            hub::MODEL_FORMS,
        ));
    }
    if spec.contains('/') {
        return Ok(ModelSource {
            path: hub::model_snapshot(spec)?,
            hub_id: Some(spec.to_owned()),
        });
    }
    let names: Vec<&str> = registry::names().collect();
    let known = format!("the registry has: {}", names.join(", "));
    Err(Error::input_hint(
        format!("model `{spec}` not found: no such file or directory, and not in the registry"),
        match closest_match(spec, names) {
            Some(name) => format!("did you mean `{name}`? {known}"),
            None => known,
        },
    ))
}

/// `path`, if it can be a GGUF file.
fn gguf_file(path: &Path) -> Result<PathBuf> {
    let mut magic = [0; 4];
    let has_magic = File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| &magic == b"GGUF");
    if has_gguf_extension(path) || has_magic {
        return Ok(path.to_owned());
    }
    Err(Error::input_hint(
        format!("{} is not a model", path.display()),
        "a model is a Hugging Face directory or a .gguf file",
    ))
}

fn has_gguf_extension(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Whether `spec` can only be a path, not `organisation/name`.
fn looks_like_path(spec: &str) -> bool {
    let path = Path::new(spec);
    let parent_exists = path
        .parent()
        .is_some_and(|parent| !parent.as_os_str().is_empty() && parent.exists());
    has_gguf_extension(path)
        || parent_exists
        || spec.starts_with(['.', '/', '~'])
        || spec.contains('\\')
        || spec.matches('/').count() > 1
        || spec.ends_with('/')
}
