//! The decoder layers, forward and backward, written out; the families differ by the switches of the model's config.
//!
//! T tokens of all rows, P output positions, D hidden, F intermediate, H query heads and G key heads of K channels.

use std::{borrow::Cow, ops::Range};

use super::{
    Batch, CachedPrefix, GradSink, Gradients,
    attention::{self, AttentionShape, AttentionSpan},
    linear,
    matrix::Matrix,
    ops,
    profile::{Phase, Work, timed},
    rope::Rope,
    simd,
};
use crate::model::{
    Buffer, LinearInput, ModelConfig, Weights, config::NormPlacement, params::LayerLayout,
};

/// Which activations a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationPolicy {
    /// None: there is no backward pass.
    None,
    /// All that the backward pass needs.
    All,
    /// The input of each layer. The backward pass recomputes the rest, one layer at a time (gradient checkpointing, Chen et al. 2016,
    /// arXiv 1604.06174).
    Checkpoint,
}

impl ActivationPolicy {
    /// What training keeps, with gradient checkpointing or without.
    pub(super) fn for_training(gradient_checkpointing: bool) -> Self {
        if gradient_checkpointing {
            Self::Checkpoint
        } else {
            Self::All
        }
    }

    /// Number of residual streams, and of [`LayerActivations`], that are kept for a model of so many layers.
    pub(super) fn buffer_counts(self, layers: usize) -> (usize, usize) {
        match self {
            Self::None => (1, 1),
            Self::All => (layers, layers),
            Self::Checkpoint => (layers, 1),
        }
    }

    /// Index of the activations of `layer`.
    pub(super) fn state_index(self, layer: usize) -> usize {
        if self == Self::All { layer } else { 0 }
    }

    /// Index of the residual stream before `layer`, which is the one after the layer below.
    pub(super) fn stream_index(self, layer: usize) -> usize {
        if self == Self::None { layer % 2 } else { layer }
    }
}

/// Activations of a layer that its backward pass needs.
#[derive(Default)]
struct LayerActivations {
    r_input: Buffer, // (T): r of the input norm
    qkv: Buffer,     // (T, (H + 2G) K), after RoPE
    qk_raw: Buffer,  // (T, (H + G) K), before the per-head norm; empty without one
    r_qk: Buffer,    // (T, H + G): r of the per-head norm; empty without one
    o: Buffer,       // (T, H K)
    lse: Buffer,     // (T, H)
    mid: Buffer,     // (T, D): the residual stream after attention
    r_post: Buffer,  // (T): r of the post-attention norm
    gate_up: Buffer, // (T, 2F); its gradient after the backward pass
    // With norms after attention and feed-forward network, else empty:
    attention_out: Buffer, // (T, D): the output of attention before its norm
    r_attention: Buffer,   // (T)
    ffn_out: Buffer,       // (T, D): the output of the feed-forward network before its norm
    r_ffn: Buffer,         // (T)
}

/// Activation memory, grown when a batch needs more and kept for the whole run.
pub struct Decoder {
    config: ModelConfig,
    heads: AttentionShape,
    rope: Rope,
    local_rope: Option<Rope>, // of sliding layers, where they have one of their own
    policy: ActivationPolicy, // of the last forward pass
    streams: Vec<Buffer>,     // (T, D): the residual stream before each layer and after the last
    layers: Vec<LayerActivations>, // one per layer if all are kept, else one
    norm: Buffer,             // (T, D)
    hidden: Buffer,           // (T, F)
    backward: Option<BackwardBuffers>,
}

/// Memory of the backward pass alone.
#[derive(Default)]
struct BackwardBuffers {
    stream: Buffer, // (T, D)
    norm: Buffer,   // (T, D)
    hidden: Buffer, // (T, F)
    qkv: Buffer,    // (T, (H + 2G) K)
    o: Buffer,      // (T, H K)
    branch: Buffer, // (T, D): of what a layer adds to the stream, where it is not that of the stream; else empty
}

