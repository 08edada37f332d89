//! `unforget export`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde_json::json;
use unforget::{
    Error, Result,
    model::Dtype,
    run::{ADAPTER, RunDir},
};

use super::{Context, load_model, output};

/// Write a run's model (or any model) in a form that other tools load
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    unforget export runs/p17 --to hf --out p17-model\n  \
    unforget export runs/lora --to peft --out p17-adapter")]
pub struct Export {
    /// A run directory, or a model
    run: String,
    /// The form: a Hugging Face directory, or the adapter of a run with `train.lora`, as PEFT loads it; gguf is not in
    /// this version yet
    #[arg(long, value_enum, default_value = "hf")]
    to: Form,
    /// The directory to be written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights [default: as in the source; f32 for a GGUF]
    #[arg(long, value_enum)]
    dtype: Option<Weights>,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Hf,
    Gguf,
    Peft,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Weights {
    F32,
    F16,
    Bf16,
}

impl From<Weights> for Dtype {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::F32 => Self::F32,
            Weights::F16 => Self::F16,
            Weights::Bf16 => Self::Bf16,
        }
    }
}

impl Export {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.to {
            Form::Hf => {
                output::check_free_dir(&self.out, self.force)?;
                let model = load_model(&self.run)?;
                let dtype = self.dtype.map_or(model.dtype, Dtype::from);
                model.save(&self.out, dtype)?;
            }
            Form::Peft => self.copy_adapter()?,
            Form::Gguf => {
                return Err(Error::input_hint(
                    "`--to gguf` is not in this version yet",
                    "`--to hf` writes what `transformers` loads",
                ));
            }
        }
        if context.json {
            output::json(&json!({ "out": self.out }))
        } else {
            output::line(&self.out.display().to_string())
        }
    }

    /// Copies the adapter that the run wrote.
    fn copy_adapter(&self) -> Result<()> {
        if self.dtype.is_some() {
            return Err(Error::input_hint(
                "`--dtype` is for whole models: an adapter is written as it was trained, in f32",
                "leave `--dtype` out",
            ));
        }
        let run = RunDir::open(Path::new(&self.run))?;
        if run.config()?.train.lora.is_none() {
            return Err(Error::input_hint(
                format!(
                    "`{}` has no adapter: it was trained without `train.lora`",
                    self.run
                ),
                "`--to hf` writes the whole model",
            ));
        }
        if run.result()?.is_none() {
            return Err(Error::input_hint(
                format!("the run `{}` is not done: it has no adapter", self.run),
                format!("go on with `unforget resume {}`", self.run),
            ));
        }
        output::check_free_dir(&self.out, self.force)?;
        fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        let from = run.file(ADAPTER);
        // The weights last: without them nothing takes the directory for an adapter.
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let (from, to) = (from.join(name), self.out.join(name));
            fs::copy(&from, &to).map_err(Error::io("copy", &from))?;
        }
        Ok(())
    }
}
