//! The largest of many logits, as `torch.topk`.

use super::simd::{self, vectorized};

/// Logits in a block of [`topk`].
const BLOCK: usize = 64;

vectorized! {
    /// The largest logit of every block.
    fn block_maxima(logits: &[f32]) -> Vec<f32> {
        logits.chunks(BLOCK).map(simd::max).collect()
    }
}

/// The `n` largest logits with their tokens, largest first. Ties are broken by the lowest id.
///
/// The n-th largest block maximum is a lower bound of the n-th largest logit, so that only a few logits are sorted.
pub fn topk(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut maxima: Vec<f32> = block_maxima(logits);
    let bound = match n.checked_sub(1) {
        None => return Vec::new(),
        Some(i) if i < maxima.len() => {
            let by_size = |a: &f32, b: &f32| b.total_cmp(a);
            *maxima.clone().select_nth_unstable_by(i, by_size).1
        }
        Some(_) => f32::NEG_INFINITY,
    };
    let mut top = Vec::new();
    for (block, max) in maxima.drain(..).enumerate() {
        if max >= bound {
            let start = block * BLOCK;
            let block = &logits[start..logits.len().min(start + BLOCK)];
            let ids = (start as u32..).zip(block.iter().copied());
            top.extend(ids.filter(|(_, x)| *x >= bound));
        }
    }
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    top.truncate(n);
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_id_wins_among_equals() {
        let ids = |n| -> Vec<u32> {
            let top = topk(&[1.0, 3.0, 3.0, 2.0, 3.0], n);
            top.into_iter().map(|(id, _)| id).collect()
        };
        assert_eq!(ids(2), [1, 2]);
        assert_eq!(ids(9), [1, 2, 4, 3, 0]);
        assert!(ids(0).is_empty());
    }

    #[test]
    fn topk_equals_a_full_sort() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1009) as f32).collect();
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for n in [1, 2, 16, 17, 40, 999, 1000] {
            assert_eq!(topk(&logits, n), sorted[..n]);
        }
    }
}
