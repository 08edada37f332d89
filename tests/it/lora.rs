//! LoRA adapters compared with PEFT: its numbers (`tests/golden/lora.py`), and loading our adapters.
//!
//! The golden values were computed in float64. PEFT in float32 differs from them by up to 8e-7 (losses and norms), 2.3e-6 (gradients,
//! relative to a tensor's largest), 1e-6 (adapters after ten steps) and 5e-8 (their mean), as printed by `lora.py`. The tolerances are
//! five times as large, for other orders of summation.

use std::{fs, path::Path, process::Command};

use unforget::{
    config::{Config, LoraConfig, LoraVariant, MethodKind},
    distributed::Comm,
    engine::{Engine, Gradients},
    model::{Model, Params},
    progress::Progress,
    remedy::lora::{self, MergedAdapters, target_tensors},
    train::{
        self, Options,
        adamw::{self, AdamW, AdamWSettings},
        objective::{Objective, StepBatch},
    },
};

use crate::{
    golden::{Golden, deviation, differences, largest, numbers},
    model::{PYTHON, golden},
};

/// Relative tolerance of a step's loss and gradient norm.
const STEPS: f64 = 4e-6;
/// Tolerance of a gradient, relative to the tensor's largest magnitude.
const GRADIENT: f64 = 1.2e-5;
/// Tolerance of each adapter weight after ten steps.
const ADAPTERS: f64 = 5e-6;
/// Tolerance of the mean difference.
const ADAPTERS_MEAN: f64 = 2.5e-7;

const VARIANTS: [(LoraVariant, &str); 3] = [
    (LoraVariant::Lora, "lora"),
    (LoraVariant::RsLora, "rslora"),
    (LoraVariant::Dora, "dora"),
];

/// The settings of the golden runs.
fn settings(stored: &Golden, variant: LoraVariant) -> LoraConfig {
    let number = |key: &str| stored.record[key].as_u64().expect("a number") as usize;
    let names = stored.record["targets"].as_array().expect("a list");
    let names = names.iter().map(|n| n.as_str().expect("a name").to_owned());
    LoraConfig {
        r: number("rank"),
        alpha: number("alpha"),
        target_modules: names.collect(),
        variant,
        ..LoraConfig::default()
    }
}

/// A model with the initial adapters of the golden runs: beside its weights, or merged into them.
struct Adapted {
    params: Params,
    gradients: Gradients,
    merged: Option<MergedAdapters>,
}

impl Adapted {
    fn new(golden: &Golden, stored: &Golden, variant: LoraVariant, is_merged: bool) -> Self {
        let settings = settings(stored, variant);
        let mut params = golden.model.params.clone();
        let targets = target_tensors(&settings, &params).expect("they are there");
        let mut adapted = if is_merged {
            let gradients = Gradients::new(&params, &targets);
            let merged = MergedAdapters::new(&settings, &params, &gradients, 0);
            Self {
                params,
                gradients,
                merged: Some(merged),
            }
        } else {
            params.low_rank = Some(lora::beside(&settings, &params, &targets, 0));
            Self {
                gradients: Gradients::of_adapters(&params),
                params,
                merged: None,
            }
        };
        let (own, _) = adapted.own_mut();
        for tensor in &own.layout.clone().tensors {
            own.data[tensor.range.clone()]
                .copy_from_slice(&stored.tensor(&format!("start.{}", tensor.name)));
        }
        adapted.merge();
        adapted
    }

    /// The adapters and their gradients.
    fn own_mut(&mut self) -> (&mut Params, &Gradients) {
        let low_rank = self.params.low_rank.as_mut();
        match (&mut self.merged, low_rank, &self.gradients.low_rank) {
            (Some(merged), ..) => (&mut merged.low_rank.params, &merged.gradients),
            (None, Some(low_rank), Some(gradients)) => (&mut low_rank.params, gradients),
            _ => panic!("it has adapters"),
        }
    }

    fn merge(&mut self) {
        if let Some(merged) = &mut self.merged {
            merged.merge(&mut self.params);
        }
    }
}

#[test]
fn ten_steps_of_every_variant_equal_pefts() {
    let stored = Golden::lora();
    for (variant, name) in VARIANTS {
        ten_steps_equal_pefts(&stored, variant, name, true);
        if variant != LoraVariant::Dora {
            ten_steps_equal_pefts(&stored, variant, name, false);
        }
    }
}

