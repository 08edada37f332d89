//! Loading and saving models, compared with independent references.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use safetensors::SafeTensors;
use unforget::{
    Error,
    model::{Dtype, Family, GgufType, Model, config::RopeScaling},
};

use crate::tools::SMOLLM2;

/// The same model, converted by `transformers` to a directory in f32.
const SMOLLM2_HF: &str = "UNFORGET_SMOLLM2_HF";
/// A Python with `torch` and `transformers`.
pub const PYTHON: &str = "UNFORGET_PYTHON";

/// Unicode, digits, white space, code and special tokens. `transformers` forgets that `SmolLM2` splits digits when it converts the GGUF
/// file, so that texts which show it (`½`, `١`, line breaks before a digit) are left out.
const TEXTS: [&str; 9] = [
    "Q: Which country is Bergamo located in?\nA: Italy\n",
    "",
    " leading, trailing \n\n\n\t tabs\r\nand   runs  of spaces   ",
    "In 1999 there were 12,345.67 of them; 3rd, x2y, 0x7f",
    "naïve café Ångström Straße İstanbul — “quotes” … € £ 你好，世界 こんにちは Привет שלום नमस्ते",
    "emoji 🙂🏳️‍🌈👩‍👩‍👧‍👦 and combining e\u{301} a\u{308}, zero\u{200b}width, nbsp\u{a0}here",
    "fn main() {\n    let x = vec![1, 2, 3];\n\tprintln!(\"{:?}\", x); // don't\n}\n",
    "I'll we've they're it's you'd I'm CAN'T 'S",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
];

const FAMILIES: [&str; 5] = ["llama", "llama3", "mistral", "qwen2", "qwen3"];

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

pub fn load(path: impl AsRef<Path>) -> Result<Model, Error> {
    Model::load(path.as_ref().to_str().expect("test paths are UTF-8"))
}

fn assert_same_model(ours: &Model, theirs: &Model) {
    assert_eq!(ours.config, theirs.config);
    for tensor in &ours.params.layout.tensors {
        assert!(
            ours.params.data[tensor.range.clone()] == theirs.params.data[tensor.range.clone()],
            "{} differs",
            tensor.name
        );
    }
    for text in TEXTS {
        let ours = ours.tokenizer.encode_prompt(text).unwrap();
        assert_eq!(
            ours,
            theirs.tokenizer.encode_prompt(text).unwrap(),
            "{text:?}"
        );
    }
}

/// A copy of a golden model, for a test to change.
pub fn copy_of(family: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(golden(family)).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn every_family_loads_with_the_values_of_its_files() {
    for family in FAMILIES {
        let model = load(golden(family)).unwrap();
        let mut checked = 0;
        for file in fs::read_dir(golden(family)).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !(name.starts_with("model") && name.ends_with(".safetensors")) {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let tensor = model.params.layout.find(&name).unwrap();
                assert_eq!(view.shape(), tensor.shape, "{family} {name}");
                let stored: Vec<f32> = match view.dtype() {
                    safetensors::Dtype::F32 => view
                        .data()
                        .chunks(4)
                        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                        .collect(),
                    safetensors::Dtype::BF16 => view
                        .data()
                        .chunks(2)
                        .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
                        .collect(),
                    other => panic!("{other:?}"),
                };
                assert!(
                    stored == model.params.data[tensor.range.clone()],
                    "{family} {name}"
                );
                checked += 1;
            }
        }
        assert_eq!(checked, model.params.layout.tensors.len(), "{family}");
        let dtype = if family == "mistral" {
            Dtype::Bf16
        } else {
            Dtype::F32
        };
        assert_eq!(model.dtype, dtype, "{family}");
    }
}

