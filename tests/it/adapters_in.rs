//! PEFT adapters as models: the logits that `peft` computes (`tests/golden/peft.py`), where the base is found, what is refused.

use std::{fs, path::Path};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use unforget::{
    engine::{Batch, Engine},
    model::{Dtype, Model},
};

use crate::{
    cli::{json_lines, refused, run, tune_once},
    golden::deviation,
    model::{golden, load},
};

/// `peft` computes in float32 and adds the low-rank product to the output, not to the weight.
const LOGITS: f64 = 5e-5;

/// A copy of the golden adapter `name` in `dir`, with the path of its base.
fn adapter(name: &str, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(golden("peft").join(name).join(file), dir.join(file)).unwrap();
    }
    edit(dir, |config| {
        let base = config["base_model_name_or_path"].as_str().unwrap();
        config["base_model_name_or_path"] = golden(base).display().to_string().into();
    });
}

fn edit(dir: &Path, change: impl Fn(&mut Value)) {
    let path = dir.join("adapter_config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// The logits of `model` and the golden ones.
fn logits(model: &Model, name: &str) -> [Vec<f32>; 2] {
    let stored = fs::read(golden("peft").join(name).join("logits.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let ids = stored
        .tensor("ids")
        .unwrap()
        .data()
        .as_chunks::<8>()
        .0
        .iter();
    let ids: Vec<u32> = ids.map(|id| i64::from_le_bytes(*id) as u32).collect();
    let expected = stored.tensor("logits").unwrap();
    let expected = expected.data().as_chunks::<4>().0.iter();
    let mut batch = Batch::new();
    let positions: Vec<usize> = (0..ids.len()).collect();
    batch.push(ids);
    let mut engine = Engine::new(&model.config);
    let hidden = engine.hidden(&model.params, &batch, &positions);
    let ours = engine.logits(&model.params, &hidden, |_, logits| logits.to_vec());
    [
        ours.concat(),
        expected.map(|x| f32::from_le_bytes(*x)).collect(),
    ]
}

#[test]
fn an_adapter_gives_the_logits_of_peft() {
    for entry in fs::read_dir(golden("peft")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let dir = tempfile::tempdir().unwrap();
        adapter(&name, dir.path());
        let model = load(dir.path()).unwrap();
        let [ours, theirs] = logits(&model, &name);
        let apart = deviation(&ours, &theirs);
        assert!(apart < LOGITS, "{name}: {apart:e}");
        // And so does what is written of it.
        let saved = tempfile::tempdir().unwrap();
        model.save(saved.path(), Dtype::F32).unwrap();
        let again = load(saved.path()).unwrap();
        assert!(logits(&again, &name)[0] == ours, "{name}");
    }
}

#[test]
fn the_base_may_lie_beside_the_adapter_or_in_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let expected = {
        adapter("lora", &dir.path().join("a"));
        logits(&load(dir.path().join("a")).unwrap(), "lora")[0].clone()
    };
    let base = load(golden("llama3")).unwrap();
    base.save(&dir.path().join("base"), Dtype::F32).unwrap();
    edit(&dir.path().join("a"), |config| {
        config["base_model_name_or_path"] = "../base".into();
    });
    assert!(logits(&load(dir.path().join("a")).unwrap(), "lora")[0] == expected);

    base.save(&dir.path().join("a"), Dtype::F32).unwrap();
    for named in [json!("elsewhere/gone"), Value::Null, json!(".")] {
        edit(&dir.path().join("a"), |config| {
            config["base_model_name_or_path"] = named.clone();
        });
        assert!(
            logits(&load(dir.path().join("a")).unwrap(), "lora")[0] == expected,
            "{named}"
        );
    }
}

#[test]
fn an_adapter_that_cannot_be_merged_is_refused_by_name() {
    let case = |name: &str, change: &dyn Fn(&mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        adapter(name, dir.path());
        edit(dir.path(), change);
        let Err(error) = load(dir.path()) else {
            panic!("{name} was loaded")
        };
        assert_eq!(error.exit_code(), 2, "{error}");
        format!("{error} {}", error.hint().unwrap_or_default())
    };
    let set =
        |key: &'static str, value: Value| move |config: &mut Value| config[key] = value.clone();
    for (key, value, word) in [
        ("peft_type", json!("IA3"), "IA3"),
        ("peft_type", json!("PROMPT_TUNING"), "PROMPT_TUNING"),
        ("init_lora_weights", json!("pissa_niter_4"), "pissa_niter_4"),
        (
            "trainable_token_indices",
            json!([3]),
            "trainable_token_indices",
        ),
        (
            "alora_invocation_tokens",
            json!([3, 4]),
            "alora_invocation_tokens",
        ),
        ("layer_replication", json!([[0, 1]]), "layer_replication"),
        (
            "base_model_name_or_path",
            json!("./gone"),
            "is a PEFT adapter of `./gone`",
        ),
        (
            "base_model_name_or_path",
            json!(""),
            "does not name its base model",
        ),
        ("alpha_pattern", json!({"(": 3}), "alpha_pattern"),
    ] {
        let message = case("lora", &set(key, value));
        assert!(message.contains(word), "{key}: {message}");
    }
    // The base of another adapter has other layers.
    let other = golden("qwen2").display().to_string();
    let dir = tempfile::tempdir().unwrap();
    adapter("lora", dir.path());
    edit(dir.path(), set("base_model_name_or_path", other.into()));
    assert!(load(dir.path()).is_err());
    // Weights that are pickled are not read.
    let dir = tempfile::tempdir().unwrap();
    adapter("lora", dir.path());
    fs::rename(
        dir.path().join("adapter_model.safetensors"),
        dir.path().join("adapter_model.bin"),
    )
    .unwrap();
    let message = refused(dir.path(), &["ask", ".", "hi"]);
    assert!(message.contains("adapter_model.bin"), "{message}");
}

#[test]
fn every_command_takes_an_adapter_and_training_goes_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    adapter("lora", &dir.path().join("a"));
    fs::write(
        dir.path().join("rows.jsonl"),
        "{\"prompt\": \"The\", \"completion\": \" capital\"}\n",
    )
    .unwrap();
    let score =
        |model: &str| json_lines(&run(dir.path(), &["score", model, "rows.jsonl"]))[0].clone();
    assert!(
        run(
            dir.path(),
            &["export", "a", "--to", "hf", "--out", "merged"]
        )
        .status
        .success()
    );
    assert_eq!(score("a"), score("merged"));
    let data = |model: &str| run(dir.path(), &["data", "rows.jsonl", "--model", model]).stdout;
    assert_eq!(data("a"), data("merged"));
    let tune = |model: &str, out: &str| {
        tune_once(dir.path(), [model, "rows.jsonl", out], &[]);
        score(out)
    };
    assert_eq!(tune("a", "run1"), tune("merged", "run2"));
}