/// Input of a forward pass.
pub struct ForwardInput<'a> {
    /// The weights.
    pub weights: Weights<'a>,
    /// Token ids (T).
    pub tokens: &'a [u32],
    /// Position of each token in its row (T).
    pub positions: &'a [usize],
    /// The residual stream of these tokens after fewer layers than `num_layers`, if it is known.
    pub cached_prefix: Option<&'a CachedPrefix>,
    /// Layers to run.
    pub num_layers: usize,
    /// Indices of the tokens whose output is returned (P).
    pub output_positions: &'a [usize],
    /// Activations to keep.
    pub policy: ActivationPolicy,
}

/// The attention of one layer.
#[derive(Clone, Copy)]
pub struct LayerAttention {
    /// Index of the layer.
    pub layer: usize,
    /// Its heads, and its window.
    pub shape: AttentionShape,
}

pub(super) fn attention_shape(config: &ModelConfig) -> AttentionShape {
    AttentionShape {
        num_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        window: usize::MAX,
        scale: config
            .switches
            .attention_scale
            .unwrap_or_else(|| 1.0 / (config.head_dim as f32).sqrt()),
    }
}

/// Whether a layer adds something other than the outputs of its matrices to the residual stream.
fn has_branch(config: &ModelConfig) -> bool {
    has_output_norms(config) || config.switches.residual_multiplier != 1.0
}

pub(super) fn has_output_norms(config: &ModelConfig) -> bool {
    config.switches.norms != NormPlacement::Before
}

/// Number of norms of a token's q and k.
pub(super) fn qk_norms(config: &ModelConfig) -> usize {
    match (config.qk_norm, config.switches.whole_qk_norm) {
        (false, _) => 0,
        (true, false) => config.num_attention_heads + config.num_key_value_heads,
        (true, true) => 2,
    }
}

