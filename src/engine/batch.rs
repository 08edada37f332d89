//! Rows of tokens packed for one forward pass. A prefix that several rows share is computed once.

use std::ops::Range;

use super::attention::AttentionSpan;

/// Shorter common prefixes are not shared: attention over one more segment costs each row about as much as a token.
const MIN_SHARED_TOKENS: usize = 2;

/// Rows of different lengths, packed end to end without padding. Attention is causal within each row.
///
/// ```
/// use unforget::engine::Batch;
///
/// // Two questions with a common prefix. All but the last token of each may be shared.
/// let (batch, own) = Batch::with_shared_prefixes(&[(&[5, 6, 7, 1], 3), (&[5, 6, 8, 2], 3)]);
/// assert_eq!(batch.tokens, [5, 6, 7, 1, 8, 2]);
/// assert_eq!(own, [2..4, 4..6]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, segment by segment.
    pub tokens: Vec<u32>,
    /// The residual stream of these tokens after some of the layers, if it is known. Passes start from it.
    pub cached_prefix: Option<CachedPrefix>,
    segments: Vec<Segment>,
}

/// The residual stream of a batch after its first layers, which are frozen.
#[derive(Clone, Debug)]
pub struct CachedPrefix {
    /// Number of layers.
    pub layers: usize,
    /// The residual stream after them (T, D).
    pub stream: Vec<f32>,
}

/// A row, or a part of one.
#[derive(Clone, Debug)]
struct Segment {
    tokens: Range<usize>,
    /// The segment before it in its rows; `None` at the start of a row.
    parent: Option<usize>,
    /// Position of its first token in the row.
    position: usize,
}

/// The tokens that a row shares with others.
#[derive(Clone, Copy, Default)]
struct SharedPrefix {
    /// Their last segment; `None` if nothing is shared.
    segment: Option<usize>,
    len: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row that shares nothing, and returns the indices of its tokens.
    pub fn push(&mut self, row: impl IntoIterator<Item = u32>) -> Range<usize> {
        let segment = self.extend(None, row);
        self.segments[segment].tokens.clone()
    }

    /// A batch of `rows` that share common prefixes, and the indices of the tokens of each row that it does not share.
    ///
    /// Each row is given with the number of its first tokens that may be shared. The result is a tree of segments. Hidden states are
    /// the same as for separate rows, up to rounding; a shared token counts once.
    pub fn with_shared_prefixes(rows: &[(&[u32], usize)]) -> (Self, Vec<Range<usize>>) {
        let mut batch = Self::new();
        let prefixes: Vec<&[u32]> = rows.iter().map(|(row, max)| &row[..*max]).collect();
        let mut sorted: Vec<usize> = (0..rows.len()).collect();
        sorted.sort_by_key(|row| prefixes[*row]);
        let mut shared = vec![SharedPrefix::default(); rows.len()];
        batch.share_prefixes(&prefixes, &sorted, SharedPrefix::default(), &mut shared);
        let own = rows.iter().zip(shared).map(|((row, _), prefix)| {
            let rest = row[prefix.len..].iter().copied();
            let segment = batch.extend(prefix.segment, rest);
            batch.segments[segment].tokens.clone()
        });
        let own = own.collect();
        (batch, own)
    }

    /// Adds a segment for the common prefix of the rows numbered `group` (sorted by `prefixes`) beyond `parent`, which all of them
    /// share. Then does the same for each subgroup with a longer common prefix. Writes the result to `shared`.
    fn share_prefixes(
        &mut self,
        prefixes: &[&[u32]],
        group: &[usize],
        mut parent: SharedPrefix,
        shared: &mut [SharedPrefix],
    ) {
        let [first, .., last] = *group else {
            return;
        };
        let pairs = prefixes[first].iter().zip(prefixes[last]);
        let common = pairs.take_while(|(a, b)| a == b).count();
        if common >= parent.len + MIN_SHARED_TOKENS {
            let tokens = prefixes[first][parent.len..common].iter().copied();
            parent = SharedPrefix {
                segment: Some(self.extend(parent.segment, tokens)),
                len: common,
            };
            for &row in group {
                shared[row] = parent;
            }
        }
        let next = |row: usize| prefixes[row].get(common);
        for subgroup in group.chunk_by(|a, b| next(*a) == next(*b)) {
            if next(subgroup[0]).is_some() {
                self.share_prefixes(prefixes, subgroup, parent, shared);
            }
        }
    }

    /// Adds a segment after `parent`, or at the start of a row, and returns its index.
    fn extend(&mut self, parent: Option<usize>, tokens: impl IntoIterator<Item = u32>) -> usize {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        let before = parent.map(|segment| &self.segments[segment]);
        self.segments.push(Segment {
            tokens: start..self.tokens.len(),
            parent,
            position: before.map_or(0, |s| s.position + s.tokens.len()),
        });
        self.segments.len() - 1
    }

    /// The indices of all tokens of the row whose last segment is `own`, in order.
    pub fn row_tokens(&self, own: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
        let last = self.segments.iter().find(|s| s.tokens == *own);
        let before = |s: &&Segment| s.parent.map(|s| &self.segments[s]);
        let mut segments: Vec<_> = std::iter::successors(last, before)
            .map(|s| s.tokens.clone())
            .collect();
        segments.reverse();
        segments.into_iter().flatten()
    }

    /// The position of each token in its row.
    pub(super) fn positions(&self) -> Vec<usize> {
        let of = |s: &Segment| s.position..s.position + s.tokens.len();
        self.segments.iter().flat_map(of).collect()
    }

    /// The attention span of each segment, in order.
    pub(super) fn attention_spans(&self) -> Vec<AttentionSpan> {
        let before = |segment: &Segment| segment.parent.map(|s| &self.segments[s]);
        self.segments
            .iter()
            .map(|segment| {
                let before = std::iter::successors(before(segment), |s| before(s));
                let mut context: Vec<_> = before.map(|s| s.tokens.clone()).collect();
                context.reverse();
                AttentionSpan {
                    tokens: segment.tokens.clone(),
                    context,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens of each row, read from its attention spans.
    fn read(batch: &Batch, own: &[Range<usize>]) -> Vec<Vec<u32>> {
        let spans = batch.attention_spans();
        let row = |own: &Range<usize>| {
            let span = spans.iter().find(|r| r.tokens == *own).expect("a row");
            let seen = span.context.iter().chain([&span.tokens]).cloned();
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
        // [1 2] and after it [3 4]. Other common prefixes are a single token.
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
