//! Reading, checking and resolving configs.

use super::{
    key_names::{FOREIGN, FOREIGN_VALUES, KEYS, ONLY_IN_SECTION, Ours},
    resolve::JobRows,
    *,
};
use crate::Result;

fn read(text: &str, sets: &[&str]) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("exp.toml");
    std::fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
    Config::read(&path, &sets)
}

/// Message and hint, without the temporary directory.
fn refused(text: &str, sets: &[&str]) -> String {
    let error = read(text, sets).expect_err(text);
    assert_eq!(error.exit_code(), 2);
    let mut message = format!("{error} | {}", error.hint().unwrap_or("-"));
    let dir = std::env::temp_dir().display().to_string();
    while let Some(start) = message.find(&dir) {
        let end = start + message[start..].find("exp.toml").unwrap();
        message.replace_range(start..end, "");
    }
    message
}

/// A model of 30 layers and 135 million parameters.
const SMOLLM2: ModelSize = ModelSize {
    num_hidden_layers: 30,
    parameters: 134_515_008,
};

fn resolved(text: &str, sets: &[&str]) -> Config {
    read(text, sets).unwrap().resolve(SMOLLM2).config
}

const DOCUMENTED: &str = r#"
model = "smollm2-135m"
out = "runs/p17"
seed = 0
device = "auto"
[data]
audit = { num_prompts = 20, shots = 3, samples = 16 }
min_highly_known = 0.0
match = "exact"
[method]
goal = "facts"
kind = "auto"
lambda = 1.0
temperature = 0.5
snapshot_epochs = 1
vocab_subset = "full"
teacher = "auto"
reduction = "example"
exclude_target = false
[train]
trainable = "all"
num_epochs = 20
batch_size = 64
learning_rate = 5e-5
lr_scheduler = "constant"
warmup_steps = 0
betas = [0.9, 0.999]
eps = 1e-8
weight_decay = 0.0
max_grad_norm = 1.0
gradient_accumulation_steps = 1
gradient_checkpointing = false
optimizer_in_backward = false
shuffle = true
max_length = 2048
[measure]
drift = false
paraphrase = true
behaviour = true
every = 1
max_facts = 1000
tensorboard = false
"#;

#[test]
fn the_documented_file_is_the_default() {
    assert_eq!(read(DOCUMENTED, &[]).unwrap(), Config::default());
}

#[test]
fn a_typo_names_file_line_section_and_the_nearest_key() {
    assert_eq!(
        refused(
            "model = 'm'\n\n[method]\nlambda = 1\ntemprature = 0.5\n",
            &[]
        ),
        "`exp.toml` line 5: unknown key `temprature` in [method] | did you mean `temperature`?"
    );
    assert_eq!(
        refused("[data]\naudit = { num_promts = 3 }", &[]),
        "`exp.toml` line 2: unknown key `num_promts` in [data.audit] | did you mean `num_prompts`?"
    );
    assert_eq!(
        refused("sede = 3", &[]),
        "`exp.toml` line 1: unknown key `sede` at the top level | did you mean `seed`?"
    );
    assert_eq!(
        refused("[train]\nlrr = 3", &[]),
        "`exp.toml` line 2: unknown key `lrr` in [train] | did you mean `learning_rate`?"
    );
    assert_eq!(
        refused("[train]\nlora = { foo = 3 }", &[]),
        "`exp.toml` line 2: unknown key `foo` in [train.lora] | known keys: r, alpha, target_modules, variant, dropout, rank_pattern, alpha_pattern"
    );
    assert_eq!(
        refused("[method]\nkind = 'sfft'", &[]),
        "`exp.toml` line 2: `method.kind` is `sfft` | did you mean `sft`?"
    );
    assert_eq!(
        refused("[train]\nlr_scheduler = 'cubic'", &[]),
        "`exp.toml` line 2: `train.lr_scheduler` is `cubic` | it is one of constant, cosine, linear"
    );
}

#[test]
fn a_key_in_the_wrong_section_names_the_right_one() {
    for (text, hint) in [
        (
            "learning_rate = 1e-4",
            "`learning_rate` is a key of [train]",
        ),
        ("[data]\nnum_epochs = 3", "`num_epochs` is a key of [train]"),
        ("[train]\nlambda = 0.5", "`lambda` is a key of [method]"),
        ("[train]\nr = 8", "`r` is a key of [train.lora]"),
        (
            "[train]\ntarget_modules = ['q_proj']",
            "`target_modules` is a key of [train.lora]",
        ),
        (
            "[method]\nratio = 0.2",
            "`ratio` is a key of [method.replay] and [method.decoys]",
        ),
        (
            "[train]\nseed = 3",
            "`seed` belongs at the top level, before the first section",
        ),
        (
            "[measure]\nmodel = 'm'",
            "`model` belongs at the top level, before the first section",
        ),
    ] {
        let message = refused(text, &[]);
        assert!(message.ends_with(hint), "{text}: {message}");
    }
}

/// A file with the key in a section (dotted; empty: at the top level), and the key's line.
fn with_key(section: &str, key: &str) -> (String, usize) {
    match section {
        "" => (format!("{key} = 1\n"), 1),
        _ => (format!("[{section}]\n{key} = 1\n"), 2),
    }
}