impl Decoder {
    /// A decoder of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            config: config.clone(),
            heads: attention_shape(config),
            rope: Rope::new(config),
            local_rope: Rope::local(config),
            policy: ActivationPolicy::None,
            streams: Vec::new(),
            layers: Vec::new(),
            norm: Buffer::zeros(0),
            hidden: Buffer::zeros(0),
            backward: None,
        }
    }

    /// Number of floats that a pass over so many tokens allocates and writes.
    pub fn floats(c: &ModelConfig, tokens: usize, policy: ActivationPolicy) -> usize {
        let h = attention_shape(c);
        let (d, f, q_width) = (c.hidden_size, c.intermediate_size, h.q_width());
        let raw = if c.qk_norm { h.qk_width() } else { 0 };
        let outputs = if has_output_norms(c) { 2 * d + 2 } else { 0 };
        let layer =
            2 + h.qkv_width() + raw + qk_norms(c) + q_width + h.num_heads + d + 2 * f + outputs;
        let (streams, layers) = policy.buffer_counts(c.num_hidden_layers);
        let backward = if policy == ActivationPolicy::None {
            0
        } else {
            // The second qkv_width is the scratch memory of attention's backward pass.
            let branch = if has_branch(c) { d } else { 0 };
            2 * d + f + 2 * h.qkv_width() + q_width + branch
        };
        tokens * ((streams + 1) * d + layers * layer + d + f + backward)
    }

    /// Floats of attention's backward pass over `batch` beyond those that [`Decoder::floats`] counts per token: rows of several blocks
    /// of keys, and shared prefixes.
    pub fn long_attention_floats(c: &ModelConfig, batch: &Batch) -> usize {
        let shape = attention_shape(c);
        let floats = attention::backward_floats(&batch.attention_spans(), shape);
        floats.saturating_sub(batch.tokens.len() * shape.qkv_width())
    }

    /// The heads of the model.
    pub fn heads(&self) -> AttentionShape {
        self.heads
    }

    /// Allocates the buffers that a pass over `tokens` under `policy` needs and that are too small. Each grows on its own: a decoding
    /// pass over many tokens does not enlarge what only the smaller batches of training need.
    fn reserve(&mut self, tokens: usize, policy: ActivationPolicy) {
        let (c, h) = (&self.config, self.heads);
        let (d, f) = (c.hidden_size, c.intermediate_size);
        // An eighth more than needed: the batches of a run differ little in length.
        let room = tokens + tokens / 8;
        let grow = |buffer: &mut Buffer, width: usize| {
            if buffer.len() < tokens * width {
                *buffer = Buffer::zeros(room * width);
            }
        };
        let (streams, layers) = policy.buffer_counts(c.num_hidden_layers);
        let fewest = self.streams.len().max(streams + 1);
        self.streams.resize_with(fewest, Buffer::default);
        for stream in &mut self.streams[..=streams] {
            grow(stream, d);
        }
        grow(&mut self.norm, d);
        grow(&mut self.hidden, f);

        let raw = if c.qk_norm { h.qk_width() } else { 0 };
        let outputs = usize::from(has_output_norms(c));
        let fewest = self.layers.len().max(layers);
        self.layers.resize_with(fewest, LayerActivations::default);
        for layer in &mut self.layers[..layers] {
            grow(&mut layer.r_input, 1);
            grow(&mut layer.qkv, h.qkv_width());
            grow(&mut layer.qk_raw, raw);
            grow(&mut layer.r_qk, qk_norms(c));
            grow(&mut layer.o, h.q_width());
            grow(&mut layer.lse, h.num_heads);
            grow(&mut layer.mid, d);
            grow(&mut layer.r_post, 1);
            grow(&mut layer.gate_up, 2 * f);
            grow(&mut layer.attention_out, outputs * d);
            grow(&mut layer.r_attention, outputs);
            grow(&mut layer.ffn_out, outputs * d);
            grow(&mut layer.r_ffn, outputs);
        }
        if policy != ActivationPolicy::None {
            let backward = self.backward.get_or_insert_default();
            grow(&mut backward.stream, d);
            grow(&mut backward.norm, d);
            grow(&mut backward.hidden, f);
            grow(&mut backward.qkv, h.qkv_width());
            grow(&mut backward.o, h.q_width());
            grow(&mut backward.branch, if has_branch(c) { d } else { 0 });
        }
    }

    /// The rope of a layer; `None` if it has none.
    fn rope_of<'r>(
        config: &ModelConfig,
        rope: &'r Rope,
        local: Option<&'r Rope>,
        layer: usize,
    ) -> Option<&'r Rope> {
        if config.has_local_rope(layer) {
            local
        } else {
            Some(rope).filter(|_| config.has_rope(layer))
        }
    }

    /// The residual stream after `input.num_layers` layers, before the final norm, at the output positions: (P, D).
    ///
    /// After its attention, the last of these layers computes the output positions alone. `attend(layer, qkv, o, lse)` computes the
    /// attention of a layer.
    pub fn forward(
        &mut self,
        input: &ForwardInput<'_>,
        mut attend: impl FnMut(LayerAttention, &[f32], &mut [f32], &mut [f32]),
    ) -> &[f32] {
        let &ForwardInput {
            weights,
            tokens,
            positions,
            cached_prefix,
            num_layers,
            output_positions,
            policy,
        } = input;
        self.reserve(tokens.len(), policy);
        self.policy = policy;
        let num_positions = positions.iter().max().map_or(0, |p| p + 1);
        self.rope.extend_to(num_positions);
        if let Some(rope) = &mut self.local_rope {
            rope.extend_to(num_positions);
        }
        let (t, d) = (tokens.len(), self.config.hidden_size);
        let first = cached_prefix.map_or(0, |prefix| prefix.layers);
        let stream = &mut self.streams[policy.stream_index(first)];
        if let Some(prefix) = cached_prefix {
            stream[..t * d].copy_from_slice(&prefix.stream);
        } else {
            let embed = Matrix::of(weights.params, &weights.layout().embed);
            let factor = self.config.switches.embedding_multiplier;
            for (row, id) in stream.chunks_exact_mut(d).zip(tokens) {
                embed.read_row(*id as usize, row);
                if factor != 1.0 {
                    for x in row {
                        *x *= factor;
                    }
                }
            }
        }
        for layer in first..num_layers {
            let [from, to] = [layer, layer + 1].map(|layer| policy.stream_index(layer));
            let [x, out] = self
                .streams
                .get_disjoint_mut([from, to])
                .expect("there are at least two streams");
            let activations = &mut self.layers[policy.state_index(layer)];
            let context = LayerContext {
                config: &self.config,
                heads: self.heads.with_window(self.config.sliding_window(layer)),
                rope: Self::rope_of(&self.config, &self.rope, self.local_rope.as_ref(), layer),
                weights,
                layout: &weights.layout().layers[layer],
                positions,
                output_positions: (layer + 1 == num_layers).then_some(output_positions),
            };
            let of_layer = LayerAttention {
                layer,
                shape: context.heads,
            };
            let attend =
                |qkv: &[f32], o: &mut [f32], lse: &mut [f32]| attend(of_layer, qkv, o, lse);
            forward_to_gate_up(activations, &x[..t * d], &mut self.norm, &context, attend);
            forward_down(
                out,
                activations,
                [&mut self.hidden, &mut self.norm],
                &context,
            );
        }
        let p = output_positions.len();
        if num_layers == 0 {
            let [embedded, out] = self
                .streams
                .get_disjoint_mut([0, 1])
                .expect("there are at least two streams");
            gather(out, embedded, output_positions, d);
            return &self.streams[1][..p * d];
        }
        &self.streams[policy.stream_index(num_layers)][..p * d]
    }

    /// The `input` of the linear layers of `layer` at each of `t` tokens (T, N), where N is the width of that input.
    ///
    /// Call it after a [`Decoder::forward`] with [`ActivationPolicy::All`] in which every token was an output position.
    pub fn linear_input(
        &mut self,
        weights: Weights<'_>,
        t: usize,
        layer: usize,
        input: LinearInput,
    ) -> &[f32] {
        let (d, f) = (self.config.hidden_size, self.config.intermediate_size);
        let (s, l) = (&self.layers[layer], &weights.layout().layers[layer]);
        let (norm, hidden) = (&mut self.norm[..t * d], &mut self.hidden[..t * f]);
        let offset = self.config.switches.norm_offset;
        let weight = |range: &Range<usize>| norm_weight(weights, range, offset);
        match input {
            LinearInput::Qkv => {
                let x = &self.streams[layer][..t * d];
                let Some(range) = &l.input_norm else {
                    return x;
                };
                ops::rms_norm_recompute(norm, &s.r_input[..t], x, &weight(range));
                norm
            }
            LinearInput::O => &s.o[..t * self.heads.q_width()],
            LinearInput::GateUp => {
                let mid = &s.mid[..t * d];
                let Some(range) = &l.post_norm else {
                    return mid;
                };
                ops::rms_norm_recompute(norm, &s.r_post[..t], mid, &weight(range));
                norm
            }
            LinearInput::Down => {
                gated(&self.config, hidden, &s.gate_up[..t * 2 * f]);
                hidden
            }
        }
    }

    /// Adds the gradients of all trained tensors below the final norm to `gradients`.
    ///
    /// Call it after a [`Decoder::forward`] through all layers that kept activations, with the same `batch` and `output_positions`
    /// (ascending). `d_rows` is the gradient of the result (P, D). `sink` receives each layer, from the last to the lowest that has a
    /// trained tensor at or below it, and the embedding.
    pub fn backward(
        &mut self,
        sink: &mut impl GradSink,
        batch: &Batch,
        gradients: &mut Gradients,
        output_positions: &[usize],
        d_rows: &[f32],
    ) {
        let (t, c, heads) = (batch.tokens.len(), &self.config, self.heads);
        let (spans, positions) = (batch.attention_spans(), batch.positions());
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (qkv_width, q_width) = (heads.qkv_width(), heads.q_width());
        let g = self
            .backward
            .as_mut()
            .expect("the forward pass kept activations");
        let d_stream = &mut g.stream[..t * d];
        let (d_norm, d_qkv) = (&mut g.norm[..t * d], &mut g.qkv[..t * qkv_width]);
        let (d_hidden, d_o) = (&mut g.hidden[..t * f], &mut g.o[..t * q_width]);
        let (norm, hidden) = (&mut self.norm[..t * d], &mut self.hidden[..t * f]);
        d_stream[..d_rows.len()].copy_from_slice(d_rows);

        let first_trained = gradients.first_trained();
        let offset = c.switches.norm_offset;
        let mut attention_scratch = Vec::new();
        for layer in (0..c.num_hidden_layers).rev() {
            let weights = Weights::from(sink.params());
            let l = &weights.layout().layers[layer];
            if first_trained >= l.all.end {
                // Neither this layer nor anything below it is trained.
                return;
            }
            let heads = heads.with_window(c.sliding_window(layer));
            let rope = Self::rope_of(c, &self.rope, self.local_rope.as_ref(), layer);
            let last = layer + 1 == c.num_hidden_layers;
            let p = if last { output_positions.len() } else { t };
            let (x, s) = (
                &self.streams[layer][..t * d],
                &mut self.layers[self.policy.state_index(layer)],
            );
            // The activations of the last layer are still there.
            if self.policy == ActivationPolicy::Checkpoint && !last {
                let context = LayerContext {
                    config: c,
                    heads,
                    rope,
                    weights,
                    layout: l,
                    positions: &positions,
                    output_positions: None,
                };
                forward_to_gate_up(s, x, norm, &context, |qkv, o, lse| {
                    attend_rows(&spans, heads, qkv, o, lse);
                });
                if has_output_norms(c) {
                    // What was saved of the last norm is that of a layer above.
                    forward_down(d_norm, s, [&mut *hidden, &mut *norm], &context);
                }
            }
            let mid = &s.mid[..p * d];
            let (r_input, r_post) = (&s.r_input[..t], &s.r_post[..p]);
            let norm_of = |range: &Range<usize>| norm_weight(weights, range, offset);
            {
                let (d_stream, d_norm) = (&mut d_stream[..p * d], &mut d_norm[..p * d]);
                let (d_hidden, d_o) = (&mut d_hidden[..p * f], &mut d_o[..p * q_width]);
                let (norm, hidden) = (&mut norm[..p * d], &mut hidden[..p * f]);
                let branch = &mut g.branch[..if has_branch(c) { p * d } else { 0 }];

                // out = mid + m ffn_norm(down(gated(gate_up(norm(mid)))))
                let saved = [&s.ffn_out, &s.r_ffn].map(|buffer| &buffer[..]);
                let d_branch = branch_gradient(
                    branch,
                    d_stream,
                    saved,
                    l.ffn_norm.as_ref(),
                    (c, weights, gradients),
                );
                linear::input_gradient(weights, &l.down, d_hidden, d_branch, [p, d, f]);
                let gate_up = &mut s.gate_up[..p * 2 * f];
                gated_backward(c, hidden, gate_up, d_hidden);
                let shape = [p, d, f];
                linear::add_weight_gradients(weights, &l.down, gradients, d_branch, hidden, shape);
                let input = if let Some(range) = &l.post_norm {
                    ops::rms_norm_recompute(norm, r_post, mid, &norm_of(range));
                    &*norm
                } else {
                    mid
                };
                let shape = [p, 2 * f, d];
                linear::add_weight_gradients(weights, &l.gate_up, gradients, gate_up, input, shape);
                linear::input_gradient(weights, &l.gate_up, d_norm, gate_up, shape);
                if let Some(range) = &l.post_norm {
                    let d_post = gradients.tensor_mut(range);
                    ops::rms_norm_backward(d_stream, d_post, d_norm, mid, r_post, &norm_of(range));
                } else {
                    ops::add_scaled(d_stream, 1.0, d_norm);
                }

                // mid = x + m attention_norm(o(attention(rope(qkv(norm(x))))))
                let saved = [&s.attention_out, &s.r_attention].map(|buffer| &buffer[..]);
                let norm_range = l.attention_norm.as_ref();
                let d_branch =
                    branch_gradient(branch, d_stream, saved, norm_range, (c, weights, gradients));
                let shape = [p, d, q_width];
                linear::input_gradient(weights, &l.o, d_o, d_branch, shape);
                let o = select_rows(
                    &s.o[..t * q_width],
                    last.then_some(output_positions),
                    q_width,
                );
                linear::add_weight_gradients(weights, &l.o, gradients, d_branch, &o, shape);
            }
            if last {
                scatter(d_stream, output_positions, d);
                scatter(d_o, output_positions, q_width);
            }
            let saved = attention::SavedForward {
                d_o,
                o: &s.o[..t * q_width],
                lse: &s.lse[..t * heads.num_heads],
                qkv: &s.qkv[..t * qkv_width],
                shape: heads,
            };
            let scratch = &mut attention_scratch;
            timed(Phase::AttentionBackward, Work::default(), || {
                attention::backward(d_qkv, &saved, &spans, &positions, rope, scratch);
            });
            if let Some((q_norm, k_norm)) = &l.qk_norm {
                let weights = [norm_of(q_norm), norm_of(k_norm)];
                let norms = [&*weights[0], &*weights[1]];
                let sums = ops::qk_norm_backward(d_qkv, &s.qk_raw, &s.r_qk, norms, heads);
                for (range, sum) in [q_norm, k_norm].into_iter().zip(sums) {
                    if let Some(slot) = gradients.tensor_mut(range) {
                        simd::axpy(slot, 1.0, &sum);
                    }
                }
            }
            if let Some(bias) = &l.qkv_bias {
                for (part, slot) in gradients.slices_mut(bias) {
                    ops::add_column_sums(slot, d_qkv, part.start, qkv_width);
                }
            }
            let input = if let Some(range) = &l.input_norm {
                ops::rms_norm_recompute(norm, r_input, x, &norm_of(range));
                &*norm
            } else {
                x
            };
            let shape = [t, qkv_width, d];
            linear::add_weight_gradients(weights, &l.qkv, gradients, d_qkv, input, shape);
            linear::input_gradient(weights, &l.qkv, d_norm, d_qkv, shape);
            if let Some(range) = &l.input_norm {
                let d_input = gradients.tensor_mut(range);
                ops::rms_norm_backward(d_stream, d_input, d_norm, x, r_input, &norm_of(range));
            } else {
                ops::add_scaled(d_stream, 1.0, d_norm);
            }
            let of_layer = l.range();
            sink.grad_ready(&of_layer, gradients);
        }
        let embed = sink.params().layout.embed.clone();
        if let Some(d_embed) = gradients.tensor_mut(&embed) {
            let factor = c.switches.embedding_multiplier;
            for (id, dx) in batch.tokens.iter().zip(d_stream.chunks_exact(d)) {
                for (g, dx) in d_embed[*id as usize * d..][..d].iter_mut().zip(dx) {
                    *g += factor * dx;
                }
            }
        }
        sink.grad_ready(&embed, gradients);
    }
}

