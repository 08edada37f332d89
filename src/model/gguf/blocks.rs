//! ggml's tensor types: block layouts, dequantisation of all supported types, quantisation to the types that are written.
//!
//! A quantised type stores a fixed number of weights per block, as small integers with one or two scales. The layouts are
//! those of ggml. Values and quantised bytes are bitwise identical to those of the Python package `gguf`.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::model::GgufType;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

/// Elements of a block of the K types.
const K: usize = 256;

/// The number of a type in GGUF files, its name, and the elements and bytes of a block.
struct Layout {
    id: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

impl GgmlType {
    /// Every supported type.
    pub(super) const ALL: [Self; 14] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
    ];

    const fn layout(self) -> Layout {
        let (id, name, block_len, block_bytes) = match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 2 + 16),
            Self::Q4_1 => (3, "Q4_1", 32, 2 + 2 + 16),
            Self::Q5_0 => (6, "Q5_0", 32, 2 + 4 + 16),
            Self::Q5_1 => (7, "Q5_1", 32, 2 + 2 + 4 + 16),
            Self::Q8_0 => (8, "Q8_0", 32, 2 + 32),
            Self::Q2K => (10, "Q2_K", K, 16 + 64 + 2 + 2),
            Self::Q3K => (11, "Q3_K", K, 32 + 64 + 12 + 2),
            Self::Q4K => (12, "Q4_K", K, 2 + 2 + 12 + 128),
            Self::Q5K => (13, "Q5_K", K, 2 + 2 + 12 + 32 + 128),
            Self::Q6K => (14, "Q6_K", K, 128 + 64 + 16 + 2),
            Self::Q8K => (15, "Q8_K", K, 4 + 256 + 32),
            Self::Bf16 => (30, "BF16", 1, 2),
        };
        Layout {
            id,
            name,
            block_len,
            block_bytes,
        }
    }

    /// The type with this number in GGUF files.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// Its number in GGUF files.
    pub(super) fn id(self) -> u32 {
        self.layout().id
    }

    /// Its name in ggml.
    pub(super) fn name(self) -> &'static str {
        self.layout().name
    }

    /// Elements of a block.
    pub(super) fn block_len(self) -> usize {
        self.layout().block_len
    }

    /// Bytes of `elements` elements, a whole number of blocks; `None` if they overflow.
    pub(super) fn bytes(self, elements: usize) -> Option<usize> {
        let Layout {
            block_len,
            block_bytes,
            ..
        } = self.layout();
        (elements / block_len).checked_mul(block_bytes)
    }

    /// Dequantises the blocks in `bytes` into `out`, which has as many elements.
    pub(super) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => for_blocks(bytes, out, |block, out: &mut [f32; 1]| {
                *out = [f32::from_le_bytes(*block)];
            }),
            Self::F16 => for_blocks(bytes, out, |block, out: &mut [f32; 1]| {
                *out = [f16::from_le_bytes(*block).to_f32()];
            }),
            Self::Bf16 => for_blocks(bytes, out, |block, out: &mut [f32; 1]| {
                *out = [bf16::from_le_bytes(*block).to_f32()];
            }),
            Self::Q8_0 => for_blocks(bytes, out, q8_0),
            Self::Q4_0 => for_blocks(bytes, out, q4_0),
            Self::Q4_1 => for_blocks(bytes, out, q4_1),
            Self::Q5_0 => for_blocks(bytes, out, q5_0),
            Self::Q5_1 => for_blocks(bytes, out, q5_1),
            Self::Q2K => for_blocks(bytes, out, q2_k),
            Self::Q3K => for_blocks(bytes, out, q3_k),
            Self::Q4K => for_blocks(bytes, out, q4_k),
            Self::Q5K => for_blocks(bytes, out, q5_k),
            Self::Q6K => for_blocks(bytes, out, q6_k),
            Self::Q8K => for_blocks(bytes, out, q8_k),
        }
    }
}

impl GgufType {
    /// The type that stores it.
    pub(super) fn ggml_type(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::Bf16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4_0 => GgmlType::Q4_0,
        }
    }

    /// Its name in ggml.
    pub(in crate::model) fn name(self) -> &'static str {
        self.ggml_type().name()
    }

    /// Bytes of so many weights.
    pub(in crate::model) fn bytes_of(self, elements: usize) -> u64 {
        self.ggml_type().bytes(elements).unwrap_or(usize::MAX) as u64
    }

    /// Dequantises the blocks in `bytes` into `out`, which has as many elements.
    pub(in crate::model) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        self.ggml_type().dequantize(bytes, out);
    }

    /// Quantises `values`, a whole number of blocks.
    pub(in crate::model) fn quantize(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => by_block(values, |x: &[f32; 1]| x[0].to_le_bytes()),
            Self::F16 => by_block(values, |x: &[f32; 1]| f16::from_f32(x[0]).to_le_bytes()),
            Self::Bf16 => by_block(values, |x: &[f32; 1]| bf16::from_f32(x[0]).to_le_bytes()),
            Self::Q8_0 => by_block(values, to_q8_0),
            Self::Q4_0 => by_block(values, to_q4_0),
        }
    }
}

