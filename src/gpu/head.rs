//! The LM head at the output positions: logits a few rows at a time, with the loss and its gradient fused. Logits are never stored.
//!
//! P positions, V vocabulary, D hidden. At one position with student logits s, teacher logits t, target y and temperature tau, all in
//! nats:
//!
//! - cross-entropy: `-ln softmax(s)[y]`, with the gradient `softmax(s) - onehot(y)`;
//! - divergence: `KL(p || q)`, where p = softmax(t / tau) and q = softmax(s / tau), with the gradient `(q - p) / tau`;
//! - without the target: `(1 - p_y) KL(p' || q')`, where p' and q' are p and q renormalised over the other tokens (Zhao et al. 2022,
//!   arXiv 2203.08679, NCKD, with the weight that it has in the sum), with the gradient `(1 - p_y) (q' - p') / tau` at the other
//!   tokens and 0 at y;
//! - over a subset of the vocabulary: the same with both sides renormalised over it, and a gradient of 0 outside of it.
//!
//! A chunk has complete rows, so that one pass over the logits of student and teacher gives the loss and the gradient, and no logit
//! is computed twice.

use bytemuck::NoUninit;

#[cfg(test)]
mod tests;

use crate::gpu::{
    attention::{Reused, at_least},
    buffer::Binding,
    context::{Gpu, Kernel, grid},
    error::GpuError,
    lm_head::{HeadScratch, LmHead},
    logits::{self, TopK},
    matmul::{Form, Matrix, matmul},
};

/// One output position: the token that should follow, and the weight of each loss term there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The token that follows.
    pub token: u32,
    /// Weight of the cross-entropy at this position, including the mean.
    pub ce_weight: f32,
    /// Weight of the KL divergence at this position, including lambda, tau^2 and the mean.
    pub distill_weight: f32,
}

/// The targets of a batch on the device.
#[derive(Default)]
pub struct Targets {
    data: Reused, // (P, 4)
    len: usize,   // P
    end_token: u32,
}

impl Targets {
    /// Uploads `targets`. Memory of earlier ones is used again.
    ///
    /// # Errors
    /// Those of [`Gpu::write`].
    pub fn prepare(&mut self, gpu: &Gpu, targets: &[Target]) -> Result<(), GpuError> {
        let rows = targets.iter().map(|t| {
            [
                t.token,
                t.ce_weight.to_bits(),
                t.distill_weight.to_bits(),
                0,
            ]
        });
        let rows: Vec<[u32; 4]> = rows.collect();
        self.data.upload(gpu, rows.as_flattened())?;
        self.len = targets.len();
        self.end_token = targets.iter().map(|t| t.token + 1).max().unwrap_or(0);
        Ok(())
    }

    /// P.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The teacher's distributions at the targets, and how the student is compared with them.
#[derive(Clone, Copy)]
pub struct SoftTargets<'a> {
    /// The teacher's logits.
    pub logits: TeacherLogits<'a>,
    /// Temperature tau of both sides.
    pub tau: f32,
    /// Whether the target token is left out of the divergence, which is then weighted by the teacher's probability of the other tokens.
    pub exclude_target: bool,
}

/// Where the teacher's logits come from, and the tokens that are compared.
#[derive(Clone, Copy)]
pub enum TeacherLogits<'a> {
    /// Computed from the teacher's last hidden states: the whole vocabulary.
    Full {
        /// The teacher's head, of the student's shape.
        head: LmHead<'a>,
        /// (P, D).
        hidden: Binding<'a>,
    },
    /// As `Full`, over the teacher's k most likely tokens of each target. At most [`logits::MAX_TOP_K`], or the whole vocabulary.
    MostLikely {
        /// The teacher's head.
        head: LmHead<'a>,
        /// (P, D).
        hidden: Binding<'a>,
        /// Tokens per target.
        k: usize,
    },
    /// As `Full`, over given tokens. Only their logits are computed.
    Chosen {
        /// The teacher's head.
        head: LmHead<'a>,
        /// (P, D).
        hidden: Binding<'a>,
        /// Different tokens of the vocabulary (P, k), as u32.
        tokens: Binding<'a>,
        /// Tokens per target.
        k: usize,
    },
    /// Tokens and their logits are given.
    TopK {
        /// Different tokens of the vocabulary (P, k), as u32.
        tokens: Binding<'a>,
        /// Their logits (P, k).
        logits: Binding<'a>,
        /// Tokens per target.
        k: usize,
    },
}

