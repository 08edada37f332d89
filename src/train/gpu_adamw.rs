//! [`super::adamw`] on a GPU: the norm of the gradients, its clipping and the update stay on the device.

use super::adamw::{AdamW, AdamWSettings};
use crate::{
    engine::{GpuArray, GpuGradients, Gradients, trained_ranges},
    gpu::{
        Gpu, GpuBuffer, GpuError,
        optimizer::{Settings, StepConstants, WeightRange, adamw},
        reduce_sums::{ALL_FINITE, ClipState, clip_scale, sum_of_squares},
    },
    model::Layout,
};

/// `AdamW` of the trained tensors, with its moments on the device.
pub struct GpuAdamW {
    settings: Settings,
    /// Steps done.
    steps: u64,
    exp_avg: GpuArray,
    exp_avg_sq: GpuArray,
    ema: Option<GpuArray>,
    clip: ClipState,
    flags: GpuBuffer, // per trained range: the first element that is not finite; room for as many as tensors
}

/// The norm of the gradients of a step, and whether all were finite; if not, the step changed nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuGradNorm {
    /// The L2 norm before clipping.
    pub norm: f32,
    /// Whether every gradient is finite.
    pub is_finite: bool,
}

impl GpuAdamW {
    /// Zero moments of the tensors that have gradients. With `ema_decay`, the moving average starts at `weights`.
    ///
    /// # Errors
    /// The device has too little memory.
    pub fn new(
        gpu: &Gpu,
        layout: &Layout,
        weights: &GpuArray,
        gradients: GpuGradients<'_>,
        settings: AdamWSettings,
        ema_decay: Option<f64>,
    ) -> Result<Self, GpuError> {
        let places = trained_ranges(gradients.places, layout);
        let zeros = || GpuArray::zeros(gpu, places.iter().map(|(_, moments, _)| moments.clone()));
        let ema = ema_decay.map(|_| zeros()).transpose()?;
        if let Some(ema) = &ema {
            for (of_weights, moments, _) in &places {
                gpu.copy(ema.range(moments), weights.range(of_weights))?;
            }
        }
        Ok(Self {
            settings: Settings {
                betas: settings.betas,
                eps: settings.eps,
                weight_decay: settings.weight_decay,
                ema_decay: ema_decay.unwrap_or(0.0),
            },
            steps: 0,
            exp_avg: zeros()?,
            exp_avg_sq: zeros()?,
            ema,
            clip: ClipState::new(gpu)?,
            flags: gpu.zeros(layout.tensors.len().max(places.len()))?,
        })
    }

    /// One step on all trained weights; gradients are scaled to a norm of `max_grad_norm` at most, where it is above 0. Nothing is read
    /// back: [`GpuAdamW::grad_norm`] does.
    ///
    /// # Errors
    /// The device was lost.
    pub fn step(
        &mut self,
        gpu: &Gpu,
        layout: &Layout,
        weights: &GpuArray,
        gradients: GpuGradients<'_>,
        learning_rate: f64,
        max_grad_norm: f64,
    ) -> Result<(), GpuError> {
        self.steps += 1;
        let places = trained_ranges(gradients.places, layout);
        let ranges: Vec<_> = places
            .iter()
            .map(|(_, _, data)| gradients.data.range(data))
            .collect();
        let flags = self.flags.range(0..ranges.len());
        sum_of_squares(gpu, &ranges, self.clip.squared_norm(), flags)?;
        clip_scale(gpu, &self.clip, flags, max_grad_norm as f32)?;
        let constants = StepConstants::new(self.settings, self.steps, learning_rate);
        for ((of_weights, moments, _), gradient) in places.iter().zip(ranges) {
            let range = WeightRange {
                weights: weights.range(of_weights),
                gradient,
                exp_avg: self.exp_avg.range(moments),
                exp_avg_sq: self.exp_avg_sq.range(moments),
                ema: self.ema.as_ref().map(|ema| ema.range(moments)),
            };
            adamw(gpu, range, &constants, &self.clip)?;
        }
        gpu.submit()
    }

    /// The norm of the last step's gradients. Waits for the device. A step that changed nothing does not count.
    ///
    /// # Errors
    /// The device was lost.
    pub fn grad_norm(&mut self, gpu: &Gpu) -> Result<GpuGradNorm, GpuError> {
        let (norm, _, is_finite) = self.clip.read(gpu)?;
        self.steps -= u64::from(!is_finite);
        Ok(GpuGradNorm { norm, is_finite })
    }

    /// The first weight whose gradient was not finite in the last step, as its index in the layout.
    ///
    /// # Errors
    /// The device was lost.
    pub fn first_non_finite(
        &self,
        gpu: &Gpu,
        layout: &Layout,
        places: &Gradients,
    ) -> Result<Option<usize>, GpuError> {
        let ranges = trained_ranges(places, layout);
        let flags = gpu.download_u32(&self.flags, 0..ranges.len())?;
        let found = ranges
            .iter()
            .zip(flags)
            .find(|(_, flag)| *flag != ALL_FINITE);
        Ok(found.map(|((weights, ..), flag)| weights.start + flag as usize))
    }

    /// Takes over the state of `host`.
    ///
    /// # Errors
    /// The device was lost.
    pub fn upload(&mut self, gpu: &Gpu, host: &AdamW) -> Result<(), GpuError> {
        self.steps = host.steps;
        self.exp_avg.upload(gpu, &host.exp_avg)?;
        self.exp_avg_sq.upload(gpu, &host.exp_avg_sq)?;
        match (&self.ema, &host.ema) {
            (Some(own), Some(average)) => own.upload(gpu, &average.weights),
            _ => Ok(()),
        }
    }

