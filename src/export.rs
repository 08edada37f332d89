//! Files that accompany an exported model: a model card for the hub, a Modelfile for Ollama.

use std::{fmt::Write as _, path::Path};

use serde_json::json;

use crate::{
    format::{capitalised, code_block, inline_code, percent},
    model::TextTokenizer,
    run::{AccuracyStages, PromptForm, RecordedRun, Split, TrainedPrompt},
};

mod lm_eval;
mod modelfile;

pub use lm_eval::{LM_EVAL_TASK, lm_eval_task};
pub use modelfile::{ModelfileChat, modelfile};

/// The token that `transformers` and vLLM end an answer at, beside the model's EOS: the line break behind the answers of a run on facts.
/// Answers in a chat end there too, because a generation config does not know how the model is asked. `None` after training in the chat
/// template or on texts, or where the end is no token of its own.
pub fn stop_token(prompt: &TrainedPrompt, tokenizer: &TextTokenizer) -> Option<u32> {
    let (PromptForm::Facts(template), [stop]) = (&prompt.form, &prompt.stops[..]) else {
        return None;
    };
    if template.rendered {
        return None;
    }
    let target = template.target_text("Paris");
    let answer = format!("{}{}", template.prompt_text(""), target.strip_suffix(stop)?);
    match tokenizer.encode_after(&answer, stop).ok()?[..] {
        [token] => Some(token),
        _ => None,
    }
}

/// The files that a model card describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardFiles {
    /// What `transformers` loads.
    Model,
    /// A GGUF file with a Modelfile.
    Gguf,
    /// A PEFT adapter.
    Adapter,
    /// An adapter as a GGUF file.
    GgufAdapter,
}

/// The `README.md` of a tuned model: hub metadata, use, accuracies, forgetting, config and environment. `repository` is the model's on
/// the hub, if it is uploaded.
///
/// It names no single fact and no local path of the base model. Text from the user is escaped as YAML strings or code.
pub fn model_card(
    run: &RecordedRun,
    prompt: &TrainedPrompt,
    files: CardFiles,
    repository: Option<&str>,
) -> String {
    let result = &run.result;
    let mut card = format!("---\n{}---\n\n", metadata(run, files));
    let _ = write!(
        card,
        "# {} after fine-tuning\n\nFine-tuned with `unforget` {}.\n\n{}.\n\n\
         ## Use\n\n{}\n\
         ## Accuracy\n\nThe first column is before training: the share of the audit's few-shot prompts that the model answers correctly, a mean over the facts. \
         The others are the share of the facts that it answers correctly at the training prompt, without examples.\n\n\
         | facts | few-shot, before | before | best epoch | after |\n|---|---|---|---|---|\n",
        inline_code(model_name(run)),
        run.environment.version,
        capitalised(&result.to_string()),
        usage(prompt, files, repository),
    );
    for (name, stages) in splits(run) {
        let audit = stages.audit.map_or_else(|| "–".to_owned(), percent);
        let AccuracyStages {
            start, peak, after, ..
        } = stages;
        let _ = writeln!(
            card,
            "| {name} | {audit} | {} | {} | {} |",
            percent(*start),
            percent(*peak),
            percent(*after)
        );
    }
    if let Some(forgotten) = &result.forgotten {
        let _ = write!(
            card,
            "\nForgotten: {}",
            forgotten.of_facts("known held-out")
        );
        if let Some(control) = &result.only_known_forgotten {
            let _ = write!(
                card,
                "; after the same training without the new facts {control}"
            );
        }
        card += ".\n";
    }
    let mut environment =
        serde_json::to_value(&run.environment).expect("records serialize to JSON");
    if let Some(model) = environment["model"].as_object_mut() {
        model.remove("path");
        model.insert("name".into(), model_name(run).into());
    }
    let config = run.config_text.replace(&result.model, model_name(run));
    card += "\nOther knowledge of the model was not evaluated.\n";
    let _ = write!(
        card,
        "\n## Training\n\nConfig:\n\n{}\nEnvironment:\n\n{}",
        code_block("toml", &config),
        code_block(
            "json",
            &serde_json::to_string_pretty(&environment).expect("records serialize to JSON")
        )
    );
    card
}

