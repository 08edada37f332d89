//! The LM head on answer positions: logits a few rows at a time, the loss and its gradient fused, nothing kept.
//!
//! P positions, V vocabulary, D hidden.

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    Loss, SoftTargets, Target, TeacherLogits, TokenSubset, matmul,
    simd::{self, LANES, vectorized},
    topk,
};

/// Logits (floats) held at once: 32 MiB, for the student and for the teacher.
const CHUNK_FLOATS: usize = 8 << 20;

/// Rows of logits held at once, for a vocabulary of `v`.
fn chunk_rows(v: usize) -> usize {
    (CHUNK_FLOATS / v).clamp(16, 256)
}

/// Calls `f(row, logits)` for each row of `hidden` (P, D), in parallel; the results are in order.
pub fn logits<R: Send>(
    head: &[f32],
    hidden: &[f32],
    [v, d]: [usize; 2],
    buffer: &mut Vec<f32>,
    f: impl Fn(usize, &mut [f32]) -> R + Sync,
) -> Vec<R> {
    let rows = chunk_rows(v);
    let mut results = Vec::with_capacity(hidden.len() / d);
    for (i, hidden) in hidden.chunks(rows * d).enumerate() {
        let n = hidden.len() / d;
        let logits = fill_logits(buffer, n * v, |y| {
            matmul::forward(y, hidden, head, [n, v, d], false);
        });
        results.par_extend(
            logits
                .par_chunks_mut(v)
                .enumerate()
                .map(|(j, logits)| f(i * rows + j, logits)),
        );
    }
    results
}

fn fill_logits(buffer: &mut Vec<f32>, len: usize, product: impl FnOnce(&mut [f32])) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    product(&mut buffer[..len]);
    &mut buffer[..len]
}

/// The loss at `targets`, and its gradients: `d_hidden` (P, D) is written, `d_head` (V, D) is added to where the head
/// is trained.
///
/// `buffers`: logits of the student and of the teacher.
#[allow(
    clippy::too_many_arguments,
    reason = "the head, its input, the teacher and the two gradients"
)]
pub fn loss(
    head: &[f32],
    hidden: &[f32],
    targets: &[Target],
    teacher: Option<SoftTargets<'_>>,
    d_hidden: &mut [f32],
    mut d_head: Option<&mut [f32]>,
    [v, d]: [usize; 2],
    buffers: &mut [Vec<f32>; 2],
) -> Loss {
    let rows = chunk_rows(v);
    let mut total = Loss::default();
    let [student, teacher_buffer] = buffers;
    let chunks = hidden
        .chunks(rows * d)
        .zip(d_hidden.chunks_mut(rows * d))
        .zip(targets.chunks(rows));
    for (i, ((hidden, d_hidden), targets)) in chunks.enumerate() {
        let n = targets.len();
        let logits = fill_logits(student, n * v, |y| {
            matmul::forward(y, hidden, head, [n, v, d], false);
        });
        let students = logits.par_chunks_mut(v).zip(targets).enumerate();
        let losses: Vec<(f64, f64)> = match teacher
            .map(|side| (side.logits, DistillOptions::of(side)))
        {
            None => students
                .map(|(_, (s, target))| (cross_entropy_row(s, target), 0.0))
                .collect(),
            Some((
                TeacherLogits::Hidden {
                    head,
                    hidden,
                    subset: compared,
                },
                how,
            )) => {
                let hidden = &hidden[i * rows * d..][..n * d];
                let soft = fill_logits(teacher_buffer, n * v, |y| {
                    matmul::forward(y, hidden, head, [n, v, d], false);
                });
                students
                    .zip(soft.par_chunks(v))
                    .map(
                        |((j, (s, target)), t)| match compared.select(t, i * rows + j) {
                            None if how.exclude_target => {
                                distill_row_excluding_target(s, t, how.tau, target)
                            }
                            None => distill_row(s, t, how.tau, target),
                            Some(tokens) => {
                                let t: Vec<f32> = tokens.iter().map(|id| t[*id as usize]).collect();
                                distill_row_subset(s, &tokens, &t, how, target)
                            }
                        },
                    )
                    .collect()
            }
            Some((
                TeacherLogits::TopK {
                    tokens,
                    logits,
                    k: count,
                },
                how,
            )) => students
                .map(|(j, (s, target))| {
                    let kept = (i * rows + j) * count..(i * rows + j + 1) * count;
                    distill_row_subset(s, &tokens[kept.clone()], &logits[kept], how, target)
                })
                .collect(),
        };
        for ((ce, kl), target) in losses.into_iter().zip(targets) {
            total.ce += f64::from(target.ce_weight) * ce;
            total.distill += f64::from(target.distill_weight) * kl;
        }
        matmul::input_gradient(d_hidden, logits, head, [n, v, d], false);
        if let Some(d_head) = d_head.as_deref_mut() {
            matmul::weight_gradient(d_head, logits, 0, hidden, [n, v, d]);
        }
    }
    total
}

