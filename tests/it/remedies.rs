//! Every remedy compared to `PyTorch` (`tests/golden/remedies.py`): ten steps on the examples and the model of `golden/qwen3`.

use unforget::{
    config::{
        EwcConfig, MethodConfig, MethodKind, ReplayConfig, ReplayTarget, TeacherMode, VocabSubset,
    },
    distributed::Comm,
    engine::{Engine, Gradients, Target, TrainingModel},
    progress::Progress,
    prompt::{Example, PackedExamples},
    remedy::{
        snapshot::{DistillTeacher, RunExamples, Snapshot},
        teacher::Teacher,
        weight_penalty::fisher,
    },
    run::RunDir,
    train::{
        adamw::{self, AdamW, AdamWSettings},
        objective::{AuxBatch, AuxTarget, Objective, StepBatch},
    },
};

use crate::golden::{
    FIRST_STEP, GRADIENT, Golden, LATER_STEPS, WEIGHTS, WEIGHTS_MEAN, deviation, differences,
    largest, numbers,
};

/// Trains ten steps with `method` on all examples and compares with the golden run `name`; `stored` fills the arrays of the snapshot
/// (name, values).
fn check(name: &str, method: &MethodConfig, stored: impl Fn(&Golden, &str, &mut [f32])) {
    check_filled(name, method, arrays(stored));
}

/// The same, with a snapshot filled by `fill` from all examples.
fn check_filled(
    name: &str,
    method: &MethodConfig,
    fill: impl Fn(&Golden, &[Example], &mut Snapshot),
) {
    let batch: Vec<usize> = (0..Golden::load("qwen3").rows().len()).collect();
    check_rows((&Golden::remedies(), name), method, (&batch, &[]), fill);
}

/// Fills the arrays of a snapshot by name.
fn arrays(
    stored: impl Fn(&Golden, &str, &mut [f32]),
) -> impl Fn(&Golden, &[Example], &mut Snapshot) {
    move |golden, _, snapshot| {
        for (array, values) in snapshot.arrays_mut() {
            stored(golden, &array, values);
        }
    }
}

