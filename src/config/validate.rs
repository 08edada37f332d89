//! Every rule that a config must keep, all of them checked before any is reported.

use super::{
    Config, Goal, MethodKind, OnNonFinite, ReplayTarget, TargetToken, TeacherMode, VocabSubset,
};
use super::{TENSOR_GROUPS, parse_selector};
use crate::{Error, Result, distributed, error::closest_match};

/// What is wrong with the value of one key.
#[derive(Debug)]
pub(super) struct ConfigError {
    /// Dotted, such as `train.learning_rate`.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// All faults, in the order of the file's sections.
pub(super) fn errors(config: &Config) -> Vec<ConfigError> {
    let mut faults = Vec::new();
    let mut check = |holds: bool, key: &'static str, message: String| {
        if !holds {
            faults.push(ConfigError { key, message });
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
            audit.num_prompts >= 1,
            "data.audit.num_prompts",
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
        !method.takes_snapshot() || method.snapshot_epochs < train.num_epochs,
        "method.snapshot_epochs",
        format!(
            "must be below the {} of `train.num_epochs`, of which the snapshot epochs are part, not {}",
            train.num_epochs, method.snapshot_epochs
        ),
    );
    check(
        !matches!(
            method.vocab_subset,
            VocabSubset::Top(0) | VocabSubset::Random(0)
        ),
        "method.vocab_subset",
        "must be at least 1 token".into(),
    );
    check(
        method.teacher != TeacherMode::Topk || matches!(method.vocab_subset, VocabSubset::Top(_)),
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
            (0.0..=10.0).contains(&decoys.ratio),
            "method.decoys.ratio",
            format!(
                "is the decoys that an epoch visits for each row, from 0 to 10, not {}",
                decoys.ratio
            ),
        );
        let pool = decoys.pool_ratio.unwrap_or(decoys.ratio);
        check(
            pool > 0.0 && pool >= decoys.ratio && pool <= 10.0,
            "method.decoys.pool_ratio",
            format!(
                "is the decoys that there are for each row: more than 0, from the {} of `method.decoys.ratio` to 10, not {pool}",
                decoys.ratio
            ),
        );
        check(
            decoys.ratio > 0.0 || method.project.is_some(),
            "method.decoys.ratio",
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
            interpolate.min_retained > 0.0 && interpolate.min_retained <= 1.0,
            "method.interpolate.min_retained",
            format!(
                "is a share above 0 and at most 1, not {}",
                interpolate.min_retained
            ),
        );
        check(
            train.lora.is_none(),
            "method.interpolate",
            "scales whole weights, which adapters would no longer make up: leave one of `method.interpolate` and `train.lora` out".into(),
        );
    }
    if let Some(replay) = &method.replay {
        check(
            replay.ratio > 0.0 && replay.ratio <= 10.0,
            "method.replay.ratio",
            format!(
                "is the replayed rows for each row, above 0 and at most 10, not {}",
                replay.ratio
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
        let decay = ewc.gamma.unwrap_or_default();
        check(
            (0.0..=1.0).contains(&decay),
            "method.ewc.gamma",
            format!("is a number from 0 to 1, not {decay}"),
        );
        check(
            ewc.gamma.is_none() || ewc.previous_runs.len() == 1,
            "method.ewc.gamma",
            format!(
                "is of what one run left, the last, in which those before it are summed up already: name it alone in `after`, not {} runs",
                ewc.previous_runs.len()
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
            "train.early_stopping",
            train.early_stopping.is_some(),
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
        let Some((name, _)) = parse_selector(selector) else {
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
        let groups = TENSOR_GROUPS.map(|(group, _)| group);
        let did_you_mean = closest_match(name, groups)
            .map(|near| format!(" (did you mean `{near}`?)"))
            .unwrap_or_default();
        check(
            is_pattern || groups.contains(&name),
            "train.trainable",
            format!(
                "`{name}` is neither a group ({}) nor a pattern of tensor names{did_you_mean}",
                groups.join(", ")
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
            !lora.target_modules.is_empty(),
            "train.lora.target_modules",
            "is an empty list: nothing would be trained".into(),
        );
        for (key, value) in [("train.lora.r", lora.r), ("train.lora.alpha", lora.alpha)] {
            check(value >= 1, key, "must be at least 1".into());
        }
    }
    for (key, count) in [
        ("train.num_epochs", train.num_epochs),
        ("train.batch_size", train.batch_size),
        (
            "train.gradient_accumulation_steps",
            train.gradient_accumulation_steps,
        ),
        ("train.save_every", train.save_every.unwrap_or(1)),
    ] {
        check(count >= 1, key, "must be at least 1".into());
    }
    check(
        train.max_length >= 2,
        "train.max_length",
        "must be at least 2, a token of the prompt and one of the target".into(),
    );
    check(
        train.learning_rate > 0.0 && train.learning_rate <= 1.0,
        "train.learning_rate",
        format!("must be above 0 and at most 1, not {}", train.learning_rate),
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
        ("train.max_grad_norm", train.max_grad_norm),
    ] {
        check(
            value >= 0.0 && value.is_finite(),
            key,
            format!("must be 0 or more, not {value}"),
        );
    }
    let in_the_way = [
        (
            "`train.gradient_accumulation_steps` must be 1",
            train.gradient_accumulation_steps != 1,
        ),
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
            !matches!(method.kind, MethodKind::Sft | MethodKind::SelfDistill),
        ),
        (
            "`method.decoys` are rows of a second pass",
            method.trains_decoys(),
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
            "`measure.grad_norms` needs the whole gradient",
            config.measure.grad_norms,
        ),
        (
            "several processes share whole gradients",
            distributed::world_size() > 1,
        ),
    ];
    let in_the_way = in_the_way.iter().filter(|(_, is)| *is).map(|(why, _)| *why);
    let in_the_way: Vec<&str> = in_the_way.collect();
    check(
        !train.optimizer_in_backward || in_the_way.is_empty(),
        "train.optimizer_in_backward",
        format!(
            "moves each layer before the next one's gradient is there: {}",
            in_the_way.join("; ")
        ),
    );
    check(
        !(config.measure.grad_norms && train.lora.is_some() && distributed::world_size() > 1),
        "measure.grad_norms",
        "is not measured of adapters that several processes train".into(),
    );
    let average = train.ema_decay.unwrap_or_default();
    check(
        (0.0..1.0).contains(&average),
        "train.ema_decay",
        format!("is the share that a step keeps, from 0 to below 1, not {average}"),
    );
    if let Some(stop) = train.early_stopping {
        check(
            stop.accuracy > 0.0 && stop.accuracy <= 1.0,
            "train.early_stopping.accuracy",
            format!("is a share above 0 and at most 1, not {}", stop.accuracy),
        );
    }
    faults
}

/// One error for all faults; `line` knows where a key stands in the file, where there is one.
pub(super) fn report(
    faults: &[ConfigError],
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
