//! `unforget drift`.

use std::path::PathBuf;

use clap::Args;
use unforget::{
    Error, Result,
    facts::Fact,
    measure::{DriftProbe, DriftSettings},
    model,
    run::Drift,
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
    after_help = "With --json: {\"rd\", \"ns\", \"mtd\", \"rank_rho\", \"ntr\", \"jsd\", \"pairs\"}; rank_rho, ntr and jsd are computed over \
    pairs of a new and a held fact with the same answer, and null if there is none.\n\n\
    Examples:\n  unforget drift smollm2-135m runs/p17 --new new.tsv --held held.tsv\n  \
    unforget drift smollm2-135m runs/p17 --new new.tsv --held held.tsv \\\n      --layer 10 --json"
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
        let mut engine = context.engine(&base.config)?;
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
                format!("{} and {name} have different tensor shapes", tuned.name),
                "BASE must be the model that TUNED was trained from",
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
                format!("`{option}` has no facts"),
                "give at least one",
            ));
        }
        Ok(facts)
    }
}

/// The meaning of each measure, in their order.
const MEANINGS: [&str; 6] = [
    "movement of held-out subjects (0: none)",
    "change of the cosines between held-out subjects",
    "movement toward new subjects (negative: away)",
    "rank correlation of new answers with held-out ones before (1: identical)",
    "fraction of top tokens that new and held-out answers share",
    "divergence of new answers from held-out ones before (nats)",
];

fn drift_table(drift: &Drift) -> String {
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
            &["measure", "value", "meaning"],
            &rows,
            output::terminal_width()
        ),
        drift.pairs
    )
}
