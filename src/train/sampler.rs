//! The sampler: which examples each step of an epoch trains on, and the auxiliary examples (decoys, replayed facts) next to them.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    batches::micro_batch_tokens,
    objective::{AuxBatch, AuxTarget, StepBatch},
};
use crate::{
    Error, Result,
    config::{Config, DecoysConfig, ReplayConfig, ReplaySelection, ReplayTarget, TrainConfig},
    generate::Generator,
    prompt::Example,
    remedy::{replay, snapshot::RunExamples},
};

/// The order in which an epoch (counted from 1) visits rows `0..len`.
///
/// A permutation that depends on `seed` and `epoch` only, so that a resumed run needs no generator state; without `shuffle` the
/// identity.
pub fn epoch_order(len: usize, seed: u64, epoch: usize, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    if shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        order.shuffle(&mut rng);
    }
    order
}

/// Examples per optimizer step: `batch_size * gradient_accumulation_steps`.
///
/// # Errors
/// [`Error::Input`] if the product is zero or overflows.
pub fn examples_per_step(train: &TrainConfig) -> Result<usize> {
    let product = train
        .batch_size
        .checked_mul(train.gradient_accumulation_steps);
    product.filter(|examples| *examples > 0).ok_or_else(|| {
        Error::input(format!(
            "`train.batch_size` x `train.gradient_accumulation_steps` ({} x {}) is not a number of examples",
            train.batch_size, train.gradient_accumulation_steps
        ))
    })
}

/// All examples of a run, and their order in each epoch.
pub(super) struct Sampler {
    /// Known facts, then new facts and texts; after the snapshot followed by decoys.
    examples: Vec<Example>,
    num_known: usize,
    /// All but the decoys.
    num_learned: usize,
    examples_per_step: usize,
    examples_per_micro_batch: usize,
    tokens_per_micro_batch: usize,
    /// Maximum number of epochs.
    pub num_epochs: usize,
    /// Epochs on known facts only.
    snapshot_epochs: usize,
    seed: u64,
    shuffle: bool,
    decoys: Option<DecoysConfig>,
    replay: Option<ReplayConfig>,
}

impl Sampler {
    /// A sampler of `examples`, of which the first `num_known` are known facts.
    ///
    /// # Errors
    /// [`Error::Input`] if an epoch would be empty, or there is no known fact where the method needs one.
    pub fn new(config: &Config, examples: Vec<Example>, num_known: usize) -> Result<Self> {
        let (train, method) = (&config.train, &config.method);
        let sampler = Self {
            num_known,
            num_learned: examples.len(),
            examples,
            examples_per_step: examples_per_step(train)?,
            examples_per_micro_batch: train.batch_size,
            tokens_per_micro_batch: micro_batch_tokens(train),
            num_epochs: train.num_epochs,
            snapshot_epochs: method.effective_snapshot_epochs(),
            seed: config.seed,
            shuffle: train.shuffle,
            decoys: method.decoys,
            replay: method.replay,
        };
        for (set, key, message) in [
            (
                method.replay.is_some(),
                "method.replay",
                "there is no known fact to replay",
            ),
            (
                method.project.is_some(),
                "method.project",
                "there is no known fact whose inputs `method.project` could protect",
            ),
        ] {
            if set && num_known == 0 {
                return Err(Error::input_hint(
                    message,
                    format!("give known facts with `data.keep`, or remove `{key}`"),
                ));
            }
        }
        if (1..=sampler.num_epochs).any(|epoch| sampler.epoch_len(epoch) == 0) {
            return Err(Error::input_hint(
                "there is no known fact to train on before the snapshot",
                "give known facts with `data.keep`, or set `method.snapshot_epochs = 0`, which takes the snapshot of the base model",
            ));
        }
        Ok(sampler)
    }

    /// All examples: known, new, decoys.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// The examples that are learned: all but the decoys.
    pub fn learned(&self) -> &[Example] {
        &self.examples[..self.num_learned]
    }

    /// The known facts.
    pub fn known(&self) -> &[Example] {
        &self.examples[..self.num_known]
    }

    /// The number of examples that are new: facts to be learned and texts.
    pub fn num_new(&self) -> usize {
        self.num_learned - self.num_known
    }

