//! The engine's passes on a GPU, where one was asked for.
//!
//! The weights are copied to the device when they have changed since the last pass. When the device fails, later passes run on the CPU,
//! and [`OnGpu::take_error`] says why: only keys and values that were on the device are lost.

use super::{batch::Batch, cache::KvCache, gpu_engine::GpuEngine, new_tokens::NewTokens};
use crate::{
    Error, Result,
    gpu::{Gpu, GpuError, attention::AttentionRow},
    model::{BufferVersion, ModelConfig, Params},
};

/// A GPU, and the model whose passes run there.
pub struct OnGpu {
    gpu: Gpu,
    config: ModelConfig,
    gradient_checkpointing: bool,
    engine: Option<GpuEngine>,
    /// The weights that the device has.
    weights: Option<BufferVersion>,
    failure: Option<GpuError>,
    has_failed: bool,
}

impl OnGpu {
    /// The GPU with this number.
    ///
    /// # Errors
    /// [`Error::Input`] if there is none, [`Error::Failed`] if it cannot be used.
    pub(super) fn open(index: u32, config: &ModelConfig) -> Result<Self> {
        let gpu = Gpu::shared(index as usize)?;
        if !config.head_dim.is_multiple_of(4) {
            return Err(Error::input_hint(
                format!(
                    "the heads of this model have {} channels: a GPU needs a multiple of 4",
                    config.head_dim
                ),
                "use `--device cpu`",
            ));
        }
        Ok(Self {
            gpu,
            config: config.clone(),
            gradient_checkpointing: false,
            engine: None,
            weights: None,
            failure: None,
            has_failed: false,
        })
    }

    pub(super) fn set_gradient_checkpointing(&mut self, enabled: bool) {
        self.gradient_checkpointing = enabled;
        self.engine = None;
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The engine with these weights on the device.
    ///
    /// # Errors
    /// The device has too little memory, or was lost.
    pub fn engine(&mut self, params: &Params) -> Result<&mut GpuEngine, GpuError> {
        if params.frozen.is_some() || params.low_rank.is_some() {
            return Err(GpuError::NotInMemory);
        }
        let version = params.data.version();
        let engine = match &mut self.engine {
            Some(engine) => {
                if self.weights != Some(version) {
                    engine.upload(&params.data)?;
                }
                engine
            }
            none => {
                let engine = GpuEngine::new(&self.gpu, &self.config, params)?;
                none.insert(engine.with_gradient_checkpointing(self.gradient_checkpointing))
            }
        };
        self.weights = Some(version);
        Ok(engine)
    }

    /// The engine with the weights that the device has, which a training has moved.
    pub fn engine_as_it_is(&mut self) -> Option<&mut GpuEngine> {
        self.weights = None;
        self.engine.as_mut()
    }

    /// Says that the device has the weights of `params`, which were copied from there.
    pub fn set_current(&mut self, params: &Params) {
        self.weights = Some(params.data.version());
    }

    /// Why the device failed, the first time that it is asked for.
    pub(super) fn take_error(&mut self) -> Option<Error> {
        self.failure.take().map(Error::from)
    }

    fn run<R>(
        &mut self,
        params: &Params,
        pass: impl FnOnce(&mut GpuEngine) -> Result<R, GpuError>,
    ) -> Option<R> {
        if self.has_failed {
            return None;
        }
        let done = self.engine(params).and_then(pass);
        done.map_err(|error| {
            self.has_failed = true;
            self.failure = Some(error);
        })
        .ok()
    }

    pub(super) fn hidden(
        &mut self,
        params: &Params,
        batch: &Batch,
        positions: &[usize],
    ) -> Option<Vec<f32>> {
        self.run(params, |engine| engine.hidden(batch, positions))
    }

    pub(super) fn residual_after(
        &mut self,
        params: &Params,
        batch: &Batch,
        layers: usize,
        positions: &[usize],
    ) -> Option<Vec<f32>> {
        self.run(params, |engine| {
            engine.residual_after(batch, layers, positions)
        })
    }

    pub(super) fn extend(
        &mut self,
        params: &Params,
        cache: &mut KvCache,
        new: NewTokens<'_>,
    ) -> Option<Vec<f32>> {
        let NewTokens {
            tokens,
            positions,
            slots,
            rows,
            outputs,
        } = new;
        let slots: Vec<u32> = slots.iter().map(|slot| *slot as u32).collect();
        let rows = rows.into_iter().map(|(segment, tokens)| AttentionRow {
            tokens,
            keys: cache.keys(segment),
        });
        let rows: Vec<AttentionRow> = rows.collect();
        let num_slots = cache.slots();
        let device = &mut cache.device;
        self.run(params, |engine| {
            let store = match device {
                Some(store) => store,
                none => none.insert(engine.new_cache()?),
            };
            engine.extend(
                store,
                num_slots,
                (tokens, positions),
                &slots,
                &rows,
                outputs,
            )
        })
    }

    pub(super) fn logits(
        &mut self,
        params: &Params,
        hidden: &[f32],
        f: impl FnMut(usize, &mut [f32]),
    ) -> Option<()> {
        self.run(params, |engine| engine.logits(hidden, f))
    }

    pub(super) fn kl_divergences(
        &mut self,
        params: &Params,
        hidden: [&[f32]; 2],
        reference_head: Option<&[f32]>,
    ) -> Option<Vec<f64>> {
        self.run(params, |engine| {
            engine.kl_divergences(hidden, reference_head)
        })
    }
}
