//! How much of a corpus is there more than once.
//!
//! Windows of 64 ids are taken at places that the ids themselves choose, so that a copy is found wherever it
//! begins, and counted twice: all of them, and the different ones. The second number is estimated from a
//! sketch (`HyperLogLog`), which needs 16 KiB whatever the corpus, and whose maximum over parts does not
//! depend on who took which part.

/// Ids of a window.
pub const WINDOW: usize = 64;
/// A window starts where the sum of two ids is a multiple of this: every 256 ids or so. The lowest byte tells.
const SPACING: usize = 1 << u8::BITS;
/// Where no pair of ids says so, one starts after this many: text of a short period has windows too.
const FURTHEST: usize = 3 * SPACING;
/// Registers of the sketch: a standard error of 0.8 %.
const REGISTERS: usize = 1 << PRECISION;
const PRECISION: u32 = 14;
/// The most leading zeros that the rest of a hash can have.
const MOST_ZEROS: u32 = u64::BITS - PRECISION;

/// Windows of the text so far.
#[derive(Clone, Debug)]
pub(super) struct Repeats {
    windows: u64,
    registers: Vec<u8>,
    /// Room for the lowest bytes of ids, and for the sums of two neighbors' each.
    lowest: Vec<u8>,
    sums: Vec<u8>,
}

impl Default for Repeats {
    fn default() -> Self {
        Self { windows: 0, registers: vec![0; REGISTERS], lowest: Vec::new(), sums: Vec::new() }
    }
}

impl Repeats {
    /// Take the windows that lie within these ids.
    pub(super) fn add(&mut self, ids: &[[u8; 4]]) {
        // Bytes without a branch in between, 16 and more at a time; then a search that is made for bytes.
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
            let furthest = rest.len().min(FURTHEST);
            let start = at + memchr::memchr(0, &rest[..furthest]).unwrap_or(furthest);
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
        if let Some(found) = self.registers.get_mut(register) {
            *found = rank.max(*found);
        }
    }

    /// All windows, and how many different ones there are, of these parts.
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

    /// Ertl's estimate (<https://arxiv.org/abs/1702.01284>, algorithm 6), which has no bias at any size.
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

/// Not `id[0]`, which compilers take from memory a byte at a time.
fn lowest(id: [u8; 4]) -> u8 {
    (u32::from_le_bytes(id) & 0xff) as u8
}

/// A hash of a window: four lanes that do not wait for one another, mixed by splitmix64's finalizer.
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

    /// Ids without order.
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
    fn text_without_repeats_has_none() {
        for length in [30_000, 300_000, 3_000_000, 10_000_000] {
            assert!(different(&random(length, 1)) > 0.98);
        }
    }

    #[test]
    fn copies_are_found_wherever_they_begin() {
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
    fn text_of_a_short_period_has_few_different_windows() {
        for period in [1, 2, 3, 50, 64, 100, 1000] {
            let ids = random(period, 5).repeat(usize::try_from(500_000 / period).unwrap());
            assert!(different(&ids) < 0.2, "{period}: {}", different(&ids));
        }
    }

    #[test]
    fn parts_in_any_order_give_the_same() {
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
