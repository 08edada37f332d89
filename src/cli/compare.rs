//! `unforget compare`.

use std::path::{Path, PathBuf};

use clap::Args;
use unforget::{
    Result,
    engine::Engine,
    facts::Fact,
    generate::Generator,
    measure::{Answered, Comparison, Exam},
    model,
    run::State,
};

use super::{Context, asking::Asking, finished_run, load_model, model_spec, output};

/// Facts that are listed in each group when people read.
const SHOWN: usize = 10;

/// Fact by fact: what was learned, kept and forgotten, and what the model says now
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  unforget compare runs/p17\n  \
    unforget compare smollm2-135m runs/p17 --facts held.tsv\n\n\
    A run is told from its records. Two models are asked the facts at the training prompt: a fact that only AFTER\n\
    gets right counts as learned. With --json:\n  \
    {\"learned\", \"kept\", \"forgotten\", \"gained\", \"facts\": [{..., \"before\", \"after\", \"state\"}]}")]
pub struct Compare {
    /// A run directory; or the model before
    #[arg(value_name = "RUN|BEFORE")]
    before: String,
    /// The model after
    #[arg(requires = "facts")]
    after: Option<String>,
    /// Facts to ask both models
    #[arg(long, value_name = "FACTS", num_args = 1.., requires = "after")]
    facts: Vec<PathBuf>,
    #[command(flatten)]
    asking: Asking,
}

impl Compare {
    pub fn run(self, context: &Context) -> Result<()> {
        let comparison = match &self.after {
            Some(after) => self.of_models(after, context)?,
            None => of_run(Path::new(&self.before))?,
        };
        if context.json {
            output::json(&comparison)
        } else {
            output::line(&told(&comparison))
        }
    }

    fn of_models(&self, after: &str, context: &Context) -> Result<Comparison> {
        let facts = self.asking.facts(&self.facts, context)?;
        // A model that is not there is told before the other is asked.
        model::pull(&model_spec(after)?)?;
        let before = self.answers(&self.before, &facts, context)?;
        let after = self.answers(after, &facts, context)?;
        Ok(Comparison::between(&facts, before, after))
    }

    /// What a model answers to every fact at the training prompt.
    fn answers(&self, spec: &str, facts: &[Fact], context: &Context) -> Result<Vec<Answered>> {
        let model = load_model(spec)?;
        let template = self.asking.template(&model)?;
        let mut engine = Engine::new(&model.config);
        let exam = Exam::new(facts, &template, &model.tokenizer, self.asking.rule())?;
        context.progress.note(format!("asking {spec}"));
        exam.answers(&mut Generator::new(&mut engine, &model))
    }
}

/// What a finished run has recorded.
fn of_run(dir: &Path) -> Result<Comparison> {
    Ok(Comparison::of_run(finished_run(dir)?.facts()?))
}

/// The counts, and some facts of each group.
fn told(comparison: &Comparison) -> String {
    let groups = [
        ("learned", State::Learned, comparison.counts.learned),
        ("kept", State::Kept, comparison.counts.kept),
        ("forgotten", State::Forgotten, comparison.counts.forgotten),
        ("gained", State::Gained, comparison.counts.gained),
    ];
    let counts: Vec<String> = groups
        .iter()
        .map(|(name, _, count)| format!("{name} {count}"))
        .collect();
    let mut text = format!("{} of {} facts", counts.join(", "), comparison.facts.len());
    for (name, state, count) in groups {
        if count == 0 {
            continue;
        }
        text += &format!("\n\n{name}");
        if count > SHOWN {
            text += &format!(" ({SHOWN} of {count}; all with --json)");
        }
        let members = comparison.facts.iter().filter(|fact| fact.state == state);
        for fact in members.take(SHOWN) {
            text += &format!(
                "\n  {} {}: \"{}\" -> \"{}\"",
                fact.question,
                fact.object,
                fact.before.trim(),
                fact.after.trim()
            );
        }
    }
    text
}
