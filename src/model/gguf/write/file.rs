//! The bytes of a GGUF file: header, metadata, tensor table, tensors.

use std::{
    borrow::Cow,
    io::{self, BufWriter, Write},
    path::Path,
};

use crate::{Error, Result, atomic_file, model::GgufType};

const VERSION: u32 = 2;
/// Tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 32;

/// A metadata value.
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A tensor and the type that stores it.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) kind: GgufType,
    /// Whole rows, each a whole number of blocks.
    pub(super) values: Cow<'a, [f32]>,
}

/// Writes the file `path`, complete or not at all. One quantised tensor is in memory at a time.
pub(super) fn write(path: &Path, metadata: &[(String, Value)], tensors: &[Tensor]) -> Result<()> {
    let mut file = atomic_file::temp_file(path)?;
    write_to(&mut file, metadata, tensors).map_err(Error::io("write", path))?;
    atomic_file::persist(file, path)
}

fn write_to(
    file: &mut impl Write,
    metadata: &[(String, Value)],
    tensors: &[Tensor],
) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    file.write_all(&header(metadata, tensors))?;
    for tensor in tensors {
        let mut bytes = tensor.kind.quantize(&tensor.values);
        pad(&mut bytes);
        file.write_all(&bytes)?;
    }
    file.flush()
}

/// All bytes before the first tensor.
pub(super) fn header(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    put_u32(&mut out, VERSION);
    put_len(&mut out, tensors.len());
    put_len(&mut out, metadata.len());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        let kind = tensor.kind.ggml_type();
        put_text(&mut out, &tensor.name);
        put_u32(&mut out, tensor.shape.len() as u32);
        for dimension in tensor.shape.iter().rev() {
            put_len(&mut out, *dimension);
        }
        put_u32(&mut out, kind.id());
        put_len(&mut out, offset);
        let bytes = kind.bytes(tensor.values.len());
        offset += bytes
            .expect("a tensor in memory is no larger in a file")
            .next_multiple_of(ALIGNMENT);
    }
    pad(&mut out);
    out
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    // The numbers that GGUF gives to types of metadata.
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const BOOL: u32 = 7;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    match value {
        Value::U32(n) => {
            put_u32(out, U32);
            put_u32(out, *n);
        }
        Value::F32(x) => {
            put_u32(out, F32);
            out.extend(x.to_le_bytes());
        }
        Value::Bool(b) => {
            put_u32(out, BOOL);
            out.push(u8::from(*b));
        }
        Value::Text(text) => {
            put_u32(out, STRING);
            put_text(out, text);
        }
        Value::Texts(texts) => {
            put_u32(out, ARRAY);
            put_u32(out, STRING);
            put_len(out, texts.len());
            for text in texts {
                put_text(out, text);
            }
        }
        Value::I32s(numbers) => {
            put_u32(out, ARRAY);
            put_u32(out, I32);
            put_len(out, numbers.len());
            for n in numbers {
                out.extend(n.to_le_bytes());
            }
        }
        Value::F32s(numbers) => {
            put_u32(out, ARRAY);
            put_u32(out, F32);
            put_len(out, numbers.len());
            for x in numbers {
                out.extend(x.to_le_bytes());
            }
        }
    }
}

fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend(n.to_le_bytes());
}

fn put_len(out: &mut Vec<u8>, n: usize) {
    out.extend((n as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len());
    out.extend(text.as_bytes());
}

/// Zeros up to the alignment.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}
