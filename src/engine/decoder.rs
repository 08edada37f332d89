//! The decoder's layers, forward and backward, written out: llama, mistral, qwen2 and qwen3 by the switches of the config.
//!
//! T tokens of all rows, D hidden, F intermediate, H query heads and G key heads of K channels.

use std::borrow::Cow;

use super::{
    Batch, CachedPrefix, GradSink, Gradients,
    attention::{self, AttentionShape, AttentionSpan},
    matmul, ops,
    profile::{Phase, Work, timed},
    rope::Rope,
    simd,
};
use crate::model::{Buffer, LinearInput, ModelConfig, Params, params::LayerLayout};

/// What a forward pass keeps of its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationPolicy {
    /// Nothing: no backward pass follows.
    None,
    /// All that the backward pass needs.
    All,
    /// What each layer reads; the rest of what the backward pass needs is computed again there, a layer at a time (Chen et al.
    /// 2016, arXiv 1604.06174).
    Checkpoint,
}

impl ActivationPolicy {
    /// Layers whose streams and whose states there is room for, of so many.
    fn buffer_counts(self, layers: usize) -> (usize, usize) {
        match self {
            Self::None => (1, 1),
            Self::All => (layers, layers),
            Self::Checkpoint => (layers, 1),
        }
    }

    /// Where the state of `layer` lies.
    fn state_index(self, layer: usize) -> usize {
        if self == Self::All { layer } else { 0 }
    }
}

/// What a layer's backward pass needs of its forward pass.
struct LayerActivations {
    r_input: Buffer, // (T): r of the input norm
    qkv: Buffer,     // (T, (H + 2G) K), after rope
    qk_raw: Buffer,  // (T, (H + G) K), before the per-head norm; empty without one
    r_qk: Buffer,    // (T, H + G): r of the per-head norm; empty without one
    o: Buffer,       // (T, H K)
    lse: Buffer,     // (T, H)
    mid: Buffer,     // (T, D): the residual stream after attention
    r_post: Buffer,  // (T): r of the post-attention norm
    gate_up: Buffer, // (T, 2F); its gradient after the backward pass
}

/// Memory of one pass, grown when a batch needs more and kept for the whole run.
pub struct Decoder {
    config: ModelConfig,
    heads: AttentionShape,
    rope: Rope,
    capacity: usize,               // tokens that the buffers hold
    policy: ActivationPolicy,      // what the last forward pass kept
    streams: Vec<Buffer>, // (T, D): the residual stream before each layer and after the last
    layers: Vec<LayerActivations>, // one a layer where they are kept, else one in all
    norm: Buffer,         // (T, D)
    hidden: Buffer,       // (T, F)
    backward: Option<BackwardBuffers>,
}

/// Memory of the backward pass alone.
struct BackwardBuffers {
    stream: Buffer, // (T, D)
    norm: Buffer,   // (T, D)
    hidden: Buffer, // (T, F)
    qkv: Buffer,    // (T, (H + 2G) K)
    o: Buffer,      // (T, H K)
}

