//! Dequantize tensors to float32 in parallel, and quantize float32 values.
//!
//! The values agree in every bit with those of the reference readers.

mod blocks;
mod encode;

pub use encode::quantize;

use crate::{
    dtype::{Dtype, Q8_SCALE},
    error::{Error, Result},
    index::Tensor,
    source::{Source, read_vec},
    threads,
};

/// Values that one task decodes: 128 KiB as float32, which stay in a core's own L2 cache.
pub const TASK: usize = 32 << 10;

/// Fill `out` with values of a quantized tensor, in row-major order, beginning with its value `start`. Only the
/// blocks that hold these values are read from `source`.
///
/// # Errors
/// [`Rule::Invalid`](crate::Rule::Invalid) if the tensor is not quantized or has fewer values;
/// [`Rule::Io`](crate::Rule::Io) if reading fails.
pub fn dequantize(
    source: &(impl Source + ?Sized),
    tensor: &Tensor,
    start: u64,
    out: &mut [f32],
) -> Result<()> {
    let tasks = out.chunks_mut(TASK).enumerate().collect();
    threads::try_map(tasks, |(task, out)| {
        let start = start.saturating_add((task * TASK) as u64);
        let mut rest = &mut out[..];
        decode(source, tensor, start, rest.len(), |values| {
            let (place, later) = std::mem::take(&mut rest).split_at_mut(values.len());
            place.copy_from_slice(values);
            rest = later;
            Ok(())
        })
    })
    .map(|_: Vec<()>| ())
}

/// Pass `count` values of a quantized tensor to `write`, a block at a time and in order, beginning with its value
/// `start`. This runs on the calling thread.
///
/// # Errors
/// Those of [`dequantize`], and those of `write`.
pub fn decode(
    source: &(impl Source + ?Sized),
    tensor: &Tensor,
    start: u64,
    count: usize,
    write: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    if start.checked_add(count as u64).is_none_or(|end| end > tensor.count()) {
        let what =
            format!("cannot read {count} values from index {start}: the tensor has {}", tensor.count());
        return Err(Error::invalid(what).of_tensor(&tensor.name));
    }
    match tensor.dtype {
        Dtype::Q4 | Dtype::Q4K | Dtype::Q6K | Dtype::Q8 if count == 0 => Ok(()),
        Dtype::Q4 => in_blocks(source, tensor, start, count, blocks::q4, write),
        Dtype::Q4K => in_blocks(source, tensor, start, count, blocks::q4_k, write),
        Dtype::Q6K => in_blocks(source, tensor, start, count, blocks::q6_k, write),
        Dtype::Q8 => q8(source, tensor, start, count, write),
        other => {
            let what = format!("{other} is not a quantized dtype");
            Err(Error::invalid(what).of_tensor(&tensor.name))
        }
    }
}

/// The position of a value: its block, its index in the block, and how many values of its row the block has from
/// there on.
struct Place {
    block: u64,
    within: usize,
    run: usize,
}

/// Decode blocks of `N` values in `B` bytes.
///
/// Some writers pad each row to whole blocks, so that every row starts a new block; in other files the blocks run
/// through the tensor. The stored size tells which: see `Tensor::padded_columns`.
fn in_blocks<const N: usize, const B: usize>(
    source: &(impl Source + ?Sized),
    tensor: &Tensor,
    start: u64,
    count: usize,
    decode: impl Fn(&[u8; B]) -> [f32; N],
    mut write: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let row = tensor.padded_columns().filter(|row| *row > 0);
    let place = |value: u64| {
        let row = row.unwrap_or(u64::MAX);
        let (above, column) = (value / row, value % row);
        let block = above * row.div_ceil(N as u64) + column / N as u64;
        let within = usize::try_from(column % N as u64).unwrap_or(0); // below N
        let rest = usize::try_from(row - column).unwrap_or(usize::MAX);
        Place { block, within, run: rest.min(N - within) }
    };
    let first = place(start).block;
    let blocks = place(start + count as u64 - 1).block - first + 1;
    // In bounds: the size of the tensor was checked against its dims and the file when it was opened.
    let stored = read_vec(source, tensor.offset + first * B as u64, blocks * B as u64)?;
    let mut done = 0;
    for block in stored.as_chunks::<B>().0 {
        let Place { within, run, .. } = place(start + done as u64);
        let run = run.min(count - done);
        write(&decode(block)[within..within + run])?;
        done += run;
    }
    Ok(())
}

