//! Learning-rate schedules, as `transformers`' `get_{constant,cosine,linear}_schedule_with_warmup`.

use std::f64::consts::PI;

use crate::config::LrScheduler;

impl LrScheduler {
    /// The rate of `step` (counted from 0) as a fraction of the peak: rising by 1/`warmup` a step from 0, then the shape,
    /// with t = (step - warmup) / (total - warmup): 1, (1 + cos(pi t)) / 2 or 1 - t.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let done = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Cosine => (0.5 * (1.0 + (PI * done).cos())).max(0.0),
            Self::Linear => (1.0 - done).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // [get_cosine_schedule_with_warmup(o, 2, 10).lr_lambdas[0](s) for s in (0, 1, 2, 6, 10)], and the linear one.
    #[test]
    fn values_are_those_of_transformers() {
        let at = |schedule: LrScheduler| [0, 1, 2, 6, 10].map(|step| schedule.factor(step, 2, 10));
        let near = |got: [f64; 5], want: [f64; 5]| {
            got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12)
        };
        assert!(near(at(LrScheduler::Constant), [0.0, 0.5, 1.0, 1.0, 1.0]));
        assert!(near(at(LrScheduler::Cosine), [0.0, 0.5, 1.0, 0.5, 0.0]));
        assert!(near(at(LrScheduler::Linear), [0.0, 0.5, 1.0, 0.5, 0.0]));
        // cos(pi / 4): where cosine and line part.
        let quarter = LrScheduler::Cosine.factor(4, 2, 10);
        assert!((quarter - 0.853_553_390_593_273_7).abs() < 1e-12);
        assert!((LrScheduler::Linear.factor(4, 2, 10) - 0.75).abs() < 1e-12);
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak_rate() {
        for schedule in [
            LrScheduler::Constant,
            LrScheduler::Cosine,
            LrScheduler::Linear,
        ] {
            assert!((schedule.factor(0, 0, 5) - 1.0).abs() < 1e-12);
        }
    }
}
