//! Randomly mutated input files: each is read or refused, quickly and without a panic.
//!
//! By default a few hundred of each kind; `UNFORGET_FUZZ=1000000 cargo test --release fuzz` sets the total. The seed of a failing file
//! reproduces it, and the failure message names the copy that is kept.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use unforget::{
    config::Config,
    facts::{self, ReadOptions},
    model::Model,
    progress::Progress,
    prompt::{PromptTemplate, TextNotes, text_examples},
    report,
    train::{self, Options},
};

use crate::{cli::MODEL, model::golden};

/// Maximum time for one file, with a margin for a loaded machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Maximum memory of the process, in bytes.
const MEMORY: u64 = 4 << 30;

/// Reads a file with this content from an existing directory of its own.
type Read = Box<dyn Fn(&Path, &[u8])>;

/// A kind of file and its mutations.
struct FileKind {
    name: &'static str,
    /// Valid files to mutate.
    seeds: Vec<Vec<u8>>,
    /// Words to insert.
    words: &'static [&'static str],
    /// Mutate only this many first bytes; 0 is the whole file.
    head: usize,
    /// Relative cost of one try; expensive kinds are tried less often.
    cost: usize,
    read: Read,
}

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "0",
    "18446744073709551615",
    "\\u0000",
    "\\ud800",
    "[[[[[[[[",
    "{\"a\":",
];