#[test]
fn old_and_foreign_keys_name_ours() {
    for (names, ours) in FOREIGN {
        let (section, expected) = match ours {
            Ours::Key(full) => {
                assert!(KEYS.iter().any(|key| key == full), "{full} is a key");
                full.rsplit_once('.').unwrap_or(("", full))
            }
            Ours::Nothing(reason) => ("train", *reason),
        };
        for name in *names {
            let full = [section, name].join(".");
            assert!(!KEYS.contains(&full), "{full} is a key of ours");
            let (text, line) = with_key(section, name);
            let message = refused(&text, &[]);
            let place = match section {
                "" => "at the top level".to_owned(),
                _ => format!("in [{section}]"),
            };
            let unknown = format!("`exp.toml` line {line}: unknown key `{name}` {place}");
            assert!(message.contains(&unknown), "{name}: {message}");
            assert!(message.contains(expected), "{name}: {message}");

            // Without a section, as the configs of other programs are, and from the command line.
            if KEYS.contains(&(*name).to_owned()) || ONLY_IN_SECTION.contains(name) {
                continue;
            }
            let messages = [
                refused(&with_key("", name).0, &[]),
                refused("seed = 1", &[&format!("{name}=1")]),
            ];
            for message in messages {
                assert!(
                    message.contains(&format!("unknown key `{name}` at the top level")),
                    "{message}"
                );
                let is_key_elsewhere = KEYS.iter().any(|key| key.ends_with(&format!(".{name}")));
                let is_ambiguous = FOREIGN.iter().filter(|(all, _)| all.contains(name)).count() > 1;
                assert!(
                    is_key_elsewhere || is_ambiguous || message.contains(expected),
                    "{name}: {message}"
                );
            }
        }
    }
}

#[test]
fn old_and_foreign_values_name_ours() {
    for (key, foreign, ours) in FOREIGN_VALUES {
        let message = refused("seed = 1", &[&format!("{key}={foreign}")]);
        assert_eq!(
            message,
            format!("`--set {key}={foreign}`: `{key}` is `{foreign}` | did you mean `{ours}`?")
        );
        let inline = key.replacen('.', "]\n", 1);
        let text = format!("[{inline} = '{foreign}'");
        let message = refused(&text, &[]);
        assert!(
            message.starts_with("`exp.toml` line 2: ") && message.ends_with(&format!("`{ours}`?")),
            "{message}"
        );
        assert!(read("seed = 1", &[&format!("{key}={ours}")]).is_ok());
    }
}

#[test]
fn a_config_of_another_program_is_answered_key_by_key() {
    insta::assert_snapshot!(
        refused(
            "base_model = 'm'\nsequence_len = 512\nmicro_batch_size = 2\nsample_packing = true\nlora_r = 8\nseed = 1\n",
            &[]
        ),
        @r#"
    `exp.toml` has 5 errors
      `exp.toml` line 1: unknown key `base_model` at the top level (did you mean `model`?)
      `exp.toml` line 2: unknown key `sequence_len` at the top level (did you mean `train.max_length`?)
      `exp.toml` line 3: unknown key `micro_batch_size` at the top level (did you mean `train.batch_size`?)
      `exp.toml` line 4: unknown key `sample_packing` at the top level (there is no such setting: batches are computed without padding, and rows are never joined: there is nothing to set)
      `exp.toml` line 5: unknown key `lora_r` at the top level (did you mean `train.lora.r`?) | -
    "#
    );
}

#[test]
fn keys_of_other_programs_that_are_near_to_another_of_ours_are_answered_by_their_meaning() {
    for (text, hint) in [
        (
            "template = 'llama3'",
            "`data.prompt` is the prompt of facts",
        ),
        (
            "push_to_hub = true",
            "`unforget export --push OWNER/NAME` uploads a model",
        ),
        ("[training]\nseed = 1", "did you mean `train`?"),
        ("[data]\ntrain = ['a.tsv']", "did you mean `learn`?"),
        ("wandb_project = 'p'", "files of TensorBoard"),
        ("[method]\nname = 'sft'", "did you mean `kind`?"),
        ("lisa = true", "`train.trainable` names them"),
        ("[train]\nnum_epochs = 3.0", "0 or more, found 3.0 | -"),
    ] {
        let message = refused(text, &[]);
        assert!(message.ends_with(hint), "{text}: {message}");
    }
    let flag = |flag| hint_for_flag(flag).unwrap_or_default();
    assert_eq!(flag("--lora"), "`--lora-r R`");
    assert_eq!(
        ["--data", "--train", "--dataset"].map(flag),
        ["`--learn FACTS`"; 3]
    );
    assert_eq!(flag("--batch_size"), "`--batch-size N`");
    assert!(flag("--model").starts_with("the model comes first"));
    assert_eq!(flag("--measure"), "");
}

