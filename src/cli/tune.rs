//! `unforget tune`.

use std::path::{Path, PathBuf};

use clap::Args;
use console::Term;
use toml::Value;
use unforget::{
    Error, Result,
    config::{self, Config, Override},
    dashboard::Dashboard,
    interrupt,
    run::RunResult,
    train::{self, Options},
};

use super::{
    context::{Context, model_spec},
    output,
};

/// The end of the help: precedence and examples.
const AFTER_HELP: &str = "Precedence: defaults, then the config file, then flags, then --set. `config.toml` in the run directory records \
    the resolved config.\n\n\
    Examples:\n  \
    unforget tune smollm2-135m --learn new.tsv --out runs/new\n  \
    unforget tune smollm2-135m --learn new.tsv --epochs 10 --lr 1e-4 --out runs/b\n  \
    unforget tune smollm2-135m --learn new.tsv --control --out runs/new\n  \
    unforget tune experiment.toml --set train.max_grad_norm=0.5 --out runs/clip";

/// Most columns of the help, and their number where there is no terminal.
const HELP_WIDTH: usize = 100;

/// Columns of the help, also where a pager shows it.
fn help_width() -> usize {
    let stderr = || Term::stderr().size_checked().map(|(_, width)| width.into());
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    let width = output::terminal_width().or_else(stderr).or_else(columns);
    width.map_or(HELP_WIDTH, |width| width.min(HELP_WIDTH))
}

/// All keys of the config with their defaults, before [`AFTER_HELP`].
fn long_help() -> String {
    let width = help_width();
    let keys = config::reference();
    let mut text = "Config keys with their defaults, for CONFIG.toml and --set. The default method, `auto`, sets its own trainable, \
        batch_size, learning_rate, num_epochs, ema_decay, early_stopping and decoys: config.toml in the run directory has them.\n"
        .to_owned();
    for section in keys.chunk_by(|a, b| a.section == b.section) {
        let rows: Vec<Vec<String>> = section
            .iter()
            .map(|key| {
                let default = key.default.unwrap_or("-");
                vec![key.name.into(), default.into(), key.summary()]
            })
            .collect();
        let table = output::table(&["", "", ""], &rows, Some(width));
        let title = match section[0].section {
            "" => String::new(),
            name => format!("[{name}]"),
        };
        text += &format!("\n{title}\n{}\n", table.trim_start_matches('\n'));
    }
    format!("{text}\n{AFTER_HELP}")
}

