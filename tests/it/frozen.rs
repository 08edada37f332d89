//! Adapters over frozen weights: what is computed, trained and saved equals what weights in f32 give.

use std::{fs, path::Path};

use unforget::{
    config::{Config, LoraConfig, MethodKind, ModelDtype},
    engine::{Batch, Engine, Gradients, Loss, Target},
    model::{Dtype, GgufType, Model, WeightStorage},
    progress::Progress,
    remedy::lora,
    run::{Metrics, RunDir},
    train::{self, Options},
};

use crate::model::golden;

/// Adapters on all linear layers, whose B is not zero.
fn with_adapters(model: &mut Model) {
    let lora = LoraConfig {
        r: 3,
        target_modules: vec!["all-linear".into()],
        ..LoraConfig::default()
    };
    let params = &mut model.params;
    let chosen = lora::target_tensors(&lora, params).unwrap();
    let mut low_rank = lora::beside(&lora, params, &chosen, 1);
    for (i, w) in low_rank.params.data.iter_mut().enumerate() {
        *w += ((i * 7919) % 13) as f32 / 200.0 - 0.03;
    }
    params.low_rank = Some(low_rank);
}

/// Loss and gradients of the adapters, and hidden states, on two rows.
fn computed(model: &Model) -> (Loss, Vec<f32>, Vec<f32>) {
    let vocab_size = model.config.vocab_size as u32;
    let mut batch = Batch::new();
    let rows = [vec![5, 9, 11, 200, 3], vec![7, 8]]
        .map(|row| batch.push(row.into_iter().map(|token| token % vocab_size)));
    let targets: Vec<Target> = rows
        .iter()
        .cloned()
        .flatten()
        .map(|position| Target {
            position,
            token: (40 + position as u32) % vocab_size,
            ce_weight: 0.2,
            distill_weight: 0.0,
        })
        .collect();
    let mut gradients = Gradients::of_adapters(&model.params);
    let mut engine = Engine::new(&model.config);
    let loss = engine.loss_and_gradients(&model.params, &batch, &targets, None, &mut gradients);
    let own = gradients.low_rank.unwrap().data.to_vec();
    let hidden = engine.hidden(&model.params, &batch, &[0, 4, 6]);
    (loss, own, hidden)
}

/// Hidden states of a row.
fn hidden_states(model: &Model) -> Vec<f32> {
    let mut batch = Batch::new();
    batch.push([5, 9, 11, 200, 3]);
    Engine::new(&model.config).hidden(&model.params, &batch, &[0, 4])
}

fn assert_same(frozen: &Model, in_memory: &Model, name: &str) {
    let (own, expected) = (computed(frozen), computed(in_memory));
    let apart = (own.0.ce - expected.0.ce).abs();
    assert!(apart < 1e-5 * expected.0.ce, "{name}: {apart:e}");
    for (own, expected) in [(&own.1, &expected.1), (&own.2, &expected.2)] {
        let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(largest > 1e-3, "{name}");
        for (own, expected) in own.iter().zip(expected) {
            // Sums of f32 in another order.
            assert!(
                (own - expected).abs() < 1e-4 * largest,
                "{name}: {own} {expected}"
            );
        }
    }
}

#[test]
fn frozen_weights_compute_what_weights_in_memory_do() {
    for name in [
        "llama",
        "qwen2",
        "qwen3",
        "gemma3",
        "olmo2",
        "phi3",
        "gguf/llama.gguf",
        "gguf/qwen2.gguf",
        "gguf/quants.gguf",
    ] {
        let path = golden(name).display().to_string();
        let mut in_memory = Model::load(&path).unwrap();
        let mut frozen = Model::load_as(&path, WeightStorage::Stored).unwrap();
        assert_eq!(frozen.checksum, in_memory.checksum);
        assert!(frozen.params.data.len() * 10 < in_memory.params.data.len());
        for tensor in &in_memory.params.layout.tensors {
            let own = frozen.params.layout.find(&tensor.name).unwrap();
            assert!(
                frozen.params.tensor(own) == in_memory.params.tensor(tensor),
                "{}",
                tensor.name
            );
        }
        with_adapters(&mut in_memory);
        with_adapters(&mut frozen);
        assert_same(&frozen, &in_memory, name);
    }
}

