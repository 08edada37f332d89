//! `unforget completions` and `unforget man`.

use std::{fs, io, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use unforget::{Error, Result};

use super::{context::Context, output};

/// Generate shell completions
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    unforget completions bash \\\n      > ~/.local/share/bash-completion/completions/unforget\n  \
    unforget completions zsh > \"${fpath[1]}/_unforget\"\n  \
    unforget completions fish > ~/.config/fish/completions/unforget.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    pub fn run(self, mut command: Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "unforget", &mut script);
        output::line(String::from_utf8_lossy(&script).trim_end())
    }
}

/// Generate man pages, one per command
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  unforget man ~/.local/share/man/man1 && man unforget-tune\n  unforget man pages"
)]
pub struct ManArgs {
    /// The directory to write
    dir: PathBuf,
}

impl ManArgs {
    pub fn run(self, command: Command, context: &Context) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        clap_mangen::generate_to(command, &self.dir)
            .map_err(|e: io::Error| Error::io("write", &self.dir)(e))?;
        context
            .progress
            .note(format!("wrote man pages to {}", self.dir.display()));
        Ok(())
    }
}
