//! The decoder layers on a GPU, forward and backward: the steps of [`super::decoder`], with the kernels of [`crate::gpu`].

use std::ops::Range;

use super::{
    batch::Batch,
    decoder::{self, ActivationPolicy, has_output_norms, qk_norms},
    gpu_array::{GpuArray, model_parts},
    gradients::Gradients,
    rope::Rope,
};
use crate::{
    gpu::{
        Binding, Gpu, GpuError,
        attention::{
            self, AttentionRow, AttentionShape, DecodingPlan, Reused, SavedForward, TrainingPlan,
        },
        cache::KvSlots,
        elementwise::{self, Gate},
        embedding::{self, TokenRows},
        matmul::{Form, Matrix, matmul},
        norms::{self, NormWeight, QkNorms, SavedNorm},
        rope::{self, Direction},
    },
    model::{Layout, ModelConfig, params::LayerLayout},
};

/// Activations of a layer that its backward pass needs, as in [`super::decoder`].
#[derive(Default)]
struct LayerActivations {
    r_input: Reused,
    qkv: Reused,
    qk_raw: Reused,
    r_qk: Reused,
    o: Reused,
    lse: Reused,
    mid: Reused,
    r_post: Reused,
    gate_up: Reused,
    attention_out: Reused,
    r_attention: Reused,
    ffn_out: Reused,
    r_ffn: Reused,
}

/// Memory that no later pass reads.
#[derive(Default)]
struct Scratch {
    norm: Reused,   // (T, D)
    hidden: Reused, // (T, F)
    o: Reused,      // (P, HK): the output positions of the last layer
}

/// Memory of the backward pass alone, as in [`super::decoder`].
#[derive(Default)]
struct BackwardBuffers {
    stream: Reused,
    scattered: Reused, // (T, D) or (T, HK): rows moved apart
    norm: Reused,
    hidden: Reused,
    qkv: Reused,
    o: Reused,
    branch: Reused,
}

/// The tokens of a pass on the device.
#[derive(Default)]
struct Input {
    tokens: Reused,
    positions: Reused,
    outputs: Reused, // (P)
    scatter: Reused, // (T): the row of each token among the outputs, as `scatter_ids` gives it
    plan: TrainingPlan,
    decoding: DecodingPlan,
    slots: Reused, // (T): of the cache, while decoding
    num_tokens: usize,
    num_outputs: usize,
}

/// The tokens of a forward pass.
#[derive(Clone, Copy)]
pub struct GpuInput<'a> {
    /// The tokens (T).
    pub tokens: &'a [u32],
    /// Their positions in their rows (T).
    pub positions: &'a [usize],
    /// The tokens whose hidden states are wanted (P).
    pub outputs: &'a [usize],
    /// The tokens of each row, and where their keys are: among the tokens, or in the slots of the cache.
    pub rows: &'a [AttentionRow],
    /// The cache, and the slot of each token there.
    pub cache: Option<(&'a KvSlots, &'a [u32])>,
}

/// The angles of a rope on the device.
struct RopeTable {
    rope: Rope,
    table: Reused,
    positions: usize,
}

impl RopeTable {
    fn new(rope: Rope) -> Self {
        Self {
            rope,
            table: Reused::default(),
            positions: 0,
        }
    }

    fn extend_to(&mut self, gpu: &Gpu, positions: usize) -> Result<(), GpuError> {
        if positions > self.positions {
            self.positions = positions.next_power_of_two();
            self.rope.extend_to(self.positions);
            let table = self.rope.table();
            let buffer = self.table.reserve(gpu, table.len())?;
            gpu.write(buffer, 0, table)?;
        }
        Ok(())
    }
}

/// The decoder on a GPU, with its activations.
pub struct GpuDecoder {
    gpu: Gpu,
    config: ModelConfig,
    rope: RopeTable,
    local_rope: Option<RopeTable>,
    policy: ActivationPolicy,
    input: Input,
    streams: Vec<Reused>,
    layers: Vec<LayerActivations>,
    scratch: Scratch,
    backward: BackwardBuffers,
}