fn kinds(place: &Path) -> Vec<FileKind> {
    let text = |of: &[&str]| of.iter().map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
    let file = |path: PathBuf| fs::read(path).unwrap();
    let in_model = |name: &'static str, words, head| FileKind {
        name,
        seeds: ["llama", "qwen3"]
            .map(|m| file(golden(m).join(name)))
            .to_vec(),
        words,
        head,
        cost: 2,
        read: Box::new(move |dir, bytes| {
            fs::write(dir.join(name), bytes).unwrap();
            let _ = Model::load(dir.to_str().unwrap());
        }),
    };
    let facts_file = |name: &'static str, seeds, words| FileKind {
        name,
        seeds,
        words,
        head: 0,
        cost: 1,
        read: Box::new(move |dir: &Path, bytes: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, bytes).unwrap();
            for skip_bad_rows in [false, true] {
                let options = ReadOptions {
                    skip_bad_rows,
                    ..ReadOptions::default()
                };
                let files = [path.clone()];
                let _ = match facts::is_text_file(&path) {
                    Ok(true) => facts::read_texts(&files, options).map(drop),
                    Ok(false) => facts::read(&files, options).map(drop),
                    Err(error) => Err(error),
                };
            }
        }),
    };
    let run = finished_run(place);
    let of_run = |name: &'static str, costs| {
        let run = run.clone();
        FileKind {
            name,
            seeds: vec![file(run.join(name))],
            words: JSON,
            head: 0,
            cost: costs,
            read: Box::new(move |dir: &Path, bytes: &[u8]| {
                copy_files(&run, dir);
                fs::write(dir.join(name), bytes).unwrap();
                let _ = report::write(&[dir.to_owned()], &dir.join("page.html"), None);
            }),
        }
    };
    let stopped = stopped_run(&run, place);
    let of_checkpoint = |name: &'static str, head| {
        let stopped = stopped.clone();
        FileKind {
            name,
            seeds: vec![file(stopped.join(name))],
            words: JSON,
            head,
            cost: 40,
            read: Box::new(move |dir: &Path, bytes: &[u8]| {
                copy_files(&stopped, dir);
                fs::write(dir.join(name), bytes).unwrap();
                let _ = train::resume(dir, Options::default(), &Progress::quiet());
            }),
        }
    };
    vec![
        FileKind {
            name: "model.gguf",
            seeds: ["llama", "pre-smollm", "qwen2"]
                .map(|m| file(golden("gguf").join(format!("{m}.gguf"))))
                .to_vec(),
            words: &[
                "\0\0\0\0\0\0\0\0",
                "\u{7f}",
                "general.architecture",
                "llama.block_count",
                "tokenizer.ggml.tokens",
            ],
            head: 12_000,
            cost: 2,
            read: Box::new(|dir, bytes| {
                let path = dir.join("model.gguf");
                fs::write(&path, bytes).unwrap();
                let _ = Model::load(path.to_str().unwrap());
            }),
        },
        in_model("model.safetensors", JSON, 4_000),
        in_model("config.json", JSON, 0),
        in_model("tokenizer.json", JSON, 0),
        in_model("tokenizer_config.json", JSON, 0),
        FileKind {
            name: "chat_template.jinja",
            seeds: text(&[
                "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
                "{{ bos_token }}{% set ns = namespace(x=0) %}{% for m in messages[::-1] %}{% set ns.x = ns.x + 1 %}{{ raise_exception('no') if ns.x > 9 }}{{ m.content.split(' ')[0] }}{% endfor %}",
                "{% macro m(x) %}{{ x }}{{ x | tojson }}{% endmacro %}{% for m in messages if m.role != 'system' %}{{ m(m.content) }}{% else %}{{ strftime_now('%Y') }}{% endfor %}",
            ]),
            words: &[
                "{%",
                "%}",
                "{{",
                "}}",
                "for x in range(1000000000)",
                "* 999999999",
                "'a' * 99999999",
                "m(m(",
                "| tojson",
                "[0:-1]",
                "endfor",
                "{% include 'x' %}",
                "{% for x in messages %}",
                "~",
                "**",
                "messages",
                "loop.index",
                "'{:99999}'.format(1)",
                "% (1, 'a')",
                ".replace('', 'xxxxxxxxxxxxxxxx')",
                "| indent(99999)",
                "((((((((((((((((",
                "loop(messages)",
                "recursive",
                "{% generation %}",
                "tools | tojson(indent=9)",
            ],
            head: 0,
            cost: 4,
            read: Box::new(|dir, bytes| {
                fs::write(dir.join("chat_template.jinja"), bytes).unwrap();
                let Ok(model) = Model::load(dir.to_str().unwrap()) else {
                    return;
                };
                if let Ok(template) = PromptTemplate::default().for_model(true, &model.tokenizer) {
                    let _ = template.prompt_text("Which country is Rome located in?");
                }
                let chat = dir.join("chat.jsonl");
                fs::write(&chat, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"a b\"}]}\n").unwrap();
                let read = facts::read_texts(&[chat], ReadOptions::default()).unwrap();
                for chat in &read.texts {
                    let _ = text_examples(&model.tokenizer, chat, &mut TextNotes::default());
                }
            }),
        },
        facts_file(
            "facts.tsv",
            text(&[
                "subject\trelation\tobject\taliases\nRome\tP17\tItaly\tItalia|IT\n\"Oslo\"\tP17\tNorway\t\n",
                "object\tsubject\trelation\tquestion\nItaly\tRome\tX\tWhere?\n",
            ]),
            &[
                "\t",
                "\n",
                "\r\n",
                "\"",
                "|",
                "\u{feff}",
                "\0",
                "P17",
                "subject",
                "paraphrases",
                "split",
            ],
        ),
        facts_file(
            "facts.csv",
            text(&[
                "subject,relation,object,paraphrases\nRome,P17,Italy,\"Where is Rome?|Rome is in\"\n\"A,\"\"B\"\"\",P36,\"C\nD\",\n",
            ]),
            &[
                ",", "\n", "\"", "\"\"", ";", "\u{feff}", "\0", "P17", "subject",
            ],
        ),
        facts_file(
            "facts.jsonl",
            text(&[
                "{\"subject\":\"Rome\",\"relation\":\"P17\",\"object\":\"Italy\",\"aliases\":[\"IT\"],\"paraphrases\":[\"Where?\"]}\n",
                "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yes\"}]}\n{\"messages\":[{\"role\":\"assistant\",\"content\":\"\u{202e}\"}]}\n",
                "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"text\":\"c\"}\n",
                "{\"instruction\":\"a\",\"input\":\"b\",\"output\":\"c\",\"history\":[[\"d\",\"e\"]]}\n",
                "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}]}\n",
                "{\"prompt\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}],\"completion\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\"}}],\"weight\":1}],\"tools\":\"[{}]\"}\n",
                "{\"question\":\"Who?\",\"answer\":[\"He\"],\"aliases\":\"['a', \\\"b\\\"]\",\"object\":1.50}\n",
            ]),
            JSON,
        ),
        facts_file(
            "facts.parquet",
            ["facts", "chats"]
                .map(|name| file(golden("parquet").join(format!("{name}.parquet"))))
                .to_vec(),
            &["PAR1", "\0\0\0\0", "\u{7f}\u{7f}", "subject", "messages"],
        ),
        facts_file(
            "P17.dev.json",
            text(&[
                "[{\"question\":\"Which country is Rome located in?\",\"answers\":[\"Italy\"]},{\"question\":\"Which country is Oslo located in?\",\"answers\":[\"Norway\",\"NO\"]}]",
            ]),
            JSON,
        ),
        FileKind {
            name: "experiment.toml",
            seeds: vec![
                Config::default().to_toml().into_bytes(),
                file(run.join("config.toml")),
            ],
            words: &[
                "=",
                "[",
                "]",
                "{",
                "}",
                "\n[train]\n",
                "inf",
                "nan",
                "-1",
                "\"",
                "'''",
                "1979-05-27",
                "0x",
                "learning_rate",
                ".",
                "[[",
            ],
            head: 0,
            cost: 1,
            read: Box::new(|dir, bytes| {
                let path = dir.join("experiment.toml");
                fs::write(&path, bytes).unwrap();
                if let Ok(config) = Config::read(&path, &[]) {
                    let _ = config.validate();
                }
            }),
        },
        of_run("result.json", 4),
        of_run("facts.jsonl", 4),
        of_run("metrics.jsonl", 4),
        of_run("config.toml", 4),
        of_checkpoint("splits.jsonl", 0),
        of_checkpoint("checkpoints/step-0000004/state.json", 0),
        of_checkpoint("checkpoints/step-0000004/weights.safetensors", 2_000),
    ]
}

