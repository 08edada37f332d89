//! The Modelfile for Ollama.

use std::fmt::Write as _;

use serde_json::json;

use crate::{
    prompt::ChatParts,
    run::{PromptForm, TrainedPrompt},
};

/// What stands for a chat template that cannot be written in the language of Go.
const NO_TEMPLATE: &str = "\
# No TEMPLATE: the chat template of this model does more than put texts around messages. Ollama recognises some templates in
# the GGUF file. If its answers look wrong, copy the TEMPLATE of the same model family from `ollama show --modelfile NAME`.
";

/// The chat template of a model, as far as a Modelfile can have it.
#[derive(Clone, Copy, Debug)]
pub enum ModelfileChat<'a> {
    /// The model has none.
    None,
    /// Texts around messages.
    Parts(&'a ChatParts),
    /// A template that does more.
    Other,
}

/// The Modelfile for the GGUF file `file`: Ollama asks the model as it was trained, greedily as in the evaluation. A chat is written as
/// the model's own template writes it, with its system message; for a template that is more than the texts `chat` around messages, it
/// says that there is none. `prompt` is `None` for a model that was not trained here.
pub fn modelfile(file: &str, prompt: Option<&TrainedPrompt>, chat: ModelfileChat) -> String {
    let mut text = format!("FROM ./{file}\nPARAMETER temperature 0\n");
    match prompt.map(|prompt| &prompt.form) {
        Some(PromptForm::Text) => text += "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n",
        Some(PromptForm::Facts(template)) if !template.rendered => {
            let (before, after) = template.prompt.split_once("{question}").unwrap_or_default();
            let (before, after) = (literal(before), literal(after));
            let _ = writeln!(
                text,
                "TEMPLATE \"\"\"{before}{{{{ .Prompt }}}}{after}\"\"\""
            );
        }
        _ => match chat {
            ModelfileChat::None => {}
            ModelfileChat::Parts(parts) => text += &chat_template(parts),
            ModelfileChat::Other => text += NO_TEMPLATE,
        },
    }
    for stop in prompt.iter().flat_map(|prompt| &prompt.stops) {
        let _ = writeln!(text, "PARAMETER stop {}", json!(stop));
    }
    text
}

/// The chat template in the language of Go, and the default system message.
fn chat_template(chat: &ChatParts) -> String {
    let [before, after] = chat.system.each_ref().map(|text| literal(text));
    let system = format!("{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ end }}}}");
    let (outside, inside) = if chat.system_in_question {
        (String::new(), system)
    } else {
        (system, String::new())
    };
    let [before, after] = chat.question.each_ref().map(|text| literal(text));
    let end = literal(&chat.answer_end);
    let mut text = format!(
        "TEMPLATE \"\"\"{outside}{{{{ if .Prompt }}}}{before}{inside}{{{{ .Prompt }}}}{after}{{{{ end }}}}{{{{ .Response }}}}{end}\"\"\"\n"
    );
    if let Some(system) = &chat.default_system {
        let _ = writeln!(text, "SYSTEM \"\"\"{}\"\"\"", without_quotes(system));
    }
    text
}

/// A text of a template as it stands: Go templates need a literal `{{` as a string expression.
fn literal(text: &str) -> String {
    without_quotes(&text.replace("{{", "{{ \"{{\" }}"))
}

/// Three quotes would end the text.
fn without_quotes(text: &str) -> String {
    text.replace("\"\"\"", "\"\" \"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::PromptTemplate;

    fn trained(form: PromptForm, stops: &[&str]) -> TrainedPrompt {
        TrainedPrompt {
            form,
            stops: stops.iter().map(|stop| (*stop).to_owned()).collect(),
        }
    }

    #[test]
    fn the_modelfile_uses_the_training_prompt() {
        let facts = trained(PromptForm::Facts(PromptTemplate::default()), &["\n"]);
        assert_eq!(
            modelfile("model.gguf", Some(&facts), ModelfileChat::None),
            "FROM ./model.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"Q: {{ .Prompt }}\nA:\"\"\"\nPARAMETER stop \"\\n\"\n"
        );
        let odd = PromptTemplate {
            prompt: "{{x}} {question} \"\"\"".into(),
            target: "{object}".into(),
            ..PromptTemplate::default()
        };
        assert_eq!(
            modelfile(
                "m.gguf",
                Some(&trained(PromptForm::Facts(odd), &[])),
                ModelfileChat::None
            ),
            "FROM ./m.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"{{ \"{{\" }}x}} {{ .Prompt }} \"\" \"\"\"\"\n"
        );
        let text = trained(PromptForm::Text, &["</s>"]);
        assert_eq!(
            modelfile("m.gguf", Some(&text), ModelfileChat::Other),
            "FROM ./m.gguf\nPARAMETER temperature 0\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nPARAMETER stop \"</s>\"\n"
        );
        assert_eq!(
            modelfile("m.gguf", None, ModelfileChat::None),
            "FROM ./m.gguf\nPARAMETER temperature 0\n"
        );
    }

    #[test]
    fn a_chat_without_a_go_template_says_so() {
        let chat = trained(PromptForm::Chat, &["</bot>"]);
        let text = modelfile("m.gguf", Some(&chat), ModelfileChat::Other);
        assert!(text.contains("\n# No TEMPLATE: "), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#')
            || line.starts_with("FROM ")
            || line.starts_with("PARAMETER ")));
    }

    #[test]
    fn a_chat_has_the_turns_and_the_system_message_of_the_models_template() {
        let parts = ChatParts {
            system: ["<sys>".into(), "</sys>\n".into()],
            system_in_question: false,
            question: ["<user>".into(), "</user>\n<bot>".into()],
            answer_start: String::new(),
            answer_end: "</bot>\n".into(),
            default_system: Some("Be kind.".into()),
        };
        let chat = trained(PromptForm::Chat, &["</bot>"]);
        insta::assert_snapshot!(modelfile("m.gguf", Some(&chat), ModelfileChat::Parts(&parts)), @r#"
        FROM ./m.gguf
        PARAMETER temperature 0
        TEMPLATE """{{ if .System }}<sys>{{ .System }}</sys>
        {{ end }}{{ if .Prompt }}<user>{{ .Prompt }}</user>
        <bot>{{ end }}{{ .Response }}</bot>
        """
        SYSTEM """Be kind."""
        PARAMETER stop "</bot>"
        "#);
        let parts = ChatParts {
            system_in_question: true,
            default_system: None,
            ..parts
        };
        insta::assert_snapshot!(modelfile("m.gguf", None, ModelfileChat::Parts(&parts)), @r#"
        FROM ./m.gguf
        PARAMETER temperature 0
        TEMPLATE """{{ if .Prompt }}<user>{{ if .System }}<sys>{{ .System }}</sys>
        {{ end }}{{ .Prompt }}</user>
        <bot>{{ end }}{{ .Response }}</bot>
        """
        "#);
    }
}