/// How a row is compared, beside over which tokens.
#[derive(Clone, Copy)]
struct DistillOptions {
    tau: f32,
    exclude_target: bool,
}

impl DistillOptions {
    fn of(side: SoftTargets<'_>) -> Self {
        Self {
            tau: side.temperature,
            exclude_target: side.exclude_target,
        }
    }
}

impl TokenSubset {
    /// The tokens compared at the target numbered `target`, where the teacher's logits are `t`; none: all of them.
    fn select(self, t: &[f32], target: usize) -> Option<Vec<u32>> {
        match self {
            Self::TopK(count) if count < t.len() => {
                Some(topk(t, count).into_iter().map(|(id, _)| id).collect())
            }
            Self::Random {
                count,
                seed,
                stream,
            } if count < t.len() => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(stream + target as u64);
                let drawn = index::sample(&mut rng, t.len(), count);
                Some(drawn.into_iter().map(|id| id as u32).collect())
            }
            Self::Full | Self::TopK(_) | Self::Random { .. } => None,
        }
    }
}

/// [`distill_row`] with the divergence over `tokens` alone, S, of which `t` are the teacher's logits; both sides are
/// renormalised over them (eq. 5): `KL(softmax(t_S / tau) || softmax(s_S / tau))`. Its gradient is zero at every other token.
///
/// Without the target it is [`distill_row_excluding_target`] of these two distributions over S: where the target is one of S, it
/// weighs what the teacher's gives to the rest of S, and where it is not, nothing changes.
fn distill_row_subset(
    s: &mut [f32],
    tokens: &[u32],
    t: &[f32],
    how: DistillOptions,
    target: &Target,
) -> (f64, f64) {
    let soft = |x: f32| f64::from(x) / f64::from(how.tau);
    let softened = tokens.iter().zip(t);
    let mut compared: Vec<(usize, f64, f64)> = softened
        .map(|(id, t)| (*id as usize, soft(s[*id as usize]), soft(*t)))
        .collect();
    let ce = cross_entropy_row(s, target);
    let whole = log_sum_exp(compared.iter().map(|(_, _, t)| *t));
    if how.exclude_target {
        compared.retain(|(id, _, _)| *id != target.token as usize);
    }
    let z_s = log_sum_exp(compared.iter().map(|(_, s, _)| *s));
    let z_t = log_sum_exp(compared.iter().map(|(_, _, t)| *t));
    let mass = (z_t - whole).exp();
    let weight = f64::from(target.distill_weight / how.tau) * mass;
    let mut kl = 0.0;
    for (token, student, teacher) in compared {
        let (student, teacher) = (student - z_s, teacher - z_t);
        kl += teacher.exp() * (teacher - student);
        s[token] += (weight * (student.exp() - teacher.exp())) as f32;
    }
    (ce, mass * kl)
}

/// ln of the sum of exp(x), of few x.
fn log_sum_exp(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = x.clone().fold(f64::NEG_INFINITY, f64::max);
    top + x.map(|x| (x - top).exp()).sum::<f64>().ln()
}