/// Inputs of one layer other than the residual stream.
struct LayerContext<'a> {
    config: &'a ModelConfig,
    heads: AttentionShape,
    rope: Option<&'a Rope>,
    weights: Weights<'a>,
    layout: &'a LayerLayout,
    positions: &'a [usize],
    output_positions: Option<&'a [usize]>, // the tokens that are computed after attention, if not all
}

/// The rows of `from` (T, W) at `positions`: (P, W); all of them without `positions`.
fn select_rows<'a>(from: &'a [f32], positions: Option<&[usize]>, width: usize) -> Cow<'a, [f32]> {
    positions.map_or(Cow::Borrowed(from), |positions| {
        let mut rows = vec![0.0; positions.len() * width];
        gather(&mut rows, from, positions, width);
        Cow::Owned(rows)
    })
}

/// Copies the rows of `from` (T, W) at `positions` to the start of `to`.
fn gather(to: &mut [f32], from: &[f32], positions: &[usize], width: usize) {
    for (to, position) in to.chunks_exact_mut(width).zip(positions) {
        to.copy_from_slice(&from[position * width..][..width]);
    }
}

/// The inverse of [`gather`], in place: moves the first rows of `rows` (T, W) to `positions` (ascending) and zeroes the others.
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

/// Attention of a batch, forward.
pub(super) fn attend_rows(
    spans: &[AttentionSpan],
    heads: AttentionShape,
    qkv: &[f32],
    o: &mut [f32],
    lse: &mut [f32],
) {
    let rows: Vec<_> = spans.iter().map(|span| span.to_row(qkv, heads)).collect();
    timed(Phase::Attention, Work::default(), || {
        attention::forward(o, lse, qkv, &rows, heads);
    });
}

