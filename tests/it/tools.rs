//! Tools that tests call. A missing tool fails its tests in CI; elsewhere they are skipped, and the run ends with a list of them.
//!
//! The tests in this file read files that are written for other tools: `TensorBoard` and llama.cpp, packaged for Python.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, Once},
};

use serde_json::Value;
use unforget::{
    engine::Engine,
    generate::{Generator, Request},
    model::{GgufType, Model, TextTokenizer, pull},
};

use crate::{
    cli::{TUNE, run, write_facts},
    model::{golden, load},
};

/// A Python that has `tensorboard` and `xllamacpp`.
const TOOLS: &str = "UNFORGET_TOOLS_PYTHON";
/// `SmolLM2-135M-Instruct`: its name in the registry, or a path.
pub const SMOLLM2: &str = "UNFORGET_SMOLLM2";
/// Gemma 3 270M: `gemma3-270m`, or a path.
pub const GEMMA3: &str = "UNFORGET_GEMMA3";

/// `found`, a tool or file that a test needs. `None` means that the test is skipped.
///
/// # Panics
/// In CI (`CI` is set) when it is missing.
#[track_caller]
pub fn require<T>(found: Option<T>, what: &str) -> Option<T> {
    if found.is_none() {
        assert!(env::var_os("CI").is_none(), "{what} is missing");
        skipped(what);
    }
    found
}

/// The value of an environment variable that a test needs, as for [`require`].
#[track_caller]
pub fn require_variable(name: &str) -> Option<PathBuf> {
    require(
        env::var_os(name).map(PathBuf::from),
        &format!("the environment variable {name}"),
    )
}

/// A Python that has `module`: that of [`TOOLS`], or `python3`; as for [`require`].
#[track_caller]
pub fn python_with(module: &str) -> Option<PathBuf> {
    let python = env::var_os(TOOLS).unwrap_or_else(|| "python3".into());
    let has_module = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .output()
        .is_ok_and(|output| output.status.success());
    require(
        has_module.then(|| python.into()),
        &format!("a Python with {module}"),
    )
}

static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Adds the current test to the list that is printed when the process ends.
#[allow(unsafe_code, reason = "libtest has no hook for the end of a run")]
fn skipped(what: &str) {
    unsafe extern "C" {
        fn atexit(callback: extern "C" fn()) -> i32;
    }
    static AT_EXIT: Once = Once::new();
    // SAFETY: `atexit` is C's own, and the callback neither unwinds nor uses thread-local storage.
    AT_EXIT.call_once(|| assert_eq!(unsafe { atexit(print_skipped) }, 0));
    let thread = std::thread::current();
    let line = format!("{}: {what} is missing", thread.name().unwrap_or("a test"));
    SKIPPED.lock().expect("no test panics here").push(line);
}

extern "C" fn print_skipped() {
    let Ok(skipped) = SKIPPED.lock() else { return };
    let _ = writeln!(
        io::stderr(),
        "\nskipped tests, counted above as passed:\n  {}",
        skipped.join("\n  ")
    );
}

/// What a script of `tests/golden` prints.
pub fn script_output(python: &Path, script: &str, args: &[&Path]) -> String {
    let output = Command::new(python)
        .arg(golden(script))
        .args(args)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tensorboard_reads_the_events_of_a_run() {
    let Some(python) = require_variable(TOOLS) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    write_facts(dir.path());
    let tuned = run(
        dir.path(),
        &[&TUNE[..], &["--set", "measure.tensorboard=true"]].concat(),
    );
    assert!(tuned.status.success());
    let events = script_output(
        &python,
        "load_events.py",
        &[&dir.path().join("run/tensorboard")],
    );
    let events: Value = serde_json::from_str(&events).unwrap();
    let metrics = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    let (mut losses, mut held) = (Vec::new(), Vec::new());
    for row in metrics.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        match row["type"].as_str() {
            Some("step") => {
                losses.push((row["step"].clone(), row["loss"].as_f64().unwrap() as f32));
            }
            Some("eval") => held.push((
                row["step"].clone(),
                row["accuracy"]["held"].as_f64().unwrap() as f32,
            )),
            _ => {}
        }
    }
    assert!(!losses.is_empty());
    for (tag, rows) in [("train/loss", losses), ("eval/held", held)] {
        let read = events[tag].as_array().unwrap();
        let read = read
            .iter()
            .map(|e| (e[0].clone(), e[1].as_f64().unwrap() as f32));
        assert_eq!(read.collect::<Vec<_>>(), rows, "{tag}");
    }
}