#[test]
fn weights_quantised_at_load_are_those_of_a_quantised_file() {
    let model = Model::load(&golden("qwen2").display().to_string()).unwrap();
    let place = tempfile::tempdir().unwrap();
    for kind in [GgufType::Q8_0, GgufType::Q4_0] {
        let file = place.path().join(format!("{kind:?}.gguf"));
        model.save_gguf(&file, kind).unwrap();
        let mut from_file = Model::load(&file.display().to_string()).unwrap();
        let path = golden("qwen2").display().to_string();
        let mut at_load = Model::load_as(&path, WeightStorage::Quantized(kind)).unwrap();
        with_adapters(&mut from_file);
        with_adapters(&mut at_load);
        assert_same(&at_load, &from_file, &format!("{kind:?}"));
        let tensor = at_load
            .params
            .layout
            .find("model.layers.0.mlp.gate_proj.weight")
            .unwrap();
        let original = model.params.layout.find(&tensor.name).unwrap();
        assert!(
            at_load.params.tensor(tensor) != model.params.tensor(original),
            "it is quantised"
        );
    }
}

/// Three epochs on a few facts.
fn tuned(place: &Path, model: &Path, name: &str, change: impl FnOnce(&mut Config)) -> Config {
    let table = |name: &str, rows: &str| {
        let path = place.join(name);
        fs::write(&path, format!("subject\trelation\tobject\n{rows}")).unwrap();
        path
    };
    let mut config = Config {
        model: model.display().to_string(),
        out: place.join(name),
        ..Config::default()
    };
    config.data.audit = None;
    config.data.learn = vec![table("learn.tsv", "Bergamo\tP17\tItaly\nOslo\tP17\tNorway\n").into()];
    config.data.keep = vec![table("keep.tsv", "Paris\tP17\tFrance\nLyon\tP17\tFrance\n").into()];
    config.data.held = vec![table("held.tsv", "Madrid\tP17\tSpain\n")];
    config.method.kind = MethodKind::SelfDistill;
    (config.train.num_epochs, config.train.learning_rate) = (3, 0.01);
    config.train.batch_size = 2;
    config.train.lora = Some(LoraConfig {
        target_modules: vec!["all-linear".into()],
        ..LoraConfig::default()
    });
    change(&mut config);
    train::tune(&config, Options::default(), &Progress::quiet()).expect("the run ends well");
    config
}

fn losses(run: &Path) -> Vec<f64> {
    let rows = RunDir::open(run).unwrap().metrics().unwrap().into_iter();
    let losses = rows.filter_map(|row| match row {
        Metrics::Step { loss, .. } => Some(loss),
        _ => None,
    });
    losses.collect()
}

#[test]
fn a_run_over_frozen_weights_follows_that_in_f32_and_is_saved_as_its_adapter() {
    let place = tempfile::tempdir().unwrap();
    // Weights that bf16 holds, so that the merged model is not rounded.
    let base = place.path().join("base");
    let golden = Model::load(&golden("llama").display().to_string()).unwrap();
    golden.save(&base, Dtype::Bf16).unwrap();
    let plain = tuned(place.path(), &base, "plain", |_| ());
    let stored = tuned(place.path(), &base, "stored", |config| {
        config.model_dtype = ModelDtype::Stored;
    });
    let (own, expected) = (losses(&stored.out), losses(&plain.out));
    assert!(expected.len() > 3 && own.len() == expected.len());
    for (own, expected) in own.iter().zip(&expected) {
        assert!((own - expected).abs() < 1e-4 * expected, "{own} {expected}");
    }
    // The model of the run is its adapter, which names the base.
    let model = stored.out.join("model");
    assert!(model.join("adapter_config.json").is_file());
    assert!(!model.join("model.safetensors").exists());
    let merged = Model::load(&model.display().to_string()).unwrap();
    // Beside its base, it computes the same, and is written merged.
    let mut beside = Model::load_as(&model.display().to_string(), WeightStorage::Stored).unwrap();
    assert!(beside.params.low_rank.is_some());
    for tensor in &merged.params.layout.tensors {
        let own = beside.params.layout.find(&tensor.name).unwrap();
        let values = merged.params.tensor(tensor);
        for (own, merged) in beside.params.tensor(own).iter().zip(values.iter()) {
            assert!((own - merged).abs() < 1e-6, "{}", tensor.name);
        }
    }
    let hidden = [&beside, &merged].map(hidden_states);
    for (own, merged) in hidden[0].iter().zip(&hidden[1]) {
        assert!((own - merged).abs() < 1e-4, "{own} {merged}");
    }
    beside.params.low_rank = None;
    assert!(hidden_states(&beside) != hidden[0], "the adapter counts");
    let adapter = Model::load(&plain.out.join("adapter").display().to_string()).unwrap();
    for (own, expected) in merged.params.data.iter().zip(&adapter.params.data[..]) {
        assert!((own - expected).abs() < 1e-3, "{own} {expected}");
    }
}
