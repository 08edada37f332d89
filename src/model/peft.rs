//! PEFT adapters (`adapter_config.json`, `adapter_model.safetensors`), merged onto their base model.
//!
//! A linear layer with weight W and low-rank factors A (r, in) and B (out, r) becomes `W + s B A`, where s is alpha / r, or
//! alpha / sqrt(r) with `use_rslora`. With `DoRA` each row is then scaled to the norm in the magnitude vector.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use regex::Regex;
use serde_json::{Map, Value};

use super::{
    Dtype, Layout, LowRank, LowRankTarget, Model, Params, TextTokenizer, files, safetensors,
    weights,
};
use crate::{
    Error, Result,
    hub::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, checksum},
    tensor_file::{self, TensorFile},
};

/// The prefix of names in PEFT's files.
pub(crate) const PREFIX: &str = "base_model.model.";

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Settings that change what an adapter computes in a way that is not supported, where they are set.
const UNSUPPORTED: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Values of `init_lora_weights` that change the base model as well, whose weights the adapter does not hold.
const INITS_OF_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// Whether `dir` holds an adapter.
pub(super) fn is_adapter(dir: &Path) -> bool {
    dir.join(ADAPTER_CONFIG).is_file()
}

/// An adapter directory.
pub(super) struct Adapter {
    dir: PathBuf,
    config: Map<String, Value>,
}

/// The model onto which an adapter is merged.
pub(super) enum Base {
    /// The one in the adapter's own directory.
    SameDirectory,
    /// The one that `base_model_name_or_path` names.
    Named(String),
}

