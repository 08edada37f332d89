//! From TOML text to [`Config`], with errors that name the file, the line, the key and the nearest known key.

use std::path::Path;

use super::{Config, validate};
use crate::{Error, Result, error::closest_match};

/// Reads, overlays and validates.
pub(super) fn file(path: &Path, sets: &[String]) -> Result<Config> {
    let name = format!("`{}`", path.display());
    let bytes = std::fs::read(path).map_err(|reason| {
        Error::input_hint(
            format!("cannot read {name}: {reason}"),
            "give the path of an experiment file (TOML)",
        )
    })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = line_of(e.as_bytes(), e.utf8_error().valid_up_to());
        Error::input_hint(
            format!("{name} line {line}: not UTF-8 text"),
            "an experiment file is TOML, which is UTF-8",
        )
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim().is_empty() {
        return Err(Error::input_hint(
            format!("{name} is empty"),
            "an experiment names at least a `model` and an `out` directory",
        ));
    }
    let config = parse(text, &name)?;
    let config = overlay(&config, sets)?;
    validate::report(&validate::errors(&config), &name, |key| {
        let is_set = |set: &&String| set.split('=').next().is_some_and(|k| k.trim() == key);
        match sets.iter().find(is_set) {
            Some(_) => None,
            None => line_of_key(text, key),
        }
    })?;
    Ok(config)
}

/// Lays `key=value` pairs over a config.
pub(super) fn overlay(config: &Config, sets: &[String]) -> Result<Config> {
    let mut config = config.clone();
    for set in sets {
        let (key, value) = set.split_once('=').ok_or_else(|| {
            Error::input_hint(
                format!("`--set {set}` has no `=`"),
                "write it as `--set train.learning_rate=5e-5`",
            )
        })?;
        let mut root = toml::Table::try_from(&config).expect("every config has a form in TOML");
        insert(&mut root, key.trim(), value_of(value.trim()))
            .map_err(|part| Error::input(format!("`--set {set}`: `{part}` is not a section")))?;
        config = serde_path_to_error::deserialize(toml::Value::Table(root)).map_err(|e| {
            let path = e.path().to_string();
            describe(e.inner().message(), &path, &format!("`--set {set}`"))
        })?;
    }
    Ok(config)
}

fn parse(text: &str, name: &str) -> Result<Config> {
    let at = |e: &toml::de::Error| match e.span() {
        Some(span) => format!("{name} line {}", line_of(text.as_bytes(), span.start)),
        None => name.to_owned(),
    };
    let document = toml::Deserializer::parse(text).map_err(|e| {
        let told = e.message().replace('\n', ", ");
        Error::input(format!("{}: not TOML: {told}", at(&e)))
    })?;
    serde_path_to_error::deserialize(document).map_err(|e| {
        let path = e.path().to_string();
        describe(e.inner().message(), &path, &at(e.inner()))
    })
}

/// Puts `value` at the dotted `key`, making sections on the way; `Err` is the part that is no section.
fn insert(root: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            root.insert(key.to_owned(), value);
            Ok(())
        }
        Some((section, rest)) => match root
            .entry(section)
            .or_insert_with(|| toml::Table::new().into())
        {
            toml::Value::Table(table) => insert(table, rest, value),
            _ => Err(section.to_owned()),
        },
    }
}

