//! The decoder's layers, forward and backward, written out: llama, mistral, qwen2 and qwen3 by the switches of the config.
//!
//! T tokens of all rows, D hidden, F intermediate, H query heads and G key heads of K channels.

use std::borrow::Cow;

use super::{
    Batch, Gradients, Weights,
    attention::{self, Heads},
    matmul, ops,
    profile::{Part, Work, timed},
    rope::Rope,
    simd,
};
use crate::model::{Buffer, LinearInput, ModelConfig, Params, params::LayerLayout};

/// What a layer's backward pass needs of its forward pass.
struct LayerState {
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
    heads: Heads,
    rope: Rope,
    capacity: usize,         // tokens that the buffers hold
    streams: Vec<Buffer>,    // (T, D): the residual stream before each layer and after the last
    layers: Vec<LayerState>, // one a layer to train, one in all to infer
    norm: Buffer,            // (T, D)
    hidden: Buffer,          // (T, F)
    gradient: Option<GradientState>,
}

/// Memory of the backward pass alone.
struct GradientState {
    stream: Buffer, // (T, D)
    norm: Buffer,   // (T, D)
    hidden: Buffer, // (T, F)
    qkv: Buffer,    // (T, (H + 2G) K)
    o: Buffer,      // (T, H K)
}

impl Decoder {
    /// A decoder of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        let heads = Heads {
            queries: config.num_attention_heads,
            groups: config.num_key_value_heads,
            dim: config.head_dim,
        };
        Self {
            config: config.clone(),
            heads,
            rope: Rope::new(config),
            capacity: 0,
            streams: Vec::new(),
            layers: Vec::new(),
            norm: Buffer::zeros(0),
            hidden: Buffer::zeros(0),
            gradient: None,
        }
    }

    /// Numbers that [`Decoder::reserve`] makes room for, and a pass over so many tokens writes.
    pub fn floats(c: &ModelConfig, tokens: usize, train: bool) -> usize {
        let h = Heads {
            queries: c.num_attention_heads,
            groups: c.num_key_value_heads,
            dim: c.head_dim,
        };
        let (d, f, wide) = (c.hidden_size, c.intermediate_size, h.queries * h.dim);
        let normed = if c.qk_norm { h.queries + h.groups } else { 0 };
        let state = 2 + h.width() + normed * (h.dim + 1) + wide + h.queries + d + 2 * f;
        let (states, gradient) = if train {
            (c.num_hidden_layers, 2 * d + f + h.width() + wide)
        } else {
            (1, 0)
        };
        tokens * ((states + 1) * d + states * state + d + f + gradient)
    }

    /// The heads of the model.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Makes room for `tokens`, and for a backward pass where `train` says so.
    fn reserve(&mut self, tokens: usize, train: bool) {
        let (c, h) = (&self.config, self.heads);
        let states = if train { c.num_hidden_layers } else { 1 };
        if tokens > self.capacity {
            // An eighth to spare: batches of a run differ by little.
            self.capacity = tokens + tokens / 8;
            self.streams.clear();
            self.layers.clear();
            self.gradient = None;
            self.norm = Buffer::zeros(self.capacity * c.hidden_size);
            self.hidden = Buffer::zeros(self.capacity * c.intermediate_size);
        }
        let t = self.capacity;
        while self.streams.len() <= states {
            self.streams.push(Buffer::zeros(t * c.hidden_size));
        }
        while self.layers.len() < states {
            let normed = if c.qk_norm {
                t * (h.queries + h.groups)
            } else {
                0
            };
            self.layers.push(LayerState {
                r_input: Buffer::zeros(t),
                qkv: Buffer::zeros(t * h.width()),
                qk_raw: Buffer::zeros(normed * h.dim),
                r_qk: Buffer::zeros(normed),
                o: Buffer::zeros(t * h.queries * h.dim),
                lse: Buffer::zeros(t * h.queries),
                mid: Buffer::zeros(t * c.hidden_size),
                r_post: Buffer::zeros(t),
                gate_up: Buffer::zeros(t * 2 * c.intermediate_size),
            });
        }
        if train && self.gradient.is_none() {
            self.gradient = Some(GradientState {
                stream: Buffer::zeros(t * c.hidden_size),
                norm: Buffer::zeros(t * c.hidden_size),
                hidden: Buffer::zeros(t * c.intermediate_size),
                qkv: Buffer::zeros(t * h.width()),
                o: Buffer::zeros(t * h.queries * h.dim),
            });
        }
    }

    /// The residual stream after `layers` layers (of which the final norm is not one) at the tokens `wanted`: (P, D).
    /// The last of these layers goes on behind its attention with these tokens alone: nothing reads what it makes of others.
    ///
    /// `positions`: each token's place in its row. `attend(layer, qkv, o, lse)` fills attention's output. `train` keeps
    /// what [`Decoder::backward`] needs.
    #[allow(
        clippy::too_many_arguments,
        reason = "the tokens, how far they go, and what is asked of them, each named"
    )]
    pub fn forward(
        &mut self,
        params: &Params,
        tokens: &[u32],
        positions: &[usize],
        layers: usize,
        wanted: &[usize],
        train: bool,
        mut attend: impl FnMut(usize, &[f32], &mut [f32], &mut [f32]),
    ) -> &[f32] {
        self.reserve(tokens.len(), train);
        self.rope.reach(positions.iter().max().map_or(0, |p| p + 1));
        let (t, d) = (tokens.len(), self.config.hidden_size);
        let embed = &params.data[params.layout.embed.clone()];
        for (row, id) in self.streams[0].chunks_exact_mut(d).zip(tokens) {
            row.copy_from_slice(&embed[*id as usize * d..][..d]);
        }
        for layer in 0..layers {
            let (from, to) = if train {
                (layer, layer + 1)
            } else {
                (layer % 2, (layer + 1) % 2)
            };
            let [x, out] = self
                .streams
                .get_disjoint_mut([from, to])
                .expect("two streams at least");
            let state = &mut self.layers[if train { layer } else { 0 }];
            layer_forward(
                out,
                &x[..t * d],
                state,
                &mut self.norm,
                &mut self.hidden,
                params,
                &params.layout.layers[layer],
                &Shape {
                    config: &self.config,
                    heads: self.heads,
                    rope: &self.rope,
                    positions,
                    wanted: (layer + 1 == layers).then_some(wanted),
                },
                |qkv, o, lse| attend(layer, qkv, o, lse),
            );
        }
        if layers == 0 {
            let [embedded, out] = self
                .streams
                .get_disjoint_mut([0, 1])
                .expect("two streams at least");
            gather(out, embedded, wanted, d);
            return &self.streams[1][..wanted.len() * d];
        }
        &self.streams[if train { layers } else { layers % 2 }][..wanted.len() * d]
    }

    /// What the linear layers of `layer` read as `input` at each of `t` tokens (T, N), N the input's width.
    ///
    /// After a [`Decoder::forward`] that kept its state, which holds the input or all that makes it again, and in which every
    /// token was wanted.
    pub fn linear_input(
        &mut self,
        params: &Params,
        t: usize,
        layer: usize,
        input: LinearInput,
    ) -> &[f32] {
        let (d, f) = (self.config.hidden_size, self.config.intermediate_size);
        let wide = self.heads.queries * self.heads.dim;
        let (s, l) = (&self.layers[layer], &params.layout.layers[layer]);
        let (norm, hidden) = (&mut self.norm[..t * d], &mut self.hidden[..t * f]);
        let weight = |range: &std::ops::Range<usize>| &params.data[range.clone()];
        match input {
            LinearInput::Qkv => {
                let x = &self.streams[layer][..t * d];
                ops::rms_norm_again(norm, &s.r_input[..t], x, weight(&l.input_norm));
                norm
            }
            LinearInput::O => &s.o[..t * wide],
            LinearInput::GateUp => {
                let mid = &s.mid[..t * d];
                ops::rms_norm_again(norm, &s.r_post[..t], mid, weight(&l.post_norm));
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
    /// After a [`Decoder::forward`] through all layers that kept its state, of the same `batch` and `wanted`, which ascends; `d_rows`
    /// is the gradient of what it returned (P, D). `weights` are told of each layer, from the last to the lowest that is reached, and
    /// of the embedding, once their gradients are complete.
    pub fn backward(
        &mut self,
        weights: &mut impl Weights,
        batch: &Batch,
        gradients: &mut Gradients,
        wanted: &[usize],
        d_rows: &[f32],
    ) {
        let (t, c, heads) = (batch.tokens.len(), &self.config, self.heads);
        let (rows, positions) = (batch.reaches(), batch.positions());
        let (d, f, width, wide) = (
            c.hidden_size,
            c.intermediate_size,
            heads.width(),
            heads.queries * heads.dim,
        );
        let g = self
            .gradient
            .as_mut()
            .expect("the forward pass was one to train");
        let d_stream = &mut g.stream[..t * d];
        let (d_norm, d_qkv) = (&mut g.norm[..t * d], &mut g.qkv[..t * width]);
        let (d_hidden, d_o) = (&mut g.hidden[..t * f], &mut g.o[..t * wide]);
        let (norm, hidden) = (&mut self.norm[..t * d], &mut self.hidden[..t * f]);
        d_stream[..d_rows.len()].copy_from_slice(d_rows);

        let lowest = gradients.lowest();
        for layer in (0..c.num_hidden_layers).rev() {
            let params = weights.params();
            let (s, l) = (&mut self.layers[layer], &params.layout.layers[layer]);
            if lowest >= l.down.end {
                // Neither this layer nor anything below it is trained.
                return;
            }
            let last = layer + 1 == c.num_hidden_layers;
            let p = if last { wanted.len() } else { t };
            let (x, mid) = (&self.streams[layer][..t * d], &s.mid[..p * d]);
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
                gradients.add_matrix(&l.down, d_stream, hidden, [p, d, f]);
                ops::rms_norm_again(norm, r_post, mid, weight(&l.post_norm));
                gradients.add_matrix(&l.gate_up, gate_up, norm, [p, 2 * f, d]);
                matmul::input_gradient(d_norm, gate_up, weight(&l.gate_up), [p, 2 * f, d], false);
                let d_post = gradients.vector(&l.post_norm);
                ops::rms_norm_backward(d_stream, d_post, d_norm, mid, r_post, weight(&l.post_norm));

                // mid = x + o(attention(rope(qkv(norm(x)))))
                matmul::input_gradient(d_o, d_stream, weight(&l.o), [p, d, wide], false);
                let o = wanted_of(&s.o[..t * wide], last.then_some(wanted), wide);
                gradients.add_matrix(&l.o, d_stream, &o, [p, d, wide]);
            }
            if last {
                spread(d_stream, wanted, d);
                spread(d_o, wanted, wide);
            }
            let o = &s.o[..t * wide];
            let of = attention::Backward {
                d_o,
                o,
                lse: &s.lse[..t * heads.queries],
                qkv: &s.qkv[..t * width],
                heads,
            };
            timed(Part::AttentionBackward, Work::default(), || {
                attention::backward(d_qkv, &of, &rows, &positions, &self.rope);
            });
            if let Some((q_norm, k_norm)) = &l.qk_norm {
                let norms = [weight(q_norm), weight(k_norm)];
                let sums = ops::qk_norm_backward(d_qkv, &s.qk_raw, &s.r_qk, norms, heads);
                for (range, sum) in [q_norm, k_norm].into_iter().zip(sums) {
                    if let Some(slot) = gradients.vector(range) {
                        simd::axpy(slot, 1.0, &sum);
                    }
                }
            }
            if let Some(bias) = &l.qkv_bias {
                for (part, slot) in gradients.parts(bias) {
                    ops::add_column_sums(slot, d_qkv, part.start, width);
                }
            }
            ops::rms_norm_again(norm, r_input, x, weight(&l.input_norm));
            gradients.add_matrix(&l.qkv, d_qkv, norm, [t, width, d]);
            matmul::input_gradient(d_norm, d_qkv, weight(&l.qkv), [t, width, d], false);
            let d_input = gradients.vector(&l.input_norm);
            ops::rms_norm_backward(d_stream, d_input, d_norm, x, r_input, weight(&l.input_norm));
            let complete = l.range();
            weights.complete(&complete, gradients);
        }
        let embed = weights.params().layout.embed.clone();
        if let Some(d_embed) = gradients.vector(&embed) {
            for (id, dx) in batch.tokens.iter().zip(d_stream.chunks_exact(d)) {
                for (g, dx) in d_embed[*id as usize * d..][..d].iter_mut().zip(dx) {
                    *g += dx;
                }
            }
        }
        weights.complete(&embed, gradients);
    }
}

/// What all layers share in one pass.
struct Shape<'a> {
    config: &'a ModelConfig,
    heads: Heads,
    rope: &'a Rope,
    positions: &'a [usize],
    wanted: Option<&'a [usize]>, // the tokens that go on behind attention, if not all
}

