//! `unforget audit`.

use std::{fs, path::PathBuf};

use clap::Args;
use console::measure_text_width;
use unforget::{
    Error, Result,
    audit::{self, AuditResult as Audited, AuditSettings, LabelFractions},
    facts,
    measure::wilson_interval,
    report::chart::{self, Bar, BarChart, Chart, Unit},
};

use super::{
    context::{Context, load_model},
    fact_args::FactArgs,
    output,
};

/// Label every fact by how well the model knows it (`SLiCK`)
#[derive(Debug, Args)]
#[command(
    after_help = "Prints the fraction of each label; with --out also writes facts.jsonl, prompts.jsonl, summary.json and knowledge.svg.\n\
    HighlyKnown: the greedy answer is correct under every few-shot prompt; MaybeKnown: under some; WeaklyKnown: under none, but \
    some samples are correct; Unknown: none is. A repeated audit is read from a cache.\n\n\
    Examples:\n  unforget audit smollm2-135m --num-prompts 3\n  \
    unforget audit smollm2-135m facts.tsv --out audits/mine"
)]
pub struct AuditArgs {
    /// The model
    model: String,
    /// The facts; several files make one set
    #[arg(default_value = facts::PACK)]
    facts: Vec<PathBuf>,
    /// The directory to write [default: none, only print the fractions]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Few-shot prompts for each fact
    #[arg(long, value_name = "N", default_value_t = 20)]
    num_prompts: usize,
    /// Exemplars in a prompt
    #[arg(long, value_name = "N", default_value_t = 3)]
    shots: usize,
    /// Samples for each fact and prompt
    #[arg(long, value_name = "N", default_value_t = 16)]
    samples: usize,
    /// Temperature of the samples
    #[arg(long, value_name = "T", default_value_t = 0.5)]
    temperature: f32,
    /// Sample from the K most likely tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Facts from which exemplars are drawn [default: the facts themselves]
    #[arg(long, value_name = "FACTS", num_args = 1..)]
    exemplars: Vec<PathBuf>,
    /// Draw the samples, as in the paper, instead of computing the probability of a correct answer
    #[arg(long)]
    sample: bool,
    /// Generate wrong answers to the end of their line (slower)
    #[arg(long)]
    full_answers: bool,
    #[command(flatten)]
    fact_args: FactArgs,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
}

impl AuditArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.num_prompts == 0 || self.samples == 0 {
            return Err(Error::input(
                "`--num-prompts` and `--samples` must be at least 1",
            ));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::input("`--temperature` must be above 0"));
        }
        if let Some(out) = &self.out {
            output::check_output_dir(out, self.force, context.comm)?;
        }
        let facts = self.fact_args.facts(&self.facts, context)?;
        let exemplars = if self.exemplars.is_empty() {
            None
        } else {
            Some(self.fact_args.facts(&self.exemplars, context)?)
        };
        let model = load_model(&self.model)?;
        let settings = AuditSettings {
            num_prompts: self.num_prompts,
            shots: self.shots,
            samples: self.samples,
            temperature: self.temperature,
            top_k: self.top_k,
            sample: self.sample,
            full_answers: self.full_answers,
            seed: context.seed.unwrap_or(0),
            template: self.fact_args.template(&model.tokenizer)?,
            match_rule: self.fact_args.match_rule(),
        };
        let mut engine = context.engine(&model.config)?.with_comm(context.comm);
        let audited = audit::audit(
            &model,
            &mut engine,
            &facts,
            exemplars.as_deref(),
            &settings,
            &context.progress,
        )?;
        if let Some(out) = self.out.as_ref().filter(|_| context.comm.is_main()) {
            audited.write(out)?;
            let path = out.join("knowledge.svg");
            fs::write(&path, plot_labels(&audited)).map_err(Error::io("write", &path))?;
        }
        if context.json {
            output::json(&audited.summary())
        } else {
            output::line(&label_table(&audited, output::terminal_width()))
        }
    }
}

/// The fractions of `HighlyKnown` and of `Unknown` facts of each relation, as an SVG.
fn plot_labels(audit: &Audited) -> String {
    let bars = |title: &str, style: usize, share: fn(&LabelFractions) -> f64| {
        let bars = audit
            .by_relation()
            .into_iter()
            .map(|(relation, shares)| Bar {
                label: facts::relation_name(relation).to_owned(),
                style,
                value: share(&shares),
                interval: wilson_interval(share(&shares), shares.facts),
            });
        Chart::Bars(BarChart {
            title: title.into(),
            unit: Unit::Fraction,
            bars: bars.collect(),
        })
    };
    let charts = [
        bars("HighlyKnown", 0, |s| s.highly_known),
        bars("Unknown", 1, |s| s.unknown),
    ];
    chart::svg(&format!("Knowledge of {}", audit.model), &charts, 2)
}

/// The character of each label in a bar of a terminal.
const SHADES: [char; 4] = ['█', '▓', '▒', '░'];

/// Columns of a bar.
const BAR_WIDTH: usize = 24;

/// The fraction of each label by relation and overall, with bars where the terminal is wide enough.
fn label_table(audit: &Audited, width: Option<usize>) -> String {
    let with_bars = |bar: usize| {
        let row = |name: &str, shares: &LabelFractions| {
            let each = [
                shares.highly_known,
                shares.maybe_known,
                shares.weakly_known,
                shares.unknown,
            ];
            let mut row = vec![name.to_owned(), shares.facts.to_string()];
            row.extend(each.map(|share| format!("{:.1}%", 100.0 * share)));
            if bar > 0 {
                row.push(stacked_bar(each, bar));
            }
            row
        };
        let relations = audit.by_relation();
        let mut rows: Vec<_> = relations.iter().map(|(name, s)| row(name, s)).collect();
        if rows.len() > 1 {
            rows.push(row("all", &audit.overall()));
        }
        let labels = ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"];
        let mut heads = vec!["relation".to_owned(), "facts".to_owned()];
        heads.extend(labels.iter().zip(SHADES).map(|(label, shade)| match bar {
            0 => (*label).to_owned(),
            _ => format!("{shade} {label}"),
        }));
        heads.extend((bar > 0).then(String::new));
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        output::table(&heads, &rows, width)
    };
    let table = with_bars(BAR_WIDTH);
    let widest = table.lines().map(measure_text_width).max().unwrap_or(0);
    match width {
        Some(width) if widest <= width => table,
        _ => with_bars(0),
    }
}

/// Fractions that sum to 1, as a bar of `columns`.
fn stacked_bar(fractions: [f64; 4], columns: usize) -> String {
    let mut bar = String::new();
    let (mut done, mut drawn) = (0.0, 0);
    for (share, shade) in fractions.into_iter().zip(SHADES) {
        done += share;
        let end = (done * columns as f64).round() as usize;
        bar.extend(std::iter::repeat_n(shade, end.saturating_sub(drawn)));
        drawn = end.max(drawn);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_its_length_whatever_is_rounded() {
        assert_eq!(stacked_bar([0.25, 0.25, 0.25, 0.25], 8), "██▓▓▒▒░░");
        assert_eq!(
            stacked_bar([1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0], 10),
            "███▓▓▓▓▒▒▒"
        );
        assert_eq!(stacked_bar([0.0, 0.01, 0.0, 0.99], 10), "░░░░░░░░░░");
    }
}