/// Cross-entropy, and KL(softmax(t / tau) || softmax(s / tau)) (eq. 2, forward, teacher first), of one position, in
/// nats, over the whole vocabulary.
///
/// `s` becomes the gradient: `ce_weight * (softmax(s) - onehot(y)) + distill_weight / tau * (softmax(s / tau) -
/// softmax(t / tau))`. tau^2 and lambda are in `distill_weight`.
fn distill_row(s: &mut [f32], t: &[f32], tau: f32, target: &Target) -> (f64, f64) {
    let (y, inverse) = (target.token as usize, 1.0 / tau);
    let tops = [max_logit(s), max_logit(t)];
    let above = f64::from(tops[0] - s[y]);
    let [z, z_s, z_t, cross] = sums(s, t, tops, inverse);
    let hard = target.ce_weight / z as f32;
    let soft = target.distill_weight * inverse;
    let scales = [hard, soft / z_s as f32, soft / z_t as f32];
    write_gradient(s, t, tops, inverse, scales);
    s[y] -= target.ce_weight;
    let kl = cross / z_t * f64::from(inverse) - z_t.ln() + z_s.ln();
    (z.ln() + above, kl)
}

/// [`distill_row`] with the target token y left out of the divergence: `(1 - p_y) KL(p' || q')`, p' and q' being p =
/// softmax(t / tau) and q = softmax(s / tau) over the other tokens, renormalised. Zhao et al. 2022 (arXiv 2203.08679) split
/// KL(p || q) into a part of y against the rest and this one (NCKD, with the weight that it has in the sum).
///
/// The divergence's gradient is `distill_weight / tau * (1 - p_y) * (q' - p')` beside y and 0 at y. `1 - p_y` is the sum of the
/// others' probabilities, exact where `p_y` rounds to 1.
fn distill_row_excluding_target(s: &mut [f32], t: &[f32], tau: f32, target: &Target) -> (f64, f64) {
    let (y, inverse) = (target.token as usize, 1.0 / tau);
    let (s_before, s_after) = s.split_at_mut(y);
    let (s_y, s_after) = s_after.split_first_mut().expect("y is a token");
    let parts = [(s_before, &t[..y]), (s_after, &t[y + 1..])];
    let mut tops = [f32::NEG_INFINITY; 2];
    for (s, t) in &parts {
        tops = [tops[0].max(max_logit(s)), tops[1].max(max_logit(t))];
    }
    let mut others = [0f64; 4];
    for (s, t) in &parts {
        for (sum, part) in others.iter_mut().zip(sums(s, t, tops, inverse)) {
            *sum += part;
        }
    }
    let [z, z_s, z_t, cross] = others;
    // ln of the sums over all tokens, and over all but y, shifted as the others' logits are.
    let with = |ln_others: f64, y: f64| log_sum_exp([ln_others, y].into_iter());
    let chosen = f64::from(*s_y - tops[0]);
    let ln_all = with(z.ln(), chosen);
    let teacher_all = with(z_t.ln(), f64::from((t[y] - tops[1]) * inverse));
    let mass = (z_t.ln() - teacher_all).exp();

    let hard = (f64::from(target.ce_weight) * (-ln_all).exp()) as f32;
    let soft = f64::from(target.distill_weight * inverse) * mass;
    let scales = [hard, (soft / z_s) as f32, (soft / z_t) as f32];
    for (s, t) in parts {
        write_gradient(s, t, tops, inverse, scales);
    }
    // softmax(s)[y] - 1 is what the others have, negative.
    *s_y = (-f64::from(target.ce_weight) * (z.ln() - ln_all).exp()) as f32;
    let kl = cross / z_t * f64::from(inverse) - z_t.ln() + z_s.ln();
    (ln_all - chosen, mass * kl)
}

#[inline(always)]
fn total(lanes: [f32; LANES]) -> f64 {
    lanes.iter().map(|x| f64::from(*x)).sum()
}

