//! A file of training data, and the weight of its rows.

use std::{fmt, path::PathBuf};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::serde_helpers::is_default;

/// A file of `data.learn` or `data.keep`: a path, or `{ path = "chats.jsonl", weight = 2.0 }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The file, a data set of the hub, or `pack:world`.
    pub path: PathBuf,
    /// The weight of its rows.
    pub weight: RowWeight,
}

impl<P: Into<PathBuf>> From<P> for DataFile {
    fn from(path: P) -> Self {
        Self {
            path: path.into(),
            weight: RowWeight::default(),
        }
    }
}

/// How much each target token of a row counts in the mean that the cross-entropy is: w of
///
/// ```text
/// CE = sum over target tokens of w ce / sum over target tokens of w
/// ```
///
/// A finite number from 1e-6 to 1e6; 1 by default.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct RowWeight(f64);

/// A weight is never NaN.
impl Eq for RowWeight {}

impl Default for RowWeight {
    fn default() -> Self {
        Self(1.0)
    }
}

impl TryFrom<f64> for RowWeight {
    type Error = String;

    fn try_from(weight: f64) -> Result<Self, String> {
        if (1e-6..=1e6).contains(&weight) {
            Ok(Self(weight))
        } else {
            Err(format!(
                "a weight is a number from 0.000001 to 1000000, not {weight}"
            ))
        }
    }
}

impl From<RowWeight> for f64 {
    fn from(weight: RowWeight) -> Self {
        weight.0
    }
}

/// A [`DataFile`] as a table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weighted {
    path: PathBuf,
    #[serde(default)]
    weight: RowWeight,
}

impl Serialize for DataFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A file without a weight of its own stays a path, so that configs from before weights keep their checksums.
        if is_default(&self.weight) {
            return self.path.serialize(serializer);
        }
        let Self { path, weight } = self.clone();
        Weighted { path, weight }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DataFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrTable;
        impl<'de> Visitor<'de> for PathOrTable {
            type Value = DataFile;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or `{ path = \"FILE\", weight = 2.0 }`")
            }
            fn visit_str<E: Error>(self, path: &str) -> Result<Self::Value, E> {
                Ok(path.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let Weighted { path, weight } =
                    Weighted::deserialize(MapAccessDeserializer::new(map))?;
                Ok(DataFile { path, weight })
            }
        }
        deserializer.deserialize_any(PathOrTable)
    }
}
