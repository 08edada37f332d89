//! Where the time of training steps goes, part by part: `tune --profile`.
//!
//! A thread that has called [`start`] counts what it spends in [`timed`]; on every other thread, and outside of [`Phase::StepTime`],
//! that only calls. The work itself may use all threads.

use std::{cell::RefCell, fmt, hint::black_box, time::Instant};

use super::simd::{LANES, vectorized};

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A whole step; by itself what no other part has: norms, rotations, activations, copies.
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
    /// Softmax, cross-entropy and divergence over the vocabulary.
    Loss,
    /// What holds the weights themselves, and the norm of the gradient.
    Penalties,
    /// `AdamW`, and the average of the weights.
    Optimizer,
    /// Updates projected off the known facts' inputs.
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
            Self::Step => "all else",
            Self::Forward => "products, forward",
            Self::InputGradient => "products, gradients of inputs",
            Self::WeightGradient => "products, gradients of weights",
            Self::Attention => "attention, forward",
            Self::AttentionBackward => "attention, backward",
            Self::Loss => "loss over the vocabulary",
            Self::Penalties => "penalties, norm of the gradient",
            Self::Optimizer => "optimiser",
            Self::Projection => "projection",
        }
    }
}

/// What a part takes at least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Additions and multiplications.
    pub operations: f64,
    /// Bytes read and written, each once.
    pub bytes: f64,
}

impl Work {
    /// Of a product (m, k) (k, n), in f32.
    pub fn matmul([m, n, k]: [usize; 3]) -> Self {
        let [m, n, k] = [m as f64, n as f64, k as f64];
        Self {
            operations: 2.0 * m * n * k,
            bytes: 4.0 * (m * k + k * n + m * n),
        }
    }

    /// Of passing over so many f32, read or written.
    pub fn floats(count: usize) -> Self {
        Self {
            operations: 0.0,
            bytes: 4.0 * count as f64,
        }
    }
}

/// What one part took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct PhaseStats {
    calls: u64,
    seconds: f64,
    operations: f64,
    bytes: f64,
}

/// What the steps since [`start`] took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    phases: [PhaseStats; Phase::ALL.len()],
    /// What the processor can do at most, in operations a second; 0 where it was not measured.
    peak_flops: f64,
    /// Seconds of parts within the one that is open.
    nested_seconds: f64,
    in_step: bool,
}

thread_local! {
    static PROFILE: RefCell<Option<Profile>> = const { RefCell::new(None) };
}

/// Counts on this thread from now on.
pub fn start() {
    PROFILE.set(Some(Profile::default()));
}

/// What was counted since [`start`], beside what the processor can do at most; none where it was not called. Nothing is counted from
/// here on.
pub fn finish() -> Option<Profile> {
    let mut profile = PROFILE.take()?;
    profile.peak_flops = peak_flops();
    Some(profile)
}

/// Calls `f`, and counts what it takes as `part`, without what is counted within it.
pub fn timed<T>(part: Phase, work: Work, f: impl FnOnce() -> T) -> T {
    let counts = PROFILE.with_borrow_mut(|profile| {
        let profile = profile.as_mut()?;
        profile.in_step |= part == Phase::Step;
        profile
            .in_step
            .then(|| std::mem::take(&mut profile.nested_seconds))
    });
    let Some(before) = counts else {
        return f();
    };
    let started = Instant::now();
    let made = f();
    let seconds = started.elapsed().as_secs_f64();
    PROFILE.with_borrow_mut(|profile| {
        if let Some(profile) = profile {
            let spent = &mut profile.phases[part as usize];
            spent.calls += 1;
            spent.seconds += seconds - profile.nested_seconds;
            spent.operations += work.operations;
            spent.bytes += work.bytes;
            profile.nested_seconds = before + seconds;
            profile.in_step &= part != Phase::Step;
        }
    });
    made
}

/// Rounds of [`fma_rounds`]: some hundredth of a second.
const ROUNDS: usize = 5_000_000;

