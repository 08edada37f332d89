//! `unforget export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use unforget::{Error, Result, model::Dtype};

use super::{Context, load_model, output};

/// Write a run's model (or any model) in a form that other tools load
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  unforget export runs/p17 --to hf --out p17-model")]
pub struct Export {
    /// A run directory, or a model
    run: String,
    /// The form: a Hugging Face directory; gguf and peft are not in this version yet
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
        if self.to != Form::Hf {
            return Err(Error::input_hint(
                "`--to gguf` and `--to peft` are not in this version yet",
                "`--to hf` writes what `transformers` loads",
            ));
        }
        output::check_free_dir(&self.out, self.force)?;
        let model = load_model(&self.run)?;
        let dtype = self.dtype.map_or(model.dtype, Dtype::from);
        model.save(&self.out, dtype)?;
        if context.json {
            output::json(&json!({ "out": self.out }))
        } else {
            output::line(&self.out.display().to_string())
        }
    }
}
