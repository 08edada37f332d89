//! Model directories as the ecosystem has them: what `transformers` computes, or a refusal that says what is there and what to do.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};

use crate::{
    cli::{json_lines, refused, run, stderr, write_facts},
    model::{copy_of, golden, load},
};

/// A copy of a golden model with these keys of its config.json; null removes one.
fn with_config(family: &str, change: &Value) -> tempfile::TempDir {
    let dir = copy_of(family);
    edit(&dir.path().join("config.json"), change);
    dir
}

fn edit(path: &Path, change: &Value) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let map = json.as_object_mut().unwrap();
    for (key, value) in change.as_object().unwrap() {
        map.remove(key);
        if !value.is_null() {
            map.insert(key.clone(), value.clone());
        }
    }
    fs::write(path, json.to_string()).unwrap();
}

/// Rewrites model.safetensors, its tensors in f32 after `change`.
fn weights(dir: &Path, change: impl Fn(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        assert_eq!(view.dtype(), Dtype::F32);
        let values = view
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|x| f32::from_le_bytes(*x));
        tensors.insert(name, (view.shape().to_vec(), values.collect()));
    }
    change(&mut tensors);
    let bytes: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap(),
        )
    });
    serialize_to_file(views, None, &path).unwrap();
}

/// The scores of a few rows, longer than the windows of the tests.
fn scores(dir: &Path) -> Vec<Value> {
    let long = "one two three four five six seven eight nine ten eleven twelve";
    let rows = [
        json!({"prompt": "Q: Which country is Bergamo located in?\nA:", "completion": " Italy\n"}),
        json!({"prompt": long, "completion": long}),
    ];
    let rows = rows.map(|row| row.to_string() + "\n").concat();
    fs::write(dir.join("rows.jsonl"), rows).unwrap();
    json_lines(&run(dir, &["score", ".", "rows.jsonl"]))
}

#[test]
fn a_head_of_its_own_counts_although_the_config_ties_it() {
    let head = |tensors: &mut BTreeMap<String, (Vec<usize>, Vec<f32>)>, factor: f32| {
        let (shape, values) = tensors["model.embed_tokens.weight"].clone();
        let values = values.iter().rev().map(|x| factor * x).collect();
        tensors.insert("lm_head.weight".into(), (shape, values));
    };
    let tied = copy_of("llama");
    weights(tied.path(), |tensors| head(tensors, 0.5));
    let untied = with_config("llama", &json!({"tie_word_embeddings": false}));
    weights(untied.path(), |tensors| head(tensors, 0.5));
    let expected = scores(untied.path());
    assert_eq!(scores(tied.path()), expected);
    assert!(
        run(tied.path(), &["export", ".", "--to", "hf", "--out", "out"])
            .status
            .success()
    );
    assert_eq!(scores(&tied.path().join("out")), expected);

    // A copy of the embedding is no other head; and where the head alone is stored, it is both.
    let plain = scores(copy_of("llama").path());
    assert_ne!(plain, expected);
    for rename in [false, true] {
        let dir = copy_of("llama");
        weights(dir.path(), |tensors| {
            let name = "model.embed_tokens.weight".to_owned();
            let embedding = if rename {
                tensors.remove(&name).unwrap()
            } else {
                tensors[&name].clone()
            };
            tensors.insert("lm_head.weight".into(), embedding);
        });
        assert_eq!(scores(dir.path()), plain);
    }
}

#[test]
fn a_window_that_no_layer_uses_changes_nothing() {
    let expected = scores(copy_of("qwen3").path());
    for change in [
        json!({"sliding_window": 4, "use_sliding_window": true, "max_window_layers": 2, "layer_types": null}),
        json!({"sliding_window": 4, "use_sliding_window": true, "layer_types": ["full_attention", "full_attention"]}),
        json!({"sliding_window": 4, "use_sliding_window": false}),
    ] {
        assert_eq!(
            scores(with_config("qwen3", &change).path()),
            expected,
            "{change}"
        );
    }
    // Where one does, rows of any length that the context allows are computed.
    let change = json!({"sliding_window": 4, "use_sliding_window": true, "max_window_layers": 1, "layer_types": null});
    assert_ne!(scores(with_config("qwen3", &change).path()), expected);
}