/// Gradients of [`loss_and_gradients`].
#[derive(Clone, Copy)]
pub struct HeadGradients<'a> {
    /// Of the hidden states (P, D); written.
    pub hidden: Binding<'a>,
    /// Of the head's weight (V, D), where it is trained; added to.
    pub weight: Option<Binding<'a>>,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct RowParams {
    rows: u32,
    vocab: u32,
    stride: u32,
    first: u32,
    inverse_tau: f32,
    exclude_target: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SubsetParams {
    rows: u32,
    stride: u32,
    first: u32,
    k: u32,
    inverse_tau: f32,
    exclude_target: u32,
    first_tokens: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct AddParams {
    rows: u32,
    stride: u32,
    k: u32,
    first_tokens: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SumParams {
    rows: u32,
    slot: u32,
}

const CROSS_ENTROPY: Kernel<'static> = Kernel {
    label: "cross-entropy",
    source: concat!(
        include_str!("reduce.wgsl"),
        include_str!("head.wgsl"),
        include_str!("head_cross_entropy.wgsl")
    ),
    entry: "cross_entropy",
    constants: &[],
};
const DISTILL: Kernel<'static> = Kernel {
    label: "cross-entropy and divergence",
    source: concat!(
        include_str!("reduce.wgsl"),
        include_str!("head.wgsl"),
        include_str!("head_distill.wgsl")
    ),
    entry: "distill",
    constants: &[],
};
const SUBSET: Kernel<'static> = Kernel {
    label: "divergence over a subset",
    source: concat!(
        include_str!("reduce.wgsl"),
        include_str!("head_subset.wgsl")
    ),
    entry: "subset",
    constants: &[],
};
const ADD_SUBSET: Kernel<'static> = Kernel {
    label: "gradient over a subset",
    source: include_str!("head_subset_add.wgsl"),
    entry: "add_subset",
    constants: &[],
};
const SUM_TERMS: Kernel<'static> = Kernel {
    label: "sum of the loss",
    source: concat!(include_str!("reduce.wgsl"), include_str!("head_sum.wgsl")),
    entry: "sum_terms",
    constants: &[],
};

/// Tokens that are compared at each row of a chunk, with the teacher's logits.
struct Subset<'a> {
    tokens: Binding<'a>, // (rows from `first`, k)
    logits: Binding<'a>,
    k: usize,
    first: usize, // number of the chunk's row 0 in both
}

/// The loss at `targets`, whose hidden states are `hidden` (P, D), and its gradients.
///
/// `loss[2 slot]` becomes the sum of `ce_weight` * cross-entropy, `loss[2 slot + 1]` that of `distill_weight` * divergence.
///
/// # Errors
/// [`GpuError::Shape`] if a range is too short or a target is not in the vocabulary, [`GpuError::LimitTooSmall`] for too many most
/// likely tokens; those of [`Gpu::dispatch`].
#[allow(clippy::too_many_arguments, reason = "operands of one operation")]
pub fn loss_and_gradients(
    gpu: &Gpu,
    head: LmHead<'_>,
    hidden: Binding<'_>,
    targets: &Targets,
    teacher: Option<SoftTargets<'_>>,
    gradients: HeadGradients<'_>,
    loss: Binding<'_>,
    slot: usize,
    scratch: &mut HeadScratch,
) -> Result<(), GpuError> {
    let (v, d, p, stride) = (
        head.vocab_size,
        head.hidden_size,
        targets.len(),
        head.stride(),
    );
    if targets.end_token as usize > v {
        return Err(GpuError::Shape {
            what: "the head: tokens of the vocabulary",
            expected: targets.end_token as usize,
            got: v,
        });
    }
    let loss = at_least("the head: loss", loss, 2 * slot + 2)?;
    if p == 0 {
        return gpu.clear(loss.part(2 * slot..2 * slot + 2));
    }
    let hidden = at_least("the head: hidden states", hidden, p * d)?;
    let d_hidden = at_least("the head: gradient", gradients.hidden, p * d)?;
    let rows = scratch.chunk_rows(gpu, stride, p);
    scratch.logits[0].reserve(gpu, rows * stride)?;
    scratch.terms.reserve(gpu, 2 * p)?;
    // Terms that no kernel writes are zero.
    gpu.clear(scratch.terms.get()?.range(0..2 * p))?;
    for first in (0..p).step_by(rows) {
        let n = rows.min(p - first);
        head.fill(gpu, scratch.logits[0].get()?, hidden, first, n)?;
        gradient_of_logits(gpu, head, targets, teacher, first, n, scratch)?;
        let gradient = Matrix::strided(scratch.logits[0].get()?.all(), n, v, stride);
        matmul(
            gpu,
            Form::NN,
            Matrix::new(d_hidden, p, d).with_rows(first, n),
            gradient,
            Matrix::new(head.weight, v, d),
            1.0,
            0.0,
        )?;
        if let Some(d_weight) = gradients.weight {
            matmul(
                gpu,
                Form::TN,
                Matrix::new(d_weight, v, d),
                gradient,
                Matrix::new(hidden, p, d).with_rows(first, n),
                1.0,
                1.0,
            )?;
        }
    }
    gpu.dispatch(
        &SUM_TERMS,
        &[scratch.terms.get()?.all(), loss],
        &SumParams {
            rows: p as u32,
            slot: slot as u32,
        },
        [1, 1, 1],
    )
}

