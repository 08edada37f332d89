//! Every rule that a config must keep, all of them checked before any is reported.

use super::{Config, Goal, Kind, OnNonFinite, ReplayTarget, TargetToken, Teacher, Tokens};
use crate::{Error, Result, error::nearest, ranks, remedy::freeze::name_and_layers};

/// What is wrong with the value of one key.
#[derive(Debug)]
pub(super) struct Fault {
    /// Dotted, such as `train.lr`.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Names of parameter groups that `train.trainable` takes.
pub(super) const PRESETS: [&str; 9] = ["k", "q", "v", "o", "attn", "gate+up", "down", "ffn", "all"];

/// All faults, in the order of the file's sections.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut check = |holds: bool, key: &'static str, message: String| {
        if !holds {
            faults.push(Fault { key, message });
        }
    };
    let Config {
        data,
        method,
        train,
        ..
    } = config;

    check(!config.model.is_empty(), "model", "is empty".into());
    check(!config.out.as_os_str().is_empty(), "out", "is empty".into());
    check(
        i64::try_from(config.seed).is_ok(),
        "seed",
        "is above the largest integer that TOML can hold".into(),
    );

    if let Some(audit) = &data.audit {
        check(
            audit.runs >= 1,
            "data.audit.runs",
            "must be at least 1".into(),
        );
        check(
            audit.samples >= 1,
            "data.audit.samples",
            "must be at least 1".into(),
        );
    }
    check(
        (0.0..=1.0).contains(&data.min_highly_known),
        "data.min_highly_known",
        format!("is a share from 0 to 1, not {}", data.min_highly_known),
    );
    for (key, text, slot) in [
        ("data.prompt", &data.prompt, "{question}"),
        ("data.target", &data.target, "{object}"),
    ] {
        check(
            text.as_ref().is_none_or(|t| t.contains(slot)),
            key,
            format!("must have `{slot}` in it"),
        );
    }

    check(
        method.lambda >= 0.0 && method.lambda.is_finite(),
        "method.lambda",
        format!("must be 0 or more, not {}", method.lambda),
    );
    check(
        method.temperature > 0.0 && method.temperature.is_finite(),
        "method.temperature",
        format!("must be above 0, not {}", method.temperature),
    );
    check(
        !method.takes_snapshot() || method.snapshot_epoch < train.epochs,
        "method.snapshot_epoch",
        format!(
            "must be below the {} of `train.epochs`, of which the snapshot epochs are part, not {}",
            train.epochs, method.snapshot_epoch
        ),
    );
    check(
        !matches!(method.tokens, Tokens::Top(0) | Tokens::Random(0)),
        "method.tokens",
        "must be at least 1 token".into(),
    );
    check(
        method.teacher != Teacher::Topk || matches!(method.tokens, Tokens::Top(_)),
        "method.teacher",
        "`topk` keeps the teacher's most likely tokens alone, which is exact under `tokens = { top = N }` and nothing else; take `hidden`".into(),
    );
    check(
        method.target_token == TargetToken::Kept || method.distills(),
        "method.target_token",
        "`left-out` changes self-distillation, and this run has none: leave it out, or set `method.kind = \"self-distill\"` and `method.goal = \"facts\"`".into(),
    );
    let budget = method.budget.unwrap_or_default();
    check(
        (0.0..=100.0).contains(&budget),
        "method.budget",
        format!("is a number of percentage points from 0 to 100, not {budget}"),
    );
    if let Some(decoys) = &method.decoys {
        check(
            (0.0..=10.0).contains(&decoys.share),
            "method.decoys.share",
            format!(
                "is the decoys that an epoch visits for each row, from 0 to 10, not {}",
                decoys.share
            ),
        );
        let pool = decoys.pool.unwrap_or(decoys.share);
        check(
            pool > 0.0 && pool >= decoys.share && pool <= 10.0,
            "method.decoys.pool",
            format!(
                "is the decoys that there are for each row: more than 0, from the {} of `method.decoys.share` to 10, not {pool}",
                decoys.share
            ),
        );
        check(
            decoys.share > 0.0 || method.project.is_some(),
            "method.decoys.share",
            "is 0, and there is no `method.project` that would keep off the decoys' inputs: take more than 0, or leave decoys out".into(),
        );
        check(
            decoys.strength >= 0.0 && decoys.strength.is_finite(),
            "method.decoys.strength",
            format!("must be 0 or more, not {}", decoys.strength),
        );
    }
    if let Some(interpolate) = &method.interpolate {
        check(
            interpolate.keep > 0.0 && interpolate.keep <= 1.0,
            "method.interpolate.keep",
            format!("is a share above 0 and at most 1, not {}", interpolate.keep),
        );
        check(
            train.lora.is_none(),
            "method.interpolate",
            "scales whole weights, which adapters would no longer make up: leave one of `method.interpolate` and `train.lora` out".into(),
        );
    }
    if let Some(replay) = &method.replay {
        check(
            replay.share > 0.0 && replay.share <= 10.0,
            "method.replay.share",
            format!(
                "is the replayed rows for each row, above 0 and at most 10, not {}",
                replay.share
            ),
        );
        check(
            replay.strength >= 0.0 && replay.strength.is_finite(),
            "method.replay.strength",
            format!("must be 0 or more, not {}", replay.strength),
        );
        check(
            replay.target == ReplayTarget::Teacher || replay.strength == 1.0,
            "method.replay.strength",
            "is what the snapshot's answers weigh; under `target = \"label\"` replayed rows join the mean of the cross-entropy: leave it out, or set `target = \"teacher\"`".into(),
        );
    }
    if let Some(ewc) = &method.ewc {
        check(
            ewc.strength >= 0.0 && ewc.strength.is_finite(),
            "method.ewc.strength",
            format!("must be 0 or more, not {}", ewc.strength),
        );
        let decay = ewc.decay.unwrap_or_default();
        check(
            (0.0..=1.0).contains(&decay),
            "method.ewc.decay",
            format!("is a number from 0 to 1, not {decay}"),
        );
        check(
            ewc.decay.is_none() || ewc.after.len() == 1,
            "method.ewc.decay",
            format!(
                "is of what one run left, the last, in which those before it are summed up already: name it alone in `after`, not {} runs",
                ewc.after.len()
            ),
        );
    }
    if let Some(project) = &method.project {
        check(
            project.energy > 0.0 && project.energy <= 1.0,
            "method.project.energy",
            format!("is a share above 0 and at most 1, not {}", project.energy),
        );
        check(
            project.every >= 1,
            "method.project.every",
            "must be at least 1".into(),
        );
        check(
            train.lora.is_none(),
            "method.project",
            "projects updates of whole weights; with `train.lora` it is the factors that move, and their product does not stay in the space: take one or the other".into(),
        );
    }
    for (key, given, what) in [
        (
            "method.budget",
            method.budget.is_some(),
            "keeps the model that had learned most of the new facts",
        ),
        (
            "train.stop",
            train.stop.is_some(),
            "ends the run once the new facts are learned",
        ),
    ] {
        check(
            method.goal == Goal::Facts || !given,
            key,
            format!("{what}, and under `method.goal = \"task\"` they are not to be: leave it out"),
        );
    }
    check(
        !train.trainable.is_empty(),
        "train.trainable",
        "is an empty list: nothing would be trained".into(),
    );
    for selector in &train.trainable {
        let Some((name, _)) = name_and_layers(selector) else {
            check(
                false,
                "train.trainable",
                format!(
                    "`{selector}`: behind `@` stands a layer or a range of layers, counted from 0, such as `ffn@0-9`"
                ),
            );
            continue;
        };
        let is_pattern = name.contains(['.', '*']);
        let did_you_mean = nearest(name, PRESETS)
            .map(|near| format!(" (did you mean `{near}`?)"))
            .unwrap_or_default();
        check(
            is_pattern || PRESETS.contains(&name),
            "train.trainable",
            format!(
                "`{name}` is neither a group ({}) nor a pattern of tensor names{did_you_mean}",
                PRESETS.join(", ")
            ),
        );
    }
    if let Some(lora) = &train.lora {
        check(
            train.trainable == ["all"],
            "train.lora",
            "trains adapters of `targets` and no tensor of the model itself: leave `train.trainable` out".into(),
        );
        check(
            !lora.targets.is_empty(),
            "train.lora.targets",
            "is an empty list: nothing would be trained".into(),
        );
        for (key, value) in [
            ("train.lora.rank", lora.rank),
            ("train.lora.alpha", lora.alpha),
        ] {
            check(value >= 1, key, "must be at least 1".into());
        }
    }
    for (key, count) in [
        ("train.epochs", train.epochs),
        ("train.batch_size", train.batch_size),
        ("train.accumulate", train.accumulate),
        (
            "train.checkpoint_every",
            train.checkpoint_every.unwrap_or(1),
        ),
    ] {
        check(count >= 1, key, "must be at least 1".into());
    }
    check(
        train.max_tokens >= 2,
        "train.max_tokens",
        "must be at least 2, a token of the prompt and one of the target".into(),
    );
    check(
        train.lr > 0.0 && train.lr <= 1.0,
        "train.lr",
        format!("must be above 0 and at most 1, not {}", train.lr),
    );
    check(
        train.betas.iter().all(|b| (0.0..1.0).contains(b)),
        "train.betas",
        format!("must each be 0 or more and below 1, not {:?}", train.betas),
    );
    check(
        train.eps > 0.0 && train.eps.is_finite(),
        "train.eps",
        format!("must be above 0, not {}", train.eps),
    );
    for (key, value) in [
        ("train.weight_decay", train.weight_decay),
        ("train.clip", train.clip),
    ] {
        check(
            value >= 0.0 && value.is_finite(),
            key,
            format!("must be 0 or more, not {value}"),
        );
    }
    let in_the_way = [
        ("`train.accumulate` must be 1", train.accumulate != 1),
        (
            "`train.lora` has no layers of its own",
            train.lora.is_some(),
        ),
        (
            "`train.on_nonfinite` must be `stop`",
            train.on_nonfinite != OnNonFinite::Stop,
        ),
        (
            "`method.kind` must be `sft` or `self-distill`",
            !matches!(method.kind, Kind::Sft | Kind::SelfDistill),
        ),
        (
            "`method.decoys` are rows of a second pass",
            method.visits_decoys(),
        ),
        (
            "`method.replay` has rows of a second pass",
            method.replay.is_some(),
        ),
        (
            "`method.ewc` needs the whole gradient",
            method.ewc.is_some(),
        ),
        (
            "`measure.pulls` needs the whole gradient",
            config.measure.pulls,
        ),
        ("several processes share whole gradients", ranks::size() > 1),
    ];
    let in_the_way = in_the_way.iter().filter(|(_, is)| *is).map(|(why, _)| *why);
    let in_the_way: Vec<&str> = in_the_way.collect();
    check(
        !train.fused || in_the_way.is_empty(),
        "train.fused",
        format!(
            "moves each layer before the next one's gradient is there: {}",
            in_the_way.join("; ")
        ),
    );
    check(
        !(config.measure.pulls && train.lora.is_some() && ranks::size() > 1),
        "measure.pulls",
        "is not measured of adapters that several processes train".into(),
    );
    let average = train.average.unwrap_or_default();
    check(
        (0.0..1.0).contains(&average),
        "train.average",
        format!("is the share that a step keeps, from 0 to below 1, not {average}"),
    );
    if let Some(stop) = train.stop {
        check(
            stop.learned > 0.0 && stop.learned <= 1.0,
            "train.stop.learned",
            format!("is a share above 0 and at most 1, not {}", stop.learned),
        );
    }
    faults
}

/// One error for all faults; `line` knows where a key stands in the file, where there is one.
pub(super) fn report(
    faults: &[Fault],
    what: &str,
    line: impl Fn(&str) -> Option<usize>,
) -> Result<()> {
    let told: Vec<String> = faults
        .iter()
        .map(|fault| {
            let line = line(fault.key)
                .map(|n| format!(" line {n}"))
                .unwrap_or_default();
            format!("{what}{line}: `{}` {}", fault.key, fault.message)
        })
        .collect();
    match told.len() {
        0 => Ok(()),
        1 => Err(Error::input(told[0].clone())),
        n => Err(Error::input(format!(
            "{what} has {n} faults\n  {}",
            told.join("\n  ")
        ))),
    }
}