/// The first part of a layer: `gate_up(norm(mid))`, where `mid = x + o(attention(rope(qkv(norm(x)))))`.
fn forward_to_gate_up(
    s: &mut LayerActivations,
    x: &[f32],
    norm: &mut [f32],
    context: &LayerContext<'_>,
    attend: impl FnOnce(&[f32], &mut [f32], &mut [f32]),
) {
    let (c, heads, l) = (context.config, context.heads, context.layout);
    let (t, d, f) = (context.positions.len(), c.hidden_size, c.intermediate_size);
    let (qkv_width, q_width) = (heads.qkv_width(), heads.q_width());
    let weights = context.weights;
    let norm_of = |range: &Range<usize>| norm_weight(weights, range, c.switches.norm_offset);
    let (qkv, o, lse) = (
        &mut s.qkv[..t * qkv_width],
        &mut s.o[..t * q_width],
        &mut s.lse[..t * heads.num_heads],
    );

    let input = if let Some(range) = &l.input_norm {
        let (norm, r) = (&mut norm[..t * d], &mut s.r_input[..t]);
        ops::rms_norm(norm, r, x, &norm_of(range), c.rms_norm_eps);
        &*norm
    } else {
        x
    };
    linear::forward(weights, &l.qkv, qkv, input, [t, qkv_width, d], false);
    if let Some(bias) = &l.qkv_bias {
        ops::add_bias(qkv, weights.slice(bias));
    }
    if let Some((q_norm, k_norm)) = &l.qk_norm {
        let weights = [norm_of(q_norm), norm_of(k_norm)];
        let norms = [&*weights[0], &*weights[1]];
        let (raw, r) = (&mut s.qk_raw, &mut s.r_qk);
        ops::qk_norm(qkv, raw, r, norms, heads, c.rms_norm_eps);
    }
    if let Some(rope) = context.rope {
        ops::apply_rope(qkv, context.positions, heads, rope);
    }
    attend(qkv, o, lse);

    let p = context.output_positions.map_or(t, <[usize]>::len);
    let o = select_rows(o, context.output_positions, q_width);
    let norm = &mut norm[..p * d];
    let (mid, gate_up) = (&mut s.mid[..p * d], &mut s.gate_up[..p * 2 * f]);
    mid.copy_from_slice(&select_rows(x, context.output_positions, d));
    let product = Product {
        input: &o,
        weight: &l.o,
        norm: l.attention_norm.as_ref(),
    };
    let saved = [&mut s.attention_out, &mut s.r_attention].map(|buffer| &mut buffer[..]);
    product.add_to(mid, saved, norm, context);

    let input = if let Some(range) = &l.post_norm {
        ops::rms_norm(
            norm,
            &mut s.r_post[..p],
            mid,
            &norm_of(range),
            c.rms_norm_eps,
        );
        &*norm
    } else {
        &*mid
    };
    linear::forward(weights, &l.gate_up, gate_up, input, [p, 2 * f, d], false);
}

