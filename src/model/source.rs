//! What the user calls a model, to a path on this machine.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::registry;
use crate::{Error, Result, error::closest_match, hub};

/// The local path of a model: a directory or a GGUF file. Brings a model of the catalogue or of the hub into the cache
/// first; a second call costs nothing.
///
/// # Errors
/// [`Error::Input`] when there is no such model, [`Error::Failed`] when it cannot be brought.
pub fn pull(spec: &str) -> Result<PathBuf> {
    let path = Path::new(spec);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.exists() {
        return gguf_file(path);
    }
    if let Some(entry) = registry::find(spec) {
        return registry::pull(entry);
    }
    if looks_like_path(spec) {
        return Err(Error::input_hint(
            format!("there is no model at `{spec}`: no such file or directory"),
            "a model is a Hugging Face directory, a .gguf file, a hub id or a name of the catalogue",
        ));
    }
    if spec.contains('/') {
        return hub::model_snapshot(spec);
    }
    let names: Vec<&str> = registry::names().collect();
    let known = format!("the catalogue has: {}", names.join(", "));
    Err(Error::input_hint(
        format!("there is no model `{spec}`: no file, no directory, and not in the catalogue"),
        match closest_match(spec, names) {
            Some(name) => format!("did you mean `{name}`? {known}"),
            None => known,
        },
    ))
}

/// `path`, if it can be a GGUF file.
fn gguf_file(path: &Path) -> Result<PathBuf> {
    let has_extension = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let mut magic = [0; 4];
    let has_magic = File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| &magic == b"GGUF");
    if has_extension || has_magic {
        return Ok(path.to_owned());
    }
    Err(Error::input_hint(
        format!("{} is not a model", path.display()),
        "a model is a Hugging Face directory or a .gguf file",
    ))
}

/// Whether `spec` can only be meant as a path, not as `organisation/name`.
fn looks_like_path(spec: &str) -> bool {
    let path = Path::new(spec);
    let gguf = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let parent_exists = path
        .parent()
        .is_some_and(|parent| !parent.as_os_str().is_empty() && parent.exists());
    gguf || parent_exists
        || spec.starts_with(['.', '/', '~'])
        || spec.contains('\\')
        || spec.matches('/').count() != usize::from(spec.contains('/'))
        || spec.ends_with('/')
}
