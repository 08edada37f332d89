//! Models in and out: against independent references, and against files that lie.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;
use safetensors::SafeTensors;
use unforget::{
    Error,
    model::{Dtype, Model},
};

/// SmolLM2-135M-Instruct, by its name in the catalogue or by its path.
const SMOLLM2: &str = "UNFORGET_SMOLLM2";
/// The same model as `transformers` converted it, a directory in f32.
const SMOLLM2_HF: &str = "UNFORGET_SMOLLM2_HF";
/// A Python that has `torch` and `transformers`.
const PYTHON: &str = "UNFORGET_PYTHON";

/// Unicode, digits, white space, code and special tokens. Left out: what `transformers` gets wrong when it converts
/// `SmolLM2`'s GGUF, since it forgets that the model splits digits from all else (`½`, `١`, line breaks before a digit).
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

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn load(path: impl AsRef<Path>) -> Result<Model, Error> {
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

/// A copy of a golden model that a test may break.
fn copy_of(family: &str) -> tempfile::TempDir {
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
fn a_saved_model_loads_again_to_the_bit() {
    for family in FAMILIES {
        let model = load(golden(family)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let dir = out.path().join("a/model");
        model.save(&dir, model.dtype).unwrap();
        let again = load(&dir).unwrap();
        assert_same_model(&model, &again);
        assert_eq!(again.dtype, model.dtype);
        assert_eq!(again.tokenizer.end_tokens, model.tokenizer.end_tokens);
        // Nothing temporary is left, and others may read what there is.
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
fn weights_are_rounded_to_the_dtype_asked_for() {
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
fn every_quantisation_is_what_the_gguf_package_makes_of_it() {
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
fn a_gguf_equals_the_directory_that_it_was_made_from() {
    for family in ["llama", "qwen2", "qwen3"] {
        let gguf = load(golden("gguf").join(format!("{family}.gguf"))).unwrap();
        assert_same_model(&gguf, &load(golden(family)).unwrap());
        assert_eq!(gguf.dtype, Dtype::F32);
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

/// Loads what cannot be loaded: the exit code and every word of the message must be as told.
fn assert_refused(case: &str, path: &Path, exit_code: u8, words: &[&str]) {
    let Err(error) = load(path) else {
        panic!("{case}: loaded")
    };
    let told = format!("{error} {}", error.hint().unwrap_or_default());
    assert_eq!(error.exit_code(), exit_code, "{case}: {told}");
    for word in words {
        assert!(told.contains(word), "{case}: `{word}` is not in: {told}");
    }
}

#[test]
fn a_directory_that_lies_is_refused_by_name() {
    type Break = fn(&Path);
    fn edit(path: &Path, change: impl Fn(&mut serde_json::Value)) {
        let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
    }
    fn config(dir: &Path, key: &str, value: impl Into<serde_json::Value>) {
        let value = value.into();
        edit(&dir.join("config.json"), |json| json[key] = value.clone());
    }
    fn header(dir: &Path, from: &str, to: &str) {
        let path = dir.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .unwrap();
        bytes.splice(at..at + from.len(), to.bytes());
        fs::write(path, bytes).unwrap();
    }
    fn cut(dir: &Path, name: &str, keep: impl Fn(usize) -> usize) {
        let bytes = fs::read(dir.join(name)).unwrap();
        fs::write(dir.join(name), &bytes[..keep(bytes.len())]).unwrap();
    }
    let cases: &[(&str, Break, u8, &[&str])] = &[
        (
            "no config",
            |d| fs::remove_file(d.join("config.json")).unwrap(),
            2,
            &["config.json"],
        ),
        (
            "no tokenizer",
            |d| fs::remove_file(d.join("tokenizer.json")).unwrap(),
            2,
            &["tokenizer.json"],
        ),
        (
            "no weights",
            |d| fs::remove_file(d.join("model.safetensors")).unwrap(),
            2,
            &["model.safetensors"],
        ),
        (
            "empty config",
            |d| cut(d, "config.json", |_| 0),
            1,
            &["config.json"],
        ),
        (
            "half a config",
            |d| cut(d, "config.json", |n| n / 2),
            1,
            &["config.json"],
        ),
        (
            "half a tokenizer",
            |d| cut(d, "tokenizer.json", |n| n / 2),
            1,
            &["tokenizer.json"],
        ),
        (
            "a config that is a list",
            |d| fs::write(d.join("config.json"), "[1]").unwrap(),
            1,
            &["config.json"],
        ),
        (
            "empty weights",
            |d| cut(d, "model.safetensors", |_| 0),
            1,
            &["model.safetensors"],
        ),
        (
            "truncated header",
            |d| cut(d, "model.safetensors", |_| 100),
            1,
            &["model.safetensors"],
        ),
        (
            "truncated weights",
            |d| cut(d, "model.safetensors", |n| n - 4),
            1,
            &["model.safetensors"],
        ),
        (
            "a tensor of another name",
            |d| header(d, "model.norm.weight", "model.norm.wEight"),
            1,
            &["model.norm.wEight"],
        ),
        (
            "another architecture",
            |d| config(d, "model_type", "gpt2"),
            2,
            &["not supported", "qwen3", "llama"],
        ),
        (
            "another class",
            |d| {
                config(
                    d,
                    "architectures",
                    serde_json::json!(["LlamaForSequenceClassification"]),
                );
            },
            2,
            &["LlamaForSequenceClassification", "mistral"],
        ),
        (
            "another width",
            |d| config(d, "hidden_size", 48),
            1,
            &["shape", "[300, 24]", "[300, 48]"],
        ),
        (
            "a huge width",
            |d| config(d, "hidden_size", 1u64 << 40),
            1,
            &["hidden_size"],
        ),
        (
            "too many layers",
            |d| config(d, "num_hidden_layers", 4000),
            1,
            &["model.layers.2.input_layernorm.weight", "missing"],
        ),
        (
            "too few layers",
            |d| config(d, "num_hidden_layers", 1),
            1,
            &["model.layers.1."],
        ),
        (
            "an untied head",
            |d| config(d, "tie_word_embeddings", false),
            1,
            &["lm_head.weight", "missing"],
        ),
        (
            "yarn",
            |d| {
                config(
                    d,
                    "rope_scaling",
                    serde_json::json!({"rope_type": "yarn", "factor": 4.0}),
                );
            },
            2,
            &["yarn", "llama3"],
        ),
    ];
    for (case, damage, exit_code, words) in cases {
        let dir = copy_of("llama");
        damage(dir.path());
        assert_refused(case, dir.path(), *exit_code, words);
    }

    for name in [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a/b.safetensors",
    ] {
        let dir = copy_of("llama3");
        edit(&dir.path().join("model.safetensors.index.json"), |json| {
            json["weight_map"]["model.norm.weight"] = name.into();
        });
        assert_refused(
            name,
            dir.path(),
            1,
            &["model.norm.weight", "plain file name"],
        );
    }
    let dir = copy_of("llama3");
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert_refused(
        "a shard less",
        dir.path(),
        1,
        &["model-00002-of-00002.safetensors"],
    );
}

#[test]
fn what_is_no_model_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    assert_refused(
        "no such file",
        &dir.path().join("none.gguf"),
        2,
        &["none.gguf", "no such file"],
    );
    assert_refused(
        "no such directory",
        &dir.path().join("none"),
        2,
        &["no such file or directory"],
    );
    assert_refused("an empty directory", dir.path(), 2, &["config.json"]);
    assert_refused(
        "a text",
        &path("notes.txt", b"hello"),
        2,
        &["notes.txt is not a model"],
    );
    assert_refused(
        "an empty gguf",
        &path("empty.gguf", b""),
        1,
        &["empty.gguf"],
    );
    assert_refused(
        "a text called gguf",
        &path("text.gguf", b"hello"),
        1,
        &["does not begin with"],
    );
    assert_refused(
        "a typo",
        Path::new("smolm2-135m"),
        2,
        &["did you mean `smollm2-135m`"],
    );
    assert_refused("no name at all", Path::new(""), 2, &["smollm2-135m"]);
}

/// A GGUF header: counts, then metadata and tensor entries as they are.
fn gguf(version: u32, tensors: u64, metadata: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// A GGUF string.
fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

/// A metadata entry that holds a string.
fn entry(key: &str, value: &str) -> Vec<u8> {
    [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat()
}

/// An entry of the tensor table, of one dimension.
fn tensor(name: &str, len: u64, kind: u32, offset: u64) -> Vec<u8> {
    [
        text(name),
        1u32.to_le_bytes().to_vec(),
        len.to_le_bytes().to_vec(),
        kind.to_le_bytes().to_vec(),
        offset.to_le_bytes().to_vec(),
    ]
    .concat()
}

#[test]
fn a_gguf_that_lies_is_refused_and_nothing_is_allocated_for_it() {
    let huge = u64::MAX;
    let long_array = [
        text("a"),
        9u32.to_le_bytes().to_vec(),
        8u32.to_le_bytes().to_vec(),
        huge.to_le_bytes().to_vec(),
    ]
    .concat();
    let deep_array = [
        text("a"),
        9u32.to_le_bytes().to_vec(),
        9u32.to_le_bytes().to_vec(),
        1u64.to_le_bytes().to_vec(),
    ]
    .concat();
    let long_key = [huge.to_le_bytes().to_vec(), b"abc".to_vec()].concat();
    let twice = [entry("a", "1"), entry("a", "2")].concat();
    let cases: &[(&str, Vec<u8>, u8, &str)] = &[
        ("an old version", gguf(1, 0, 0, b""), 2, "version 1"),
        (
            "big-endian",
            gguf(3u32.swap_bytes(), 0, 0, b""),
            2,
            "little-endian",
        ),
        ("too many tensors", gguf(3, huge, 0, &[0; 64]), 1, "lies"),
        ("too much metadata", gguf(3, 0, huge, &[0; 64]), 1, "lies"),
        (
            "a long key",
            gguf(3, 0, 1, &[long_key, vec![0; 32]].concat()),
            1,
            "lies",
        ),
        ("a long array", gguf(3, 0, 1, &long_array), 1, "lies"),
        (
            "an array of arrays",
            gguf(3, 0, 1, &[deep_array, vec![0; 64]].concat()),
            1,
            "array",
        ),
        ("a key twice", gguf(3, 0, 2, &twice), 1, "twice"),
        (
            "no architecture",
            gguf(3, 0, 0, b""),
            1,
            "general.architecture",
        ),
        (
            "another architecture",
            gguf(3, 0, 1, &entry("general.architecture", "gpt2")),
            2,
            "gpt2",
        ),
        (
            "a long tensor",
            gguf(3, 1, 0, &tensor("t", 1 << 40, 0, 0)),
            1,
            "outside the file",
        ),
        (
            "an overflowing tensor",
            gguf(3, 1, 0, &tensor("t", huge / 2, 0, 0)),
            1,
            "impossible shape",
        ),
        (
            "a far tensor",
            gguf(3, 1, 0, &tensor("t", 1, 0, huge - 31)),
            1,
            "outside the file",
        ),
        (
            "an empty tensor",
            gguf(3, 1, 0, &tensor("t", 0, 0, 0)),
            1,
            "rows of 0",
        ),
        (
            "half a block",
            gguf(3, 1, 0, &tensor("t", 16, 2, 0)),
            1,
            "cannot hold",
        ),
        (
            "an unknown quantisation",
            gguf(3, 1, 0, &tensor("t", 256, 99, 0)),
            2,
            "99",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (case, bytes, exit_code, word) in cases {
        let path = dir.path().join("lie.gguf");
        fs::write(&path, bytes).unwrap();
        assert_refused(
            case,
            &path,
            *exit_code,
            &[word, "lie.gguf"][..if *exit_code == 1 { 2 } else { 1 }],
        );
    }

    let whole = fs::read(golden("gguf/llama.gguf")).unwrap();
    for len in (0..whole.len()).step_by(whole.len() / 40) {
        let path = dir.path().join("truncated.gguf");
        fs::write(&path, &whole[..len]).unwrap();
        assert_refused(
            &format!("{len} bytes of {}", whole.len()),
            &path,
            1,
            &["truncated.gguf"],
        );
    }
}

proptest! {
    // Each case loads a tiny model: enough cases to reach every field of a header over time, few enough for seconds.
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_of_a_gguf_never_panic(changes in prop::collection::vec((0usize..20_000, any::<u8>()), 1..8), cut in 0usize..4) {
        let mut bytes = fs::read(golden("gguf/llama.gguf")).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            if cut == 0 {
                bytes.truncate(at + 1);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("changed.gguf");
        fs::write(&path, bytes).unwrap();
        let _ = load(&path);
    }

    #[test]
    fn changed_bytes_of_a_directory_never_panic(
        file in prop::sample::select(vec!["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
        changes in prop::collection::vec((0usize..4_000, any::<u8>()), 1..4),
        cut in 0usize..4,
    ) {
        let dir = copy_of("llama");
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            if cut == 0 {
                bytes.truncate(at + 1);
            }
        }
        fs::write(&path, bytes).unwrap();
        let _ = load(dir.path());
    }
}

#[test]
fn a_real_gguf_equals_what_transformers_makes_of_it() {
    let (Some(ours), Some(theirs)) = (needs(SMOLLM2), needs(SMOLLM2_HF)) else {
        return;
    };
    let ours = load(ours).unwrap();
    let theirs = load(theirs).unwrap();
    assert_same_model(&ours, &theirs);
    assert_eq!(ours.tokenizer.end_tokens, theirs.tokenizer.end_tokens);
    assert_eq!(
        ours.tokenizer.config_json["chat_template"],
        theirs.tokenizer.config_json["chat_template"]
    );
}

#[test]
fn transformers_loads_what_is_saved_and_finds_the_same_weights_and_tokens() {
    let Some(python) = needs(PYTHON) else { return };
    let mut models: Vec<PathBuf> = FAMILIES.iter().map(|family| golden(family)).collect();
    models.push(golden("gguf/qwen3.gguf"));
    models.extend(needs(SMOLLM2));
    for path in models {
        let model = load(&path).unwrap();
        let saved = tempfile::tempdir().unwrap();
        model.save(saved.path(), model.dtype).unwrap();
        // `transformers` 5 splits as Qwen's own tokenizer does for every qwen, whatever tokenizer.json says; the tiny ones split
        // as GPT-2's.
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

/// The value of an environment variable that a check needs; its absence is told, and the check is left out.
fn needs(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable).map(PathBuf::from);
    if value.is_none() {
        eprintln!("left out: {variable} is not set");
    }
    value
}