/// The same, of a run in the file `remedies`, on the examples with indices `batch` and the auxiliary examples `aux`.
fn check_rows(
    (remedies, name): (&Golden, &str),
    method: &MethodConfig,
    (batch, aux): (&[usize], &[AuxBatch<'_>]),
    fill: impl Fn(&Golden, &[Example], &mut Snapshot),
) {
    let golden = Golden::load("qwen3");
    let mut rows: Vec<Example> = golden.rows();
    if remedies.record["weights"].is_array() {
        for (row, weight) in rows.iter_mut().zip(numbers(&remedies.record["weights"])) {
            row.weight = weight.try_into().expect("a good weight");
        }
    }
    let mut params = golden.model.params.clone();
    let layout = params.layout.clone();
    let mut gradients = Gradients::new(&params, &vec![true; layout.tensors.len()]);
    // Every example has a teacher.
    let run_rows = RunExamples {
        all: &rows,
        known: rows.len(),
        learned: 0,
    };
    let mut snapshot = Snapshot::empty(method, 0, &params, run_rows, &gradients, |_| 0);
    fill(&golden, &rows, &mut snapshot);
    let mut objective = Objective::default();
    objective.snapshot = Some(snapshot);
    let settings = AdamWSettings {
        weight_decay: golden.number("weight_decay"),
        ..AdamWSettings::default()
    };
    let mut optimiser = AdamW::new(&gradients, settings);
    let mut engine = Engine::new(&golden.model.config);

    let expected = &remedies.record[name];
    let expected_steps = numbers(&expected["ce"])
        .into_iter()
        .zip(numbers(&expected["term"]))
        .zip(numbers(&expected["grad_norm"]));
    for (i, ((ce, term), norm)) in expected_steps.enumerate() {
        gradients.zero();
        let step = StepBatch {
            step: i + 1,
            examples: &rows,
            indices: batch,
            aux,
            strength: 1.0,
            rows_per_micro_batch: 4,
            tokens_per_micro_batch: 24,
        };
        let loss = objective.loss_and_gradients(&mut engine, &params, step, &mut gradients);
        if i == 0 {
            let mut compared = 0;
            for (tensor, range) in &gradients.tensors {
                let tensor = &layout.tensors[*tensor].name;
                let Some(theirs) = remedies.find(&format!("{name}.gradient.{tensor}")) else {
                    continue;
                };
                compared += 1;
                let apart = deviation(&gradients.data[range.clone()], &theirs);
                assert!(apart < GRADIENT, "{name}: gradient of {tensor}: {apart:e}");
            }
            assert!(compared >= 2, "{name}: gradients are stored");
        }
        let own_norm = adamw::grad_norm(&gradients, Comm::single());
        let tolerance = if i == 0 { FIRST_STEP } else { LATER_STEPS };
        for (what, ours, theirs) in [
            ("cross-entropy", loss.ce, ce),
            ("term", loss.distill + loss.penalty, term),
            ("gradient norm", own_norm, norm),
        ] {
            assert!(
                (ours - theirs).abs() <= tolerance * theirs,
                "{name} step {i}: {what} {ours} is not {theirs}"
            );
        }
        let scale = adamw::clip_scale(own_norm, golden.number("clip"));
        optimiser.step(&mut params, &gradients, golden.number("lr"), scale);
    }

    let mut all = Vec::new();
    for tensor in &layout.tensors {
        let Some(after) = remedies.find(&format!("{name}.after.{}", tensor.name)) else {
            continue;
        };
        let apart = differences(&params.data[tensor.range.clone()], &after);
        assert!(largest(&apart) < WEIGHTS, "{name}: {}", tensor.name);
        all.extend(apart);
    }
    // Later golden runs store norms only.
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    assert!(mean < WEIGHTS_MEAN, "{name}: {mean:e}");
}

/// The golden tensors with this prefix, in the order of the layout.
fn tensors_with_prefix(golden: &Golden, prefix: &str) -> Vec<f32> {
    let remedies = Golden::remedies();
    let tensors = golden.model.params.layout.tensors.iter();
    tensors
        .flat_map(|tensor| remedies.tensor(&format!("{prefix}.{}", tensor.name)))
        .collect()
}

fn topk_self_distillation(teacher: TeacherMode) -> MethodConfig {
    let golden = Golden::load("qwen3");
    let count = Golden::remedies().record["top"]["count"].as_u64();
    MethodConfig {
        kind: MethodKind::SelfDistill,
        lambda: golden.number("lambda"),
        temperature: golden.number("temperature"),
        vocab_subset: VocabSubset::TopK(count.expect("a number") as usize),
        teacher,
        ..MethodConfig::default()
    }
}

#[test]
fn topk_distillation_equals_pytorchs() {
    let method = topk_self_distillation(TeacherMode::Hidden);
    check("top", &method, |golden, array, values| {
        values.copy_from_slice(&golden.tensor(array));
    });
}

#[test]
fn a_topk_teacher_is_exact() {
    let method = topk_self_distillation(TeacherMode::Topk);
    let VocabSubset::TopK(count) = method.vocab_subset else {
        unreachable!("the function above says so");
    };
    let place = tempfile::tempdir().expect("a temporary directory");
    let run = RunDir::create(&place.path().join("run"), Comm::single()).expect("writable");
    check_filled("top", &method, |golden, rows, snapshot| {
        let (head, hidden) = (
            golden.tensor("teacher.head"),
            golden.tensor("teacher.hidden"),
        );
        let d = golden.model.config.hidden_size;
        let tops = hidden.chunks_exact(d).flat_map(|hidden| {
            let dot = |row: &[f32]| -> f64 {
                let products = row
                    .iter()
                    .zip(hidden)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b));
                products.sum()
            };
            let mut logits: Vec<(usize, f64)> = head.chunks_exact(d).map(dot).enumerate().collect();
            logits.sort_by(|a, b| b.1.total_cmp(&a.1));
            logits.truncate(count);
            logits
        });
        let mut tops = tops.map(|(id, logit)| (id as u32, logit as f32));
        let Some(DistillTeacher {
            teacher: Teacher::TopK(teacher),
            ..
        }) = &mut snapshot.teacher
        else {
            panic!("no such teacher");
        };
        let quiet = Progress::quiet();
        let made = teacher.build(run.path(), rows, "PyTorch's", &quiet, |pass| {
            let targets = PackedExamples::new(pass).targets.len();
            Ok(tops.by_ref().take(targets * count).collect())
        });
        made.expect("writable");
        assert!(tops.next().is_none(), "every answer was asked for");
    });
}

#[test]
fn l2_toward_the_snapshot_equals_pytorchs() {
    let strength = Golden::remedies().record["l2"]["strength"].as_f64();
    let method = MethodConfig {
        kind: MethodKind::L2,
        lambda: strength.expect("a number"),
        ..MethodConfig::default()
    };
    check("l2", &method, |golden, array, values| {
        assert_eq!(array, "l2.center");
        values.copy_from_slice(&tensors_with_prefix(golden, "anchor"));
    });
}

