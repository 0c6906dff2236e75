//! How often each id occurs.

/// No vocabulary is larger; ids at or above it are never counted. The table of 2^22 counts takes 16 MiB.
pub const MAX_VOCAB: u32 = 1 << 22;
/// Counts of 32 bits are added to those of 64 bits before any of them can overflow.
const MAX_PENDING: usize = 1 << 30;
/// Bytes counted without a branch in between.
const BLOCK: usize = 64;

/// Counts of ids.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Counts since the last flush. Its length is above every id seen so far that a vocabulary can have. 32
    /// bits take half the cache of 64; 16 bits are slower to add to.
    table: Vec<u32>,
    /// The number of ids that were counted since the last flush.
    pending: usize,
    counts: Vec<u64>,
}

impl Histogram {
    /// Count `ids`. Return the highest of them and `highest`.
    pub(super) fn add(&mut self, ids: &[[u8; 4]], highest: Option<u32>) -> Option<u32> {
        if self.pending > MAX_PENDING {
            self.flush();
        }
        self.pending += ids.len();
        let before = highest.unwrap_or(0);
        // Every id is below the power of two above `all`, their bitwise or. Comparing each id with the
        // highest so far costs less than taking their maximum, which few pieces need: only those with a new
        // one. `above` is a mask instead of a `bool` so that the loop has no branch and runs on several ids
        // at a time.
        let (all, above) = ids.iter().fold((0, 0), |(all, above), id| {
            let id = u32::from_le_bytes(*id);
            (all | id, above | if id > before { u32::MAX } else { 0 })
        });
        let length = (all.min(MAX_VOCAB - 1) as usize + 1).next_power_of_two();
        if length > self.table.len() {
            self.table.resize(length, 0);
        }
        count(&mut self.table, ids);
        if above > 0 || highest.is_none() {
            return highest.max(ids.iter().map(|id| u32::from_le_bytes(*id)).max());
        }
        highest
    }

    /// Return the sums of several histograms: one for each id below `limit`, up to the highest id that occurs.
    pub(super) fn merged(all: impl IntoIterator<Item = Self>, limit: u32) -> Vec<u64> {
        let mut sums: Vec<u64> = Vec::new();
        for mut one in all {
            one.flush();
            sums.resize(sums.len().max(one.counts.len()), 0);
            for (sum, count) in sums.iter_mut().zip(one.counts) {
                *sum += count;
            }
        }
        sums.truncate(limit.min(MAX_VOCAB) as usize);
        sums.truncate(sums.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1));
        sums
    }

    fn flush(&mut self) {
        self.pending = 0;
        self.counts.resize(self.counts.len().max(self.table.len()), 0);
        for (sum, count) in self.counts.iter_mut().zip(&mut self.table) {
            *sum += u64::from(std::mem::take(count));
        }
    }
}

/// Count ids. An id beyond the table, which no vocabulary has, is left out.
fn count(table: &mut [u32], ids: &[[u8; 4]]) {
    let (blocks, rest) = ids.as_flattened().as_chunks::<BLOCK>();
    for block in blocks {
        // A block has a fixed size, so the compiler unrolls this loop.
        for two in block.as_chunks().0 {
            // One load for two ids: loads and stores are what limits this loop.
            let two = u64::from_le_bytes(*two);
            count_one(table, two & u64::from(u32::MAX));
            count_one(table, two >> 32);
        }
    }
    for id in rest.as_chunks().0 {
        count_one(table, u32::from_le_bytes(*id).into());
    }
}

#[inline]
fn count_one(table: &mut [u32], id: u64) {
    if let Some(count) = usize::try_from(id).ok().and_then(|id| table.get_mut(id)) {
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(histogram: &mut Histogram, ids: &[u32], highest: Option<u32>) -> Option<u32> {
        let ids: Vec<_> = ids.iter().map(|id| id.to_le_bytes()).collect();
        histogram.add(&ids, highest)
    }

    #[test]
    fn counts_survive_a_flush_and_a_larger_table() {
        let mut histogram = Histogram::default();
        let mut highest = None;
        for part in [&[1, 1, 5][..], &[MAX_VOCAB - 1, 1], &[u32::MAX, 0], &[]] {
            highest = add(&mut histogram, part, highest);
            histogram.pending = MAX_PENDING + 1;
        }
        assert_eq!(highest, Some(u32::MAX));
        let counts = Histogram::merged([histogram, Histogram::default()], u32::MAX);
        assert_eq!((counts.len(), counts.iter().sum::<u64>()), (MAX_VOCAB as usize, 6));
        assert_eq!((counts[0], counts[1], counts[5]), (1, 3, 1));
    }

    #[test]
    fn ids_at_or_above_the_limit_are_not_counted() {
        let mut histogram = Histogram::default();
        assert_eq!(add(&mut histogram, &[0, 9, 3], None), Some(9));
        assert_eq!(Histogram::merged([histogram], 9), [1, 0, 0, 1]);
    }
}
