//! The engine on a GPU: the passes of [`super::Engine`] over weights that stay on the device.

use std::sync::Arc;

use super::{
    batch::Batch,
    decoder::ActivationPolicy,
    gpu_array::GpuArray,
    gpu_decoder::{GpuDecoder, GpuGradients, GpuInput, attention_shape, packed_rows},
    gpu_teacher::TeacherMemory,
    loss::{Loss, SoftTargets, Target},
};
use crate::{
    gpu::{
        Binding, Gpu, GpuBuffer, GpuError,
        attention::{AttentionRow, Reused},
        cache::KvSlots,
        elementwise,
        head::{self, HeadGradients, Targets},
        lm_head::{HeadScratch, LmHead},
        logits,
        norms::{self, NormWeight, SavedNorm},
    },
    model::{Layout, ModelConfig, Params},
};

/// Passes whose loss is kept on the device until it is read.
const LOSS_SLOTS: usize = 256;

/// A model on a GPU, with the memory that its passes need.
pub struct GpuEngine {
    gpu: Gpu,
    config: ModelConfig,
    layout: Arc<Layout>,
    weights: GpuArray,
    decoder: GpuDecoder,
    training_policy: ActivationPolicy,
    head: HeadScratch,
    targets: Targets,
    teacher: TeacherMemory,
    normed: Reused,   // (P, D)
    r: Reused,        // (P)
    d_normed: Reused, // (P, D)
    d_rows: Reused,   // (P, D)
    loss: GpuBuffer,  // per pass: cross-entropy and divergence
    passes: usize,    // since the loss was read
    read: Loss,       // of passes before these
}

impl GpuEngine {
    /// An engine with the weights of a model.
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn new(gpu: &Gpu, config: &ModelConfig, params: &Params) -> Result<Self, GpuError> {
        Ok(Self {
            gpu: gpu.clone(),
            config: config.clone(),
            layout: params.layout.clone(),
            weights: GpuArray::of_weights(gpu, &params.layout, &params.data)?,
            decoder: GpuDecoder::new(gpu, config),
            training_policy: ActivationPolicy::All,
            head: HeadScratch::default(),
            targets: Targets::default(),
            teacher: TeacherMemory::default(),
            normed: Reused::default(),
            r: Reused::default(),
            d_normed: Reused::default(),
            d_rows: Reused::default(),
            loss: gpu.zeros(2 * LOSS_SLOTS)?,
            passes: 0,
            read: Loss::default(),
        })
    }

    /// Turns gradient checkpointing on or off.
    #[must_use]
    pub fn with_gradient_checkpointing(mut self, enabled: bool) -> Self {
        self.training_policy = ActivationPolicy::for_training(enabled);
        self
    }

    /// The weights.
    pub fn weights(&self) -> &GpuArray {
        &self.weights
    }

    /// Hidden states after the final norm at `positions` (distinct indices in `batch.tokens`): (P, D).
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn hidden(&mut self, batch: &Batch, positions: &[usize]) -> Result<Vec<f32>, GpuError> {
        let (at, rows) = (batch.positions(), packed_rows(batch));
        self.normed_rows(GpuInput {
            tokens: &batch.tokens,
            positions: &at,
            outputs: positions,
            rows: &rows,
            cache: None,
        })
    }

    /// The residual stream after `layers` blocks, before the final norm, at `positions`: (P, D).
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn residual_after(
        &mut self,
        batch: &Batch,
        layers: usize,
        positions: &[usize],
    ) -> Result<Vec<f32>, GpuError> {
        let (at, rows) = (batch.positions(), packed_rows(batch));
        let of = GpuInput {
            tokens: &batch.tokens,
            positions: &at,
            outputs: positions,
            rows: &rows,
            cache: None,
        };
        let out = self.decoder.forward(
            &self.weights,
            &self.layout,
            of,
            layers,
            ActivationPolicy::None,
        )?;
        let (buffer, range) = (out.buffer.clone(), out.start..out.end());
        self.gpu.download(&buffer, range)
    }

    /// A cache without slots.
    ///
    /// # Errors
    /// The device was lost.
    pub fn new_cache(&self) -> Result<KvSlots, GpuError> {
        let shape = attention_shape(&self.config);
        KvSlots::new(&self.gpu, self.config.num_hidden_layers, shape)
    }