/// The gradients of a pass: which tensors are trained, and their memory.
#[derive(Clone, Copy)]
pub struct GpuGradients<'a> {
    /// Where each trained tensor's gradient is.
    pub places: &'a Gradients,
    /// The gradients.
    pub data: &'a GpuArray,
}

impl<'a> GpuGradients<'a> {
    /// The trained parts of a tensor or group: their range in it, and their gradients.
    fn parts(&self, range: &Range<usize>) -> Vec<(Range<usize>, Binding<'a>)> {
        let (places, data) = (self.places, self.data);
        let segments = places.segments_within(range).into_iter();
        let parts = segments.map(|(weights, _, gradient)| {
            let part = weights.start - range.start..weights.end - range.start;
            (part, data.range(&gradient))
        });
        parts.collect()
    }

    /// The gradient of a tensor that is trained as a whole or not at all.
    pub fn tensor(&self, range: &Range<usize>) -> Option<Binding<'a>> {
        self.parts(range).pop().map(|(_, gradient)| gradient)
    }
}

/// The trained ranges of every part of a model: of weights, of trained offsets, and of gradients.
pub fn trained_ranges(
    places: &Gradients,
    layout: &Layout,
) -> Vec<(Range<usize>, Range<usize>, Range<usize>)> {
    let parts = model_parts(layout).into_iter();
    parts
        .flat_map(|part| places.segments_within(&part))
        .collect()
}

/// What the passes over one layer share.
struct LayerContext<'a> {
    gpu: &'a Gpu,
    config: &'a ModelConfig,
    heads: AttentionShape,
    rope: Option<rope::Rope<'a>>,
    weights: &'a GpuArray,
    layout: &'a LayerLayout,
    input: &'a Input,
    is_last: bool,
    /// The cache that the tokens are written to, and the index of this layer in it.
    cache: Option<(&'a KvSlots, usize)>,
}

impl LayerContext<'_> {
    /// Rows that are computed after attention.
    fn num_rows(&self) -> usize {
        if self.is_last {
            self.input.num_outputs
        } else {
            self.input.num_tokens
        }
    }

    fn norm(&self, range: &Range<usize>) -> NormWeight<'_> {
        NormWeight {
            weight: self.weights.range(range),
            offset: self.config.switches.norm_offset,
        }
    }

    fn qk_norms(&self) -> Option<QkNorms<'_>> {
        let (q, k) = self.layout.qk_norm.as_ref()?;
        Some(QkNorms {
            q_width: self.heads.q_width(),
            k_width: self.heads.kv_width(),
            q: self.weights.range(q),
            k: self.weights.range(k),
            offset: self.config.switches.norm_offset,
        })
    }

    /// `y = x W^T` (+ y), where `x` is (rows, in) and the weight (out, in).
    fn linear(
        &self,
        y: Binding<'_>,
        x: Binding<'_>,
        weight: &Range<usize>,
        [rows, out, width]: [usize; 3],
        adds: bool,
    ) -> Result<(), GpuError> {
        let beta = if adds { 1.0 } else { 0.0 };
        matmul(
            self.gpu,
            Form::NT,
            Matrix::new(y, rows, out),
            Matrix::new(x, rows, width),
            Matrix::new(self.weights.range(weight), out, width),
            1.0,
            beta,
        )
    }

    /// `dx = dy W`, the gradient of the input of [`Self::linear`].
    fn input_gradient(
        &self,
        dx: Binding<'_>,
        dy: Binding<'_>,
        weight: &Range<usize>,
        [rows, out, width]: [usize; 3],
    ) -> Result<(), GpuError> {
        matmul(
            self.gpu,
            Form::NN,
            Matrix::new(dx, rows, width),
            Matrix::new(dy, rows, out),
            Matrix::new(self.weights.range(weight), out, width),
            1.0,
            0.0,
        )
    }

    /// Adds `dy^T x` to the gradients of the trained rows of `weight`.
    fn add_weight_gradient(
        &self,
        gradients: GpuGradients<'_>,
        weight: &Range<usize>,
        dy: Binding<'_>,
        x: Binding<'_>,
        [rows, out, width]: [usize; 3],
    ) -> Result<(), GpuError> {
        for (part, slot) in gradients.parts(weight) {
            let (first, count) = (part.start / width, part.len() / width);
            matmul(
                self.gpu,
                Form::TN,
                Matrix::new(slot, count, width),
                Matrix::new(dy, rows, out).with_columns(first, count),
                Matrix::new(x, rows, width),
                1.0,
                1.0,
            )?;
        }
        Ok(())
    }
}