/// A finished run of a tiny model with its checkpoints.
fn finished_run(place: &Path) -> PathBuf {
    let facts = |name: &str, subjects: &[&str]| {
        let path = place.join(name);
        let rows = subjects.iter().map(|s| format!("{s}\tP17\tItaly\n"));
        let text = format!("subject\trelation\tobject\n{}", rows.collect::<String>());
        fs::write(&path, text).unwrap();
        path
    };
    let mut config = Config {
        model: MODEL.to_owned(),
        out: place.join("run"),
        ..Config::default()
    };
    config.data.audit = None;
    config.data.learn = vec![facts("learn.tsv", &["Rome", "Bari"]).into()];
    config.data.keep = vec![facts("keep.tsv", &["Pisa", "Asti"]).into()];
    config.data.held = vec![facts("held.tsv", &["Como"])];
    config.train.num_epochs = 3;
    config.train.batch_size = 2;
    config.train.save_every = Some(1);
    let options = Options {
        keep_checkpoints: true,
        ..Options::default()
    };
    train::tune(&config, options, &Progress::quiet()).unwrap();
    config.out
}

/// The same run before its last epoch.
fn stopped_run(run: &Path, place: &Path) -> PathBuf {
    let stopped = place.join("stopped");
    fs::create_dir(&stopped).unwrap();
    copy_files(run, &stopped);
    for name in ["result.json", "facts.jsonl"] {
        fs::remove_file(stopped.join(name)).unwrap();
    }
    let mut steps: Vec<_> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("step-"))
        .collect();
    steps.sort_unstable();
    let to = stopped.join("checkpoints/step-0000004");
    fs::create_dir_all(&to).unwrap();
    copy_files(&run.join("checkpoints").join(&steps[0]), &to);
    fs::copy(
        run.join("checkpoints/snapshot.safetensors"),
        stopped.join("checkpoints/snapshot.safetensors"),
    )
    .unwrap();
    stopped
}