/// A matrix product that a layer adds to the residual stream: `stream += m norm(input weight^T)`, with the residual multiplier m, and
/// without the norm in most families.
struct Product<'a> {
    input: &'a [f32],         // (P, N)
    weight: &'a Range<usize>, // of (D, N)
    norm: Option<&'a Range<usize>>,
}

impl Product<'_> {
    /// `saved` are the product before its norm (P, D) and the r of the norm (P); `scratch` (P, D).
    fn add_to(
        &self,
        stream: &mut [f32],
        saved: [&mut [f32]; 2],
        scratch: &mut [f32],
        context: &LayerContext<'_>,
    ) {
        let c = context.config;
        let d = c.hidden_size;
        let p = stream.len() / d;
        let shape = [p, d, self.input.len() / p.max(1)];
        let product = |out: &mut [f32], add| {
            linear::forward(context.weights, self.weight, out, self.input, shape, add);
        };
        if !has_branch(c) {
            product(stream, true);
            return;
        }
        let scratch = &mut scratch[..p * d];
        if let Some(range) = self.norm {
            let [out, r] = saved;
            let (out, r) = (&mut out[..p * d], &mut r[..p]);
            product(out, false);
            let weight = norm_weight(context.weights, range, c.switches.norm_offset);
            ops::rms_norm(scratch, r, out, &weight, c.rms_norm_eps);
        } else {
            product(scratch, false);
        }
        ops::add_scaled(stream, c.switches.residual_multiplier, scratch);
    }
}

