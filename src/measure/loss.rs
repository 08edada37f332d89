//! Cross-entropy of texts that are not trained.

use crate::{Result, generate::Generator, prompt::Example};

/// The cross-entropy of `rows` under the generator's model: mean over all their target tokens, in nats, and the number of these
/// tokens. `None` without rows. With several processes, each computes a share of the rows.
///
/// A row without a prompt is predicted from its second token on. `on_finished` receives the number of rows that were finished since
/// its last call.
///
/// # Errors
/// [`crate::Error::Input`] if a row is longer than the model's context.
pub fn mean_token_loss(
    generator: &mut Generator<'_>,
    rows: &[Example],
    on_finished: &(dyn Fn(usize) + Sync),
) -> Result<Option<(f64, usize)>> {
    let comm = generator.comm();
    let own = &rows[comm.shard_range(rows.len())];
    let pairs = own.iter().map(|row| {
        let tokens = [&row.prompt[..], &row.target].concat();
        let (prompt, target) = tokens.split_at(row.target_start().min(tokens.len()));
        (prompt.to_vec(), target.to_vec())
    });
    let logprobs = generator.score(&pairs.collect::<Vec<_>>(), on_finished)?;
    let sums = logprobs.iter().map(|row| {
        let sum: f64 = row.iter().map(|logprob| f64::from(*logprob)).sum();
        (sum, row.len())
    });
    let sums = comm.all_gather(sums.collect());
    let (sum, tokens) = sums
        .into_iter()
        .fold((0.0, 0), |(sum, count), (row, tokens)| {
            (sum + row, count + tokens)
        });
    Ok((tokens > 0).then(|| (-sum / tokens as f64, tokens)))
}