/// The rows of a batch, whose keys are among its tokens.
pub fn packed_rows(batch: &Batch) -> Vec<AttentionRow> {
    let rows = batch.attention_spans().into_iter();
    let rows = rows.map(|span| AttentionRow {
        tokens: span.tokens.clone(),
        keys: span.context.into_iter().chain([span.tokens]).collect(),
    });
    rows.collect()
}

/// The heads of the model, as the kernels take them.
pub fn attention_shape(config: &ModelConfig) -> AttentionShape {
    let shape = decoder::attention_shape(config);
    AttentionShape {
        num_heads: shape.num_heads,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        window: None,
        scale: shape.scale,
    }
}

fn gate(config: &ModelConfig) -> Gate {
    if config.switches.gelu {
        Gate::Geglu
    } else {
        Gate::Swiglu
    }
}

impl GpuDecoder {
    /// A decoder of this shape on `gpu`.
    pub fn new(gpu: &Gpu, config: &ModelConfig) -> Self {
        Self {
            gpu: gpu.clone(),
            config: config.clone(),
            rope: RopeTable::new(Rope::new(config)),
            local_rope: Rope::local(config).map(RopeTable::new),
            policy: ActivationPolicy::None,
            input: Input::default(),
            streams: Vec::new(),
            layers: Vec::new(),
            scratch: Scratch::default(),
            backward: BackwardBuffers::default(),
        }
    }

    /// Uploads what the passes over these tokens need.
    fn prepare(&mut self, of: GpuInput<'_>) -> Result<(), GpuError> {
        let (gpu, input) = (&self.gpu, &mut self.input);
        let GpuInput {
            tokens,
            positions,
            outputs,
            rows,
            cache,
        } = of;
        let num_positions = positions.iter().max().map_or(0, |p| p + 1);
        for rope in [&mut self.rope].into_iter().chain(&mut self.local_rope) {
            rope.extend_to(gpu, num_positions)?;
        }
        let ids = |values: &[usize]| -> Vec<u32> { values.iter().map(|v| *v as u32).collect() };
        input.tokens.upload(gpu, tokens)?;
        input.positions.upload(gpu, &ids(positions))?;
        input.outputs.upload(gpu, &ids(outputs))?;
        let shape = attention_shape(&self.config);
        if let Some((_, slots)) = cache {
            input.slots.upload(gpu, slots)?;
            input.decoding.prepare(gpu, rows, shape)?;
        } else {
            let scatter = embedding::scatter_ids(outputs, tokens.len());
            input.scatter.upload(gpu, &scatter)?;
            input.plan.prepare(gpu, rows, shape)?;
        }
        input.num_tokens = tokens.len();
        input.num_outputs = outputs.len();
        Ok(())
    }

