//! A shard directory as one stream of ids, read by position.
//!
//! Files are opened when they are first read and few of them stay open: a directory may hold more shards than
//! a process may have files. A mapping would be no faster for windows of some kilobytes, and a shard that is
//! cut short would end the process; here it is an error that names it.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Most files that stay open.
const MOST_OPEN: usize = 128;
const BYTES: u64 = 4;

/// Shards behind one another.
#[derive(Debug)]
pub struct Stream {
    paths: Vec<PathBuf>,
    /// Where each shard starts, and the end of the last.
    starts: Vec<u64>,
    open: Mutex<VecDeque<(usize, Arc<File>)>>,
}

/// What went wrong, and with which shard.
#[derive(Debug)]
pub struct Failure {
    /// Number of the shard.
    pub shard: usize,
    /// `UnexpectedEof` where it is shorter than it was.
    pub error: io::Error,
}

impl Stream {
    /// Shards with their lengths in ids; None where together they pass what 64 bits count.
    #[must_use]
    pub fn new(shards: Vec<(PathBuf, u64)>) -> Option<Self> {
        let mut starts = vec![0_u64];
        let mut paths = Vec::with_capacity(shards.len());
        let mut end = 0_u64;
        for (path, tokens) in shards {
            end = end.checked_add(tokens)?;
            starts.push(end);
            paths.push(path);
        }
        end.checked_mul(BYTES)?;
        Some(Self { paths, starts, open: Mutex::default() })
    }

    /// Number of ids.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Path of a shard.
    #[must_use]
    pub fn path(&self, shard: usize) -> Option<&Path> {
        self.paths.get(shard).map(PathBuf::as_path)
    }

    /// Bytes that a shard has to have.
    #[must_use]
    pub fn nbytes(&self, shard: usize) -> u64 {
        let at = |i: usize| self.starts.get(i).copied().unwrap_or(0);
        at(shard + 1).saturating_sub(at(shard)) * BYTES
    }

    /// Fill `out` with the bytes of ids from `start` on, as many as it holds.
    ///
    /// # Errors
    /// The operating system's, with the shard; `InvalidInput` for ids beyond the stream.
    pub fn read(&self, start: u64, out: &mut [u8]) -> Result<(), Failure> {
        let ids = out.len() as u64 / BYTES;
        if start.checked_add(ids).is_none_or(|end| end > self.tokens()) {
            return Err(Failure { shard: 0, error: io::ErrorKind::InvalidInput.into() });
        }
        // The last shard that starts at or before `start`.
        let mut shard = self.starts.partition_point(|&begin| begin <= start).saturating_sub(1);
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let end = self.starts.get(shard + 1).copied().unwrap_or(u64::MAX);
            let here = usize::try_from((end - at).saturating_mul(BYTES)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(here.min(rest.len()));
            let within = (at - self.starts[shard]) * BYTES;
            let read = self.file(shard).and_then(|file| file.read_exact_at(now, within));
            read.map_err(|error| Failure { shard, error })?;
            at += now.len() as u64 / BYTES;
            rest = later;
            shard += 1;
        }
        Ok(())
    }

    fn file(&self, shard: usize) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|&(number, _)| number == shard) {
            return Ok(Arc::clone(&open[at].1));
        }
        let file = Arc::new(File::open(&self.paths[shard])?);
        if open.len() == MOST_OPEN {
            open.pop_front();
        }
        open.push_back((shard, Arc::clone(&file)));
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<u32>) -> Vec<u8> {
        range.flat_map(u32::to_le_bytes).collect()
    }

    fn shards(directory: &Path, lengths: &[u32]) -> Stream {
        let mut start = 0;
        let shards = lengths.iter().enumerate().map(|(i, &length)| {
            let path = directory.join(format!("shard-{i:05}.bin"));
            std::fs::write(&path, ids(start..start + length)).unwrap();
            start += length;
            (path, u64::from(length))
        });
        Stream::new(shards.collect()).unwrap()
    }

    #[test]
    fn any_part_of_the_stream_over_any_shards() {
        let directory = tempfile::tempdir().unwrap();
        let stream = shards(directory.path(), &[3, 1, 1, 5]);
        assert_eq!(stream.tokens(), 10);
        for start in 0..=10 {
            for end in start..=10 {
                let mut out = vec![0; (end - start) as usize * 4];
                stream.read(u64::from(start), &mut out).unwrap();
                assert_eq!(out, ids(start..end));
            }
        }
        assert!(stream.read(8, &mut [0; 12]).is_err());
        assert!(stream.read(u64::MAX, &mut [0; 4]).is_err());
    }

    #[test]
    fn more_shards_than_stay_open_are_read_again_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let count = u32::try_from(MOST_OPEN).unwrap() + 9;
        let stream = shards(directory.path(), &vec![1; count as usize]);
        for start in (0..count).chain((0..count).rev()) {
            let mut out = [0; 4];
            stream.read(u64::from(start), &mut out).unwrap();
            assert_eq!(out, start.to_le_bytes());
        }
        assert_eq!(stream.open.lock().unwrap().len(), MOST_OPEN);
    }

    #[test]
    fn a_shard_that_is_cut_short_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let stream = shards(directory.path(), &[4, 4]);
        std::fs::write(directory.path().join("shard-00001.bin"), ids(4..6)).unwrap();
        let failure = stream.read(2, &mut [0; 24]).unwrap_err();
        assert_eq!((failure.shard, failure.error.kind()), (1, io::ErrorKind::UnexpectedEof));
        assert_eq!(stream.nbytes(1), 16);
    }
}
