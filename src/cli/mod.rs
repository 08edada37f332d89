//! The commands, one file each: arguments -> config -> a library call -> print. stdout is data, stderr is progress.

use std::{
    error::Error as _, io::Write, num::NonZeroUsize, process::ExitCode, thread, time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use unforget::{Error, Result, catch_panic, distributed, interrupt, progress::Progress};

mod ask;
mod audit;
mod compare;
mod completions;
mod context;
mod data;
mod demo;
mod drift;
mod export;
mod fact_args;
mod facts;
mod forecast;
mod gate;
mod output;
mod pull;
mod report;
mod reproduce;
mod resume;
mod rows;
mod score;
mod synth;
mod tune;

use self::context::Context;

/// Fine-tune language models on new facts without making them forget the old ones, and prove it fact by fact.
#[derive(Debug, Parser)]
#[command(name = "unforget", version, arg_required_else_help = true)]
#[command(
    after_help = "Begin with `unforget demo`: the whole story on a real small model, in about ten minutes.\n\n\
    MODEL is a Hugging Face directory, a .gguf file, a hub id (Qwen/Qwen2.5-0.5B), a name in the registry \
    (smollm2-135m) or a run directory.\nFACTS is a TSV, CSV, JSONL or EntityQuestions file, or pack:world, the built-in facts.\n\n\
    Exit codes: 0 done, 1 the work failed, 2 wrong usage, config or input, 3 done but over the\nforgetting budget, 130 interrupted."
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct GlobalArgs {
    /// Print results on stdout as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// No progress on stderr
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Seed of every draw [default: 0, or the config's]
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    seed: Option<u64>,
    /// Threads to compute with [default: all]; results do not depend on it
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    threads: Option<NonZeroUsize>,
    /// Where to compute: cpu, cuda[:N] or auto
    #[arg(
        long,
        global = true,
        default_value = "auto",
        help_heading = "Global options"
    )]
    device: Device,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Pull(pull::PullArgs),
    Data(data::DataArgs),
    Facts(facts::FactsArgs),
    Ask(ask::AskArgs),
    Score(score::ScoreArgs),
    Audit(audit::AuditArgs),
    Tune(tune::TuneArgs),
    Resume(resume::ResumeArgs),
    Compare(compare::CompareArgs),
    Drift(drift::DriftArgs),
    Gate(gate::GateArgs),
    Forecast(forecast::ForecastArgs),
    Synth(synth::SynthArgs),
    Report(report::ReportArgs),
    Reproduce(reproduce::ReproduceArgs),
    Export(export::ExportArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Where to compute. `auto` is the CPU, the only device of this build.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Device {
    Cpu,
    Gpu(String),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let is_gpu = name == "cuda"
            || name
                .strip_prefix("cuda:")
                .is_some_and(|n| n.parse::<u32>().is_ok());
        match name {
            "cpu" | "auto" => Ok(Self::Cpu),
            _ if is_gpu => Ok(Self::Gpu(name.to_owned())),
            _ => Err("expected cpu, cuda, cuda:N or auto".into()),
        }
    }
}

/// Parses the arguments, runs the command, and tells an error in one form: what, why, what to do.
///
/// Of several processes that share the work the first one speaks; one that fails ends all.
pub fn main() -> ExitCode {
    catch_panic::hide_caught_panics();
    let cli = Cli::parse();
    let _together = match distributed::init() {
        Ok(together) => together,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(error.exit_code());
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if distributed::world_size() > 1 => {
            if !distributed::is_main() {
                // What is wrong for all of them the first one says.
                thread::sleep(Duration::from_secs(2));
                eprint!(
                    "process {} of {}: ",
                    distributed::rank() + 1,
                    distributed::world_size()
                );
            }
            print_error(&error);
            distributed::abort(error.exit_code())
        }
        Err(error) => {
            print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Device::Gpu(name) = &cli.global.device {
        return Err(Error::input_hint(
            format!("`--device {name}`: this build computes on the CPU only"),
            "leave `--device` out, or say `--device cpu`",
        ));
    }
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .build_global()
            .map_err(|reason| Error::Failed {
                message: format!("cannot start {threads} threads: {reason}"),
                hint: Some("try fewer".into()),
            })?;
    }
    let context = Context {
        json: cli.global.json,
        seed: cli.global.seed,
        progress: if cli.global.quiet || !distributed::is_main() {
            Progress::quiet()
        } else {
            Progress::stderr()
        },
    };
    let progress = context.progress.clone();
    interrupt::install_handler(move || {
        progress.note("interrupted: stopping after this step (once more to stop at once)");
    });
    match cli.command {
        Command::Demo(demo) => demo.run(&context),
        Command::Pull(pull) => pull.run(&context),
        Command::Data(data) => data.run(&context),
        Command::Facts(facts) => facts.run(&context),
        Command::Ask(ask) => ask.run(&context),
        Command::Score(score) => score.run(&context),
        Command::Audit(audit) => audit.run(&context),
        Command::Tune(tune) => tune.run(&context),
        Command::Resume(resume) => resume.run(&context),
        Command::Compare(compare) => compare.run(&context),
        Command::Drift(drift) => drift.run(&context),
        Command::Gate(gate) => gate.run(&context),
        Command::Forecast(forecast) => forecast.run(&context),
        Command::Synth(synth) => synth.run(&context),
        Command::Report(report) => report.run(&context),
        Command::Reproduce(reproduce) => reproduce.run(&context),
        Command::Export(export) => export.run(&context),
        Command::Completions(completions) => completions.run(Cli::command()),
        Command::Man(man) => man.run(Cli::command(), &context),
    }
}

/// Prints an error, its causes and what to do about it.
fn print_error(error: &Error) {
    let mut message = format!("error: {error}\n");
    let mut cause = error.source();
    while let Some(reason) = cause {
        message += &format!("  cause: {reason}\n");
        cause = reason.source();
    }
    if let Some(hint) = error.hint() {
        message += &format!("hint: {hint}\n");
    }
    // A closed stderr leaves the exit code to speak.
    let _ = std::io::stderr().write_all(message.as_bytes());
}
