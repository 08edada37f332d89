//! The loss at one output position, and its gradient with respect to the student's logits: cross-entropy, and the KL divergence from
//! the teacher to the student over the whole vocabulary, over some of its tokens, or without the target.
//!
//! All values are in nats. Each function overwrites the student's logits with the gradient. The weights of both terms, and with them
//! every reduction, are in [`Target`].

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;

use super::{
    simd::{self, LANES, vectorized},
    topk::topk,
};
use crate::config::VocabSubset;

/// One output position: the token that should follow, and the weight of each loss term there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Index in [`Batch::tokens`](super::Batch::tokens) of the token whose logits predict `token`. Strictly increasing over a batch.
    pub position: usize,
    /// The token that follows.
    pub token: u32,
    /// Weight of the cross-entropy at this position, including the mean.
    pub ce_weight: f32,
    /// Weight of the KL divergence at this position, including lambda, tau^2 and the mean.
    pub distill_weight: f32,
}

/// The teacher's distributions at the targets of a batch, and how the student is compared with them.
#[derive(Clone, Copy)]
pub struct SoftTargets<'a> {
    /// The teacher's logits.
    pub logits: TeacherLogits<'a>,
    /// The settings of the divergence.
    pub options: DistillOptions,
}

/// Where the teacher's logits come from.
#[derive(Clone, Copy)]
pub enum TeacherLogits<'a> {
    /// They are computed from the teacher's last hidden states.
    Hidden {
        /// The teacher's LM head (V, D); `None`: that of the student.
        head: Option<&'a [f32]>,
        /// The teacher's hidden states after the final norm, one row per target (P, D).
        hidden: &'a [f32],
        /// The tokens that are compared. Both sides are renormalised over them.
        subset: VocabSubset,
        /// The random draws of [`VocabSubset::Random`].
        rng: RngStream,
    },
    /// The largest logits of each target are given, and only these tokens are compared.
    TopK {
        /// The tokens (P, k).
        tokens: &'a [u32],
        /// Their logits (P, k).
        logits: &'a [f32],
        /// Tokens per target.
        k: usize,
    },
}

/// The terms of the loss in nats, each already weighted and summed over the targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of `ce_weight` * cross-entropy.
    pub ce: f64,
    /// Sum of `distill_weight` * KL(teacher || student), both softened by the temperature.
    pub distill: f64,
    /// Penalties on the weights. The engine computes none.
    pub penalty: f64,
}

impl Loss {
    /// The sum of all terms.
    pub fn total(&self) -> f64 {
        self.ce + self.distill + self.penalty
    }
}

/// Settings of the KL divergence.
#[derive(Clone, Copy)]
pub struct DistillOptions {
    /// Temperature tau of both sides.
    pub tau: f32,
    /// Whether the target token is left out of the divergence, which is then weighted by the teacher's probability of the other tokens.
    pub exclude_target: bool,
}

/// The loss at one output position, in nats, before the weights of [`Target`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// Cross-entropy.
    pub ce: f64,
    /// KL(teacher || student); 0 without a teacher.
    pub kl: f64,
}

/// Seed and stream of random draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngStream {
    /// Seed of the generator.
    pub seed: u64,
    /// Stream of the first target's draw. Each later target uses the next stream.
    pub stream: u64,
}

/// The tokens of `subset` at the target numbered `target`, where the teacher's logits are `t`; `None` for the whole vocabulary.
pub fn select_tokens(
    subset: VocabSubset,
    rng: RngStream,
    t: &[f32],
    target: usize,
) -> Option<Vec<u32>> {
    match subset {
        VocabSubset::TopK(k) if k < t.len() => {
            Some(topk(t, k).into_iter().map(|(id, _)| id).collect())
        }
        VocabSubset::Random(k) if k < t.len() => {
            let mut generator = ChaCha8Rng::seed_from_u64(rng.seed);
            generator.set_stream(rng.stream + target as u64);
            let drawn = index::sample(&mut generator, t.len(), k);
            Some(drawn.into_iter().map(|id| id as u32).collect())
        }
        VocabSubset::Full | VocabSubset::TopK(_) | VocabSubset::Random(_) => None,
    }
}

