//! Resolves a config: presets (`kind = "auto"`, `goal = "task"`) and values that are `auto` become the settings that they stand for.
//!
//! A preset never replaces what the user set. Later ones win: defaults, the preset, the file, flags, `--set`.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{
    data::AuditConfig,
    key_names::KEYS,
    method::{Goal, MethodConfig, MethodKind, TeacherMode, VocabSubset},
    schema::{Config, Device},
    set_keys::SetKeys,
    table::{get, insert, merge, remove},
    train::TrainConfig,
};

/// `kind = "auto"`: new facts are learned by plain cross-entropy in the feed-forward layers of the model's lower third, with decoys about
/// names that the model samples, and the moving average of the weights is kept. `docs/LOG.md` has the experiments that it was chosen by.
///
/// The learning rate is eight times the default for all tensors, because few tensors learn more slowly. It belongs to the batch size: twice
/// as many rows per step learn half as much in an epoch, and a rate that makes up for it forgets more. The moving average covers about
/// twenty steps. Training ends when 99% of the new facts are learned.
const AUTO: &str = r#"
[method]
kind = "sft"
decoys = { ratio = 0.3, pool_ratio = 2.0, strength = 4.0, subjects = "sampled" }
[train]
num_epochs = 30
batch_size = 16
learning_rate = 4e-4
ema_decay = 0.95
early_stopping = { accuracy = 0.99 }
"#;

/// Over [`AUTO`] with fewer than [`FEW_FACTS`] new facts: half as many rows per step at half the learning rate, and more decoys, of which a
/// step would have two otherwise.
const AUTO_FEW: &str = r"
[method]
decoys = { ratio = 1.0, pool_ratio = 5.0 }
[train]
batch_size = 8
learning_rate = 2e-4
";

/// Over [`AUTO`] where chats and other texts are learned and no facts, which could end the training.
const AUTO_TEXTS: &str = r"
[train]
num_epochs = 6
batch_size = 64
learning_rate = 2e-4
";

/// `kind = "auto"` with `optimizer_in_backward`, which keeps no whole gradient that decoys could add to.
const AUTO_IN_BACKWARD: &str = r#"
[method]
kind = "self-distill"
"#;

/// `goal = "task"`: plain fine-tuning of few tensors.
const TASK: &str = r#"
[method]
kind = "sft"
"#;

/// With fewer new rows an audit has 5 prompts.
const FEW_NEW_ROWS: usize = 100;
/// With at least this many it has the default number, and 10 in between.
const MANY_NEW_ROWS: usize = 400;

/// With fewer new facts than this, `auto` has settings of its own.
const FEW_FACTS: usize = 320;

/// Steps in which an epoch visits the new rows at least, where neither the user nor a preset sets the batch size.
const STEPS_OF_NEW_ROWS: usize = 20;

/// The smallest batch size that is chosen.
const SMALLEST_BATCH: usize = 8;

/// Below this number of parameters the paper's table 3 applies (1.5 billion there; appendix B has 7 and 8 billion).
const SMALL: usize = 3_000_000_000;

/// The properties of a model that presets depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelSize {
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Total number of parameters.
    pub parameters: usize,
}

/// A resolved config.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// It has no `auto`. Resolving it again changes nothing.
    pub config: Config,
    /// Choices to report to the user.
    pub notes: Vec<String>,
}

/// The rows of a job that its defaults depend on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct JobRows {
    /// New facts.
    pub facts: usize,
    /// Chats and other texts.
    pub texts: usize,
    /// Known facts that are given.
    pub known: usize,
}

impl JobRows {
    /// Whether texts are learned and no facts.
    fn are_texts(self) -> bool {
        self.facts == 0 && self.texts > 0
    }
}