/// ggml's name of the type with this number, supported or not.
pub(super) fn type_name(id: u32) -> String {
    const UNSUPPORTED: [(u32, &str); 24] = [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (9, "Q8_1"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
    ];
    let unsupported = UNSUPPORTED.iter().find(|(known, _)| *known == id);
    let name = GgmlType::from_id(id).map(GgmlType::name);
    name.or(unsupported.map(|(_, name)| *name)).map_or_else(
        || format!("number {id}, which ggml did not have"),
        str::to_owned,
    )
}

/// Dequantises block after block.
fn for_blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    dequantize: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    for (block, out) in blocks.iter().zip(out) {
        dequantize(block, out);
    }
}

/// Quantises block after block, in parallel.
fn by_block<const LEN: usize, const BYTES: usize>(
    values: &[f32],
    quantize: impl Fn(&[f32; LEN]) -> [u8; BYTES] + Sync + Send,
) -> Vec<u8> {
    let blocks = values.as_chunks().0;
    let bytes: Vec<[u8; BYTES]> = blocks.par_iter().map(quantize).collect();
    bytes.into_flattened()
}

/// The f16 at byte `at`.
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale, 32 x 8 bits: q d.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (out, q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q.cast_signed()) * d;
    }
}

/// The 32 nibbles of 16 bytes: the low ones are elements 0 to 15, the high ones 16 to 31.
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| bytes[i % 16] >> (4 * (i / 16)) & 15)
}

/// The 32 numbers of 5 bits in 16 bytes of nibbles and 4 bytes of high bits.
fn five_bits(high: &[u8], low: &[u8]) -> [u8; 32] {
    let low = nibbles(low);
    std::array::from_fn(|i| low[i] | (high[i / 8] >> (i % 8) & 1) << 4)
}

/// Scale, 32 x 4 bits: (q - 8) d.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    *out = nibbles(&block[2..]).map(|q| (f32::from(q) - 8.0) * d);
}

/// Scale, minimum, 32 x 4 bits: q d + m.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    *out = nibbles(&block[4..]).map(|q| f32::from(q) * d + m);
}

/// Scale, 32 high bits, 32 x 4 low bits: (q - 16) d.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    *out = five_bits(&block[2..6], &block[6..]).map(|q| (f32::from(q) - 16.0) * d);
}

/// Scale, minimum, 32 high bits, 32 x 4 low bits: q d + m.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    *out = five_bits(&block[4..8], &block[8..]).map(|q| f32::from(q) * d + m);
}

/// 16 groups of 16 weights, each with 4 bits of scale and 4 of minimum; 2 bits a weight: `d s q - m_d m`.
///
/// Each byte of 2-bit numbers holds the weights that lie 32 apart in one half of the block.
fn q2_k(block: &[u8; 84], out: &mut [f32; K]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, d_min) = (scale(block, 80), scale(block, 82));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let factor = d * f32::from(scales[group] & 15);
        let min = d_min * f32::from(scales[group] >> 4);
        let (first, shift) = two_bit_group(group);
        for (out, q) in out.iter_mut().zip(&q[first..]) {
            *out = factor * f32::from(q >> shift & 3) - min;
        }
    }
}

/// 16 groups of 16 weights, each with a scale of 6 bits; 2 low bits a weight and an inverted high bit: d (s - 32) (q - 4 h).
fn q3_k(block: &[u8; 110], out: &mut [f32; K]) {
    let (high, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = scale(block, 108);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low_bits = scales[group % 8] >> (4 * (group / 8)) & 15;
        let high_bits = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let factor = d * (f32::from(low_bits | high_bits << 4) - 32.0);
        let (first, shift) = two_bit_group(group);
        let high = &high[first % 32..];
        for ((out, q), high) in out.iter_mut().zip(&q[first..]).zip(high) {
            let offset = if high >> (group / 2) & 1 == 0 {
                4.0
            } else {
                0.0
            };
            *out = factor * (f32::from(q >> shift & 3) - offset);
        }
    }
}

/// The first byte of a group of sixteen 2-bit numbers, and their shift.
fn two_bit_group(group: usize) -> (usize, usize) {
    (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2)
}

/// Scale and minimum (6 bits each) of group `group` of 8.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low_bits = packed[group + 4];
        let high_bits = |at: usize| packed[at] >> 6 << 4;
        (
            low_bits & 15 | high_bits(group - 4),
            low_bits >> 4 | high_bits(group),
        )
    }
}