    /// Writes tokens to the slots of a cache, `num_slots` of which are in use, and returns hidden states after the final norm at
    /// `outputs`: (P, D). The keys of `rows` are slots.
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn extend(
        &mut self,
        cache: &mut KvSlots,
        num_slots: usize,
        (tokens, positions): (&[u32], &[usize]),
        slots: &[u32],
        rows: &[AttentionRow],
        outputs: &[usize],
    ) -> Result<Vec<f32>, GpuError> {
        cache.reserve(&self.gpu, num_slots)?;
        self.normed_rows(GpuInput {
            tokens,
            positions,
            outputs,
            rows,
            cache: Some((cache, slots)),
        })
    }

    fn normed_rows(&mut self, of: GpuInput<'_>) -> Result<Vec<f32>, GpuError> {
        let normed = self.normed(of, ActivationPolicy::None)?;
        let (buffer, len) = (normed.buffer.clone(), normed.len);
        self.gpu.download(&buffer, 0..len)
    }

    /// Calls `f(first, logits)` for the logits (rows, V) of a few rows of `hidden` (P, D) at a time; `first` is the number of the first
    /// one.
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn logits(
        &mut self,
        hidden: &[f32],
        mut f: impl FnMut(usize, &mut [f32]),
    ) -> Result<(), GpuError> {
        let (v, d) = (self.config.vocab_size, self.config.hidden_size);
        let (gpu, positions) = (&self.gpu, hidden.len() / d);
        let on_device = self.normed.reserve(gpu, hidden.len())?;
        gpu.write(on_device, 0, hidden)?;
        let on_device = on_device.range(0..hidden.len());
        let head = lm_head(&self.weights, &self.layout, &self.config);
        let stride = head.stride();
        let rows = self.head.chunk_rows(gpu, stride, positions);
        for first in (0..positions).step_by(rows) {
            let n = rows.min(positions - first);
            let buffer = self.head.logits[0].reserve(gpu, rows * stride)?;
            head.fill(gpu, buffer, on_device, first, n)?;
            let mut logits = gpu.download(buffer, 0..n * stride)?;
            if stride > v {
                for row in 1..n {
                    logits.copy_within(row * stride..row * stride + v, row * v);
                }
            }
            f(first, &mut logits[..n * v]);
        }
        Ok(())
    }

    /// KL(reference || model) in nats at each of P positions, as [`super::Engine::kl_divergences`]. The reference's own head, where
    /// it has one, is uploaded once: it must not change.
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn kl_divergences(
        &mut self,
        [hidden, reference]: [&[f32]; 2],
        reference_head: Option<&[f32]>,
    ) -> Result<Vec<f64>, GpuError> {
        let (gpu, positions) = (&self.gpu, hidden.len() / self.config.hidden_size);
        let head = lm_head(&self.weights, &self.layout, &self.config);
        let of_model = self.normed.reserve(gpu, hidden.len())?;
        gpu.write(of_model, 0, hidden)?;
        let of_reference = self.d_rows.reserve(gpu, reference.len())?;
        gpu.write(of_reference, 0, reference)?;
        let other = match reference_head {
            Some(weight) => LmHead {
                weight: self.teacher.head(gpu, weight)?,
                ..head
            },
            None => head,
        };
        let out = self.r.reserve(gpu, positions)?;
        logits::kl_divergences(
            gpu,
            [head, other],
            [
                of_model.range(0..hidden.len()),
                of_reference.range(0..reference.len()),
            ],
            positions,
            out.all(),
            &mut self.head,
        )?;
        let divergences = gpu.download(out, 0..positions)?;
        Ok(divergences.into_iter().map(f64::from).collect())
    }

    /// Copies the weights of `data` to the device.
    ///
    /// # Errors
    /// The device was lost.
    pub fn upload(&mut self, data: &[f32]) -> Result<(), GpuError> {
        self.weights.upload(&self.gpu, data)
    }

