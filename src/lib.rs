//! Fine-tune language models on new facts without making them forget the old ones, and prove it fact by fact.
//!
//! The code reads in the order in which the data flows: [`facts`] -> [`audit`] -> [`splits`] -> [`train`] ->
//! [`measure`] -> [`report`]; [`experiment`] repeats the whole.

pub mod audit;
pub mod config;
pub mod engine;
pub mod error;
pub mod experiment;
pub mod export;
pub mod facts;
mod figures;
pub mod forecast;
pub mod gate;
pub mod generate;
mod hub;
pub mod interrupt;
pub mod measure;
pub mod model;
pub mod progress;
pub mod prompt;
mod quiet;
pub mod remedy;
pub mod report;
pub mod run;
pub mod splits;
pub mod synth;
pub mod train;
pub mod watch;
mod whole;

pub use error::{Error, Result};