#[test]
fn a_file_may_have_a_weight_and_is_a_path_without_one() {
    let text = "[data]\nlearn = ['a.tsv', { path = 'b.jsonl', weight = 2 }, { path = 'c.jsonl' }]\nkeep = [{ path = 'd.tsv', weight = 0.5 }]";
    let config = read(text, &[]).expect("a good config");
    let weights: Vec<f64> = config.data.learn.iter().map(|f| f.weight.into()).collect();
    assert_eq!(weights, [1.0, 2.0, 1.0]);
    let written = config.to_toml();
    assert!(
        written.contains("keep = [{ path = \"d.tsv\", weight = 0.5 }]")
            || written.contains("[[data.keep]]"),
        "{written}"
    );
    assert_eq!(parse(&written).data, config.data);
    let plain = read(
        "[data]\nlearn = ['a.tsv', { path = 'b.tsv', weight = 1.0 }]",
        &[],
    );
    let plain = plain.expect("a good config").to_toml();
    assert!(plain.contains("learn = [\"a.tsv\", \"b.tsv\"]"), "{plain}");

    for (learn, expected) in [
        (
            "{ path = 'a.tsv', weight = 0 }",
            "`data.learn.weight`: a weight is a number from 0.000001 to 1000000, not 0 | -",
        ),
        (
            "{ path = 'a.tsv', weight = nan }",
            "`data.learn.weight`: a weight is a number from 0.000001 to 1000000, not NaN | -",
        ),
        (
            "{ path = 'a.tsv', weight = 'x' }",
            "`data.learn.weight`: expected a number, found \"x\" | -",
        ),
        (
            "{ path = 'a.tsv', wieght = 2 }",
            "unknown key `wieght` in [data.learn] | did you mean `weight`?",
        ),
        (
            "{ path = 'a.tsv', times = 2 }",
            "unknown key `times` in [data.learn] | known keys: path, weight",
        ),
        ("{ weight = 2 }", "`data.learn` needs the key `path` | -"),
        (
            "3",
            "`data.learn`: expected a path or `{ path = \"FILE\", weight = 2.0 }`, found 3 | -",
        ),
        (
            "'a.tsv', { path = 'a.tsv', weight = 2 }",
            "`data.learn` names `a.tsv` twice, with two weights | -",
        ),
    ] {
        let message = refused(&format!("[data]\nlearn = [{learn}]"), &[]);
        assert_eq!(message, format!("`exp.toml` line 2: {expected}"));
    }
    // The other errors of the file are reported as well.
    let both = refused(
        "[data]\nlearn = [{ wieght = 2 }]\n[train]\nnum_epochs = -3",
        &[],
    );
    assert!(
        both.contains("has 2 errors") && both.contains("wieght") && both.contains("num_epochs"),
        "{both}"
    );
}

#[test]
fn a_wrong_type_names_the_key() {
    for (text, message) in [
        (
            "[train]\nlearning_rate = 'fast'",
            "`train.learning_rate`: expected a number, found \"fast\"",
        ),
        (
            "[train]\nnum_epochs = -3",
            "`train.num_epochs`: expected a whole number, 0 or more, found -3",
        ),
        (
            "[train]\nnum_epochs = 1.5",
            "`train.num_epochs`: expected a whole number, 0 or more, found 1.5",
        ),
        (
            "[data]\naudit = 3",
            "`data.audit`: expected `false` or a table, found 3",
        ),
        (
            "[train]\ntrainable = 3",
            "`train.trainable`: expected a string or a list of strings, found 3",
        ),
        (
            "[train]\ntrainable = ['q', 3]",
            "`train.trainable`: expected a string, found 3",
        ),
        (
            "[train]\nbetas = [0.9]",
            "`train.betas`: expected a list of 2, found a list of 1",
        ),
        (
            "[train]\nshuffle = 'yes'",
            "`train.shuffle`: expected `true` or `false`, found \"yes\"",
        ),
        (
            "[measure]\nbehaviour = 3",
            "`measure.behaviour`: expected `true`, `false` or `every`, found 3",
        ),
        (
            "[method]\nvocab_subset = 'top'",
            "`method.vocab_subset`: expected one of full, top, random, found \"top\"",
        ),
        (
            "[method]\nvocab_subset = { top = 'all' }",
            "`method.vocab_subset.top`: expected a whole number, 0 or more, found \"all\"",
        ),
        (
            "train = 2020-01-01",
            "`train`: expected a table, found a date",
        ),
    ] {
        let line = text.lines().count();
        assert_eq!(
            refused(text, &[]),
            format!("`exp.toml` line {line}: {message} | -")
        );
    }
}

#[test]
fn all_errors_are_reported_at_once_with_their_places() {
    insta::assert_snapshot!(
        refused(
            "[train]\nlearning_rate = -1.0\nnum_epochs = 0\nbetas = [0.9, 1.0]\n[method]\nkind = 'sft'\ntemperature = 0\n",
            &["train.max_grad_norm=nan"]
        ),
        @r#"
    `exp.toml` has 5 errors
      `exp.toml` line 7: `method.temperature` must be above 0, not 0
      `exp.toml` line 2: `train.learning_rate` must be above 0 and at most 1, not -1
      `exp.toml` line 4: `train.betas` must each be 0 or more and below 1, not [0.9, 1.0]
      `--set train.max_grad_norm=nan`: `train.max_grad_norm` must be 0 or more, not NaN
      `exp.toml` line 3: `train.num_epochs` must be at least 1 | -
    "#
    );
    insta::assert_snapshot!(
        refused("[train]\nlr = -1.0\nnum_epochs = 'many'\n[method]\nteacher = 'live'\n", &[]),
        @r#"
    `exp.toml` has 3 errors
      `exp.toml` line 2: unknown key `lr` in [train] (did you mean `learning_rate`?)
      `exp.toml` line 3: `train.num_epochs`: expected a whole number, 0 or more, found "many"
      `exp.toml` line 5: `method.teacher` is `live` (did you mean `online`?) | -
    "#
    );
}

