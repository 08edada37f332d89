//! The engine on a GPU: the passes of [`super::Engine`] over weights that stay on the device.

use std::sync::Arc;

use super::{
    batch::Batch,
    decoder::ActivationPolicy,
    gpu_array::GpuArray,
    gpu_decoder::{GpuDecoder, GpuGradients},
    gpu_teacher::TeacherMemory,
    loss::{Loss, SoftTargets, Target},
    training_policy,
};
use crate::{
    gpu::{
        Binding, Gpu, GpuBuffer, GpuError,
        attention::Reused,
        elementwise,
        head::{self, HeadGradients, Targets},
        lm_head::{HeadScratch, LmHead},
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
        self.training_policy = training_policy(enabled);
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
        let normed = self.normed(batch, positions, ActivationPolicy::None)?;
        let (buffer, len) = (normed.buffer.clone(), normed.len);
        self.gpu.download(&buffer, 0..len)
    }

    /// The forward pass and the final norm.
    fn normed(
        &mut self,
        batch: &Batch,
        positions: &[usize],
        policy: ActivationPolicy,
    ) -> Result<Binding<'_>, GpuError> {
        let (gpu, c) = (&self.gpu, &self.config);
        let (p, d) = (positions.len(), c.hidden_size);
        let rows = self.decoder.forward(
            &self.weights,
            &self.layout,
            batch,
            c.num_hidden_layers,
            positions,
            policy,
        )?;
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
        self.normed(batch, &positions, self.training_policy)?;
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
        let shape = [self.config.vocab_size, d];
        let teacher = teacher.map(|soft| self.teacher.upload(&gpu, soft, shape));
        let teacher = teacher.transpose()?;
        let d_normed = self.d_normed.get()?.range(0..p * d);
        let slot = self.passes;
        let done = head::loss_and_gradients(
            &gpu,
            LmHead {
                weight: self.weights.range(&self.layout.head),
                vocab_size: shape[0],
                hidden_size: d,
            },
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