    /// The forward pass and the final norm.
    fn normed(
        &mut self,
        of: GpuInput<'_>,
        policy: ActivationPolicy,
    ) -> Result<Binding<'_>, GpuError> {
        let (gpu, c) = (&self.gpu, &self.config);
        let (p, d) = (of.outputs.len(), c.hidden_size);
        let layers = c.num_hidden_layers;
        let rows = self
            .decoder
            .forward(&self.weights, &self.layout, of, layers, policy)?;
        let normed = self.normed.reserve(gpu, p * d)?.range(0..p * d);
        let r = self.r.reserve(gpu, p)?.range(0..p);
        let weight = NormWeight {
            weight: self.weights.range(&self.layout.norm),
            offset: c.switches.norm_offset,
        };
        norms::rms_norm(gpu, normed, r, rows, weight, c.rms_norm_eps)?;
        if c.switches.logits_scaling != 1.0 {
            elementwise::scale(gpu, normed, 1.0 / c.switches.logits_scaling)?;
        }
        Ok(normed)
    }

    /// The loss at `targets`, which [`GpuEngine::take_loss`] reads. Its gradient is added to `gradients`. A teacher's head is uploaded
    /// once: it must not change.
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn loss_and_gradients(
        &mut self,
        batch: &Batch,
        targets: &[Target],
        teacher: Option<SoftTargets<'_>>,
        gradients: GpuGradients<'_>,
    ) -> Result<(), GpuError> {
        if self.passes == LOSS_SLOTS {
            self.read = self.take_loss()?;
        }
        let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
        let (p, d) = (positions.len(), self.config.hidden_size);
        let of = GpuInput {
            tokens: &batch.tokens,
            positions: &batch.positions(),
            outputs: &positions,
            rows: &packed_rows(batch),
            cache: None,
        };
        self.normed(of, self.training_policy)?;
        let gpu = self.gpu.clone();
        let of_head = targets.iter().map(|t| head::Target {
            token: t.token,
            ce_weight: t.ce_weight,
            distill_weight: t.distill_weight,
        });
        self.targets.prepare(&gpu, &of_head.collect::<Vec<_>>())?;
        self.d_normed.reserve(&gpu, p * d)?;
        self.d_rows.reserve(&gpu, p * d)?;

        let mut scratch = std::mem::take(&mut self.head);
        let own_head = lm_head(&self.weights, &self.layout, &self.config);
        let teacher = teacher.map(|soft| self.teacher.upload(&gpu, soft, own_head));
        let teacher = teacher.transpose()?;
        let d_normed = self.d_normed.get()?.range(0..p * d);
        let slot = self.passes;
        let done = head::loss_and_gradients(
            &gpu,
            own_head,
            self.normed.get()?.range(0..p * d),
            &self.targets,
            teacher,
            HeadGradients {
                hidden: d_normed,
                weight: gradients.tensor(&self.layout.head),
            },
            self.loss.all(),
            slot,
            &mut scratch,
        );
        self.head = scratch;
        done?;
        self.passes += 1;
        let c = &self.config;
        let saved = SavedNorm {
            x: self.decoder.output()?,
            r: self.r.get()?.range(0..p),
            w: NormWeight {
                weight: self.weights.range(&self.layout.norm),
                offset: c.switches.norm_offset,
            },
        };
        let d_rows = self.d_rows.get()?.range(0..p * d);
        let factor = 1.0 / c.switches.logits_scaling;
        let d_norm = gradients.tensor(&self.layout.norm);
        norms::rms_norm_backward(&gpu, d_rows, false, d_norm, (factor, d_normed), saved)?;
        self.decoder
            .backward(&self.weights, &self.layout, gradients, batch, d_rows)?;
        self.gpu.submit()
    }

    /// The sum of the losses of the passes since the last call. Waits for the device.
    ///
    /// # Errors
    /// The device was lost.
    pub fn take_loss(&mut self) -> Result<Loss, GpuError> {
        let passes = std::mem::take(&mut self.passes);
        if passes == 0 {
            return Ok(std::mem::take(&mut self.read));
        }
        let terms = self.gpu.download(&self.loss, 0..2 * passes)?;
        let mut loss = std::mem::take(&mut self.read);
        for terms in terms.chunks_exact(2) {
            loss.ce += f64::from(terms[0]);
            loss.distill += f64::from(terms[1]);
        }
        Ok(loss)
    }
}

/// The LM head of a model whose weights are on the device.
fn lm_head<'a>(weights: &'a GpuArray, layout: &Layout, config: &ModelConfig) -> LmHead<'a> {
    LmHead {
        weight: weights.range(&layout.head),
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
    }
}
