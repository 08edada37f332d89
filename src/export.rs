//! Files that accompany an exported model: a model card for the hub, a Modelfile for Ollama.

use std::{fmt::Write as _, path::Path};

use serde_json::json;

use crate::{
    format::{capitalised, code_block, inline_code, percent},
    prompt::PromptTemplate,
    run::{AccuracyStages, RecordedRun, Split, TextKinds},
};

/// The `README.md` of a tuned model: hub metadata, accuracies, forgetting, config and environment.
///
/// It names no single fact and no local path of the base model. Text from the user is escaped as YAML strings or code.
pub fn model_card(run: &RecordedRun) -> String {
    let result = &run.result;
    let mut card = format!("---\n{}---\n\n", metadata(run));
    let _ = write!(
        card,
        "# {} after fine-tuning\n\nFine-tuned with [`unforget`](https://crates.io/crates/unforget) {}.\n\n{}.\n\n\
         ## Accuracy\n\nAccuracy of greedy answers at the training prompt. The audit column is few-shot accuracy before training.\n\n\
         | facts | audit | before | best epoch | after |\n|---|---|---|---|---|\n",
        inline_code(model_name(run)),
        run.environment.version,
        capitalised(&result.to_string()),
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
    }
    card += "\nOther knowledge of the model was not evaluated.\n";
    let _ = write!(
        card,
        "\n## Training\n\nConfig:\n\n{}\nEnvironment:\n\n{}",
        code_block("toml", &run.config_text),
        code_block(
            "json",
            &serde_json::to_string_pretty(&environment).expect("records serialize to JSON")
        )
    );
    card
}

/// The hub's metadata as YAML. JSON strings are valid YAML strings.
fn metadata(run: &RecordedRun) -> String {
    let result = &run.result;
    let mut yaml = "library_name: transformers\npipeline_tag: text-generation\ntags:\n- unforget\n- continual-learning\n".to_owned();
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

/// The prompt format that a model was trained with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrainedPrompt {
    /// Through its chat template, which the GGUF file holds.
    Chat,
    /// Plain text: the model continues a prompt without a template.
    Text,
    /// With facts in this template.
    Facts(PromptTemplate),
}

impl TrainedPrompt {
    /// How the model of `run` is asked, whose facts have `template`.
    pub fn of_run(run: &RecordedRun, template: PromptTemplate) -> Self {
        let TextKinds { chats, other } = run.environment.texts;
        let learns_facts = run
            .facts
            .iter()
            .any(|fact| matches!(fact.split, Split::Known | Split::Unknown));
        if template.rendered || chats {
            Self::Chat
        } else if other && !learns_facts {
            Self::Text
        } else {
            Self::Facts(template)
        }
    }
}

/// The Modelfile for the GGUF file `file`: Ollama asks the model as it was trained, greedily as in the evaluation, and ends an answer
/// at `ends`, the tokens that end a trained text or turn. Without `prompt` (the model was not trained here) Ollama uses the model's own
/// chat template.
pub fn modelfile(file: &str, prompt: Option<&TrainedPrompt>, ends: &[String]) -> String {
    let mut text = format!("FROM ./{file}\nPARAMETER temperature 0\n");
    let mut stops: Vec<&str> = Vec::new();
    match prompt {
        None => return text,
        // Without a TEMPLATE that of the GGUF file counts.
        Some(TrainedPrompt::Chat) => {}
        Some(TrainedPrompt::Text) => text += "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n",
        Some(TrainedPrompt::Facts(template)) => {
            // Go templates need a literal `{{` as a string expression.
            let prompt = template
                .prompt
                .replace("{{", "{{ \"{{\" }}")
                .replace("{question}", "{{ .Prompt }}");
            let _ = writeln!(
                text,
                "TEMPLATE \"\"\"{}\"\"\"",
                prompt.replace("\"\"\"", "\"\" \"")
            );
            let (_, end) = template.target.rsplit_once("{object}").unwrap_or_default();
            stops.push(end);
        }
    }
    stops.extend(ends.iter().map(String::as_str));
    let mut written: Vec<&str> = Vec::new();
    for stop in stops {
        if !stop.is_empty() && !written.contains(&stop) {
            let _ = writeln!(text, "PARAMETER stop {}", json!(stop));
            written.push(stop);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modelfile_uses_the_training_prompt() {
        let facts = |template| Some(TrainedPrompt::Facts(template));
        assert_eq!(
            modelfile("model.gguf", facts(PromptTemplate::default()).as_ref(), &[]),
            "FROM ./model.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"Q: {{ .Prompt }}\nA:\"\"\"\nPARAMETER stop \"\\n\"\n"
        );
        let odd = PromptTemplate {
            prompt: "{{x}} {question} \"\"\"".into(),
            target: "{object}".into(),
            ..PromptTemplate::default()
        };
        assert_eq!(
            modelfile("m.gguf", facts(odd).as_ref(), &[]),
            "FROM ./m.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"{{ \"{{\" }}x}} {{ .Prompt }} \"\" \"\"\"\"\n"
        );
        assert_eq!(
            modelfile("m.gguf", None, &["</s>".into()]),
            "FROM ./m.gguf\nPARAMETER temperature 0\n"
        );
    }

    #[test]
    fn the_modelfile_of_chats_and_texts_has_their_end_and_no_question() {
        let ends = ["<|im_end|>".to_owned(), "</s>".into(), "</s>".into()];
        assert_eq!(
            modelfile("m.gguf", Some(&TrainedPrompt::Chat), &ends),
            "FROM ./m.gguf\nPARAMETER temperature 0\nPARAMETER stop \"<|im_end|>\"\nPARAMETER stop \"</s>\"\n"
        );
        assert_eq!(
            modelfile("m.gguf", Some(&TrainedPrompt::Text), &ends[1..]),
            "FROM ./m.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nPARAMETER stop \"</s>\"\n"
        );
    }
}
