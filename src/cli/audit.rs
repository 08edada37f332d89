//! `unforget audit`.

use std::{fs, path::PathBuf};

use clap::Args;
use unforget::{
    Error, Result,
    audit::{self, Audit as Audited, AuditSettings, Shares},
    engine::Engine,
};

use super::{Context, asking::Asking, load_model, output};

/// Label every fact by how well the model knows it (`SLiCK`)
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  unforget audit smollm2-135m pack:world --runs 3 --out audits/world\n\n\
    Writes facts.jsonl, prompts.jsonl and summary.json, and prints the share of each label. HighlyKnown: the greedy\n\
    answer is right under every few-shot prompt; MaybeKnown: under some; WeaklyKnown: under none, but a sample\n\
    sometimes; Unknown: never. The same audit made again comes from a cache."
)]
pub struct Audit {
    /// The model
    model: String,
    /// The facts; several files make one set
    #[arg(required = true)]
    facts: Vec<PathBuf>,
    /// The directory to be written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Few-shot prompts each fact is asked under
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: usize,
    /// Exemplars in a prompt
    #[arg(long, value_name = "N", default_value_t = 3)]
    shots: usize,
    /// Samples of each fact under each prompt
    #[arg(long, value_name = "N", default_value_t = 16)]
    samples: usize,
    /// Temperature of the samples
    #[arg(long, value_name = "T", default_value_t = 0.5)]
    temperature: f32,
    /// Tokens that a sample chooses from; 0 is all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Facts from which exemplars are drawn [default: the facts themselves]
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    exemplars: Vec<PathBuf>,
    /// Draw the samples, as the paper did, instead of computing the probability that one is right
    #[arg(long)]
    sampled: bool,
    /// Write wrong answers out to the end of their line; slower
    #[arg(long)]
    whole_answers: bool,
    #[command(flatten)]
    asking: Asking,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
}

impl Audit {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.runs == 0 || self.samples == 0 {
            return Err(Error::input("`--runs` and `--samples` must be at least 1"));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::input("`--temperature` must be above 0"));
        }
        output::check_free_dir(&self.out, self.force)?;
        let facts = self.asking.facts(&self.facts, context)?;
        let exemplars = if self.exemplars.is_empty() {
            None
        } else {
            Some(self.asking.facts(&self.exemplars, context)?)
        };
        let model = load_model(&self.model)?;
        let settings = AuditSettings {
            runs: self.runs,
            shots: self.shots,
            samples: self.samples,
            temperature: self.temperature,
            top_k: self.top_k,
            sampled: self.sampled,
            whole_answers: self.whole_answers,
            seed: context.seed.unwrap_or(0),
            template: self.asking.template(&model)?,
            rule: self.asking.rule(),
        };
        let mut engine = Engine::new(&model.config);
        let audited = audit::audit(
            &model,
            &mut engine,
            &facts,
            exemplars.as_deref(),
            &settings,
            &context.progress,
        )?;
        audited.write(&self.out)?;
        if context.json {
            let path = self.out.join("summary.json");
            let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            let summary: serde_json::Value =
                serde_json::from_str(&text).expect("an audit writes JSON");
            output::json(&summary)
        } else {
            output::line(&shares(&audited))
        }
    }
}

/// The share of each label, relation by relation and in all.
fn shares(audit: &Audited) -> String {
    let row = |name: &str, shares: &Shares| {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        vec![
            name.to_owned(),
            shares.facts.to_string(),
            percent(shares.highly_known),
            percent(shares.maybe_known),
            percent(shares.weakly_known),
            percent(shares.unknown),
        ]
    };
    let relations = audit.by_relation();
    let mut rows: Vec<_> = relations.iter().map(|(name, s)| row(name, s)).collect();
    if rows.len() > 1 {
        rows.push(row("all", &audit.overall()));
    }
    let heads = [
        "relation",
        "facts",
        "HighlyKnown",
        "MaybeKnown",
        "WeaklyKnown",
        "Unknown",
    ];
    output::table(&heads, &rows, output::width())
}
