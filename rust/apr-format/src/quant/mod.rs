//! Quantised tensors to float32, in parallel, bit for bit as their writers' own readers.

mod blocks;

use rayon::prelude::*;

use crate::{
    dtype::{Dtype, Q8_SCALE},
    error::{Error, Result},
    source::{Source, read_vec},
    v2::index::Tensor,
};

/// Values that one task makes: some hundred kilobytes, so that they stay in the core's own cache.
const TASK: usize = 32 << 10;

/// Fill `out` with the values of a quantised tensor, its stored bytes read from `source`.
///
/// # Errors
/// [`Error::Unwritable`] where the tensor is not quantised or `out` is of another size; the
/// operating system's.
pub fn dequantise(source: &(impl Source + ?Sized), tensor: &Tensor, out: &mut [f32]) -> Result<()> {
    if tensor.count() != out.len() as u64 {
        let what = format!("tensor {:?} has {} values, not {}", tensor.name, tensor.count(), out.len());
        return Err(Error::Unwritable { tensor: Some(tensor.name.clone()), what });
    }
    if out.is_empty() {
        return Ok(());
    }
    match tensor.dtype {
        Dtype::Q4 => in_blocks(source, tensor, out, blocks::q4),
        Dtype::Q4K => in_blocks(source, tensor, out, blocks::q4_k),
        Dtype::Q6K => in_blocks(source, tensor, out, blocks::q6_k),
        Dtype::Q8 => q8(source, tensor, out),
        other => {
            let what = format!("tensor {:?} is {}, which is not quantised", tensor.name, other.name());
            Err(Error::Unwritable { tensor: Some(tensor.name.clone()), what })
        }
    }
}

/// Blocks of `N` values in `B` bytes. Rows that are padded start at a block of their own.
fn in_blocks<const N: usize, const B: usize>(
    source: &(impl Source + ?Sized),
    tensor: &Tensor,
    out: &mut [f32],
    decode: impl Fn(&[u8; B]) -> [f32; N] + Sync,
) -> Result<()> {
    // What repeats: a block, or where it would straddle two rows, a row.
    let row = tensor.padded_columns().and_then(|columns| usize::try_from(columns).ok());
    let unit = row.filter(|row| !row.is_multiple_of(N) && *row < out.len()).unwrap_or(N);
    let unit_bytes = unit.div_ceil(N) * B;
    let units = (TASK / unit).max(1);
    out.par_chunks_mut(unit * units).enumerate().try_for_each(|(task, values)| {
        let bytes = values.len().div_ceil(unit) * unit_bytes;
        let stored = stored(source, tensor, (task * units * unit_bytes) as u64, bytes)?;
        for (values, stored) in values.chunks_mut(unit).zip(stored.chunks_exact(unit_bytes)) {
            for (values, block) in values.chunks_mut(N).zip(stored.as_chunks::<B>().0) {
                values.copy_from_slice(&decode(block)[..values.len()]);
            }
        }
        Ok(())
    })
}

/// One f32 scale, then an i8 for each value.
fn q8(source: &(impl Source + ?Sized), tensor: &Tensor, out: &mut [f32]) -> Result<()> {
    let mut scale = [0; 4];
    source.read_at(tensor.offset, &mut scale)?;
    let scale = f32::from_le_bytes(scale);
    out.par_chunks_mut(TASK).enumerate().try_for_each(|(task, values)| {
        let stored = stored(source, tensor, Q8_SCALE + (task * TASK) as u64, values.len())?;
        for (value, &byte) in values.iter_mut().zip(&stored) {
            *value = f32::from(byte.cast_signed()) * scale;
        }
        Ok(())
    })
}

/// `size` bytes of a tensor, from its byte `at` on.
fn stored(source: &(impl Source + ?Sized), tensor: &Tensor, at: u64, size: usize) -> Result<Vec<u8>> {
    Ok(read_vec(source, tensor.offset.saturating_add(at), size as u64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, dims: &[u64], nbytes: usize) -> Tensor {
        Tensor { name: "t".into(), dtype, dims: dims.into(), offset: 0, nbytes: nbytes as u64 }
    }

    fn values(dtype: Dtype, dims: &[u64], bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; usize::try_from(dims.iter().product::<u64>()).unwrap()];
        dequantise(bytes, &tensor(dtype, dims, bytes.len()), &mut out).unwrap();
        out
    }

    /// `q6_k` blocks that hold one value each, known by their scale.
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
    fn padded_rows_start_at_a_block_and_flat_ones_do_not() {
        let padded = marks(&values(Dtype::Q6K, &[2, 300], &marked(4)));
        assert_eq!([255, 256, 299, 300, 599].map(|i| padded[i]), [1, 2, 2, 3, 4]);
        let flat = marks(&values(Dtype::Q6K, &[2, 300], &marked(3)));
        assert_eq!([255, 256, 511, 512, 599].map(|i| flat[i]), [1, 2, 2, 3, 3]);
        // Where both layouts have the same size, rows are padded.
        let same = marks(&values(Dtype::Q6K, &[2, 200], &marked(2)));
        assert_eq!([199, 200].map(|i| same[i]), [1, 2]);
    }

    #[test]
    fn what_takes_several_tasks_is_whole() {
        let stored = || (0..=250_u8).cycle().take(3 * TASK + 7);
        let bytes: Vec<u8> = 0.5_f32.to_le_bytes().into_iter().chain(stored()).collect();
        let expected: Vec<_> = stored().map(|byte| f32::from(byte.cast_signed()) * 0.5).collect();
        assert_eq!(values(Dtype::Q8, &[expected.len() as u64], &bytes), expected);
    }

    #[test]
    fn another_size_and_other_dtypes_are_refused() {
        let mut out = [0.0; 3];
        let mut refused = |dtype, dims: &[u64], bytes: &[u8]| {
            dequantise(bytes, &tensor(dtype, dims, bytes.len()), &mut out).is_err()
        };
        assert!(refused(Dtype::Q8, &[4], &[0; 8]));
        assert!(refused(Dtype::F32, &[3], &[0; 12]));
        assert!(refused(Dtype::Q8, &[3], &[0; 6]));
    }
}
