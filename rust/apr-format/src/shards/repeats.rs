//! How much of a corpus is repeated.
//!
//! Windows of 64 ids are sampled at positions that depend on the ids alone, so a copy gives the same windows
//! wherever it begins. All windows are counted, and the distinct ones are estimated by `HyperLogLog`. Its
//! sketch takes 16 KiB for any corpus, and sketches of parts merge by maximum, so the result does not depend
//! on which thread read what.

/// Number of ids in a window.
pub const WINDOW: usize = 64;
/// A window starts where the sum of two neighboring ids is a multiple of this, about every 256 ids. A power
/// of two of one byte, so that only the lowest byte of each id is needed.
const SPACING: usize = 1 << u8::BITS;
/// A window starts after this many ids at the latest. Otherwise text with a short period might have none.
const MAX_GAP: usize = 3 * SPACING;
/// Registers of the sketch, for a standard error of 1.04 / sqrt(2^14) = 0.8 %.
const REGISTERS: usize = 1 << PRECISION;
const PRECISION: u32 = 14;
/// The most leading zeros that a hash can have after the bits that choose its register.
const MOST_ZEROS: u32 = u64::BITS - PRECISION;

/// The windows sampled so far.
#[derive(Clone, Debug)]
pub(super) struct Repeats {
    windows: u64,
    registers: Vec<u8>,
    /// Scratch memory: the lowest byte of each id, and the sums of neighbors.
    lowest: Vec<u8>,
    sums: Vec<u8>,
}

impl Default for Repeats {
    fn default() -> Self {
        Self { windows: 0, registers: vec![0; REGISTERS], lowest: Vec::new(), sums: Vec::new() }
    }
}

impl Repeats {
    /// Sample the windows that lie within `ids`.
    pub(super) fn add(&mut self, ids: &[[u8; 4]]) {
        // Sums first, without a branch, so that the compiler handles 16 and more at a time; then `memchr`
        // finds the zeros.
        self.lowest.clear();
        let (blocks, rest) = ids.as_chunks::<16>();
        self.lowest.extend(blocks.iter().flat_map(|ids| ids.map(lowest)));
        self.lowest.extend(rest.iter().copied().map(lowest));
        let mut sums = std::mem::take(&mut self.sums);
        sums.clear();
        let second = self.lowest.get(1..).unwrap_or_default();
        sums.extend(self.lowest.iter().zip(second).map(|(a, b)| a.wrapping_add(*b)));
        let mut at = 0;
        while let Some(rest) = sums.get(at..) {
            let gap = rest.len().min(MAX_GAP);
            let start = at + memchr::memchr(0, &rest[..gap]).unwrap_or(gap);
            let Some(window) = ids.get(start..start + WINDOW) else { break };
            self.add_hash(hash(window));
            at = start + WINDOW;
        }
        self.sums = sums;
    }

    fn add_hash(&mut self, hash: u64) {
        self.windows += 1;
        let register = usize::try_from(hash >> MOST_ZEROS).unwrap_or(0);
        let zeros = (hash << PRECISION).leading_zeros().min(MOST_ZEROS);
        let rank = u8::try_from(zeros + 1).unwrap_or(u8::MAX);
        if let Some(highest) = self.registers.get_mut(register) {
            *highest = rank.max(*highest);
        }
    }

    /// Return the number of windows of several parts, and the estimated number of distinct ones.
    pub(super) fn merged(all: impl IntoIterator<Item = Self>) -> (u64, u64) {
        let mut sum = Self::default();
        for one in all {
            sum.windows += one.windows;
            for (most, rank) in sum.registers.iter_mut().zip(one.registers) {
                *most = rank.max(*most);
            }
        }
        (sum.windows, sum.different().min(sum.windows))
    }

