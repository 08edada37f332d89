//! A task for lm-evaluation-harness: the held-out known facts of a run.

use std::{fmt::Write as _, path::Path};

use serde_json::json;

use crate::run::{PromptForm, RecordedRun, Split, TrainedPrompt};

/// The name of the task.
pub const LM_EVAL_TASK: &str = "unforget_held";

/// The file of the facts, beside that of the task.
const FACTS: &str = "unforget_held.jsonl";

/// Tokens that an answer has at most.
const MAX_TOKENS: usize = 32;

/// The files of the task in `dir`, by name: its config in YAML, and a row per held-out fact.
///
/// The questions stand in the prompt template of the run, and an answer is compared by `exact_match` without case and punctuation. The
/// aliases of an answer are not known to the harness, so that `unforget gate` counts no fewer correct answers.
pub fn lm_eval_task(
    run: &RecordedRun,
    prompt: &TrainedPrompt,
    dir: &Path,
) -> [(String, String); 2] {
    let mut rows = String::new();
    for fact in run.facts.iter().filter(|fact| fact.split == Split::Held) {
        let text = match &prompt.form {
            PromptForm::Facts(template) if !template.rendered => {
                template.prompt_text(&fact.question)
            }
            // The harness puts it into the chat template (`--apply_chat_template`).
            _ => fact.question.clone(),
        };
        let row = json!({ "prompt": text, "answer": fact.object, "relation": fact.relation });
        let _ = writeln!(rows, "{row}");
    }
    let mut until = prompt.stops.clone();
    if !until.iter().any(|stop| stop == "\n") {
        until.insert(0, "\n".into());
    }
    let config = format!(
        "task: {LM_EVAL_TASK}\n\
         dataset_path: json\n\
         dataset_kwargs:\n  data_files:\n    test: {}\n\
         test_split: test\n\
         output_type: generate_until\n\
         doc_to_text: \"{{{{prompt}}}}\"\n\
         doc_to_target: \"{{{{answer}}}}\"\n\
         target_delimiter: \" \"\n\
         generation_kwargs:\n  until: {}\n  do_sample: false\n  max_gen_toks: {MAX_TOKENS}\n\
         filter_list:\n  - name: answer\n    filter:\n      - function: remove_whitespace\n      - function: take_first\n\
         metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n    \
         ignore_case: true\n    ignore_punctuation: true\n\
         metadata:\n  version: 1\n",
        json!(dir.join(FACTS).display().to_string()),
        json!(until)
    );
    [
        (format!("{LM_EVAL_TASK}.yaml"), config),
        (FACTS.into(), rows),
    ]
}
