//! Decoders of one block of each quantized dtype.
//!
//! Each decoder keeps the order of operations of the reference reader (aprender's for q4, GGML's for the
//! others): float32 arithmetic is not associative, and the values must agree in every bit.

use half::f16;

/// Decode a block of q4: an f16 scale, then 32 nibbles, the low one of each byte first.
#[inline] // into the bindings' instance of `decode`: a call for each block makes it 25 % slower
pub(super) fn q4(block: &[u8; 18]) -> [f32; 32] {
    let scale = f16_at(block, 0);
    // aprender's reader replaces NaN, infinite and subnormal scales by zero, so a block that it wrote with
    // such a scale decodes to zeros there.
    let scale = if scale.is_normal() { scale.to_f32() } else { 0.0 };
    std::array::from_fn(|i| {
        let byte = block[2 + i / 2];
        let nibble = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
        (f32::from(nibble) - 8.0) * scale
    })
}

/// Decode a block of GGML's `q4_k`: the f16 factors `d` and `dmin`, 12 bytes of 6-bit scales and minimums, then
/// eight groups of 32 nibbles.
///
/// Two groups share 32 bytes: an even group has the low nibbles, the odd group after it the high ones.
#[inline]
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

/// Return the 6-bit scale and minimum of one of eight groups, which 12 bytes hold.
///
/// Bytes 0 to 3 hold the scales of groups 0 to 3 in their low six bits, bytes 4 to 7 the minimums. Groups 4 to 7
/// are split: the low four bits of both share bytes 8 to 11, and the high two bits fill the rest of bytes 0 to 7.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let low = packed[group + 4];
    ((low & 15) | (packed[group - 4] >> 6 << 4), (low >> 4) | (packed[group] >> 6 << 4))
}

/// Decode a block of GGML's `q6_k`: 128 bytes with the low four bits of each value, 64 bytes with the high two, 16
/// i8 scales, and the f16 factor `d` at the end.
///
/// Each half of a block has four groups of 32 values. Groups 0 and 1 use the low nibbles of 64 bytes, groups 2 and
/// 3 the high nibbles; all four share 32 bytes of high bits, two bits each. A scale covers a run of 16 values.
#[inline]
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