/// The rows of `from` (T, W) that are wanted: (P, W).
fn wanted_of<'a>(from: &'a [f32], wanted: Option<&[usize]>, width: usize) -> Cow<'a, [f32]> {
    wanted.map_or(Cow::Borrowed(from), |wanted| {
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
fn spread(rows: &mut [f32], positions: &[usize], width: usize) {
    let mut end = rows.len();
    for (i, position) in positions.iter().enumerate().rev() {
        let at = position * width;
        rows.copy_within(i * width..(i + 1) * width, at);
        rows[at + width..end].fill(0.0);
        end = at;
    }
    rows[..end].fill(0.0);
}

/// `out = mid + down(swiglu(gate_up(norm(mid))))`, `mid = x + o(attention(rope(qkv(norm(x)))))`.
#[allow(
    clippy::too_many_arguments,
    reason = "input, output, state and scratch of one layer, each named"
)]
fn layer_forward(
    out: &mut [f32],
    x: &[f32],
    s: &mut LayerState,
    norm: &mut [f32],
    hidden: &mut [f32],
    params: &Params,
    l: &LayerLayout,
    shape: &Shape<'_>,
    attend: impl FnOnce(&[f32], &mut [f32], &mut [f32]),
) {
    let (c, heads) = (shape.config, shape.heads);
    let (t, d, f) = (shape.positions.len(), c.hidden_size, c.intermediate_size);
    let (width, wide) = (heads.width(), heads.queries * heads.dim);
    let weight = |range: &std::ops::Range<usize>| &params.data[range.clone()];
    let (qkv, o, lse) = (
        &mut s.qkv[..t * width],
        &mut s.o[..t * wide],
        &mut s.lse[..t * heads.queries],
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
    ops::rotate_heads(qkv, shape.positions, heads, shape.rope);
    attend(qkv, o, lse);

    let p = shape.wanted.map_or(t, <[usize]>::len);
    let o = wanted_of(o, shape.wanted, wide);
    let (norm, hidden, out) = (&mut norm[..p * d], &mut hidden[..p * f], &mut out[..p * d]);
    let (mid, gate_up) = (&mut s.mid[..p * d], &mut s.gate_up[..p * 2 * f]);
    mid.copy_from_slice(&wanted_of(x, shape.wanted, d));
    matmul::forward(mid, &o, weight(&l.o), [p, d, wide], true);

    ops::rms_norm(
        norm,
        &mut s.r_post[..p],
        mid,
        weight(&l.post_norm),
        c.rms_norm_eps,
    );
    matmul::forward(gate_up, norm, weight(&l.gate_up), [p, 2 * f, d], false);
    ops::swiglu(hidden, gate_up, f);
    out.copy_from_slice(mid);
    matmul::forward(out, hidden, weight(&l.down), [p, d, f], true);
}