/// 8 groups of 32 weights, each with 6 bits of scale and 6 of minimum; 4 bits a weight: `d s q - m_d m`.
fn q4_k(block: &[u8; 144], out: &mut [f32; K]) {
    let (d, d_min) = (scale(block, 0), scale(block, 2));
    let (scales, q) = (&block[4..16], &block[16..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = scale_and_min(scales, group);
        let (factor, min) = (d * f32::from(s), d_min * f32::from(m));
        for (out, q) in out.iter_mut().zip(&q[group / 2 * 32..]) {
            *out = factor * f32::from(q >> (4 * (group % 2)) & 15) - min;
        }
    }
}

/// As [`q4_k`], with a fifth bit a weight.
fn q5_k(block: &[u8; 176], out: &mut [f32; K]) {
    let (d, d_min) = (scale(block, 0), scale(block, 2));
    let (scales, high, q) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = scale_and_min(scales, group);
        let (factor, min) = (d * f32::from(s), d_min * f32::from(m));
        for ((out, q), high) in out.iter_mut().zip(&q[group / 2 * 32..]).zip(high) {
            let q = q >> (4 * (group % 2)) & 15 | (high >> group & 1) << 4;
            *out = factor * f32::from(q) - min;
        }
    }
}

/// 16 groups of 16 weights, each with a scale of 8 bits; 4 low and 2 high bits a weight: d s (q - 32).
fn q6_k(block: &[u8; 210], out: &mut [f32; K]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = scale(block, 208);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let factor = d * f32::from(scales[group].cast_signed());
        // Of each half of the block, quarter by quarter.
        let (half, quarter, sixteen) = (group / 8, group % 8 / 2, group % 2 * 16);
        let low = &low[half * 64 + quarter % 2 * 32 + sixteen..];
        let high = &high[half * 32 + sixteen..];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let q = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            *out = factor * (f32::from(q) - 32.0);
        }
    }
}

/// An f32 scale, 256 x 8 bits, and sums that only products use: d q.
fn q8_k(block: &[u8; 292], out: &mut [f32; K]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, q) in out.iter_mut().zip(&block[4..]) {
        *out = d * f32::from(q.cast_signed());
    }
}

/// The reciprocal of a scale, zero for zero.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The largest magnitude is 127.
fn to_q8_0(values: &[f32; 32]) -> [u8; 34] {
    let largest = values.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let d = largest / 127.0;
    let inverse = inverse(d);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (q, x) in block[2..].iter_mut().zip(values) {
        *q = ((x * inverse).round() as i8).cast_unsigned();
    }
    block
}

/// The weight of largest magnitude, the first of equals, is -8.
fn to_q4_0(values: &[f32; 32]) -> [u8; 18] {
    let largest = values.iter().fold(
        0.0_f32,
        |largest, x| {
            if x.abs() > largest.abs() { *x } else { largest }
        },
    );
    let d = largest / -8.0;
    let inverse = inverse(d);
    let q = values.map(|x| ((x * inverse + 8.5) as u8).min(15));
    let mut block = [0; 18];
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (i, byte) in block[2..].iter_mut().enumerate() {
        *byte = q[i] | q[i + 16] << 4;
    }
    block
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use ::safetensors::SafeTensors;

    use super::*;

    #[test]
    fn a_number_names_one_type() {
        for kind in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(kind.id()), Some(kind));
        }
        assert_eq!(GgmlType::from_id(4), None);
    }

    /// `tests/golden/gguf_blocks.py`: `gguf.quants.quantize` and `dequantize`.
    #[test]
    fn blocks_are_those_of_the_python_package() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/blocks.safetensors");
        let bytes = fs::read(path).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| golden.tensor(name).unwrap().data();
        let floats = |name: &str| -> Vec<f32> {
            let bytes = read(name).as_chunks().0;
            bytes.iter().map(|x| f32::from_le_bytes(*x)).collect()
        };
        let values = floats("values");
        for kind in [
            GgufType::F32,
            GgufType::F16,
            GgufType::Bf16,
            GgufType::Q8_0,
            GgufType::Q4_0,
        ] {
            let name = kind.ggml_type().name();
            assert!(
                kind.quantize(&values) == read(&format!("quantized.{name}")),
                "{name}"
            );
        }
        for kind in GgmlType::ALL {
            let name = kind.name();
            let expected = floats(&format!("dequantized.{name}"));
            let mut values = vec![0.0; expected.len()];
            kind.dequantize(read(&format!("blocks.{name}")), &mut values);
            let same = values
                .iter()
                .zip(&expected)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name}");
        }
    }
}
