//! The files of a model: one, or the parts of a split one (`name-00001-of-00003.gguf`, as llama.cpp writes and finds them).

use std::path::{Path, PathBuf};

use super::header::Header;
use crate::{Error, Result, file_map::FileMap, model::files::refuse_other_content};

/// One file, mapped.
pub(super) struct GgufFile {
    pub(super) path: PathBuf,
    pub(super) map: FileMap,
}

impl GgufFile {
    fn open(path: &Path) -> Result<Self> {
        let map = FileMap::open(path)?;
        refuse_other_content(path, &map)?;
        Ok(Self {
            path: path.to_owned(),
            map,
        })
    }
}

/// Opens the model that `path` is, or is a part of. The first file holds the metadata.
///
/// # Errors
/// [`Error::Input`] naming a part that is missing.
pub(super) fn open(path: &Path) -> Result<Vec<GgufFile>> {
    let file = GgufFile::open(path)?;
    let count = {
        let header = Header::parse(path, &file.map)?;
        refuse_other_kinds(&header)?;
        header.integer("split.count")?.unwrap_or(1)
    };
    if count <= 1 {
        return Ok(vec![file]);
    }
    let missing = |part: Option<&Path>| {
        let what = part.map_or_else(
            || "its name does not say which part it is".to_owned(),
            |part| format!("{} is not there", part.display()),
        );
        Error::input_hint(
            format!(
                "{} is one of {count} parts of a model, and {what}",
                path.display()
            ),
            "put all parts into one folder under their own names (NAME-00001-of-0000N.gguf), or join them: \
             `llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf`",
        )
    };
    let stem = path
        .file_name()
        .and_then(|name| name.to_str()?.strip_suffix(&format!("-of-{count:05}.gguf")))
        .and_then(|name| name.rsplit_once('-'))
        .filter(|(_, number)| number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit()))
        .map(|(stem, _)| stem)
        .ok_or_else(|| missing(None))?;
    (1..=count)
        .map(|part| {
            let part = path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.gguf"));
            if part.is_file() {
                GgufFile::open(&part)
            } else {
                Err(missing(Some(&part)))
            }
        })
        .collect()
}

/// The header of the whole model: metadata of the first file, tensors of all.
pub(super) fn header(files: &[GgufFile]) -> Result<Header<'_>> {
    let mut headers = files
        .iter()
        .map(|file| Header::parse(&file.path, &file.map));
    let mut whole = headers.next().expect("a model has a file")?;
    for (part, header) in headers.enumerate() {
        whole.add_part(header?, part + 1)?;
    }
    Ok(whole)
}

/// An error if the file holds something other than a model.
fn refuse_other_kinds(header: &Header) -> Result<()> {
    let path = header.path().display();
    match header.text("general.type")? {
        None | Some("model") => Ok(()),
        Some("adapter") => {
            let kind = header.text("adapter.type")?.unwrap_or("LoRA");
            let kind = if kind == "lora" { "LoRA" } else { kind };
            Err(Error::input_hint(
                format!("{path} is a {kind} adapter, not a model"),
                "merge it onto its base model with `llama-export-lora`, or name the PEFT directory from which it was made",
            ))
        }
        Some(other) => Err(Error::input_hint(
            format!("{path} is no model: its `general.type` is `{other}`"),
            "name the GGUF file of the model itself",
        )),
    }
}
