//! Where the time of training steps goes, phase by phase: `tune --profile`.
//!
//! A thread that has called [`start`] measures the calls of [`timed`] within a [`Phase::Step`]. On other threads, and outside of
//! steps, [`timed`] only calls its function. The work itself may use all threads.

use std::{cell::RefCell, fmt, hint::black_box, time::Instant};

use super::simd::{LANES, vectorized};

/// A phase of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A whole step. Its own time is that of no other phase: norms, `RoPE`, activations, copies.
    Step,
    /// `x W^T`.
    Forward,
    /// `dy W`.
    InputGradient,
    /// `dy^T x`.
    WeightGradient,
    /// Attention, forward.
    Attention,
    /// Attention, backward.
    AttentionBackward,
    /// Softmax, cross-entropy and KL divergence over the vocabulary.
    Loss,
    /// Penalties on the weights, and the gradient norm.
    Penalties,
    /// `AdamW`, and the moving average of the weights.
    Optimizer,
    /// The null-space projection of updates.
    Projection,
}

impl Phase {
    const ALL: [Self; 10] = [
        Self::Forward,
        Self::InputGradient,
        Self::WeightGradient,
        Self::Attention,
        Self::AttentionBackward,
        Self::Loss,
        Self::Penalties,
        Self::Optimizer,
        Self::Projection,
        Self::Step,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Step => "other",
            Self::Forward => "matmul, forward",
            Self::InputGradient => "matmul, input gradients",
            Self::WeightGradient => "matmul, weight gradients",
            Self::Attention => "attention, forward",
            Self::AttentionBackward => "attention, backward",
            Self::Loss => "loss",
            Self::Penalties => "penalties and gradient norm",
            Self::Optimizer => "optimizer",
            Self::Projection => "projection",
        }
    }
}

/// The minimum work of a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations.
    pub operations: f64,
    /// Bytes read and written, each counted once.
    pub bytes: f64,
}

impl Work {
    /// The work of a matmul (m, k) x (k, n) in f32.
    pub fn matmul([m, n, k]: [usize; 3]) -> Self {
        let [m, n, k] = [m as f64, n as f64, k as f64];
        Self {
            operations: 2.0 * m * n * k,
            bytes: 4.0 * (m * k + k * n + m * n),
        }
    }

    /// The work of reading or writing `count` f32 values.
    pub fn floats(count: usize) -> Self {
        Self {
            operations: 0.0,
            bytes: 4.0 * count as f64,
        }
    }
}

/// Measurements of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct PhaseStats {
    calls: u64,
    seconds: f64,
    operations: f64,
    bytes: f64,
}

/// Measurements of the steps since [`start`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    phases: [PhaseStats; Phase::ALL.len()],
    /// Peak of the processor, in operations per second; 0 if not measured.
    peak_flops: f64,
    /// Seconds of phases nested in the current one.
    nested_seconds: f64,
    in_step: bool,
}

thread_local! {
    static PROFILE: RefCell<Option<Profile>> = const { RefCell::new(None) };
}

/// Starts measuring on this thread.
pub fn start() {
    PROFILE.set(Some(Profile::default()));
}

/// Stops measuring. Returns the measurements since [`start`], with the peak of the processor; none if it was not called.
pub fn finish() -> Option<Profile> {
    let mut profile = PROFILE.take()?;
    profile.peak_flops = peak_flops();
    Some(profile)
}

/// Calls `f`, and adds its time to `phase`, without that of nested phases.
pub fn timed<T>(phase: Phase, work: Work, f: impl FnOnce() -> T) -> T {
    let nested = PROFILE.with_borrow_mut(|profile| {
        let profile = profile.as_mut()?;
        profile.in_step |= phase == Phase::Step;
        profile
            .in_step
            .then(|| std::mem::take(&mut profile.nested_seconds))
    });
    let Some(before) = nested else {
        return f();
    };
    let started = Instant::now();
    let result = f();
    let seconds = started.elapsed().as_secs_f64();
    PROFILE.with_borrow_mut(|profile| {
        if let Some(profile) = profile {
            let stats = &mut profile.phases[phase as usize];
            stats.calls += 1;
            stats.seconds += seconds - profile.nested_seconds;
            stats.operations += work.operations;
            stats.bytes += work.bytes;
            profile.nested_seconds = before + seconds;
            profile.in_step &= phase != Phase::Step;
        }
    });
    result
}

/// Rounds of [`fma_rounds`]: some hundredths of a second.
const ROUNDS: usize = 5_000_000;