#[test]
fn text_that_is_not_toml_is_refused() {
    assert!(refused("model = \n", &[]).starts_with("`exp.toml` line 1: not TOML:"));
    assert!(refused("seed = 1\nseed = 2\n", &[]).starts_with("`exp.toml` line 2:"));
    assert_eq!(
        refused(" \n", &[]),
        "`exp.toml` is empty | an experiment names at least a `model` and an `out` directory"
    );
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Config::read(dir.path(), &[]).unwrap_err().exit_code(), 2);
    let binary = dir.path().join("binary.toml");
    std::fs::write(&binary, b"seed = 1\nmodel = \"\xff\"").unwrap();
    let error = Config::read(&binary, &[]).unwrap_err().to_string();
    assert!(error.ends_with("line 2: not UTF-8 text"), "{error}");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_fine() {
    let config = read("\u{feff}seed = 7\r\n[method]\r\nkind = \"sft\"\r\n", &[]).unwrap();
    assert_eq!((config.seed, config.method.kind), (7, MethodKind::Sft));
}

#[test]
fn sets_take_toml_values_and_bare_strings() {
    let sets = [
        "train.learning_rate=1e-4",
        "method.kind = sft",
        "data.learn=['a.tsv']",
        "data.audit=false",
        "train.early_stopping.accuracy=0.9",
    ];
    let config = read("seed = 1", &sets).unwrap();
    assert_eq!(config.train.learning_rate, 1e-4);
    assert_eq!(config.method.kind, MethodKind::Sft);
    assert_eq!(config.data.learn, [DataFile::from("a.tsv")]);
    assert_eq!(config.data.audit, None);
    assert_eq!(config.train.early_stopping.unwrap().accuracy, Some(0.9));
    for (set, message) in [
        (
            "train.lr=1",
            "`--set train.lr=1`: unknown key `lr` in [train] | did you mean `learning_rate`?",
        ),
        (
            "trian.lr=1",
            "`--set trian.lr=1`: unknown key `trian` at the top level | did you mean `train`?",
        ),
        ("seed.x=1", "`--set seed.x=1`: `seed` is not a section | -"),
        (
            "seed",
            "`--set seed` has no `=` | write it as `--set train.learning_rate=5e-5`",
        ),
        (
            "train.learning_rate=7",
            "`--set train.learning_rate=7`: `train.learning_rate` must be above 0 and at most 1, not 7 | -",
        ),
    ] {
        assert_eq!(refused("seed = 1", &[set]), message);
    }
}

fn parse(text: &str) -> Config {
    read(text, &[]).unwrap()
}

#[test]
fn the_resolved_config_reads_back_the_same() {
    let mut config = Config::default();
    config.data.audit = None;
    config.data.learn = vec!["new.tsv".into()];
    config.train.trainable = vec!["q".into(), "model.layers.*.mlp.*".into()];
    config.train.early_stopping = Some(EarlyStoppingConfig {
        accuracy: Some(0.99),
        patience: None,
    });
    assert_eq!(parse(&config.to_toml()), config);
    let default = Config::default();
    assert_eq!(parse(&default.to_toml()), default);
}

/// What a user set, also to a default's value, is never changed by a preset; wherever it was set.
#[test]
fn a_key_set_to_its_defaults_value_is_left_alone() {
    let auto = "[method]\nkind = 'auto'\n";
    let left = resolved(auto, &[]);
    assert_eq!(left.train.learning_rate, 4e-4);
    assert_eq!(left.train.trainable, ["ffn@0-9"]);

    let in_file = format!("{auto}[train]\nlearning_rate = 5e-5\ntrainable = 'all'\n");
    let by_set = ["train.learning_rate=5e-5", "train.trainable=all"];
    let sets = by_set.map(str::to_owned);
    let in_code = parse(auto).with_sets(&sets).unwrap();
    for config in [
        resolved(&in_file, &[]),
        resolved(auto, &by_set),
        in_code.resolve(SMOLLM2).config,
    ] {
        assert_eq!(config.train.learning_rate, 5e-5);
        assert_eq!(config.train.trainable, ["all"]);
        assert_eq!(config.train.ema_decay, Some(0.95), "left to the preset");
    }
    let task = resolved("[method]\ngoal = 'task'\n", &["train.trainable=all"]);
    assert_eq!(task.train.trainable, ["all"]);
    assert_eq!(task.method.kind, MethodKind::Sft);
    let task = resolved("[method]\ngoal = 'task'\nkind = 'self-distill'\n", &[]);
    assert_eq!(task.method.kind, MethodKind::SelfDistill);
}

