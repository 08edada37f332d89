//! Weights of a Hugging Face directory: one safetensors file, or an index of shards.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Component, Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{Dtype, Layout, config::ModelConfig, files, params::TensorInfo, weights};
use crate::{
    Error, Result,
    tensor_file::{self, TensorFile, TensorView},
};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The tensors of a directory, under their names with the `model.` prefix.
pub(super) struct Weights {
    files: Vec<(PathBuf, TensorFile)>,
    /// The file of a tensor and its name there.
    tensors: BTreeMap<String, Entry>,
}

/// The position of one tensor.
struct Entry {
    file: usize,
    stored_name: String,
    dtype: Dtype,
}

impl Weights {
    /// Opens `model.safetensors`, or else the shards in `model.safetensors.index.json`. Only headers are read.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            shards(dir, &index)?
        } else {
            return Err(no_weights(dir));
        };
        let mut weights = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for path in paths {
            weights.add(path)?;
        }
        Ok(weights)
    }

    /// Adds the tensors of one file.
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = open(&path)?;
        for (name, tensor) in file.iter() {
            let dtype = match tensor.dtype {
                tensor_file::Dtype::F32 => Dtype::F32,
                tensor_file::Dtype::F16 => Dtype::F16,
                tensor_file::Dtype::BF16 => Dtype::Bf16,
                // A buffer of rotary frequencies, which are computed.
                _ if name.ends_with("rotary_emb.inv_freq") => continue,
                other => {
                    return Err(Error::input_hint(
                        format!("{}: tensor `{name}` is stored as {other:?}", path.display()),
                        "supported: F32, F16, BF16",
                    ));
                }
            };
            let full_name = if name.starts_with("model.") || name == HEAD {
                name.to_owned()
            } else {
                format!("model.{name}")
            };
            if self.tensors.contains_key(&full_name) {
                return Err(Error::broken(
                    &path,
                    format!("duplicate tensor `{full_name}`"),
                ));
            }
            let entry = Entry {
                file: self.files.len(),
                stored_name: name.to_owned(),
                dtype,
            };
            self.tensors.insert(full_name, entry);
        }
        self.files.push((path, file));
        Ok(())
    }

    /// Whether the file has a head of its own although the configuration ties it to the embedding. As in `transformers` 5, a head that
    /// differs from the embedding counts; where the embedding is missing, the head is both.
    pub(super) fn untie(&mut self) -> bool {
        match (self.tensors.get(EMBEDDING), self.tensors.get(HEAD)) {
            (Some(embedding), Some(head)) => {
                let (embedding, head) = (self.tensor(embedding), self.tensor(head));
                embedding.dtype != head.dtype || embedding.bytes != head.bytes
            }
            (None, Some(_)) => {
                let head = self.tensors.remove(HEAD).expect("it is there");
                self.tensors.insert(EMBEDDING.into(), head);
                false
            }
            _ => false,
        }
    }

    fn tensor(&self, entry: &Entry) -> TensorView<'_> {
        let (_, file) = &self.files[entry.file];
        let tensor = file.get(&entry.stored_name);
        tensor.expect("the entry was made from the same file")
    }

    /// An error if there is a tensor that is not part of a model with this configuration.
    pub(super) fn refuse_extra(&self, config: &ModelConfig) -> Result<()> {
        let layout = Layout::new(config);
        let known: BTreeSet<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
        for (name, entry) in &self.tensors {
            let computed = name.ends_with("rotary_emb.inv_freq");
            let tied = config.tie_word_embeddings && name == HEAD;
            if !known.contains(name.as_str()) && !computed && !tied {
                let stored = &entry.stored_name;
                let wrapper = [
                    ("_orig_mod.", "torch.compile"),
                    ("module.", "DistributedDataParallel"),
                ]
                .into_iter()
                .find(|(prefix, _)| stored.starts_with(prefix));
                return Err(Error::Failed {
                    message: format!(
                        "broken model file {}: tensor `{stored}` is not part of a {} model of this configuration",
                        self.files[entry.file].0.display(),
                        config.family.model_type()
                    ),
                    hint: Some(wrapper.map_or_else(
                        || "save the file without it, or correct config.json: a model without one of its tensors is another model".into(),
                        |(prefix, by)| format!("the names begin with `{prefix}`, which `{by}` of PyTorch puts in front: save the model that it wraps"),
                    )),
                });
            }
        }
        Ok(())
    }

    /// The dtype of the stored weights.
    pub(super) fn dtype(&self) -> Dtype {
        weights::common_dtype(self.tensors.values().map(|entry| entry.dtype))
    }

    /// Paths and bytes of the files, for the checksum.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        let files = self.files.iter();
        files.map(|(path, file)| (path.as_path(), file.bytes()))
    }
}

