//! One block of each quantized dtype, in the order of operations of its writer's own reader.

use half::f16;

/// APR's q4: an f16 scale, then 32 nibbles, the low one of a byte first.
pub(super) fn q4(block: &[u8; 18]) -> [f32; 32] {
    let scale = f16_at(block, 0);
    // Its writer's reader takes NaN, infinite and subnormal scales for zero.
    let scale = if scale.is_normal() { scale.to_f32() } else { 0.0 };
    std::array::from_fn(|i| {
        let byte = block[2 + i / 2];
        let nibble = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
        (f32::from(nibble) - 8.0) * scale
    })
}

/// GGML's `q4_k`: d and dmin f16, 12 bytes of 6-bit scales and mins, then eight groups of 32 nibbles,
/// two groups to 32 bytes.
pub(super) fn q4_k(block: &[u8; 144]) -> [f32; 256] {
    let (d, dmin) = (f16_at(block, 0).to_f32(), f16_at(block, 2).to_f32());
    let mut values = [0.0; 256];
    for (group, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (start, shift) = (16 + group / 2 * 32, group % 2 * 4);
        for (value, byte) in values.iter_mut().zip(&block[start..start + 32]) {
            *value = scale * f32::from((byte >> shift) & 15) - min;
        }
    }
    values
}

/// The 6-bit scale and min of one of eight groups: the last four keep their two high bits above the
/// six bits of the first four.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let low = packed[group + 4];
    ((low & 15) | (packed[group - 4] >> 6 << 4), (low >> 4) | (packed[group] >> 6 << 4))
}

/// GGML's `q6_k`: 128 bytes of low nibbles, 64 of high bit pairs, 16 i8 scales, d f16. Each half of a
/// block is four groups of 32: groups 0 and 1 in the low nibbles, 2 and 3 in the high ones.
pub(super) fn q6_k(block: &[u8; 210]) -> [f32; 256] {
    let d = f16_at(block, 208).to_f32();
    let mut values = [0.0; 256];
    for (run, values) in values.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[192 + run].cast_signed());
        let (half, group, within) = (run / 8, run % 8 / 2, run % 2 * 16);
        let low = half * 64 + group % 2 * 32 + within;
        let high = 128 + half * 32 + within;
        for (i, value) in values.iter_mut().enumerate() {
            let low = (block[low + i] >> (group / 2 * 4)) & 15;
            let high = (block[high + i] >> (group * 2)) & 3;
            *value = scale * (f32::from(low | (high << 4)) - 32.0);
        }
    }
    values
}

fn f16_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}