#[test]
fn auto_is_replaced_by_what_it_stands_for() {
    let config = resolved("[method]\nkind = 'auto'\n", &[]);
    assert_eq!(config.method.kind, MethodKind::Sft);
    let decoys = DecoysConfig {
        ratio: 0.3,
        pool_ratio: Some(2.0),
        strength: 4.0,
        subjects: DecoySubjects::Sampled,
    };
    assert_eq!(config.method.decoys, Some(decoys));
    assert_eq!(config.train.ema_decay, Some(0.95));
    assert_eq!(
        config.train.early_stopping.and_then(|stop| stop.accuracy),
        Some(0.99)
    );
    assert_eq!(config.train.trainable, ["ffn@0-9"]);
    assert!(!config.to_toml().contains("auto"));
    assert!(config.validate().is_ok(), "a config like any other");

    // It resolves to itself, in memory and from its file, for any model.
    let other = ModelSize {
        num_hidden_layers: 3,
        parameters: 7_000_000_000,
    };
    assert_eq!(config.resolve(other).config, config);
    assert_eq!(parse(&config.to_toml()).resolve(other).config, config);

    // A value of one's own lies over the preset, also inside of its tables.
    let own = resolved("[method]\nkind = 'auto'\ndecoys.strength = 2.0", &[]);
    assert_eq!(
        own.method.decoys,
        Some(DecoysConfig {
            strength: 2.0,
            ..decoys
        })
    );
    // A table that code gives is one value.
    let mut own = Config::default();
    own.method.kind = MethodKind::Auto;
    own.method.decoys = Some(DecoysConfig::default());
    own.train.ema_decay = Some(0.5);
    let own = own.resolve(SMOLLM2).config;
    assert_eq!(own.method.decoys, Some(DecoysConfig::default()));
    assert_eq!(own.train.ema_decay, Some(0.5));
    assert_eq!(own.method.kind, MethodKind::Sft);

    let adapters = resolved("[method]\nkind = 'auto'\n[train]\nlora = {}", &[]);
    assert_eq!(adapters.train.trainable, ["all"]);
    assert_eq!(adapters.train.lora, Some(LoraConfig::default()));
}

#[test]
fn auto_is_self_distillation_where_gradients_are_not_kept() {
    let resolved = parse("[train]\noptimizer_in_backward = true").resolve(SMOLLM2);
    assert_eq!(resolved.config.method.kind, MethodKind::SelfDistill);
    assert_eq!(resolved.config.train.trainable, ["all"]);
    let [note] = &resolved.notes[..] else {
        panic!("one note: {:?}", resolved.notes);
    };
    assert!(note.contains("`train.optimizer_in_backward`"), "{note}");
}

#[test]
fn other_methods_keep_their_settings() {
    for text in [
        "[method]\nkind = 'sft'\n",
        "[method]\nkind = 'l2'\nlambda = 0.1\n[train]\nlora = { r = 4 }\n",
    ] {
        let config = parse(text);
        let resolved = config.resolve(SMOLLM2);
        assert_eq!(resolved.config.train, config.train);
        let mut method = config.method;
        method.teacher = TeacherMode::Hidden;
        assert_eq!(resolved.config.method, method);
        assert!(resolved.notes.is_empty());
    }
}

#[test]
fn the_teacher_and_the_device_are_chosen() {
    let config = resolved("seed = 1", &[]);
    assert_eq!(config.method.teacher, TeacherMode::Hidden);
    assert_eq!(config.device, Device::Cpu);
    let config = resolved("[method]\nvocab_subset = { top = 76 }", &[]);
    assert_eq!(config.method.teacher, TeacherMode::Topk);
    let config = resolved("[method]\nteacher = 'online'", &[]);
    assert_eq!(config.method.teacher, TeacherMode::Online);
    if cfg!(feature = "gpu") {
        assert_eq!(resolved("device = 'gpu:1'", &[]).device, Device::Gpu(1));
    } else {
        let message = refused("device = 'gpu:1'", &[]);
        assert!(message.contains("line 1: `device` is `gpu:1`: this program was built without"));
    }
    assert!(refused("device = 'tpu'", &[]).contains("expected cpu, gpu, gpu:N or auto"));
}

#[test]
fn more_snapshot_epochs_than_there_are_are_reduced_with_a_note() {
    let config = parse("[method]\nsnapshot_epochs = 7\n[train]\nnum_epochs = 3");
    let resolved = config.resolve(SMOLLM2);
    assert_eq!(resolved.config.method.snapshot_epochs, 2);
    insta::assert_snapshot!(resolved.notes.join("\n"), @"`method.snapshot_epochs` is reduced from 7 to 2: they are part of the 3 of `train.num_epochs`");
    let one = parse("[train]\nnum_epochs = 1").resolve(SMOLLM2);
    assert_eq!(one.config.method.snapshot_epochs, 0);
    let sft = parse("[method]\nkind = 'sft'\n[train]\nnum_epochs = 1").resolve(SMOLLM2);
    assert_eq!(sft.config.method.snapshot_epochs, 1, "ignored");
    assert!(sft.notes.is_empty());
}