/// llama.cpp keeps keys and values in f16, which moves a log-probability by up to a hundredth of a nat.
const TOLERANCE: f64 = 0.03;

/// Prompts of several kinds.
const PROMPTS: [&str; 5] = [
    "Q: Which country is Bergamo located in?\nA:",
    "Q: What is the capital of France?\nA:",
    "Once upon a time in 1999,",
    "fn main() {",
    "naïve café — 12,345",
];

/// Compares the answers of llama.cpp to [`PROMPTS`], and their log-probabilities, with those of `model`. `files` are the GGUF file
/// of the model, and of an adapter that is added to it.
fn llama_cpp_answers_as(model: &Model, files: &[&Path], python: &Path, dir: &Path) {
    let prompts_file = dir.join("prompts.jsonl");
    let rows = PROMPTS.map(|prompt| serde_json::json!({ "prompt": prompt }).to_string() + "\n");
    fs::write(&prompts_file, rows.concat()).unwrap();
    let ids = PROMPTS.map(|prompt| model.tokenizer.encode_prompt(prompt).unwrap());
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, model);
    let mut args = vec![files[0], &prompts_file];
    args.extend(&files[1..]);
    let answers = script_output(python, "load_gguf.py", &args);
    assert_eq!(answers.lines().count(), PROMPTS.len());
    let mut equal = 0;
    for ((line, prompt), text) in answers.lines().zip(ids).zip(PROMPTS) {
        let theirs: Value = serde_json::from_str(line).unwrap();
        let tokens = theirs["tokens"].as_array().unwrap();
        let logprob = |token: &Value| token[1].as_f64().unwrap();
        let ours = generator
            .generate(
                &Request::greedy(&[], std::slice::from_ref(&prompt), tokens.len()),
                |_, _| false,
                &|_| {},
            )
            .unwrap();
        let target: Vec<u32> = tokens
            .iter()
            .map(|t| t[0].as_u64().unwrap() as u32)
            .collect();
        equal += usize::from(ours[0][0].text == theirs["answer"].as_str().unwrap());
        let scored = generator.score(&[(prompt, target)], &|_| {}).unwrap();
        for (token, ours) in tokens.iter().zip(&scored[0]) {
            let apart = (logprob(token) - f64::from(*ours)).abs();
            assert!(apart < TOLERANCE, "{text}: {token} and {ours}");
        }
    }
    // Where two tokens are nearly as likely, f16 may decide.
    assert!(equal + 1 >= PROMPTS.len(), "{equal} answers are equal");
}

#[test]
fn llama_cpp_answers_as_the_exported_model() {
    let (Some(python), Some(spec)) = (require_variable(TOOLS), require_variable(SMOLLM2)) else {
        return;
    };
    let model = load(spec).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    model.save_gguf(&file, GgufType::F32).unwrap();
    llama_cpp_answers_as(&model, &[&file], &python, dir.path());
}

