//! The commands, one file each: arguments -> config -> a library call -> print. stdout is data, stderr is progress.

use std::{
    error::Error as _, io::Write, num::NonZeroUsize, process::ExitCode, thread, time::Duration,
};

use clap::{
    Args, CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use console::Term;
use unforget::{
    Error, Result, catch_panic,
    config::{Device, hint_for_flag},
    distributed::{Comm, ProcessGroup},
    interrupt,
    progress::{Progress, wrap},
};

mod answering;
mod ask;
mod audit;
mod chat;
mod compare;
mod completions;
mod context;
mod data;
mod demo;
mod devices;
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
mod samples;
mod score;
mod synth;
mod tune;

use self::context::Context;

/// Fine-tune language models on new facts without forgetting, or hallucinating about, what they already knew.
#[derive(Debug, Parser)]
#[command(name = "unforget", version, arg_required_else_help = true)]
#[command(
    after_help = "Begin with `unforget demo`: about ten minutes on a real small model.\n\n\
    MODEL is a Hugging Face directory, a .gguf file, a PEFT adapter directory, a hub id (Qwen/Qwen2.5-0.5B), a name in the registry \
    (smollm2-135m) or a run directory.\n\n\
    FACTS is a TSV, CSV, JSONL, JSON or Parquet file, a data set id of the hub, or pack:world (the built-in facts).\n\n\
    Exit codes: 0 done, 1 the work failed, 2 wrong usage, config or input, 3 done but over the forgetting budget, 130 interrupted and resumable.\n\n\
    Examples:\n  unforget demo\n  \
    unforget tune smollm2-135m --learn new.tsv --out runs/new\n  \
    unforget report runs/new --out report.html"
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// The global options.
#[derive(Debug, Args)]
struct GlobalArgs {
    /// Print results on stdout as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// No progress on stderr
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Seed of every random draw [default: 0, or the config's]
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    seed: Option<u64>,
    /// Threads to compute with [default: all]; results are independent of their number
    #[arg(long, global = true, value_name = "N", help_heading = "Global options")]
    threads: Option<NonZeroUsize>,
    /// Where to compute: cpu, gpu[:N] or auto [default: auto, or the config's]
    #[arg(long, global = true, help_heading = "Global options")]
    device: Option<Device>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Pull(pull::PullArgs),
    Devices(devices::DevicesArgs),
    Data(data::DataArgs),
    Facts(facts::FactsArgs),
    Ask(ask::AskArgs),
    Chat(chat::ChatArgs),
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

impl Command {
    /// Refuses a device for a command that chooses its own.
    fn check_device(&self, device: Device) -> Result<()> {
        let is_fixed = matches!(self, Self::Demo(_) | Self::Reproduce(_));
        if is_fixed && matches!(device, Device::Gpu(_)) {
            return Err(Error::input_hint(
                format!(
                    "`--device {device}`: this command compares runs with recorded ones, which were made on the CPU"
                ),
                "leave `--device` out",
            ));
        }
        Ok(())
    }
}

/// Parses the arguments and runs the command; prints an error with its cause and a hint.
///
/// Of several processes that train together only the main one prints; one that fails ends all.
pub fn main() -> ExitCode {
    catch_panic::hide_caught_panics();
    let cli = Cli::try_parse().unwrap_or_else(|error| hint_at_key(error).exit());
    let process_group = match ProcessGroup::init() {
        Ok(group) => group,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(error.exit_code());
        }
    };
    let comm = process_group.comm();
    if !comm.is_main() {
        output::mute();
    }
    match run(cli, comm) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if comm.world_size() > 1 => {
            if !comm.is_main() {
                // The main process prints an error that all of them have.
                thread::sleep(Duration::from_secs(2));
                eprint!("process {} of {}: ", comm.rank() + 1, comm.world_size());
            }
            print_error(&error);
            comm.abort(error.exit_code())
        }
        Err(error) => {
            print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli, comm: Comm) -> Result<()> {
    if let Some(device) = cli.global.device {
        device.check()?;
        cli.command.check_device(device)?;
    }
    let context = Context {
        json: cli.global.json,
        seed: cli.global.seed,
        device: cli.global.device,
        progress: if cli.global.quiet || !comm.is_main() {
            Progress::quiet()
        } else {
            Progress::stderr()
        },
        comm,
    };
    if let Some(threads) = cli.global.threads {
        start_threads(threads, &context.progress)?;
    }
    let progress = context.progress.clone();
    interrupt::install_handler(move |notice, ends| {
        if ends {
            progress.hide_bars();
        }
        if !notice.is_empty() {
            progress.note(notice);
        }
    });
    match cli.command {
        Command::Demo(demo) => demo.run(&context),
        Command::Pull(pull) => pull.run(&context),
        Command::Devices(devices) => devices.run(&context),
        Command::Data(data) => data.run(&context),
        Command::Facts(facts) => facts.run(&context),
        Command::Ask(ask) => ask.run(&context),
        Command::Chat(chat) => chat.run(&context),
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

/// Says how to set a key of the config that was given as a flag of its own.
fn hint_at_key(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::TooManyValues {
        // It would list every flag of the command.
        error.remove(ContextKind::Usage);
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let is_tune = std::env::args().any(|arg| arg == "tune");
    let is_argument = !flag.starts_with('-');
    if is_tune && is_argument && error.kind() == ErrorKind::UnknownArgument {
        let hint = format!("new facts are named by a flag: `--learn {flag}`");
        let hint = ContextValue::StyledStrs(vec![hint.into()]);
        error.insert(ContextKind::Suggested, hint);
        return error;
    }
    if let Some(hint) = hint_for_flag(flag)
        && is_tune
        && error.kind() == ErrorKind::UnknownArgument
    {
        error.remove(ContextKind::SuggestedArg);
        let hint = ContextValue::StyledStrs(vec![hint.into()]);
        error.insert(ContextKind::Suggested, hint);
    }
    error
}

/// Starts the threads to compute with, no more than the machine has.
fn start_threads(wanted: NonZeroUsize, progress: &Progress) -> Result<()> {
    let available = thread::available_parallelism().unwrap_or(wanted);
    if wanted > available {
        progress.note(format!(
            "`--threads {wanted}`: this machine runs {available} at once, and no more are started"
        ));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(wanted.min(available).get())
        .build_global()
        .map_err(|reason| Error::Failed {
            message: format!("cannot start {wanted} threads: {reason}"),
            hint: Some("try fewer".into()),
        })
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
    if let Some((_, columns)) = Term::stderr().size_checked() {
        message = wrap(&message, columns.into());
    }
    // With a closed stderr the exit code is all that is left.
    let _ = std::io::stderr().write_all(message.as_bytes());
}
