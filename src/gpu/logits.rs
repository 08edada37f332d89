//! What decoding and audits need of logits: computed on the device from hidden states, a few rows at a time. Logits are never stored.
//!
//! P positions, V vocabulary, D hidden.

use bytemuck::NoUninit;

#[cfg(test)]
mod tests;

use crate::gpu::{
    attention::at_least,
    buffer::{Binding, GpuBuffer},
    context::{Gpu, Kernel, grid},
    error::GpuError,
    lm_head::{HeadScratch, LmHead},
};

/// Most likely tokens of a position that can be asked for.
pub const MAX_TOP_K: usize = 256;

/// Tokens (P, k), as u32, and their logits (P, k).
#[derive(Clone, Copy)]
pub struct TopK<'a> {
    /// (P, k).
    pub tokens: Binding<'a>,
    /// (P, k).
    pub logits: Binding<'a>,
    /// Tokens per position.
    pub k: usize,
}

/// How a token is drawn at each position.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// The logits are divided by it. Above 0.
    pub temperature: f32,
    /// Only so many of the most likely tokens; 0 means the whole vocabulary.
    pub top_k: usize,
    /// Numbers in [0, 1) (P).
    pub quantiles: Binding<'a>,
    /// Becomes the tokens (P), as u32.
    pub tokens: Binding<'a>,
}

/// What [`reduce`] computes of the logits at each position. What is `None` costs nothing.
#[derive(Clone, Copy, Default)]
pub struct Request<'a> {
    /// Becomes, per position, two u32: the most likely token (the lowest id among equals), and the bits of ln sum exp of all logits
    /// (P, 2). A log-probability is the logit minus the latter.
    pub summary: Option<Binding<'a>>,
    /// Becomes the k most likely tokens, most likely first (the lowest id among equals); k is at most [`MAX_TOP_K`], and V.
    pub topk: Option<TopK<'a>>,
    /// Tokens that are given, and where their logits go.
    pub gather: Option<TopK<'a>>,
    /// A token at a quantile of softmax(logits / temperature): in the order of ids, or of the most likely tokens under `top_k`.
    pub sample: Option<Sample<'a>>,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct RowParams {
    rows: u32,
    vocab: u32,
    stride: u32,
    first: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct TopKParams {
    rows: u32,
    vocab: u32,
    stride: u32,
    first: u32,
    k: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct GatherParams {
    rows: u32,
    stride: u32,
    first: u32,
    k: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct DotParams {
    count: u32,
    k: u32,
    dim: u32,
    first_token: u32,
    end_token: u32,
    hidden_start: u32,
    head_start: u32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SampleParams {
    rows: u32,
    vocab: u32,
    stride: u32,
    first: u32,
    inverse_temperature: f32,
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct SampleTopKParams {
    rows: u32,
    k: u32,
    inverse_temperature: f32,
    first: u32,
}

const REDUCE: Kernel<'static> = Kernel {
    label: "most likely token",
    source: concat!(
        include_str!("reduce.wgsl"),
        include_str!("logits_reduce.wgsl")
    ),
    entry: "reduce",
    constants: &[],
};
const TOPK: Kernel<'static> = Kernel {
    label: "most likely tokens",
    source: include_str!("logits_topk.wgsl"),
    entry: "topk",
    constants: &[],
};
const GATHER: Kernel<'static> = Kernel {
    label: "logits of given tokens",
    source: include_str!("logits_gather.wgsl"),
    entry: "gather",
    constants: &[],
};
const DOT: Kernel<'static> = Kernel {
    label: "logits of given tokens alone",
    source: include_str!("logits_dot.wgsl"),
    entry: "dot_products",
    constants: &[],
};
const SAMPLE: Kernel<'static> = Kernel {
    label: "sampling",
    source: concat!(
        include_str!("reduce.wgsl"),
        include_str!("logits_sample.wgsl")
    ),
    entry: "sample",
    constants: &[],
};
const SAMPLE_TOPK: Kernel<'static> = Kernel {
    label: "sampling among the most likely tokens",
    source: include_str!("logits_sample_topk.wgsl"),
    entry: "sample_topk",
    constants: &[],
};
const KL: Kernel<'static> = Kernel {
    label: "divergence of two models",
    source: concat!(include_str!("reduce.wgsl"), include_str!("logits_kl.wgsl")),
    entry: "kl",
    constants: &[],
};

