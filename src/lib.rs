//! Fine-tune language models on new facts without making them forget the old ones, and prove it fact by fact.
//!
//! The code reads in the order in which the data flows: [`read_facts`] -> [`audit`] -> [`splits`] -> [`train`] ->
//! [`metric`] -> [`report`]; [`experiment`] repeats the whole.
//!
//! The main job, on a model so small that it learns in no time what it then says (`smollm2-135m` stands for a real one):
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
//! config.data.learn = vec![file("learn.tsv", "Bergamo\tP17\tItaly\nOslo\tP17\tNorway\n")?];
//! config.data.keep = vec![file("keep.tsv", "Paris\tP17\tFrance\nLyon\tP17\tFrance\n")?];
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
mod catch_panic;
pub mod config;
pub mod dashboard;
pub mod distributed;
pub mod engine;
pub mod error;
pub mod experiment;
pub mod export;
pub mod facts;
pub mod forecast;
mod format;
pub mod gate;
pub mod generate;
mod hub;
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
pub mod train;

pub use error::{Error, Result};
