//! `unforget export`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use unforget::{
    Error, Result,
    export::{
        CardFiles, LM_EVAL_TASK, ModelfileChat, lm_eval_task, model_card, modelfile, stop_token,
    },
    hub::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, HubCommit, HubRepository},
    model::{Dtype, GgufType, ModelConfig, save_adapter_gguf},
    prompt::{ChatParts, has_chat_template},
    run::{ADAPTER_DIR, Environment, RecordedRun, RunDir, Split, TrainedPrompt},
};

use super::{
    answering::trained_prompt,
    context::{Context, finished_run, finished_run_of, load_model, load_tokenizer, model_spec},
    output,
};

/// Convert a run's model, or any model, to a format that other tools load
#[derive(Debug, Args)]
#[command(
    after_help = "The export of a run has a README.md: a model card with what was learned, kept and forgotten.\n\n\
    Examples:\n  \
    unforget export runs/p17 --to hf --out p17-model\n  \
    unforget export runs/p17 --to gguf --dtype q8_0 --out p17-gguf \\\n      && ollama create p17 -f p17-gguf/Modelfile\n  \
    unforget export runs/lora --to gguf --adapter --out p17-lora\n  \
    unforget export runs/lora --to peft --out p17-adapter \\\n      --push me/p17-adapter --private\n  \
    unforget export runs/p17 --to lm-eval --out p17-task"
)]
pub struct ExportArgs {
    /// A run directory, or a model
    run: String,
    /// Output format: hf (Hugging Face directory), gguf (with a Modelfile for Ollama), peft (the adapter of a run with `train.lora`),
    /// lm-eval (a task with the held-out facts of a run, for lm-evaluation-harness)
    #[arg(long, value_enum, default_value = "hf")]
    to: Format,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights [default: as in the source, f32 for a GGUF; f16 with `--to gguf`]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// With `--to gguf`, of a run with `train.lora`: the adapter alone, which llama.cpp adds to its base model (`--lora`)
    #[arg(long)]
    adapter: bool,
    /// With `--to peft`: the hub id of the model that the adapter is for, where it was fitted to other weights, such as quantised ones
    #[arg(long, value_name = "ID")]
    base: Option<String>,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
    /// Upload the directory to this repository on the Hugging Face hub, as one commit; it is created if it does not exist. The token
    /// is that of `HF_TOKEN` or `hf auth login`. For hf, gguf and peft
    #[arg(long, value_name = "OWNER/NAME")]
    push: Option<String>,
    /// Create the repository as a private one; upload nothing to a public one
    #[arg(long, requires = "push")]
    private: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Hf,
    Gguf,
    Peft,
    LmEval,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeArg {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<DtypeArg> for GgufType {
    fn from(weights: DtypeArg) -> Self {
        match weights {
            DtypeArg::F32 => Self::F32,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::Bf16,
            DtypeArg::Q8_0 => Self::Q8_0,
            DtypeArg::Q4_0 => Self::Q4_0,
        }
    }
}

/// The title of the commit on the hub.
const SUMMARY: &str = "Upload a model with unforget";

/// What the GGUF file in the directory is called.
const GGUF_FILE: &str = "model.gguf";

/// What the GGUF file of an adapter is called.
const GGUF_ADAPTER_FILE: &str = "adapter.gguf";

impl ExportArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        // Before any work: the repository's name and the token.
        let hub = self.push.as_deref();
        let hub = hub
            .map(|id| HubRepository::new(id, self.private))
            .transpose()?;
        let wrong = [
            (self.adapter && self.to != Format::Gguf, "--adapter", "gguf"),
            (
                self.base.is_some() && self.to != Format::Peft,
                "--base",
                "peft",
            ),
        ];
        if let Some((_, flag, format)) = wrong.into_iter().find(|(is_wrong, ..)| *is_wrong) {
            return Err(Error::input_hint(
                format!("`{flag}` is for `--to {format}`"),
                format!("leave `{flag}` out, or write `--to {format}`"),
            ));
        }
        let files = match self.to {
            Format::Hf => self
                .write_hugging_face(context)
                .map(|()| CardFiles::Model)?,
            Format::Gguf if self.adapter => self
                .write_gguf_adapter(context)
                .map(|()| CardFiles::GgufAdapter)?,
            Format::Gguf => self.write_gguf(context).map(|()| CardFiles::Gguf)?,
            Format::Peft => self.copy_adapter(context).map(|()| CardFiles::Adapter)?,
            Format::LmEval => return self.write_task(context),
        };
        if let Some(run) = finished_run_of(&self.run)? {
            let recorded = RecordedRun::read(run.path())?;
            let tokenizer = load_tokenizer(&self.run)?;
            let prompt = TrainedPrompt::of_run(&recorded, &run.config()?.data, &tokenizer)?;
            let card = model_card(&recorded, &prompt, files, self.push.as_deref());
            self.write("README.md", &card)?;
        }
        let note = |text| context.progress.note(text);
        let commit = hub.map(|hub| hub.push(&self.out, SUMMARY, &note));
        let commit = commit.transpose()?;
        if context.json {
            let commit = commit.map(|HubCommit { url, id }| json!({ "url": url, "commit": id }));
            output::json(&match commit {
                Some(commit) => json!({ "out": self.out, "pushed": commit }),
                None => json!({ "out": self.out }),
            })
        } else {
            output::line(&self.out.display().to_string())?;
            commit.map_or(Ok(()), |commit| output::line(&commit.url))
        }
    }