/// Fine-tune a model on new facts, measure what it forgot, and write a run directory
#[derive(Debug, Args)]
#[command(override_usage = "unforget tune <CONFIG.toml|MODEL> [--learn <FACTS>...] [--out <RUN>] [OPTIONS]", after_help = format!("`tune --help` lists all settings. {AFTER_HELP}"), after_long_help = long_help(), term_width = help_width())]
pub struct TuneArgs {
    /// A config file, a model, or a run whose model is tuned further
    #[arg(value_name = "CONFIG.toml|MODEL")]
    target: String,
    /// New facts, chats or texts to learn
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    learn: Vec<PathBuf>,
    /// Known facts to train on as well
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    keep: Vec<PathBuf>,
    /// Known facts that are only measured
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    held: Vec<PathBuf>,
    /// The run directory to write
    #[arg(long, value_name = "RUN", alias = "output-dir")]
    out: Option<PathBuf>,
    /// sft, self-distill, l2 or auto
    #[arg(long, value_name = "KIND")]
    method: Option<String>,
    /// Number of epochs [default: 20; auto: at most 30, until 99% of the new facts are learned]
    #[arg(long, value_name = "N", aliases = ["num-epochs", "num-train-epochs"])]
    epochs: Option<i64>,
    /// Learning rate [default: 5e-5; auto: 4e-4, or 2e-4 for fewer than 320 facts]
    #[arg(long, value_name = "LR", alias = "learning-rate")]
    lr: Option<f64>,
    /// Rows of a batch [default: 64]
    #[arg(long, value_name = "N", alias = "per-device-train-batch-size")]
    batch_size: Option<i64>,
    /// Train a LoRA adapter of this rank instead of the weights
    #[arg(long, value_name = "R", alias = "lora-rank")]
    lora_r: Option<i64>,
    /// Forgetting allowed, in percentage points: the method's strength adapts to it, and the exit code is 3 if the run ends over it
    #[arg(long, value_name = "PP")]
    budget: Option<f64>,
    /// When a loss or gradient is not finite: end the run, or skip the step (ten times at most)
    #[arg(long, value_name = "stop|skip")]
    on_nonfinite: Option<String>,
    /// Any key of the config, such as train.learning_rate=1e-4; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// An Only Known run on the same facts, to report the gap to it
    #[arg(long, value_name = "RUN")]
    baseline: Option<PathBuf>,
    /// Train an Only Known run first, into `RUN-only-known`: the same job without the new facts, as the baseline
    #[arg(long, conflicts_with = "baseline")]
    control: bool,
    /// Count and list broken rows instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
    /// Estimate memory, disk and time, and train nothing
    #[arg(long)]
    dry_run: bool,
    /// Keep the checkpoints when the run is done
    #[arg(long)]
    keep_checkpoints: bool,
    /// Report how the time and memory of the steps were spent
    #[arg(long)]
    profile: bool,
    /// Serve a live page about the run, to this machine only
    #[arg(long)]
    watch: bool,
}

