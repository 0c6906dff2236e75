//! The order in which training visits windows: a keyed bijection of 0 … W - 1, computed one position at a
//! time.
//!
//! A shuffled list of a billion windows would take 8 GB and a resumed run would have to rebuild it. This
//! needs no memory and starts at any position. It is a Feistel network of eight rounds over the smallest even
//! number of bits that holds W - 1; a result outside the range is fed through the network again (cycle
//! walking). Keys and rounds are those of splitmix64.

const ROUNDS: usize = 8;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
const SEED_FACTOR: u64 = 0xD134_2543_DE82_EF95;

/// The order of windows in one data epoch.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    count: u64,
    half: u32,
    mask: u64,
    keys: [u64; ROUNDS],
}

impl Order {
    /// Create the order of `count` windows in an epoch. `None` if `count` is 0 or above 2^62.
    #[must_use]
    pub fn new(count: u64, seed: u64, epoch: u64) -> Option<Self> {
        if !(1..=1 << 62).contains(&count) {
            return None;
        }
        let half = (u64::BITS - (count - 1).leading_zeros()).div_ceil(2).max(1);
        let mut state = seed.wrapping_mul(SEED_FACTOR).wrapping_add(epoch);
        let keys = std::array::from_fn(|_| {
            state = state.wrapping_add(GOLDEN);
            mix(state)
        });
        Some(Self { count, half, mask: (1 << half) - 1, keys })
    }

    /// Return the window at a position below the count. Each window is at exactly one position.
    #[must_use]
    pub fn window(&self, position: u64) -> u64 {
        let mut window = position;
        // The network is a bijection of a range at most four times as large, so the walk returns to the
        // range.
        loop {
            let (mut left, mut right) = (window >> self.half, window & self.mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right.wrapping_add(key)) & self.mask));
            }
            window = left << self.half | right;
            if window < self.count {
                return window;
            }
        }
    }
}

/// The finalizer of splitmix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Return the windows at `n` positions from `start` on, in a run that repeats the data.
///
/// An epoch has `count` windows; they are in stream order unless `shuffle` is set. `None` if `count` is 0 or
/// above 2^62.
#[must_use]
pub fn windows(start: u64, n: usize, count: u64, seed: u64, shuffle: bool) -> Option<Vec<u64>> {
    let mut order = Order::new(count, seed, start.checked_div(count)?)?;
    let mut windows = Vec::with_capacity(n);
    for position in (start..).take(n) {
        let within = position % count;
        if within == 0 {
            order = Order::new(count, seed, position / count)?;
        }
        windows.push(if shuffle { order.window(within) } else { within });
    }
    Some(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_specification() {
        for (count, seed, epoch, expected) in [
            (10, 42, 0, [8, 9, 2, 6, 4, 0]),
            (10, 42, 1, [8, 2, 6, 7, 9, 4]),
            (1000, 42, 0, [444, 364, 745, 222, 540, 800]),
            (2_278_000, 7, 3, [1_500_514, 256_382, 203_625, 530_477, 1_784_381, 1_654_477]),
        ] {
            assert_eq!(windows(epoch * count, 6, count, seed, true).unwrap(), expected);
        }
        let order = windows(0, 6, 1 << 40, 1, true).unwrap();
        assert_eq!((order[0], order[5]), (1_021_716_543_861, 822_094_153_217));
    }

    #[test]
    fn every_window_comes_once_in_an_epoch() {
        for count in 1..3000 {
            let mut order = windows(count, usize::try_from(count).unwrap(), count, count, true).unwrap();
            order.sort_unstable();
            assert!(order.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn zero_windows_and_too_many_have_no_order() {
        assert!(windows(0, 1, 0, 1, true).is_none());
        assert!(Order::new(u64::MAX, 1, 1).is_none());
    }
}