impl Decoder {
    /// A decoder of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        let heads = AttentionShape {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        Self {
            config: config.clone(),
            heads,
            rope: Rope::new(config),
            capacity: 0,
            policy: ActivationPolicy::None,
            streams: Vec::new(),
            layers: Vec::new(),
            norm: Buffer::zeros(0),
            hidden: Buffer::zeros(0),
            backward: None,
        }
    }

    /// Numbers that [`Decoder::reserve`] makes room for, and a pass over so many tokens writes.
    pub fn floats(c: &ModelConfig, tokens: usize, policy: ActivationPolicy) -> usize {
        let h = AttentionShape {
            num_heads: c.num_attention_heads,
            num_kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
        };
        let (d, f, wide) = (c.hidden_size, c.intermediate_size, h.num_heads * h.head_dim);
        let normed = if c.qk_norm {
            h.num_heads + h.num_kv_heads
        } else {
            0
        };
        let state = 2 + h.qkv_width() + normed * (h.head_dim + 1) + wide + h.num_heads + d + 2 * f;
        let (streams, states) = policy.buffer_counts(c.num_hidden_layers);
        let gradient = if policy == ActivationPolicy::None {
            0
        } else {
            // The last is what attention's parts take.
            2 * d + f + 2 * h.qkv_width() + wide
        };
        tokens * ((streams + 1) * d + states * state + d + f + gradient)
    }

    /// The heads of the model.
    pub fn heads(&self) -> AttentionShape {
        self.heads
    }

    /// Makes room for `tokens`, for what is kept of them, and for a backward pass where anything is.
    fn reserve(&mut self, tokens: usize, policy: ActivationPolicy) {
        let (c, h) = (&self.config, self.heads);
        let (streams, states) = policy.buffer_counts(c.num_hidden_layers);
        if tokens > self.capacity {
            // An eighth to spare: batches of a run differ by little.
            self.capacity = tokens + tokens / 8;
            self.streams.clear();
            self.layers.clear();
            self.backward = None;
            self.norm = Buffer::zeros(self.capacity * c.hidden_size);
            self.hidden = Buffer::zeros(self.capacity * c.intermediate_size);
        }
        let t = self.capacity;
        while self.streams.len() <= streams {
            self.streams.push(Buffer::zeros(t * c.hidden_size));
        }
        while self.layers.len() < states {
            let normed = if c.qk_norm {
                t * (h.num_heads + h.num_kv_heads)
            } else {
                0
            };
            self.layers.push(LayerActivations {
                r_input: Buffer::zeros(t),
                qkv: Buffer::zeros(t * h.qkv_width()),
                qk_raw: Buffer::zeros(normed * h.head_dim),
                r_qk: Buffer::zeros(normed),
                o: Buffer::zeros(t * h.num_heads * h.head_dim),
                lse: Buffer::zeros(t * h.num_heads),
                mid: Buffer::zeros(t * c.hidden_size),
                r_post: Buffer::zeros(t),
                gate_up: Buffer::zeros(t * 2 * c.intermediate_size),
            });
        }
        if policy != ActivationPolicy::None && self.backward.is_none() {
            self.backward = Some(BackwardBuffers {
                stream: Buffer::zeros(t * c.hidden_size),
                norm: Buffer::zeros(t * c.hidden_size),
                hidden: Buffer::zeros(t * c.intermediate_size),
                qkv: Buffer::zeros(t * h.qkv_width()),
                o: Buffer::zeros(t * h.num_heads * h.head_dim),
            });
        }
    }

    /// The residual stream after `layers` layers (of which the final norm is not one) at the tokens `wanted`: (P, D).
    /// The last of these layers goes on behind its attention with these tokens alone: nothing reads what it makes of others.
    ///
    /// `positions`: each token's place in its row. `begun`: what they have come to already, in fewer layers. `attend(layer, qkv, o, lse)` fills attention's output.
    #[allow(
        clippy::too_many_arguments,
        reason = "the tokens, how far they go, and what is asked of them, each named"
    )]
    pub fn forward(
        &mut self,
        params: &Params,
        (tokens, begun): (&[u32], Option<&CachedPrefix>),
        positions: &[usize],
        layers: usize,
        output_positions: &[usize],
        policy: ActivationPolicy,
        mut attend: impl FnMut(usize, &[f32], &mut [f32], &mut [f32]),
    ) -> &[f32] {
        self.reserve(tokens.len(), policy);
        self.policy = policy;
        self.rope
            .extend_to(positions.iter().max().map_or(0, |p| p + 1));
        let (t, d) = (tokens.len(), self.config.hidden_size);
        let first = begun.map_or(0, |begun| begun.layers);
        let stream = &mut self.streams[stream_index(policy, first)];
        if let Some(begun) = begun {
            stream[..t * d].copy_from_slice(&begun.stream);
        } else {
            let embed = &params.data[params.layout.embed.clone()];
            for (row, id) in stream.chunks_exact_mut(d).zip(tokens) {
                row.copy_from_slice(&embed[*id as usize * d..][..d]);
            }
        }
        for layer in first..layers {
            let [from, to] = [layer, layer + 1].map(|layer| stream_index(policy, layer));
            let [x, out] = self
                .streams
                .get_disjoint_mut([from, to])
                .expect("two streams at least");
            let state = &mut self.layers[policy.state_index(layer)];
            let l = &params.layout.layers[layer];
            let shape = LayerContext {
                config: &self.config,
                heads: self.heads,
                rope: &self.rope,
                positions,
                output_positions: (layer + 1 == layers).then_some(output_positions),
            };
            forward_to_gate_up(
                state,
                &x[..t * d],
                &mut self.norm,
                params,
                l,
                &shape,
                |qkv, o, lse| {
                    attend(layer, qkv, o, lse);
                },
            );
            forward_down(out, state, &mut self.hidden, params, l, &shape);
        }
        if layers == 0 {
            let [embedded, out] = self
                .streams
                .get_disjoint_mut([0, 1])
                .expect("two streams at least");
            gather(out, embedded, output_positions, d);
            return &self.streams[1][..output_positions.len() * d];
        }
        &self.streams[stream_index(policy, layers)][..output_positions.len() * d]
    }

    /// What the linear layers of `layer` read as `input` at each of `t` tokens (T, N), N the input's width.
    ///
    /// After a [`Decoder::forward`] that kept its states, which hold the input or all that makes it again, and in which every
    /// token was wanted.
    pub fn linear_input(
        &mut self,
        params: &Params,
        t: usize,
        layer: usize,
        input: LinearInput,
    ) -> &[f32] {
        let (d, f) = (self.config.hidden_size, self.config.intermediate_size);
        let wide = self.heads.num_heads * self.heads.head_dim;
        let (s, l) = (&self.layers[layer], &params.layout.layers[layer]);
        let (norm, hidden) = (&mut self.norm[..t * d], &mut self.hidden[..t * f]);
        let weight = |range: &std::ops::Range<usize>| &params.data[range.clone()];
        match input {
            LinearInput::Qkv => {
                let x = &self.streams[layer][..t * d];
                ops::rms_norm_recompute(norm, &s.r_input[..t], x, weight(&l.input_norm));
                norm
            }
            LinearInput::O => &s.o[..t * wide],
            LinearInput::GateUp => {
                let mid = &s.mid[..t * d];
                ops::rms_norm_recompute(norm, &s.r_post[..t], mid, weight(&l.post_norm));
                norm
            }
            LinearInput::Down => {
                ops::swiglu(hidden, &s.gate_up[..t * 2 * f], f);
                hidden
            }
        }
    }

    /// The gradients of all trained tensors below the final norm are added to `gradients`.
    ///
    /// After a [`Decoder::forward`] through all layers that kept its states or streams, of the same `batch` and `wanted`, which ascends; `d_rows`
    /// is the gradient of what it returned (P, D). `weights` are told of each layer, from the last to the lowest that is reached, and
    /// of the embedding, once their gradients are complete.
    pub fn backward(
        &mut self,
        sink: &mut impl GradSink,
        batch: &Batch,
        gradients: &mut Gradients,
        output_positions: &[usize],
        d_rows: &[f32],
    ) {
        let (t, c, heads) = (batch.tokens.len(), &self.config, self.heads);
        let (rows, positions) = (batch.attention_spans(), batch.positions());
        let (d, f, width, wide) = (
            c.hidden_size,
            c.intermediate_size,
            heads.qkv_width(),
            heads.num_heads * heads.head_dim,
        );
        let g = self
            .backward
            .as_mut()
            .expect("the forward pass kept what this one needs");
        let d_stream = &mut g.stream[..t * d];
        let (d_norm, d_qkv) = (&mut g.norm[..t * d], &mut g.qkv[..t * width]);
        let (d_hidden, d_o) = (&mut g.hidden[..t * f], &mut g.o[..t * wide]);
        let (norm, hidden) = (&mut self.norm[..t * d], &mut self.hidden[..t * f]);
        d_stream[..d_rows.len()].copy_from_slice(d_rows);

        let lowest = gradients.first_trained();
        let mut attention_scratch = Vec::new();
        for layer in (0..c.num_hidden_layers).rev() {
            let params = sink.params();
            let l = &params.layout.layers[layer];
            if lowest >= l.down.end {
                // Neither this layer nor anything below it is trained.
                return;
            }
            let last = layer + 1 == c.num_hidden_layers;
            let p = if last { output_positions.len() } else { t };
            let (x, s) = (
                &self.streams[layer][..t * d],
                &mut self.layers[self.policy.state_index(layer)],
            );
            // The last layer's state is still there.
            if self.policy == ActivationPolicy::Checkpoint && !last {
                let shape = LayerContext {
                    config: c,
                    heads,
                    rope: &self.rope,
                    positions: &positions,
                    output_positions: None,
                };
                forward_to_gate_up(s, x, norm, params, l, &shape, |qkv, o, lse| {
                    attend_rows(&rows, heads, qkv, o, lse);
                });
            }
            let mid = &s.mid[..p * d];
            let (r_input, r_post) = (&s.r_input[..t], &s.r_post[..p]);
            let weight = |range: &std::ops::Range<usize>| &params.data[range.clone()];
            {
                let (d_stream, d_norm) = (&mut d_stream[..p * d], &mut d_norm[..p * d]);
                let (d_hidden, d_o) = (&mut d_hidden[..p * f], &mut d_o[..p * wide]);
                let (norm, hidden) = (&mut norm[..p * d], &mut hidden[..p * f]);

                // out = mid + down(swiglu(gate_up(norm(mid))))
                matmul::input_gradient(d_hidden, d_stream, weight(&l.down), [p, d, f], false);
                let gate_up = &mut s.gate_up[..p * 2 * f];
                ops::swiglu_backward(hidden, gate_up, d_hidden, f);
                gradients.add_linear_grad(&l.down, d_stream, hidden, [p, d, f]);
                ops::rms_norm_recompute(norm, r_post, mid, weight(&l.post_norm));
                gradients.add_linear_grad(&l.gate_up, gate_up, norm, [p, 2 * f, d]);
                matmul::input_gradient(d_norm, gate_up, weight(&l.gate_up), [p, 2 * f, d], false);
                let d_post = gradients.tensor_mut(&l.post_norm);
                ops::rms_norm_backward(d_stream, d_post, d_norm, mid, r_post, weight(&l.post_norm));

                // mid = x + o(attention(rope(qkv(norm(x)))))
                matmul::input_gradient(d_o, d_stream, weight(&l.o), [p, d, wide], false);
                let o = select_rows(&s.o[..t * wide], last.then_some(output_positions), wide);
                gradients.add_linear_grad(&l.o, d_stream, &o, [p, d, wide]);
            }
            if last {
                scatter(d_stream, output_positions, d);
                scatter(d_o, output_positions, wide);
            }
            let o = &s.o[..t * wide];
            let of = attention::Backward {
                d_o,
                o,
                lse: &s.lse[..t * heads.num_heads],
                qkv: &s.qkv[..t * width],
                heads,
            };
            timed(Phase::AttentionBackward, Work::default(), || {
                attention::backward(
                    d_qkv,
                    &of,
                    &rows,
                    &positions,
                    &self.rope,
                    &mut attention_scratch,
                );
            });
            if let Some((q_norm, k_norm)) = &l.qk_norm {
                let norms = [weight(q_norm), weight(k_norm)];
                let sums = ops::qk_norm_backward(d_qkv, &s.qk_raw, &s.r_qk, norms, heads);
                for (range, sum) in [q_norm, k_norm].into_iter().zip(sums) {
                    if let Some(slot) = gradients.tensor_mut(range) {
                        simd::axpy(slot, 1.0, &sum);
                    }
                }
            }
            if let Some(bias) = &l.qkv_bias {
                for (part, slot) in gradients.slices_mut(bias) {
                    ops::add_column_sums(slot, d_qkv, part.start, width);
                }
            }
            ops::rms_norm_recompute(norm, r_input, x, weight(&l.input_norm));
            gradients.add_linear_grad(&l.qkv, d_qkv, norm, [t, width, d]);
            matmul::input_gradient(d_norm, d_qkv, weight(&l.qkv), [t, width, d], false);
            let d_input = gradients.tensor_mut(&l.input_norm);
            ops::rms_norm_backward(d_stream, d_input, d_norm, x, r_input, weight(&l.input_norm));
            let complete = l.range();
            sink.grad_ready(&complete, gradients);
        }
        let embed = sink.params().layout.embed.clone();
        if let Some(d_embed) = gradients.tensor_mut(&embed) {
            for (id, dx) in batch.tokens.iter().zip(d_stream.chunks_exact(d)) {
                for (g, dx) in d_embed[*id as usize * d..][..d].iter_mut().zip(dx) {
                    *g += dx;
                }
            }
        }
        sink.grad_ready(&embed, gradients);
    }
}