#[test]
fn the_model_type_says_what_a_model_is() {
    let expected = scores(copy_of("llama").path());
    let change = json!({"architectures": ["MistralForCausalLM"]});
    assert_eq!(scores(with_config("llama", &change).path()), expected);
    let dir = with_config(
        "llama",
        &json!({"architectures": ["LlamaForSequenceClassification"]}),
    );
    let message = refused(dir.path(), &["ask", ".", "hi"]);
    assert!(
        message.contains("LlamaForSequenceClassification"),
        "{message}"
    );
}

#[test]
fn a_token_without_a_row_is_refused_only_where_it_is_used() {
    let dir = copy_of("llama");
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let known = json["model"]["vocab"].as_object().unwrap().len();
    // The tokenizer counts on from its own vocabulary: the last one of these is the first without a row.
    for id in known..=300 {
        let content = if id == 300 {
            "<|pad|>".into()
        } else {
            format!("<|{id}|>")
        };
        json["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    fs::write(&path, json.to_string()).unwrap();
    assert_eq!(scores(dir.path()), scores(copy_of("llama").path()));
    for (name, row) in [
        ("p.jsonl", r#"{"prompt": "a<|pad|>", "completion": " b"}"#),
        ("c.jsonl", r#"{"prompt": "a", "completion": " <|pad|>b"}"#),
    ] {
        fs::write(dir.path().join(name), row).unwrap();
        let tune = [
            "tune",
            ".",
            "--learn",
            name,
            "--out",
            "run",
            "--set",
            "data.audit=false",
        ];
        for args in [&["score", ".", name][..], &tune] {
            let message = refused(dir.path(), args);
            assert!(message.contains("`<|pad|>` (300)"), "{message}");
            assert!(!dir.path().join("run").exists());
        }
    }
    let message = refused(dir.path(), &["ask", ".", "hi<|pad|>"]);
    assert!(message.contains("`<|pad|>` (300)"), "{message}");
    assert!(
        run(dir.path(), &["export", ".", "--to", "gguf", "--out", "g"])
            .status
            .success()
    );
    assert!(load(dir.path().join("g/model.gguf")).is_ok());
}

#[test]
fn weights_that_are_not_finite_are_refused_by_every_command_with_the_tensor() {
    for (name, at, value, place) in [
        (
            "model.layers.1.mlp.down_proj.weight",
            3 * 40 + 5,
            f32::NAN,
            "[3, 5]",
        ),
        ("model.norm.weight", 7, f32::INFINITY, "[7]"),
    ] {
        let dir = copy_of("llama");
        write_facts(dir.path());
        weights(dir.path(), |tensors| {
            tensors.get_mut(name).unwrap().1[at] = value;
        });
        fs::write(
            dir.path().join("rows.jsonl"),
            r#"{"prompt": "a", "completion": " b"}"#,
        )
        .unwrap();
        let commands: [&[&str]; 6] = [
            &["ask", ".", "hi"],
            &["score", ".", "rows.jsonl"],
            &["audit", ".", "learn.tsv", "--out", "audit"],
            &["tune", ".", "--learn", "learn.tsv", "--out", "run"],
            &["export", ".", "--out", "e"],
            &[
                "forecast",
                ".",
                "--learn",
                "learn.tsv",
                "--held",
                "learn.tsv",
            ],
        ];
        for args in commands {
            let output = run(dir.path(), args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            let message = stderr(&output);
            assert!(
                message.contains(&format!("`{name}{place}`")),
                "{args:?}: {message}"
            );
        }
    }
}

#[test]
fn weights_that_the_written_type_cannot_hold_are_refused() {
    let dir = copy_of("llama");
    weights(dir.path(), |tensors| {
        tensors
            .get_mut("model.layers.0.mlp.up_proj.weight")
            .unwrap()
            .1[0] = 1e6;
    });
    for args in [
        &["export", ".", "--dtype", "f16", "--out", "a"][..],
        &["export", ".", "--to", "gguf", "--out", "b"],
    ] {
        let message = refused(dir.path(), args);
        assert!(
            message.contains("up_proj") && message.contains("bf16"),
            "{message}"
        );
    }
    assert!(
        run(
            dir.path(),
            &["export", ".", "--dtype", "bf16", "--out", "c"]
        )
        .status
        .success()
    );
}

#[test]
fn what_is_no_weight_file_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1346960\n";
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let dir = copy_of("llama");
        fs::write(dir.path().join(name), pointer).unwrap();
        let output = run(dir.path(), &["ask", ".", "hi"]);
        assert_eq!(output.status.code(), Some(1));
        let message = stderr(&output);
        assert!(
            message.contains("Git LFS pointer") && message.contains("git lfs pull"),
            "{message}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), pointer).unwrap();
    let message = stderr(&run(dir.path(), &["ask", "m.gguf", "hi"]));
    assert!(message.contains("Git LFS pointer"), "{message}");

    for (name, words) in [
        (
            "pytorch_model.bin",
            &["pytorch_model.bin", "save_pretrained"][..],
        ),
        (
            "pytorch_model-00001-of-00002.bin",
            &["pytorch_model-00001", "run code"],
        ),
        ("consolidated.00.pth", &["consolidated.00.pth"]),
        ("tf_model.h5", &["tf_model.h5"]),
        ("q4.gguf", &["q4.gguf", "name the file"]),
        ("notes.txt", &["neither `model.safetensors`"]),
    ] {
        let dir = copy_of("llama");
        fs::rename(dir.path().join("model.safetensors"), dir.path().join(name)).unwrap();
        let message = refused(dir.path(), &["ask", ".", "hi"]);
        for word in words {
            assert!(message.contains(word), "{name}: {message}");
        }
    }
    for (method, word) in [
        ("gptq", "GPTQ"),
        ("awq", "AWQ"),
        ("fp8", "FP8"),
        ("bitsandbytes", "bitsandbytes"),
    ] {
        let change = json!({"quantization_config": {"quant_method": method, "bits": 4}});
        let message = refused(with_config("llama", &change).path(), &["ask", ".", "hi"]);
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn rope_is_read_as_by_transformers_or_refused() {
    let default = json!({"rope_type": "default", "rope_theta": 10000.0});
    let old = with_config(
        "qwen2",
        &json!({"rope_parameters": null, "rope_theta": 1e6}),
    );
    let expected = scores(old.path());
    let nested = json!({"full_attention": {"rope_theta": 1e6, "rope_type": "default"}});
    let types = json!(["full_attention", "full_attention"]);
    let change = json!({"rope_parameters": nested, "layer_types": types});
    assert_eq!(scores(with_config("qwen2", &change).path()), expected);
    // The old key counts where both are there.
    let linear = json!({"type": "linear", "factor": 4.0, "rope_theta": 1e6});
    let alone = with_config(
        "qwen2",
        &json!({"rope_parameters": null, "rope_scaling": linear}),
    );
    let both = with_config(
        "qwen2",
        &json!({"rope_parameters": default, "rope_scaling": linear}),
    );
    assert_eq!(scores(both.path()), scores(alone.path()));
    assert_ne!(scores(both.path()), expected);
    assert!(load(golden("qwen2")).is_ok());
}

/// The weights are finite, but their products are not in f32.
#[test]
fn logits_that_are_not_finite_are_named() {
    let dir = copy_of("llama");
    weights(dir.path(), |tensors| {
        let (shape, values) = tensors["model.embed_tokens.weight"].clone();
        let huge = vec![3e38; values.len()];
        tensors.insert("lm_head.weight".into(), (shape, huge));
    });
    fs::write(
        dir.path().join("rows.jsonl"),
        r#"{"prompt":"a","completion":" b"}"#,
    )
    .unwrap();
    fs::write(
        dir.path().join("f.tsv"),
        "subject\trelation\tobject\nRome\tP17\tItaly\n",
    )
    .unwrap();
    for arguments in [
        &["score", ".", "rows.jsonl"][..],
        &["ask", ".", "hi"],
        &["audit", ".", "f.tsv", "--out", "a", "--shots", "0"],
        &[
            "tune",
            ".",
            "--learn",
            "f.tsv",
            "--keep",
            "f.tsv",
            "--out",
            "t",
            "--set",
            "data.audit=false",
            "--method",
            "sft",
        ],
    ] {
        let output = run(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let told = stderr(&output);
        assert!(
            told.contains("the model's logits are not finite"),
            "{arguments:?}: {told}"
        );
    }
}