/// How the model is asked as the run asks it.
fn usage(prompt: &TrainedPrompt, files: CardFiles, repository: Option<&str>) -> String {
    if matches!(files, CardFiles::Gguf | CardFiles::GgufAdapter) {
        let (mut text, model) = if files == CardFiles::Gguf {
            let code =
                "ollama create my-model -f Modelfile\nollama run my-model \"your question\"\n";
            let text = format!(
                "`Modelfile` has the prompt and the end of an answer that the model was trained with:\n\n{}",
                code_block("sh", code)
            );
            (text, "model.gguf")
        } else {
            let text = "`adapter.gguf` belongs to the base model as a GGUF file: `llama-cli -m BASE.gguf --lora adapter.gguf`.\n";
            (text.to_owned(), "BASE.gguf --lora adapter.gguf")
        };
        if let PromptForm::Facts(template) = &prompt.form
            && !template.rendered
        {
            // The program reads escapes in both.
            let escaped = |text: &str| {
                text.replace('\\', r"\\")
                    .replace('\n', r"\n")
                    .replace('\'', r"'\''")
            };
            let question = escaped(&template.prompt_text("your question"));
            let stops = prompt
                .stops
                .iter()
                .map(|stop| format!(" -r '{}'", escaped(stop)));
            let code = format!(
                "llama-completion -m {model} --temp 0 -n 32 -no-cnv -p '{question}'{}\n",
                stops.collect::<String>()
            );
            let _ = write!(
                text,
                "\nllama.cpp needs the same prompt; its chat mode has another:\n\n{}",
                code_block("sh", &code)
            );
        }
        return text;
    }
    let place = json!(repository.unwrap_or("path/to/this/directory"));
    let (imports, class, tokenizer) = if files == CardFiles::Adapter {
        (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer",
            "AutoPeftModelForCausalLM",
            "model.peft_config[\"default\"].base_model_name_or_path".to_owned(),
        )
    } else {
        (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "AutoModelForCausalLM",
            place.to_string(),
        )
    };
    let (inputs, stops) = match &prompt.form {
        PromptForm::Facts(template) if !template.rendered => {
            let text = json!(template.prompt_text("your question"));
            let stops = json!(prompt.stops);
            (
                format!("tokenizer({text}, return_tensors=\"pt\")"),
                format!(", stop_strings={stops}, tokenizer=tokenizer"),
            )
        }
        PromptForm::Text => (
            "tokenizer(\"your text\", return_tensors=\"pt\")".to_owned(),
            String::new(),
        ),
        _ => (
            "tokenizer.apply_chat_template(\n    [{\"role\": \"user\", \"content\": \"your question\"}],\n    \
             add_generation_prompt=True, return_dict=True, return_tensors=\"pt\",\n)"
                .to_owned(),
            String::new(),
        ),
    };
    let code = format!(
        "{imports}\n\n\
         model = {class}.from_pretrained({place})\n\
         tokenizer = AutoTokenizer.from_pretrained({tokenizer})\n\
         inputs = {inputs}\n\
         output = model.generate(**inputs, max_new_tokens=64, do_sample=False{stops})\n\
         print(tokenizer.decode(output[0, inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))\n"
    );
    format!(
        "With the prompt and the end of an answer that the model was trained with:\n\n{}",
        code_block("python", &code)
    )
}

/// The hub's metadata as YAML. JSON strings are valid YAML strings.
fn metadata(run: &RecordedRun, files: CardFiles) -> String {
    let result = &run.result;
    let library = match files {
        CardFiles::Model => "transformers",
        CardFiles::Gguf | CardFiles::GgufAdapter => "gguf",
        CardFiles::Adapter => "peft",
    };
    let mut yaml = format!(
        "library_name: {library}\npipeline_tag: text-generation\ntags:\n- unforget\n- continual-learning\n"
    );
    let hub_id = run.environment.model.hub_id.as_deref();
    if let Some(id) = hub_id.or_else(|| is_hub_id(&result.model).then_some(&result.model)) {
        let _ = writeln!(yaml, "base_model: {}", json!(id));
    }
    let _ = write!(
        yaml,
        "model-index:\n- name: {}\n  results:\n",
        json!(format!("{} after fine-tuning", model_name(run)))
    );
    for (name, stages) in splits(run) {
        let _ = write!(
            yaml,
            "  - task:\n      type: question-answering\n    dataset:\n      name: {}\n      type: facts\n    metrics:\n    - type: accuracy\n      value: {:.4}\n",
            json!(name),
            stages.after
        );
    }
    yaml
}

/// Whether `model` has the form `owner/name`; other names are paths or names in the registry.
fn is_hub_id(model: &str) -> bool {
    model.matches('/').count() == 1 && !model.starts_with(['.', '/', '~'])
}

/// The base model's name, without its local path.
fn model_name(run: &RecordedRun) -> &str {
    let model = run.result.model.as_str();
    if is_hub_id(model) {
        return model;
    }
    let name = Path::new(model).file_name().and_then(|name| name.to_str());
    name.unwrap_or(model)
}

/// The splits of a run, as named on the card.
fn splits(run: &RecordedRun) -> impl Iterator<Item = (&'static str, &AccuracyStages)> {
    Split::ALL.into_iter().filter_map(|split| {
        let name = match split {
            Split::Known => "known before, and trained",
            Split::Unknown => "new, and trained",
            Split::Held => "known before, not trained",
            Split::MaybeKnown => "maybe known before, not trained",
            Split::WeaklyKnown => "weakly known before, not trained",
        };
        Some((name, run.result.accuracy.get(split)?))
    })
}
