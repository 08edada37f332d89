//! A restriction of the trained parameters: low-rank adapters (`LoRA`, Hu et al. 2021). W = W0 + s B A, with trained low-rank B and A.
//! Computation and initialisation are those of the PEFT library.
//!
//! ```text
//! V = W0 + s B A            W0 (out, in), A (r, in), B (out, r); s = alpha / r, under `rslora` alpha / sqrt(r)
//! W = V                     `lora`, `rslora` (Kalajdzievski 2023)
//! W_i = m_i V_i / |V_i|     `dora` (Liu et al. 2024, eq. 5): the norm of row i is trained separately, m (out)
//! ```
//!
//! Adapters lie beside the weights ([`LowRank`]): the engine adds their products, and W0 stays as it is. There are two exceptions,
//! [`MergedAdapters`], for which the model has W and gradients of W: `dora`, whose norms are those of V, and penalties on weights (L2,
//! EWC), which apply to W.

use std::{fs, ops::Range, path::Path, sync::Arc};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::{
    Error, Result,
    config::{ALL_LINEAR, LoraConfig, LoraVariant, matches_module},
    engine::{
        Gradients, matmul,
        simd::{LANES, vectorized},
    },
    error::closest_match,
    hub::{ADAPTER_CONFIG, ADAPTER_WEIGHTS},
    model::{
        Buffer, Dtype, Layout, LowRank, LowRankTarget, Params, params::TensorInfo, peft::PREFIX,
        write_json, write_weights,
    },
};

/// A target of [`MergedAdapters`].
struct MergedTarget {
    /// The range of W in the model's gradients, and that of W0 in `base`.
    grad_range: Range<usize>,
    /// The range of m in the adapters' parameters; empty but for `dora`.
    magnitude: Range<usize>,
    /// For `dora`: the norms of the rows of V at the last merge (out).
    row_norms: Vec<f32>,
}

/// Adapters whose product is written into the model's weights before each forward pass.
pub struct MergedAdapters {
    is_dora: bool,
    targets: Vec<MergedTarget>,
    /// W0 of every adapted weight.
    base: Buffer,
    /// A, B and m of every adapted weight, under PEFT's names.
    pub low_rank: LowRank,
    /// Their gradients.
    pub gradients: Gradients,
}

/// Whether each tensor of `params` gets an adapter: the weights of linear layers of the decoder whose module name equals an entry of
/// `lora.target_modules`, or ends with a dot and that entry.
///
/// # Errors
/// [`Error::Input`] for a target that matches nothing, naming the nearest; for a rank above the full rank of every target; for a row of
/// zeros with `dora`, which has no direction.
pub fn target_tensors(lora: &LoraConfig, params: &Params) -> Result<Vec<bool>> {
    let tensors = &params.layout.tensors;
    for target in &lora.target_modules {
        if !modules(&params.layout).any(|module| matches_module(module, target)) {
            return Err(no_match(&params.layout, target));
        }
    }
    let is_target = |tensor: &TensorInfo| {
        let called = |module| {
            lora.target_modules
                .iter()
                .any(|target| matches_module(module, target))
        };
        module(tensor).is_some_and(called)
    };
    let chosen: Vec<bool> = tensors.iter().map(is_target).collect();
    let matrices = || tensors.iter().zip(&chosen).filter(|(_, chosen)| **chosen);
    for pattern in lora.rank_pattern.keys().chain(lora.alpha_pattern.keys()) {
        let mut targets = matrices().filter_map(|(tensor, _)| module(tensor));
        if !targets.any(|module| matches_module(module, pattern)) {
            return Err(Error::input_hint(
                format!(
                    "`train.lora`: no adapted layer is named \"{pattern}\", which a pattern names"
                ),
                "patterns set the rank or alpha of some of `train.lora.target_modules`",
            ));
        }
    }
    // A rank above that of some targets is possible as long as another one has it.
    let full_rank = |tensor: &TensorInfo| tensor.shape.iter().min().copied().unwrap_or_default();
    let largest = matrices().map(|(tensor, _)| full_rank(tensor)).max();
    let rank = matrices()
        .filter_map(|(tensor, _)| module(tensor))
        .map(|module| lora.rank_of(module))
        .max();
    if let (Some(full_rank), Some(rank)) = (largest, rank)
        && rank > full_rank
    {
        return Err(Error::input_hint(
            format!(
                "`train.lora.r` is {rank}, above the largest rank that a target of this model can have"
            ),
            format!("use at most {full_rank}; ranks from 4 to 64 are usual"),
        ));
    }
    if lora.variant == LoraVariant::Dora {
        for (tensor, _) in matrices() {
            let mut rows = params.data[tensor.range.clone()].chunks_exact(tensor.row_len());
            if let Some(row) = rows.position(|row| row.iter().all(|w| *w == 0.0)) {
                return Err(Error::input_hint(
                    format!(
                        "row {row} of {} is all zeros: `dora` needs a direction",
                        tensor.name
                    ),
                    "set `train.lora.variant = \"lora\"` or \"rslora\"",
                ));
            }
        }
    }
    Ok(chosen)
}

