//! Quantize float32 values to q8 and q4, byte for byte as aprender's importer does.

use half::f16;
use rayon::prelude::*;

use crate::{
    dtype::Dtype,
    error::{Error, Result},
    threads,
};

/// Values that one task quantizes: enough that starting a task costs nothing against it.
const TASK: usize = 32 << 10;
/// Values of a q4 block.
const Q4_VALUES: usize = 32;
/// Bytes of a q4 block: an f16 scale and 32 nibbles.
const Q4_SIZE: usize = 18;

/// Quantize values to q4 or q8 and return the bytes to store.
///
/// q8 has one f32 scale for the tensor: the largest magnitude divided by 127. q4 has an f16 scale for each block of
/// 32 values: the largest magnitude of the block divided by 7. Values are rounded to the nearest step, halves away
/// from zero.
///
/// # Errors
/// [`Rule::Invalid`](crate::Rule::Invalid) for another dtype, for NaN and infinities, and for q4 magnitudes above
/// 458 528, whose scale an f16 cannot hold.
pub fn quantize(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>> {
    threads::run(|| quantize_here(dtype, values))
}

fn quantize_here(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>> {
    let refuse = |what: String| Err(Error::invalid(what));
    if !matches!(dtype, Dtype::Q4 | Dtype::Q8) {
        return refuse(format!("cannot quantize to {}: the dtype must be q4 or q8", dtype.name()));
    }
    if let Some(at) = values.par_iter().position_first(|value| !value.is_finite()) {
        return refuse(format!("value {at} is {}: quantized dtypes hold only finite values", values[at]));
    }
    if dtype == Dtype::Q8 {
        return Ok(q8(values));
    }
    let largest = 7.0 * f16::MAX.to_f32();
    if let Some(at) = values.par_iter().position_first(|value| value.abs() > largest) {
        return refuse(format!("value {at} is {}: q4 holds magnitudes of at most {largest}", values[at]));
    }
    Ok(q4(values))
}

fn q8(values: &[f32]) -> Vec<u8> {
    let scale = values.par_iter().map(|value| value.abs()).reduce(|| 0.0, f32::max) / 127.0;
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.resize(bytes.len() + values.len(), 0);
    bytes[4..].par_chunks_mut(TASK).zip(values.par_chunks(TASK)).for_each(|(stored, values)| {
        for (byte, value) in stored.iter_mut().zip(values) {
            *byte = step(*value, scale, 127.0).to_le_bytes()[0];
        }
    });
    bytes
}

fn q4(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len().div_ceil(Q4_VALUES) * Q4_SIZE];
    let blocks = bytes.par_chunks_exact_mut(Q4_SIZE).zip(values.par_chunks(Q4_VALUES));
    blocks.with_min_len(TASK / Q4_VALUES).for_each(|(block, values)| {
        let scale = values.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 7.0;
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (i, byte) in block[2..].iter_mut().enumerate() {
            // A partial last block is stored whole, padded with zeros.
            let nibble = |i: usize| step(values.get(i).copied().unwrap_or(0.0), scale, 7.0) + 8;
            *byte = (nibble(2 * i) | (nibble(2 * i + 1) << 4)).to_le_bytes()[0];
        }
    });
    bytes
}

/// Return the step nearest to a value, from `-most` to `most`; 0 if the scale is 0.
#[allow(clippy::cast_possible_truncation)] // at most 127
fn step(value: f32, scale: f32, most: f32) -> i16 {
    if scale > 0.0 { (value / scale).round().clamp(-most, most) as i16 } else { 0 }
}