    /// Hands the state on to `host`.
    ///
    /// # Errors
    /// The device was lost.
    pub fn download(&self, gpu: &Gpu, host: &mut AdamW) -> Result<(), GpuError> {
        host.steps = self.steps;
        self.exp_avg.download(gpu, &mut host.exp_avg)?;
        self.exp_avg_sq.download(gpu, &mut host.exp_avg_sq)?;
        match (&self.ema, &mut host.ema) {
            (Some(own), Some(average)) => own.download(gpu, &mut average.weights),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        distributed::Comm,
        engine::{Batch, Engine, GpuEngine, Gradients, Target, gpu_model_parts},
        gpu::testing::gpu,
        model::{Model, Params},
        train::adamw::{AdamW, Ema, clip_scale, grad_norm},
    };

    /// Two rows, and their targets.
    fn rows(step: u32) -> (Batch, Vec<Target>) {
        let mut batch = Batch::new();
        let mut targets = Vec::new();
        for row in 0..3 {
            let tokens: Vec<u32> = (0..6 + row)
                .map(|i| (i * 7 + step * 3 + row) % 50)
                .collect();
            let own = batch.push(tokens);
            targets.extend((own.end - 3..own.end).map(|position| Target {
                position,
                token: (position as u32 + step) % 50,
                ce_weight: 1.0 / 9.0,
                distill_weight: 0.0,
            }));
        }
        (batch, targets)
    }

    /// 30 steps of a tiny model. Both engines are f32 and add in another order; AdamW divides by the root of the second moment, so that
    /// differences in small gradients grow. Losses stay within 1e-4 of each other.
    #[test]
    fn a_run_follows_the_one_on_the_cpu() {
        const LEARNING_RATE: f64 = 1e-3;
        const MAX_NORM: f64 = 1.0;

        let gpu = gpu();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gemma3");
        let mut model = Model::load(path).expect("the golden model");
        let layout = model.params.layout.clone();
        let all = vec![true; layout.tensors.len()];
        let mut gradients = Gradients::new(&model.params, &all);
        let settings = AdamWSettings {
            weight_decay: 0.01,
            ..AdamWSettings::default()
        };

        let mut on_gpu = GpuEngine::new(&gpu, &model.config, &model.params).expect("it fits");
        let places = Gradients::new(&model.params, &all);
        let data = GpuArray::zeros(&gpu, gpu_model_parts(&layout)).expect("it fits");
        let of_gpu = GpuGradients {
            places: &places,
            data: &data,
        };
        let average = Some(0.9);
        let mut gpu_adamw =
            GpuAdamW::new(&gpu, &layout, on_gpu.weights(), of_gpu, settings, average)
                .expect("it fits");
        let mut cpu_adamw = AdamW::new(&gradients, settings);
        cpu_adamw.ema = Some(Ema::new(0.9, &model.params, &gradients));
        let mut engine = Engine::new(&model.config);

        for step in 0..30 {
            let (batch, targets) = rows(step);
            gradients.zero();
            let loss = engine
                .loss_and_gradients(&model.params, &batch, &targets, None, &mut gradients)
                .ce;
            let norm = grad_norm(&gradients, Comm::single());
            cpu_adamw.step(
                &mut model.params,
                &gradients,
                LEARNING_RATE,
                clip_scale(norm, MAX_NORM),
            );

            data.clear(&gpu).expect("it runs");
            on_gpu
                .loss_and_gradients(&batch, &targets, None, of_gpu)
                .expect("it runs");
            gpu_adamw
                .step(
                    &gpu,
                    &layout,
                    on_gpu.weights(),
                    of_gpu,
                    LEARNING_RATE,
                    MAX_NORM,
                )
                .expect("it runs");
            let own = on_gpu.take_loss().expect("it runs").ce;
            let off = (own - loss).abs() / loss;
            assert!(off < 1e-4, "step {step}: {own} of {loss}");
            let own = gpu_adamw.grad_norm(&gpu).expect("it runs");
            assert!(own.is_finite);
            let off = (f64::from(own.norm) - norm).abs() / norm;
            assert!(off < 1e-3, "step {step}: norm {} of {norm}", own.norm);
        }
    }

    /// Each layer has some 25 operations forward and as many backward; the optimizer has three for each part of the model.
    #[test]
    fn a_step_of_thirty_layers_has_fewer_than_two_thousand_dispatches() {
        let gpu = gpu();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mistral");
        let mut config = Model::load(path).expect("the golden model").config;
        config.num_hidden_layers = 30;
        let params = Params::zeros(Arc::new(Layout::new(&config)));
        let layout = params.layout.clone();
        let places = Gradients::new(&params, &vec![true; layout.tensors.len()]);
        let data = GpuArray::zeros(&gpu, gpu_model_parts(&layout)).expect("it fits");
        let gradients = GpuGradients {
            places: &places,
            data: &data,
        };
        let mut engine = GpuEngine::new(&gpu, &config, &params).expect("it fits");
        let settings = AdamWSettings::default();
        let mut adamw = GpuAdamW::new(&gpu, &layout, engine.weights(), gradients, settings, None)
            .expect("it fits");
        let (batch, targets) = rows(0);
        let (dispatches, submissions) = (gpu.dispatches(), gpu.submissions());
        data.clear(&gpu).expect("it runs");
        engine
            .loss_and_gradients(&batch, &targets, None, gradients)
            .expect("it runs");
        adamw
            .step(&gpu, &layout, engine.weights(), gradients, 1e-3, 1.0)
            .expect("it runs");
        let counted = gpu.dispatches() - dispatches;
        assert!((500..2000).contains(&counted), "{counted} dispatches");
        // One for the micro-batch and one for the optimizer, and what memory that is allocated first takes.
        let counted = gpu.submissions() - submissions;
        assert!(counted < 10, "{counted} submissions");
    }
}