impl Config {
    /// Chooses the batch size, if neither the user nor the preset of facts sets it, and the number of few-shot prompts, by the rows of
    /// the job. Returns a note for each choice.
    ///
    /// A small batch gives few rows enough steps. An audit evaluates each fact under every prompt: with few new rows it would take
    /// longer than the training.
    pub(crate) fn fit_to(&mut self, rows: JobRows) -> Vec<String> {
        let defaults = TrainConfig::default();
        let is_set = |key| self.set_keys.contains(key);
        let mut notes = Vec::new();
        let new_rows = rows.facts + rows.texts;
        let trained_rows = if new_rows == 0 { rows.known } else { new_rows };
        let size = batch_size(trained_rows);
        if !is_set("train.batch_size")
            && (!self.has_auto() || rows.are_texts())
            && self.train.batch_size == defaults.batch_size
            && size < defaults.batch_size
        {
            self.train.batch_size = size;
            notes.push(format!(
                "batch: {size} rows, because there are only {trained_rows}; {} from {} rows on, or set `--batch-size`",
                defaults.batch_size,
                defaults.batch_size * STEPS_OF_NEW_ROWS
            ));
        }
        let prompts_set = is_set("data.audit.num_prompts");
        let default = AuditConfig::default().num_prompts;
        if let Some(audit) = &mut self.data.audit
            && !prompts_set
            && audit.num_prompts == default
            && new_rows < MANY_NEW_ROWS
        {
            audit.num_prompts = if new_rows < FEW_NEW_ROWS { 5 } else { 10 };
            notes.push(format!(
                "audit: {} few-shot prompts for each fact, because there are only {new_rows} new rows; {default} from {MANY_NEW_ROWS} rows on, or set `data.audit.num_prompts`",
                audit.num_prompts
            ));
        }
        notes
    }
}

/// The batch size for this many rows: the largest power of two that makes [`STEPS_OF_NEW_ROWS`] steps of them, from 8 to the default.
fn batch_size(rows: usize) -> usize {
    let largest = (rows / STEPS_OF_NEW_ROWS).max(1);
    (1 << largest.ilog2()).clamp(SMALLEST_BATCH, TrainConfig::default().batch_size)
}

/// The sections that presets set.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Sections {
    method: MethodConfig,
    train: TrainConfig,
}

impl Sections {
    fn to_table(&self) -> Table {
        Table::try_from(self).expect("numbers, words and paths from TOML have a form in TOML")
    }

    fn from_table(table: Table) -> Self {
        table
            .try_into()
            .expect("values of a config under those of a preset are a config")
    }
}

/// What the user set in these sections.
struct UserValues {
    values: Table,
    /// Tables set as a whole: a preset does not fill their missing keys.
    whole: Vec<String>,
}

impl UserValues {
    /// The keys recorded as set, and all values that differ from the defaults.
    fn of(config: &Config) -> Self {
        let full = Sections {
            method: config.method.clone(),
            train: config.train.clone(),
        }
        .to_table();
        let mut user = Self {
            values: Table::new(),
            whole: Vec::new(),
        };
        for key in config.set_keys.iter() {
            if let Some(value) = get(&full, key) {
                // If a parent is not a table, it was set as a whole, and the value with it.
                let _ = insert(&mut user.values, key, value.clone());
            }
        }
        let noted = Sections::from_table(user.values.clone()).to_table();
        user.add_differences(&full, &noted, "");
        user
    }

    fn add_differences(&mut self, full: &Table, noted: &Table, section: &str) {
        for (name, value) in full {
            let key = match section {
                "" => name.clone(),
                _ => format!("{section}.{name}"),
            };
            match (value, noted.get(name)) {
                (Value::Table(full), Some(Value::Table(noted))) => {
                    self.add_differences(full, noted, &key);
                }
                (value, Some(noted)) if value == noted => {}
                (value, _) => {
                    let _ = insert(&mut self.values, &key, value.clone());
                    if value.is_table() {
                        self.whole.push(key);
                    }
                }
            }
        }
    }

    fn has(&self, key: &str) -> bool {
        get(&self.values, key).is_some()
    }
}

