//! Agreement of exact and sampled `SLiCK` labels, and the speedup of exact ones.
//!
//!     cargo run --release --example slick_agreement -- smollm2-135m P17.dev.json [--num-prompts 3] [--max-facts 1000]
//!
//! Prints a table with a row per sampled label and a column per exact label. Both use the same facts and few-shot prompts.

use std::{error::Error, path::PathBuf};

use clap::Parser;
use unforget::{
    audit::{self, AuditResult, AuditSettings, Label},
    engine::Engine,
    facts::{self, ReadOptions},
    model::Model,
    progress::Progress,
};

/// Compares exact and sampled `SLiCK` labels.
#[derive(Parser)]
struct Args {
    /// The model.
    model: String,
    /// The facts.
    facts: PathBuf,
    /// Few-shot prompts per fact.
    #[arg(long, default_value_t = 3)]
    num_prompts: usize,
    /// Samples per prompt.
    #[arg(long, default_value_t = 16)]
    samples: usize,
    /// Maximum number of facts.
    #[arg(long, default_value_t = 1000)]
    max_facts: usize,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let model = Model::load(&args.model)?;
    let mut facts = facts::read(&[args.facts], ReadOptions::default())?.facts;
    facts.truncate(args.max_facts);
    let mut engine = Engine::new(&model.config);
    let mut run = |sampled| {
        let settings = AuditSettings {
            num_prompts: args.num_prompts,
            samples: args.samples,
            seed: args.seed,
            sample: sampled,
            ..AuditSettings::default()
        };
        audit::audit_uncached(
            &model,
            &mut engine,
            &facts,
            None,
            &settings,
            &Progress::stderr(),
        )
    };
    let (exact, sampled) = (run(false)?, run(true)?);
    print(&exact, &sampled);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example's result")]
fn print(exact: &AuditResult, sampled: &AuditResult) {
    let pairs = || exact.facts.iter().zip(&sampled.facts);
    let count = |s, e| {
        pairs()
            .filter(|(x, y)| y.label == s && x.label == e)
            .count()
    };
    println!(
        "sampled \\ exact  {}",
        Label::ALL.map(|l| format!("{:>12}", l.name())).concat()
    );
    for s in Label::ALL {
        println!(
            "{:16} {}",
            s.name(),
            Label::ALL.map(|e| format!("{:12}", count(s, e))).concat()
        );
    }
    let same = pairs().filter(|(x, y)| x.label == y.label).count();
    let greedy = pairs()
        .filter(|(x, y)| x.greedy_correct == y.greedy_correct)
        .count();
    let p = |audit: &AuditResult| {
        audit.facts.iter().map(|f| f.p_sampled).sum::<f64>() / audit.facts.len().max(1) as f64
    };
    let n = exact.facts.len().max(1) as f64;
    println!(
        "\nsame label: {same} of {} ({:.1}%)",
        exact.facts.len(),
        100.0 * same as f64 / n
    );
    println!("same greedy result under every prompt: {greedy}");
    println!(
        "mean probability of a correct sample: exact {:.4}, sampled {:.4}",
        p(exact),
        p(sampled)
    );
    println!(
        "seconds: exact {:.1}, sampled {:.1}, speedup {:.1}x",
        exact.seconds,
        sampled.seconds,
        sampled.seconds / exact.seconds
    );
}
