//! The integration tests, in one binary.

mod audit;
mod bad_inputs;
mod book;
mod broken_models;
mod browser;
mod cli;
mod data;
mod demo;
mod drift;
mod environment;
mod experiment;
mod facts;
mod faults;
mod forecast;
mod fuzz;
mod golden;
mod hub;
mod lora;
mod model;
mod project;
mod remedies;
mod report;
mod rooms;
mod smollm2;
mod synth;
mod tools;
