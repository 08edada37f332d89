//! Names of keys in other programs, and former names of keys, with their equivalents.

use std::sync::LazyLock;

use serde::Deserialize;

use super::{
    deserialize::{ProblemKind, TomlValue},
    schema::Config,
};
use crate::error::closest_match;

/// The equivalent of a foreign key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ours {
    /// A key, with its section.
    Key(&'static str),
    /// There is none, for this reason.
    Nothing(&'static str),
}
use Ours::{Key, Nothing};

/// Names of `transformers`, TRL, PEFT, Axolotl, LLaMA-Factory and Unsloth, and former names of ours.
pub(super) const FOREIGN: &[(&[&str], Ours)] = &[
    // The top level.
    (
        &[
            "base_model",
            "model_name_or_path",
            "model_name",
            "model_id",
            "pretrained_model_name_or_path",
        ],
        Key("model"),
    ),
    (&["output_dir", "run_dir"], Key("out")),
    (
        &["training", "trainer", "training_args", "training_arguments"],
        Key("train"),
    ),
    (&["random_seed", "random_state", "data_seed"], Key("seed")),
    // [data]
    (
        &[
            "dataset",
            "datasets",
            "dataset_name",
            "dataset_path",
            "train_file",
            "train_dataset",
            "data_path",
            "data_files",
            "train",
        ],
        Key("data.learn"),
    ),
    (
        &[
            "eval_dataset",
            "validation_file",
            "test_datasets",
            "validation_dataset",
            "eval",
            "test",
        ],
        Key("data.validation"),
    ),
    (
        &["val_set_size", "test_size", "validation_split"],
        Key("data.validation_share"),
    ),
    (
        &["runs", "num_runs", "few_shot_prompts"],
        Key("data.audit.num_prompts"),
    ),
    (&["sampled", "do_sample"], Key("data.audit.sample")),
    (&["num_fewshot", "num_shots"], Key("data.audit.shots")),
    (
        &["num_samples", "num_return_sequences"],
        Key("data.audit.samples"),
    ),
    (&["chat_template", "apply_chat_template"], Key("data.chat")),
    (&["prompt_template"], Key("data.prompt")),
    (&["rule", "match_rule"], Key("data.match")),
    // [method]
    (
        &["name", "type", "method_name", "algorithm"],
        Key("method.kind"),
    ),
    (
        &["lmbda", "kd_alpha", "distillation_weight"],
        Key("method.lambda"),
    ),
    (
        &["tau", "kd_temperature", "distillation_temperature"],
        Key("method.temperature"),
    ),
    (&["snapshot_epoch"], Key("method.snapshot_epochs")),
    (&["tokens"], Key("method.vocab_subset")),
    (&["kd_top_k", "top_k_tokens"], Key("method.vocab_subset")),
    (
        &["teacher_model", "teacher_model_name_or_path", "kd_teacher"],
        Key("method.teacher"),
    ),
    (&["target_token"], Key("method.exclude_target")),
    (&["ewc_lambda"], Key("method.ewc.strength")),
    (&["after"], Key("method.ewc.previous_runs")),
    (&["decay", "ewc_gamma"], Key("method.ewc.gamma")),
    (
        &["share", "replay_ratio", "replay_share"],
        Key("method.replay.ratio"),
    ),
    (&["order"], Key("method.replay.selection")),
    (&["share"], Key("method.decoys.ratio")),
    (&["pool"], Key("method.decoys.pool_ratio")),
    (&["keep"], Key("method.interpolate.min_retained")),
    // [train]
    (
        &[
            "unfrozen_parameters",
            "freeze_trainable_modules",
            "modules_to_train",
        ],
        Key("train.trainable"),
    ),
    (
        &["epochs", "num_train_epochs", "n_epochs", "max_epochs"],
        Key("train.num_epochs"),
    ),
    (
        &[
            "per_device_train_batch_size",
            "per_gpu_train_batch_size",
            "train_batch_size",
            "micro_batch_size",
            "mini_batch_size",
            "per_device_batch_size",
            "bs",
        ],
        Key("train.batch_size"),
    ),
    (
        &[
            "accumulate",
            "grad_accum",
            "grad_accum_steps",
            "gradient_accumulation",
            "accumulate_grad_batches",
        ],
        Key("train.gradient_accumulation_steps"),
    ),
    (
        &["lr", "peak_lr", "max_lr", "base_lr"],
        Key("train.learning_rate"),
    ),
    (
        &["schedule", "scheduler", "lr_scheduler_type", "lr_schedule"],
        Key("train.lr_scheduler"),
    ),
    (
        &["warmup", "num_warmup_steps", "lr_warmup_steps"],
        Key("train.warmup_steps"),
    ),
    (&["warmup_fraction"], Key("train.warmup_ratio")),
    (
        &["adam_beta1", "adam_beta2", "adam_betas", "beta1", "beta2"],
        Key("train.betas"),
    ),
    (&["adam_epsilon", "adam_eps", "epsilon"], Key("train.eps")),
    (
        &["wd", "decay_rate", "l2_regularization"],
        Key("train.weight_decay"),
    ),
    (
        &[
            "clip",
            "gradient_clipping",
            "grad_clip",
            "clip_grad_norm",
            "max_gradient_norm",
            "gradient_clip_val",
        ],
        Key("train.max_grad_norm"),
    ),
    (
        &["fused", "fused_optimizer"],
        Key("train.optimizer_in_backward"),
    ),
    (
        &[
            "recompute",
            "use_gradient_checkpointing",
            "activation_checkpointing",
            "gradient_checkpointing_kwargs",
        ],
        Key("train.gradient_checkpointing"),
    ),
    (
        &[
            "max_tokens",
            "cutoff_len",
            "sequence_len",
            "max_seq_length",
            "max_seq_len",
            "seq_len",
            "model_max_length",
            "block_size",
        ],
        Key("train.max_length"),
    ),
    (&["truncation"], Key("train.truncate")),
    (
        &[
            "checkpoint_every",
            "save_steps",
            "save_strategy",
            "saves_per_epoch",
            "save_freq",
        ],
        Key("train.save_every"),
    ),
    (
        &["average", "ema", "use_ema", "ema_rate"],
        Key("train.ema_decay"),
    ),
    (
        &["stop", "early_stopping_threshold"],
        Key("train.early_stopping"),
    ),
    (&["learned"], Key("train.early_stopping.accuracy")),
    (
        &["early_stopping_patience"],
        Key("train.early_stopping.patience"),
    ),
    (
        &[
            "adapter",
            "finetuning_type",
            "peft_type",
            "use_peft",
            "use_lora",
            "peft_config",
        ],
        Key("train.lora"),
    ),
    (&["rank", "lora_r", "lora_rank"], Key("train.lora.r")),
    (&["lora_alpha"], Key("train.lora.alpha")),
    (&["lora_dropout"], Key("train.lora.dropout")),
    (
        &[
            "targets",
            "lora_target",
            "lora_target_modules",
            "lora_target_linear",
        ],
        Key("train.lora.target_modules"),
    ),
    (
        &["use_rslora", "use_dora", "peft_use_rslora", "peft_use_dora"],
        Key("train.lora.variant"),
    ),
    (&["shuffle_data", "dataset_shuffle"], Key("train.shuffle")),
    (&["skip_nonfinite", "nan_policy"], Key("train.on_nonfinite")),
    // [measure]
    (&["pulls"], Key("measure.grad_norms")),
    (&["logging_dir"], Key("measure.tensorboard")),
    (&["eval_steps", "eval_every"], Key("measure.every")),
    (
        &["max_eval_samples", "eval_max_samples"],
        Key("measure.max_facts"),
    ),
    // Keys without an equivalent.
    (
        &["max_steps"],
        Nothing("training is counted in epochs: set `train.num_epochs`"),
    ),
    (
        &["optim", "optimizer", "optimizer_type"],
        Nothing("the optimizer is AdamW"),
    ),
    (
        &["bf16", "fp16", "tf32", "torch_dtype", "dtype", "pure_bf16"],
        Nothing("training computes in f32; `unforget export --dtype` writes other types"),
    ),
    (
        &[
            "load_in_4bit",
            "load_in_8bit",
            "quantization_bit",
            "bnb_config",
        ],
        Key("model_dtype"),
    ),
    (
        &[
            "packing",
            "sample_packing",
            "pad_to_sequence_len",
            "group_by_length",
            "padding_free",
        ],
        Nothing(
            "batches are computed without padding, and rows are never joined: there is nothing to set",
        ),
    ),
    (
        &[
            "eval_strategy",
            "evaluation_strategy",
            "evals_per_epoch",
            "do_eval",
        ],
        Nothing("every epoch is evaluated; `measure.every` sets another interval"),
    ),
    (
        &["logging_steps", "logging_strategy"],
        Nothing("every step is written to metrics.jsonl"),
    ),
    (
        &["per_device_eval_batch_size", "eval_batch_size"],
        Nothing("the program chooses the batches of an evaluation"),
    ),
    (
        &["resume_from_checkpoint", "overwrite_output_dir"],
        Nothing("`unforget resume RUN` continues a run; `--force` overwrites one"),
    ),
    (
        &[
            "dataloader_num_workers",
            "dataset_num_proc",
            "preprocessing_num_workers",
        ],
        Nothing("`--threads N` sets the number of threads"),
    ),
    (
        &[
            "train_on_inputs",
            "completion_only_loss",
            "assistant_only_loss",
        ],
        Nothing("the loss is always on answers alone"),
    ),
    (
        &["label_smoothing_factor", "label_smoothing"],
        Nothing("the cross-entropy has no label smoothing"),
    ),
    (
        &["neftune_noise_alpha"],
        Nothing("there is no noise on the embeddings"),
    ),
    (
        &[
            "report_to",
            "use_wandb",
            "wandb_project",
            "wandb_entity",
            "wandb_name",
            "wandb_run_id",
            "wandb_watch",
            "wandb_log_model",
            "mlflow_tracking_uri",
            "mlflow_experiment_name",
        ],
        Nothing(
            "every step is in the run's metrics.jsonl, which `unforget.loggers` in Python passes on to Weights & Biases or MLflow; \
             `measure.tensorboard` writes files of TensorBoard",
        ),
    ),
    (
        &["template", "chat_template_jinja"],
        Nothing("a chat uses the model's own template, and `data.prompt` is the prompt of facts"),
    ),
    (
        &["train_on_eos", "roles_to_train"],
        Nothing("the answers of the assistant are trained, with the token that ends them"),
    ),
    (
        &["save_total_limit"],
        Nothing(
            "older checkpoints are removed, and all of them when the run is done (`--keep-checkpoints`)",
        ),
    ),
    (
        &[
            "lisa",
            "lisa_n_layers",
            "lisa_step_interval",
            "use_galore",
            "use_badam",
        ],
        Nothing("the trained layers stay the same: `train.trainable` names them"),
    ),
    (
        &["deepspeed", "fsdp", "fsdp_config", "ddp_backend"],
        Nothing("several processes train together under MPI: start the program with `mpirun`"),
    ),
    (
        &["push_to_hub", "hub_model_id"],
        Nothing("`unforget export --push OWNER/NAME` uploads a model"),
    ),
    (
        &["lora_bias", "modules_to_save", "lora_modules_to_save"],
        Nothing("adapters are trained on linear layers alone"),
    ),
    (
        &["load_best_model_at_end", "metric_for_best_model"],
        Nothing("`method.budget` keeps the best model within a forgetting budget"),
    ),
];

/// Foreign names that mean something else outside of the section of our key.
pub(super) const ONLY_IN_SECTION: [&str; 5] = ["name", "type", "train", "eval", "test"];

/// Keys with a flag of `tune`, and the flag. The sections `data` and `train` are taken for the data.
const FLAGS: &[(&str, &str)] = &[
    ("data", "--learn FACTS"),
    ("train", "--learn FACTS"),
    ("data.learn", "--learn FACTS"),
    ("data.keep", "--keep FACTS"),
    ("data.held", "--held FACTS"),
    ("data.skip_bad_rows", "--skip-bad-rows"),
    ("out", "--out RUN"),
    ("baseline", "--baseline RUN"),
    ("seed", "--seed N"),
    ("device", "--device DEVICE"),
    ("method.kind", "--method KIND"),
    ("method.budget", "--budget PP"),
    ("train.num_epochs", "--epochs N"),
    ("train.learning_rate", "--lr LR"),
    ("train.batch_size", "--batch-size N"),
    ("train.lora", "--lora-r R"),
    ("train.lora.r", "--lora-r R"),
    ("train.on_nonfinite", "--on-nonfinite stop|skip"),
];

/// Former values of a key, or those of another program, and ours.
pub(super) const FOREIGN_VALUES: &[(&str, &str, &str)] = &[
    ("method.teacher", "live", "online"),
    ("method.replay.schedule", "end", "ramp"),
    ("train.lr_scheduler", "constant_with_warmup", "constant"),
    ("train.lr_scheduler", "polynomial", "linear"),
    ("method.kind", "full", "sft"),
    ("method.kind", "sdft", "self-distill"),
    ("method.kind", "plain", "sft"),
    ("train.lora.variant", "use_rslora", "rslora"),
    ("train.lora.variant", "use_dora", "dora"),
];

/// Every key of a config with its sections, as the types of the config have them.
pub(super) static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut keys = Vec::new();
    collect(&[], &mut keys);
    keys
});

