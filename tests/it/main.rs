//! The integration tests, in one binary.

mod audit;
mod broken_models;
mod browser;
mod cli;
mod demo;
mod facts;
mod forecast;
mod golden;
mod model;
mod remedies;
mod report;
mod smollm2;
