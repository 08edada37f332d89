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
    progress::Progress,
    remedy::lora::{Adapters, target_tensors},
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

/// The initial adapters of the golden runs for the model in `golden`.
fn start(golden: &Golden, stored: &Golden, variant: LoraVariant) -> (Gradients, Adapters) {
    let number = |key: &str| stored.record[key].as_u64().expect("a number") as usize;
    let names = stored.record["targets"].as_array().expect("a list");
    let names = names.iter().map(|n| n.as_str().expect("a name").to_owned());
    let settings = LoraConfig {
        r: number("rank"),
        alpha: number("alpha"),
        target_modules: names.collect(),
        dropout: 0.0,
        variant,
    };
    let params = &golden.model.params;
    let gradients = Gradients::new(
        params,
        &target_tensors(&settings, params).expect("they are there"),
    );
    let mut adapters = Adapters::new(settings, params, &gradients, 0);
    for tensor in &adapters.params.layout.clone().tensors {
        adapters.params.data[tensor.range.clone()]
            .copy_from_slice(&stored.tensor(&format!("start.{}", tensor.name)));
    }
    (gradients, adapters)
}

#[test]
fn ten_steps_of_every_variant_equal_pefts() {
    let stored = Golden::lora();
    for (variant, name) in VARIANTS {
        let golden = Golden::load("qwen3");
        let (mut gradients, mut adapters) = start(&golden, &stored, variant);
        let mut params = golden.model.params.clone();
        adapters.merge(&mut params);
        let settings = AdamWSettings {
            weight_decay: golden.number("weight_decay"),
            ..AdamWSettings::default()
        };
        let mut optimiser = AdamW::new(&adapters.gradients, settings);
        let mut engine = Engine::new(&golden.model.config);
        let rows = golden.rows();
        let batch: Vec<usize> = (0..rows.len()).collect();
        let layout = adapters.params.layout.clone();

        let expected = &stored.record[name];
        let steps = numbers(&expected["ce"])
            .into_iter()
            .zip(numbers(&expected["grad_norm"]));
        for (i, (ce, norm)) in steps.enumerate() {
            gradients.zero();
            let step = StepBatch {
                step: i + 1,
                examples: &rows,
                indices: &batch,
                aux: &[],
                strength: 1.0,
                rows_per_micro_batch: rows.len(),
                tokens_per_micro_batch: usize::MAX,
            };
            let objective = Objective::default();
            let loss = objective.loss_and_gradients(&mut engine, &params, step, &mut gradients);
            adapters.backward(&gradients);
            for tensor in layout.tensors.iter().filter(|_| i == 0) {
                let theirs = stored.tensor(&format!("{name}.gradient.{}", tensor.name));
                let apart = deviation(&adapters.gradients.data[tensor.range.clone()], &theirs);
                assert!(apart < GRADIENT, "{name}: {}: {apart:e}", tensor.name);
            }
            let own_norm = adamw::grad_norm(&adapters.gradients, Comm::single());
            for (what, ours, theirs) in [("loss", loss.ce, ce), ("norm", own_norm, norm)] {
                assert!(
                    (ours - theirs).abs() <= STEPS * theirs,
                    "{name} step {i}: {what} {ours} is not {theirs}"
                );
            }
            let scale = adamw::clip_scale(own_norm, golden.number("clip"));
            let lr = golden.number("lr");
            optimiser.step(&mut adapters.params, &adapters.gradients, lr, scale);
            adapters.merge(&mut params);
        }

        let mut all = Vec::new();
        for tensor in &layout.tensors {
            let theirs = stored.tensor(&format!("{name}.after.{}", tensor.name));
            let apart = differences(&adapters.params.data[tensor.range.clone()], &theirs);
            let most = largest(&apart);
            assert!(most < ADAPTERS, "{name}: {}: {most:e}", tensor.name);
            all.extend(apart);
        }
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!(mean < ADAPTERS_MEAN, "{name}: {mean:e}");
    }
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
            for targets in [&["all-linear"][..], &["q_proj", "layers.1.mlp.down_proj"]] {
                let lora = LoraConfig {
                    r: 3,
                    alpha: 7,
                    target_modules: targets.iter().map(ToString::to_string).collect(),
                    dropout: 0.0,
                    variant,
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
fn an_adapter_is_written_under_pefts_names() {
    let stored = Golden::lora();
    let golden = Golden::load("qwen3");
    for (variant, name) in VARIANTS {
        let (_, adapters) = start(&golden, &stored, variant);
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("adapter");
        adapters.save(&dir, "org/base").unwrap();
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