/// What all layers share in one pass.
struct LayerContext<'a> {
    config: &'a ModelConfig,
    heads: AttentionShape,
    rope: &'a Rope,
    positions: &'a [usize],
    output_positions: Option<&'a [usize]>, // the tokens that go on behind attention, if not all
}

/// The rows of `from` (T, W) that are wanted: (P, W).
fn select_rows<'a>(from: &'a [f32], positions: Option<&[usize]>, width: usize) -> Cow<'a, [f32]> {
    positions.map_or(Cow::Borrowed(from), |wanted| {
        let mut rows = vec![0.0; wanted.len() * width];
        gather(&mut rows, from, wanted, width);
        Cow::Owned(rows)
    })
}

/// Copies the rows of `from` (T, W) at `positions` to the beginning of `to`.
fn gather(to: &mut [f32], from: &[f32], positions: &[usize], width: usize) {
    for (to, position) in to.chunks_exact_mut(width).zip(positions) {
        to.copy_from_slice(&from[position * width..][..width]);
    }
}

/// The other way round, in place: the rows that `rows` (T, W) begins with lie at `positions` (ascending) then, among zeros.
fn scatter(rows: &mut [f32], positions: &[usize], width: usize) {
    let mut end = rows.len();
    for (i, position) in positions.iter().enumerate().rev() {
        let at = position * width;
        rows.copy_within(i * width..(i + 1) * width, at);
        rows[at + width..end].fill(0.0);
        end = at;
    }
    rows[..end].fill(0.0);
}

