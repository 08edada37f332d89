//! The head beside loops in f64, which follow the definitions.

use super::*;
use crate::gpu::{
    buffer::GpuBuffer,
    testing::{assert_close, gpu, gradient, random, wide},
};

/// P, V, D: no multiples of a vector, of a chunk or of a workgroup.
const SHAPES: [[usize; 3]; 3] = [[1, 3, 4], [5, 1021, 20], [37, 300, 36]];

/// How the two sides are compared, for the loops.
#[derive(Clone, Copy)]
struct Compared<'a> {
    tau: f64,
    exclude_target: bool,
    /// Tokens of each row; the whole vocabulary if there are none.
    tokens: Option<&'a [Vec<usize>]>,
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

/// Logits (P, V) of `hidden` (P, D).
fn logits_of(hidden: &[f64], weight: &[f64], d: usize) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    hidden
        .chunks(d)
        .map(|h| weight.chunks(d).map(|w| dot(h, w)).collect())
        .collect()
}

/// Cross-entropy and divergence of one row, without weights.
fn row_loss(s: &[f64], t: &[f64], y: usize, row: usize, compared: Compared<'_>) -> [f64; 2] {
    let ce = log_sum_exp(s) - s[y];
    let all: Vec<usize> = (0..s.len()).collect();
    let tokens = compared.tokens.map_or(&all, |tokens| &tokens[row]);
    let pick = |x: &[f64], tokens: &[usize]| -> Vec<f64> {
        tokens.iter().map(|id| x[*id] / compared.tau).collect()
    };
    let others: Vec<usize> = tokens
        .iter()
        .copied()
        .filter(|id| !(compared.exclude_target && *id == y))
        .collect();
    if others.is_empty() {
        return [ce, 0.0];
    }
    let (q, p) = (pick(s, &others), pick(t, &others));
    let (z_q, z_p) = (log_sum_exp(&q), log_sum_exp(&p));
    let mass = (z_p - log_sum_exp(&pick(t, tokens))).exp();
    let terms = q
        .iter()
        .zip(&p)
        .map(|(q, p)| (p - z_p).exp() * ((p - z_p) - (q - z_q)));
    [ce, mass * terms.sum::<f64>()]
}

/// Weighted sums of both terms.
fn loss(s: &[Vec<f64>], t: &[Vec<f64>], targets: &[Target], compared: Compared<'_>) -> [f64; 2] {
    let mut total = [0.0; 2];
    for (row, target) in targets.iter().enumerate() {
        let t = t.get(row).unwrap_or(&s[row]);
        let [ce, kl] = row_loss(&s[row], t, target.token as usize, row, compared);
        total[0] += f64::from(target.ce_weight) * ce;
        total[1] += f64::from(target.distill_weight) * kl;
    }
    total
}

/// The gradient of one row of logits, by its definition.
fn row_gradient(
    s: &[f64],
    t: &[f64],
    target: &Target,
    row: usize,
    compared: Compared<'_>,
) -> Vec<f64> {
    let y = target.token as usize;
    let z = log_sum_exp(s);
    let mut gradient: Vec<f64> = s
        .iter()
        .map(|s| f64::from(target.ce_weight) * (s - z).exp())
        .collect();
    gradient[y] -= f64::from(target.ce_weight);
    let all: Vec<usize> = (0..s.len()).collect();
    let tokens = compared.tokens.map_or(&all, |tokens| &tokens[row]);
    let soft = |x: &[f64], id: usize| x[id] / compared.tau;
    let others: Vec<usize> = tokens
        .iter()
        .copied()
        .filter(|id| !(compared.exclude_target && *id == y))
        .collect();
    let z_of = |x: &[f64], ids: &[usize]| {
        log_sum_exp(&ids.iter().map(|id| soft(x, *id)).collect::<Vec<_>>())
    };
    if !others.is_empty() {
        let mass = (z_of(t, &others) - z_of(t, tokens)).exp();
        let weight = f64::from(target.distill_weight) / compared.tau * mass;
        let (z_q, z_p) = (z_of(s, &others), z_of(t, &others));
        for id in &others {
            let q = (soft(s, *id) - z_q).exp();
            let p = (soft(t, *id) - z_p).exp();
            gradient[*id] += weight * (q - p);
        }
    }
    gradient
}

