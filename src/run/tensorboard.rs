//! Writes a run's metrics for `TensorBoard`: a file of `TFRecord`s, each an `Event` (tensorflow/core/util/event.proto) with the scalars
//! of one row of `metrics.jsonl`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    time::SystemTime,
};

use prost::Message;

use super::{Behaviour, Metrics, Split};

/// File name; `TensorBoard` reads files that contain `tfevents`.
const FILE: &str = "events.out.tfevents.0.unforget";

/// One record: time, step, and the file version or scalars.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    /// `oneof` in the original, so that 0 is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Overwrites the file in `dir` with `rows`.
pub(super) fn write<'r>(dir: &Path, rows: impl IntoIterator<Item = &'r Metrics>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut file = File::create(dir.join(FILE))?;
    let version = Event {
        wall_time: now(),
        step: 0,
        file_version: Some("brain.Event:2".into()),
        summary: None,
    };
    file.write_all(&record(&version.encode_to_vec()))?;
    rows.into_iter()
        .try_for_each(|row| write_row(&mut file, row))
}

/// Appends a row to the file in `dir`.
pub(super) fn append(dir: &Path, row: &Metrics) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join(FILE))?;
    write_row(&mut file, row)
}

fn write_row(file: &mut File, row: &Metrics) -> io::Result<()> {
    let Some((step, scalars)) = scalars(row) else {
        return Ok(());
    };
    let value = scalars.into_iter().map(|(tag, value)| Scalar {
        tag,
        simple_value: Some(value as f32),
    });
    let event = Event {
        wall_time: now(),
        step: step as i64,
        file_version: None,
        summary: Some(Summary {
            value: value.collect(),
        }),
    };
    file.write_all(&record(&event.encode_to_vec()))
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// The step and the named scalars of a row; `None` for rows without scalars.
fn scalars(row: &Metrics) -> Option<(usize, Vec<(String, f64)>)> {
    match row {
        Metrics::Step {
            step,
            loss,
            ce,
            distill,
            penalty,
            grad_norm,
            learning_rate,
            tokens_per_second,
            ..
        } => {
            let named = [
                ("loss", loss),
                ("ce", ce),
                ("distill", distill),
                ("penalty", penalty),
                ("grad_norm", grad_norm),
                ("learning_rate", learning_rate),
                ("tokens_per_second", tokens_per_second),
            ];
            let named = named.map(|(name, value)| (format!("train/{name}"), *value));
            Some((*step, named.into()))
        }
        Metrics::Eval {
            step,
            accuracy,
            learned_paraphrased,
            drift,
            behaviour,
            validation_loss,
            ..
        } => {
            let mut named: Vec<(String, f64)> = Split::ALL
                .into_iter()
                .filter_map(|split| Some((format!("eval/{}", split.name()), *accuracy.get(split)?)))
                .collect();
            named.extend(
                learned_paraphrased.map(|accuracy| ("eval/unknown_paraphrased".into(), accuracy)),
            );
            named.extend(beside_facts(*behaviour, *validation_loss));
            let drift = drift.iter().flat_map(super::Drift::named);
            named.extend(drift.filter_map(|(name, value)| Some((format!("drift/{name}"), value?))));
            Some((*step, named))
        }
        Metrics::Final {
            step,
            behaviour,
            validation_loss,
            ..
        } => {
            let named = beside_facts(*behaviour, *validation_loss);
            Some((*step, named.collect()))
        }
        Metrics::Skipped { .. } | Metrics::Snapshot { .. } | Metrics::Interpolation { .. } => None,
    }
}

/// What an evaluation measures beside the accuracies of facts.
fn beside_facts(
    behaviour: Option<Behaviour>,
    validation_loss: Option<f64>,
) -> impl Iterator<Item = (String, f64)> {
    let named = [
        ("behaviour_kl", behaviour.map(|b| b.kl)),
        ("behaviour_length_ratio", behaviour.map(|b| b.length_ratio)),
        ("validation_loss", validation_loss),
    ];
    let named = named.into_iter();
    named.filter_map(|(name, value)| Some((format!("eval/{name}"), value?)))
}

/// A `TFRecord`: length (u64), its masked CRC-32C, the data, their masked CRC-32C, all little-endian.
fn record(data: &[u8]) -> Vec<u8> {
    let masked = |bytes: &[u8]| {
        crc32c::crc32c(bytes)
            .rotate_right(15)
            .wrapping_add(0xa282_ead8)
    };
    let length = (data.len() as u64).to_le_bytes();
    let crcs = [masked(&length), masked(data)].map(u32::to_le_bytes);
    [&length[..], &crcs[0], data, &crcs[1]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `RecordWriter(file).write(b"abc")` of the `tensorboard` package, 2.21.
    #[test]
    fn a_record_equals_that_of_tensorboards_writer() {
        let expected = [
            3, 0, 0, 0, 0, 0, 0, 0, 176, 153, 73, 14, b'a', b'b', b'c', 110, 87, 241, 33,
        ];
        assert_eq!(record(b"abc"), expected);
    }
}
