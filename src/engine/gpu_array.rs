//! A flat array of f32 on a GPU, in parts that a device can bind: weights, gradients, moments.

use std::ops::Range;

use crate::{
    gpu::{Binding, Gpu, GpuBuffer, GpuError},
    model::{Layout, params::LayerLayout},
};

/// Elements of a flat array, each range of them in a buffer of its own.
pub struct GpuArray {
    parts: Vec<(Range<usize>, GpuBuffer)>, // ascending, disjoint
}

impl GpuArray {
    /// Zeros at the indices in `ranges`, which ascend and don't overlap.
    ///
    /// # Errors
    /// Those of [`Gpu::zeros`].
    pub fn zeros(
        gpu: &Gpu,
        ranges: impl IntoIterator<Item = Range<usize>>,
    ) -> Result<Self, GpuError> {
        let parts = ranges.into_iter().filter(|range| !range.is_empty());
        let parts = parts.map(|range| Ok((range.clone(), gpu.zeros(range.len())?)));
        Ok(Self {
            parts: parts.collect::<Result<_, GpuError>>()?,
        })
    }

    /// The weights of a model: embedding, layers, final norm, and an untied head are parts of their own.
    ///
    /// # Errors
    /// As [`GpuArray::zeros`].
    pub fn of_weights(gpu: &Gpu, layout: &Layout, data: &[f32]) -> Result<Self, GpuError> {
        let array = Self::zeros(gpu, model_parts(layout))?;
        array.upload(gpu, data)?;
        Ok(array)
    }

    /// Sets all elements from `data`, where they are at the same indices.
    ///
    /// # Errors
    /// Those of [`Gpu::write`].
    pub fn upload(&self, gpu: &Gpu, data: &[f32]) -> Result<(), GpuError> {
        let mut parts = self.parts.iter();
        parts.try_for_each(|(range, buffer)| gpu.write(buffer, 0, &data[range.clone()]))
    }

    /// Copies all elements to the same indices of `data`.
    ///
    /// # Errors
    /// Those of [`Gpu::download`].
    pub fn download(&self, gpu: &Gpu, data: &mut [f32]) -> Result<(), GpuError> {
        for (range, buffer) in &self.parts {
            data[range.clone()].copy_from_slice(&gpu.download(buffer, 0..range.len())?);
        }
        Ok(())
    }

    /// Sets all elements to zero.
    ///
    /// # Errors
    /// Those of [`Gpu::clear`].
    pub fn clear(&self, gpu: &Gpu) -> Result<(), GpuError> {
        let mut parts = self.parts.iter();
        parts.try_for_each(|(range, buffer)| gpu.clear(buffer.range(0..range.len())))
    }

    /// The elements in `range`, which is within a part.
    ///
    /// # Panics
    /// If it is not.
    pub fn range(&self, range: &Range<usize>) -> Binding<'_> {
        let after = self
            .parts
            .partition_point(|(part, _)| part.start <= range.start);
        let (part, buffer) = &self.parts[after.checked_sub(1).expect("a range of the array")];
        assert!(range.end <= part.end, "the range is within a part");
        buffer.range(range.start - part.start..range.end - part.start)
    }
}

/// The ranges of embedding, layers, final norm and an untied head.
pub fn model_parts(layout: &Layout) -> Vec<Range<usize>> {
    let mut parts = vec![layout.embed.clone()];
    parts.extend(layout.layers.iter().map(LayerLayout::range));
    parts.push(layout.norm.clone());
    if layout.head != layout.embed {
        parts.push(layout.head.clone());
    }
    parts
}