/// The gradient of a [`Product`] before its norm, in `branch`, from that of the stream; that of the stream itself where the two are
/// equal. `saved` as in [`Product::add_to`].
fn branch_gradient<'g>(
    branch: &'g mut [f32],
    d_stream: &'g [f32],
    saved: [&[f32]; 2],
    norm: Option<&Range<usize>>,
    (config, weights, gradients): (&ModelConfig, Weights<'_>, &mut Gradients),
) -> &'g [f32] {
    if !has_branch(config) {
        return d_stream;
    }
    let factor = config.switches.residual_multiplier;
    branch.fill(0.0);
    if let Some(range) = norm {
        let (p, d) = (d_stream.len() / config.hidden_size, config.hidden_size);
        let [out, r] = saved;
        let weight = norm_weight(weights, range, config.switches.norm_offset);
        let scaled: Cow<'_, [f32]> = if factor == 1.0 {
            Cow::Borrowed(d_stream)
        } else {
            d_stream.iter().map(|x| factor * x).collect()
        };
        let d_norm = gradients.tensor_mut(range);
        ops::rms_norm_backward(branch, d_norm, &scaled, &out[..p * d], &r[..p], &weight);
    } else {
        ops::add_scaled(branch, factor, d_stream);
    }
    branch
}

/// The weight of a norm as it is multiplied: gemma3 stores it less 1.
pub(super) fn norm_weight<'w>(
    weights: Weights<'w>,
    range: &Range<usize>,
    offset: f32,
) -> Cow<'w, [f32]> {
    let stored = weights.slice(range);
    if offset == 0.0 {
        Cow::Borrowed(stored)
    } else {
        stored.iter().map(|w| w + offset).collect()
    }
}

