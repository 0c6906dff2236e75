//! Compare parts of quantized tensors with a plain loop, written from the description of the format.
#![no_main]

use apr_format::{
    Dtype,
    internal::{index::Tensor, quant},
};
use apr_format_fuzz::{on_this_thread, size};
use half::f16;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

/// The largest number of values.
const MOST: u64 = 2_000;
/// The largest number of values of a large tensor. It takes more than three tasks.
const MOST_OF_LARGE: u64 = 100_000;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    dtype: u8,
    dims: Vec<u8>,
    /// Above 252, the first dimension is multiplied by 512, so that the tensor takes more than one task.
    large: u8,
    flat: bool,
    start: u32,
    length: u32,
    /// Repeated up to the tensor's size.
    pattern: &'a [u8],
}

fuzz_target!(init: on_this_thread(), |input: Input| {
    let dtype = [Dtype::Q4, Dtype::Q8, Dtype::Q4K, Dtype::Q6K][usize::from(input.dtype % 4)];
    let mut dims: Vec<_> = input.dims.iter().take(8).map(|&dim| u64::from(dim)).collect();
    let is_large = input.large > 252;
    if let Some(first) = dims.first_mut().filter(|_| is_large) {
        *first *= 512;
    }
    let most = if is_large { MOST_OF_LARGE } else { MOST };
    let count = dims.iter().try_fold(1_u64, |count, &dim| count.checked_mul(dim));
    let Some(count) = count.filter(|&count| count <= most) else { return };
    let nbytes = if input.flat { dtype.nbytes_flat(&dims) } else { dtype.nbytes(&dims) };
    let Some(nbytes) = nbytes.filter(|&nbytes| nbytes <= 210 * most) else { return };
    let pattern = if input.pattern.is_empty() { &[0] } else { input.pattern };
    let bytes: Vec<u8> = pattern.iter().copied().cycle().take(size(nbytes)).collect();
    let tensor = Tensor { name: "t".into(), dtype, dims, offset: 0, nbytes };
    let start = u64::from(input.start) % (count + 1);
    let length = size(u64::from(input.length) % (count - start + 1));
    let mut values = vec![f32::NAN; length];
    quant::dequantize(bytes.as_slice(), &tensor, start, &mut values).expect("a part of it");
    for (at, actual) in (size(start)..).zip(values) {
        let expected = value(&bytes, &tensor, at);
        assert!(
            actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan()),
            "value {at}: {actual} instead of {expected}"
        );
    }
    // One value after the last is refused.
    let beyond = quant::dequantize(bytes.as_slice(), &tensor, count, &mut [0.0]);
    assert!(beyond.is_err());
});

/// Compute one value from the description of the format alone.
fn value(bytes: &[u8], tensor: &Tensor, at: usize) -> f32 {
    let block = |values: usize, size: usize| {
        let (block, within) = match tensor.dims.as_slice() {
            &[rows, columns] if tensor.nbytes == rows * columns.div_ceil(values as u64) * size as u64 => {
                let columns = usize::try_from(columns).expect("small");
                let (row, column) = (at / columns, at % columns);
                (row * columns.div_ceil(values) + column / values, column % values)
            }
            _ => (at / values, at % values),
        };
        (&bytes[block * size..(block + 1) * size], within)
    };
    match tensor.dtype {
        Dtype::Q4 => {
            let bytes = &bytes[at / 32 * 18..][..18];
            let scale = half(bytes, 0);
            let scale = if scale.is_normal() { scale.to_f32() } else { 0.0 };
            (i32::from(bytes[2 + at % 32 / 2] >> (at % 2 * 4) & 15) - 8) as f32 * scale
        }
        Dtype::Q8 => {
            let scale = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            f32::from(bytes[4 + at] as i8) * scale
        }
        Dtype::Q4K => {
            let (bytes, i) = block(256, 144);
            let packed = &bytes[4..16];
            let j = i / 32;
            let (scale, min) = if j < 4 {
                (packed[j] & 63, packed[j + 4] & 63)
            } else {
                (
                    packed[j + 4] & 15 | (packed[j - 4] & 0xc0) >> 2,
                    packed[j + 4] >> 4 | (packed[j] & 0xc0) >> 2,
                )
            };
            let nibble = bytes[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            let (scale, min) =
                (half(bytes, 0).to_f32() * f32::from(scale), half(bytes, 2).to_f32() * f32::from(min));
            scale * f32::from(nibble) - min
        }
        Dtype::Q6K => {
            let (bytes, i) = block(256, 210);
            let (n, i) = (i / 128, i % 128);
            let low = bytes[64 * n + i % 64] >> (i / 64 * 4) & 15;
            let high = bytes[128 + 32 * n + i % 32] >> (i / 32 * 2) & 3;
            let scale = f32::from(bytes[192 + 8 * n + i / 16] as i8);
            half(bytes, 208).to_f32() * scale * ((low | high << 4) as i8 - 32) as f32
        }
        _ => unreachable!("four dtypes are quantized"),
    }
}

fn half(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}