    /// The examples as the snapshot takes them.
    pub fn run_examples(&self) -> RunExamples<'_> {
        RunExamples {
            all: &self.examples,
            known: self.num_known,
            learned: self.num_learned,
        }
    }

    /// Replaces the decoys.
    pub fn set_decoys(&mut self, decoys: Vec<Example>) {
        self.examples.truncate(self.num_learned);
        self.examples.extend(decoys);
    }

    /// Optimizer steps in all epochs.
    pub fn total_steps(&self) -> usize {
        (1..=self.num_epochs)
            .map(|epoch| self.steps_in_epoch(epoch))
            .sum()
    }

    /// Optimizer steps in `epoch` (counted from 1).
    pub fn steps_in_epoch(&self, epoch: usize) -> usize {
        self.epoch_len(epoch).div_ceil(self.examples_per_step)
    }

    /// Learned examples in `epoch`: known facts only up to the snapshot, then all.
    pub fn epoch_len(&self, epoch: usize) -> usize {
        if epoch <= self.snapshot_epochs {
            self.num_known
        } else {
            self.num_learned
        }
    }

    /// The known facts that `epoch` replays; `None` if it replays nothing.
    ///
    /// # Errors
    /// When the losses that the choice depends on cannot be computed.
    pub fn select_replayed(
        &self,
        epoch: usize,
        generator: &mut Generator<'_>,
    ) -> Result<Option<Vec<usize>>> {
        let Some(replay) = self.replay.filter(|_| epoch > self.snapshot_epochs) else {
            return Ok(None);
        };
        let replay_epochs = self.num_epochs - self.snapshot_epochs;
        let count = replay.count(
            self.num_learned,
            epoch - self.snapshot_epochs - 1,
            replay_epochs,
        );
        Ok(Some(match replay.selection {
            ReplaySelection::Random => {
                replay::sample_uniform(self.num_known, count, self.seed, epoch)
            }
            ReplaySelection::Hardest => {
                let losses = replay::example_losses(generator, self.known())?;
                replay::hardest(&losses, count)
            }
        }))
    }

    /// The examples of `epoch` (counted from 1), which also visits the `replayed` known facts.
    pub fn epoch(&self, epoch: usize, replayed: &[usize]) -> Epoch {
        let permuted = |rows: &[usize]| -> Vec<usize> {
            let order = epoch_order(rows.len(), self.seed, epoch, self.shuffle);
            order.into_iter().map(|i| rows[i]).collect()
        };
        let mut aux = Vec::new();
        if let Some(decoys) = self.decoys {
            let count = (decoys.ratio * self.num_learned as f64).round() as usize;
            let pool = self.examples.len() - self.num_learned;
            let mut rows = replay::sample_uniform(pool, count.min(pool), self.seed, epoch);
            rows.sort_unstable();
            let rows: Vec<usize> = rows.iter().map(|row| self.num_learned + row).collect();
            aux.push((AuxTarget::Snapshot(decoys.strength), permuted(&rows)));
        }
        if let Some(replay) = self.replay {
            let target = match replay.target {
                ReplayTarget::Label => AuxTarget::Label,
                ReplayTarget::Teacher => AuxTarget::Snapshot(replay.strength),
            };
            aux.push((target, permuted(replayed)));
        }
        Epoch {
            order: epoch_order(self.epoch_len(epoch), self.seed, epoch, self.shuffle),
            aux,
            examples_per_step: self.examples_per_step,
        }
    }

    /// The batch of `step` (counted from 1) on these rows; every remedy's weight is multiplied by `strength`.
    pub fn batch<'a>(
        &'a self,
        step: usize,
        rows: &'a StepRows<'a>,
        strength: f64,
    ) -> StepBatch<'a> {
        StepBatch {
            step,
            examples: &self.examples,
            indices: rows.indices,
            aux: &rows.aux,
            strength,
            rows_per_micro_batch: self.examples_per_micro_batch,
            tokens_per_micro_batch: self.tokens_per_micro_batch,
        }
    }
}

/// The examples that one epoch visits, in order.
pub(super) struct Epoch {
    order: Vec<usize>,
    aux: Vec<(AuxTarget, Vec<usize>)>,
    examples_per_step: usize,
}

impl Epoch {
    /// Learned examples.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Tokens of all rows.
    pub fn num_tokens(&self, examples: &[Example]) -> usize {
        self.steps().map(|rows| rows.num_tokens(examples)).sum()
    }

    /// The rows of every step. Auxiliary rows are split evenly over the steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = StepRows<'_>> {
        let steps = self.order.len().div_ceil(self.examples_per_step);
        let chunks = self.order.chunks(self.examples_per_step).enumerate();
        chunks.map(move |(step, rows)| {
            let aux = self.aux.iter().map(|(target, rows)| AuxBatch {
                indices: &rows[rows.len() * step / steps..rows.len() * (step + 1) / steps],
                target: *target,
            });
            StepRows {
                indices: rows,
                aux: aux.collect(),
            }
        })
    }
}

/// The rows of one step, as indices into [`Sampler::examples`].
#[derive(Clone)]
pub(super) struct StepRows<'a> {
    /// Learned examples.
    pub indices: &'a [usize],
    /// Decoys and replayed facts.
    pub aux: Vec<AuxBatch<'a>>,
}