/// Turns the logits of the targets `first..first + rows` into their gradient, and writes the rows' terms of the loss.
fn gradient_of_logits(
    gpu: &Gpu,
    head: LmHead<'_>,
    targets: &Targets,
    teacher: Option<SoftTargets<'_>>,
    first: usize,
    rows: usize,
    scratch: &mut HeadScratch,
) -> Result<(), GpuError> {
    let (v, stride) = (head.vocab_size, head.stride());
    let of_targets = targets.data.get()?.all();
    let params = RowParams {
        rows: rows as u32,
        vocab: v as u32,
        stride: (stride / 4) as u32,
        first: first as u32,
        inverse_tau: teacher.map_or(1.0, |t| 1.0 / t.tau),
        exclude_target: u32::from(teacher.is_some_and(|t| t.exclude_target)),
    };
    // The whole vocabulary, if as many tokens are asked for.
    let soft = teacher.map(|t| match t.logits {
        TeacherLogits::MostLikely { head, hidden, k } if k >= v => {
            TeacherLogits::Full { head, hidden }
        }
        logits => logits,
    });
    let HeadScratch {
        logits: [student, teacher_logits],
        terms,
        topk,
        subset: of_subset,
        ..
    } = scratch;
    let (student, terms) = (student.get()?, terms.get()?.all());
    let over = match soft {
        None => None,
        Some(TeacherLogits::Full { head, hidden }) => {
            let teacher = teacher_logits.reserve(gpu, rows * stride)?;
            check_same_shape(head, v)?;
            head.fill(gpu, teacher, hidden, first, rows)?;
            return gpu.dispatch(
                &DISTILL,
                &[student.all(), teacher.all(), of_targets, terms],
                &params,
                grid(rows),
            );
        }
        Some(TeacherLogits::MostLikely { head, hidden, k }) => {
            let teacher = teacher_logits.reserve(gpu, rows * stride)?;
            check_same_shape(head, v)?;
            head.fill(gpu, teacher, hidden, first, rows)?;
            let [tokens, logits] = topk;
            tokens.reserve(gpu, rows * k)?;
            logits.reserve(gpu, rows * k)?;
            let (tokens, logits) = (tokens.get()?.all(), logits.get()?.all());
            let top = TopK { tokens, logits, k };
            logits::topk_of_chunk(gpu, head, teacher, top, 0, rows)?;
            Some(Subset {
                tokens,
                logits,
                k,
                first: 0,
            })
        }
        Some(TeacherLogits::Chosen {
            head,
            hidden,
            tokens,
            k,
        }) => {
            let logits = topk[1].reserve(gpu, targets.len() * k)?.all();
            check_same_shape(head, v)?;
            if first == 0 {
                let out = TopK { tokens, logits, k };
                logits::gather_products(gpu, head, hidden, targets.len(), out)?;
            }
            Some(Subset {
                tokens,
                logits,
                k,
                first,
            })
        }
        Some(TeacherLogits::TopK { tokens, logits, k }) => Some(Subset {
            tokens,
            logits,
            k,
            first,
        }),
    };
    if let Some(Subset {
        tokens,
        logits,
        k,
        first: first_tokens,
    }) = &over
    {
        let needed = (first_tokens + rows) * k;
        let tokens = at_least("the head: tokens of the teacher", *tokens, needed)?;
        let logits = at_least("the head: logits of the teacher", *logits, needed)?;
        let gradient = of_subset.reserve(gpu, rows * k)?.all();
        gpu.dispatch(
            &SUBSET,
            &[student.all(), tokens, logits, of_targets, gradient, terms],
            &SubsetParams {
                rows: params.rows,
                stride: stride as u32,
                first: params.first,
                k: *k as u32,
                inverse_tau: params.inverse_tau,
                exclude_target: params.exclude_target,
                first_tokens: *first_tokens as u32,
            },
            grid(rows),
        )?;
    }
    gpu.dispatch(
        &CROSS_ENTROPY,
        &[student.all(), of_targets, terms],
        &params,
        grid(rows),
    )?;
    if let Some(Subset {
        tokens, k, first, ..
    }) = over
    {
        gpu.dispatch(
            &ADD_SUBSET,
            &[tokens, of_subset.get()?.all(), student.all()],
            &AddParams {
                rows: params.rows,
                stride: stride as u32,
                k: k as u32,
                first_tokens: first as u32,
            },
            grid((rows * k).div_ceil(256)),
        )?;
    }
    Ok(())
}

fn check_same_shape(teacher: LmHead<'_>, vocab_size: usize) -> Result<(), GpuError> {
    if teacher.vocab_size != vocab_size {
        return Err(GpuError::Shape {
            what: "the head: the teacher's vocabulary",
            expected: vocab_size,
            got: teacher.vocab_size,
        });
    }
    Ok(())
}