/// The module name of a linear layer's weight, such as `model.layers.0.self_attn.q_proj`.
fn module(tensor: &TensorInfo) -> Option<&str> {
    let name = tensor.name.strip_suffix(".weight")?;
    (tensor.shape.len() == 2 && name.starts_with("model.layers.")).then_some(name)
}

fn modules(layout: &Layout) -> impl Iterator<Item = &str> {
    layout.tensors.iter().filter_map(module)
}

/// The distinct last parts of module names.
fn short_names<'a>(modules: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in modules.filter_map(|module| module.rsplit('.').next()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn no_match(layout: &Layout, target: &str) -> Error {
    let names = short_names(modules(layout));
    let known = names.iter().copied().chain([ALL_LINEAR]);
    let did_you_mean = closest_match(target, known.chain(modules(layout)))
        .map(|near| format!("did you mean \"{near}\"? "))
        .unwrap_or_default();
    Error::input_hint(
        format!("`train.lora.target_modules`: no linear layer is named \"{target}\""),
        format!("{did_you_mean}Known: {} and {ALL_LINEAR}", names.join(", ")),
    )
}

/// Adapters beside the tensors of `params` that `chosen` selects (by index in the layout), initialised as in PEFT: A uniform in
/// +-1/sqrt(in) (Kaiming's with a = sqrt 5), B zero. The model computes what it computed without them.
pub fn beside(lora: &LoraConfig, params: &Params, chosen: &[bool], seed: u64) -> LowRank {
    let tensors = params.layout.tensors.iter().zip(chosen);
    let adapted = tensors.filter(|(_, chosen)| **chosen).map(|(t, _)| t);
    initial(lora, adapted, seed).0
}

/// New adapters of the `adapted` tensors, and for `dora` the ranges of their magnitudes, which are zero.
fn initial<'a>(
    lora: &LoraConfig,
    adapted: impl Iterator<Item = &'a TensorInfo>,
    seed: u64,
) -> (LowRank, Vec<Range<usize>>) {
    let (mut targets, mut magnitudes, mut tensors, mut len) = (vec![], vec![], vec![], 0);
    for info in adapted {
        let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
        let (out, inputs) = (info.range.len() / info.row_len(), info.row_len());
        let rank = lora.rank_of(module);
        let mut add = |part: &str, shape: Vec<usize>| {
            let range = len..len + shape.iter().product::<usize>();
            len = range.end;
            tensors.push((format!("{PREFIX}{module}.{part}"), shape));
            range
        };
        targets.push(LowRankTarget {
            weight: info.range.clone(),
            shape: [out, inputs],
            rank,
            scale: scale(lora, module),
            a: add("lora_A.weight", vec![rank, inputs]),
            b: add("lora_B.weight", vec![out, rank]),
        });
        if lora.variant == LoraVariant::Dora {
            magnitudes.push(add("lora_magnitude_vector", vec![out]));
        }
    }
    let mut params = Params::zeros(Arc::new(Layout::of_tensors(tensors)));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for target in &targets {
        let bound = (1.0 / (target.shape[1] as f64).sqrt()) as f32;
        params.data[target.a.clone()].fill_with(|| rng.random_range(-bound..bound));
    }
    let low_rank = LowRank {
        params: Box::new(params),
        targets,
        dropout: None,
    };
    (low_rank, magnitudes)
}

/// s of a module.
fn scale(lora: &LoraConfig, module: &str) -> f32 {
    let (rank, alpha) = (lora.rank_of(module) as f64, lora.alpha_of(module) as f64);
    let scale = match lora.variant {
        LoraVariant::Lora | LoraVariant::Dora => alpha / rank,
        LoraVariant::RsLora => alpha / rank.sqrt(),
    };
    scale as f32
}

/// Adds `s B A` of every target to the model's weights.
pub fn add_products(low_rank: &LowRank, weights: &mut [f32]) {
    for target in &low_rank.targets {
        add_product(low_rank, target, &mut weights[target.weight.clone()]);
    }
}