/// [`distill_row`] with the divergence over the subset S of the vocabulary, `tokens`, where the teacher's logits are `t`. Both sides
/// are renormalised over S: `KL(softmax(t_S / tau) || softmax(s_S / tau))`. Its gradient is zero outside of S.
///
/// With `exclude_target` it is [`distill_row_excluding_target`] of these two distributions over S: if the target is in S, the
/// divergence is weighted by the teacher's probability of the rest of S; otherwise nothing changes.
pub fn distill_row_subset(
    s: &mut [f32],
    tokens: &[u32],
    t: &[f32],
    options: DistillOptions,
    target: &Target,
) -> RowLoss {
    let softened = |x: f32| f64::from(x) / f64::from(options.tau);
    let mut subset: Vec<(usize, f64, f64)> = tokens
        .iter()
        .zip(t)
        .map(|(id, t)| (*id as usize, softened(s[*id as usize]), softened(*t)))
        .collect();
    let ce = cross_entropy_row(s, target);
    let with_target = log_sum_exp(subset.iter().map(|(_, _, t)| *t));
    if options.exclude_target {
        subset.retain(|(id, _, _)| *id != target.token as usize);
    }
    let z_s = log_sum_exp(subset.iter().map(|(_, s, _)| *s));
    let z_t = log_sum_exp(subset.iter().map(|(_, _, t)| *t));
    let mass = (z_t - with_target).exp();
    let weight = f64::from(target.distill_weight / options.tau) * mass;
    let mut kl = 0.0;
    for (token, student, teacher) in subset {
        let (student, teacher) = (student - z_s, teacher - z_t);
        kl += teacher.exp() * (teacher - student);
        s[token] += (weight * (student.exp() - teacher.exp())) as f32;
    }
    RowLoss { ce, kl: mass * kl }
}

/// ln of the sum of exp(x), for few x.
fn log_sum_exp(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = x.clone().fold(f64::NEG_INFINITY, f64::max);
    max + x.map(|x| (x - max).exp()).sum::<f64>().ln()
}

/// Cross-entropy, and `KL(softmax(t / tau) || softmax(s / tau))` over the whole vocabulary, at one position. `s` and `t` (V) are the
/// logits of student and teacher.
///
/// `s` becomes the gradient: `ce_weight * (softmax(s) - onehot(y)) + distill_weight / tau * (softmax(s / tau) -
/// softmax(t / tau))`. `distill_weight` contains lambda, tau^2 and the mean.
pub fn distill_row(s: &mut [f32], t: &[f32], tau: f32, target: &Target) -> RowLoss {
    let (y, inverse) = (target.token as usize, 1.0 / tau);
    let maxima = [max_logit(s), max_logit(t)];
    let above = f64::from(maxima[0] - s[y]);
    let [z, z_s, z_t, cross] = sums(s, t, maxima, inverse);
    let hard = target.ce_weight / z as f32;
    let soft = target.distill_weight * inverse;
    let scales = [hard, soft / z_s as f32, soft / z_t as f32];
    write_gradient(s, t, maxima, inverse, scales);
    s[y] -= target.ce_weight;
    let kl = cross / z_t * f64::from(inverse) - z_t.ln() + z_s.ln();
    RowLoss {
        ce: z.ln() + above,
        kl,
    }
}