    fn reserve(&mut self, policy: ActivationPolicy) -> Result<(), GpuError> {
        let (gpu, c, t) = (&self.gpu, &self.config, self.input.num_tokens);
        let h = attention_shape(c);
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (streams, layers) = policy.buffer_counts(c.num_hidden_layers);
        let fewest = self.streams.len().max(streams + 1);
        self.streams.resize_with(fewest, Reused::default);
        for stream in &mut self.streams[..=streams] {
            stream.reserve(gpu, t * d)?;
        }
        let fewest = self.layers.len().max(layers);
        self.layers.resize_with(fewest, LayerActivations::default);
        let qk_width = if c.qk_norm {
            h.q_width() + h.kv_width()
        } else {
            0
        };
        let outputs = usize::from(has_output_norms(c));
        for layer in &mut self.layers[..layers] {
            for (buffer, width) in [
                (&mut layer.r_input, 1),
                (&mut layer.qkv, h.qkv_width()),
                (&mut layer.qk_raw, qk_width),
                (&mut layer.r_qk, qk_norms(c)),
                (&mut layer.o, h.q_width()),
                (&mut layer.lse, h.num_heads),
                (&mut layer.mid, d),
                (&mut layer.r_post, 1),
                (&mut layer.gate_up, 2 * f),
                (&mut layer.attention_out, outputs * d),
                (&mut layer.r_attention, outputs),
                (&mut layer.ffn_out, outputs * d),
                (&mut layer.r_ffn, outputs),
            ] {
                buffer.reserve(gpu, t * width)?;
            }
        }
        let scratch = &mut self.scratch;
        scratch.norm.reserve(gpu, t * d)?;
        scratch.hidden.reserve(gpu, t * f)?;
        scratch.o.reserve(gpu, t * h.q_width())?;
        if policy != ActivationPolicy::None {
            let b = &mut self.backward;
            for (buffer, width) in [
                (&mut b.stream, d),
                (&mut b.scattered, d.max(h.q_width())),
                (&mut b.norm, d),
                (&mut b.hidden, f),
                (&mut b.qkv, h.qkv_width()),
                (&mut b.o, h.q_width()),
                (&mut b.branch, d),
            ] {
                buffer.reserve(gpu, t * width)?;
            }
        }
        Ok(())
    }