impl Adapter {
    /// Reads the configuration of the adapter in `dir`.
    ///
    /// # Errors
    /// [`Error::Input`] for a kind of adapter or a setting that is not supported.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(ADAPTER_CONFIG);
        let config = files::read_json(&path)?;
        let adapter = Self {
            dir: dir.to_owned(),
            config,
        };
        let kind = adapter.text("peft_type").unwrap_or("LORA");
        if kind != "LORA" {
            return Err(adapter.unsupported(&format!("an adapter of type {kind}")));
        }
        for key in UNSUPPORTED {
            if adapter.is_set(key) {
                return Err(adapter.unsupported(&format!("`{key}`")));
            }
        }
        let init = adapter.text("init_lora_weights").unwrap_or_default();
        if INITS_OF_BASE.iter().any(|known| init.starts_with(known)) {
            return Err(Error::input_hint(
                format!(
                    "{}: `init_lora_weights` = \"{init}\" changes the base model as well, and the adapter does not hold its weights",
                    path.display()
                ),
                "save it with `path_initial_model_for_weight_conversion` (PEFT), or merge it with `merge_and_unload`",
            ));
        }
        Ok(adapter)
    }

    /// The model onto which it is merged.
    pub(super) fn base(&self) -> Result<Base> {
        let own_weights = ["model.safetensors", "model.safetensors.index.json"];
        let has_model = self.dir.join("config.json").is_file()
            && own_weights.iter().any(|name| self.dir.join(name).is_file());
        if has_model {
            return Ok(Base::SameDirectory);
        }
        let named = self
            .text("base_model_name_or_path")
            .filter(|name| !name.is_empty());
        let named = named.ok_or_else(|| {
            Error::input_hint(
                format!(
                    "{} is a PEFT adapter that does not name its base model",
                    self.dir.display()
                ),
                format!("write `base_model_name_or_path` into {ADAPTER_CONFIG}"),
            )
        })?;
        // A relative path is one from the working directory, as in PEFT; else from the adapter.
        let beside = self.dir.join(named);
        Ok(if !Path::new(named).exists() && beside.exists() {
            if is_same(&beside, &self.dir) {
                Base::SameDirectory
            } else {
                Base::Named(beside.display().to_string())
            }
        } else if is_same(Path::new(named), &self.dir) {
            Base::SameDirectory
        } else {
            Base::Named(named.to_owned())
        })
    }

    /// Adds to an error that the base model, named so, could not be loaded.
    pub(super) fn without_base(&self, base: &str, error: Error) -> Error {
        let described = |message: String| {
            format!(
                "{} is a PEFT adapter of `{base}`, which cannot be loaded: {message}",
                self.dir.display()
            )
        };
        let hint = Some(format!(
            "name the base model's directory as `base_model_name_or_path` in {ADAPTER_CONFIG}, put the base model into the adapter's \
             directory, or merge the two with `merge_and_unload` (PEFT)"
        ));
        match error {
            Error::Input { message, .. } => Error::Input {
                message: described(message),
                hint,
            },
            Error::Failed { message, .. } => Error::Failed {
                message: described(message),
                hint,
            },
            other => other,
        }
    }

    /// The tokenizer in the adapter's directory, if there is one. `base` is the directory or file of the base model.
    pub(super) fn tokenizer(&self, base: &Path) -> Result<Option<TextTokenizer>> {
        if !self.dir.join("tokenizer.json").is_file() {
            return Ok(None);
        }
        let read = |name: &str| files::optional_json(&base.join(name));
        let config_json = read("config.json")?.unwrap_or_default();
        let generation = read("generation_config.json")?;
        let read = super::directory::read_tokenizer(&self.dir, &config_json, generation.as_ref())?;
        Ok(Some(read.0))
    }

    /// Merges the adapter onto `model`, its base.
    ///
    /// # Errors
    /// [`Error::Input`] naming a tensor that cannot be merged, [`Error::BrokenModel`] for one of the wrong shape.
    pub(super) fn merge(&self, mut model: Model) -> Result<Model> {
        let path = self.dir.join(ADAPTER_WEIGHTS);
        if !path.is_file() {
            return Err(self.no_weights());
        }
        let file = safetensors::open(&path)?;
        let tensors = Tensors::read(&file, &path)?;
        self.fit(&mut model, &tensors)?;
        for (name, values) in &tensors.saved {
            let (_, target) = find(&mut model.params, name, &path)?;
            if target.len() != values.values.len() {
                return Err(values.wrong_shape(name, &path));
            }
            target.copy_from_slice(&values.values);
        }
        for (module, layer) in &tensors.layers {
            self.merge_layer(&mut model.params, module, layer, &path)?;
        }
        let finite = model.params.layout.tensors.iter().find(|tensor| {
            super::tensor::first_non_finite(&model.params.data[tensor.range.clone()]).is_some()
        });
        if let Some(tensor) = finite {
            return Err(Error::broken(
                &path,
                format!("the merged weights are not finite: `{}`", tensor.name),
            ));
        }
        self.finish(model, &file)
    }

    /// Puts the adapter beside the weights of `model`, its base, which stay as they are.
    ///
    /// # Errors
    /// Those of [`Adapter::merge`]; [`Error::Input`] for what can only be merged: DoRA, biases, whole tensors, adapters of the embedding.
    pub(super) fn beside(&self, mut model: Model) -> Result<Model> {
        let path = self.dir.join(ADAPTER_WEIGHTS);
        if !path.is_file() {
            return Err(self.no_weights());
        }
        let file = safetensors::open(&path)?;
        let tensors = Tensors::read(&file, &path)?;
        let only_merged =
            |layer: &Layer| layer.bias.is_some() || layer.magnitude.is_some() || layer.embedding;
        if !tensors.saved.is_empty() || tensors.layers.values().any(only_merged) {
            return Err(self.unsupported(
                "what is not a product of two factors (DoRA, biases, whole tensors, embeddings), over a base model that is not held in f32,",
            ));
        }
        let mut factors = Vec::new();
        for (module, layer) in &tensors.layers {
            let name = format!("{module}.weight");
            let tensor = model.params.layout.find(&name).ok_or_else(|| {
                Error::broken(&path, format!("the base model has no tensor `{name}`"))
            })?;
            let (Some(a), Some(b), [out, inputs]) = (&layer.a, &layer.b, &tensor.shape[..]) else {
                return Err(Error::broken(
                    &path,
                    format!("`{module}` has no two factors of a matrix"),
                ));
            };
            let rank = a.shape[0];
            for (factor, expected) in [(a, [rank, *inputs]), (b, [*out, rank])] {
                if factor.shape != expected {
                    return Err(factor.wrong_shape(module, &path));
                }
            }
            factors.push((tensor, module, [a, b], self.scale(module, rank)? as f32));
        }
        factors.sort_by_key(|(tensor, ..)| tensor.range.start);
        let (mut targets, mut named, mut len) = (Vec::new(), Vec::new(), 0);
        for (tensor, module, [a, b], scale) in &factors {
            let mut add = |part: &str, values: &Values| {
                named.push((
                    format!("{PREFIX}{module}.{part}.weight"),
                    values.shape.clone(),
                ));
                len += values.values.len();
                len - values.values.len()..len
            };
            targets.push(LowRankTarget {
                weight: tensor.range.clone(),
                shape: [tensor.shape[0], tensor.row_len()],
                rank: a.shape[0],
                scale: *scale,
                a: add("lora_A", a),
                b: add("lora_B", b),
            });
        }
        let mut params = Params::zeros(Arc::new(Layout::of_tensors(named)));
        for (target, (_, _, [a, b], _)) in targets.iter().zip(&factors) {
            params.data[target.a.clone()].copy_from_slice(&a.values);
            params.data[target.b.clone()].copy_from_slice(&b.values);
        }
        model.params.low_rank = Some(LowRank {
            params: Box::new(params),
            targets,
            dropout: None,
        });
        self.finish(model, &file)
    }

    /// The tokenizer of the adapter, where it has one, and the checksum of both.
    fn finish(&self, mut model: Model, file: &TensorFile) -> Result<Model> {
        if let Some(tokenizer) = self.tokenizer(&model.path)? {
            model.tokenizer = tokenizer;
        }
        let config = serde_json::to_vec(&self.config).expect("JSON that was read can be written");
        let parts: [(&str, &[u8]); 3] = [
            ("base", model.checksum.as_bytes()),
            (ADAPTER_CONFIG, &config),
            (ADAPTER_WEIGHTS, file.bytes()),
        ];
        model.checksum = checksum::of_parts(&parts);
        Ok(model)
    }

    /// Gives the model the rows and the head of its own that the adapter needs.
    fn fit(&self, model: &mut Model, tensors: &Tensors) -> Result<()> {
        let ensure_tied = self.is_set("ensure_weight_tying");
        let touches = |name: &str| {
            let module = name.trim_end_matches(".weight");
            tensors.saved.contains_key(name) || tensors.layers.contains_key(module)
        };
        let untie = model.config.tie_word_embeddings
            && (touches(HEAD) || touches(EMBEDDING) && !ensure_tied);
        let rows = |name: &str| Some(tensors.saved.get(name)?.shape[0]);
        let vocab_size = rows(EMBEDDING).or(rows(HEAD));
        let vocab_size = vocab_size.unwrap_or(model.config.vocab_size);
        if !untie && vocab_size == model.config.vocab_size {
            return Ok(());
        }
        if vocab_size != model.config.vocab_size {
            let both = [EMBEDDING, HEAD].map(rows);
            let tied = model.config.tie_word_embeddings && !untie;
            if both.iter().any(|rows| *rows != Some(vocab_size)) && !tied {
                return Err(self.unsupported(
                    "a vocabulary of another size than the base model's, without both embedding and head in the adapter,",
                ));
            }
        }
        let mut config = model.config.clone();
        config.tie_word_embeddings &= !untie;
        config.vocab_size = vocab_size;
        let mut params = Params::zeros(Arc::new(Layout::new(&config)));
        let old = &model.params;
        for tensor in &params.layout.clone().tensors {
            let from = if tensor.name == HEAD {
                old.layout.head.clone()
            } else {
                let known = old.layout.find(&tensor.name);
                known.expect("only the head is new").range.clone()
            };
            let len = from.len().min(tensor.range.len());
            params.data[tensor.range.start..][..len].copy_from_slice(&old.data[from][..len]);
        }
        let json = &mut model.config_json;
        json.insert(
            "tie_word_embeddings".into(),
            config.tie_word_embeddings.into(),
        );
        json.insert("vocab_size".into(), vocab_size.into());
        model.params = params;
        model.config = config;
        Ok(())
    }

    /// Merges the factors of one module.
    fn merge_layer(
        &self,
        params: &mut Params,
        module: &str,
        layer: &Layer,
        path: &Path,
    ) -> Result<()> {
        let name = format!("{module}.weight");
        let (shape, weight) = find(params, &name, path)?;
        let &[rows, columns] = &shape[..] else {
            return Err(Error::broken(path, format!("`{module}` is no matrix")));
        };
        let missing = |factor: &str| {
            Error::broken(
                path,
                format!("`{module}` has no {factor}, only other parts of an adapter"),
            )
        };
        let a = layer.a.as_ref().ok_or_else(|| missing("lora_A"))?;
        let b = layer.b.as_ref().ok_or_else(|| missing("lora_B"))?;
        // The factors of an embedding are those of its transpose.
        let (left, right) = if layer.embedding { (a, b) } else { (b, a) };
        let rank = a.shape[0];
        let left_shape = if layer.embedding {
            [rank, rows]
        } else {
            [rows, rank]
        };
        let right_shape = if layer.embedding {
            [columns, rank]
        } else {
            [rank, columns]
        };
        for (factor, expected) in [(left, left_shape), (right, right_shape)] {
            if factor.shape != expected {
                return Err(factor.wrong_shape(module, path));
            }
        }
        if let Some(magnitude) = &layer.magnitude {
            if layer.embedding {
                return Err(self.unsupported(&format!("DoRA of the embedding `{module}`")));
            }
            if magnitude.values.len() != rows {
                return Err(magnitude.wrong_shape(module, path));
            }
        }
        let scale = self.scale(module, rank)?;
        let left_at = |row: usize, k: usize| {
            let at = if layer.embedding {
                k * rows + row
            } else {
                row * rank + k
            };
            f64::from(left.values[at])
        };
        let right_at = |k: usize, column: usize| {
            let at = if layer.embedding {
                column * rank + k
            } else {
                k * columns + column
            };
            f64::from(right.values[at])
        };
        let mut sum = vec![0.0_f64; columns];
        for (row, weight) in weight.chunks_exact_mut(columns).enumerate() {
            sum.fill(0.0);
            for k in 0..rank {
                let factor = scale * left_at(row, k);
                for (column, sum) in sum.iter_mut().enumerate() {
                    *sum += factor * right_at(k, column);
                }
            }
            for (sum, w) in sum.iter_mut().zip(&*weight) {
                *sum += f64::from(*w);
            }
            let growth = match &layer.magnitude {
                None => 1.0,
                Some(magnitude) => {
                    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
                    f64::from(magnitude.values[row]) / norm
                }
            };
            for (w, sum) in weight.iter_mut().zip(&sum) {
                *w = (sum * growth) as f32;
            }
        }
        if let Some(bias) = &layer.bias {
            let name = format!("{module}.bias");
            let Ok((_, target)) = find(params, &name, path) else {
                return Err(self.unsupported(&format!(
                    "`lora_bias` of `{module}`, which has no bias in the base model,"
                )));
            };
            if target.len() != bias.values.len() {
                return Err(bias.wrong_shape(&name, path));
            }
            for (target, bias) in target.iter_mut().zip(&bias.values) {
                *target += (scale * f64::from(*bias)) as f32;
            }
        }
        Ok(())
    }

    /// s: alpha / r, or alpha / sqrt(r). `alpha_pattern` may set the alpha of some modules.
    fn scale(&self, module: &str, rank: usize) -> Result<f64> {
        let path = self.dir.join(ADAPTER_CONFIG);
        let number = |key: &str, value: Option<&Value>| {
            value
                .and_then(Value::as_f64)
                .ok_or_else(|| Error::broken(&path, format!("`{key}` is missing or not a number")))
        };
        let mut alpha = number("lora_alpha", self.config.get("lora_alpha"))?;
        let patterns = self.config.get("alpha_pattern").and_then(Value::as_object);
        for (pattern, value) in patterns.into_iter().flatten() {
            let matches = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|_| {
                self.unsupported(&format!("the pattern `{pattern}` in `alpha_pattern`"))
            })?;
            if matches.is_match(module) {
                alpha = number("alpha_pattern", Some(value))?;
                break;
            }
        }
        let rank = rank as f64;
        Ok(alpha
            / if self.is_set("use_rslora") {
                rank.sqrt()
            } else {
                rank
            })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key).and_then(Value::as_str)
    }

    /// Whether a setting is there and neither null, false nor empty.
    fn is_set(&self, key: &str) -> bool {
        match self.config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        }
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::input_hint(
            format!(
                "{}: {what} is not supported",
                self.dir.join(ADAPTER_CONFIG).display()
            ),
            "supported: LoRA, rsLoRA and DoRA; `merge_and_unload` of PEFT merges other adapters, and `save_pretrained` then writes a model",
        )
    }

    fn no_weights(&self) -> Error {
        let dir = self.dir.display();
        if self.dir.join("adapter_model.bin").is_file() {
            return Error::input_hint(
                format!(
                    "{dir} has its adapter in adapter_model.bin, which is not read: such files can run code"
                ),
                "save it again with a present version of PEFT, which writes adapter_model.safetensors",
            );
        }
        Error::input(format!(
            "{dir} has {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}"
        ))
    }
}