/// [`distill_row`] with the target token y left out of the divergence: `(1 - p_y) KL(p' || q')`, where p' and q' are p =
/// softmax(t / tau) and q = softmax(s / tau) renormalised over the other tokens. This is the second term of KL(p || q) in the
/// decomposition of Zhao et al. 2022 (arXiv 2203.08679), NCKD, with the weight that it has in the sum.
///
/// The gradient of the divergence is `distill_weight / tau * (1 - p_y) * (q' - p')` at the other tokens and 0 at y. `1 - p_y` is
/// computed as the sum of the other probabilities, which is exact even where `p_y` rounds to 1.
pub fn distill_row_excluding_target(
    s: &mut [f32],
    t: &[f32],
    tau: f32,
    target: &Target,
) -> RowLoss {
    let (y, inverse) = (target.token as usize, 1.0 / tau);
    let (s_before, s_after) = s.split_at_mut(y);
    let (s_y, s_after) = s_after.split_first_mut().expect("y is a token");
    let parts = [(s_before, &t[..y]), (s_after, &t[y + 1..])];
    let mut maxima = [f32::NEG_INFINITY; 2];
    for (s, t) in &parts {
        maxima = [maxima[0].max(max_logit(s)), maxima[1].max(max_logit(t))];
    }
    let mut others = [0f64; 4];
    for (s, t) in &parts {
        for (sum, part) in others.iter_mut().zip(sums(s, t, maxima, inverse)) {
            *sum += part;
        }
    }
    let [z, z_s, z_t, cross] = others;
    // Log-sum-exp over all tokens, from that over the other tokens; both are relative to the maximum of the others.
    let with = |others: f64, y: f64| log_sum_exp([others, y].into_iter());
    let target_logit = f64::from(*s_y - maxima[0]);
    let student_all = with(z.ln(), target_logit);
    let teacher_all = with(z_t.ln(), f64::from((t[y] - maxima[1]) * inverse));
    let mass = (z_t.ln() - teacher_all).exp();

    let hard = (f64::from(target.ce_weight) * (-student_all).exp()) as f32;
    let soft = f64::from(target.distill_weight * inverse) * mass;
    let scales = [hard, (soft / z_s) as f32, (soft / z_t) as f32];
    for (s, t) in parts {
        write_gradient(s, t, maxima, inverse, scales);
    }
    // softmax(s)[y] - 1 is minus the probability of the other tokens.
    *s_y = (-f64::from(target.ce_weight) * (z.ln() - student_all).exp()) as f32;
    let kl = cross / z_t * f64::from(inverse) - z_t.ln() + z_s.ln();
    RowLoss {
        ce: student_all - target_logit,
        kl: mass * kl,
    }
}