    fn context<'a>(
        &'a self,
        weights: &'a GpuArray,
        layout: &'a Layout,
        layer: usize,
        num_layers: usize,
    ) -> Result<LayerContext<'a>, GpuError> {
        let config = &self.config;
        let table = if config.has_local_rope(layer) {
            self.local_rope.as_ref()
        } else {
            Some(&self.rope).filter(|_| config.has_rope(layer))
        };
        let heads = AttentionShape {
            window: config.sliding_window(layer),
            ..attention_shape(config)
        };
        let rope = |table: &'a RopeTable| -> Result<rope::Rope<'a>, GpuError> {
            Ok(rope::Rope {
                table: table.table.get()?.range(0..table.rope.table().len()),
                half: table.rope.half(),
                heads: heads.num_heads + heads.num_kv_heads,
                head_dim: heads.head_dim,
            })
        };
        Ok(LayerContext {
            gpu: &self.gpu,
            config,
            heads,
            rope: table.map(rope).transpose()?,
            weights,
            layout: &layout.layers[layer],
            input: &self.input,
            is_last: layer + 1 == num_layers,
            cache: None,
        })
    }

    /// The residual stream after `num_layers` layers, before the final norm, at the output positions: (P, D). The last of these layers
    /// computes these alone after its attention.
    pub fn forward(
        &mut self,
        weights: &GpuArray,
        layout: &Layout,
        of: GpuInput<'_>,
        num_layers: usize,
        policy: ActivationPolicy,
    ) -> Result<Binding<'_>, GpuError> {
        self.prepare(of)?;
        self.reserve(policy)?;
        self.policy = policy;
        let (t, d, gpu) = (self.input.num_tokens, self.config.hidden_size, &self.gpu);
        let stream = self.streams[policy.stream_index(0)].get()?.range(0..t * d);
        embedding::gather_rows(
            gpu,
            stream,
            weights.range(&layout.embed),
            self.input.tokens.get()?.range(0..t),
            d,
            self.config.switches.embedding_multiplier,
        )?;
        for layer in 0..num_layers {
            let cache = of.cache.map(|(slots, _)| (slots, layer));
            let context = LayerContext {
                cache,
                ..self.context(weights, layout, layer, num_layers)?
            };
            let [from, to] = [layer, layer + 1].map(|layer| policy.stream_index(layer));
            let x = self.streams[from].get()?.range(0..t * d);
            let out = self.streams[to].get()?.range(0..context.num_rows() * d);
            let activations = &self.layers[policy.state_index(layer)];
            forward_to_gate_up(activations, x, &self.scratch, &context)?;
            forward_down(out, activations, &self.scratch, &context)?;
        }
        let p = of.outputs.len();
        if num_layers == 0 {
            let out = self.streams[1].get()?.range(0..p * d);
            let ids = self.input.outputs.get()?.range(0..p);
            embedding::gather_rows(gpu, out, stream, ids, d, 1.0)?;
            return Ok(out);
        }
        Ok(self.streams[policy.stream_index(num_layers)]
            .get()?
            .range(0..p * d))
    }

    /// The result of the last [`GpuDecoder::forward`], which went through all layers.
    pub fn output(&self) -> Result<Binding<'_>, GpuError> {
        let last = self.policy.stream_index(self.config.num_hidden_layers);
        let len = self.input.num_outputs * self.config.hidden_size;
        Ok(self.streams[last].get()?.range(0..len))
    }

    /// Adds the gradients of all trained tensors below the final norm to `gradients`, given that of the result of
    /// [`GpuDecoder::forward`] through all layers, which kept activations: `d_rows` (P, D).
    pub fn backward(
        &mut self,
        weights: &GpuArray,
        layout: &Layout,
        gradients: GpuGradients<'_>,
        batch: &Batch,
        d_rows: Binding<'_>,
    ) -> Result<(), GpuError> {
        let (c, gpu) = (&self.config, &self.gpu);
        let (t, d, f) = (self.input.num_tokens, c.hidden_size, c.intermediate_size);
        let b = &self.backward;
        let stream = b.stream.get()?;
        gpu.copy(stream.range(0..d_rows.len), d_rows)?;
        let first_trained = gradients.places.first_trained();
        for layer in (0..c.num_hidden_layers).rev() {
            let l = &layout.layers[layer];
            if first_trained >= l.all.end {
                // Neither this layer nor anything below it is trained.
                return Ok(());
            }
            let context = self.context(weights, layout, layer, c.num_hidden_layers)?;
            let (heads, p) = (context.heads, context.num_rows());
            let (qkv_width, q_width) = (heads.qkv_width(), heads.q_width());
            let x = self.streams[layer].get()?.range(0..t * d);
            let s = &self.layers[self.policy.state_index(layer)];
            let scratch = &self.scratch;
            // The activations of the last layer are still there.
            if self.policy == ActivationPolicy::Checkpoint && !context.is_last {
                forward_to_gate_up(s, x, scratch, &context)?;
                if has_output_norms(c) {
                    // What was saved of the last norm is that of a layer above.
                    forward_down(b.norm.get()?.range(0..t * d), s, scratch, &context)?;
                }
            }
            let mid = s.mid.get()?.range(0..p * d);
            let r_post = s.r_post.get()?.range(0..p);
            let d_stream = stream.range(0..p * d);
            let (d_norm, d_hidden) = (
                b.norm.get()?.range(0..p * d),
                b.hidden.get()?.range(0..p * f),
            );
            let d_o = b.o.get()?.range(0..p * q_width);
            let (norm, hidden) = (
                scratch.norm.get()?.range(0..p * d),
                scratch.hidden.get()?.range(0..p * f),
            );
            let branch = b.branch.get()?.range(0..p * d);

            // out = mid + m ffn_norm(down(gated(gate_up(norm(mid)))))
            let saved = [&s.ffn_out, &s.r_ffn];
            let d_branch = branch_gradient(
                &context,
                gradients,
                (branch, d_stream),
                saved,
                l.ffn_norm.as_ref(),
            )?;
            context.input_gradient(d_hidden, d_branch, &l.down, [p, d, f])?;
            let gate_up = s.gate_up.get()?.range(0..p * 2 * f);
            elementwise::gated_backward(gpu, gate(c), hidden, gate_up, d_hidden, f)?;
            context.add_weight_gradient(gradients, &l.down, d_branch, hidden, [p, d, f])?;
            let input = if let Some(range) = &l.post_norm {
                norms::rms_norm_recompute(gpu, norm, r_post, mid, context.norm(range))?;
                norm
            } else {
                mid
            };
            context.add_weight_gradient(gradients, &l.gate_up, gate_up, input, [p, 2 * f, d])?;
            context.input_gradient(d_norm, gate_up, &l.gate_up, [p, 2 * f, d])?;
            add_norm_gradient(
                &context,
                gradients,
                d_stream,
                d_norm,
                (mid, r_post),
                l.post_norm.as_ref(),
            )?;

            // mid = x + m attention_norm(o(attention(rope(qkv(norm(x))))))
            let saved = [&s.attention_out, &s.r_attention];
            let d_branch = branch_gradient(
                &context,
                gradients,
                (branch, d_stream),
                saved,
                l.attention_norm.as_ref(),
            )?;
            context.input_gradient(d_o, d_branch, &l.o, [p, d, q_width])?;
            let o = s.o.get()?.range(0..t * q_width);
            let selected = output_rows(&context, scratch, o, q_width)?;
            context.add_weight_gradient(gradients, &l.o, d_branch, selected, [p, d, q_width])?;
            if context.is_last {
                let ids = context.input.scatter.get()?.range(0..t);
                for (rows, width) in [(stream, d), (b.o.get()?, q_width)] {
                    let apart = b.scattered.get()?.range(0..t * width);
                    embedding::gather_rows(gpu, apart, rows.range(0..p * width), ids, width, 1.0)?;
                    gpu.copy(rows.range(0..t * width), apart)?;
                }
            }
            let d_stream = stream.range(0..t * d);
            let d_qkv = b.qkv.get()?.range(0..t * qkv_width);
            attention::backward(
                gpu,
                &self.input.plan,
                SavedForward {
                    d_o: b.o.get()?.range(0..t * q_width),
                    o,
                    lse: s.lse.get()?.range(0..t * heads.num_heads),
                    qkv: s.qkv.get()?.range(0..t * qkv_width),
                },
                d_qkv,
                heads,
            )?;
            let positions = self.input.positions.get()?.range(0..t);
            if let Some(angles) = context.rope {
                rope::rope(
                    gpu,
                    d_qkv,
                    qkv_width,
                    positions,
                    angles,
                    Direction::Backward,
                )?;
            }
            if let (Some(norms), Some((q, k))) = (context.qk_norms(), &l.qk_norm) {
                let width = heads.q_width() + heads.kv_width();
                let raw = s.qk_raw.get()?.range(0..t * width);
                let r = s.r_qk.get()?.range(0..t * norms.per_token());
                let weights = [gradients.tensor(q), gradients.tensor(k)];
                norms::qk_norm_backward(gpu, d_qkv, weights, raw, r, norms, qkv_width)?;
            }
            if let Some(bias) = &l.qkv_bias {
                for (part, slot) in gradients.parts(bias) {
                    norms::add_column_sums(gpu, slot, d_qkv, part.start, qkv_width)?;
                }
            }
            let (d_norm, norm) = (
                b.norm.get()?.range(0..t * d),
                scratch.norm.get()?.range(0..t * d),
            );
            let r_input = s.r_input.get()?.range(0..t);
            let input = if let Some(range) = &l.input_norm {
                norms::rms_norm_recompute(gpu, norm, r_input, x, context.norm(range))?;
                norm
            } else {
                x
            };
            context.add_weight_gradient(gradients, &l.qkv, d_qkv, input, [t, qkv_width, d])?;
            context.input_gradient(d_norm, d_qkv, &l.qkv, [t, qkv_width, d])?;
            add_norm_gradient(
                &context,
                gradients,
                d_stream,
                d_norm,
                (x, r_input),
                l.input_norm.as_ref(),
            )?;
        }
        if let Some(d_embed) = gradients.tensor(&layout.embed) {
            let tokens = TokenRows::new(gpu, &batch.tokens)?;
            let factor = c.switches.embedding_multiplier;
            let rows = stream.range(0..t * d);
            embedding::embedding_backward(gpu, d_embed, rows, &tokens, d, factor)?;
        }
        Ok(())
    }
}