    /// Writes the task of the held-out facts.
    fn write_task(&self, context: &Context) -> Result<()> {
        if self.push.is_some() {
            return Err(Error::input_hint(
                "a task for lm-evaluation-harness is not uploaded: it names its file of facts by a path of this machine",
                "leave `--push` out; `--to hf`, `gguf` and `peft` upload a model",
            ));
        }
        let run = finished_run(Path::new(&self.run))?;
        let recorded = RecordedRun::read(run.path())?;
        if !recorded.facts.iter().any(|fact| fact.split == Split::Held) {
            return Err(Error::input_hint(
                format!("the run `{}` has no held-out facts", self.run),
                "train with `--held FACTS`, or with an audit, which holds known facts out",
            ));
        }
        output::check_output_dir(&self.out, self.force, context.comm)?;
        let tokenizer = load_tokenizer(&self.run)?;
        let prompt = TrainedPrompt::of_run(&recorded, &run.config()?.data, &tokenizer)?;
        fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        // The harness resolves a relative path from the directory it is called in.
        let dir = fs::canonicalize(&self.out).map_err(Error::io("read", &self.out))?;
        for (name, text) in lm_eval_task(&recorded, &prompt, &dir) {
            self.write(&name, &text)?;
        }
        let out = self.out.display();
        context.progress.note(format!(
            "next: lm_eval --model hf --model_args pretrained=MODEL --include_path {out} --tasks {LM_EVAL_TASK}"
        ));
        if context.json {
            output::json(&json!({ "out": self.out }))
        } else {
            output::line(&out.to_string())
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.out.join(name);
        fs::write(&path, text).map_err(Error::io("write", &path))
    }

    fn write_hugging_face(&self, context: &Context) -> Result<()> {
        let dtype = match self.dtype {
            None => None,
            Some(DtypeArg::F32) => Some(Dtype::F32),
            Some(DtypeArg::F16) => Some(Dtype::F16),
            Some(DtypeArg::Bf16) => Some(Dtype::Bf16),
            Some(DtypeArg::Q8_0 | DtypeArg::Q4_0) => {
                return Err(Error::input_hint(
                    "a Hugging Face directory is written in f32, f16 or bf16",
                    "quantised types are for `--to gguf`",
                ));
            }
        };
        output::check_output_dir(&self.out, self.force, context.comm)?;
        let mut model = load_model(&self.run)?;
        let prompt = trained_prompt(&self.run, &model.tokenizer)?;
        if let Some(stop) = prompt.and_then(|prompt| stop_token(&prompt, &model.tokenizer)) {
            model.add_eos_token(stop);
            if has_chat_template(&model.tokenizer) {
                context.progress.note(format!(
                    "an answer ends at its first line break, as those of the facts that were trained, also in a chat: for longer ones take {stop} out of `eos_token_id` in generation_config.json"
                ));
            }
        }
        model.save(&self.out, dtype.unwrap_or(model.dtype))
    }

    fn write_gguf(&self, context: &Context) -> Result<()> {
        output::check_output_dir(&self.out, self.force, context.comm)?;
        let model = load_model(&self.run)?;
        let prompt = trained_prompt(&self.run, &model.tokenizer)?;
        let parts = ChatParts::of(&model.tokenizer);
        let chat = match &parts {
            Some(parts) => ModelfileChat::Parts(parts),
            None if has_chat_template(&model.tokenizer) => ModelfileChat::Other,
            None => ModelfileChat::None,
        };
        fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        let dtype = self.dtype.map_or(GgufType::F16, GgufType::from);
        model.save_gguf(&self.out.join(GGUF_FILE), dtype)?;
        self.write("Modelfile", &modelfile(GGUF_FILE, prompt.as_ref(), chat))?;
        if prompt.is_some() {
            context
                .progress
                .note("README.md beside it says how to ask the model with Ollama and llama.cpp");
        }
        Ok(())
    }

    /// Writes the adapter of the run as GGUF.
    fn write_gguf_adapter(&self, context: &Context) -> Result<()> {
        let run = self.run_with_adapter(context)?;
        let config = ModelConfig::load(&model_spec(&self.run)?)?;
        fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        save_adapter_gguf(
            &config,
            &run.file(ADAPTER_DIR),
            &self.out.join(GGUF_ADAPTER_FILE),
        )
    }

    /// The base model that a PEFT adapter names: a hub id with the weights that it was fitted to, or what the user says.
    fn adapter_base(&self, run: &RunDir) -> Result<String> {
        if let Some(base) = &self.base {
            return Ok(base.clone());
        }
        let environment: Environment = run.read_json("environment.json")?;
        let model = environment.model;
        let quantization = model.quantization.unwrap_or_default();
        let is_whole = ["F32", "F16", "BF16"].contains(&quantization.to_uppercase().as_str());
        match model.hub_id {
            Some(id) if is_whole => Ok(id),
            None if is_whole => Ok(model.name),
            id => Err(Error::input_hint(
                format!(
                    "the adapter was fitted to {quantization} weights of `{}`, which no hub id has: on others its answers differ",
                    model.name
                ),
                match id {
                    Some(id) => format!("`--base {id}` names the model in full precision; `--to gguf --adapter` keeps the quantised base"),
                    None => "`--base ID` names the model that it is for; `--to gguf --adapter` keeps the quantised base".into(),
                },
            )),
        }
    }

    /// The finished run, which has an adapter; the output directory can be written.
    fn run_with_adapter(&self, context: &Context) -> Result<RunDir> {
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
                format!("the run `{}` is not finished: it has no adapter", self.run),
                format!("complete it with `unforget resume {}`", self.run),
            ));
        }
        output::check_output_dir(&self.out, self.force, context.comm)?;
        Ok(run)
    }

    /// Copies the adapter that the run wrote.
    fn copy_adapter(&self, context: &Context) -> Result<()> {
        let run = self.run_with_adapter(context)?;
        let base = self.adapter_base(&run)?;
        fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        let from = run.file(ADAPTER_DIR);
        let config = from.join(ADAPTER_CONFIG);
        let text = fs::read_to_string(&config).map_err(Error::io("read", &config))?;
        let mut settings: Value = serde_json::from_str(&text).map_err(|e| Error::BrokenModel {
            path: config,
            message: e.to_string(),
        })?;
        settings["base_model_name_or_path"] = base.into();
        let text = serde_json::to_string_pretty(&settings).expect("JSON serializes") + "\n";
        self.write(ADAPTER_CONFIG, &text)?;
        // The weights last: without them nothing takes the directory for an adapter.
        let (from, to) = (from.join(ADAPTER_WEIGHTS), self.out.join(ADAPTER_WEIGHTS));
        fs::copy(&from, &to).map_err(Error::io("copy", &from))?;
        Ok(())
    }
}