/// The preset of `config`, if it has one, as a table of settings.
fn preset(config: &Config, model: ModelSize, rows: JobRows) -> Option<Table> {
    let (texts, trainable): (&[&str], String) = match (config.method.goal, config.method.kind) {
        (Goal::Task, _) => (&[TASK], task_tensors(model.parameters).to_owned()),
        (Goal::Facts, MethodKind::Auto) if config.has_auto() => {
            let third = (model.num_hidden_layers / 3).max(1);
            let texts: &[&str] = if rows.are_texts() {
                &[AUTO, AUTO_TEXTS]
            } else if (1..FEW_FACTS).contains(&rows.facts) {
                &[AUTO, AUTO_FEW]
            } else {
                &[AUTO]
            };
            (texts, format!("ffn@0-{}", third - 1))
        }
        (Goal::Facts, MethodKind::Auto) => (&[AUTO_IN_BACKWARD], "all".to_owned()),
        (Goal::Facts, _) => return None,
    };
    let mut preset = Table::new();
    for text in texts {
        merge(&mut preset, toml::from_str(text).expect("a preset is TOML"));
    }
    insert(&mut preset, "train.trainable", trainable.into()).expect("`train` is a section");
    Some(preset)
}

/// The tensors that learn a task but few of its facts, in a model of this many parameters.
///
/// In small models all of attention: 1% of the new facts are then correct, and 95% of the known ones (table 3). In models of 7 to 8
/// billion parameters attention learns facts too, but a single projection does not (appendix B: k, v or o). Of these three k does best
/// in table 3 (Known 0.944, Held 0.927).
pub fn task_tensors(parameters: usize) -> &'static str {
    if parameters < SMALL { "attn" } else { "k" }
}

impl Config {
    /// Whether the preset `auto` is what the run is trained with.
    pub(crate) fn has_auto(&self) -> bool {
        let (method, train) = (&self.method, &self.train);
        method.goal == Goal::Facts
            && method.kind == MethodKind::Auto
            && !train.optimizer_in_backward
    }

    /// The resolved config for a model of this size and a job with many new facts: `kind = "auto"`, `goal = "task"`, `teacher = "auto"`
    /// and `device = "auto"` are replaced by settings. What the user set stays, even if it equals a default.
    #[must_use]
    pub fn resolve(&self, model: ModelSize) -> Resolved {
        self.resolve_for(model, JobRows::default())
    }

    /// As [`Self::resolve`], for a job with these rows.
    pub(crate) fn resolve_for(&self, model: ModelSize, rows: JobRows) -> Resolved {
        let mut config = self.clone();
        let mut notes = Vec::new();
        let mut user = UserValues::of(self);
        if self.method.kind == MethodKind::Auto {
            remove(&mut user.values, "method.kind");
        }
        if let Some(mut preset) = preset(self, model, rows) {
            if user.has("train.lora") {
                // Adapters are trained instead of tensors.
                remove(&mut preset, "train.trainable");
            }
            for key in &user.whole {
                remove(&mut preset, key);
            }
            merge(&mut preset, user.values);
            let Sections { method, train } = Sections::from_table(preset);
            (config.method, config.train) = (method, train);
        }
        let Config { method, train, .. } = &mut config;
        if method.goal == Goal::Task && train.trainable != self.train.trainable {
            notes.push(format!(
                "the goal is the task and not its facts: only `{}` is trained",
                train.trainable.join(", ")
            ));
        }
        if self.method.kind == MethodKind::Auto && method.kind == MethodKind::SelfDistill {
            notes.push(
                "the method is self-distillation: the decoys of `auto` need whole gradients, which `train.optimizer_in_backward` does not keep".into(),
            );
        }
        let most = train.num_epochs.saturating_sub(1);
        if method.takes_snapshot() && method.snapshot_epochs > most {
            notes.push(format!(
                "`method.snapshot_epochs` is reduced from {} to {most}: they are part of the {} of `train.num_epochs`",
                method.snapshot_epochs, train.num_epochs
            ));
            method.snapshot_epochs = most;
        }
        if method.teacher == TeacherMode::Auto {
            method.teacher = match method.vocab_subset {
                VocabSubset::TopK(_) => TeacherMode::Topk,
                VocabSubset::Full | VocabSubset::Random(_) => TeacherMode::Hidden,
            };
        }
        if config.device == Device::Auto {
            config.device = Device::Cpu;
        }
        config.set_keys = SetKeys::of(KEYS.iter().cloned());
        Resolved { config, notes }
    }
}