vectorized! {
    /// Cross-entropy of one position, -ln softmax(s)[y], in nats; `s` becomes `ce_weight * (softmax(s) - onehot(y))`.
    fn cross_entropy_row(s: &mut [f32], target: &Target) -> f64 {
        let (y, weight) = (target.token as usize, target.ce_weight);
        let (top, chosen) = (simd::max(s), s[y]);
        let (chunks, rest) = s.as_chunks_mut::<LANES>();
        let mut sums = [0f32; LANES];
        for x in chunks {
            for i in 0..LANES {
                x[i] = simd::exp(x[i] - top);
                sums[i] += x[i];
            }
        }
        let mut sum = total(sums);
        for x in rest {
            *x = simd::exp(*x - top);
            sum += f64::from(*x);
        }
        let scale = weight / sum as f32;
        for x in s.iter_mut() {
            *x *= scale;
        }
        s[y] -= weight;
        sum.ln() + f64::from(top - chosen)
    }

    /// The largest logit.
    fn max_logit(x: &[f32]) -> f32 {
        simd::max(x)
    }

    /// Sums of [`terms`] over logits of the student and of the teacher, shifted by `tops`.
    fn sums(s: &[f32], t: &[f32], tops: [f32; 2], inverse: f32) -> [f64; 4] {
        let mut lanes = [[0f32; LANES]; 4];
        let (s_chunks, s_rest) = s.as_chunks::<LANES>();
        let (t_chunks, t_rest) = t.as_chunks::<LANES>();
        for (s, t) in s_chunks.iter().zip(t_chunks) {
            for i in 0..LANES {
                let terms = terms(s[i] - tops[0], t[i] - tops[1], inverse);
                for (lanes, term) in lanes.iter_mut().zip(terms) {
                    lanes[i] += term;
                }
            }
        }
        let mut sums = lanes.map(total);
        for (s, t) in s_rest.iter().zip(t_rest) {
            for (sum, term) in sums.iter_mut().zip(terms(*s - tops[0], *t - tops[1], inverse)) {
                *sum += f64::from(term);
            }
        }
        sums
    }

    /// `s` becomes `scales[0] * exp(a) + scales[1] * exp(a / tau) - scales[2] * exp(b / tau)`, a and b as in [`terms`].
    fn write_gradient(s: &mut [f32], t: &[f32], tops: [f32; 2], inverse: f32, scales: [f32; 3]) {
        for (s, t) in s.iter_mut().zip(t) {
            let a = *s - tops[0];
            *s = scales[0] * simd::exp(a) + scales[1] * simd::exp(a * inverse)
                - scales[2] * simd::exp((t - tops[1]) * inverse);
        }
    }
}