/// Not a valid key name.
const PROBE: &str = "\0";

/// Adds the keys of the section at `path`. The error for an unknown key lists them.
fn collect(path: &[&'static str], keys: &mut Vec<String>) {
    let mut value = toml::Value::Table([(PROBE.to_owned(), 0.into())].into_iter().collect());
    for key in path.iter().rev() {
        value = toml::Value::Table([((*key).to_owned(), value)].into_iter().collect());
    }
    let Err(problem) = Config::deserialize(TomlValue(value)) else {
        return;
    };
    if let ProblemKind::UnknownKey { known, .. } = problem.kind {
        for key in known {
            let path = [path, &[key]].concat();
            keys.push(path.join("."));
            collect(&path, keys);
        }
    }
}

/// The section of a key; empty at the top level.
fn section_of(full: &str) -> &str {
    full.rsplit_once('.').map_or("", |(section, _)| section)
}

/// The last part of a dotted key.
fn name_of(full: &str) -> &str {
    full.rsplit_once('.').map_or(full, |(_, name)| name)
}

/// The hint for the unknown `key` of `section` (dotted; empty at the top level): our name for it, the section that it belongs in, the
/// nearest one of the `known` keys of the section, or all of them.
pub(super) fn hint(key: &str, section: &str, known: &[&str]) -> String {
    let foreign = || FOREIGN.iter().filter(|(names, _)| names.contains(&key));
    let is_here = |ours: &Ours| matches!(ours, Key(full) if section_of(full) == section);
    let sections: Vec<&str> = KEYS
        .iter()
        .filter(|full| name_of(full) == key)
        .map(|full| section_of(full))
        .collect();
    if let Some((_, ours)) = foreign().find(|(_, ours)| is_here(ours)) {
        return suggest(*ours, section);
    }
    if sections.contains(&"") {
        return format!("`{key}` belongs at the top level, before the first section");
    }
    if !sections.is_empty() {
        return format!("`{key}` is a key of [{}]", sections.join("] and ["));
    }
    if let Some((_, ours)) = foreign().next().filter(|_| !ONLY_IN_SECTION.contains(&key)) {
        return suggest(*ours, section);
    }
    let foreign_here = FOREIGN.iter().filter(|(_, ours)| is_here(ours));
    let foreign_names = foreign_here
        .clone()
        .flat_map(|(names, _)| names.iter().copied());
    match closest_match(key, known.iter().copied().chain(foreign_names)) {
        None => {
            // A misspelled key of a section, given without it.
            let names = KEYS.iter().map(|full| name_of(full));
            let near = closest_match(key, names).filter(|_| section.is_empty() && !key.is_empty());
            let full = near.and_then(|near| KEYS.iter().find(|full| name_of(full) == near));
            match full {
                Some(full) => format!("did you mean `{full}`?"),
                None => format!("known keys: {}", known.join(", ")),
            }
        }
        Some(near) => match foreign_here
            .clone()
            .find(|(names, _)| names.contains(&near))
        {
            Some((_, ours)) => suggest(*ours, section),
            None => format!("did you mean `{near}`?"),
        },
    }
}

/// What to write in place of a flag such as `--max-grad-norm` that names a key of the config, ours or a foreign one; `None` if it names
/// none.
///
/// ```
/// use unforget::config::hint_for_flag;
///
/// let hint = hint_for_flag("--gradient-clipping");
/// assert_eq!(hint.as_deref(), Some("`--set train.max_grad_norm=VALUE`"));
/// assert_eq!(hint_for_flag("--learning_rate").as_deref(), Some("`--lr LR`"));
/// assert_eq!(hint_for_flag("--nonsense"), None);
/// ```
pub fn hint_for_flag(flag: &str) -> Option<String> {
    let name = flag.trim_start_matches('-').replace('-', "_");
    let ours = KEYS.iter().find(|full| name_of(full) == name);
    let flag = |key: &str| {
        FLAGS
            .iter()
            .find(|(of, _)| *of == key)
            .map(|(_, flag)| *flag)
    };
    let foreign = || FOREIGN.iter().find(|(names, _)| names.contains(&&*name));
    let full: &str = match (ours, foreign()) {
        (Some(full), _) => full,
        (None, Some((_, Key(full)))) => full,
        (None, Some((_, Nothing(reason)))) => {
            return Some(format!("there is no such setting: {reason}"));
        }
        (None, None) => return None,
    };
    if full == "model" {
        return Some(
            "the model comes first, without a flag: `unforget tune MODEL --learn FACTS --out RUN`"
                .into(),
        );
    }
    match flag(full) {
        Some(flag) => Some(format!("`{flag}`")),
        // Another section.
        None if !full.contains('.') && full != "model_dtype" => None,
        None => Some(format!("`--set {full}=VALUE`")),
    }
}

/// Names a key of ours for a reader of `section`, or says why there is none.
fn suggest(ours: Ours, section: &str) -> String {
    match ours {
        Nothing(reason) => format!("there is no such setting: {reason}"),
        Key(full) if section_of(full) == section => format!("did you mean `{}`?", name_of(full)),
        Key(full) => format!("did you mean `{full}`?"),
    }
}
