//! [`crate::remedy::weight_penalty`] on a GPU.

use crate::{
    engine::{GpuArray, GpuGradients, trained_ranges},
    gpu::{
        Gpu, GpuBuffer, GpuError,
        reduce_sums::{PenaltyRange, weighted_distance},
    },
    model::{Buffer, BufferVersion, Layout},
    remedy::weight_penalty::WeightPenalty,
};

/// The centers and importances of a run's penalties on the device.
#[derive(Default)]
pub struct GpuPenalties {
    penalties: Vec<OnDevice>,
    sums: Option<GpuBuffer>, // of the squared distances, one per penalty
    factors: Vec<f64>,       // of these sums in the last step
}

/// A penalty whose arrays were uploaded.
struct OnDevice {
    versions: [BufferVersion; 2],
    center: GpuArray,
    importance: Option<GpuArray>,
}

/// Most penalties of a run: those of earlier runs, L2 and EWC.
const MAX_PENALTIES: usize = 64;

impl GpuPenalties {
    /// Adds the gradients of `penalties`, times `factor`, to `gradients`. [`GpuPenalties::take_value`] reads their value.
    ///
    /// # Errors
    /// The device has too little memory, or was lost; more than 64 penalties.
    pub fn add_gradients<'p>(
        &mut self,
        gpu: &Gpu,
        layout: &Layout,
        weights: &GpuArray,
        gradients: GpuGradients<'_>,
        penalties: impl Iterator<Item = &'p WeightPenalty>,
        factor: f64,
    ) -> Result<(), GpuError> {
        self.factors.clear();
        for (i, penalty) in penalties.enumerate() {
            if i == MAX_PENALTIES {
                return Err(GpuError::LimitTooSmall {
                    what: "weight penalties of a run".into(),
                    needed: i as u64 + 1,
                    limit: MAX_PENALTIES as u64,
                });
            }
            self.upload(gpu, layout, gradients, i, penalty)?;
            let sums = match &mut self.sums {
                Some(sums) => sums,
                none => none.insert(gpu.zeros(MAX_PENALTIES)?),
            };
            let OnDevice {
                center, importance, ..
            } = &self.penalties[i];
            let places = trained_ranges(gradients.places, layout).into_iter();
            let ranges = places.map(|(of_weights, trained, data)| PenaltyRange {
                gradient: gradients.data.range(&data),
                weights: weights.range(&of_weights),
                center: center.range(&trained),
                importance: importance.as_ref().map(|f| f.range(&trained)),
            });
            let ranges: Vec<PenaltyRange<'_>> = ranges.collect();
            let strength = factor * penalty.strength();
            weighted_distance(gpu, &ranges, strength as f32, sums.range(i..i + 1))?;
            self.factors.push(strength);
        }
        Ok(())
    }

    /// The value of the last step's penalties. Waits for the device.
    ///
    /// # Errors
    /// The device was lost.
    pub fn take_value(&mut self, gpu: &Gpu) -> Result<f64, GpuError> {
        let count = self.factors.len();
        let Some(sums) = self.sums.as_ref().filter(|_| count > 0) else {
            return Ok(0.0);
        };
        let sums = gpu.download(sums, 0..count)?.into_iter();
        let terms = sums.zip(self.factors.drain(..));
        Ok(terms.map(|(sum, factor)| factor * f64::from(sum)).sum())
    }

    /// Uploads the `i`th penalty, unless it is there.
    fn upload(
        &mut self,
        gpu: &Gpu,
        layout: &Layout,
        gradients: GpuGradients<'_>,
        i: usize,
        penalty: &WeightPenalty,
    ) -> Result<(), GpuError> {
        let importance = penalty.importance();
        let versions = [
            penalty.center().version(),
            importance.map(Buffer::version).unwrap_or_default(),
        ];
        if self
            .penalties
            .get(i)
            .is_some_and(|known| known.versions == versions)
        {
            return Ok(());
        }
        self.penalties.truncate(i);
        let places = trained_ranges(gradients.places, layout);
        let array = |data: &Buffer| -> Result<GpuArray, GpuError> {
            let ranges = places.iter().map(|(_, trained, _)| trained.clone());
            let array = GpuArray::zeros(gpu, ranges)?;
            array.upload(gpu, data)?;
            Ok(array)
        };
        self.penalties.push(OnDevice {
            versions,
            center: array(penalty.center())?,
            importance: importance.map(array).transpose()?,
        });
        Ok(())
    }
}
