//! Accuracy over epochs of run directories as an SVG file, such as the plot in the README:
//! `cargo run --release --example picture -- runs/demo/sft runs/demo/auto > picture.svg`

use std::{path::PathBuf, process::ExitCode};

use unforget::{report, run::RecordedRun};

#[allow(clippy::print_stdout, reason = "the SVG is its output")]
fn main() -> ExitCode {
    let dirs: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match RecordedRun::read_all(&dirs) {
        Ok(runs) => {
            println!(
                "{}",
                report::chart::svg("Accuracy over epochs", &report::accuracy(&runs), 3)
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