/// Operations a second of fused multiply-adds in registers, on all threads; the best of a few tries.
fn peak_flops() -> f64 {
    let once = || {
        let started = Instant::now();
        let threads = rayon::broadcast(|_| fma_rounds(black_box(ROUNDS))).len();
        let operations = threads * ROUNDS * FMA_CHAINS * LANES * 2;
        operations as f64 / started.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

/// As many multiply-adds of vectors as a processor has under way at most: two at once, each of four cycles.
const FMA_CHAINS: usize = 8;

vectorized! {
    /// [`FMA_CHAINS`] fused multiply-adds of [`LANES`] numbers a round, none of which waits for another.
    ///
    /// They are named so that they stay in registers, as in [`super::small`].
    fn fma_rounds(rounds: usize) -> f32 {
        let (by, plus) = (black_box(0.5f32), black_box(1.0f32));
        // Each of its own, or the compiler would make them one.
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
    fn stats(&self, part: Phase) -> PhaseStats {
        self.phases[part as usize]
    }

    /// Steps that were taken.
    fn steps(&self) -> u64 {
        self.stats(Phase::Step).calls
    }
}

/// A table: seconds a step, share, and what they are worth.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps().max(1) as f64;
        let all: f64 = self.phases.iter().map(|spent| spent.seconds).sum();
        writeln!(
            f,
            "{} steps of {:.3} s each, where their time went:",
            self.steps(),
            all / steps
        )?;
        write!(
            f,
            "{:<32}{:>9}{:>7}{:>9}{:>10}{:>9}{:>8}{:>8}",
            "", "s a step", "share", "calls", "GFLOP/s", "of peak", "GB", "GB/s"
        )?;
        for part in Phase::ALL {
            let spent = self.stats(part);
            if spent.calls == 0 {
                continue;
            }
            let of_time = |amount: f64| {
                if amount > 0.0 {
                    format!("{:.1}", amount / spent.seconds / 1e9)
                } else {
                    String::new()
                }
            };
            let of_peak = if spent.operations > 0.0 && self.peak_flops > 0.0 {
                let rate = spent.operations / spent.seconds;
                format!("{:.0}%", 100.0 * rate / self.peak_flops)
            } else {
                String::new()
            };
            let moved = if spent.bytes > 0.0 {
                format!("{:.2}", spent.bytes / steps / 1e9)
            } else {
                String::new()
            };
            write!(
                f,
                "\n{:<32}{:>9.3}{:>6.0}%{:>9.0}{:>10}{:>9}{:>8}{:>8}",
                part.name(),
                spent.seconds / steps,
                100.0 * spent.seconds / all,
                spent.calls as f64 / steps,
                of_time(spent.operations),
                of_peak,
                moved,
                of_time(spent.bytes),
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
        let profile = finish().expect("it was begun");
        assert_eq!(finish(), None);
        let (step, loss, forward) = (
            profile.stats(Phase::Step),
            profile.stats(Phase::Loss),
            profile.stats(Phase::Forward),
        );
        assert_eq!((step.calls, loss.calls, forward.calls), (2, 2, 4));
        assert_eq!(forward.operations, 4.0 * 48.0);
        assert_eq!(forward.bytes, 4.0 * 4.0 * (8.0 + 12.0 + 6.0));
        // Sleeping takes as long as was said, or longer.
        assert!(step.seconds >= 0.04 && forward.seconds >= 0.08);
        assert!(loss.seconds < 0.04, "it only calls: {}", loss.seconds);

        let told = profile.to_string();
        assert!(told.starts_with("2 steps of "), "{told}");
        assert!(told.contains("products, forward"), "{told}");
        // Every processor that this runs on does more than one operation in a nanosecond, and none a million.
        assert!(
            (1e9..1e15).contains(&profile.peak_flops),
            "{}",
            profile.peak_flops
        );
        assert!(!told.contains("projection"), "{told}");
    }
}
