//! How often each id occurs.

/// No vocabulary is larger; ids from here on are never counted.
pub const MAX_VOCAB: u32 = 1 << 22;
/// Counts of 32 bits are moved to those of 64 before any of them can run over.
const MOST_PENDING: usize = 1 << 30;

/// Counts of ids.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Its length is a power of two above every id it has met, so that no id needs a check of its own; 32 bits
    /// suffice between two flushes and take half the cache.
    table: Vec<u32>,
    pending: usize,
    counts: Vec<u64>,
}

impl Histogram {
    /// Count ids; those that no vocabulary has are left out. Gives the highest of them all, and `highest`.
    pub(super) fn count(&mut self, ids: &[[u8; 4]], highest: Option<u32>) -> Option<u32> {
        if self.pending > MOST_PENDING {
            self.flush();
        }
        self.pending += ids.len();
        let before = highest.unwrap_or(0);
        // Every id is below the power of two above `all`. Comparing with the highest so far costs less than
        // taking the maximum, which is needed for few pieces only.
        let (all, above) = ids.iter().fold((0, 0), |(all, above), id| {
            let id = u32::from_le_bytes(*id);
            (all | id, above | u32::from(id > before))
        });
        let length = (all.min(MAX_VOCAB - 1) as usize + 1).next_power_of_two();
        if length > self.table.len() {
            self.table.resize(length.max(1 << 10), 0);
        }
        if all < MAX_VOCAB {
            self.count_below_length(ids);
        } else {
            for id in ids {
                if let Some(count) = self.table.get_mut(u32::from_le_bytes(*id) as usize) {
                    *count += 1;
                }
            }
        }
        if above > 0 || highest.is_none() {
            return highest.max(ids.iter().map(|id| u32::from_le_bytes(*id)).max());
        }
        highest
    }

    fn count_below_length(&mut self, ids: &[[u8; 4]]) {
        macro_rules! masked {
            ($($bits:literal)*) => {
                match self.table.len() {
                    $(length if length == 1 << $bits => masked::<{ 1 << $bits }>(&mut self.table, ids),)*
                    _ => {}
                }
            };
        }
        masked!(10 11 12 13 14 15 16 17 18 19 20 21 22);
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

/// The loop that everything waits for: masked by a constant, it has no bounds to check.
fn masked<const N: usize>(counts: &mut [u32], ids: &[[u8; 4]]) {
    let Some((counts, _)) = counts.split_first_chunk_mut::<N>() else { return };
    for id in ids {
        counts[u32::from_le_bytes(*id) as usize & (N - 1)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(of: &[u32]) -> Vec<[u8; 4]> {
        of.iter().map(|id| id.to_le_bytes()).collect()
    }

    #[test]
    fn counts_outlive_a_flush_and_a_larger_table() {
        let mut one = Histogram::default();
        let mut highest = None;
        for part in [&[1, 1, 5][..], &[MAX_VOCAB - 1, 1], &[u32::MAX, 0], &[]] {
            highest = one.count(&ids(part), highest);
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
        assert_eq!(one.count(&ids(&[0, 9, 3]), None), Some(9));
        assert_eq!(Histogram::merged([one], 9), [1, 0, 0, 1]);
    }
}