/// exp(a), exp(a / tau), exp(b / tau) and exp(b / tau) * (b - a), of shifted logits a of the student and b of the teacher.
#[inline(always)]
fn terms(a: f32, b: f32, inverse: f32) -> [f32; 4] {
    let et = simd::exp(b * inverse);
    [simd::exp(a), simd::exp(a * inverse), et, et * (b - a)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOW: DistillOptions = DistillOptions {
        tau: 0.5,
        exclude_target: false,
    };

    const WITHOUT: DistillOptions = DistillOptions {
        exclude_target: true,
        ..HOW
    };

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
        let (ce, kl) = distill_row(&mut g, &t, tau as f32, &target(w, u));
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
    fn a_vocabulary_subset_follows_equation_5() {
        let s: Vec<f32> = (0..30).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let t: Vec<f32> = (0..30).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let (tau, w, u) = (0.5, 0.25, 0.75);
        let tokens = TokenSubset::TopK(5).select(&t, 0).expect("five of thirty");
        let part = |x: &[f32]| -> Vec<f32> { tokens.iter().map(|i| x[*i as usize]).collect() };
        let (ps, pt) = (softmax(&part(&s), tau), softmax(&part(&t), tau));
        let mut g = s.clone();
        let (ce, kl) = distill_row_subset(&mut g, &tokens, &part(&t), HOW, &target(w, u));
        let exact_kl: f64 = pt.iter().zip(&ps).map(|(t, s)| t * (t / s).ln()).sum();
        // Both in f64.
        assert!((kl - exact_kl).abs() < 1e-12, "{kl} {exact_kl}");
        let mut hard = s.clone();
        assert!((cross_entropy_row(&mut hard, &target(w, u)) - ce).abs() < 1e-12);
        for (token, (ps, pt)) in tokens.iter().zip(ps.iter().zip(&pt)) {
            hard[*token as usize] += (f64::from(u) / tau * (ps - pt)) as f32;
        }
        assert!(g.iter().zip(&hard).all(|(g, h)| (g - h).abs() < 1e-6));
        // Over all tokens it is the whole divergence.
        let all: Vec<u32> = (0..30).collect();
        let (mut part, mut whole) = (s.clone(), s.clone());
        let (_, kl_part) = distill_row_subset(&mut part, &all, &t, HOW, &target(w, u));
        let (_, kl) = distill_row(&mut whole, &t, tau as f32, &target(w, u));
        assert!((kl - kl_part).abs() < 2e-6);
        assert!(part.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    /// `(1 - p_y) KL(p' || q')`, and its gradient for the student's logits; tau = 0.5, `1 - p_y` by summing the others.
    fn beside_target(s: &[f32], t: &[f32], y: usize) -> (f64, Vec<f64>) {
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
            let (exact_kl, gradient) = beside_target(&s, &t, y);
            let (mut g, mut hard) = (s.clone(), s.clone());
            let (ce, kl) = distill_row_excluding_target(&mut g, &t, 0.5, &target);
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
        for sure in [5.0, 12.0, 22.0, 37.0] {
            t[2] = sure;
            let (exact_kl, gradient) = beside_target(&s, &t, 2);
            let (mut g, mut over) = (s.clone(), s.clone());
            let (_, kl) = distill_row_excluding_target(&mut g, &t, 0.5, &target(0.0, 1.0));
            let (_, kl_over) = distill_row_subset(&mut over, &all, &t, WITHOUT, &target(0.0, 1.0));
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
            let (ce, kl) = distill_row_excluding_target(&mut g, &row(t), 0.5, &target(1.0, 1.0));
            // The others are alike on both sides.
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
        let over = |tokens: &[u32], how: DistillOptions| {
            let part: Vec<f32> = tokens.iter().map(|id| t[*id as usize]).collect();
            let mut g = s.clone();
            let (_, kl) = distill_row_subset(&mut g, tokens, &part, how, &target);
            (kl, g)
        };
        // The target is token 2. Among these it is the third, and what is compared is a vocabulary of five.
        let with = [0u32, 1, 2, 3, 21];
        let part = |x: &[f32]| -> Vec<f32> { with.iter().map(|id| x[*id as usize]).collect() };
        let (exact_kl, gradient) = beside_target(&part(&s), &part(&t), 2);
        let (kl, g) = over(&with, WITHOUT);
        assert!((kl - exact_kl).abs() < 1e-12, "{kl} {exact_kl}");
        for (token, exact) in with.iter().zip(&gradient) {
            assert!((f64::from(g[*token as usize]) - 0.75 * exact).abs() < 1e-6);
        }
        // Where it is not among them, nothing changes; where it is alone, nothing is left.
        let apart = [0u32, 1, 3, 21];
        assert_eq!(over(&apart, WITHOUT), over(&apart, HOW));
        let (kl, g) = over(&[2], WITHOUT);
        assert!(kl == 0.0 && g.iter().all(|g| *g == 0.0));
    }

    #[test]
    fn random_subsets_are_reproducible_and_differ_between_targets() {
        let t = [0.0; 500];
        let draw = |seed, stream, target| {
            TokenSubset::Random {
                count: 76,
                seed,
                stream,
            }
            .select(&t, target)
            .expect("76 of 500")
        };
        let first = draw(1, 10, 0);
        let distinct: std::collections::HashSet<u32> = first.iter().copied().collect();
        assert_eq!(distinct.len(), 76);
        assert_eq!(first, draw(1, 10, 0));
        assert_eq!(draw(1, 11, 0), draw(1, 10, 1), "streams follow each other");
        assert!(first != draw(1, 10, 1) && first != draw(2, 10, 0));
        assert_eq!(TokenSubset::TopK(500).select(&t, 0), None);
    }

    #[test]
    fn equal_student_and_teacher_give_zero_kl_and_zero_gradient() {
        let s: Vec<f32> = (0..40).map(|i| (i as f32).sin() * 5.0).collect();
        let mut g = s.clone();
        let (_, kl) = distill_row(&mut g, &s, 2.0, &target(0.0, 1.0));
        assert!(kl.abs() < 1e-6, "{kl}");
        assert!(g.iter().all(|g| g.abs() < 1e-7));
    }
}