/// `w (out, in) += s B A`.
fn add_product(low_rank: &LowRank, target: &LowRankTarget, w: &mut [f32]) {
    let [out, inputs] = target.shape;
    let scaled: Vec<f32> = low_rank
        .b(target)
        .iter()
        .map(|b| target.scale * b)
        .collect();
    let shape = [out, target.rank, inputs];
    matmul::input_gradient(w, &scaled, low_rank.a(target), shape, true);
}

impl MergedAdapters {
    /// Adapters of the tensors that `gradients` contains, around the current `params`, initialised as in [`beside`]; m are the norms of
    /// the rows of W0. W is then bitwise identical to W0.
    pub fn new(lora: &LoraConfig, params: &Params, gradients: &Gradients, seed: u64) -> Self {
        let tensors = gradients.tensors.iter();
        let infos = tensors.map(|(tensor, _)| &params.layout.tensors[*tensor]);
        let (mut low_rank, magnitudes) = initial(lora, infos, seed);
        let mut base = Buffer::zeros(gradients.data.len());
        for (weights, at) in gradients.segments() {
            base[at].copy_from_slice(&params.data[weights]);
        }
        let is_dora = lora.variant == LoraVariant::Dora;
        let mut targets = Vec::new();
        for (i, (_, grad_range)) in gradients.tensors.iter().enumerate() {
            let mut target = MergedTarget {
                grad_range: grad_range.clone(),
                magnitude: magnitudes.get(i).cloned().unwrap_or_default(),
                row_norms: Vec::new(),
            };
            if is_dora {
                let [_, inputs] = low_rank.targets[i].shape;
                target.row_norms = row_norms(&base[grad_range.clone()], inputs);
                low_rank.params.data[target.magnitude.clone()].copy_from_slice(&target.row_norms);
            }
            targets.push(target);
        }
        let own = &low_rank.params;
        Self {
            is_dora,
            targets,
            base,
            gradients: Gradients::new(own, &vec![true; own.layout.tensors.len()]),
            low_rank,
        }
    }

    /// Writes W of every adapted weight into the model's weights.
    pub fn merge(&mut self, params: &mut Params) {
        let targets = self.targets.iter_mut().zip(&self.low_rank.targets);
        for (merged, target) in targets {
            let w = &mut params.data[target.weight.clone()];
            w.copy_from_slice(&self.base[merged.grad_range.clone()]);
            add_product(&self.low_rank, target, w);
            if self.is_dora {
                let [_, inputs] = target.shape;
                let m = &self.low_rank.params.data[merged.magnitude.clone()];
                merged.row_norms = row_norms(w, inputs);
                w.par_chunks_exact_mut(inputs)
                    .zip(m.par_iter().zip(&merged.row_norms))
                    .for_each(|(row, (m, norm))| row.iter_mut().for_each(|w| *w *= m / norm));
            }
        }
    }

