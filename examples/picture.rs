//! Accuracy over epochs of recorded runs as a picture of its own, such as the README's:
//! `cargo run --release --example picture -- runs/demo/sft runs/demo/self-distill > picture.svg`

use std::{path::PathBuf, process::ExitCode};

use unforget::report;

#[allow(clippy::print_stdout, reason = "the picture is its output")]
fn main() -> ExitCode {
    let dirs: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match report::read_runs(&dirs) {
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
