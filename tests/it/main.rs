//! The integration tests, in one binary.

mod audit;
mod browser;
mod cli;
mod demo;
mod facts;
mod golden;
mod model;
mod report;
mod smollm2;
