//! The LM head at the output positions: logits a few rows at a time, with the loss and its gradient fused. Logits are never stored.
//!
//! P positions, V vocabulary, D hidden.

use rayon::prelude::*;

use super::{
    loss::{
        Loss, RowLoss, SoftTargets, Target, TeacherLogits, cross_entropy_row, distill_row,
        distill_row_excluding_target, distill_row_subset, kl_row, select_tokens,
    },
    matmul,
    matrix::Matrix,
};

/// Logits (floats) held at once: 32 MiB each for the student and for the teacher.
const CHUNK_FLOATS: usize = 8 << 20;

/// The LM head.
#[derive(Clone, Copy)]
pub struct LmHead<'a> {
    /// (V, D).
    pub weight: Matrix<'a>,
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
}

impl LmHead<'_> {
    /// Rows of logits held at once.
    fn chunk_rows(self) -> usize {
        (CHUNK_FLOATS / self.vocab_size).clamp(16, 256)
    }

    /// Logits (n, V) of `hidden` (n, D), in `buffer`.
    fn fill_logits<'b>(self, buffer: &'b mut Vec<f32>, hidden: &[f32]) -> &'b mut [f32] {
        let (v, d) = (self.vocab_size, self.hidden_size);
        let n = hidden.len() / d;
        if buffer.len() < n * v {
            buffer.resize(n * v, 0.0);
        }
        let logits = &mut buffer[..n * v];
        self.weight.forward(logits, hidden, [n, v, d], false);
        logits
    }
}

/// Gradients of [`loss_and_gradients`].
pub struct HeadGradients<'a> {
    /// Of the hidden states (P, D); written.
    pub hidden: &'a mut [f32],
    /// Of the head's weight (V, D), where it is trained; added to.
    pub weight: Option<&'a mut [f32]>,
}

/// Calls `f(row, logits)` for each row of `hidden` (P, D), in parallel. Results are in the order of the rows.
pub fn logits<R: Send>(
    head: LmHead<'_>,
    hidden: &[f32],
    buffer: &mut Vec<f32>,
    f: impl Fn(usize, &mut [f32]) -> R + Sync,
) -> Vec<R> {
    let (rows, d) = (head.chunk_rows(), head.hidden_size);
    let mut results = Vec::with_capacity(hidden.len() / d);
    for (i, hidden) in hidden.chunks(rows * d).enumerate() {
        let logits = head.fill_logits(buffer, hidden);
        results.par_extend(
            logits
                .par_chunks_mut(head.vocab_size)
                .enumerate()
                .map(|(j, logits)| f(i * rows + j, logits)),
        );
    }
    results
}

/// KL(reference || model) at each row of the hidden states, over the whole vocabulary, in nats.
///
/// `heads` and `hidden` (P, D): of the model and of the reference. `buffers`: memory for the logits of both.
pub fn kl_divergences(
    heads: [LmHead<'_>; 2],
    hidden: [&[f32]; 2],
    buffers: &mut [Vec<f32>; 2],
) -> Vec<f64> {
    let [head, reference_head] = heads;
    let (rows, v, d) = (head.chunk_rows(), head.vocab_size, head.hidden_size);
    let [buffer, reference_buffer] = buffers;
    let mut divergences = Vec::with_capacity(hidden[0].len() / d);
    let chunks = hidden[0].chunks(rows * d).zip(hidden[1].chunks(rows * d));
    for (hidden, reference) in chunks {
        let logits = head.fill_logits(buffer, hidden);
        let reference = reference_head.fill_logits(reference_buffer, reference);
        let pairs = logits.par_chunks(v).zip(reference.par_chunks(v));
        divergences.par_extend(pairs.map(|(s, t)| kl_row(s, t)));
    }
    divergences
}

/// The loss at `targets`, whose hidden states are `hidden` (P, D), and its gradients.
///
/// `buffers`: memory for the logits of the student and of the teacher.
pub fn loss_and_gradients(
    head: LmHead<'_>,
    hidden: &[f32],
    targets: &[Target],
    teacher: Option<SoftTargets<'_>>,
    gradients: HeadGradients<'_>,
    buffers: &mut [Vec<f32>; 2],
) -> Loss {
    let (rows, v, d) = (head.chunk_rows(), head.vocab_size, head.hidden_size);
    let HeadGradients {
        hidden: d_hidden,
        weight: mut d_weight,
    } = gradients;
    let mut total = Loss::default();
    let [student_buffer, teacher_buffer] = buffers;
    let chunks = hidden
        .chunks(rows * d)
        .zip(d_hidden.chunks_mut(rows * d))
        .zip(targets.chunks(rows));
    for (i, ((hidden, d_hidden), targets)) in chunks.enumerate() {
        let n = targets.len();
        let logits = head.fill_logits(student_buffer, hidden);
        let students = logits.par_chunks_mut(v).zip(targets).enumerate();
        let losses: Vec<RowLoss> = match teacher.map(|t| (t.logits, t.options)) {
            None => students
                .map(|(_, (s, target))| RowLoss {
                    ce: cross_entropy_row(s, target),
                    kl: 0.0,
                })
                .collect(),
            Some((
                TeacherLogits::Hidden {
                    head: weight,
                    hidden,
                    subset,
                    rng,
                },
                options,
            )) => {
                let teacher_head = LmHead {
                    weight: weight.map_or(head.weight, Matrix::Dense),
                    ..head
                };
                let hidden = &hidden[i * rows * d..][..n * d];
                let soft = teacher_head.fill_logits(teacher_buffer, hidden);
                students
                    .zip(soft.par_chunks(v))
                    .map(|((j, (s, target)), t)| {
                        match select_tokens(subset, rng, t, i * rows + j) {
                            None if options.exclude_target => {
                                distill_row_excluding_target(s, t, options.tau, target)
                            }
                            None => distill_row(s, t, options.tau, target),
                            Some(tokens) => {
                                let t: Vec<f32> = tokens.iter().map(|id| t[*id as usize]).collect();
                                distill_row_subset(s, &tokens, &t, options, target)
                            }
                        }
                    })
                    .collect()
            }
            Some((TeacherLogits::TopK { tokens, logits, k }, options)) => students
                .map(|(j, (s, target))| {
                    let of_target = (i * rows + j) * k..(i * rows + j + 1) * k;
                    let (tokens, t) = (&tokens[of_target.clone()], &logits[of_target]);
                    distill_row_subset(s, tokens, t, options, target)
                })
                .collect(),
        };
        for (RowLoss { ce, kl }, target) in losses.into_iter().zip(targets) {
            total.ce += f64::from(target.ce_weight) * ce;
            total.distill += f64::from(target.distill_weight) * kl;
        }
        head.weight.input_gradient(d_hidden, logits, [n, v, d]);
        if let Some(d_weight) = d_weight.as_deref_mut() {
            matmul::weight_gradient(d_weight, logits, 0, hidden, [n, v, d]);
        }
    }
    total
}
