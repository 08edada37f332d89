//! `unforget tune`.

use std::path::{Path, PathBuf};

use clap::Args;
use unforget::{
    Error, Result,
    config::Config,
    dashboard::Dashboard,
    distributed,
    run::RunResult,
    train::{self, Options},
};

use super::{
    context::{Context, model_spec},
    output,
};

/// Fine-tune a model on new facts, measure what it forgot, and write a run directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    unforget tune smollm2-135m --learn new.tsv --out runs/new\n  \
    unforget tune experiment.toml --set train.learning_rate=1e-4 --out runs/higher\n\n\
    Flags and then --set go over what the config says. The other settings and their defaults stand in the config's\n\
    reference (docs of `unforget::config`); a run keeps its resolved config.")]
pub struct TuneArgs {
    /// An experiment file, a model, or a run whose model is tuned further
    #[arg(value_name = "CONFIG.toml|MODEL")]
    target: String,
    /// New facts to be learned
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    learn: Vec<PathBuf>,
    /// Known facts to train on too
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    keep: Vec<PathBuf>,
    /// Known facts that are only measured
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    held: Vec<PathBuf>,
    /// The run directory to be written
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// sft or self-distill
    #[arg(long, value_name = "KIND")]
    method: Option<String>,
    /// Forgetting allowed, in percentage points: the run is steered by it, and the exit code is 3 if it ends over it
    #[arg(long, value_name = "PP")]
    budget: Option<f64>,
    /// What becomes of a step whose loss or gradient is not finite: the run ends, or goes on without it (ten times at most)
    #[arg(long, value_name = "stop|skip")]
    on_nonfinite: Option<String>,
    /// Any key of the config, such as train.learning_rate=1e-4; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// An Only Known run of the same facts, to be told how far below it this one ends
    #[arg(long, value_name = "RUN")]
    baseline: Option<PathBuf>,
    /// Count and list broken rows instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
    /// Train nothing: say what the run would take in memory, disk and time
    #[arg(long)]
    dry_run: bool,
    /// Keep the checkpoints when the run is done
    #[arg(long)]
    keep_checkpoints: bool,
    /// Say at the end where the steps' time and bytes went
    #[arg(long)]
    profile: bool,
    /// Serve a page about the run while it goes on, to this machine alone
    #[arg(long)]
    watch: bool,
}

impl TuneArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let config = self.config(context.seed)?;
        if self.dry_run {
            let estimate = train::estimate(&config, &context.progress)?;
            return if context.json {
                output::json(&estimate)
            } else {
                output::line(&estimate.to_string())
            };
        }
        output::check_output_dir(&config.out, self.force)?;
        let options = Options {
            keep_checkpoints: self.keep_checkpoints,
            comm: distributed::comm(),
            profile: self.profile,
            ..Options::default()
        };
        let _page = serve_dashboard(self.watch, &config.out)?;
        let result = train::tune(&config, options, &context.progress)?;
        context.progress.ring_bell();
        print_result(&result, &config.out, context)
    }

    /// The config file or the defaults, then the flags, then `--set`.
    fn config(&self, seed: Option<u64>) -> Result<Config> {
        let is_file = Path::new(&self.target)
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("toml"));
        let mut config = if is_file {
            Config::read(Path::new(&self.target), &self.set)?
        } else {
            if self.out.is_none()
                && !self.dry_run
                && !self.set.iter().any(|s| s.starts_with("out="))
            {
                return Err(Error::input_hint(
                    "no run directory is named",
                    "add `--out runs/NAME`",
                ));
            }
            Config {
                model: model_spec(&self.target)?,
                ..Config::default()
            }
        };
        for (flag, slot) in [
            (&self.learn, &mut config.data.learn),
            (&self.keep, &mut config.data.keep),
            (&self.held, &mut config.data.held),
        ] {
            if !flag.is_empty() {
                slot.clone_from(flag);
            }
        }
        if let Some(out) = &self.out {
            config.out.clone_from(out);
        } else if self.dry_run && config.out.as_os_str().is_empty() {
            // Nothing is written there.
            config.out = "runs/dry".into();
        }
        config.data.skip_bad_rows |= self.skip_bad_rows;
        if let Some(seed) = seed {
            config.seed = seed;
        }
        if self.baseline.is_some() {
            config.baseline.clone_from(&self.baseline);
        }
        if self.budget.is_some() {
            config.method.budget = self.budget;
        }
        for (flag, key, value) in [
            ("--method", "method.kind", &self.method),
            ("--on-nonfinite", "train.on_nonfinite", &self.on_nonfinite),
        ] {
            if let Some(value) = value {
                config = config
                    .with_sets(&[format!("{key}={value}")])
                    .map_err(|error| error_for_flag(flag, error))?;
            }
        }
        let config = config.with_sets(&self.set)?;
        config.validate()?;
        Ok(config)
    }
}