/// The rows of `from` (T, W) at the output positions, where the layer computes these alone.
fn output_rows<'a>(
    context: &LayerContext<'_>,
    scratch: &'a Scratch,
    from: Binding<'a>,
    width: usize,
) -> Result<Binding<'a>, GpuError> {
    if !context.is_last {
        return Ok(from);
    }
    let p = context.num_rows();
    let rows = scratch.o.get()?.range(0..p * width);
    let ids = context.input.outputs.get()?.range(0..p);
    embedding::gather_rows(context.gpu, rows, from, ids, width, 1.0)?;
    Ok(rows)
}

/// The first part of a layer: `gate_up(norm(mid))`, where `mid = x + o(attention(rope(qkv(norm(x)))))`.
fn forward_to_gate_up(
    s: &LayerActivations,
    x: Binding<'_>,
    scratch: &Scratch,
    context: &LayerContext<'_>,
) -> Result<(), GpuError> {
    let (gpu, c, heads, l) = (context.gpu, context.config, context.heads, context.layout);
    let (t, p) = (context.input.num_tokens, context.num_rows());
    let (d, f) = (c.hidden_size, c.intermediate_size);
    let (qkv_width, q_width) = (heads.qkv_width(), heads.q_width());
    let qkv = s.qkv.get()?.range(0..t * qkv_width);
    let o = s.o.get()?.range(0..t * q_width);
    let lse = s.lse.get()?.range(0..t * heads.num_heads);

    let input = if let Some(range) = &l.input_norm {
        let (norm, r) = (
            scratch.norm.get()?.range(0..t * d),
            s.r_input.get()?.range(0..t),
        );
        norms::rms_norm(gpu, norm, r, x, context.norm(range), c.rms_norm_eps)?;
        norm
    } else {
        x
    };
    context.linear(qkv, input, &l.qkv, [t, qkv_width, d], false)?;
    if let Some(bias) = &l.qkv_bias {
        norms::add_bias(gpu, qkv, context.weights.range(bias))?;
    }
    if let Some(norms) = context.qk_norms() {
        let width = heads.q_width() + heads.kv_width();
        let raw = s.qk_raw.get()?.range(0..t * width);
        let r = s.r_qk.get()?.range(0..t * norms.per_token());
        norms::qk_norm(gpu, qkv, raw, r, norms, qkv_width, c.rms_norm_eps)?;
    }
    if let Some(angles) = context.rope {
        let positions = context.input.positions.get()?.range(0..t);
        rope::rope(gpu, qkv, qkv_width, positions, angles, Direction::Forward)?;
    }
    if let Some((slots, layer)) = context.cache {
        slots.write(gpu, layer, qkv, context.input.slots.get()?, t, heads)?;
        let keys = slots.layer(layer);
        context.input.decoding.attend(gpu, qkv, keys, o, heads)?;
    } else {
        attention::forward(gpu, &context.input.plan, qkv, o, lse, heads)?;
    }

    let (mid, gate_up) = (
        s.mid.get()?.range(0..p * d),
        s.gate_up.get()?.range(0..p * 2 * f),
    );
    if context.is_last {
        let ids = context.input.outputs.get()?.range(0..p);
        embedding::gather_rows(gpu, mid, x, ids, d, 1.0)?;
    } else {
        gpu.copy(mid, x)?;
    }
    let o = output_rows(context, scratch, o, q_width)?;
    let saved = [&s.attention_out, &s.r_attention];
    add_product(
        context,
        scratch,
        mid,
        o,
        (&l.o, q_width),
        saved,
        l.attention_norm.as_ref(),
    )?;

    let input = if let Some(range) = &l.post_norm {
        let (norm, r) = (
            scratch.norm.get()?.range(0..p * d),
            s.r_post.get()?.range(0..p),
        );
        norms::rms_norm(gpu, norm, r, mid, context.norm(range), c.rms_norm_eps)?;
        norm
    } else {
        mid
    };
    context.linear(gate_up, input, &l.gate_up, [p, 2 * f, d], false)
}

