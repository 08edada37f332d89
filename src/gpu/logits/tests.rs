//! Reductions of logits beside loops in f64.

use super::*;
use crate::gpu::testing::{assert_close, gpu, random, wide};

/// P, V, D.
const SHAPES: [[usize; 3]; 3] = [[1, 3, 4], [9, 1021, 20], [5, 5000, 12]];

/// Logits (P, V) that the head below makes exactly: small whole numbers, with many ties, or all different.
fn exact_logits([p, v, _]: [usize; 3], levels: usize) -> Vec<Vec<f32>> {
    (0..p)
        .map(|i| {
            (0..v)
                .map(|j| ((j * 7919 + i * 31) % levels.min(v)) as f32 / 64.0)
                .collect()
        })
        .collect()
}

/// A head and hidden states whose products are `logits`, for P up to D: one hot row each.
struct OneHot {
    weight: GpuBuffer,
    hidden: GpuBuffer,
    p: usize,
    v: usize,
}

impl OneHot {
    fn new(gpu: &Gpu, logits: &[Vec<f32>]) -> Self {
        let (p, v) = (logits.len(), logits[0].len());
        let mut hidden = vec![0.0; p * p];
        let mut weight = vec![0.0; v * p];
        for i in 0..p {
            hidden[i * p + i] = 1.0;
            for j in 0..v {
                weight[j * p + i] = logits[i][j];
            }
        }
        Self {
            weight: gpu.upload(&weight).expect("memory"),
            hidden: gpu.upload(&hidden).expect("memory"),
            p,
            v,
        }
    }

    fn head(&self) -> LmHead<'_> {
        LmHead {
            weight: self.weight.all(),
            vocab_size: self.v,
            hidden_size: self.p,
        }
    }

    fn reduce(&self, gpu: &Gpu, request: Request<'_>, chunk: usize) {
        let mut scratch = HeadScratch::with_chunk(chunk);
        reduce(
            gpu,
            self.head(),
            self.hidden.all(),
            self.p,
            request,
            &mut scratch,
        )
        .expect("a result");
    }
}

fn sorted(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    ids
}

#[test]
fn the_summary_is_the_first_of_the_largest_and_the_log_sum_exp() {
    let gpu = gpu();
    for shape in SHAPES {
        for levels in [1, 2, 50, 1 << 20] {
            let mut logits = exact_logits(shape, levels);
            for row in &mut logits {
                for x in row {
                    *x -= 3.0;
                }
            }
            let model = OneHot::new(&gpu, &logits);
            let out = gpu.zeros(2 * model.p).expect("memory");
            let request = Request {
                summary: Some(out.all()),
                ..Request::default()
            };
            model.reduce(&gpu, request, 7 * model.v);
            let got = gpu.download_u32(&out, 0..2 * model.p).expect("results");
            for (got, logits) in got.chunks(2).zip(&logits) {
                assert_eq!(got[0] as usize, sorted(logits)[0]);
                let lse = wide(logits).iter().map(|x| x.exp()).sum::<f64>().ln();
                // Up to 5,000 f32 exponentials summed in a tree; values up to 90.
                let bound = 1e-6 + 2f64.powi(-22) * lse.abs();
                assert!(
                    (f64::from(f32::from_bits(got[1])) - lse).abs() < bound,
                    "{lse}"
                );
            }
        }
    }
}

