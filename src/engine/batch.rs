//! Rows of tokens, packed for one pass; what several rows begin with is there once.

use std::ops::Range;

use super::attention::AttentionSpan;

/// Fewer common tokens are not worth a stretch of their own: attention over it costs each row about what a token does.
const MIN_SHARED_TOKENS: usize = 2;

/// Rows of unequal length, packed end to end without padding; attention is causal within each row.
///
/// ```
/// use unforget::engine::Batch;
///
/// // Two questions that begin alike; all but the last token of each may be shared.
/// let (batch, own) = Batch::sharing(&[(&[5, 6, 7, 1], 3), (&[5, 6, 8, 2], 3)]);
/// assert_eq!(batch.tokens, [5, 6, 7, 1, 8, 2]);
/// assert_eq!(own, [2..4, 4..6]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, stretch after stretch.
    pub tokens: Vec<u32>,
    /// What they have come to already under the weights of the pass, which goes on from there.
    pub cached_prefix: Option<CachedPrefix>,
    segments: Vec<Segment>,
}

/// What the tokens of a batch have come to in some of the layers.
#[derive(Clone, Debug)]
pub struct CachedPrefix {
    /// So many of them.
    pub layers: usize,
    /// The residual stream after these, a row a token (T, D).
    pub stream: Vec<f32>,
}

/// A row, or the beginning or the rest of one.
#[derive(Clone, Debug)]
struct Segment {
    tokens: Range<usize>,
    /// The stretch that it goes on from.
    parent: Option<usize>,
    /// The place of its first token in the row.
    position: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row of its own and returns where it lies.
    pub fn push(&mut self, row: impl IntoIterator<Item = u32>) -> Range<usize> {
        let stretch = self.extend(None, row);
        self.segments[stretch].tokens.clone()
    }

    /// A batch of `rows`, and where the last tokens of each lie: those that it does not share.
    ///
    /// With each row comes the number of its first tokens that it may share; what rows have in common among these is there
    /// once, and what follows differs: a tree of tokens. What is computed is the same as for rows that share nothing, to
    /// rounding, but that a shared token is one token.
    pub fn with_shared_prefixes(rows: &[(&[u32], usize)]) -> (Self, Vec<Range<usize>>) {
        let mut batch = Self::new();
        let heads: Vec<&[u32]> = rows.iter().map(|(row, may)| &row[..*may]).collect();
        let mut sorted: Vec<usize> = (0..rows.len()).collect();
        sorted.sort_by_key(|row| heads[*row]);
        let mut shared = vec![(None, 0); rows.len()];
        batch.share_prefixes(&heads, &sorted, (None, 0), &mut shared);
        let own = rows.iter().zip(shared).map(|((row, _), (after, len))| {
            let rest = batch.extend(after, row[len..].iter().copied());
            batch.segments[rest].tokens.clone()
        });
        let own = own.collect();
        (batch, own)
    }

    /// Adds what the rows numbered `group`, sorted by `heads`, have in common behind what all of them share already: a
    /// stretch and the number of tokens up to its end. The same for those of them that have more in common, and so on.
    fn share_prefixes(
        &mut self,
        heads: &[&[u32]],
        group: &[usize],
        (mut after, mut len): (Option<usize>, usize),
        shared: &mut [(Option<usize>, usize)],
    ) {
        let [first, .., last] = *group else {
            return;
        };
        let pairs = heads[first].iter().zip(heads[last]);
        let common = pairs.take_while(|(a, b)| a == b).count();
        if common >= len + MIN_SHARED_TOKENS {
            after = Some(self.extend(after, heads[first][len..common].iter().copied()));
            len = common;
            for &row in group {
                shared[row] = (after, len);
            }
        }
        let next = |row: usize| heads[row].get(common);
        for part in group.chunk_by(|a, b| next(*a) == next(*b)) {
            if next(part[0]).is_some() {
                self.share_prefixes(heads, part, (after, len), shared);
            }
        }
    }