/// Decode q8: one f32 scale for the whole tensor, then an i8 for each value.
fn q8(
    source: &(impl Source + ?Sized),
    tensor: &Tensor,
    start: u64,
    count: usize,
    mut write: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    /// Values that are decoded at a time; the dtype itself has no blocks.
    const RUN: usize = 256;
    let mut scale = [0; 4];
    source.read_at(tensor.offset, &mut scale)?;
    let scale = f32::from_le_bytes(scale);
    let stored = read_vec(source, tensor.offset + Q8_SCALE + start, count as u64)?;
    let mut values = [0.0; RUN];
    for bytes in stored.chunks(RUN) {
        for (value, &byte) in values.iter_mut().zip(bytes) {
            *value = f32::from(byte.cast_signed()) * scale;
        }
        write(&values[..bytes.len()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, dims: &[u64], nbytes: usize) -> Tensor {
        Tensor { name: "t".into(), dtype, dims: dims.into(), offset: 0, nbytes: nbytes as u64 }
    }

    fn values(dtype: Dtype, dims: &[u64], bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; usize::try_from(dims.iter().product::<u64>()).unwrap()];
        dequantize(bytes, &tensor(dtype, dims, bytes.len()), 0, &mut out).unwrap();
        out
    }

    /// `q6_k` blocks of 256 equal values: the scale, and with it the value, tells the block.
    fn marked(blocks: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for mark in 1..=blocks {
            bytes.extend([0; 192]); // every value is -32
            bytes.extend([mark; 16]);
            bytes.extend(half::f16::from_f32(1.0).to_le_bytes());
        }
        bytes
    }

    fn marks(values: &[f32]) -> Vec<i32> {
        let mark = |value: &f32| (1..=4_i8).find(|mark| (value + 32.0 * f32::from(*mark)).abs() < 0.5);
        values.iter().map(|value| mark(value).map_or(0, i32::from)).collect()
    }

    #[test]
    fn only_padded_rows_start_a_new_block() {
        let padded = marks(&values(Dtype::Q6K, &[2, 300], &marked(4)));
        assert_eq!([255, 256, 299, 300, 599].map(|i| padded[i]), [1, 2, 2, 3, 4]);
        let flat = marks(&values(Dtype::Q6K, &[2, 300], &marked(3)));
        assert_eq!([255, 256, 511, 512, 599].map(|i| flat[i]), [1, 2, 2, 3, 3]);
        // If both layouts have the same size, the rows are taken as padded.
        let same = marks(&values(Dtype::Q6K, &[2, 200], &marked(2)));
        assert_eq!([199, 200].map(|i| same[i]), [1, 2]);
    }

    #[test]
    fn dequantizing_from_any_value_equals_the_rest_of_the_whole() {
        for (dims, blocks) in [([2, 300], 4), ([2, 300], 3), ([2, 200], 2)] {
            let bytes = marked(blocks);
            let tensor = tensor(Dtype::Q6K, &dims, bytes.len());
            let whole = values(Dtype::Q6K, &dims, &bytes);
            for start in [0, 1, 199, 255, 256, 299, 300, 301] {
                let rest = whole.get(start..).unwrap_or_default();
                let mut out = vec![f32::NAN; rest.len()];
                dequantize(bytes.as_slice(), &tensor, start as u64, &mut out).unwrap();
                assert_eq!(out, rest, "{dims:?} from {start}");
            }
        }
    }

    #[test]
    fn tensors_of_several_tasks_are_decoded_completely() {
        let stored = || (0..=250_u8).cycle().take(3 * TASK + 7);
        let bytes: Vec<u8> = 0.5_f32.to_le_bytes().into_iter().chain(stored()).collect();
        let expected: Vec<_> = stored().map(|byte| f32::from(byte.cast_signed()) * 0.5).collect();
        assert_eq!(values(Dtype::Q8, &[expected.len() as u64], &bytes), expected);
    }

    #[test]
    fn plain_dtypes_and_out_of_range_values_are_refused() {
        let mut out = [0.0; 3];
        let mut refused = |dtype, dims: &[u64], bytes: &[u8]| {
            dequantize(bytes, &tensor(dtype, dims, bytes.len()), 0, &mut out).is_err()
        };
        assert!(refused(Dtype::Q8, &[2], &[0; 6]));
        assert!(refused(Dtype::F32, &[3], &[0; 12]));
        assert!(refused(Dtype::Q8, &[3], &[0; 6]));
    }
}