/// Table 3 has models of 1.5 billion parameters, appendix B of 7 and 8 billion.
#[test]
fn a_task_is_learned_by_attention_or_in_a_large_model_by_one_projection() {
    let config = parse("[method]\ngoal = 'task'");
    for (parameters, group) in [
        (135_000_000, "attn"),
        (1_500_000_000, "attn"),
        (7_000_000_000, "k"),
    ] {
        let resolved = config.resolve(ModelSize {
            parameters,
            ..SMOLLM2
        });
        assert_eq!(resolved.config.train.trainable, [group]);
        assert_eq!(resolved.config.method.kind, MethodKind::Sft);
        let note = format!("the goal is the task and not its facts: only `{group}` is trained");
        assert_eq!(resolved.notes, [note]);
    }
}

/// A step's rows once wrapped to 0: 2^32 rows times 2^32 batches.
#[test]
fn rows_of_a_step_that_overflow_are_refused() {
    let message = refused(
        "[train]\nbatch_size = 4294967296\ngradient_accumulation_steps = 4294967296\n",
        &[],
    );
    assert!(
        message.starts_with("`exp.toml` line 2: `train.batch_size` times"),
        "{message}"
    );
}

#[test]
fn adapters_have_defaults_and_are_refused_beside_a_choice_of_tensors() {
    let lora = |text: &str| parse(text).train.lora.unwrap();
    let default = lora("[train]\nlora = {}");
    assert_eq!((default.r, default.alpha), (16, 32));
    assert_eq!(default.target_modules, ["q_proj", "v_proj"]);
    let given =
        lora("[train.lora]\nr = 4\nalpha = 8\ntarget_modules = 'all-linear'\nvariant = 'rslora'");
    assert_eq!(given.target_modules, ["all-linear"]);
    assert_eq!(given.variant, LoraVariant::RsLora);
    let mut config = Config::default();
    config.train.lora = Some(given);
    assert_eq!(parse(&config.to_toml()), config);

    insta::assert_snapshot!(
        refused("[train]\ntrainable = 'q'\nlora = { r = 0, target_modules = [] }\n", &[]),
        @r#"
    `exp.toml` has 3 errors
      `exp.toml` line 3: `train.lora` trains adapters and no tensor of the model itself: leave `train.trainable` out
      `exp.toml` line 3: `train.lora.target_modules` is an empty list: nothing would be trained
      `exp.toml` line 3: `train.lora.r` must be at least 1 | -
    "#
    );
    assert_eq!(
        refused("[train]\nlora = { variant = 'dorra' }", &[]),
        "`exp.toml` line 2: `train.lora.variant` is `dorra` | did you mean `dora`?"
    );
}

#[test]
fn a_replay_is_a_table_of_known_keys_and_sane_values() {
    let text = "[method]\nreplay = { ratio = 0.5, target = 'teacher', strength = 2.0, schedule = 'ramp', selection = 'random' }";
    let parsed = parse(text);
    let all = ReplayConfig {
        ratio: 0.5,
        target: ReplayTarget::Teacher,
        strength: 2.0,
        schedule: ReplaySchedule::Ramp,
        selection: ReplaySelection::Random,
    };
    assert_eq!(parsed.method.replay, Some(all));
    assert_eq!(parse(&parsed.to_toml()), parsed);
    let parsed = parse("[method.replay]");
    assert_eq!(parsed.method.replay, Some(ReplayConfig::default()));

    for (replay, message) in [
        ("ratio = 0", "above 0 and at most 10, not 0"),
        ("ratio = 10.5", "above 0 and at most 10, not 10.5"),
        ("ratio = nan", "above 0 and at most 10, not NaN"),
        ("target = 'teacher', strength = -1", "must be 0 or more"),
        ("strength = 2", "the weight of the distillation term"),
        ("target = 'labels'", "did you mean `label`?"),
        ("ratios = 0.2", "did you mean `ratio`?"),
        ("share = 0.2", "did you mean `ratio`?"),
    ] {
        let text = format!("[method]\nreplay = {{ {replay} }}");
        assert!(refused(&text, &[]).contains(message), "{replay}");
    }
}

#[test]
fn frozen_weights_and_a_base_teacher_need_adapters_beside_them() {
    let config = parse("model_dtype = 'q8_0'\n[train]\nlora = {}");
    assert_eq!(config.model_dtype, ModelDtype::Q8_0);
    insta::assert_snapshot!(
        [
            refused("model_dtype = 'stored'\n", &[]),
            refused("model_dtype = 'q4_0'\n[train.lora]\nvariant = 'dora'\ndropout = 0.1\n", &[]),
            refused("model_dtype = 'int8'\n", &[]),
            refused("[method]\nteacher = 'base'\n", &[]),
            refused("[method]\nkind = 'self-distill'\nteacher = 'base'\n[train]\nlora = {}\n", &[]),
            refused("[train.lora]\nrank_pattern = { q_proj = 0 }\ndropout = 1.0\n", &[]),
        ]
        .join("\n"),
        @r#"
    `exp.toml` line 1: `model_dtype` holds weights that are not trained: train an adapter over them (`--lora-r 16`; not with `dora`, L2 or EWC) | -
    `exp.toml` has 2 errors
      `exp.toml` line 1: `model_dtype` holds weights that are not trained: train an adapter over them (`--lora-r 16`; not with `dora`, L2 or EWC)
      `exp.toml` line 4: `train.lora.dropout` needs adapters beside the weights; those of `dora`, and those with a penalty on weights, are written into them: leave it out | -
    `exp.toml` line 1: `model_dtype` is `int8` | it is one of f32, stored, q8_0, q4_0
    `exp.toml` has 2 errors
      `exp.toml` line 2: `method.teacher` `base` is the model without its adapters, and there are none beside its weights: set `train.lora` with another variant than `dora`, and no penalty on weights
      `exp.toml` line 2: `method.teacher` `base` is the base model: set `method.snapshot_epochs = 0`, or `method.teacher = "online"`, which keeps the adapters of the snapshot | -
    `exp.toml` line 3: `method.teacher` `base` is the base model: set `method.snapshot_epochs = 0`, or `method.teacher = "online"`, which keeps the adapters of the snapshot | -
    `exp.toml` has 2 errors
      `exp.toml` line 3: `train.lora.dropout` must be at least 0 and below 1, not 1
      `exp.toml` line 2: `train.lora.rank_pattern` must be at least 1 | -
    "#
    );
}