#[test]
fn elastic_weight_consolidation_equals_pytorchs() {
    let strength = Golden::remedies().record["ewc"]["strength"].as_f64();
    let method = MethodConfig {
        kind: MethodKind::Sft,
        ewc: Some(EwcConfig {
            strength: strength.expect("a number"),
            ..EwcConfig::default()
        }),
        ..MethodConfig::default()
    };
    check("ewc", &method, |golden, array, values| {
        let group = match array {
            "ewc.center" => "anchor",
            "ewc.importance" => "fisher",
            other => panic!("{other} is no array of EWC"),
        };
        values.copy_from_slice(&tensors_with_prefix(golden, group));
    });
}

#[test]
fn distillation_without_the_target_token_equals_pytorchs() {
    let golden = Golden::load("qwen3");
    let decoupled = Golden::remedy("decoupled");
    let batch: Vec<usize> = (0..golden.rows().len()).collect();
    let method = MethodConfig {
        kind: MethodKind::SelfDistill,
        lambda: golden.number("lambda"),
        temperature: golden.number("temperature"),
        exclude_target: true,
        ..MethodConfig::default()
    };
    check_rows(
        (&decoupled, "decoupled"),
        &method,
        (&batch, &[]),
        arrays(|golden, array, values| {
            let own = decoupled.find(array);
            values.copy_from_slice(&own.unwrap_or_else(|| golden.tensor(array)));
        }),
    );
}

#[test]
fn replay_of_labels_and_of_the_teachers_answers_equals_pytorchs() {
    let golden = Golden::remedy("replay");
    let run = &golden.record["replay"];
    let rows = |name: &str| -> Vec<usize> {
        let numbers = numbers(&run[name]).into_iter();
        numbers.map(|row| row as usize).collect()
    };
    let (batch, labelled, teacher_rows) = (rows("batch"), rows("labelled"), rows("taught"));
    let method = MethodConfig {
        kind: MethodKind::Sft,
        replay: Some(ReplayConfig {
            target: ReplayTarget::Teacher,
            ..ReplayConfig::default()
        }),
        ..MethodConfig::default()
    };
    let strength = run["strength"].as_f64().expect("a number");
    let aux = [
        AuxBatch {
            indices: &labelled,
            target: AuxTarget::Label,
        },
        AuxBatch {
            indices: &teacher_rows,
            target: AuxTarget::Snapshot(strength),
        },
    ];
    check_rows(
        (&golden, "replay"),
        &method,
        (&batch, &aux),
        arrays(|golden, array, values| values.copy_from_slice(&golden.tensor(array))),
    );
}

#[test]
fn rows_of_different_weights_equal_pytorchs() {
    let golden = Golden::remedy("row_weights");
    let model = Golden::load("qwen3");
    let batch: Vec<usize> = (0..model.rows().len()).collect();
    let sft = MethodConfig {
        kind: MethodKind::Sft,
        ..MethodConfig::default()
    };
    let no_teacher = |_: &Golden, _: &[Example], _: &mut Snapshot| {};
    check_rows((&golden, "weighted"), &sft, (&batch, &[]), no_teacher);

    let replayed: Vec<usize> = numbers(&golden.record["replayed"])
        .into_iter()
        .map(|row| row as usize)
        .collect();
    let distilled = MethodConfig {
        kind: MethodKind::SelfDistill,
        lambda: model.number("lambda"),
        temperature: model.number("temperature"),
        ..MethodConfig::default()
    };
    let aux = [AuxBatch {
        indices: &replayed,
        target: AuxTarget::Label,
    }];
    check_rows(
        (&golden, "weighted_distill"),
        &distilled,
        (&batch, &aux),
        arrays(|golden, array, values| values.copy_from_slice(&golden.tensor(array))),
    );
}

#[test]
fn the_fisher_information_is_the_square_of_a_drawn_answers_gradient() {
    let golden = Golden::load("qwen3");
    let params = &golden.model.params;
    let mut engine = Engine::new(&golden.model.config);
    let mut gradients = Gradients::new(params, &vec![true; params.layout.tensors.len()]);
    // One example with one target: F is the squared gradient for the sampled token.
    let row = Example::new(vec![5, 17, 203, 44], vec![9]);
    let mut model = TrainingModel {
        engine: &mut engine,
        params,
        gradients: &mut gradients,
    };
    let examples = std::slice::from_ref(&row);
    let fisher = fisher(&mut model, examples, 7, &Progress::quiet());
    let packed = PackedExamples::new([&row]);
    let mut of_token = |token: u32| -> Vec<f32> {
        gradients.zero();
        let target = Target {
            token,
            ce_weight: 1.0,
            ..packed.targets[0]
        };
        engine.loss_and_gradients(params, &packed.batch, &[target], None, &mut gradients);
        gradients.data.iter().map(|g| g * g).collect()
    };
    let equal = (0..golden.model.config.vocab_size as u32)
        .filter(|token| of_token(*token)[..] == *fisher)
        .count();
    assert_eq!(equal, 1);
}