/// All kinds of linear layers, with the rows of q and k that GGUF has in another order, and a scale that llama.cpp computes otherwise.
#[test]
fn llama_cpp_adds_the_exported_adapter_to_its_base() {
    let (Some(python), Some(spec)) = (require_variable(TOOLS), require_variable(SMOLLM2)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("new.tsv"),
        "subject\trelation\tobject\nBergamo\tP17\tNorway\nFrance\tP36\tOslo\n",
    )
    .unwrap();
    let spec = spec.to_str().unwrap();
    let base = load(spec).unwrap();
    let [file, adapter] = ["base.gguf", "adapter/adapter.gguf"].map(|name| dir.path().join(name));
    base.save_gguf(&file, GgufType::F32).unwrap();
    let lora = "train.lora={r=4,alpha=8,variant=\"rslora\",target_modules=\"all-linear\"}";
    let tune = [
        "tune",
        spec,
        "--learn",
        "new.tsv",
        "--out",
        "run",
        "--method",
        "sft",
        "--epochs",
        "6",
        "--lr",
        "3e-3",
        "--set",
        "data.audit=false",
        "--set",
        "measure.behaviour=false",
        "--set",
        lora,
    ];
    for args in [
        &tune[..],
        &[
            "export",
            "run",
            "--to",
            "gguf",
            "--adapter",
            "--out",
            "adapter",
        ],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_unforget"))
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let tuned = load(dir.path().join("run/model")).unwrap();
    assert_ne!(tuned.params.data[..], base.params.data[..]);
    llama_cpp_answers_as(&tuned, &[&file, &adapter], &python, dir.path());
}

/// Texts of mixed scripts that are compared, see `tests/golden/mixed_scripts.py`.
const TEXTS: usize = 10_000;

/// A model of the tiny golden llama with the tokenizer of `spec`, which has embeddings enough.
fn tiny_with_tokenizer(spec: &str, dir: &Path) {
    let tokenizer = TextTokenizer::load(spec).unwrap();
    let tiny = load(golden("llama")).unwrap();
    let (rows, hidden) = (tokenizer.vocab_size(), tiny.config.hidden_size);
    fs::create_dir_all(dir).unwrap();
    let json = tokenizer.inner.to_string(false).unwrap();
    fs::write(dir.join("tokenizer.json"), json).unwrap();
    let config = Value::Object(tokenizer.config_json.clone());
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    let config = fs::read(golden("llama").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["vocab_size"] = rows.into();
    config["eos_token_id"] = tokenizer.eos_token_id.into();
    config["bos_token_id"] = Value::Null;
    fs::write(dir.join("config.json"), config.to_string()).unwrap();

    let weights = fs::read(golden("llama").join("model.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let embedding: Vec<u8> = (0..rows * hidden)
        .flat_map(|i| ((i % 97) as f32 / 97.0 - 0.5).to_le_bytes())
        .collect();
    let tensors = weights.names().into_iter().map(|name| {
        let view = weights.tensor(name).unwrap();
        let view = if name == "model.embed_tokens.weight" {
            let shape = vec![rows, hidden];
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &embedding)
        } else {
            Ok(view)
        };
        (name.to_owned(), view.unwrap())
    });
    let file = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// Compares the ids of a tokenizer with llama.cpp's, for the model's own file and for one that is written here with its tokenizer.
fn llama_cpp_gives_the_ids_of(variable: &str) {
    let (Some(python), Some(spec)) = (require_variable(TOOLS), require_variable(variable)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let count = TEXTS.to_string();
    let texts = script_output(&python, "mixed_scripts.py", &[Path::new(&count)]);
    let texts_file = dir.path().join("texts.jsonl");
    fs::write(&texts_file, &texts).unwrap();

    let spec = spec.to_str().unwrap();
    tiny_with_tokenizer(spec, &dir.path().join("hf"));
    let tiny = load(dir.path().join("hf")).unwrap();
    let written = dir.path().join("written.gguf");
    tiny.save_gguf(&written, GgufType::F16).unwrap();
    let again = load(&written).unwrap();
    let original = pull(spec).unwrap();

    let texts: Vec<String> = texts
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(texts.len(), TEXTS);
    for file in [&original, &written] {
        let ids = script_output(&python, "tokenize_gguf.py", &[file, &texts_file]);
        let ids: Vec<Vec<u32>> = ids
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(ids.len(), TEXTS);
        for (text, theirs) in texts.iter().zip(&ids) {
            for ours in [&tiny, &again] {
                let ours = ours.tokenizer.encode_rendered(text).unwrap();
                assert_eq!(ours, *theirs, "{}: {text:?}", file.display());
            }
        }
    }
}

#[test]
fn llama_cpp_gives_the_ids_of_smollm2s_tokenizer() {
    llama_cpp_gives_the_ids_of(SMOLLM2);
}

#[test]
fn llama_cpp_gives_the_ids_of_gemma3s_tokenizer() {
    llama_cpp_gives_the_ids_of(GEMMA3);
}