/// Where the stream before `layer`, or after the one below it, lies.
fn stream_index(policy: ActivationPolicy, layer: usize) -> usize {
    if policy == ActivationPolicy::None {
        layer % 2
    } else {
        layer
    }
}

/// Attention of a batch's rows, forward.
pub(super) fn attend_rows(
    rows: &[AttentionSpan],
    heads: AttentionShape,
    qkv: &[f32],
    o: &mut [f32],
    lse: &mut [f32],
) {
    let rows: Vec<_> = rows.iter().map(|r| r.to_row(qkv, heads)).collect();
    timed(Phase::Attention, Work::default(), || {
        attention::forward(o, lse, qkv, &rows, heads);
    });
}

/// A layer up to what its activation reads: `gate_up(norm(mid))`, `mid = x + o(attention(rope(qkv(norm(x)))))`.
fn forward_to_gate_up(
    s: &mut LayerActivations,
    x: &[f32],
    norm: &mut [f32],
    params: &Params,
    l: &LayerLayout,
    shape: &LayerContext<'_>,
    attend: impl FnOnce(&[f32], &mut [f32], &mut [f32]),
) {
    let (c, heads) = (shape.config, shape.heads);
    let (t, d, f) = (shape.positions.len(), c.hidden_size, c.intermediate_size);
    let (width, wide) = (heads.qkv_width(), heads.num_heads * heads.head_dim);
    let weight = |range: &std::ops::Range<usize>| &params.data[range.clone()];
    let (qkv, o, lse) = (
        &mut s.qkv[..t * width],
        &mut s.o[..t * wide],
        &mut s.lse[..t * heads.num_heads],
    );

    ops::rms_norm(
        &mut norm[..t * d],
        &mut s.r_input[..t],
        x,
        weight(&l.input_norm),
        c.rms_norm_eps,
    );
    matmul::forward(qkv, &norm[..t * d], weight(&l.qkv), [t, width, d], false);
    if let Some(bias) = &l.qkv_bias {
        ops::add_bias(qkv, weight(bias));
    }
    if let Some((q_norm, k_norm)) = &l.qk_norm {
        let norms = [weight(q_norm), weight(k_norm)];
        ops::qk_norm(
            qkv,
            &mut s.qk_raw,
            &mut s.r_qk,
            norms,
            heads,
            c.rms_norm_eps,
        );
    }
    ops::apply_rope(qkv, shape.positions, heads, shape.rope);
    attend(qkv, o, lse);

    let p = shape.output_positions.map_or(t, <[usize]>::len);
    let o = select_rows(o, shape.output_positions, wide);
    let norm = &mut norm[..p * d];
    let (mid, gate_up) = (&mut s.mid[..p * d], &mut s.gate_up[..p * 2 * f]);
    mid.copy_from_slice(&select_rows(x, shape.output_positions, d));
    matmul::forward(mid, &o, weight(&l.o), [p, d, wide], true);

    ops::rms_norm(
        norm,
        &mut s.r_post[..p],
        mid,
        weight(&l.post_norm),
        c.rms_norm_eps,
    );
    matmul::forward(gate_up, norm, weight(&l.gate_up), [p, 2 * f, d], false);
}

/// What it passes on: `out = mid + down(swiglu(gate_up))`.
fn forward_down(
    out: &mut [f32],
    s: &LayerActivations,
    hidden: &mut [f32],
    params: &Params,
    l: &LayerLayout,
    shape: &LayerContext<'_>,
) {
    let (d, f) = (shape.config.hidden_size, shape.config.intermediate_size);
    let p = shape.output_positions.unwrap_or(shape.positions).len();
    let (out, hidden) = (&mut out[..p * d], &mut hidden[..p * f]);
    ops::swiglu(hidden, &s.gate_up[..p * 2 * f], f);
    out.copy_from_slice(&s.mid[..p * d]);
    matmul::forward(out, hidden, &params.data[l.down.clone()], [p, d, f], true);
}
