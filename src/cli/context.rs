//! Shared by all commands: global options, and loading of models and runs named on the command line.

use std::path::Path;

use unforget::{
    Error, Result,
    config::Device,
    distributed::Comm,
    engine::Engine,
    model::{Model, ModelConfig, TextTokenizer},
    progress::Progress,
    run::{RunDir, contains_runs, not_a_run},
};

/// The global options of a command.
pub struct Context {
    pub json: bool,
    pub seed: Option<u64>,
    pub device: Option<Device>,
    pub progress: Progress,
    /// The processes that share the work.
    pub comm: Comm,
}

impl Context {
    /// An engine for models of this shape, on the device of the command line.
    pub fn engine(&self, config: &ModelConfig) -> Result<Engine> {
        Engine::on(config, self.device.unwrap_or_default())
    }
}

/// Loads the model `spec`, as named on the command line.
pub fn load_model(spec: &str) -> Result<Model> {
    Model::load(&model_spec(spec)?)
}

/// Loads the tokenizer of the model `spec`, without its weights.
pub fn load_tokenizer(spec: &str) -> Result<TextTokenizer> {
    TextTokenizer::load(&model_spec(spec)?)
}

/// The name of the model for the library: for a run directory, the path of its trained model.
pub fn model_spec(spec: &str) -> Result<String> {
    let run = Path::new(spec);
    let model_dir = run.join("model");
    if model_dir.is_dir() {
        return Ok(model_dir.display().to_string());
    }
    if run.join("metrics.jsonl").exists() {
        return Err(Error::input_hint(
            format!("the run `{spec}` is not finished: it has no model"),
            format!("continue it with `unforget resume {spec}`"),
        ));
    }
    if !run.join("config.json").exists() && contains_runs(run) {
        return Err(not_a_run(run));
    }
    Ok(spec.to_owned())
}

/// The finished run that `spec` names on the command line, if it names one.
pub fn finished_run_of(spec: &str) -> Result<Option<RunDir>> {
    let path = Path::new(spec);
    let is_run = path.join("result.json").is_file();
    is_run.then(|| RunDir::open(path)).transpose()
}

/// Opens the finished run in `dir`.
pub fn finished_run(dir: &Path) -> Result<RunDir> {
    let run = RunDir::open(dir)?;
    if run.result()?.is_none() {
        return Err(Error::input_hint(
            format!("the run `{}` is not finished", dir.display()),
            format!("continue it with `unforget resume {}`", dir.display()),
        ));
    }
    Ok(run)
}