/// Copies a run directory without its model.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_file() {
            fs::copy(&path, to).unwrap();
        } else if path.ends_with("checkpoints")
            || path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("step-")
        {
            fs::create_dir_all(&to).unwrap();
            copy_files(&path, &to);
        }
    }
}

/// The mutated file number `number` of a kind.
fn mutate(kind: &FileKind, number: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(number);
    let mut bytes = kind.seeds.choose(&mut rng).unwrap().clone();
    for _ in 0..1 << rng.random_range(0..5) {
        let head = if kind.head == 0 || rng.random_ratio(1, 20) {
            bytes.len()
        } else {
            kind.head.min(bytes.len())
        };
        let at = rng.random_range(0..=head);
        let end = (at + (1 << rng.random_range(0..8))).min(bytes.len());
        match rng.random_range(0..9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = rng.random(),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let word = kind.words.choose(&mut rng).unwrap();
                bytes.splice(at..at, word.bytes());
            }
            4 => {
                let word = kind.words.choose(&mut rng).unwrap();
                bytes.splice(at..(at + word.len()).min(bytes.len()), word.bytes());
            }
            5 => {
                let part = bytes[at..end].to_vec();
                let times = 1 << rng.random_range(0..10);
                bytes.splice(at..at, part.repeat(times));
            }
            6 => {
                let other = kind.seeds.choose(&mut rng).unwrap();
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            7 if at + 8 <= bytes.len() => {
                let number = *[
                    0,
                    1,
                    u64::MAX,
                    u64::MAX / 2,
                    1 << 32,
                    1 << 40,
                    u64::from(u32::MAX),
                ]
                .choose(&mut rng)
                .unwrap();
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            _ => bytes.truncate(at),
        }
        bytes.truncate(1 << 22);
    }
    bytes
}

#[test]
fn mutated_files_are_read_or_refused() {
    let total = std::env::var("UNFORGET_FUZZ").ok();
    let total = total.map(|n| n.parse::<u64>().expect("UNFORGET_FUZZ is a number"));
    let place = tempfile::tempdir().unwrap();
    let kinds = kinds(place.path());
    let weights: f64 = kinds.iter().map(|kind| 1.0 / kind.cost as f64).sum();
    let all = total.map_or(4_000.0, |n| n as f64);
    let (mut tried, mut wrong) = (0, Vec::new());
    for kind in &kinds {
        let tries = (all / weights / kind.cost as f64).ceil() as u64;
        let base = place.path().join("base");
        fs::create_dir(&base).unwrap();
        copy_files(&golden("llama"), &base);
        for number in 0..tries {
            let dir = place.path().join("try");
            fs::create_dir(&dir).unwrap();
            copy_files(&base, &dir);
            let bytes = mutate(kind, number);
            let started = Instant::now();
            let panicked = catch_unwind(AssertUnwindSafe(|| (kind.read)(&dir, &bytes))).is_err();
            let took = started.elapsed();
            if panicked || took > LIMIT {
                let kept = Path::new(env!("CARGO_TARGET_TMPDIR"))
                    .join(format!("fuzz-{number}-{}", kind.name.replace('/', "-")));
                fs::write(&kept, &bytes).unwrap();
                let how = if panicked { "panicked" } else { "took long" };
                wrong.push(format!("{} {number} {how}: {}", kind.name, kept.display()));
            }
            fs::remove_dir_all(&dir).unwrap();
            tried += 1;
        }
        fs::remove_dir_all(&base).unwrap();
    }
    eprintln!("{tried} files tried, of {} kinds", kinds.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let memory = unforget::system::peak_memory_bytes();
    assert!(memory < MEMORY, "{memory} bytes");
}