fn ten_steps_equal_pefts(stored: &Golden, variant: LoraVariant, name: &str, is_merged: bool) {
    let golden = Golden::load("qwen3");
    let mut adapted = Adapted::new(&golden, stored, variant, is_merged);
    let settings = AdamWSettings {
        weight_decay: golden.number("weight_decay"),
        ..AdamWSettings::default()
    };
    let layout = adapted.own_mut().0.layout.clone();
    let mut optimiser = AdamW::new(adapted.own_mut().1, settings);
    let mut engine = Engine::new(&golden.model.config);
    let rows = golden.rows();
    let batch: Vec<usize> = (0..rows.len()).collect();
    let name_of = |tensor: &str| format!("{name}, merged {is_merged}: {tensor}");

    let expected = &stored.record[name];
    let steps = numbers(&expected["ce"])
        .into_iter()
        .zip(numbers(&expected["grad_norm"]));
    for (i, (ce, norm)) in steps.enumerate() {
        adapted.gradients.zero();
        let step = StepBatch {
            step: i + 1,
            examples: &rows,
            indices: &batch,
            aux: &[],
            strength: 1.0,
            rows_per_micro_batch: rows.len(),
            tokens_per_micro_batch: usize::MAX,
        };
        let Adapted {
            params, gradients, ..
        } = &mut adapted;
        let loss = Objective::default().loss_and_gradients(&mut engine, &*params, step, gradients);
        if let Some(merged) = &mut adapted.merged {
            merged.backward(&adapted.gradients);
        }
        let (own, gradients) = adapted.own_mut();
        for tensor in layout.tensors.iter().filter(|_| i == 0) {
            let theirs = stored.tensor(&format!("{name}.gradient.{}", tensor.name));
            let apart = deviation(&gradients.data[tensor.range.clone()], &theirs);
            assert!(apart < GRADIENT, "{}: {apart:e}", name_of(&tensor.name));
        }
        let own_norm = adamw::grad_norm(gradients, Comm::single());
        for (what, ours, theirs) in [("loss", loss.ce, ce), ("norm", own_norm, norm)] {
            assert!(
                (ours - theirs).abs() <= STEPS * theirs,
                "step {i}, {} {ours} is not {theirs}",
                name_of(what)
            );
        }
        let scale = adamw::clip_scale(own_norm, golden.number("clip"));
        optimiser.step(own, gradients, golden.number("lr"), scale);
        adapted.merge();
    }

    let (own, _) = adapted.own_mut();
    let mut all = Vec::new();
    for tensor in &layout.tensors {
        let theirs = stored.tensor(&format!("{name}.after.{}", tensor.name));
        let apart = differences(&own.data[tensor.range.clone()], &theirs);
        let most = largest(&apart);
        assert!(most < ADAPTERS, "{}: {most:e}", name_of(&tensor.name));
        all.extend(apart);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    assert!(mean < ADAPTERS_MEAN, "{}: {mean:e}", name_of("mean"));
}

/// Six epochs of plain fine-tuning on a few facts with adapters of the tiny model of `family`.
fn tuned(place: &Path, family: &str, lora: LoraConfig) -> Config {
    let table = |name: &str, rows: &str| {
        let path = place.join(name);
        fs::write(&path, format!("subject\trelation\tobject\n{rows}")).unwrap();
        path
    };
    let mut config = Config {
        model: golden(family).to_str().unwrap().to_owned(),
        out: place.join(format!(
            "{family}-{:?}-{}",
            lora.variant,
            lora.target_modules.len()
        )),
        ..Config::default()
    };
    config.data.audit = None;
    config.data.learn = vec![table("learn.tsv", "Bergamo\tP17\tItaly\nOslo\tP17\tNorway\n").into()];
    config.data.keep = vec![table("keep.tsv", "Paris\tP17\tFrance\nLyon\tP17\tFrance\n").into()];
    config.data.held = vec![table("held.tsv", "Madrid\tP17\tSpain\n")];
    config.method.kind = MethodKind::Sft;
    (config.train.num_epochs, config.train.learning_rate) = (6, 0.05);
    config.train.lora = Some(lora);
    train::tune(&config, Options::default(), &Progress::quiet()).expect("the run ends well");
    config
}

#[test]
#[ignore = "needs UNFORGET_PYTHON, a Python with torch, transformers and peft"]
fn peft_loads_the_adapter_and_equals_the_merged_model() {
    let python = std::env::var(PYTHON).expect("UNFORGET_PYTHON is set");
    let place = tempfile::tempdir().unwrap();
    let mut check = Command::new(&python);
    check.arg(golden("load_adapter.py"));
    for family in ["llama", "qwen2", "qwen3"] {
        for (variant, _) in VARIANTS {
            for targets in [&["all-linear"][..], &["v_proj", "layers.1.mlp.down_proj"]] {
                let lora = LoraConfig {
                    r: 3,
                    alpha: 7,
                    target_modules: targets.iter().map(ToString::to_string).collect(),
                    variant,
                    rank_pattern: [("v_proj".to_owned(), 2)].into(),
                    alpha_pattern: [("layers.1.mlp.down_proj".to_owned(), 5)].into(),
                    ..LoraConfig::default()
                };
                let config = tuned(place.path(), family, lora);
                check.arg(&config.model);
                check.args(["adapter", "model"].map(|name| config.out.join(name)));
            }
        }
    }
    let output = check.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(stdout.lines().count(), 18, "{stdout}");
    eprint!("{stdout}");
}

#[test]
fn adapters_of_several_ranks_and_scales_are_read_as_the_model_that_was_saved() {
    for (variant, _) in VARIANTS {
        let place = tempfile::tempdir().unwrap();
        let lora = LoraConfig {
            r: 3,
            alpha: 7,
            target_modules: vec!["all-linear".into()],
            variant,
            rank_pattern: [
                ("v_proj".into(), 2),
                ("layers.1.self_attn.v_proj".into(), 5),
            ]
            .into(),
            alpha_pattern: [("layers.0.mlp.down_proj".into(), 20)].into(),
            ..LoraConfig::default()
        };
        let config = tuned(place.path(), "llama", lora);
        let config_of_peft = fs::read(config.out.join("adapter/adapter_config.json")).unwrap();
        let config_of_peft: serde_json::Value = serde_json::from_slice(&config_of_peft).unwrap();
        assert_eq!(
            config_of_peft["rank_pattern"],
            serde_json::json!({
                "model.layers.0.self_attn.v_proj": 2,
                "model.layers.1.self_attn.v_proj": 5,
            })
        );
        let load = |name: &str| {
            let path = config.out.join(name);
            Model::load(path.to_str().unwrap()).unwrap().params.data
        };
        let (read, saved) = (load("adapter"), load("model"));
        let most = largest(&differences(&read, &saved));
        // The products are summed in f64 when an adapter is read.
        assert!(most < 1e-6, "{variant:?}: {most:e}");
        let base = Model::load(&config.model).unwrap().params.data;
        assert!(largest(&differences(&read, &base)) > 1e-3);
    }
}

#[test]
fn an_adapter_is_written_under_pefts_names() {
    let stored = Golden::lora();
    let golden = Golden::load("qwen3");
    for (variant, name) in VARIANTS {
        let mut adapted = Adapted::new(&golden, &stored, variant, true);
        let (adapters, _) = adapted.own_mut();
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("adapter");
        lora::save(&settings(&stored, variant), adapters, &dir, "org/base").unwrap();
        let bytes = fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        // `lora.py` checks its names against PEFT's state dict.
        let magnitude = |tensor: &str| tensor.ends_with("lora_magnitude_vector");
        let mut ours: Vec<&str> = written.names();
        let theirs = stored.names("start.");
        let mut theirs: Vec<&str> = theirs
            .iter()
            .map(String::as_str)
            .filter(|tensor| name == "dora" || !magnitude(tensor))
            .collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        for tensor in &ours {
            let view = written.tensor(tensor).unwrap();
            assert_eq!(view.dtype(), safetensors::Dtype::F32);
            assert_eq!(
                view.data(),
                bytemuck::cast_slice::<f32, u8>(&stored.tensor(&format!("start.{tensor}")))
            );
        }
        let config = fs::read(dir.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["base_model_name_or_path"], "org/base");
        assert_eq!(
            (&config["r"], &config["lora_alpha"]),
            (&4.into(), &6.into())
        );
        assert_eq!(config["target_modules"], stored.record["targets"]);
        assert_eq!(config["use_rslora"], name == "rslora");
        assert_eq!(config["use_dora"], name == "dora");
    }
}