#[test]
fn a_projections_energy_is_a_fraction_and_adapters_are_not_projected() {
    assert!(read("[method]\nproject = {}", &[]).is_ok());
    for energy in ["0.0", "-0.5", "1.01", "nan"] {
        let message = refused(&format!("[method]\nproject = {{ energy = {energy} }}"), &[]);
        assert!(
            message.contains("line 2: `method.project.energy`"),
            "{message}"
        );
        assert!(message.contains("above 0 and at most 1"), "{message}");
    }
    for energy in ["1.0", "0.001"] {
        let text = format!("[method]\nproject = {{ energy = {energy} }}");
        assert!(read(&text, &[]).is_ok(), "{energy}");
    }
    let both = "[method]\nproject = {}\n[train]\nlora = { r = 4 }";
    assert!(refused(both, &[]).contains("does not stay in the space"));
    assert!(refused("[method]\nproject = { enrgy = 0.5 }", &[]).contains("energy"));
}

#[test]
fn a_teacher_that_would_not_be_exact_is_refused_with_the_reason() {
    let message = refused("[method]\nteacher = 'topk'", &[]);
    assert!(
        message.starts_with("`exp.toml` line 2: `method.teacher`"),
        "{message}"
    );
    assert!(
        message.contains("exact only with `vocab_subset = { top = N }`"),
        "{message}"
    );
    let parsed = parse("[method]\nvocab_subset = { random = 3 }");
    assert_eq!(parsed.method.vocab_subset, VocabSubset::Random(3));
    let both = "[method]\nteacher = 'topk'\nvocab_subset = { top = 76 }\newc = { strength = 2.0 }";
    assert_eq!(parse(both).method.vocab_subset, VocabSubset::TopK(76));
    assert!(refused("[method]\nvocab_subset = { top = 0 }", &[]).contains("at least 1 token"));
}

#[test]
fn settings_that_learn_facts_are_refused_where_the_goal_is_the_task() {
    let task = "[method]\ngoal = 'task'\n[train]\nnum_epochs = 1";
    assert!(read(task, &[]).is_ok(), "no snapshot epoch");
    for set in ["method.budget=1", "train.early_stopping.accuracy=0.9"] {
        let message = refused(task, &[set]);
        assert!(message.contains("method.goal"), "{message}");
    }
    let message = refused(task, &["method.exclude_target=true"]);
    assert!(message.contains("which this run does not use"), "{message}");
}

#[test]
fn the_target_token_is_left_out_of_self_distillation_alone() {
    assert!(
        read(
            "[method]\nkind = 'self-distill'\nexclude_target = true",
            &[]
        )
        .is_ok()
    );
    let message = refused("[method]\nkind = 'l2'\nexclude_target = true", &[]);
    assert!(
        message.contains("line 3: `method.exclude_target`")
            && message.contains("which this run does not use"),
        "{message}"
    );
}

#[test]
fn one_penalty_for_all_tasks_goes_with_the_last_run_alone() {
    let ewc = |text: &str| format!("[method.ewc]\ngamma = {text}");
    assert!(refused(&ewc("0.5"), &[]).contains("not 0 runs"));
    assert!(refused(&ewc("0.5\nprevious_runs = ['a', 'b']"), &[]).contains("not 2 runs"));
    assert!(refused(&ewc("1.5\nprevious_runs = ['a']"), &[]).contains("from 0 to 1, not 1.5"));
    let parsed = parse(&ewc("1.0\nprevious_runs = ['a']"));
    assert_eq!(parse(&parsed.to_toml()), parsed);
}

#[test]
fn what_updates_layer_by_layer_goes_without_whole_gradients() {
    for set in [
        "train.gradient_accumulation_steps=2",
        "train.lora={}",
        "train.on_nonfinite=skip",
        "method.kind=l2",
        "method.decoys={}",
        "method.replay={}",
        "method.ewc={}",
        "measure.grad_norms=true",
    ] {
        let message = refused("[train]\noptimizer_in_backward = true", &[set]);
        assert!(
            message.contains("updates each layer before the next"),
            "{set}: {message}"
        );
    }
    assert!(read("[train]\noptimizer_in_backward = true", &[]).is_ok());
}