/// The gated hidden state (P, F) of `gate_up` (P, 2F).
fn gated(config: &ModelConfig, hidden: &mut [f32], gate_up: &[f32]) {
    let f = config.intermediate_size;
    if config.switches.gelu {
        ops::geglu(hidden, gate_up, f);
    } else {
        ops::swiglu(hidden, gate_up, f);
    }
}

/// Gradient of [`gated`], in place of `gate_up`; recomputes `hidden`.
fn gated_backward(config: &ModelConfig, hidden: &mut [f32], gate_up: &mut [f32], d_hidden: &[f32]) {
    let f = config.intermediate_size;
    if config.switches.gelu {
        ops::geglu_backward(hidden, gate_up, d_hidden, f);
    } else {
        ops::swiglu_backward(hidden, gate_up, d_hidden, f);
    }
}

/// The second part of a layer: `out = mid + down(gated(gate_up))`. `scratch` are buffers (P, F) and (P, D).
fn forward_down(
    out: &mut [f32],
    s: &mut LayerActivations,
    [hidden, scratch]: [&mut [f32]; 2],
    context: &LayerContext<'_>,
) {
    let c = context.config;
    let (d, f) = (c.hidden_size, c.intermediate_size);
    let p = context.output_positions.unwrap_or(context.positions).len();
    let (out, hidden) = (&mut out[..p * d], &mut hidden[..p * f]);
    gated(c, hidden, &s.gate_up[..p * 2 * f]);
    out.copy_from_slice(&s.mid[..p * d]);
    let product = Product {
        input: hidden,
        weight: &context.layout.down,
        norm: context.layout.ffn_norm.as_ref(),
    };
    let saved = [&mut s.ffn_out, &mut s.r_ffn].map(|buffer| &mut buffer[..]);
    product.add_to(out, saved, scratch, context);
}