fn targets(p: usize, v: usize, weights: [f32; 2]) -> Vec<Target> {
    (0..p)
        .map(|i| Target {
            token: ((i * 7919 + 2) % v) as u32,
            // Different at each row.
            ce_weight: weights[0] * (1.0 + i as f32) / p as f32,
            distill_weight: weights[1] * (2.0 + i as f32) / p as f32,
        })
        .collect()
}

#[test]
fn the_loops_have_the_gradients_of_finite_differences() {
    let (s, t) = (wide(&random(9, 1)), wide(&random(9, 2)));
    let target = targets(1, 9, [0.25, 0.75])[0];
    let subset = [vec![2, 8, 0, 5]];
    for exclude_target in [false, true] {
        for tokens in [None, Some(&subset[..])] {
            let compared = Compared {
                tau: 0.5,
                exclude_target,
                tokens,
            };
            let f = |s: &[f64]| {
                let [ce, kl] = loss(&[s.to_vec()], std::slice::from_ref(&t), &[target], compared);
                ce + kl
            };
            let expected = gradient(f, &s);
            let got = row_gradient(&s, &t, &target, 0, compared);
            // The error of central differences in f64.
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-8));
        }
    }
}

/// Which teacher a case has.
#[derive(Clone, Copy, Debug)]
enum Kind {
    None,
    Full,
    MostLikely(usize),
    Chosen(usize),
    TopK(usize),
}

#[derive(Clone, Copy, Debug)]
struct Case {
    shape: [usize; 3],
    kind: Kind,
    tau: f32,
    exclude_target: bool,
    weights: [f32; 2],
    chunk: usize,
}

struct Computed {
    loss: Vec<f32>,
    d_hidden: Vec<f32>,
    d_weight: Vec<f32>,
}

/// Hidden states and heads of student and teacher. Logits are within some 4.
fn inputs([p, v, d]: [usize; 3]) -> [Vec<f32>; 4] {
    let factor = 4.0 / (d as f32).sqrt();
    let head = |seed| random(v * d, seed).iter().map(|x| factor * x).collect();
    [random(p * d, 1), head(2), random(p * d, 3), head(4)]
}

/// `k` different tokens for each row, the target of every second one among them.
fn chosen(p: usize, v: usize, k: usize, targets: &[Target]) -> Vec<Vec<usize>> {
    let from = |i: usize| {
        if i.is_multiple_of(2) {
            targets[i].token as usize
        } else {
            i
        }
    };
    (0..p)
        .map(|i| (0..k).map(|j| (from(i) + j) % v).collect())
        .collect()
}

/// The `k` largest of `x`.
fn largest(x: &[f64], k: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..x.len()).collect();
    ids.sort_by(|a, b| x[*b].total_cmp(&x[*a]).then(a.cmp(b)));
    ids.truncate(k);
    ids
}

fn compute(
    gpu: &Gpu,
    case: Case,
    list: &[Target],
    tokens: &[Vec<usize>],
    logits: &[f32],
) -> Computed {
    let [p, v, d] = case.shape;
    let data = inputs(case.shape);
    let [hidden, weight, teacher_hidden, teacher_weight] =
        [0, 1, 2, 3].map(|i| gpu.upload(&data[i]).expect("memory"));
    let tokens: Vec<u32> = tokens.iter().flatten().map(|id| *id as u32).collect();
    let (tokens, logits) = (
        gpu.upload_u32(&tokens).expect("memory"),
        gpu.upload(logits).expect("memory"),
    );
    let head = |weight: &GpuBuffer| -> LmHead<'static> {
        // Kept alive by the caller.
        let weight: &'static GpuBuffer = Box::leak(Box::new(weight.clone()));
        LmHead {
            weight: weight.all(),
            vocab_size: v,
            hidden_size: d,
        }
    };
    let (teacher_head, hidden_of_teacher) = (head(&teacher_weight), teacher_hidden.all());
    let teacher = match case.kind {
        Kind::None => None,
        Kind::Full => Some(TeacherLogits::Full {
            head: teacher_head,
            hidden: hidden_of_teacher,
        }),
        Kind::MostLikely(k) => Some(TeacherLogits::MostLikely {
            head: teacher_head,
            hidden: hidden_of_teacher,
            k,
        }),
        Kind::Chosen(k) => Some(TeacherLogits::Chosen {
            head: teacher_head,
            hidden: hidden_of_teacher,
            tokens: tokens.all(),
            k,
        }),
        Kind::TopK(k) => Some(TeacherLogits::TopK {
            tokens: tokens.all(),
            logits: logits.all(),
            k,
        }),
    };
    let teacher = teacher.map(|logits| SoftTargets {
        logits,
        tau: case.tau,
        exclude_target: case.exclude_target,
    });
    let mut targets = Targets::default();
    targets.prepare(gpu, list).expect("memory");
    // What is added to, and what is overwritten.
    let d_weight = gpu.upload(&vec![0.5; v * d]).expect("memory");
    let d_hidden = gpu.upload(&vec![7.0; p * d]).expect("memory");
    let loss = gpu.upload(&[7.0; 6]).expect("memory");
    let mut scratch = HeadScratch::with_chunk(case.chunk);
    loss_and_gradients(
        gpu,
        head(&weight),
        hidden.all(),
        &targets,
        teacher,
        HeadGradients {
            hidden: d_hidden.all(),
            weight: Some(d_weight.all()),
        },
        loss.all(),
        1,
        &mut scratch,
    )
    .expect("a loss");
    let download = |buffer: &GpuBuffer| gpu.download(buffer, 0..buffer.len()).expect("results");
    Computed {
        loss: download(&loss),
        d_hidden: download(&d_hidden),
        d_weight: download(&d_weight),
    }
}