/// Operations per second of fused multiply-adds in registers, on all threads: the best of a few tries.
fn peak_flops() -> f64 {
    let once = || {
        let started = Instant::now();
        let threads = rayon::broadcast(|_| fma_rounds(black_box(ROUNDS))).len();
        let operations = threads * ROUNDS * FMA_CHAINS * LANES * 2;
        operations as f64 / started.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

/// Independent chains of vector FMAs that keep a processor busy: two per cycle with a latency of four cycles.
const FMA_CHAINS: usize = 8;

vectorized! {
    /// [`FMA_CHAINS`] independent fused multiply-adds of [`LANES`] numbers per round.
    ///
    /// They are written out so that they stay in registers, as in [`super::small_matmul`].
    fn fma_rounds(rounds: usize) -> f32 {
        let (by, plus) = (black_box(0.5f32), black_box(1.0f32));
        // Separate values, or the compiler would merge the chains.
        let start = || [black_box(0f32); LANES];
        let (mut s0, mut s1, mut s2, mut s3) = (start(), start(), start(), start());
        let (mut s4, mut s5, mut s6, mut s7) = (start(), start(), start(), start());
        for _ in 0..rounds {
            for x in 0..LANES {
                s0[x] = s0[x].mul_add(by, plus);
                s1[x] = s1[x].mul_add(by, plus);
                s2[x] = s2[x].mul_add(by, plus);
                s3[x] = s3[x].mul_add(by, plus);
                s4[x] = s4[x].mul_add(by, plus);
                s5[x] = s5[x].mul_add(by, plus);
                s6[x] = s6[x].mul_add(by, plus);
                s7[x] = s7[x].mul_add(by, plus);
            }
        }
        [s0, s1, s2, s3, s4, s5, s6, s7].iter().flatten().sum()
    }
}

impl Profile {
    fn stats(&self, phase: Phase) -> PhaseStats {
        self.phases[phase as usize]
    }

    /// Number of steps.
    fn steps(&self) -> u64 {
        self.stats(Phase::Step).calls
    }
}

/// A table: seconds per step, fraction of the time, and throughput.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps().max(1) as f64;
        let all: f64 = self.phases.iter().map(|stats| stats.seconds).sum();
        writeln!(
            f,
            "time of {} steps, {:.3} s each:",
            self.steps(),
            all / steps
        )?;
        write!(
            f,
            "{:<32}{:>9}{:>7}{:>9}{:>10}{:>9}{:>8}{:>8}",
            "", "s/step", "share", "calls", "GFLOP/s", "of peak", "GB", "GB/s"
        )?;
        for phase in Phase::ALL {
            let stats = self.stats(phase);
            if stats.calls == 0 {
                continue;
            }
            let of_time = |amount: f64| {
                if amount > 0.0 {
                    format!("{:.1}", amount / stats.seconds / 1e9)
                } else {
                    String::new()
                }
            };
            let of_peak = if stats.operations > 0.0 && self.peak_flops > 0.0 {
                let rate = stats.operations / stats.seconds;
                format!("{:.0}%", 100.0 * rate / self.peak_flops)
            } else {
                String::new()
            };
            let moved = if stats.bytes > 0.0 {
                format!("{:.2}", stats.bytes / steps / 1e9)
            } else {
                String::new()
            };
            write!(
                f,
                "\n{:<32}{:>9.3}{:>6.0}%{:>9.0}{:>10}{:>9}{:>8}{:>8}",
                phase.name(),
                stats.seconds / steps,
                100.0 * stats.seconds / all,
                stats.calls as f64 / steps,
                of_time(stats.operations),
                of_peak,
                moved,
                of_time(stats.bytes),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{thread::sleep, time::Duration};

    use super::*;

    fn wait() {
        sleep(Duration::from_millis(20));
    }

    #[test]
    fn a_phase_excludes_nested_phases_and_counts_only_within_steps() {
        let product = || timed(Phase::Forward, Work::matmul([2, 3, 4]), wait);
        product();
        assert_eq!(finish(), None);

        start();
        product();
        for _ in 0..2 {
            timed(Phase::Step, Work::default(), || {
                wait();
                timed(Phase::Loss, Work::default(), || {
                    product();
                    product();
                });
            });
        }
        product();
        let profile = finish().expect("it was started");
        assert_eq!(finish(), None);
        let (step, loss, forward) = (
            profile.stats(Phase::Step),
            profile.stats(Phase::Loss),
            profile.stats(Phase::Forward),
        );
        assert_eq!((step.calls, loss.calls, forward.calls), (2, 2, 4));
        assert_eq!(forward.operations, 4.0 * 48.0);
        assert_eq!(forward.bytes, 4.0 * 4.0 * (8.0 + 12.0 + 6.0));
        // Sleeping takes at least the requested time.
        assert!(step.seconds >= 0.04 && forward.seconds >= 0.08);
        assert!(
            loss.seconds < 0.04,
            "it only calls the others: {}",
            loss.seconds
        );

        let table = profile.to_string();
        assert!(table.starts_with("time of 2 steps, "), "{table}");
        assert!(table.contains("matmul, forward"), "{table}");
        // Any processor does more than one operation per nanosecond, and fewer than a million.
        assert!(
            (1e9..1e15).contains(&profile.peak_flops),
            "{}",
            profile.peak_flops
        );
        assert!(!table.contains("projection"), "{table}");
    }
}