/// The second part of a layer: `out = mid + down(gated(gate_up))`.
fn forward_down(
    out: Binding<'_>,
    s: &LayerActivations,
    scratch: &Scratch,
    context: &LayerContext<'_>,
) -> Result<(), GpuError> {
    let (gpu, c, l) = (context.gpu, context.config, context.layout);
    let (p, d, f) = (context.num_rows(), c.hidden_size, c.intermediate_size);
    let hidden = scratch.hidden.get()?.range(0..p * f);
    elementwise::gated(
        gpu,
        gate(c),
        hidden,
        s.gate_up.get()?.range(0..p * 2 * f),
        f,
    )?;
    gpu.copy(out, s.mid.get()?.range(0..p * d))?;
    let saved = [&s.ffn_out, &s.r_ffn];
    add_product(
        context,
        scratch,
        out,
        hidden,
        (&l.down, f),
        saved,
        l.ffn_norm.as_ref(),
    )
}

/// A matrix product that a layer adds to the residual stream: `stream += m norm(input weight^T)`, with the residual multiplier m, and
/// without the norm in most families. `saved` are the product before its norm and the r of the norm.
fn add_product(
    context: &LayerContext<'_>,
    scratch: &Scratch,
    stream: Binding<'_>,
    input: Binding<'_>,
    (weight, width): (&Range<usize>, usize),
    saved: [&Reused; 2],
    norm: Option<&Range<usize>>,
) -> Result<(), GpuError> {
    let (gpu, c, p) = (context.gpu, context.config, context.num_rows());
    let d = c.hidden_size;
    let shape = [p, d, width];
    let factor = c.switches.residual_multiplier;
    let product = scratch.norm.get()?.range(0..p * d);
    if let Some(range) = norm {
        let [out, r] = saved;
        let (out, r) = (out.get()?.range(0..p * d), r.get()?.range(0..p));
        context.linear(out, input, weight, shape, false)?;
        norms::rms_norm(gpu, product, r, out, context.norm(range), c.rms_norm_eps)?;
        elementwise::add_scaled(gpu, stream, factor, product)
    } else if factor == 1.0 {
        context.linear(stream, input, weight, shape, true)
    } else {
        context.linear(product, input, weight, shape, false)?;
        elementwise::add_scaled(gpu, stream, factor, product)
    }
}