/// Computes a case on the device and by the loops.
///
/// Bounds: logits are sums of D products and err by some sqrt(D) 2^-24 times 4. So do the terms of the loss, whose sums over
/// V and P are as exact. The gradients are sums of P or V products of a gradient of at most weight (1 + 1 / tau) with numbers of 4.
fn check(gpu: &Gpu, case: Case) {
    let [p, v, d] = case.shape;
    let list = targets(p, v, case.weights);
    let data = inputs(case.shape).map(|data| wide(&data));
    let (s, t) = (
        logits_of(&data[0], &data[1], d),
        logits_of(&data[2], &data[3], d),
    );
    let tokens = match case.kind {
        Kind::MostLikely(k) | Kind::TopK(k) => t.iter().map(|t| largest(t, k)).collect(),
        Kind::Chosen(k) => chosen(p, v, k, &list),
        Kind::None | Kind::Full => Vec::new(),
    };
    let logits: Vec<f32> = tokens
        .iter()
        .zip(&t)
        .flat_map(|(ids, t)| ids.iter().map(|id| t[*id] as f32).collect::<Vec<_>>())
        .collect();
    let compared = Compared {
        tau: f64::from(case.tau),
        exclude_target: case.exclude_target,
        tokens: (!tokens.is_empty()).then_some(&tokens[..]),
    };
    let without_teacher = matches!(case.kind, Kind::None);
    let list_for_loops: Vec<Target> = list
        .iter()
        .map(|target| Target {
            distill_weight: if without_teacher {
                0.0
            } else {
                target.distill_weight
            },
            ..*target
        })
        .collect();
    let got = compute(gpu, case, &list, &tokens, &logits);
    let expected = loss(&s, &t, &list_for_loops, compared);

    let epsilon = 2f64.powi(-24);
    let inverse = 1.0 / f64::from(case.tau);
    let of_logit = 4.0 * ((d as f64).sqrt() + 4.0) * epsilon * inverse.max(1.0);
    let weights: f64 = list
        .iter()
        .map(|t| f64::from(t.ce_weight + t.distill_weight))
        .sum();
    assert_close(
        &got.loss[2..4],
        &expected,
        weights * (of_logit + 2.0 * epsilon),
    );
    assert_eq!(
        [got.loss[0], got.loss[1], got.loss[4], got.loss[5]],
        [7.0; 4]
    );

    let mut d_hidden = vec![0.0; p * d];
    let mut d_weight = vec![0.5; v * d];
    for (row, target) in list_for_loops.iter().enumerate() {
        let g = row_gradient(&s[row], &t[row], target, row, compared);
        for (id, g) in g.iter().enumerate() {
            for c in 0..d {
                d_hidden[row * d + c] += g * data[1][id * d + c];
                d_weight[id * d + c] += g * data[0][row * d + c];
            }
        }
    }
    let most = list
        .iter()
        .map(|t| f64::from(t.ce_weight) + inverse * f64::from(t.distill_weight))
        .fold(0.0, f64::max);
    assert_close(&got.d_hidden, &d_hidden, most * 2.0 * of_logit);
    assert_close(
        &got.d_weight,
        &d_weight,
        most * 2.0 * of_logit + 2.0 * epsilon,
    );
}

