//! `unforget drift`.

use std::path::PathBuf;

use clap::Args;
use unforget::{
    Error, Result,
    engine::Engine,
    facts::Fact,
    measure::{DriftProbe, DriftSettings},
    model,
    run::Drift as Measures,
};

use super::{
    context::{Context, load_model, model_spec},
    fact_args::FactArgs,
    output,
};

/// Measure the drift of hidden states and answers between two models
#[derive(Debug, Args)]
#[command(
    mut_arg("match_rule", |arg| arg.hide(true)),
    after_help = "Examples:\n  unforget drift smollm2-135m runs/p17 --new new.tsv --held held.tsv\n  \
    unforget drift smollm2-135m runs/p17 --new new.tsv --held held.tsv --layer 10 --json\n\n\
    With --json: {\"rd\", \"ns\", \"mtd\", \"rank_rho\", \"ntr\", \"jsd\", \"pairs\"}; rank_rho, ntr and jsd are computed over\n\
    pairs of a new and a held fact with the same answer, and null if there is none."
)]
pub struct DriftArgs {
    /// The model before
    base: String,
    /// The model after, or its run
    tuned: String,
    /// The new facts; several files make one set
    #[arg(long, value_name = "FACTS", num_args = 1.., required = true)]
    new: Vec<PathBuf>,
    /// Known facts that were not trained
    #[arg(long, value_name = "FACTS", num_args = 1.., required = true)]
    held: Vec<PathBuf>,
    /// Hidden states after L layers [default: half of them]
    #[arg(long, value_name = "L")]
    layer: Option<usize>,
    /// Compare the K most likely tokens [default: 76]
    #[arg(long, value_name = "K")]
    tokens: Option<usize>,
    #[command(flatten)]
    fact_args: FactArgs,
}

impl DriftArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        let new = self.facts(&self.new, "--new", context)?;
        let held = self.facts(&self.held, "--held", context)?;
        // A missing model is reported before the other one is read.
        model::pull(&model_spec(&self.tuned)?)?;
        let base = load_model(&self.base)?;
        let mut engine = Engine::new(&base.config);
        let settings = DriftSettings {
            layer: self.layer,
            tokens: self.tokens,
            seed: context.seed.unwrap_or(0),
            template: self.fact_args.template(&base.tokenizer)?,
        };
        let probe = DriftProbe::new(&base, &mut engine, [&new, &held], &settings)?;
        let before = probe.reference(&mut engine, &base, &context.progress);
        let (name, layout) = (base.name.clone(), base.params.layout.clone());
        drop(base);
        let tuned = load_model(&self.tuned)?;
        if tuned.params.layout.tensors != layout.tensors {
            return Err(Error::input_hint(
                format!("{} and {name} are not of one shape", tuned.name),
                "give the model that the second one was tuned from first",
            ));
        }
        let drift = probe.drift(&mut engine, &tuned, &before, &context.progress);
        if context.json {
            output::json(&drift)
        } else {
            output::line(&drift_table(&drift))
        }
    }

    fn facts(&self, files: &[PathBuf], option: &str, context: &Context) -> Result<Vec<Fact>> {
        let facts = self.fact_args.facts(files, context)?;
        if facts.is_empty() {
            return Err(Error::input_hint(
                format!("`{option}` holds no fact"),
                "drift is measured between facts: give one at least",
            ));
        }
        Ok(facts)
    }
}

/// What each measure says, in their order.
const MEANINGS: [&str; 6] = [
    "held subjects have moved (0: not at all)",
    "they have moved against each other",
    "they have moved toward new subjects (negative: away)",
    "new answers are ranked as held ones were (1: alike)",
    "share of likely answers in common, new and held",
    "new answers are from held ones as they were (nats)",
];

fn drift_table(drift: &Measures) -> String {
    let rows: Vec<Vec<String>> = drift
        .named()
        .into_iter()
        .zip(MEANINGS)
        .map(|((name, value), meaning)| {
            let value = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
            vec![name.to_owned(), value, meaning.to_owned()]
        })
        .collect();
    format!(
        "{}\n\n{} pairs of a new and a held fact with the same answer",
        output::table(
            &["measure", "value", "how far, or how much"],
            &rows,
            output::terminal_width()
        ),
        drift.pairs
    )
}
