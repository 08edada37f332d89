//! `unforget pull`.

use clap::Args;
use serde_json::json;
use unforget::{Result, model};

use super::{context::Context, output};

/// Download a model into the cache, verify its checksum and print its path
#[derive(Debug, Args)]
#[command(after_help = "A second call downloads nothing.\n\n\
    Examples:\n  unforget pull smollm2-135m\n  unforget pull Qwen/Qwen2.5-0.5B")]
pub struct PullArgs {
    /// A registered name (smollm2-135m, gemma3-270m) or a hub id (Qwen/Qwen2.5-0.5B)
    model: String,
}

impl PullArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let path = model::pull(&self.model)?;
        if let Some(terms) = model::terms_of_use(&self.model) {
            let note = format_args!("{} may be used under {terms}", self.model);
            context.progress.note(note);
        }
        if context.json {
            output::json(&json!({ "model": self.model, "path": path }))
        } else {
            output::line(&path.display().to_string())
        }
    }
}