/// A value in TOML's syntax, or a bare string.
fn value_of(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value").filter(|_| table.is_empty()))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

/// Says in our words what serde said about the value or key at `path`.
fn describe(message: &str, path: &str, place: &str) -> Error {
    let (sections, last) = path.rsplit_once('.').unwrap_or(("", path));
    let quoted = |text: &str| -> Vec<String> {
        text.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let section = if sections.is_empty() {
        "at the top level".to_owned()
    } else {
        format!("in [{sections}]")
    };
    if message.starts_with("unknown field") {
        let words = quoted(message);
        let (unknown, known) = words.split_first().expect("serde quotes the field");
        return Error::input_hint(
            format!("{place}: unknown key `{unknown}` {section}"),
            did_you_mean(unknown, known)
                .unwrap_or_else(|| format!("known keys: {}", known.join(", "))),
        );
    }
    if message.starts_with("unknown variant") {
        let words = quoted(message);
        let (unknown, known) = words.split_first().expect("serde quotes the variant");
        return Error::input_hint(
            format!("{place}: `{path}` is `{unknown}`"),
            did_you_mean(unknown, known)
                .unwrap_or_else(|| format!("it is one of {}", known.join(", "))),
        );
    }
    let told = ["f64", "usize", "u64"]
        .into_iter()
        .zip([
            "a number",
            "a whole number, 0 or more",
            "a whole number, 0 or more",
        ])
        .fold(message.replace('\n', ", "), |told, (kind, plain)| {
            told.replace(&format!("expected {kind}"), &format!("expected {plain}"))
        });
    let told = match told.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a table"),
        None => told,
    };
    if last.is_empty() || last == "." {
        Error::input(format!("{place}: {told}"))
    } else {
        Error::input(format!("{place}: `{path}`: {told}"))
    }
}

fn did_you_mean(word: &str, known: &[String]) -> Option<String> {
    closest_match(word, known.iter().map(String::as_str))
        .map(|near| format!("did you mean `{near}`?"))
}

/// The line, from 1, of a byte offset.
fn line_of(text: &[u8], offset: usize) -> usize {
    text[..offset.min(text.len())]
        .split(|b| *b == b'\n')
        .count()
}

/// The line on which the dotted `key` gets its value in `text`; of its section, where the key itself is a default.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut line = None;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else {
            break;
        };
        line = Some(line_of(text.as_bytes(), name.span().start));
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoraVariant, MethodKind, VocabSubset};

    fn read(text: &str, sets: &[&str]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exp.toml");
        std::fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        file(&path, &sets)
    }

    /// Message and hint, with the temporary directory left out.
    fn refused(text: &str, sets: &[&str]) -> String {
        let error = read(text, sets).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let told = format!("{error} | {}", error.hint().unwrap_or("-"));
        let dir = std::env::temp_dir().display().to_string();
        let mut out = told.clone();
        while let Some(start) = out.find(&dir) {
            let end = start + out[start..].find("exp.toml").unwrap();
            out.replace_range(start..end, "");
        }
        out
    }

    #[test]
    fn the_documented_file_is_the_default() {
        let config = read(
            r#"
            model = "smollm2-135m"
            out = "runs/p17"
            seed = 0
            [data]
            audit = { runs = 20, shots = 3, samples = 16 }
            min_highly_known = 0.0
            match = "exact"
            [method]
            goal = "facts"
            kind = "self-distill"
            lambda = 1.0
            temperature = 0.5
            snapshot_epoch = 1
            tokens = "full"
            teacher = "auto"
            reduction = "example"
            target_token = "kept"
            [train]
            trainable = "all"
            epochs = 20
            batch_size = 64
            lr = 5e-5
            schedule = "constant"
            warmup_steps = 0
            betas = [0.9, 0.999]
            eps = 1e-8
            weight_decay = 0.0
            clip = 1.0
            accumulate = 1
            shuffle = true
            max_tokens = 2048
            [measure]
            drift = false
            paraphrase = true
            "#,
            &[],
        )
        .unwrap();
        assert_eq!(config, Config::default());
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
            refused("[data]\naudit = { rnus = 3 }", &[]),
            "`exp.toml` line 2: unknown key `rnus` in [data.audit] | did you mean `runs`?"
        );
        assert_eq!(
            refused("sede = 3", &[]),
            "`exp.toml` line 1: unknown key `sede` at the top level | did you mean `seed`?"
        );
        assert_eq!(
            refused("[method]\nkind = 'sfft'", &[]),
            "`exp.toml` line 2: `method.kind` is `sfft` | did you mean `sft`?"
        );
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        assert_eq!(
            refused("[train]\nlr = 'fast'", &[]),
            "`exp.toml` line 2: `train.learning_rate`: invalid type: string \"fast\", expected a number | -"
        );
        assert_eq!(
            refused("[train]\nepochs = -3", &[]),
            "`exp.toml` line 2: `train.num_epochs`: invalid value: integer `-3`, expected a whole number, 0 or more | -"
        );
        assert_eq!(
            refused("[data]\naudit = 3", &[]),
            "`exp.toml` line 2: `data.audit`: invalid type: integer `3`, expected `false` or a table | -"
        );
    }

    #[test]
    fn all_errors_are_reported_at_once_with_their_lines() {
        insta::assert_snapshot!(
            refused("[train]\nlr = -1.0\nepochs = 0\nbetas = [0.9, 1.0]\n[method]\nkind = 'sft'\ntemperature = 0\n", &["train.max_grad_norm=nan"]),
            @r"
        `exp.toml` has 5 faults
          `exp.toml` line 7: `method.temperature` must be above 0, not 0
          `exp.toml` line 3: `train.num_epochs` must be at least 1
          `exp.toml` line 2: `train.learning_rate` must be above 0 and at most 1, not -1
          `exp.toml` line 4: `train.betas` must each be 0 or more and below 1, not [0.9, 1.0]
          `exp.toml`: `train.max_grad_norm` must be 0 or more, not NaN | -
        "
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
        assert_eq!(file(dir.path(), &[]).unwrap_err().exit_code(), 2);
        let binary = dir.path().join("binary.toml");
        std::fs::write(&binary, b"seed = 1\nmodel = \"\xff\"").unwrap();
        let error = file(&binary, &[]).unwrap_err().to_string();
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
        assert_eq!(config.data.learn, [Path::new("a.tsv")]);
        assert_eq!(config.data.audit, None);
        assert_eq!(config.train.early_stopping.unwrap().accuracy, 0.9);
        assert_eq!(
            refused("seed = 1", &["train.lrr=1"]),
            "`--set train.lrr=1`: unknown key `lrr` in [train] | did you mean `lr`?"
        );
        assert_eq!(
            refused("seed = 1", &["trian.lr=1"]),
            "`--set trian.lr=1`: unknown key `trian` at the top level | did you mean `train`?"
        );
        assert_eq!(
            refused("seed = 1", &["seed.x=1"]),
            "`--set seed.x=1`: `seed` is not a section | -"
        );
        assert_eq!(
            refused("seed = 1", &["seed"]),
            "`--set seed` has no `=` | write it as `--set train.learning_rate=5e-5`"
        );
    }

    #[test]
    fn the_resolved_config_reads_back_the_same() {
        let mut config = Config::default();
        config.data.audit = None;
        config.data.learn = vec!["new.tsv".into()];
        config.train.trainable = vec!["q".into(), "model.layers.*.mlp.*".into()];
        config.train.early_stopping = Some(super::super::EarlyStoppingConfig { accuracy: 0.99 });
        assert_eq!(parse(&config.to_toml(), "resolved").unwrap(), config);
        let default = Config::default();
        assert_eq!(parse(&default.to_toml(), "resolved").unwrap(), default);
    }

    #[test]
    fn adapters_have_defaults_and_are_refused_beside_a_choice_of_tensors() {
        let lora = |text: &str| parse(text, "x").unwrap().train.lora.unwrap();
        let default = lora("[train]\nlora = {}");
        assert_eq!((default.r, default.alpha), (16, 32));
        assert_eq!(default.target_modules, ["q_proj", "v_proj"]);
        let given =
            lora("[train.lora]\nrank = 4\nalpha = 8\ntargets = 'all-linear'\nvariant = 'rslora'");
        assert_eq!(given.target_modules, ["all-linear"]);
        assert_eq!(given.variant, LoraVariant::RsLora);
        let mut config = Config::default();
        config.train.lora = Some(given);
        assert_eq!(parse(&config.to_toml(), "resolved").unwrap(), config);

        insta::assert_snapshot!(
            refused("[train]\ntrainable = 'q'\nlora = { rank = 0, targets = [] }\n", &[]),
            @r"
        `exp.toml` has 3 faults
          `exp.toml` line 3: `train.lora` trains adapters of `targets` and no tensor of the model itself: leave `train.trainable` out
          `exp.toml` line 3: `train.lora.target_modules` is an empty list: nothing would be trained
          `exp.toml` line 3: `train.lora.r` must be at least 1 | -
        "
        );
        assert_eq!(
            refused("[train]\nlora = { variant = 'dorra' }", &[]),
            "`exp.toml` line 2: `train.lora.variant` is `dorra` | did you mean `dora`?"
        );
    }

    #[test]
    fn a_replay_is_a_table_of_known_keys_and_sane_values() {
        use crate::config::{ReplayConfig, ReplaySchedule, ReplaySelection, ReplayTarget};
        let text = "[method]\nreplay = { share = 0.5, target = 'teacher', strength = 2.0, schedule = 'end', order = 'random' }";
        let parsed = parse(text, "x").unwrap();
        let all = ReplayConfig {
            ratio: 0.5,
            target: ReplayTarget::Teacher,
            strength: 2.0,
            schedule: ReplaySchedule::Ramp,
            selection: ReplaySelection::Random,
        };
        assert_eq!(parsed.method.replay, Some(all));
        assert!(parsed.validate().is_ok());
        assert_eq!(parse(&parsed.to_toml(), "resolved").unwrap(), parsed);
        let parsed = parse("[method.replay]", "x").unwrap();
        assert_eq!(parsed.method.replay, Some(ReplayConfig::default()));

        for (replay, told) in [
            ("share = 0", "above 0 and at most 10, not 0"),
            ("share = 10.5", "above 0 and at most 10, not 10.5"),
            ("share = nan", "above 0 and at most 10, not NaN"),
            ("target = 'teacher', strength = -1", "must be 0 or more"),
            ("strength = 2", "join the mean of the cross-entropy"),
            ("target = 'labels'", "did you mean `label`?"),
            ("shares = 0.2", "did you mean `share`?"),
        ] {
            let text = format!("[method]\nreplay = {{ {replay} }}");
            assert!(refused(&text, &[]).contains(told), "{replay}");
        }
    }

    #[test]
    fn a_projections_energy_is_a_share_and_adapters_are_not_projected() {
        assert!(parse("[method]\nproject = {}", "x").is_ok_and(|c| c.validate().is_ok()));
        for energy in ["0.0", "-0.5", "1.01", "nan"] {
            let told = refused(&format!("[method]\nproject = {{ energy = {energy} }}"), &[]);
            assert!(told.contains("line 2: `method.project.energy`"), "{told}");
            assert!(told.contains("above 0 and at most 1"), "{told}");
        }
        for energy in ["1.0", "0.001"] {
            let text = format!("[method]\nproject = {{ energy = {energy} }}");
            assert!(read(&text, &[]).is_ok(), "{energy}");
        }
        let both = "[method]\nproject = {}\n[train]\nlora = { rank = 4 }";
        assert!(refused(both, &[]).contains("does not stay in the space"));
        assert!(refused("[method]\nproject = { enrgy = 0.5 }", &[]).contains("energy"));
    }

    #[test]
    fn a_teacher_that_would_not_be_exact_is_refused_with_the_reason() {
        let told = refused("[method]\nteacher = 'topk'", &[]);
        assert!(
            told.starts_with("`exp.toml` line 2: `method.teacher`"),
            "{told}"
        );
        assert!(
            told.contains("exact under `tokens = { top = N }`"),
            "{told}"
        );
        let parsed = parse("[method]\ntokens = { random = 3 }", "x").unwrap();
        assert_eq!(parsed.method.vocab_subset, VocabSubset::Random(3));
        let both = "[method]\nteacher = 'topk'\ntokens = { top = 76 }\newc = { strength = 2.0 }";
        let parsed = parse(both, "x").unwrap();
        assert_eq!(parsed.method.vocab_subset, VocabSubset::Top(76));
        assert!(parsed.validate().is_ok());
        assert!(refused("[method]\ntokens = { top = 0 }", &[]).contains("at least 1 token"));
    }

    #[test]
    fn what_learns_facts_is_refused_where_the_task_alone_is_to_be_learned() {
        let parsed = parse("[method]\ngoal = 'task'\n[train]\nepochs = 1", "x").unwrap();
        assert!(parsed.validate().is_ok(), "no snapshot epoch");
        for given in [
            "method.budget=1",
            "train.early_stopping.accuracy=0.9",
            "method.target_token=left-out",
        ] {
            let told = refused("[method]\ngoal = 'task'", &[given]);
            assert!(told.contains("method.goal"), "{told}");
        }
    }

    #[test]
    fn the_target_token_is_left_out_of_self_distillation_alone() {
        let parsed = parse("[method]\ntarget_token = 'left-out'", "x").unwrap();
        assert!(parsed.validate().is_ok());
        let told = refused("[method]\nkind = 'l2'\ntarget_token = 'left-out'", &[]);
        assert!(
            told.contains("line 3: `method.target_token`") && told.contains("this run has none"),
            "{told}"
        );
    }

    #[test]
    fn one_penalty_for_all_tasks_goes_with_the_last_run_alone() {
        let ewc = |text: &str| format!("[method.ewc]\ndecay = {text}");
        assert!(refused(&ewc("0.5"), &[]).contains("not 0 runs"));
        assert!(refused(&ewc("0.5\nafter = ['a', 'b']"), &[]).contains("not 2 runs"));
        assert!(refused(&ewc("1.5\nafter = ['a']"), &[]).contains("from 0 to 1, not 1.5"));
        let parsed = parse(&ewc("1.0\nafter = ['a']"), "x").unwrap();
        assert!(parsed.validate().is_ok());
        assert_eq!(parse(&parsed.to_toml(), "resolved").unwrap(), parsed);
    }
}
