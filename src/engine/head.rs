//! The LM head on answer positions: logits a few rows at a time, the loss and its gradient fused, nothing kept.
//!
//! P positions, V vocabulary, D hidden.

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{
    Compared, Loss, Target, TeacherLogits, TeacherSide, likeliest, matmul,
    simd::{self, LANES, vectorized},
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
        let logits = fill(buffer, n * v, |y| {
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

fn fill(buffer: &mut Vec<f32>, len: usize, product: impl FnOnce(&mut [f32])) -> &mut [f32] {
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
    teacher: Option<TeacherSide<'_>>,
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
        let logits = fill(student, n * v, |y| {
            matmul::forward(y, hidden, head, [n, v, d], false);
        });
        let students = logits.par_chunks_mut(v).zip(targets).enumerate();
        let losses: Vec<(f64, f64)> = match teacher.map(|side| (side.logits, side.temperature)) {
            None => students
                .map(|(_, (s, target))| (cross_entropy_row(s, target), 0.0))
                .collect(),
            Some((
                TeacherLogits::Product {
                    head,
                    hidden,
                    compared,
                },
                tau,
            )) => {
                let hidden = &hidden[i * rows * d..][..n * d];
                let soft = fill(teacher_buffer, n * v, |y| {
                    matmul::forward(y, hidden, head, [n, v, d], false);
                });
                students
                    .zip(soft.par_chunks(v))
                    .map(
                        |((j, (s, target)), t)| match compared.tokens(t, i * rows + j) {
                            None => distill_row(s, t, tau, target),
                            Some(tokens) => {
                                let t: Vec<f32> = tokens.iter().map(|id| t[*id as usize]).collect();
                                distill_row_over(s, &tokens, &t, tau, target)
                            }
                        },
                    )
                    .collect()
            }
            Some((
                TeacherLogits::Kept {
                    tokens,
                    logits,
                    count,
                },
                tau,
            )) => students
                .map(|(j, (s, target))| {
                    let kept = (i * rows + j) * count..(i * rows + j + 1) * count;
                    distill_row_over(s, &tokens[kept.clone()], &logits[kept], tau, target)
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

impl Compared {
    /// The tokens compared at the target numbered `target`, where the teacher's logits are `t`; none: all of them.
    fn tokens(self, t: &[f32], target: usize) -> Option<Vec<u32>> {
        match self {
            Self::Likeliest(count) if count < t.len() => {
                Some(likeliest(t, count).into_iter().map(|(id, _)| id).collect())
            }
            Self::Drawn {
                count,
                seed,
                stream,
            } if count < t.len() => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(stream + target as u64);
                let drawn = index::sample(&mut rng, t.len(), count);
                Some(drawn.into_iter().map(|id| id as u32).collect())
            }
            Self::All | Self::Likeliest(_) | Self::Drawn { .. } => None,
        }
    }
}

/// [`distill_row`] with the divergence over `tokens` alone, S, of which `t` are the teacher's logits; both sides are
/// renormalised over them (eq. 5): `KL(softmax(t_S / tau) || softmax(s_S / tau))`. Its gradient is zero at every other token.
fn distill_row_over(
    s: &mut [f32],
    tokens: &[u32],
    t: &[f32],
    tau: f32,
    target: &Target,
) -> (f64, f64) {
    let student: Vec<f32> = tokens.iter().map(|id| s[*id as usize]).collect();
    let (student, teacher) = (log_softmax(&student, tau), log_softmax(t, tau));
    let ce = cross_entropy_row(s, target);
    let weight = f64::from(target.distill_weight / tau);
    let mut kl = 0.0;
    for ((token, student), teacher) in tokens.iter().zip(student).zip(teacher) {
        kl += teacher.exp() * (teacher - student);
        s[*token as usize] += (weight * (student.exp() - teacher.exp())) as f32;
    }
    (ce, kl)
}

/// ln softmax(x / tau), of few logits.
fn log_softmax(x: &[f32], tau: f32) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x) / f64::from(tau)).collect();
    let top = x.iter().fold(f64::NEG_INFINITY, |top, x| top.max(*x));
    let z = top + x.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
    x.into_iter().map(|x| x - z).collect()
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

    /// Cross-entropy, and KL(softmax(t / tau) || softmax(s / tau)) (eq. 2, forward, teacher first), of one position, in
    /// nats, over the whole vocabulary.
    ///
    /// `s` becomes the gradient: `ce_weight * (softmax(s) - onehot(y)) + distill_weight / tau * (softmax(s / tau) -
    /// softmax(t / tau))`. tau^2 and lambda are in `distill_weight`.
    fn distill_row(s: &mut [f32], t: &[f32], tau: f32, target: &Target) -> (f64, f64) {
        let (y, inverse) = (target.token as usize, 1.0 / tau);
        let (top_s, top_t, chosen) = (simd::max(s), simd::max(t), s[y]);
        // Sums of exp(s), exp(s / tau), exp(t / tau), exp(t / tau) * (t - s), all shifted by the largest logit.
        let mut lanes = [[0f32; LANES]; 4];
        let (s_chunks, s_rest) = s.as_chunks::<LANES>();
        let (t_chunks, t_rest) = t.as_chunks::<LANES>();
        for (s, t) in s_chunks.iter().zip(t_chunks) {
            for i in 0..LANES {
                let terms = terms(s[i] - top_s, t[i] - top_t, inverse);
                for (lanes, term) in lanes.iter_mut().zip(terms) {
                    lanes[i] += term;
                }
            }
        }
        let mut sums = lanes.map(total);
        for (s, t) in s_rest.iter().zip(t_rest) {
            for (sum, term) in sums.iter_mut().zip(terms(*s - top_s, *t - top_t, inverse)) {
                *sum += f64::from(term);
            }
        }
        let [z, z_s, z_t, cross] = sums;
        let hard = target.ce_weight / z as f32;
        let soft = target.distill_weight * inverse;
        let (soft_s, soft_t) = (soft / z_s as f32, soft / z_t as f32);
        for (s, t) in s.iter_mut().zip(t) {
            let a = *s - top_s;
            *s = hard * simd::exp(a) + soft_s * simd::exp(a * inverse)
                - soft_t * simd::exp((t - top_t) * inverse);
        }
        s[y] -= target.ce_weight;
        let kl = cross / z_t * f64::from(inverse) - z_t.ln() + z_s.ln();
        (z.ln() + f64::from(top_s - chosen), kl)
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
    fn a_part_of_the_vocabulary_is_compared_as_equation_5_says() {
        let s: Vec<f32> = (0..30).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let t: Vec<f32> = (0..30).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
        let (tau, w, u) = (0.5, 0.25, 0.75);
        let tokens = Compared::Likeliest(5)
            .tokens(&t, 0)
            .expect("five of thirty");
        let part = |x: &[f32]| -> Vec<f32> { tokens.iter().map(|i| x[*i as usize]).collect() };
        let (ps, pt) = (softmax(&part(&s), tau), softmax(&part(&t), tau));
        let mut g = s.clone();
        let (ce, kl) = distill_row_over(&mut g, &tokens, &part(&t), tau as f32, &target(w, u));
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
        let (_, kl_part) = distill_row_over(&mut part, &all, &t, tau as f32, &target(w, u));
        let (_, kl) = distill_row(&mut whole, &t, tau as f32, &target(w, u));
        assert!((kl - kl_part).abs() < 2e-6);
        assert!(part.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn every_target_draws_tokens_of_its_own_the_same_ones_again() {
        let t = [0.0; 500];
        let draw = |seed, stream, target| {
            Compared::Drawn {
                count: 76,
                seed,
                stream,
            }
            .tokens(&t, target)
            .expect("76 of 500")
        };
        let first = draw(1, 10, 0);
        let distinct: std::collections::HashSet<u32> = first.iter().copied().collect();
        assert_eq!(distinct.len(), 76);
        assert_eq!(first, draw(1, 10, 0));
        assert_eq!(draw(1, 11, 0), draw(1, 10, 1), "streams follow each other");
        assert!(first != draw(1, 10, 1) && first != draw(2, 10, 0));
        assert_eq!(Compared::Likeliest(500).tokens(&t, 0), None);
    }

    #[test]
    fn a_student_that_is_its_teacher_has_no_divergence_and_no_gradient() {
        let s: Vec<f32> = (0..40).map(|i| (i as f32).sin() * 5.0).collect();
        let mut g = s.clone();
        let (_, kl) = distill_row(&mut g, &s, 2.0, &target(0.0, 1.0));
        assert!(kl.abs() < 1e-6, "{kl}");
        assert!(g.iter().all(|g| g.abs() < 1e-7));
    }
}