#[test]
fn topk_equals_a_full_sort() {
    let gpu = gpu();
    for shape in SHAPES {
        // All equal, and many equal: more candidates than fit; all different.
        let cases: [(usize, &[usize]); 4] = [
            (1, &[2]),
            (2, &[40]),
            (50, &[1, 40, 256]),
            (1 << 20, &[1, 2, 40, 128, 256]),
        ];
        for (levels, ks) in cases {
            let logits = exact_logits(shape, levels);
            let model = OneHot::new(&gpu, &logits);
            for &k in ks {
                let k = k.min(model.v);
                let tokens = gpu.zeros(k * model.p).expect("memory");
                let values = gpu.zeros(k * model.p).expect("memory");
                let topk = TopK {
                    tokens: tokens.all(),
                    logits: values.all(),
                    k,
                };
                let request = Request {
                    topk: Some(topk),
                    ..Request::default()
                };
                model.reduce(&gpu, request, 3 * model.v);
                let tokens = gpu.download_u32(&tokens, 0..k * model.p).expect("results");
                let values = gpu.download(&values, 0..k * model.p).expect("results");
                for ((ids, values), logits) in tokens.chunks(k).zip(values.chunks(k)).zip(&logits) {
                    let expected = &sorted(logits)[..k];
                    assert!(ids.iter().zip(expected).all(|(a, b)| *a as usize == *b));
                    assert!(
                        ids.iter()
                            .zip(values)
                            .all(|(id, x)| logits[*id as usize] == *x)
                    );
                }
            }
        }
    }
}

#[test]
fn too_many_of_the_most_likely_tokens_are_refused() {
    let gpu = gpu();
    let model = OneHot::new(&gpu, &exact_logits([1, 600, 4], 600));
    let out = gpu.zeros(600).expect("memory");
    let ask = |k| {
        let topk = TopK {
            tokens: out.all(),
            logits: model.hidden.all(),
            k,
        };
        let request = Request {
            topk: Some(topk),
            ..Request::default()
        };
        reduce(
            &gpu,
            model.head(),
            model.hidden.all(),
            1,
            request,
            &mut HeadScratch::default(),
        )
    };
    assert!(matches!(
        ask(MAX_TOP_K + 1),
        Err(GpuError::LimitTooSmall { .. })
    ));
    assert!(matches!(ask(601), Err(GpuError::LimitTooSmall { .. })));
}

#[test]
fn gathered_logits_are_those_of_the_tokens() {
    let gpu = gpu();
    for [p, v, d] in SHAPES {
        let (hidden, weight) = (random(p * d, 1), random(v * d, 2));
        let k = 5.min(v);
        let ids: Vec<u32> = (0..p * k).map(|i| ((i * 577) % v) as u32).collect();
        let on_device = [&hidden, &weight].map(|data| gpu.upload(data).expect("memory"));
        let tokens = gpu.upload_u32(&ids).expect("memory");
        let out = [0; 2].map(|_| gpu.zeros(p * k).expect("memory"));
        let head = LmHead {
            weight: on_device[1].all(),
            vocab_size: v,
            hidden_size: d,
        };
        let [of_all, alone] = [0, 1].map(|i| TopK {
            tokens: tokens.all(),
            logits: out[i].all(),
            k,
        });
        let request = Request {
            gather: Some(of_all),
            ..Request::default()
        };
        let mut scratch = HeadScratch::with_chunk(6 * v);
        reduce(&gpu, head, on_device[0].all(), p, request, &mut scratch).expect("a result");
        gather_products(&gpu, head, on_device[0].all(), p, alone).expect("a result");
        let (hidden, weight) = (wide(&hidden), wide(&weight));
        let expected: Vec<f64> = ids
            .iter()
            .enumerate()
            .map(|(i, id)| {
                let (h, w) = (&hidden[i / k * d..][..d], &weight[*id as usize * d..][..d]);
                h.iter().zip(w).map(|(h, w)| h * w).sum()
            })
            .collect();
        for out in &out {
            let got = gpu.download(out, 0..p * k).expect("results");
            // D products of numbers below 1.
            let bound = (2.0 + (d as f64).sqrt()) * (d as f64) * 2f64.powi(-24);
            assert_close(&got, &expected, bound);
        }
    }
}

/// The distribution that tokens are drawn from, in order.
fn distribution(logits: &[f32], temperature: f32, top_k: usize) -> Vec<(usize, f64)> {
    let ids = if top_k == 0 {
        (0..logits.len()).collect()
    } else {
        let mut ids = sorted(logits);
        ids.truncate(top_k);
        ids
    };
    let weight = |id: &usize| (f64::from(logits[*id]) / f64::from(temperature)).exp();
    let sum: f64 = ids.iter().map(weight).sum();
    ids.iter().map(|id| (*id, weight(id) / sum)).collect()
}