impl super::tensor::TensorSource for Weights {
    fn shape(&self, name: &str) -> Option<(&Path, Vec<usize>)> {
        let entry = self.tensors.get(name)?;
        let shape = self.tensor(entry).shape.to_vec();
        Some((&self.files[entry.file].0, shape))
    }

    fn read_rows(&self, tensor: &TensorInfo, first_row: usize, out: &mut [f32]) -> Result<()> {
        let entry = &self.tensors[&tensor.name];
        let width = entry.dtype.bytes();
        let start = first_row * tensor.row_len() * width;
        let bytes = &self.tensor(entry).bytes[start..start + out.len() * width];
        weights::convert(entry.dtype, bytes, out);
        Ok(())
    }
}

/// Opens one file. Only its header is read.
pub(super) fn open(path: &Path) -> Result<TensorFile> {
    TensorFile::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => {
            // A pointer is short.
            let start = fs::read(path).unwrap_or_default();
            if start.starts_with(b"GGUF") {
                return Error::broken(path, "its content is GGUF, which needs the extension .gguf");
            }
            let pointer = files::refuse_other_content(path, &start);
            pointer
                .err()
                .unwrap_or_else(|| Error::broken(path, e.to_string()))
        }
        _ => Error::io("read", path)(e),
    })
}

/// The error for a directory without safetensors, which names the weights that are there.
fn no_weights(dir: &Path) -> Error {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    let found = |matches: &dyn Fn(&str) -> bool| names.iter().find(|name| matches(name));
    let has_extension = |name: &str, known: &[&str]| {
        let extension = Path::new(name).extension().and_then(|e| e.to_str());
        extension.is_some_and(|e| known.iter().any(|known| e.eq_ignore_ascii_case(known)))
    };
    let dir_name = dir.display();
    if let Some(gguf) = found(&|name| has_extension(name, &["gguf"])) {
        return Error::input_hint(
            format!("{dir_name} has no safetensors file, but {gguf}"),
            format!("name the file itself: {}", dir.join(gguf).display()),
        );
    }
    // Pickled files can run code when they are read.
    let pickled = found(&|name| {
        !name.starts_with("training_args") && has_extension(name, &["bin", "pt", "pth", "ckpt"])
    });
    if let Some(pickled) = pickled {
        return Error::input_hint(
            format!(
                "{dir_name} has its weights in {pickled}, which is not read: such files can run code"
            ),
            format!(
                "convert it with `transformers` (`pip install torch transformers`), if you trust it: python -c \
                 \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{dir_name}').save_pretrained('{dir_name}')\" \
                 writes model.safetensors"
            ),
        );
    }
    if let Some(other) = found(&|name| has_extension(name, &["h5", "msgpack", "onnx", "npz"])) {
        return Error::input_hint(
            format!("{dir_name} has its weights in {other}, a format that is not read"),
            "supported: safetensors and GGUF; `save_pretrained` of `transformers` writes safetensors",
        );
    }
    Error::input_hint(
        format!("{dir_name} has neither `model.safetensors` nor an index of shards"),
        "a model directory has config.json, tokenizer.json and model.safetensors, as `save_pretrained` of `transformers` writes them",
    )
}

/// The files in an index; each is a plain file name inside `dir`.
fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let json: Map<String, Value> = files::read_json(index)?;
    let weight_map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::broken(index, "`weight_map` is missing or not an object"))?;
    let mut names = weight_map
        .iter()
        .map(|(tensor, file)| {
            file.as_str()
                .filter(|file| is_plain_name(file))
                .ok_or_else(|| {
                    Error::broken(
                        index,
                        format!("the file of tensor `{tensor}` is {file}, not a plain file name"),
                    )
                })
        })
        .collect::<Result<Vec<_>>>()?;
    names.sort_unstable();
    names.dedup();
    for name in &names {
        if !dir.join(name).is_file() {
            return Err(Error::broken(index, format!("shard `{name}` not found")));
        }
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Whether `name` is a file name without directories.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(only)) if only == name)
        && components.next().is_none()
}