/// Computes what `request` asks for at each row of `hidden` (P, D).
///
/// # Errors
/// [`GpuError::Shape`] if a range is too short, [`GpuError::LimitTooSmall`] if more tokens are asked for than [`MAX_TOP_K`]; those of
/// [`Gpu::dispatch`].
pub fn reduce(
    gpu: &Gpu,
    head: LmHead<'_>,
    hidden: Binding<'_>,
    positions: usize,
    request: Request<'_>,
    scratch: &mut HeadScratch,
) -> Result<(), GpuError> {
    let (v, stride) = (head.vocab_size, head.stride());
    let rows = scratch.chunk_rows(gpu, stride, positions);
    scratch.logits[0].reserve(gpu, rows * stride)?;
    for first in (0..positions).step_by(rows) {
        let n = rows.min(positions - first);
        let end = first + n;
        let logits = scratch.logits[0].get()?.clone();
        head.fill(gpu, &logits, hidden, first, n)?;
        let params = RowParams {
            rows: n as u32,
            vocab: v as u32,
            stride: (stride / 4) as u32,
            first: first as u32,
        };
        if let Some(out) = request.summary {
            let out = at_least("logits: summary", out, 2 * end)?;
            gpu.dispatch(&REDUCE, &[logits.all(), out], &params, grid(n))?;
        }
        if let Some(out) = request.topk {
            topk_of_chunk(gpu, head, &logits, out, first, n)?;
        }
        if let Some(TopK {
            tokens,
            logits: out,
            k,
        }) = request.gather
        {
            let tokens = at_least("logits: tokens", tokens, end * k)?;
            let out = at_least("logits: logits of tokens", out, end * k)?;
            gpu.dispatch(
                &GATHER,
                &[logits.all(), tokens, out],
                &GatherParams {
                    rows: n as u32,
                    stride: stride as u32,
                    first: first as u32,
                    k: k as u32,
                },
                grid((n * k).div_ceil(256)),
            )?;
        }
        if let Some(sample) = request.sample {
            sample_chunk(gpu, head, &logits, sample, first, n, scratch)?;
        }
    }
    Ok(())
}

/// Draws a token at the positions `first..first + rows`, whose logits are `logits`.
fn sample_chunk(
    gpu: &Gpu,
    head: LmHead<'_>,
    logits: &GpuBuffer,
    sample: Sample<'_>,
    first: usize,
    rows: usize,
    scratch: &mut HeadScratch,
) -> Result<(), GpuError> {
    let quantiles = at_least("logits: quantiles", sample.quantiles, first + rows)?;
    let tokens = at_least("logits: drawn tokens", sample.tokens, first + rows)?;
    let inverse_temperature = 1.0 / sample.temperature;
    if sample.top_k == 0 {
        return gpu.dispatch(
            &SAMPLE,
            &[logits.all(), quantiles, tokens],
            &SampleParams {
                rows: rows as u32,
                vocab: head.vocab_size as u32,
                stride: head.stride() as u32,
                first: first as u32,
                inverse_temperature,
            },
            grid(rows),
        );
    }
    let k = sample.top_k.min(head.vocab_size);
    let [of_tokens, of_logits] = scratch.topk_buffers(gpu, rows * k)?;
    let top = TopK {
        tokens: of_tokens.all(),
        logits: of_logits.all(),
        k,
    };
    topk_of_chunk(gpu, head, logits, top, 0, rows)?;
    gpu.dispatch(
        &SAMPLE_TOPK,
        &[top.tokens, top.logits, quantiles, tokens],
        &SampleTopKParams {
            rows: rows as u32,
            k: k as u32,
            inverse_temperature,
            first: first as u32,
        },
        grid(rows.div_ceil(64)),
    )
}