/// The gradient of a product before its norm, in `branch`, from that of the stream; that of the stream itself where the two are equal.
fn branch_gradient<'a>(
    context: &LayerContext<'_>,
    gradients: GpuGradients<'_>,
    (branch, d_stream): (Binding<'a>, Binding<'a>),
    saved: [&Reused; 2],
    norm: Option<&Range<usize>>,
) -> Result<Binding<'a>, GpuError> {
    let (gpu, c, p) = (context.gpu, context.config, context.num_rows());
    let factor = c.switches.residual_multiplier;
    if let Some(range) = norm {
        let [out, r] = saved;
        let saved = SavedNorm {
            x: out.get()?.range(0..p * c.hidden_size),
            r: r.get()?.range(0..p),
            w: context.norm(range),
        };
        let d_norm = gradients.tensor(range);
        norms::rms_norm_backward(gpu, branch, false, d_norm, (factor, d_stream), saved)?;
    } else if factor == 1.0 {
        return Ok(d_stream);
    } else {
        elementwise::copy_scaled(gpu, branch, factor, d_stream)?;
    }
    Ok(branch)
}

/// Adds the gradient of a norm's input, or of a part without a norm, to that of the stream.
fn add_norm_gradient(
    context: &LayerContext<'_>,
    gradients: GpuGradients<'_>,
    d_stream: Binding<'_>,
    d_norm: Binding<'_>,
    (x, r): (Binding<'_>, Binding<'_>),
    norm: Option<&Range<usize>>,
) -> Result<(), GpuError> {
    let Some(range) = norm else {
        return elementwise::add_scaled(context.gpu, d_stream, 1.0, d_norm);
    };
    let w = context.norm(range);
    let saved = SavedNorm { x, r, w };
    let d_weight = gradients.tensor(range);
    norms::rms_norm_backward(context.gpu, d_stream, true, d_weight, (1.0, d_norm), saved)
}