    /// Ertl's estimator (<https://arxiv.org/abs/1702.01284>, algorithm 6), which is unbiased at every size.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn different(&self) -> u64 {
        let mut ranks = [0_u32; MOST_ZEROS as usize + 2];
        for &rank in &self.registers {
            ranks[usize::from(rank)] += 1;
        }
        let m = REGISTERS as f64;
        let full = f64::from(ranks[MOST_ZEROS as usize + 1]);
        let mut z = m * tau(1.0 - full / m);
        for &count in ranks[1..=MOST_ZEROS as usize].iter().rev() {
            z = 0.5 * (z + f64::from(count));
        }
        z += m * sigma(f64::from(ranks[0]) / m);
        (m * m / (2.0 * std::f64::consts::LN_2 * z)).round() as u64
    }
}

fn sigma(mut x: f64) -> f64 {
    if x >= 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let next = z + x * y;
        if next <= z {
            return z;
        }
        (y, z) = (2.0 * y, next);
    }
}

fn tau(mut x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        y *= 0.5;
        let next = z - (1.0 - x) * (1.0 - x) * y;
        if next >= z {
            return z / 3.0;
        }
        z = next;
    }
}

/// Not `id[0]`, which the compiler loads from memory a byte at a time.
fn lowest(id: [u8; 4]) -> u8 {
    (u32::from_le_bytes(id) & 0xff) as u8
}

/// Hash a window. Four independent lanes keep the multiplier busy; the finalizer of splitmix64 mixes them.
fn hash(window: &[[u8; 4]]) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut lanes = [1_u64, 2, 3, 4];
    for ids in window.as_chunks::<8>().0 {
        for (lane, pair) in lanes.iter_mut().zip(ids.as_chunks::<2>().0) {
            let pair = u64::from(u32::from_le_bytes(pair[0])) << 32 | u64::from(u32::from_le_bytes(pair[1]));
            *lane = (lane.rotate_left(29) ^ pair).wrapping_mul(ODD);
        }
    }
    lanes.into_iter().fold(0, |sum: u64, lane| {
        let mut z = sum.wrapping_add(lane);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudorandom ids.
    fn random(count: u64, seed: u64) -> Vec<[u8; 4]> {
        (0..count)
            .map(|i| {
                let z = (seed << 40 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                u32::try_from((z ^ (z >> 27)) % 50_000).unwrap().to_le_bytes()
            })
            .collect()
    }

    #[allow(clippy::cast_precision_loss)]
    fn different(ids: &[[u8; 4]]) -> f64 {
        let mut repeats = Repeats::default();
        repeats.add(ids);
        let (windows, different) = Repeats::merged([repeats]);
        assert!(windows > ids.len() as u64 / 1000, "{windows} windows");
        different as f64 / windows as f64
    }

    #[test]
    fn text_without_repeats_has_only_distinct_windows() {
        for length in [30_000, 300_000, 3_000_000, 10_000_000] {
            assert!(different(&random(length, 1)) > 0.98);
        }
    }

    #[test]
    fn copies_are_counted_wherever_they_begin() {
        for copies in [2, 4, 10] {
            let once = random(70_001, 2);
            let mut ids = Vec::new();
            for copy in 0..copies {
                ids.extend(random(copy * 37, 3 + copy));
                ids.extend(&once);
            }
            let expected = 1.0 / f64::from(u32::try_from(copies).unwrap());
            assert!((different(&ids) - expected).abs() < 0.02, "{copies}: {}", different(&ids));
        }
    }

    #[test]
    fn text_with_a_short_period_has_few_distinct_windows() {
        for period in [1, 2, 3, 50, 64, 100, 1000] {
            let ids = random(period, 5).repeat(usize::try_from(500_000 / period).unwrap());
            assert!(different(&ids) < 0.2, "{period}: {}", different(&ids));
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_order_of_parts() {
        let ids = random(400_000, 6);
        let parts: Vec<_> = ids
            .chunks(16_384)
            .map(|part| {
                let mut repeats = Repeats::default();
                repeats.add(part);
                repeats
            })
            .collect();
        let forwards = Repeats::merged(parts.clone());
        assert_eq!(forwards, Repeats::merged(parts.into_iter().rev()));
        let mut one = Repeats::default();
        ids.chunks(16_384).for_each(|part| one.add(part));
        assert_eq!(forwards, Repeats::merged([one]));
    }
}