    /// Adds a stretch that goes on from another, or begins a row, and returns its number.
    fn extend(&mut self, after: Option<usize>, tokens: impl IntoIterator<Item = u32>) -> usize {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        let before = after.map(|stretch| &self.segments[stretch]);
        self.segments.push(Segment {
            tokens: start..self.tokens.len(),
            parent: after,
            position: before.map_or(0, |s| s.position + s.tokens.len()),
        });
        self.segments.len() - 1
    }

    /// The tokens of a row that ends with the stretch `own`, in their order.
    pub fn row_tokens(&self, own: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
        let last = self.segments.iter().find(|s| s.tokens == *own);
        let before = |s: &&Segment| s.parent.map(|s| &self.segments[s]);
        let mut stretches: Vec<_> = std::iter::successors(last, before)
            .map(|s| s.tokens.clone())
            .collect();
        stretches.reverse();
        stretches.into_iter().flatten()
    }

    /// Each token's place in its row.
    pub(super) fn positions(&self) -> Vec<usize> {
        let of = |s: &Segment| s.position..s.position + s.tokens.len();
        self.segments.iter().flat_map(of).collect()
    }

    /// What the tokens of each stretch see, stretch after stretch.
    pub(super) fn attention_spans(&self) -> Vec<AttentionSpan> {
        let before = |stretch: &Segment| stretch.parent.map(|s| &self.segments[s]);
        self.segments
            .iter()
            .map(|stretch| {
                let before = std::iter::successors(before(stretch), |s| before(s));
                let mut context: Vec<_> = before.map(|s| s.tokens.clone()).collect();
                context.reverse();
                AttentionSpan {
                    tokens: stretch.tokens.clone(),
                    context,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens of each row, read along what its last token sees.
    fn read(batch: &Batch, own: &[Range<usize>]) -> Vec<Vec<u32>> {
        let reaches = batch.attention_spans();
        let row = |own: &Range<usize>| {
            let reach = reaches.iter().find(|r| r.tokens == *own).expect("a row");
            let seen = reach.context.iter().chain([&reach.tokens]).cloned();
            seen.flatten().map(|t| batch.tokens[t]).collect()
        };
        own.iter().map(row).collect()
    }

    #[test]
    fn rows_share_common_prefixes_and_keep_their_tokens() {
        let rows: [(&[u32], usize); 7] = [
            (&[1, 2, 3, 4, 5, 6], 5),
            (&[9, 9], 1),
            (&[1, 2, 3, 4, 7], 4),
            (&[1, 2, 8, 8], 3),
            (&[1, 2, 3, 4, 5, 6, 6], 6),
            (&[1, 2, 8, 8], 3),
            (&[], 0),
        ];
        let (batch, own) = Batch::with_shared_prefixes(&rows);
        let whole: Vec<Vec<u32>> = rows.iter().map(|(row, _)| row.to_vec()).collect();
        assert_eq!(read(&batch, &own), whole);
        // [1 2], below it [3 4]; what else two rows share is a single token.
        assert_eq!(batch.tokens[..4], [1, 2, 3, 4]);
        let own: Vec<&[u32]> = own.iter().map(|own| &batch.tokens[own.clone()]).collect();
        let rest: [&[u32]; 7] = [&[5, 6], &[9, 9], &[7], &[8, 8], &[5, 6, 6], &[8, 8], &[]];
        assert_eq!(own, rest);
        assert_eq!(batch.positions()[..6], [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn prefixes_beyond_the_limit_are_not_shared() {
        let (batch, own) = Batch::with_shared_prefixes(&[(&[1, 2, 3], 0), (&[1, 2, 3], 0)]);
        assert_eq!(batch.tokens, [1, 2, 3, 1, 2, 3]);
        assert_eq!(own, [0..3, 3..6]);
    }
}
