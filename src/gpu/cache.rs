//! Keys and values of past tokens on the device, in slots.
//!
//! G key and value heads of K channels. A slot holds the keys and values of one token in every layer.

use bytemuck::NoUninit;

use crate::gpu::{
    attention::{AttentionShape, at_least},
    buffer::{Binding, GpuBuffer},
    context::{Gpu, Kernel, grid},
    error::GpuError,
};

/// Keys and values of every layer.
pub struct KvSlots {
    layers: Vec<[GpuBuffer; 2]>, // keys, values: (slots, G K)
    stride: usize,               // G K
    slots: usize,                // for which there is memory
}

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct WriteParams {
    tokens: u32,
    qkv_stride: u32,
    k_offset: u32,
    stride: u32,
}

impl KvSlots {
    /// No slots, for a model with so many layers and these heads.
    ///
    /// # Errors
    /// Those of [`Gpu::zeros`].
    pub fn new(gpu: &Gpu, layers: usize, shape: AttentionShape) -> Result<Self, GpuError> {
        let layers = (0..layers).map(|_| Ok([gpu.zeros(0)?, gpu.zeros(0)?]));
        Ok(Self {
            layers: layers.collect::<Result<_, GpuError>>()?,
            stride: shape.kv_width(),
            slots: 0,
        })
    }

    /// Makes room for so many slots, by at least a half more than before, up to what can be bound.
    ///
    /// # Errors
    /// The device has too little memory, or a layer's keys exceed what can be bound: [`GpuError::LimitTooSmall`].
    pub fn reserve(&mut self, gpu: &Gpu, slots: usize) -> Result<(), GpuError> {
        if slots <= self.slots {
            return Ok(());
        }
        let most = gpu.max_binding() / self.stride;
        if slots > most {
            return Err(GpuError::LimitTooSmall {
                what: "the KV cache (tokens)".to_owned(),
                needed: slots as u64,
                limit: most as u64,
            });
        }
        let room = slots.max(self.slots + self.slots / 2).min(most);
        let kept = self.slots * self.stride;
        for buffer in self.layers.iter_mut().flatten() {
            let larger = gpu.zeros(room * self.stride)?;
            gpu.copy(larger.range(0..kept), buffer.range(0..kept))?;
            *buffer = larger;
        }
        self.slots = room;
        Ok(())
    }

    /// Keys and values of a layer (slots, G K).
    pub fn layer(&self, layer: usize) -> [Binding<'_>; 2] {
        let [keys, values] = &self.layers[layer];
        [keys.all(), values.all()]
    }

    /// Writes the keys and values of new tokens, which are in `qkv` (tokens, (H + 2G) K), to their slots in `layer`. `slots` has the
    /// slot of each token, as u32.
    ///
    /// # Errors
    /// [`GpuError::Shape`] if a range is too short or the heads are others; those of [`Gpu::dispatch`].
    pub fn write(
        &self,
        gpu: &Gpu,
        layer: usize,
        qkv: Binding<'_>,
        slots: &GpuBuffer,
        tokens: usize,
        shape: AttentionShape,
    ) -> Result<(), GpuError> {
        if shape.kv_width() != self.stride {
            return Err(GpuError::Shape {
                what: "the KV cache: channels of a slot",
                expected: self.stride,
                got: shape.kv_width(),
            });
        }
        let qkv = at_least("the KV cache: qkv", qkv, tokens * shape.qkv_width())?;
        let slots = at_least("the KV cache: slots", slots.all(), tokens)?;
        let [keys, values] = self.layer(layer);
        let vectors = (tokens * self.stride / 4).div_ceil(256);
        if vectors == 0 {
            return Ok(());
        }
        gpu.dispatch(
            &Kernel {
                label: "KV cache",
                source: include_str!("cache.wgsl"),
                entry: "write",
                constants: &[],
            },
            &[qkv, slots, keys, values],
            &WriteParams {
                tokens: tokens as u32,
                qkv_stride: (shape.qkv_width() / 4) as u32,
                k_offset: (shape.q_width() / 4) as u32,
                stride: (self.stride / 4) as u32,
            },
            grid(vectors),
        )
    }
}
