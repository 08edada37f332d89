//! What goes with a model to where it is used: a model card for the hub, a Modelfile for Ollama.

use std::{fmt::Write as _, path::Path};

use serde_json::json;

use crate::{
    prompt::PromptTemplate,
    report::{RecordedRun, capitalised},
    run::{AccuracyStages, Split},
};

/// The `README.md` of a tuned model: the hub's metadata, what was learned, kept and forgotten, how, and from what.
///
/// It tells of no single fact. What the user named (model, method, files) stands in it as YAML strings and code alone.
pub fn model_card(run: &RecordedRun) -> String {
    let result = &run.result;
    let mut card = format!("---\n{}---\n\n", metadata(run));
    let _ = write!(
        card,
        "# {} after fine-tuning\n\nFine-tuned with [`unforget`](https://crates.io/crates/unforget) {}, which asks for every fact before and after.\n\n\
         {}.\n\n## What it knows now\n\nShare of the facts answered rightly at the training prompt, greedily; the first column behind a few examples.\n\n\
         | facts | audited before | before | best epoch | after |\n|---|---|---|---|---|\n",
        inline_code(model_name(run)),
        run.environment["version"].as_str().unwrap_or_default(),
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
    if let (Some(pp), Some([low, high])) = (result.forgetting_pp, result.forgetting_interval) {
        let _ = write!(
            card,
            "\nForgotten of what was held out, since the best epoch: {pp:.1} percentage points (95% interval over the facts: {low:.1} to {high:.1}).\n"
        );
    }
    // Where the base model lay is nobody's business.
    let mut environment = run.environment.clone();
    if let Some(model) = environment["model"].as_object_mut() {
        model.remove("path");
    }
    card += "\nWhat it knows beside these facts was not measured.\n";
    let _ = write!(
        card,
        "\n## How it was made\n\n{}\nThe base model, the data and the machine:\n\n{}",
        code_block("toml", &run.config_text),
        code_block(
            "json",
            &serde_json::to_string_pretty(&environment).expect("JSON that was read")
        )
    );
    card
}

/// The hub's metadata, as YAML. A string of JSON is one of YAML.
fn metadata(run: &RecordedRun) -> String {
    let result = &run.result;
    let mut yaml = "library_name: transformers\npipeline_tag: text-generation\ntags:\n- unforget\n- continual-learning\n".to_owned();
    if is_hub_id(&result.model) {
        let _ = writeln!(yaml, "base_model: {}", json!(result.model));
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

/// `owner/name` is a model on the hub; anything else is a path or a name of ours.
fn is_hub_id(model: &str) -> bool {
    model.matches('/').count() == 1 && !model.starts_with(['.', '/', '~'])
}

/// What the base model is called, without the way to it on this machine.
fn model_name(run: &RecordedRun) -> &str {
    let model = run.result.model.as_str();
    if is_hub_id(model) {
        return model;
    }
    let name = Path::new(model).file_name().and_then(|name| name.to_str());
    name.unwrap_or(model)
}

/// The parts of a run, as a reader of the card calls them.
fn splits(run: &RecordedRun) -> impl Iterator<Item = (&'static str, &AccuracyStages)> {
    Split::ALL.into_iter().filter_map(|split| {
        let name = match split {
            Split::Known => "known before, and trained",
            Split::Unknown => "new, and trained",
            Split::Held => "known before, not trained",
            Split::MaybeKnown => "half known before, not trained",
            Split::WeaklyKnown => "hardly known before, not trained",
        };
        Some((name, run.result.accuracy.get(split)?))
    })
}

/// The Modelfile beside `file`. With a template, Ollama asks as the model was trained, and answers greedily as it was measured;
/// without, by the model's own chat template.
pub fn modelfile(file: &str, template: Option<&PromptTemplate>) -> String {
    let mut text = format!("FROM ./{file}\nPARAMETER temperature 0\n");
    let Some(template) = template else {
        return text;
    };
    // What Go's templates take for their own stands in a string of theirs.
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
    if !end.is_empty() {
        let _ = writeln!(text, "PARAMETER stop {}", json!(end));
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// `text` in Markdown's code marks, longer than any run of them in it.
pub(crate) fn inline_code(text: &str) -> String {
    let fence = backticks(text, 1);
    let line = text.replace(['\n', '\r'], " ");
    // One space on both sides is taken away by a reader.
    let pad = if line.starts_with('`') || line.ends_with('`') || line.trim().is_empty() {
        " "
    } else {
        ""
    };
    format!("{fence}{pad}{line}{pad}{fence}")
}

/// `text` as a block of code.
fn code_block(language: &str, text: &str) -> String {
    let fence = backticks(text, 3);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

fn backticks(text: &str, min: usize) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(min.max(longest + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modelfile_uses_the_training_prompt() {
        assert_eq!(
            modelfile("model.gguf", Some(&PromptTemplate::default())),
            "FROM ./model.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"Q: {{ .Prompt }}\nA:\"\"\"\nPARAMETER stop \"\\n\"\n"
        );
        let odd = PromptTemplate {
            prompt: "{{x}} {question} \"\"\"".into(),
            target: "{object}".into(),
            next_prompt: None,
        };
        assert_eq!(
            modelfile("m.gguf", Some(&odd)),
            "FROM ./m.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"{{ \"{{\" }}x}} {{ .Prompt }} \"\" \"\"\"\"\n"
        );
        assert_eq!(
            modelfile("m.gguf", None),
            "FROM ./m.gguf\nPARAMETER temperature 0\n"
        );
    }

    #[test]
    fn user_text_is_escaped_as_code() {
        assert_eq!(inline_code("a`b\n# c"), "``a`b # c``");
        assert_eq!(inline_code("`b`"), "`` `b` ``");
        assert_eq!(inline_code(""), "`  `");
        assert_eq!(
            code_block("toml", "x = '```'\n"),
            "````toml\nx = '```'\n````\n"
        );
    }
}
