//! Null-space projection compared with `PyTorch` (`tests/golden/project.py`): the subspaces of known inputs, and ten projected steps.

use unforget::{
    distributed::Comm,
    engine::{Engine, Gradients, TrainingModel},
    progress::Progress,
    remedy::null_space::NullSpaceProjection,
    train::{
        adamw::{self, AdamW, AdamWSettings},
        objective::{Objective, StepBatch},
    },
};

use crate::golden::{
    FIRST_STEP, Golden, LATER_STEPS, WEIGHTS, WEIGHTS_MEAN, differences, largest, numbers,
};

/// Tolerance of an entry of a projector. Rounding of the inputs is about 1e-6 of the largest eigenvalue of their second moments. It
/// rotates a subspace by that divided by the gap between the last eigenvalue inside and the first outside, at least 2.8e-3 of the
/// largest, as printed by `project.py`.
const PROJECTOR: f64 = 5e-4;

fn find(golden: &Golden, energy: f64) -> (NullSpaceProjection, Gradients) {
    let params = &golden.model.params;
    let mut gradients = Gradients::new(params, &vec![true; params.layout.tensors.len()]);
    let projection = NullSpaceProjection::fit(
        energy,
        &mut TrainingModel {
            engine: &mut Engine::new(&golden.model.config),
            params,
            gradients: &mut gradients,
        },
        &golden.rows().iter().collect::<Vec<_>>(),
        0,
        &Progress::quiet(),
    );
    (projection.expect("the model is finite"), gradients)
}

/// The `transformers` module whose inputs the array `basis.LAYER.INPUT` spans.
fn module(array: &str) -> Option<String> {
    let (layer, input) = array.strip_prefix("basis.")?.split_once('.')?;
    let module = match input {
        "qkv" => "self_attn.q_proj",
        "o" => "self_attn.o_proj",
        "gate_up" => "mlp.gate_proj",
        "down" => "mlp.down_proj",
        other => panic!("{other} is no input of a layer"),
    };
    Some(format!("model.layers.{layer}.{module}"))
}

#[test]
fn the_spaces_of_known_inputs_equal_pytorchs() {
    let (golden, expected) = (Golden::load("qwen3"), Golden::project());
    let (projection, _) = find(&golden, expected.number("energy"));
    let mut seen = 0;
    for (array, basis) in projection.arrays() {
        let Some(module) = module(&array) else {
            continue;
        };
        let projector = expected.tensor(&format!("projector.{module}"));
        let width = projector.len().isqrt();
        let rank = expected.record["ranks"][&module].as_u64().expect("a rank") as usize;
        assert_eq!(basis.len(), rank * width, "{module}");
        let ours: Vec<f32> = (0..width * width)
            .map(|at| {
                let products = basis.chunks_exact(width).map(|u| {
                    let (i, j) = (at / width, at % width);
                    f64::from(u[i]) * f64::from(u[j])
                });
                products.sum::<f64>() as f32
            })
            .collect();
        let apart = largest(&differences(&ours, &projector));
        assert!(apart < PROJECTOR, "{module}: {apart:e}");
        seen += 1;
    }
    assert_eq!(seen, 8);
}

#[test]
fn ten_projected_steps_equal_pytorchs() {
    let (golden, expected) = (Golden::load("qwen3"), Golden::project());
    let (projection, mut gradients) = find(&golden, expected.number("energy"));
    let mut params = golden.model.params.clone();
    let layout = params.layout.clone();
    gradients.set_trainable(&layout, |tensor| projection.covers(tensor));
    let settings = AdamWSettings {
        weight_decay: golden.number("weight_decay"),
        ..AdamWSettings::default()
    };
    let mut optimiser = AdamW::new(&gradients, settings);
    let mut engine = Engine::new(&golden.model.config);
    let objective = Objective::default();
    let rows = golden.rows();
    let batch: Vec<usize> = (0..rows.len()).collect();

    let steps = numbers(&expected.record["ce"])
        .into_iter()
        .zip(numbers(&expected.record["grad_norm"]));
    for (i, (ce, norm)) in steps.enumerate() {
        gradients.zero();
        let step = StepBatch {
            step: i + 1,
            examples: &rows,
            indices: &batch,
            aux: &[],
            strength: 1.0,
            rows_per_micro_batch: rows.len(),
            tokens_per_micro_batch: usize::MAX,
        };
        let loss = objective.loss_and_gradients(&mut engine, &params, step, &mut gradients);
        let own_norm = adamw::grad_norm(&gradients, Comm::single());
        let tolerance = if i == 0 { FIRST_STEP } else { LATER_STEPS };
        for (what, ours, theirs) in [("loss", loss.ce, ce), ("norm", own_norm, norm)] {
            assert!(
                (ours - theirs).abs() <= tolerance * theirs,
                "step {i}: {what} {ours} is not {theirs}"
            );
        }
        let scale = adamw::clip_scale(own_norm, golden.number("clip"));
        optimiser.step(&mut params, &gradients, golden.number("lr"), scale);
        projection.apply(&mut params);
    }

    let mut all = Vec::new();
    for (i, tensor) in layout.tensors.iter().enumerate() {
        let now = &params.data[tensor.range.clone()];
        if !projection.covers(i) {
            let before = &golden.model.params.data[tensor.range.clone()];
            assert_eq!(now, before, "{} is frozen", tensor.name);
            continue;
        }
        let apart = differences(now, &expected.tensor(&format!("after.{}", tensor.name)));
        let most = largest(&apart);
        assert!(most < WEIGHTS, "{}: {most:e}", tensor.name);
        all.extend(apart);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    assert!(mean < WEIGHTS_MEAN, "{mean:e}");
}

#[test]
fn projection_is_bitwise_identical_at_any_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool").install(|| {
            let mut golden = Golden::load("qwen3");
            let (projection, _) = find(&golden, 0.9);
            let params = &mut golden.model.params;
            params.data.iter_mut().for_each(|w| *w *= 1.125);
            projection.apply(params);
            let arrays = projection.arrays().into_iter();
            let arrays: Vec<Vec<f32>> = arrays.map(|(_, values)| values.to_vec()).collect();
            (arrays, params.data.to_vec())
        })
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == one, "{threads}");
    }
}