#[test]
fn cross_entropy_and_its_gradients_equal_the_loops() {
    let gpu = gpu();
    for shape in SHAPES {
        // One chunk, and chunks of few rows.
        for chunk in [1 << 20, 4 * shape[1] + 16] {
            check(
                &gpu,
                Case {
                    shape,
                    kind: Kind::None,
                    tau: 1.0,
                    exclude_target: false,
                    weights: [1.0, 1.0],
                    chunk,
                },
            );
        }
    }
}

#[test]
fn every_teacher_equals_the_loops() {
    let gpu = gpu();
    for shape in SHAPES {
        let v = shape[1];
        for kind in [
            Kind::Full,
            Kind::MostLikely(3.min(v - 1)),
            Kind::MostLikely(v),
            Kind::Chosen(40.min(v - 1)),
            Kind::TopK(2),
            Kind::TopK(290.min(v)),
        ] {
            for exclude_target in [false, true] {
                for (tau, weights, chunk) in
                    [(0.5, [0.25, 0.75], 1 << 20), (2.0, [0.0, 1.0], 9 * (v + 3))]
                {
                    check(
                        &gpu,
                        Case {
                            shape,
                            kind,
                            tau,
                            exclude_target,
                            weights,
                            chunk,
                        },
                    );
                }
            }
        }
    }
}

/// Terms of the loss and gradient of one row of given logits. The head is the identity, so that the hidden states are the logits, and
/// the gradient of one is that of the other.
fn of_logits(
    gpu: &Gpu,
    s: &[f32],
    t: &[f32],
    target: Target,
    exclude_target: bool,
    subset: bool,
) -> (Vec<f32>, Vec<f32>) {
    let v = s.len();
    let mut identity = vec![0.0; v * v];
    for i in 0..v {
        identity[i * v + i] = 1.0;
    }
    let weight = gpu.upload(&identity).expect("memory");
    let (s, t) = (
        gpu.upload(s).expect("memory"),
        gpu.upload(t).expect("memory"),
    );
    let head = LmHead {
        weight: weight.all(),
        vocab_size: v,
        hidden_size: v,
    };
    let tokens: Vec<u32> = (0..v as u32).collect();
    let tokens = gpu.upload_u32(&tokens).expect("memory");
    let logits = if subset {
        TeacherLogits::TopK {
            tokens: tokens.all(),
            logits: t.all(),
            k: v,
        }
    } else {
        TeacherLogits::Full {
            head,
            hidden: t.all(),
        }
    };
    let mut targets = Targets::default();
    targets.prepare(gpu, &[target]).expect("memory");
    let d_hidden = gpu.zeros(v).expect("memory");
    let loss = gpu.zeros(2).expect("memory");
    loss_and_gradients(
        gpu,
        head,
        s.all(),
        &targets,
        Some(SoftTargets {
            logits,
            tau: 0.5,
            exclude_target,
        }),
        HeadGradients {
            hidden: d_hidden.all(),
            weight: None,
        },
        loss.all(),
        0,
        &mut HeadScratch::default(),
    )
    .expect("a loss");
    let loss = gpu.download(&loss, 0..2).expect("results");
    (loss, gpu.download(&d_hidden, 0..v).expect("results"))
}

#[test]
fn a_confident_teacher_keeps_the_weight_of_the_other_tokens() {
    let gpu = gpu();
    let s: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
    let mut t: Vec<f32> = (0..40).map(|i| (i as f32 * 0.3).cos() * 2.0).collect();
    let target = Target {
        token: 2,
        ce_weight: 0.0,
        distill_weight: 1.0,
    };
    let compared = Compared {
        tau: 0.5,
        exclude_target: true,
        tokens: None,
    };
    // 1 - p_y is about e^-4, e^-18, e^-38 and e^-68.
    for confident in [5.0, 12.0, 22.0, 37.0] {
        t[2] = confident;
        let [_, kl] = row_loss(&wide(&s), &wide(&t), 2, 0, compared);
        let exact = row_gradient(&wide(&s), &wide(&t), &target, 0, compared);
        let most = exact.iter().fold(0f64, |most, g| most.max(g.abs()));
        for subset in [false, true] {
            let (loss, gradient) = of_logits(&gpu, &s, &t, target, true, subset);
            // exp(x) errs by 3 + 2 |x| units in the last place, with |x| up to 72.
            let relative = (3.0 + 2.0 * 72.0) * 2f64.powi(-23);
            assert!(
                (f64::from(loss[1]) / kl - 1.0).abs() < relative,
                "{loss:?} {kl}"
            );
            assert_close(&gradient, &exact, relative * most);
            assert_eq!(gradient[2], 0.0);
        }
    }
}