    /// Computes the gradients of A, B and m from those of W, and overwrites their previous values.
    ///
    /// ```text
    /// dB = s G A^T      dA = s B^T G      G = dW; under `dora` G_i = m_i / |V_i| dW_i
    /// dm_i = dW_i . V_i / |V_i| = (dW_i . W0_i + s dW_i . (B A)_i) / |V_i|
    /// ```
    ///
    /// For `dora` the norm of a row counts as a constant (section 4.3 of its paper), as in PEFT.
    pub fn backward(&mut self, gradients: &Gradients) {
        self.gradients.zero();
        let own = &mut self.gradients.data;
        for (merged, target) in self.targets.iter().zip(&self.low_rank.targets) {
            let ([out, inputs], rank, scale) = (target.shape, target.rank, target.scale);
            let dw = &gradients.data[merged.grad_range.clone()];
            let (a, b) = (self.low_rank.a(target), self.low_rank.b(target));
            let db = &mut own[target.b.clone()];
            matmul::forward(db, dw, a, [out, rank, inputs], false);
            for db in db.iter_mut() {
                *db *= scale;
            }
            let mut scaled: Vec<f32> = b.iter().map(|b| scale * b).collect();
            if self.is_dora {
                let m = &self.low_rank.params.data[merged.magnitude.clone()];
                let mut dm = vec![0.0; out];
                let w0 = &self.base[merged.grad_range.clone()];
                dm.par_iter_mut()
                    .zip(dw.par_chunks_exact(inputs).zip(w0.par_chunks_exact(inputs)))
                    .zip(db.par_chunks_exact_mut(rank).zip(b.par_chunks_exact(rank)))
                    .zip(scaled.par_chunks_exact_mut(rank))
                    .zip(m.par_iter().zip(&merged.row_norms))
                    .for_each(|((((dm, (dw, w0)), (db, b)), scaled), (m, norm))| {
                        *dm = ((dot_f64(dw, w0) + dot_f64(db, b)) / f64::from(*norm)) as f32;
                        for x in db.iter_mut().chain(scaled) {
                            *x *= m / norm;
                        }
                    });
                own[merged.magnitude.clone()].copy_from_slice(&dm);
            }
            let da = &mut own[target.a.clone()];
            matmul::weight_gradient(da, &scaled, 0, dw, [out, rank, inputs]);
        }
    }
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` (f32), which `peft.PeftModel.from_pretrained` loads. `adapters` are A, B
/// and m under PEFT's names, `base` is the name of the base model.
///
/// # Errors
/// [`Error::Io`] if `dir` cannot be written.
pub fn save(lora: &LoraConfig, adapters: &Params, dir: &Path, base: &str) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let modules: Vec<&str> = adapters
        .layout
        .tensors
        .iter()
        .filter_map(|tensor| tensor.name.strip_suffix(".lora_A.weight"))
        .map(|name| name.strip_prefix(PREFIX).unwrap_or(name))
        .collect();
    // The modules by their full names: PEFT takes the first pattern that matches, and these match one module each.
    let pattern = |value: &dyn Fn(&str) -> usize, usual: usize| -> Value {
        let own = modules.iter().filter(|module| value(module) != usual);
        own.map(|module| ((*module).to_owned(), json!(value(module))))
            .collect()
    };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "rank_pattern": pattern(&|module| lora.rank_of(module), lora.r),
        "alpha_pattern": pattern(&|module| lora.alpha_of(module), lora.alpha),
        "target_modules": saved_target_modules(lora, &modules),
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "use_rslora": lora.variant == LoraVariant::RsLora,
        "use_dora": lora.variant == LoraVariant::Dora,
    });
    let config = config.as_object().expect("it is an object");
    write_json(&dir.join(ADAPTER_CONFIG), config)?;
    write_weights(adapters, &dir.join(ADAPTER_WEIGHTS), Dtype::F32)
}

/// `target_modules` for PEFT: the config's, or the last parts of all module names for `all-linear`.
fn saved_target_modules<'a>(lora: &'a LoraConfig, modules: &[&'a str]) -> Vec<&'a str> {
    if lora.target_modules.iter().any(|t| t == ALL_LINEAR) {
        short_names(modules.iter().copied())
    } else {
        lora.target_modules.iter().map(String::as_str).collect()
    }
}

/// Euclidean norm of every row.
fn row_norms(matrix: &[f32], row_len: usize) -> Vec<f32> {
    matrix
        .par_chunks_exact(row_len)
        .map(|row| dot_f64(row, row).sqrt() as f32)
        .collect()
}

vectorized! {
    /// Dot product, in f64.
    fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
        let mut lanes = [0f64; LANES];
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            lanes[i % LANES] += f64::from(*a) * f64::from(*b);
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    fn model() -> Model {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen3");
        Model::load(path).expect("the golden model")
    }

    fn settings(names: &[&str], variant: LoraVariant) -> LoraConfig {
        LoraConfig {
            r: 4,
            target_modules: names.iter().map(ToString::to_string).collect(),
            variant,
            ..LoraConfig::default()
        }
    }

    fn chosen(names: &[&str]) -> Vec<String> {
        let params = model().params;
        let chosen = target_tensors(&settings(names, LoraVariant::Lora), &params);
        let tensors = params.layout.tensors.iter().zip(chosen.expect("all match"));
        tensors
            .filter(|(_, chosen)| *chosen)
            .map(|(tensor, _)| tensor.name.replace("model.layers.", ""))
            .collect()
    }

    #[test]
    fn targets_match_full_names_or_their_ends_after_a_dot() {
        let q = ["0.self_attn.q_proj.weight", "1.self_attn.q_proj.weight"];
        assert_eq!(chosen(&["q_proj"]), q);
        assert_eq!(chosen(&["self_attn.q_proj", "q_proj"]), q);
        assert_eq!(chosen(&["layers.1.self_attn.q_proj"]), q[1..]);
        assert_eq!(chosen(&["model.layers.0.self_attn.q_proj"]), q[..1]);
        // Two layers of q, k, v, o, gate, up and down; neither embedding nor head.
        assert_eq!(chosen(&["all-linear"]).len(), 14);
    }

    #[test]
    fn an_unknown_target_is_refused_and_the_nearest_named() {
        let params = model().params;
        for (name, near) in [
            ("q_porj", "\"q_proj\""),
            ("proj", "all-linear"),
            ("embed_tokens", "down_proj"),
            ("q_norm", "q_proj"),
            ("", "q_proj"),
            ("all_linear", "\"all-linear\""),
        ] {
            let error = target_tensors(&settings(&[name], LoraVariant::Lora), &params);
            let error = error.expect_err(name);
            assert!(error.to_string().ends_with(&format!("\"{name}\"")));
            let hint = error.hint().expect("a hint");
            assert!(hint.contains(near), "{name}: {hint}");
        }
    }

    #[test]
    fn a_row_without_a_direction_is_refused_under_dora_alone() {
        let mut params = model().params;
        let name = "model.layers.1.mlp.up_proj.weight";
        let tensor = params.layout.find(name).expect("it is there").clone();
        params.data[tensor.range.start + 5 * tensor.row_len()..][..tensor.row_len()].fill(0.0);
        let of = |variant| target_tensors(&settings(&["up_proj"], variant), &params);
        let error = of(LoraVariant::Dora).expect_err("row 5");
        assert!(error.to_string().starts_with(&format!("row 5 of {name}")));
        assert!(of(LoraVariant::Lora).is_ok());
    }

    /// Adapters of a (600, 300) and a (40, 300) matrix, large enough for several tiles.
    fn two_matrices(variant: LoraVariant, seed: u64) -> (Params, Gradients, MergedAdapters) {
        let shapes = [("a.weight", 600), ("b.weight", 40)];
        let layout = Layout::of_tensors(shapes.map(|(name, out)| (name.into(), vec![out, 300])));
        let mut params = Params::zeros(Arc::new(layout));
        let mut gradients = Gradients::new(&params, &[true; 2]);
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        params.data.fill_with(|| rng.random_range(-1.0..1.0));
        gradients.data.fill_with(|| rng.random_range(-1.0..1.0));
        let settings = LoraConfig {
            variant,
            ..LoraConfig::default()
        };
        let adapters = MergedAdapters::new(&settings, &params, &gradients, seed);
        (params, gradients, adapters)
    }

    const VARIANTS: [LoraVariant; 3] = [LoraVariant::Lora, LoraVariant::RsLora, LoraVariant::Dora];

    #[test]
    fn adapters_start_at_zero_and_depend_on_the_seed() {
        for variant in VARIANTS {
            let (mut params, _, mut adapters) = two_matrices(variant, 0);
            let before = params.data.to_vec();
            adapters.merge(&mut params);
            assert!(before[..] == params.data[..]);

            let own = &adapters.low_rank;
            let (a, b) = (own.a(&own.targets[0]), own.b(&own.targets[0]));
            assert!(b.iter().all(|b| *b == 0.0));
            // Uniform in +-1/sqrt(300): 4,800 draws come within 1% of the bound, and their mean square is a third of its square.
            let bound = 1.0 / 300f32.sqrt();
            let largest = a.iter().fold(0f32, |most, a| most.max(a.abs()));
            assert!(largest < bound && largest > 0.99 * bound);
            let mean_square = dot_f64(a, a) / a.len() as f64;
            assert!((mean_square * 3.0 * 300.0 - 1.0).abs() < 0.1);

            let again = two_matrices(variant, 0).2;
            assert!(again.low_rank.params.data[..] == own.params.data[..]);
            let other = two_matrices(variant, 1).2;
            assert!(other.low_rank.params.data[..] != own.params.data[..]);
        }
    }

    #[test]
    fn merging_and_gradients_have_the_same_bits_at_any_number_of_threads() {
        for variant in VARIANTS {
            let at = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("a small pool");
                pool.install(|| {
                    let (mut params, gradients, mut adapters) = two_matrices(variant, 0);
                    let mut rng = ChaCha8Rng::seed_from_u64(9);
                    for x in adapters.low_rank.params.data.iter_mut() {
                        *x += rng.random_range(-0.1..0.1);
                    }
                    adapters.merge(&mut params);
                    adapters.backward(&gradients);
                    (params.data.to_vec(), adapters.gradients.data.to_vec())
                })
            };
            assert!(at(1) == at(3));
        }
    }
}
