//! How often each id occurs.

use super::sha::BLOCK;

/// No vocabulary is larger; ids from here on are never counted.
pub const MAX_VOCAB: u32 = 1 << 22;
/// Counts of 32 bits are moved to those of 64 before any of them can run over.
const MOST_PENDING: usize = 1 << 30;

/// Counts of ids.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Longer than every id that it has met and that a vocabulary can have. 32 bits suffice between two flushes
    /// and take half the cache; fewer are slower to add to.
    table: Vec<u32>,
    pending: usize,
    counts: Vec<u64>,
}

impl Histogram {
    /// The table in which [`count`] is to count these ids, and the highest of them all, and `highest`.
    pub(super) fn table_for(&mut self, ids: &[[u8; 4]], highest: Option<u32>) -> (&mut [u32], Option<u32>) {
        if self.pending > MOST_PENDING {
            self.flush();
        }
        self.pending += ids.len();
        let before = highest.unwrap_or(0);
        // Every id is below the power of two above `all`. Comparing with the highest so far costs less than
        // taking the maximum, which is needed for few pieces only.
        let (all, above) = ids.iter().fold((0, 0), |(all, above), id| {
            let id = u32::from_le_bytes(*id);
            (all | id, above | if id > before { u32::MAX } else { 0 })
        });
        let length = (all.min(MAX_VOCAB - 1) as usize + 1).next_power_of_two();
        if length > self.table.len() {
            self.table.resize(length, 0);
        }
        let new = above > 0 || highest.is_none();
        let found = if new { ids.iter().map(|id| u32::from_le_bytes(*id)).max() } else { None };
        (&mut self.table, highest.max(found))
    }

    /// These counts and those, one for each id below `limit` up to the highest that occurs.
    pub(super) fn merged(all: impl IntoIterator<Item = Self>, limit: u32) -> Vec<u64> {
        let mut sum: Vec<u64> = Vec::new();
        for mut one in all {
            one.flush();
            sum.resize(sum.len().max(one.counts.len()), 0);
            for (sum, count) in sum.iter_mut().zip(one.counts) {
                *sum += count;
            }
        }
        sum.truncate(limit.min(MAX_VOCAB) as usize);
        sum.truncate(sum.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1));
        sum
    }

    fn flush(&mut self) {
        self.pending = 0;
        self.counts.resize(self.counts.len().max(self.table.len()), 0);
        for (sum, count) in self.counts.iter_mut().zip(&mut self.table) {
            *sum += u64::from(std::mem::take(count));
        }
    }
}

/// Count ids; those that the table does not reach, which no vocabulary has, are left out.
pub(super) fn count(table: &mut [u32], ids: &[[u8; 4]]) {
    let (blocks, rest) = ids.as_flattened().as_chunks();
    for block in blocks {
        count_block(table, block);
    }
    for id in rest.as_chunks().0 {
        count_one(table, u32::from_le_bytes(*id).into());
    }
}

/// Count the ids of a block of bytes: of a number that is known, so that there is no loop.
#[inline]
pub(super) fn count_block(table: &mut [u32], block: &[u8; BLOCK]) {
    for two in block.as_chunks().0 {
        // One load for two ids: loads and stores are what the core has too few of.
        let two = u64::from_le_bytes(*two);
        count_one(table, two & u64::from(u32::MAX));
        count_one(table, two >> 32);
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

    fn take(one: &mut Histogram, ids: &[u32], highest: Option<u32>) -> Option<u32> {
        let ids: Vec<_> = ids.iter().map(|id| id.to_le_bytes()).collect();
        let (table, highest) = one.table_for(&ids, highest);
        count(table, &ids);
        highest
    }

    #[test]
    fn counts_outlive_a_flush_and_a_larger_table() {
        let mut one = Histogram::default();
        let mut highest = None;
        for part in [&[1, 1, 5][..], &[MAX_VOCAB - 1, 1], &[u32::MAX, 0], &[]] {
            highest = take(&mut one, part, highest);
            one.pending = MOST_PENDING + 1;
        }
        assert_eq!(highest, Some(u32::MAX));
        let counts = Histogram::merged([one, Histogram::default()], u32::MAX);
        assert_eq!((counts.len(), counts.iter().sum::<u64>()), (MAX_VOCAB as usize, 6));
        assert_eq!((counts[0], counts[1], counts[5]), (1, 3, 1));
    }

    #[test]
    fn ids_from_the_limit_on_are_left_out() {
        let mut one = Histogram::default();
        assert_eq!(take(&mut one, &[0, 9, 3], None), Some(9));
        assert_eq!(Histogram::merged([one], 9), [1, 0, 0, 1]);
    }
}