#[test]
fn large_logits_stay_finite() {
    let gpu = gpu();
    let row = |y: f32| -> Vec<f32> { (0..40).map(|i| if i == 2 { y } else { 0.0 }).collect() };
    let target = Target {
        token: 2,
        ce_weight: 1.0,
        distill_weight: 1.0,
    };
    for (s, t) in [(1e4, 1e4), (-1e4, -1e4), (1e4, -1e4), (-1e4, 1e4)] {
        for subset in [false, true] {
            let (loss, gradient) = of_logits(&gpu, &row(s), &row(t), target, true, subset);
            // The other tokens have equal logits on both sides.
            assert!(loss[1].abs() < 1e-6, "{loss:?}");
            let exact = if s > 0.0 { 0.0 } else { 1e4 + 39f32.ln() };
            assert!((loss[0] - exact).abs() < 2e-3, "{loss:?} {exact}");
            assert!(gradient.iter().all(|g| g.abs() <= 1.0 + 1e-6));
        }
        let (loss, gradient) = of_logits(&gpu, &row(s), &row(t), target, false, false);
        assert!(
            loss.iter().chain(&gradient).all(|x| x.is_finite()),
            "{loss:?}"
        );
    }
}

#[test]
fn equal_student_and_teacher_have_no_divergence() {
    let gpu = gpu();
    let s: Vec<f32> = (0..40).map(|i| (i as f32).sin() * 5.0).collect();
    let target = Target {
        token: 7,
        ce_weight: 0.0,
        distill_weight: 1.0,
    };
    for (exclude_target, subset) in [(false, false), (true, false), (false, true), (true, true)] {
        let (loss, gradient) = of_logits(&gpu, &s, &s, target, exclude_target, subset);
        assert_eq!(loss, [0.0, 0.0]);
        assert!(gradient.iter().all(|g| g.abs() < 1e-7));
    }
}

#[test]
fn a_subset_of_the_target_alone_has_nothing_to_compare() {
    let gpu = gpu();
    let (loss, gradient) = of_logits(
        &gpu,
        &[1.0],
        &[2.0],
        Target {
            token: 0,
            ce_weight: 0.0,
            distill_weight: 1.0,
        },
        true,
        true,
    );
    assert_eq!((loss[1], gradient[0]), (0.0, 0.0));
}

#[test]
fn two_runs_are_bitwise_equal() {
    let gpu = gpu();
    let case = Case {
        shape: SHAPES[1],
        kind: Kind::Full,
        tau: 0.5,
        exclude_target: true,
        weights: [0.5, 0.5],
        chunk: 9 * SHAPES[1][1],
    };
    let list = targets(case.shape[0], case.shape[1], case.weights);
    let bits = || {
        let got = compute(&gpu, case, &list, &[], &[0.0]);
        let all = [got.loss, got.d_hidden, got.d_weight].concat();
        all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(bits(), bits());
}

#[test]
fn no_targets_have_no_loss_and_foreign_tokens_are_refused() {
    let gpu = gpu();
    let buffers = [0; 4].map(|_| gpu.upload(&[1.0; 64]).expect("memory"));
    let head = LmHead {
        weight: buffers[0].all(),
        vocab_size: 4,
        hidden_size: 4,
    };
    let gradients = HeadGradients {
        hidden: buffers[1].all(),
        weight: None,
    };
    let mut targets = Targets::default();
    let mut scratch = HeadScratch::default();
    let mut run = |list: &[Target]| {
        targets.prepare(&gpu, list).expect("memory");
        let (hidden, loss) = (buffers[2].all(), buffers[3].all());
        loss_and_gradients(
            &gpu,
            head,
            hidden,
            &targets,
            None,
            gradients,
            loss,
            0,
            &mut scratch,
        )
    };
    run(&[]).expect("nothing to do");
    let foreign = Target {
        token: 4,
        ce_weight: 1.0,
        distill_weight: 0.0,
    };
    assert!(matches!(run(&[foreign]), Err(GpuError::Shape { .. })));
    assert_eq!(
        gpu.download(&buffers[3], 0..3).expect("results"),
        [0.0, 0.0, 1.0]
    );
}
