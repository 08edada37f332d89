//! Fine-tune language models on new facts without forgetting, or hallucinating about, what they already knew, and measure it fact by
//! fact.
//!
//! The code reads in the order in which the data flows: [`facts`] -> [`audit`] -> [`splits`] -> [`train`] -> [`measure`] ->
//! [`report`]. [`experiment`] repeats all of it.
//!
//! # Modules
//!
//! These are the top-level modules. A module imports only modules below it, and the files of a module have no import cycle;
//! `tests/it/rooms.rs` reads this list and checks both.
//!
//! - `cli`: one file per command: arguments, config, a library call, output
//! - `experiment`: the paper's figures and our own: arms, records, claims
//! - `dashboard`, `gate`, `export`, `report`: from recorded runs to a page, a model card, an exit code
//! - `train`: the training loop, its evaluator, checkpoints and cost estimate
//! - `remedy`: methods against forgetting, one file each
//! - `run`: the run directory and its records
//! - `forecast`, `splits`, `synth`, `audit`, `measure`: `SLiCK` labels, splits, accuracy, forgetting, drift
//! - `generate`: batched decoding
//! - `prompt`: training examples as token ids, packed for the engine
//! - `engine`: forward and backward pass, loss head, optimizer step
//! - `devices`: what `--device` can name
//! - `gpu`: the engine's operations as kernels for any GPU
//! - `model`: model config, tokenizer, weights, file formats
//! - `facts`: facts and their readers
//! - `hub`: downloads, uploads, cache and checksums
//! - `config`: the experiment file, typed and validated
//! - `progress`, `interrupt`, `tensor_file`, `file_map`, `atomic_file`, `distributed`, `system`, `format`, `catch_panic`, `error`: support
//!
//! # Example
//!
//! Fine-tuning, evaluation and report, on a tiny test model in place of a real one such as `smollm2-135m`:
//!
//! ```
//! use std::fs;
//! use unforget::{config::Config, progress::Progress, report, train};
//!
//! let place = tempfile::tempdir()?;
//! let file = |name: &str, rows: &str| {
//!     let path = place.path().join(name);
//!     fs::write(&path, format!("subject\trelation\tobject\n{rows}")).map(|()| path)
//! };
//! let (run, page) = (place.path().join("run"), place.path().join("report.html"));
//! let mut config = Config {
//!     model: "tests/golden/llama".into(),
//!     out: run.clone(),
//!     ..Config::default()
//! };
//! config.data.learn = vec![file("learn.tsv", "Bergamo\tP17\tItaly\nOslo\tP17\tNorway\n")?.into()];
//! config.data.keep = vec![file("keep.tsv", "Paris\tP17\tFrance\nLyon\tP17\tFrance\n")?.into()];
//! config.data.held = vec![file("held.tsv", "Madrid\tP17\tSpain\n")?];
//! let config = config.with_sets(&["data.audit=false".into(), "train.num_epochs=4".into()])?;
//! config.validate()?;
//!
//! let result = train::tune(&config, train::Options::default(), &Progress::quiet())?;
//! assert_eq!(result.epochs, 4);
//! report::write(&[run], &page, None)?;
//! assert!(fs::read_to_string(page)?.contains("Bergamo"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic_file;
pub mod audit;
pub mod catch_panic;
pub mod config;
pub mod dashboard;
pub mod devices;
pub mod distributed;
pub mod engine;
pub mod error;
pub mod experiment;
pub mod export;
pub mod facts;
mod file_map;
pub mod forecast;
mod format;
pub mod gate;
pub mod generate;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod hub;
pub mod interrupt;
pub mod measure;
pub mod model;
pub mod progress;
pub mod prompt;
pub mod remedy;
pub mod report;
pub mod run;
pub mod splits;
pub mod synth;
pub mod system;
mod tensor_file;
pub mod train;

pub use error::{Error, Result};