/// The same error, told about the flag that the user typed.
fn error_for_flag(flag: &str, error: Error) -> Error {
    match error {
        Error::Input { message, hint } => {
            let (_, rest) = message.split_once(": ").unwrap_or(("", &message));
            Error::Input {
                message: format!("`{flag}`: {rest}"),
                hint,
            }
        }
        other => other,
    }
}

/// The page about the run in `dir`, where one is wanted; served until it is dropped.
pub fn serve_dashboard(enabled: bool, dir: &Path) -> Result<Option<Dashboard>> {
    if !enabled || !distributed::is_main() {
        return Ok(None);
    }
    let watch = Dashboard::serve(dir.to_owned())?;
    // The address is told under `--quiet` too: without it there is no page.
    eprintln!("watch it on {}", watch.url);
    Ok(Some(watch))
}

/// The end of a run: its figures in a sentence, and the next command.
pub fn print_result(result: &RunResult, dir: &Path, context: &Context) -> Result<()> {
    if context.json {
        output::json(result)?;
    } else {
        output::line(&result.to_string())?;
    }
    let dir = dir.display();
    context
        .progress
        .note(format!("next: unforget report {dir} --out report.html"));
    match (result.within_budget, result.budget, result.forgetting_pp) {
        (Some(false), Some(budget), Some(forgotten)) => Err(Error::OverBudget {
            forgotten,
            budget,
            hint: "the model was saved all the same; take a stronger remedy (`method.lambda`, `method.decoys`), fewer new facts, \
                    or more held-out ones to steer by",
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unforget::{
        config::{Goal, MethodKind},
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
            budget: None,
            on_nonfinite: None,
            set: Vec::new(),
            baseline: None,
            skip_bad_rows: false,
            force: false,
            dry_run: false,
            keep_checkpoints: false,
            profile: false,
            watch: false,
        }
    }

    #[test]
    fn sets_go_over_flags_and_flags_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("exp.toml");
        std::fs::write(
            &file,
            "model = 'm'\nseed = 1\n[train]\nlr = 1e-3\nepochs = 3\n",
        )
        .unwrap();
        let tune = TuneArgs {
            method: Some("sft".into()),
            set: vec!["train.learning_rate=1e-4".into()],
            ..tune(file.to_str().unwrap())
        };
        let config = tune.config(Some(7)).unwrap();
        assert_eq!(config.model, "m");
        assert_eq!(config.seed, 7);
        assert_eq!(config.out, Path::new("run"));
        assert_eq!(config.method.kind, MethodKind::Sft);
        assert_eq!(config.train.learning_rate, 1e-4);
        assert_eq!(config.train.num_epochs, 3);
    }

    #[test]
    fn an_unknown_method_names_the_flag_and_the_nearest_one() {
        let tune = TuneArgs {
            method: Some("self-distil".into()),
            ..tune("m")
        };
        let error = tune.config(None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`--method`: `method.kind` is `self-distil`"
        );
        assert_eq!(error.hint(), Some("did you mean `self-distill`?"));
    }

    fn done() -> RunResult {
        RunResult {
            method: "self-distill".into(),
            model: "m".into(),
            goal: Goal::Facts,
            accuracy: PerSplit::default(),
            forgetting_pp: Some(3.2),
            forgetting_interval: Some([1.1, 5.9]),
            gap_to_only_known_pp: Some(5.4),
            learned: Some(0.975),
            learned_paraphrased: Some(0.8),
            not_absorbed: None,
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
            peak_memory_bytes: 0,
        }
    }

    #[test]
    fn a_run_over_its_budget_is_told_and_exits_with_3() {
        let context = Context {
            json: false,
            seed: None,
            progress: unforget::progress::Progress::quiet(),
        };
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
            "the model forgot 3.2 pp of the held-out facts, over the budget of 1 pp"
        );
    }

    #[test]
    fn a_run_is_told_in_one_sentence() {
        assert_eq!(
            done().to_string(),
            "self-distill: learned 780 of 800 new facts (97.5%, 80.0% paraphrased), kept 170 of 185 known facts; \
             forgot 3.2 pp of the held-out facts since the best epoch (95%: 1.1 to 5.9); gap to Only Known 5.4 pp; \
             8 epochs, 264 steps, 182 s"
        );
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
                "sft+task: absorbed 10 of 800 new facts (1.2%; should be few), kept 170"
            ),
            "{told}"
        );
    }
}