/// KL(t || s) (nats) of two rows of logits, over the whole vocabulary at temperature 1. Equal rows give 0 exactly.
pub fn kl_row(s: &[f32], t: &[f32]) -> f64 {
    let maxima = [max_logit(s), max_logit(t)];
    let [z_s, _, z_t, cross] = sums(s, t, maxima, 1.0);
    (cross / z_t - z_t.ln() + z_s.ln()).max(0.0)
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f64 {
    lanes.iter().map(|x| f64::from(*x)).sum()
}

vectorized! {
    /// Cross-entropy at one position, `-ln softmax(s)[y]`; `s` becomes `ce_weight * (softmax(s) - onehot(y))`.
    pub fn cross_entropy_row(s: &mut [f32], target: &Target) -> f64 {
        let (y, weight) = (target.token as usize, target.ce_weight);
        let (max, target_logit) = (simd::max(s), s[y]);
        let (chunks, rest) = s.as_chunks_mut::<LANES>();
        let mut sums = [0f32; LANES];
        for x in chunks {
            for i in 0..LANES {
                x[i] = simd::exp(x[i] - max);
                sums[i] += x[i];
            }
        }
        let mut sum = total(sums);
        for x in rest {
            *x = simd::exp(*x - max);
            sum += f64::from(*x);
        }
        let scale = weight / sum as f32;
        for x in s.iter_mut() {
            *x *= scale;
        }
        s[y] -= weight;
        sum.ln() + f64::from(max - target_logit)
    }

    fn max_logit(x: &[f32]) -> f32 {
        simd::max(x)
    }

    /// Sums of [`terms`] over the logits of student and teacher, each minus its maximum.
    fn sums(s: &[f32], t: &[f32], maxima: [f32; 2], inverse: f32) -> [f64; 4] {
        let mut lanes = [[0f32; LANES]; 4];
        let (s_chunks, s_rest) = s.as_chunks::<LANES>();
        let (t_chunks, t_rest) = t.as_chunks::<LANES>();
        for (s, t) in s_chunks.iter().zip(t_chunks) {
            for i in 0..LANES {
                let terms = terms(s[i] - maxima[0], t[i] - maxima[1], inverse);
                for (lanes, term) in lanes.iter_mut().zip(terms) {
                    lanes[i] += term;
                }
            }
        }
        let mut sums = lanes.map(total);
        for (s, t) in s_rest.iter().zip(t_rest) {
            for (sum, term) in sums.iter_mut().zip(terms(*s - maxima[0], *t - maxima[1], inverse)) {
                *sum += f64::from(term);
            }
        }
        sums
    }

    /// `s` becomes `scales[0] * exp(a) + scales[1] * exp(a / tau) - scales[2] * exp(b / tau)`, a and b as in [`terms`].
    fn write_gradient(s: &mut [f32], t: &[f32], maxima: [f32; 2], inverse: f32, scales: [f32; 3]) {
        for (s, t) in s.iter_mut().zip(t) {
            let a = *s - maxima[0];
            *s = scales[0] * simd::exp(a) + scales[1] * simd::exp(a * inverse)
                - scales[2] * simd::exp((t - maxima[1]) * inverse);
        }
    }
}

/// exp(a), exp(a / tau), exp(b / tau) and exp(b / tau) * (b - a), where a and b are logits of student and teacher minus their maximum.
#[inline(always)]
fn terms(a: f32, b: f32, inverse: f32) -> [f32; 4] {
    let et = simd::exp(b * inverse);
    [simd::exp(a), simd::exp(a * inverse), et, et * (b - a)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: DistillOptions = DistillOptions {
        tau: 0.5,
        exclude_target: false,
    };

    const EXCLUDED: DistillOptions = DistillOptions {
        exclude_target: true,
        ..OPTIONS
    };

    const FIRST: RngStream = RngStream { seed: 0, stream: 0 };

    fn target(ce_weight: f32, distill_weight: f32) -> Target {
        Target {
            position: 0,
            token: 2,
            ce_weight,
            distill_weight,
        }
    }

    fn softmax(x: &[f32], tau: f64) -> Vec<f64> {
        let e: Vec<f64> = x.iter().map(|x| (f64::from(*x) / tau).exp()).collect();
        let z: f64 = e.iter().sum();
        e.iter().map(|e| e / z).collect()
    }

    #[test]
    fn rows_equal_the_definitions() {
        // 19 logits: one register and a tail.
        let s: Vec<f32> = (0..19).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let t: Vec<f32> = (0..19).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let (tau, w, u) = (0.5, 0.25, 0.75);
        let mut g = s.clone();
        let RowLoss { ce, kl } = distill_row(&mut g, &t, tau as f32, &target(w, u));
        let (p, ps, pt) = (softmax(&s, 1.0), softmax(&s, tau), softmax(&t, tau));
        let exact_kl: f64 = pt.iter().zip(&ps).map(|(t, s)| t * (t / s).ln()).sum();
        // f32 exponentials of 2 ulp in sums of 19 terms.
        assert!((ce + p[2].ln()).abs() < 1e-6, "{ce} {}", -p[2].ln());
        assert!((kl - exact_kl).abs() < 2e-6, "{kl} {exact_kl}");
        for i in 0..19 {
            let hot = f64::from(u8::from(i == 2));
            let exact = f64::from(w) * (p[i] - hot) + f64::from(u) / tau * (ps[i] - pt[i]);
            assert!((f64::from(g[i]) - exact).abs() < 1e-6);
        }

        let mut g = s.clone();
        assert!((cross_entropy_row(&mut g, &target(w, 0.0)) - ce).abs() < 1e-6);
        assert!((f64::from(g[2]) - f64::from(w) * (p[2] - 1.0)).abs() < 1e-7);
    }

    #[test]
    fn the_divergence_of_two_rows_equals_its_definition() {
        let s: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let t: Vec<f32> = (0..37).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let (q, p) = (softmax(&s, 1.0), softmax(&t, 1.0));
        let exact: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        // As above: f32 exponentials in sums of 37 terms.
        assert!((kl_row(&s, &t) - exact).abs() < 2e-6 * exact);
        assert_eq!(kl_row(&t, &t), 0.0);
    }

    #[test]
    fn a_vocabulary_subset_follows_equation_5() {
        let s: Vec<f32> = (0..30).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let t: Vec<f32> = (0..30).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let (tau, w, u) = (0.5, 0.25, 0.75);
        let tokens = select_tokens(VocabSubset::TopK(5), FIRST, &t, 0).expect("five of thirty");
        let part = |x: &[f32]| -> Vec<f32> { tokens.iter().map(|i| x[*i as usize]).collect() };
        let (ps, pt) = (softmax(&part(&s), tau), softmax(&part(&t), tau));
        let mut g = s.clone();
        let RowLoss { ce, kl } =
            distill_row_subset(&mut g, &tokens, &part(&t), OPTIONS, &target(w, u));
        let exact_kl: f64 = pt.iter().zip(&ps).map(|(t, s)| t * (t / s).ln()).sum();
        // Both in f64.
        assert!((kl - exact_kl).abs() < 1e-12, "{kl} {exact_kl}");
        let mut hard = s.clone();
        assert!((cross_entropy_row(&mut hard, &target(w, u)) - ce).abs() < 1e-12);
        for (token, (ps, pt)) in tokens.iter().zip(ps.iter().zip(&pt)) {
            hard[*token as usize] += (f64::from(u) / tau * (ps - pt)) as f32;
        }
        assert!(g.iter().zip(&hard).all(|(g, h)| (g - h).abs() < 1e-6));
        // A subset with every token gives the divergence over the vocabulary.
        let all: Vec<u32> = (0..30).collect();
        let (mut part, mut whole) = (s.clone(), s.clone());
        let kl_part = distill_row_subset(&mut part, &all, &t, OPTIONS, &target(w, u)).kl;
        let kl = distill_row(&mut whole, &t, tau as f32, &target(w, u)).kl;
        assert!((kl - kl_part).abs() < 2e-6);
        assert!(part.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    /// `(1 - p_y) KL(p' || q')`, and its gradient for the student's logits; tau = 0.5, `1 - p_y` as the sum of the other probabilities.
    fn expected_excluding_target(s: &[f32], t: &[f32], y: usize) -> (f64, Vec<f64>) {
        let others = |x: &[f32]| [&x[..y], &x[y + 1..]].concat();
        let (q, p) = (softmax(&others(s), 0.5), softmax(&others(t), 0.5));
        let shifted = |x: f32| ((f64::from(x) - f64::from(t[y])) / 0.5).exp();
        let rest: f64 = others(t).into_iter().map(shifted).sum();
        let mass = rest / (1.0 + rest);
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let mut gradient: Vec<f64> = q
            .iter()
            .zip(&p)
            .map(|(q, p)| mass / 0.5 * (q - p))
            .collect();
        gradient.insert(y, 0.0);
        (mass * kl, gradient)
    }

    #[test]
    fn excluding_the_target_compares_the_other_tokens() {
        let s: Vec<f32> = (0..19).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let t: Vec<f32> = (0..19).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let (w, u) = (0.25, 0.75);
        for y in [0, 2, 17, 18] {
            let target = Target {
                token: y as u32,
                ..target(w, u)
            };
            let (exact_kl, gradient) = expected_excluding_target(&s, &t, y);
            let (mut g, mut hard) = (s.clone(), s.clone());
            let RowLoss { ce, kl } = distill_row_excluding_target(&mut g, &t, 0.5, &target);
            // The same as in `rows_equal_the_definitions`.
            assert!((kl - exact_kl).abs() < 2e-6, "{kl} {exact_kl}");
            assert!((cross_entropy_row(&mut hard, &target) - ce).abs() < 1e-6);
            for (i, exact) in gradient.iter().enumerate() {
                let exact = f64::from(hard[i]) + f64::from(u) * exact;
                assert!((f64::from(g[i]) - exact).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_confident_teacher_keeps_the_exact_weight_of_the_other_tokens() {
        let s: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let mut t: Vec<f32> = (0..40).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let all: Vec<u32> = (0..40).collect();
        // 1 - p_y is about e^-4, e^-18, e^-38 and e^-68: the last three are 0 as a difference in f32, the last two in f64.
        for confident in [5.0, 12.0, 22.0, 37.0] {
            t[2] = confident;
            let (exact_kl, gradient) = expected_excluding_target(&s, &t, 2);
            let (mut g, mut over) = (s.clone(), s.clone());
            let kl = distill_row_excluding_target(&mut g, &t, 0.5, &target(0.0, 1.0)).kl;
            let kl_over = distill_row_subset(&mut over, &all, &t, EXCLUDED, &target(0.0, 1.0)).kl;
            assert!(
                exact_kl > 0.0 && (kl / exact_kl - 1.0).abs() < 1e-5,
                "{kl} {exact_kl}"
            );
            assert!(
                (kl_over / exact_kl - 1.0).abs() < 1e-9,
                "{kl_over} {exact_kl}"
            );
            let largest = gradient.iter().fold(0f64, |top, g| top.max(g.abs()));
            for ((g, over), exact) in g.iter().zip(&over).zip(&gradient) {
                assert!((f64::from(*g) - exact).abs() < 1e-5 * largest);
                assert!((f64::from(*over) - exact).abs() < 1e-6 * largest);
            }
            assert_eq!((g[2], over[2]), (0.0, 0.0));
        }
    }

    #[test]
    fn large_logits_stay_finite() {
        let row = |y: f32| -> Vec<f32> { (0..40).map(|i| if i == 2 { y } else { 0.0 }).collect() };
        for (s, t) in [(1e4, 1e4), (-1e4, -1e4), (1e4, -1e4), (-1e4, 1e4)] {
            let mut g = row(s);
            let RowLoss { ce, kl } =
                distill_row_excluding_target(&mut g, &row(t), 0.5, &target(1.0, 1.0));
            // The other tokens have equal logits on both sides.
            assert!(kl.abs() < 1e-6, "{kl}");
            let exact = if s > 0.0 { 0.0 } else { 1e4 + 39f64.ln() };
            assert!((ce - exact).abs() < 1e-3, "{ce} {exact}");
            assert!(g.iter().all(|g| g.abs() <= 1.0));
        }
    }

    #[test]
    fn a_vocabulary_subset_without_the_target_is_weighted_by_the_remaining_teacher_mass() {
        let s: Vec<f32> = (0..30).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let t: Vec<f32> = (0..30).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let target = target(0.0, 0.75);
        let over = |tokens: &[u32], options: DistillOptions| {
            let part: Vec<f32> = tokens.iter().map(|id| t[*id as usize]).collect();
            let mut g = s.clone();
            let kl = distill_row_subset(&mut g, tokens, &part, options, &target).kl;
            (kl, g)
        };
        // The target is token 2, the third of these five: the divergence is that of a vocabulary of five tokens.
        let with = [0u32, 1, 2, 3, 21];
        let part = |x: &[f32]| -> Vec<f32> { with.iter().map(|id| x[*id as usize]).collect() };
        let (exact_kl, gradient) = expected_excluding_target(&part(&s), &part(&t), 2);
        let (kl, g) = over(&with, EXCLUDED);
        assert!((kl - exact_kl).abs() < 1e-12, "{kl} {exact_kl}");
        for (token, exact) in with.iter().zip(&gradient) {
            assert!((f64::from(g[*token as usize]) - 0.75 * exact).abs() < 1e-6);
        }
        // A subset without the target: nothing changes. The target alone: nothing is left to compare.
        let apart = [0u32, 1, 3, 21];
        assert_eq!(over(&apart, EXCLUDED), over(&apart, OPTIONS));
        let (kl, g) = over(&[2], EXCLUDED);
        assert!(kl == 0.0 && g.iter().all(|g| *g == 0.0));
    }

    #[test]
    fn random_subsets_are_reproducible_and_differ_between_targets() {
        let t = [0.0; 500];
        let draw = |seed, stream, target| {
            let rng = RngStream { seed, stream };
            select_tokens(VocabSubset::Random(76), rng, &t, target).expect("76 of 500")
        };
        let first = draw(1, 10, 0);
        let distinct: std::collections::HashSet<u32> = first.iter().copied().collect();
        assert_eq!(distinct.len(), 76);
        assert_eq!(first, draw(1, 10, 0));
        assert_eq!(draw(1, 11, 0), draw(1, 10, 1), "streams follow each other");
        assert!(first != draw(1, 10, 1) && first != draw(2, 10, 0));
        assert_eq!(select_tokens(VocabSubset::TopK(500), FIRST, &t, 0), None);
    }

    #[test]
    fn equal_student_and_teacher_give_zero_kl_and_zero_gradient() {
        let s: Vec<f32> = (0..40).map(|i| (i as f32).sin() * 5.0).collect();
        let mut g = s.clone();
        let kl = distill_row(&mut g, &s, 2.0, &target(0.0, 1.0)).kl;
        assert!(kl.abs() < 1e-6, "{kl}");
        assert!(g.iter().all(|g| g.abs() < 1e-7));
    }
}