#[test]
fn a_saved_model_is_loaded_bitwise_identically() {
    for family in FAMILIES {
        let model = load(golden(family)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let dir = out.path().join("a/model");
        model.save(&dir, model.dtype).unwrap();
        let again = load(&dir).unwrap();
        assert_same_model(&model, &again);
        assert_eq!(again.dtype, model.dtype);
        assert_eq!(again.tokenizer.eos_token_ids, model.tokenizer.eos_token_ids);
        // No temporary file is left, and the files are readable for others.
        let names: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|f| f.unwrap().file_name())
            .collect();
        assert!(
            names.iter().all(|n| !n.to_string_lossy().starts_with('.')),
            "{names:?}"
        );
    }
}

#[test]
fn weights_are_rounded_to_the_saved_dtype() {
    let model = load(golden("qwen3")).unwrap();
    for (dtype, round) in [
        (
            Dtype::F16,
            (|x| half::f16::from_f32(x).to_f32()) as fn(f32) -> f32,
        ),
        (Dtype::Bf16, |x| half::bf16::from_f32(x).to_f32()),
    ] {
        let out = tempfile::tempdir().unwrap();
        model.save(out.path(), dtype).unwrap();
        let again = load(out.path()).unwrap();
        assert_eq!(again.dtype, dtype);
        assert_eq!(again.config_json["dtype"], dtype.torch_name());
        let rounded: Vec<f32> = model.params.data.iter().map(|x| round(*x)).collect();
        assert!(rounded == *again.params.data);
    }
}