impl TuneArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let config = self.config(context)?;
        if self.dry_run {
            let exists = output::check_output_dir(&config.out, self.force, context.comm);
            if let Err(error) = exists {
                let note = format!("the run itself would be refused: {error}");
                context.progress.note(note);
            }
            if self.control {
                let note =
                    "the Only Known run (`--control`) comes in addition, and takes at most as long";
                context.progress.note(note);
            }
            let estimate = train::estimate(&config, &context.progress)?;
            return if context.json {
                output::json(&estimate)
            } else {
                output::sentences(&estimate.to_string())
            };
        }
        output::check_output_dir(&config.out, self.force, context.comm)?;
        let options = Options {
            keep_checkpoints: self.keep_checkpoints,
            comm: context.comm,
            profile: self.profile,
            ..Options::default()
        };
        let control = self.control.then(|| train::control_dir(&config.out));
        if let Some(control) = &control {
            output::check_output_dir(control, self.force, options.comm)?;
        }
        let run_dirs = control.iter().chain([&config.out]).cloned();
        interrupt::set_run_dirs(run_dirs.collect());
        let _page = serve_dashboard(self.watch, &config.out, context)?;
        let result = match control {
            Some(control) => {
                train::tune_with_control(&config, &control, options, &context.progress)?
            }
            None => train::tune(&config, options, &context.progress)?,
        };
        context.progress.ring_bell();
        print_result(&result, &config.out, context)
    }

    /// The defaults or the config file, under the flags, under `--set`.
    fn config(&self, context: &Context) -> Result<Config> {
        let mut overrides = self.overrides(context)?;
        let file = Path::new(&self.target);
        let extension = file.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("toml") => return Config::build(Some(file), &overrides),
            Some("yaml" | "yml") => {
                return Err(Error::input_hint(
                    format!("`{}` is YAML; a config is TOML", file.display()),
                    "the book's page \"The same job in TRL, Axolotl, LLaMA-Factory and Unsloth\" has the names of the keys",
                ));
            }
            _ => {}
        }
        if !self.dry_run && !overrides.iter().any(|given| given.key == "out") {
            return Err(Error::input_hint(
                "no run directory is named",
                "add `--out runs/NAME`",
            ));
        }
        let is_table = |kind: &str| ["tsv", "csv", "jsonl", "json", "parquet"].contains(&kind);
        if extension.is_some_and(is_table) && file.is_file() {
            return Err(Error::input_hint(
                format!(
                    "`{}` is a file of facts or texts, and the model comes first",
                    file.display()
                ),
                format!("`unforget tune smollm2-135m --learn {}`", file.display()),
            ));
        }
        let model = model_spec(&self.target)?;
        overrides.insert(0, Override::new("MODEL", "model", model));
        Config::build(None, &overrides)
    }

    /// The flags that stand for keys of the config, then `--set`.
    fn overrides(&self, context: &Context) -> Result<Vec<Override>> {
        let mut overrides = Vec::new();
        for (flag, key, files) in [
            ("--learn", "data.learn", &self.learn),
            ("--keep", "data.keep", &self.keep),
            ("--held", "data.held", &self.held),
        ] {
            if !files.is_empty() {
                let paths: Result<Vec<&str>> =
                    files.iter().map(|file| path_text(flag, file)).collect();
                overrides.push(Override::new(flag, key, paths?));
            }
        }
        for (flag, key, path) in [
            ("--out", "out", &self.out),
            ("--baseline", "baseline", &self.baseline),
        ] {
            if let Some(path) = path {
                overrides.push(Override::new(flag, key, path_text(flag, path)?));
            }
        }
        let seed = context.seed.map(i64::try_from).transpose();
        let seed = seed.map_err(|_| {
            Error::input("`--seed` is above the largest integer that TOML can hold")
        })?;
        let device = context.device.map(|device| device.to_string());
        let values = [
            ("--seed", "seed", seed.map(Value::from)),
            ("--device", "device", device.map(Value::from)),
            (
                "--method",
                "method.kind",
                self.method.clone().map(Value::from),
            ),
            ("--epochs", "train.num_epochs", self.epochs.map(Value::from)),
            ("--lr", "train.learning_rate", self.lr.map(Value::from)),
            (
                "--batch-size",
                "train.batch_size",
                self.batch_size.map(Value::from),
            ),
            ("--lora-r", "train.lora.r", self.lora_r.map(Value::from)),
            ("--budget", "method.budget", self.budget.map(Value::from)),
            (
                "--on-nonfinite",
                "train.on_nonfinite",
                self.on_nonfinite.clone().map(Value::from),
            ),
            (
                "--skip-bad-rows",
                "data.skip_bad_rows",
                self.skip_bad_rows.then(|| true.into()),
            ),
        ];
        for (flag, key, value) in values {
            overrides.extend(value.map(|value| Override::new(flag, key, value)));
        }
        for set in &self.set {
            overrides.push(Override::parse(set)?);
        }
        Ok(overrides)
    }
}

/// A path as a value of a config.
fn path_text<'a>(flag: &str, path: &'a Path) -> Result<&'a str> {
    path.to_str().ok_or_else(|| {
        Error::input(format!(
            "`{flag} {}`: the path is not UTF-8 text",
            path.display()
        ))
    })
}

/// Serves the page about the run in `dir`, where `enabled`, until it is dropped.
pub fn serve_dashboard(enabled: bool, dir: &Path, context: &Context) -> Result<Option<Dashboard>> {
    if !enabled || !context.comm.is_main() {
        return Ok(None);
    }
    let dashboard = Dashboard::serve(dir.to_owned(), context.progress.clone())?;
    // The address is printed under `--quiet` too: without it nobody finds the page.
    eprintln!("watch it on {}", dashboard.url);
    Ok(Some(dashboard))
}