#[test]
fn drawn_tokens_are_at_their_quantiles() {
    let gpu = gpu();
    for shape @ [p, v, _] in SHAPES {
        let logits = exact_logits(shape, 500);
        let model = OneHot::new(&gpu, &logits);
        for (temperature, top_k) in [(0.7, 0), (1.0, 40), (1.0, 1), (2.0, 3), (5.0, 0)] {
            for start in [0.0, 0.37, 0.9999] {
                let quantiles: Vec<f32> = (0..p)
                    .map(|i| (start + i as f32 * 0.117).min(0.9999).fract())
                    .collect();
                let on_device = gpu.upload(&quantiles).expect("memory");
                let tokens = gpu.zeros(p).expect("memory");
                let sample = Sample {
                    temperature,
                    top_k,
                    quantiles: on_device.all(),
                    tokens: tokens.all(),
                };
                let request = Request {
                    sample: Some(sample),
                    ..Request::default()
                };
                model.reduce(&gpu, request, 7 * v);
                let got = gpu.download_u32(&tokens, 0..p).expect("results");
                for ((id, u), logits) in got.iter().zip(&quantiles).zip(&logits) {
                    // The token's part of 0..1 has the quantile, up to rounding of sums of f32.
                    let mut below = 0.0;
                    let mut range = None;
                    for (token, p) in distribution(logits, temperature, top_k) {
                        if token == *id as usize {
                            range = Some(below..below + p);
                        }
                        below += p;
                    }
                    let range = range.expect("a token of the distribution");
                    let u = f64::from(*u);
                    assert!(
                        range.start - 1e-5 <= u && u <= range.end + 1e-5,
                        "{range:?} {u}"
                    );
                }
            }
        }
    }
}

#[test]
fn divergences_equal_the_definition_and_vanish_for_equal_models() {
    let gpu = gpu();
    for [p, v, d] in SHAPES {
        let factor = 4.0 / (d as f32).sqrt();
        let mut data = [1, 2].map(|seed| random(p * d, seed)).to_vec();
        data.extend(
            [3, 4].map(|seed| -> Vec<f32> {
                random(v * d, seed).iter().map(|x| factor * x).collect()
            }),
        );
        let buffers: Vec<_> = data
            .iter()
            .map(|data| gpu.upload(data).expect("memory"))
            .collect();
        let head = |i: usize| LmHead {
            weight: buffers[i].all(),
            vocab_size: v,
            hidden_size: d,
        };
        let out = gpu.zeros(p).expect("memory");
        let mut scratch = HeadScratch::with_chunk(6 * (v + 3));
        let mut run = |other: usize, other_head: usize| {
            let (heads, hidden) = (
                [head(2), head(other_head)],
                [buffers[0].all(), buffers[other].all()],
            );
            kl_divergences(&gpu, heads, hidden, p, out.all(), &mut scratch).expect("divergences");
            gpu.download(&out, 0..p).expect("results")
        };
        assert!(run(0, 2).iter().all(|kl| *kl == 0.0));
        let got = run(1, 3);
        let logits = |hidden: usize, weight: usize| -> Vec<Vec<f64>> {
            let (hidden, weight) = (wide(&data[hidden]), wide(&data[weight]));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
            hidden
                .chunks(d)
                .map(|h| weight.chunks(d).map(|w| dot(h, w)).collect())
                .collect()
        };
        let lse = |x: &[f64]| x.iter().map(|x| x.exp()).sum::<f64>().ln();
        let expected: Vec<f64> = logits(0, 2)
            .iter()
            .zip(logits(1, 3))
            .map(|(s, t)| {
                let (z_s, z_t) = (lse(s), lse(&t));
                let terms = s
                    .iter()
                    .zip(&t)
                    .map(|(s, t)| (t - z_t).exp() * ((t - z_t) - (s - z_s)));
                terms.sum()
            })
            .collect();
        // Logits of D products err by sqrt(D) 2^-24 times 4, and so does each term.
        assert_close(
            &got,
            &expected,
            4.0 * (4.0 + (d as f64).sqrt()) * 2f64.powi(-24),
        );
    }
}