/// The most likely tokens of `rows` rows of logits: rows `first..` of `out`.
pub(crate) fn topk_of_chunk(
    gpu: &Gpu,
    head: LmHead<'_>,
    logits: &GpuBuffer,
    out: TopK<'_>,
    first: usize,
    rows: usize,
) -> Result<(), GpuError> {
    let k = out.k;
    if k > MAX_TOP_K {
        return Err(GpuError::LimitTooSmall {
            what: "the most likely tokens of a position".to_owned(),
            needed: k as u64,
            limit: MAX_TOP_K as u64,
        });
    }
    if k > head.vocab_size {
        return Err(GpuError::Shape {
            what: "the most likely tokens of a position",
            expected: head.vocab_size,
            got: k,
        });
    }
    let tokens = at_least("logits: tokens", out.tokens, (first + rows) * k)?;
    let values = at_least("logits: logits of tokens", out.logits, (first + rows) * k)?;
    if k == 0 {
        return Ok(());
    }
    gpu.dispatch(
        &TOPK,
        &[logits.all(), tokens, values],
        &TopKParams {
            rows: rows as u32,
            vocab: head.vocab_size as u32,
            stride: head.stride() as u32,
            first: first as u32,
            k: k as u32,
        },
        grid(rows),
    )
}

/// The logits of `out.tokens` at `positions` rows of `hidden`, where those of all other tokens are not needed.
///
/// # Errors
/// As [`reduce`].
pub fn gather_products(
    gpu: &Gpu,
    head: LmHead<'_>,
    hidden: Binding<'_>,
    positions: usize,
    out: TopK<'_>,
) -> Result<(), GpuError> {
    let (d, count) = (head.hidden_size, positions * out.k);
    let hidden = at_least("logits: hidden states", hidden, positions * d)?;
    let tokens = at_least("logits: tokens", out.tokens, count)?;
    let logits = at_least("logits: logits of tokens", out.logits, count)?;
    let weight = at_least("the head: weight", head.weight, head.vocab_size * d)?;
    let (hidden, hidden_start) = hidden.aligned(gpu.alignment());
    // As many tokens as a binding has room for.
    let each = (gpu.max_binding() / d)
        .saturating_sub(gpu.alignment())
        .max(1);
    for first in (0..head.vocab_size).step_by(each) {
        let end = head.vocab_size.min(first + each);
        let (rows, head_start) = weight.part(first * d..end * d).aligned(gpu.alignment());
        gpu.dispatch(
            &DOT,
            &[hidden, rows, tokens, logits],
            &DotParams {
                count: count as u32,
                k: out.k as u32,
                dim: d as u32,
                first_token: first as u32,
                end_token: end as u32,
                hidden_start,
                head_start,
            },
            grid(count.div_ceil(8)),
        )?;
    }
    Ok(())
}

/// KL(reference || model) at each of `positions` rows of the hidden states, over the whole vocabulary, in nats: `out` (P).
///
/// `heads` and `hidden` (P, D): of the model and of the reference. Equal ones give 0 exactly.
///
/// # Errors
/// As [`reduce`].
pub fn kl_divergences(
    gpu: &Gpu,
    heads: [LmHead<'_>; 2],
    hidden: [Binding<'_>; 2],
    positions: usize,
    out: Binding<'_>,
    scratch: &mut HeadScratch,
) -> Result<(), GpuError> {
    let (v, stride) = (heads[0].vocab_size, heads[0].stride());
    if heads[1].vocab_size != v {
        return Err(GpuError::Shape {
            what: "logits: the reference's vocabulary",
            expected: v,
            got: heads[1].vocab_size,
        });
    }
    let out = at_least("logits: divergences", out, positions)?;
    let rows = scratch.chunk_rows(gpu, stride, positions);
    for first in (0..positions).step_by(rows) {
        let n = rows.min(positions - first);
        for ((buffer, head), hidden) in scratch.logits.iter_mut().zip(heads).zip(hidden) {
            let logits = buffer.reserve(gpu, rows * stride)?;
            head.fill(gpu, logits, hidden, first, n)?;
        }
        let [model, reference] = &scratch.logits;
        gpu.dispatch(
            &KL,
            &[model.get()?.all(), reference.get()?.all(), out],
            &RowParams {
                rows: n as u32,
                vocab: v as u32,
                stride: (stride / 4) as u32,
                first: first as u32,
            },
            grid(n),
        )?;
    }
    Ok(())
}