/// Prints the result of a run in a sentence, and the next command.
pub fn print_result(result: &RunResult, dir: &Path, context: &Context) -> Result<()> {
    if context.json {
        output::json(result)?;
    } else {
        output::clauses(&result.to_string())?;
        if let Some(note) = result.control_note() {
            output::sentences(note)?;
        }
    }
    let dir = dir.display();
    context
        .progress
        .note(format!("next: unforget report {dir} --out report.html"));
    match (result.within_budget, result.budget, result.forgetting_pp) {
        (Some(false), Some(budget), Some(forgotten)) => Err(Error::OverBudget {
            forgotten,
            since: " since its best epoch",
            budget,
            hint: "the model was saved; use a stronger method (`method.lambda`, `method.decoys`), fewer new facts, \
                    or more held-out facts to control it by",
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unforget::{
        config::{Goal, MethodKind, ModelSize},
        distributed::Comm,
        measure::Forgotten,
        run::{Counts, PerSplit},
    };

    fn tune(target: &str) -> TuneArgs {
        TuneArgs {
            target: target.into(),
            learn: Vec::new(),
            keep: Vec::new(),
            held: Vec::new(),
            out: Some("run".into()),
            method: None,
            epochs: None,
            lr: None,
            batch_size: None,
            lora_r: None,
            budget: None,
            on_nonfinite: None,
            set: Vec::new(),
            baseline: None,
            control: false,
            skip_bad_rows: false,
            force: false,
            dry_run: false,
            keep_checkpoints: false,
            profile: false,
            watch: false,
        }
    }

    fn context(seed: Option<u64>) -> Context {
        Context {
            json: false,
            seed,
            device: None,
            progress: unforget::progress::Progress::quiet(),
            comm: Comm::single(),
        }
    }

    #[test]
    fn sets_override_flags_and_flags_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("exp.toml");
        std::fs::write(
            &file,
            "model = 'm'\nseed = 1\n[train]\nlearning_rate = 1e-3\nnum_epochs = 3\n",
        )
        .unwrap();
        let tune = TuneArgs {
            method: Some("sft".into()),
            lr: Some(2e-4),
            batch_size: Some(4),
            set: vec!["train.learning_rate=1e-4".into()],
            ..tune(file.to_str().unwrap())
        };
        let config = tune.config(&context(Some(7))).unwrap();
        assert_eq!(config.model, "m");
        assert_eq!(config.seed, 7);
        assert_eq!(config.out, Path::new("run"));
        assert_eq!(config.method.kind, MethodKind::Sft);
        assert_eq!(config.train.learning_rate, 1e-4);
        assert_eq!(config.train.num_epochs, 3);
        assert_eq!(config.train.batch_size, 4);
    }

    /// A flag with a default's value is a setting like any other.
    #[test]
    fn a_preset_leaves_flags_alone() {
        let tune = TuneArgs {
            method: Some("auto".into()),
            lr: Some(5e-5),
            ..tune("m")
        };
        let resolved = tune.config(&context(None)).unwrap().resolve(ModelSize {
            num_hidden_layers: 30,
            parameters: 135_000_000,
        });
        assert_eq!(resolved.config.train.learning_rate, 5e-5);
    }

    #[test]
    fn a_config_in_yaml_is_named_as_such() {
        let error = tune("axolotl.yml").config(&context(None)).unwrap_err();
        assert_eq!(error.to_string(), "`axolotl.yml` is YAML; a config is TOML");
    }

    #[test]
    fn a_value_that_is_wrong_is_reported_with_its_flag() {
        let tune = TuneArgs {
            epochs: Some(-3),
            ..tune("m")
        };
        assert_eq!(
            tune.config(&context(None)).unwrap_err().to_string(),
            "`--epochs`: `train.num_epochs`: expected a whole number, 0 or more, found -3"
        );
        let tune = TuneArgs {
            lr: Some(7.0),
            epochs: None,
            ..tune
        };
        assert_eq!(
            tune.config(&context(None)).unwrap_err().to_string(),
            "`--lr`: `train.learning_rate` must be above 0 and at most 1, not 7"
        );
    }

    #[test]
    fn an_unknown_method_names_the_flag_and_the_nearest_one() {
        let tune = TuneArgs {
            method: Some("self-distil".into()),
            ..tune("m")
        };
        let error = tune.config(&context(None)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`--method`: `method.kind` is `self-distil`"
        );
        assert_eq!(error.hint(), Some("did you mean `self-distill`?"));
    }

    fn done() -> RunResult {
        RunResult {
            method: "self-distill".into(),
            preset: None,
            model: "m".into(),
            goal: Goal::Facts,
            accuracy: PerSplit::default(),
            forgotten: Forgotten::new(27, 185),
            only_known_forgotten: Forgotten::new(17, 185),
            gap_to_only_known_pp: Some(5.4),
            gap_to_only_known_interval: Some([1.5, 9.8]),
            forgetting_pp: Some(3.2),
            forgetting_interval: Some([1.1, 5.9]),
            learned: Some(0.975),
            learned_paraphrased: Some(0.8),
            not_absorbed: None,
            behaviour: None,
            validation_loss: None,
            validation: None,
            texts_loss: None,
            counts: Counts {
                learned: 780,
                not_learned: 20,
                kept: 170,
                forgotten: 15,
                ..Counts::default()
            },
            budget: None,
            within_budget: None,
            interpolation: None,
            epochs: 8,
            steps: 264,
            seconds: 181.6,
            eval_seconds: 20.0,
            audit_seconds: 0.0,
            peak_memory_bytes: 0,
        }
    }

    #[test]
    fn a_run_over_its_budget_is_told_and_exits_with_3() {
        let context = context(None);
        assert!(print_result(&done(), Path::new("run"), &context).is_ok());
        let over = RunResult {
            budget: Some(1.0),
            within_budget: Some(false),
            interpolation: None,
            ..done()
        };
        let error = print_result(&over, Path::new("run"), &context).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert_eq!(
            error.to_string(),
            "the model forgot 3.2 pp of the held-out facts since its best epoch, over the budget of 1 pp"
        );
    }

    #[test]
    fn a_run_is_told_in_one_sentence() {
        let result = done();
        assert_eq!(
            result.to_string(),
            "self-distill: learned 780 of 800 new facts (97.5%, 80.0% paraphrased); \
             forgot 27 of 185 known held-out facts, 14.6% (95%: 10.2 to 20.4); \
             Only Known forgot 17 of 185, 9.2% (95%: 5.8 to 14.2); gap to Only Known 5.4 pp (95%: 1.5 to 9.8); \
             3.2 pp lost since its best epoch (95%: 1.1 to 5.9); 8 epochs, 264 steps, 182 s"
        );
        assert_eq!(result.control_note(), None);
    }

    #[test]
    fn without_only_known_a_run_says_what_its_figure_contains() {
        let result = RunResult {
            only_known_forgotten: None,
            gap_to_only_known_pp: None,
            gap_to_only_known_interval: None,
            forgotten: Forgotten::new(0, 1),
            forgetting_interval: None,
            ..done()
        };
        assert!(
            result.to_string().contains(
                "; forgot 0 of 1 known held-out fact; 3.2 pp lost since its best epoch; 8 epochs"
            ),
            "{result}"
        );
        assert_eq!(result.control_note(), None);
        let forgetful = RunResult {
            forgotten: Forgotten::new(1, 1),
            ..result
        };
        let note = forgetful.control_note();
        assert!(note.is_some_and(|note| note.contains("--control")));
        let only_known = RunResult {
            learned: None,
            ..forgetful
        };
        assert_eq!(only_known.control_note(), None);
    }

    #[test]
    fn new_facts_that_were_not_wanted_are_told_as_such() {
        let result = RunResult {
            method: "sft+task".into(),
            goal: Goal::Task,
            learned: Some(0.0125),
            learned_paraphrased: None,
            not_absorbed: Some(0.9875),
            counts: Counts {
                learned: 10,
                not_learned: 790,
                ..done().counts
            },
            ..done()
        };
        let told = result.to_string();
        assert!(
            told.starts_with(
                "sft+task: absorbed 10 of 800 new facts (1.2%; should be few); forgot 27"
            ),
            "{told}"
        );
    }
}