#[test]
fn early_stopping_needs_a_rule_where_no_preset_has_one() {
    let message = refused("[method]\nkind = 'sft'\n[train]\nearly_stopping = {}", &[]);
    assert!(
        message.contains("`train.early_stopping` needs the key `accuracy` or `patience`"),
        "{message}"
    );
    let auto = resolved("[train]\nearly_stopping = {}", &[]);
    let accuracy = auto.train.early_stopping.and_then(|stop| stop.accuracy);
    assert_eq!(accuracy, Some(0.99));
}

#[test]
fn a_warm_up_is_a_number_of_steps_or_a_ratio_of_all() {
    let model = "model = 'm'\nout = 'o'\n[train]\n";
    let config = read(&format!("{model}warmup_ratio = 0.25"), &[]).unwrap();
    // ceil(0.25 * 10) steps, as in `TrainingArguments.get_warmup_steps`.
    let rates = [1, 2, 3, 4].map(|step| config.train.learning_rate_at(step, 10));
    let peak = config.train.learning_rate;
    assert_eq!(rates, [0.0, peak / 3.0, peak * (2.0 / 3.0), peak]);
    let both = refused(
        &format!("{model}warmup_ratio = 0.25\nwarmup_steps = 3"),
        &[],
    );
    assert!(both.contains("`train.warmup_ratio`"), "{both}");
}

#[test]
fn a_small_job_has_a_small_audit_unless_its_prompts_are_set() {
    let prompts = |text: &str, new_rows| {
        let mut config = read(&format!("model = 'm'\nout = 'o'\n{text}"), &[]).unwrap();
        let notes = config.fit_to(JobRows {
            facts: new_rows,
            ..JobRows::default()
        });
        let told = notes.iter().any(|note| note.starts_with("audit: "));
        let prompts = config.data.audit.map(|audit| audit.num_prompts);
        assert_eq!(told, prompts.is_some_and(|n| n < 20), "{notes:?}");
        prompts
    };
    assert_eq!(prompts("", 40), Some(5));
    assert_eq!(prompts("", 399), Some(10));
    assert_eq!(prompts("", 400), Some(20));
    assert_eq!(prompts("[data]\naudit = false", 40), None);
    let set = "[data]\naudit = { num_prompts = 20 }";
    assert_eq!(prompts(set, 40), Some(20));
}

#[test]
fn a_small_job_has_small_batches_unless_their_size_is_set() {
    let batch_size = |text: &str, new_rows, known_rows| {
        let text = format!("model = 'm'\nout = 'o'\nmethod.kind = 'sft'\n{text}");
        let mut config = read(&text, &[]).unwrap();
        let notes = config.fit_to(JobRows {
            facts: new_rows,
            known: known_rows,
            ..JobRows::default()
        });
        let size = config.train.batch_size;
        let told = notes.iter().any(|note| note.starts_with("batch: "));
        assert_eq!(told, size < 64, "{notes:?}");
        size
    };
    assert_eq!(batch_size("", 1, 0), 8);
    assert_eq!(batch_size("", 40, 500), 8);
    assert_eq!(batch_size("", 400, 0), 16);
    assert_eq!(batch_size("", 1279, 0), 32);
    assert_eq!(batch_size("", 1280, 0), 64);
    assert_eq!(batch_size("", 100_000, 0), 64);
    // Only Known: nothing is new.
    assert_eq!(batch_size("", 0, 400), 16);
    assert_eq!(batch_size("[train]\nbatch_size = 64", 40, 0), 64);
}

#[test]
fn auto_depends_on_what_is_learned_and_how_much() {
    let of = |text: &str, facts, texts| {
        let mut config = read(&format!("model = 'm'\nout = 'o'\n{text}"), &[]).unwrap();
        let rows = JobRows {
            facts,
            texts,
            known: 0,
        };
        config.fit_to(rows);
        let Config { method, train, .. } = config.resolve_for(SMOLLM2, rows).config;
        let decoys = method.decoys.map(|decoys| decoys.ratio);
        let TrainConfig {
            num_epochs,
            batch_size,
            learning_rate,
            ..
        } = train;
        (num_epochs, batch_size, learning_rate, decoys)
    };
    assert_eq!(of("", 320, 0), (30, 16, 4e-4, Some(0.3)));
    assert_eq!(of("", 100_000, 0), (30, 16, 4e-4, Some(0.3)));
    assert_eq!(of("", 319, 0), (30, 8, 2e-4, Some(1.0)));
    assert_eq!(of("", 0, 500), (6, 16, 2e-4, Some(0.3)));
    assert_eq!(of("", 0, 5000), (6, 64, 2e-4, Some(0.3)));
    assert_eq!(of("", 500, 500), of("", 500, 0));
    let epochs = "[train]\nnum_epochs = 3";
    assert_eq!(of(epochs, 0, 500), (3, 16, 2e-4, Some(0.3)));
    let rate = "[train]\nlearning_rate = 5e-5\nbatch_size = 64";
    assert_eq!(of(rate, 40, 0), (30, 64, 5e-5, Some(1.0)));
    let plain = "[method]\nkind = 'sft'";
    assert_eq!(of(plain, 40, 0), (20, 8, 5e-5, None));
    assert_eq!(of(plain, 0, 500), (20, 16, 5e-5, None));
}