#[test]
fn every_quantisation_equals_that_of_the_gguf_package() {
    let model = load(golden("gguf/quants.gguf")).unwrap();
    let bytes = fs::read(golden("gguf/quants.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(expected.len(), model.params.layout.tensors.len());
    for tensor in &model.params.layout.tensors {
        let view = expected.tensor(&tensor.name).unwrap();
        for (ours, theirs) in model.params.data[tensor.range.clone()]
            .iter()
            .zip(view.data().chunks(4))
        {
            let theirs = f32::from_le_bytes(theirs.try_into().unwrap());
            // Scale times value plus offset: two roundings, in either order.
            let tolerance = 2.0 * f32::EPSILON * theirs.abs().max(1.0);
            assert!(
                (ours - theirs).abs() <= tolerance,
                "{}: {ours} for {theirs}",
                tensor.name
            );
        }
    }
}

#[test]
fn a_gguf_equals_its_source_directory() {
    for family in ["llama", "qwen2", "qwen3"] {
        let gguf = load(golden("gguf").join(format!("{family}.gguf"))).unwrap();
        assert_same_model(&gguf, &load(golden(family)).unwrap());
        assert_eq!(gguf.dtype, Dtype::F32);
    }
}

#[test]
fn a_model_has_the_type_of_its_stored_weights_and_no_hub_id_if_it_is_local() {
    for (path, quantization) in [
        ("llama", "f32"),
        ("mistral", "bf16"),
        ("gguf/llama.gguf", "F32"),
        ("gguf/quants.gguf", "Q8_0"),
    ] {
        let model = load(golden(path)).unwrap();
        assert_eq!(model.quantization, quantization, "{path}");
        assert_eq!(model.hub_id, None, "{path}");
    }
}

#[test]
fn names_without_their_prefix_and_a_stored_tied_head_are_read_too() {
    let dir = copy_of("llama");
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = stored.tensors();
    for (name, _) in &mut tensors {
        *name = name.trim_start_matches("model.").to_owned();
    }
    let embedding = stored.tensor("model.embed_tokens.weight").unwrap();
    tensors.push(("lm_head.weight".into(), embedding));
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    assert_same_model(&load(dir.path()).unwrap(), &load(golden("llama")).unwrap());
}

#[test]
#[ignore = "needs UNFORGET_SMOLLM2_HF, the model as `transformers` converts it"]
fn a_real_gguf_equals_its_conversion_by_transformers() {
    let ours = load("smollm2-135m").unwrap();
    let theirs = load(env::var(SMOLLM2_HF).expect("UNFORGET_SMOLLM2_HF is set")).unwrap();
    assert_same_model(&ours, &theirs);
    assert_eq!(ours.tokenizer.eos_token_ids, theirs.tokenizer.eos_token_ids);
    assert_eq!(
        ours.tokenizer.config_json["chat_template"],
        theirs.tokenizer.config_json["chat_template"]
    );
}

#[test]
#[ignore = "needs UNFORGET_PYTHON, a Python with torch and transformers"]
fn transformers_loads_a_saved_model_with_the_same_weights_and_tokens() {
    let python = env::var(PYTHON).expect("UNFORGET_PYTHON is set");
    let mut models: Vec<PathBuf> = FAMILIES.iter().map(|family| golden(family)).collect();
    models.push(golden("gguf/qwen3.gguf"));
    models.extend(env::var(SMOLLM2).map(PathBuf::from));
    for path in models {
        let model = load(&path).unwrap();
        let saved = tempfile::tempdir().unwrap();
        model.save(saved.path(), model.dtype).unwrap();
        // `transformers` 5 uses Qwen's own pre-tokenizer for every Qwen model, whatever tokenizer.json says; the tiny models have
        // GPT-2's.
        let texts: &[&str] = if model.config.qkv_bias || model.config.qk_norm {
            &[]
        } else {
            &TEXTS
        };
        let expected: serde_json::Map<String, serde_json::Value> = texts
            .iter()
            .map(|text| {
                (
                    (*text).to_owned(),
                    model.tokenizer.encode_prompt(text).unwrap().into(),
                )
            })
            .collect();
        let texts_path = saved.path().join("texts.json");
        fs::write(&texts_path, serde_json::to_vec(&expected).unwrap()).unwrap();
        let output = Command::new(&python)
            .arg(golden("load_saved.py"))
            .arg(saved.path())
            .arg(&texts_path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn a_written_gguf_is_read_as_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    for family in FAMILIES {
        let mut model = load(golden(family)).unwrap();
        if let RopeScaling::Llama3(scaling) = &mut model.config.rope_scaling {
            // GGUF stores only the factors, which are recognised as those of the released Llama 3 models.
            scaling.original_max_position_embeddings = 8192.0;
            (scaling.low_freq_factor, scaling.high_freq_factor) = (1.0, 4.0);
            // With head dimension 6 and a small base no wavelength would be scaled.
            model.config.rope_theta = 500_000.0;
        }
        if model.config.family == Family::Mistral {
            // In GGUF only the sliding window distinguishes it from a llama, and this model has none.
            model.config.family = Family::Llama;
        }
        model.save_gguf(&path, GgufType::F32).unwrap();
        let again = load(&path).unwrap();
        assert_same_model(&again, &model);
        assert_eq!(
            again.tokenizer.eos_token_ids, model.tokenizer.eos_token_ids,
            "{family}"
        );
        let template = |model: &Model| model.tokenizer.config_json.get("chat_template").cloned();
        assert_eq!(template(&again), template(&model), "{family}");
    }
}

/// The error of a weight is at most a step (the largest weight of its block over 127 or 8): half a step, and rounding of the scale to
/// f16 and, with four bits, the position of the largest weight at the end of the range.
#[test]
fn quantisation_errors_are_within_a_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let model = load(golden("gguf/quants.gguf")).unwrap();
    for (kind, step) in [(GgufType::Q8_0, 1.0 / 127.0), (GgufType::Q4_0, 1.0 / 8.0)] {
        model.save_gguf(&path, kind).unwrap();
        let again = load(&path).unwrap();
        for tensor in &model.params.layout.tensors {
            let (before, after) = (
                &model.params.data[tensor.range.clone()],
                &again.params.data[tensor.range.clone()],
            );
            if tensor.shape.len() == 1 {
                assert!(before == after, "{}", tensor.name);
                continue;
            }
            let step = if tensor.name.contains("embed") {
                1.0 / 127.0
            } else {
                step
            };
            for (before, after) in before.chunks(32).zip(after.chunks(32)) {
                let largest = before.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
                for (x, y) in before.iter().zip(after) {
                    assert!(
                        (x - y).abs() <= 1.01 * step * largest,
                        "{}: {x} became {y}, of {largest}",
                        tensor.name
                    );
                }
            }
        }
    }
}