impl StepRows<'_> {
    /// Tokens of all of them, prompts and targets.
    pub fn num_tokens(&self, examples: &[Example]) -> usize {
        let aux = self.aux.iter().flat_map(|aux| aux.indices);
        let rows = self.indices.iter().chain(aux);
        rows.map(|&row| examples[row].prompt.len() + examples[row].target.len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MethodKind;

    #[test]
    fn an_order_depends_on_seed_and_epoch_only() {
        let order = epoch_order(100, 7, 3, true);
        assert_eq!(order, epoch_order(100, 7, 3, true));
        assert_ne!(order, epoch_order(100, 7, 4, true));
        assert_ne!(order, epoch_order(100, 8, 3, true));
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn unshuffled_rows_keep_their_order() {
        assert_eq!(epoch_order(4, 7, 3, false), [0, 1, 2, 3]);
    }

    #[test]
    fn a_number_of_examples_per_step_that_overflows_is_an_error() {
        let mut train = TrainConfig {
            batch_size: 1 << 33,
            gradient_accumulation_steps: 1 << 31,
            ..TrainConfig::default()
        };
        // 2^64 wraps to zero.
        assert!(examples_per_step(&train).is_err());
        (train.batch_size, train.gradient_accumulation_steps) = (3, 4);
        assert_eq!(examples_per_step(&train).ok(), Some(12));
    }

    /// Six known facts and five new ones, three examples a step, four epochs.
    fn sampler(change: impl FnOnce(&mut Config)) -> Sampler {
        let mut config = Config::default();
        config.method.kind = MethodKind::SelfDistill;
        (config.train.num_epochs, config.train.batch_size) = (4, 3);
        change(&mut config);
        let example = Example::new(vec![1, 2], vec![3]);
        Sampler::new(&config, vec![example; 11], 6).expect("a valid config")
    }

    #[test]
    fn an_epoch_visits_known_facts_only_until_the_snapshot_then_everything_once() {
        let sampler = sampler(|config| config.method.snapshot_epochs = 2);
        for (epoch, len, steps) in [(1, 6, 2), (2, 6, 2), (3, 11, 4), (4, 11, 4)] {
            let visited = sampler.epoch(epoch, &[]);
            assert_eq!((visited.len(), visited.steps().count()), (len, steps));
            let mut rows: Vec<usize> = visited.steps().flat_map(|s| s.indices.to_vec()).collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..len).collect::<Vec<_>>());
        }
        assert_eq!(sampler.total_steps(), 12);
    }

    #[test]
    fn aux_rows_are_visited_once_and_steps_differ_by_one_row_at_most() {
        let mut sampler = sampler(|config| {
            config.method.snapshot_epochs = 0;
            config.method.decoys = Some(DecoysConfig {
                ratio: 0.5,
                ..DecoysConfig::default()
            });
            config.method.replay = Some(ReplayConfig::default());
        });
        sampler.set_decoys(vec![sampler.examples[0].clone(); 20]);
        let epoch = sampler.epoch(1, &[0, 2, 4, 5, 1]);
        let steps: Vec<StepRows<'_>> = epoch.steps().collect();
        // Half of eleven decoys, rounded, and five replayed facts.
        for (kind, len) in [(0, 6), (1, 5)] {
            let rows = steps.iter().map(|step| step.aux[kind].indices);
            let counts: Vec<usize> = rows.clone().map(<[usize]>::len).collect();
            assert_eq!(counts.iter().sum::<usize>(), len);
            assert!(counts.iter().max() <= counts.iter().min().map(|min| min + 1).as_ref());
        }
        let mut replayed: Vec<usize> = steps
            .iter()
            .flat_map(|s| s.aux[1].indices.to_vec())
            .collect();
        replayed.sort_unstable();
        assert_eq!(replayed, [0, 1, 2, 4, 5]);
        assert!(steps[0].aux[0].indices.iter().all(|row| *row >= 11));
        // Two learned rows, two decoys and two replayed facts, of three tokens each.
        assert_eq!(steps[3].num_tokens(sampler.examples()), 3 * (2 + 2 + 2));
    }

    #[test]
    fn a_sampler_without_the_known_facts_that_the_method_needs_is_refused() {
        let example = Example::new(vec![1], vec![2]);
        let mut config = Config::default();
        config.method.kind = MethodKind::SelfDistill;
        let refused = |config: &Config| {
            let refused = Sampler::new(config, vec![example.clone()], 0).err();
            refused.map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(refused(&config).contains("before the snapshot"));
        config.method.snapshot_epochs = 0;
        assert_eq!(refused(&config), "");
        config.method.replay = Some(ReplayConfig::default());
        assert!(refused(&config).contains("to replay"));
    }
}
