//! One pass over shards: how often each id occurs, the highest, the first that is too high, SHA-256.

use std::{fs::File, io, path::Path};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes read at a time: hashed on one thread while another counts.
const CHUNK: usize = 4 << 20;
/// No vocabulary is larger; ids from here on are found like ids beyond the vocabulary, never counted.
pub const MAX_VOCAB: u32 = 1 << 22;

/// What one shard holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardScan {
    /// Ids in the shard.
    pub tokens: u64,
    /// The highest id; `None` for an empty shard.
    pub max_id: Option<u32>,
    /// Index within the shard and value of the first id at or above the limit.
    pub first_beyond: Option<(u64, u32)>,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// How often each id below the limit occurs; as long as the highest such id asks for.
    pub counts: Vec<u64>,
}

/// Scan one shard; ids at or above `limit` are out of range.
///
/// # Errors
/// The operating system's; `InvalidData` when the size is no multiple of 4.
pub fn scan(path: &Path, limit: u32) -> io::Result<ShardScan> {
    let mut file = File::open(path)?;
    let limit = limit.min(MAX_VOCAB);
    let mut hasher = Sha256::new();
    let mut found =
        ShardScan { tokens: 0, max_id: None, first_beyond: None, sha256: [0; 32], counts: vec![] };
    let mut chunk = vec![0; CHUNK];
    loop {
        let filled = fill(&mut file, &mut chunk)?;
        let (ids, torn) = chunk[..filled].as_chunks::<4>();
        rayon::join(|| hasher.update(&chunk[..filled]), || found.count(ids, limit));
        if !torn.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "size is no multiple of 4 bytes"));
        }
        if filled < CHUNK {
            break;
        }
    }
    found.sha256 = hasher.finalize().into();
    Ok(found)
}

/// Scan shards in parallel, in the given order; the first error in that order wins.
///
/// # Errors
/// As [`scan`], with the index of the shard.
pub fn scan_all<P: AsRef<Path> + Sync>(
    paths: &[P],
    limit: u32,
) -> Result<Vec<ShardScan>, (usize, io::Error)> {
    let scans: Vec<_> = paths.par_iter().map(|path| scan(path.as_ref(), limit)).collect();
    scans.into_iter().enumerate().map(|(i, scan)| scan.map_err(|error| (i, error))).collect()
}

impl ShardScan {
    fn count(&mut self, ids: &[[u8; 4]], limit: u32) {
        for (i, &id) in ids.iter().enumerate() {
            let id = u32::from_le_bytes(id);
            self.max_id = self.max_id.max(Some(id));
            if id < limit {
                let slot = id as usize;
                if slot >= self.counts.len() {
                    self.counts.resize(slot + 1, 0);
                }
                self.counts[slot] += 1;
            } else if self.first_beyond.is_none() {
                self.first_beyond = Some((self.tokens + i as u64, id));
            }
        }
        self.tokens += ids.len() as u64;
    }
}

/// Read until `buffer` is full or the file ends; how many bytes there were.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    use io::Read;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn shard(ids: &[u32]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for id in ids {
            file.write_all(&id.to_le_bytes()).unwrap();
        }
        file.flush().unwrap();
        file
    }

    #[test]
    fn counts_every_id_and_finds_the_first_beyond() {
        let file = shard(&[3, 1, 3, 9, 7]);
        let found = scan(file.path(), 7).unwrap();
        assert_eq!(found.tokens, 5);
        assert_eq!(found.max_id, Some(9));
        assert_eq!(found.first_beyond, Some((3, 9)));
        assert_eq!(found.counts, [0, 1, 0, 2]);
    }

    #[test]
    fn an_index_counts_from_the_start_of_the_shard_in_later_chunks() {
        let mut ids = vec![0; CHUNK / 4 + 5];
        ids[CHUNK / 4 + 2] = u32::MAX;
        let found = scan(shard(&ids).path(), u32::MAX).unwrap();
        assert_eq!(found.first_beyond, Some((CHUNK as u64 / 4 + 2, u32::MAX)));
        assert_eq!(found.counts, [CHUNK as u64 / 4 + 4]);
    }

    #[test]
    fn a_torn_id_is_an_error_that_names_the_shard() {
        let mut torn = shard(&[1, 2]);
        torn.write_all(&[0; 3]).unwrap();
        torn.flush().unwrap();
        let (index, error) = scan_all(&[shard(&[1]).path(), torn.path()], 10).unwrap_err();
        assert_eq!((index, error.kind()), (1, io::ErrorKind::InvalidData));
    }
}