/// Whether two paths lead to the same directory.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The shape and the values of the model's tensor `name`.
fn find<'p>(
    params: &'p mut Params,
    name: &str,
    path: &Path,
) -> Result<(Vec<usize>, &'p mut [f32])> {
    let layout = Arc::clone(&params.layout);
    let known = layout.find(name).ok_or_else(|| {
        Error::input_hint(
            format!(
                "{}: the adapter changes `{name}`, which the base model does not have",
                path.display()
            ),
            "is it an adapter of another model? `base_model_name_or_path` names the base",
        )
    })?;
    Ok((known.shape.clone(), &mut params.data[known.range.clone()]))
}

/// A tensor of the adapter, in f32.
struct Values {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Values {
    fn wrong_shape(&self, name: &str, path: &Path) -> Error {
        Error::broken(
            path,
            format!(
                "a tensor of `{name}` has the shape {:?}, which does not fit the base model",
                self.shape
            ),
        )
    }
}

/// The parts of an adapter that belong to one module.
#[derive(Default)]
struct Layer {
    a: Option<Values>,
    b: Option<Values>,
    bias: Option<Values>,
    magnitude: Option<Values>,
    /// The factors are those of an embedding.
    embedding: bool,
}

/// How a part of a layer's adapter is named behind its module, where it goes, and how many dimensions it has.
type Part = (&'static str, fn(&mut Layer) -> &mut Option<Values>, usize);

const PARTS: [Part; 7] = [
    (".lora_A.weight", |layer| &mut layer.a, 2),
    (".lora_B.weight", |layer| &mut layer.b, 2),
    (".lora_embedding_A", |layer| &mut layer.a, 2),
    (".lora_embedding_B", |layer| &mut layer.b, 2),
    (".lora_magnitude_vector", |layer| &mut layer.magnitude, 1),
    (
        ".lora_magnitude_vector.weight",
        |layer| &mut layer.magnitude,
        1,
    ),
    (".lora_B.bias", |layer| &mut layer.bias, 1),
];

/// The tensors of an adapter.
struct Tensors {
    /// Low-rank factors, by module (`model.layers.0.self_attn.q_proj`).
    layers: BTreeMap<String, Layer>,
    /// Whole tensors (`modules_to_save`, biases), by the base model's names.
    saved: BTreeMap<String, Values>,
}

impl Tensors {
    fn read(file: &TensorFile, path: &Path) -> Result<Self> {
        let mut tensors = Self {
            layers: BTreeMap::new(),
            saved: BTreeMap::new(),
        };
        let names: BTreeSet<&str> = file.iter().map(|(name, _)| name).collect();
        for (name, tensor) in file.iter() {
            let dtype = match tensor.dtype {
                tensor_file::Dtype::F32 => Dtype::F32,
                tensor_file::Dtype::F16 => Dtype::F16,
                tensor_file::Dtype::BF16 => Dtype::Bf16,
                other => {
                    return Err(Error::input_hint(
                        format!("{}: tensor `{name}` is stored as {other:?}", path.display()),
                        "supported: F32, F16, BF16",
                    ));
                }
            };
            let mut values = vec![0.0; tensor.bytes.len() / dtype.bytes()];
            weights::convert(dtype, tensor.bytes, &mut values);
            if super::tensor::first_non_finite(&values).is_some() {
                return Err(Error::broken(path, format!("`{name}` is not finite")));
            }
            let values = Values {
                shape: tensor.shape.to_vec(),
                values,
            };
            tensors.add(name, values, &names, path)?;
        }
        Ok(tensors)
    }

    fn add(
        &mut self,
        name: &str,
        values: Values,
        names: &BTreeSet<&str>,
        path: &Path,
    ) -> Result<()> {
        let inner = name.strip_prefix(PREFIX).unwrap_or(name);
        let full = |module: &str| {
            if module.starts_with("model.") || module.starts_with("lm_head") {
                module.to_owned()
            } else {
                format!("model.{module}")
            }
        };
        for (suffix, part, dimensions) in PARTS {
            let Some(module) = inner.strip_suffix(suffix) else {
                continue;
            };
            if values.shape.len() != dimensions {
                return Err(values.wrong_shape(module, path));
            }
            let layer = self.layers.entry(full(module)).or_default();
            layer.embedding |= suffix.contains("embedding");
            *part(layer) = Some(values);
            return Ok(());
        }
        // `X.original_module` is what the base had; `X.modules_to_save` is the same as `X`.
        if inner.contains(".original_module.") {
            return Ok(());
        }
        let plain = inner
            .replace(".modules_to_save.", ".")
            .replace(".base_layer.", ".");
        if plain != inner && names.contains(format!("{PREFIX}{plain}").as_str()) {
            return Ok(());
        }
        let kind = plain.rsplit_once('.').map(|(_, kind)| kind);
        if inner.contains("lora_") || !matches!(kind, Some("weight" | "bias")) {
            return Err(Error::input_hint(
                format!(
                    "{}: tensor `{name}` is of a kind that is not supported",
                    path.display()
                ),
                "supported: LoRA, rsLoRA and DoRA; `merge_and_unload` of PEFT merges other adapters",
            ));
        }
        self.saved.insert(full(&plain), values);
        Ok(())
    }
}
