//! A shard directory as one stream of ids, read by position.
//!
//! Files are opened when they are first read, and few of them stay open: a directory may hold more shards
//! than a process may have open files. A mapping would be no faster for windows of some kilobytes, and
//! reading a truncated shard through it would kill the process with SIGBUS; `pread` returns an error that
//! names the shard.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::advice;

/// The largest number of open files: half of 1,024, the usual limit of a process.
const MAX_OPEN: usize = 512;
/// Bytes of an id.
const ID_SIZE: u64 = 4;

/// The ids of several shards, one after another.
#[derive(Debug)]
pub struct Stream {
    paths: Vec<PathBuf>,
    /// The position of the first id of each shard, then the end of the last shard.
    starts: Vec<u64>,
    open: Mutex<OpenFiles>,
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<usize, Arc<File>>,
    /// Shard numbers in the order in which the files were opened.
    order: VecDeque<usize>,
}

/// Memory that ids are read into.
///
/// A trait, because memory of Python must not be borrowed as a `&mut [u8]`: the bindings read into it through a raw
/// pointer.
pub trait Target {
    /// Length in bytes.
    fn nbytes(&self) -> usize;

    /// Fill `len` bytes from byte `start` on with the bytes of a file from `offset` on.
    ///
    /// # Errors
    /// The operating system's; `UnexpectedEof` if the file is too short.
    fn fill(&mut self, start: usize, len: usize, file: &File, offset: u64) -> io::Result<()>;

    /// Fill the bytes as [`Target::fill`] does, if they are in the page cache. Return whether they were; if not,
    /// the content of the memory is unspecified.
    fn fill_now(&mut self, _start: usize, _len: usize, _file: &File, _offset: u64) -> bool {
        false
    }
}

impl Target for [u8] {
    fn nbytes(&self) -> usize {
        self.len()
    }

    fn fill(&mut self, start: usize, len: usize, file: &File, offset: u64) -> io::Result<()> {
        let bytes = self.get_mut(start..).and_then(|rest| rest.get_mut(..len));
        file.read_exact_at(bytes.ok_or(io::ErrorKind::InvalidInput)?, offset)
    }
}

/// A part of a shard, and where it goes in the memory to fill.
struct Span {
    shard: usize,
    offset: u64,
    start: usize,
    len: usize,
}

/// An error of reading, and the shard that it is about.
#[derive(Debug)]
pub struct Failure {
    /// Index of the shard.
    pub shard: usize,
    /// `UnexpectedEof` if the shard is shorter than it was listed.
    pub error: io::Error,
}

impl Stream {
    /// Create a stream of shards, each with its number of ids. `None` if the bytes of all shards exceed 64
    /// bits.
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
        end.checked_mul(ID_SIZE)?;
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

    /// Return the size in bytes that a shard was listed with.
    #[must_use]
    pub fn nbytes(&self, shard: usize) -> u64 {
        let at = |i: usize| self.starts.get(i).copied().unwrap_or(0);
        at(shard + 1).saturating_sub(at(shard)) * ID_SIZE
    }

    /// Fill `out` with ids from `start` on, as little-endian u32.
    ///
    /// # Errors
    /// The operating system's, with the shard; `InvalidInput` if the ids are not all in the stream.
    pub fn read(&self, start: u64, out: &mut (impl Target + ?Sized)) -> Result<(), Failure> {
        self.spans(start, 0, out.nbytes())?.into_iter().try_for_each(|span| self.fill(&span, out))
    }

    /// Fill rows of `row` bytes in `out`, one after another, with ids from each start on.
    ///
    /// Rows in the page cache are copied first. For the others the kernel gets all requests before the first
    /// one is waited for, so a slow disk works on them in parallel.
    ///
    /// # Errors
    /// The operating system's, with the shard; `InvalidInput` if the ids are not all in the stream.
    pub fn gather(
        &self,
        starts: &[u64],
        row: usize,
        out: &mut (impl Target + ?Sized),
    ) -> Result<(), Failure> {
        let mut late = Vec::new();
        for (&start, place) in starts.iter().zip((0..out.nbytes()).step_by(row.max(1))) {
            for span in self.spans(start, place, row)? {
                let file = self.file(span.shard).map_err(|error| Failure { shard: span.shard, error })?;
                if !out.fill_now(span.start, span.len, &file, span.offset) {
                    advice::will_need(&file, span.offset, span.len);
                    late.push(span);
                }
            }
        }
        late.iter().try_for_each(|span| self.fill(span, out))
    }

    /// Return the parts of shards that hold the ids from `start` on, for `len` bytes of memory from byte `place` on.
    fn spans(&self, start: u64, mut place: usize, len: usize) -> Result<Vec<Span>, Failure> {
        let ids = len as u64 / ID_SIZE;
        if start.checked_add(ids).is_none_or(|end| end > self.tokens()) {
            return Err(Failure { shard: 0, error: io::ErrorKind::InvalidInput.into() });
        }
        // The last shard that starts at or before `start`.
        let mut shard = self.starts.partition_point(|&begin| begin <= start).saturating_sub(1);
        let mut at = start;
        let mut left = len;
        let mut spans = Vec::with_capacity(1);
        while left > 0 {
            let end = self.starts.get(shard + 1).copied().unwrap_or(u64::MAX);
            let available = usize::try_from((end - at).saturating_mul(ID_SIZE)).unwrap_or(usize::MAX);
            let len = available.min(left);
            let begin = self.starts.get(shard).copied().unwrap_or(0);
            spans.push(Span { shard, offset: (at - begin) * ID_SIZE, start: place, len });
            at += len as u64 / ID_SIZE;
            place += len;
            left -= len;
            shard += 1;
        }
        Ok(spans)
    }

    fn fill(&self, span: &Span, out: &mut (impl Target + ?Sized)) -> Result<(), Failure> {
        let file = self.file(span.shard);
        let read = file.and_then(|file| out.fill(span.start, span.len, &file, span.offset));
        read.map_err(|error| Failure { shard: span.shard, error })
    }

    fn file(&self, shard: usize) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.files.get(&shard) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(shard).ok_or(io::ErrorKind::InvalidInput)?;
        let file = File::open(path).or_else(|error| {
            // The process may have reached its limit of open files: close those of this stream and try again.
            let closed = open.order.len();
            open.order.clear();
            open.files.clear();
            if closed > 0 { File::open(path) } else { Err(error) }
        })?;
        advice::random(&file);
        let file = Arc::new(file);
        if open.order.len() == MAX_OPEN
            && let Some(first) = open.order.pop_front()
        {
            open.files.remove(&first);
        }
        open.order.push_back(shard);
        open.files.insert(shard, Arc::clone(&file));
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
    fn any_range_of_the_stream_is_read_across_shards() {
        let directory = tempfile::tempdir().unwrap();
        let stream = shards(directory.path(), &[3, 1, 1, 5]);
        assert_eq!(stream.tokens(), 10);
        for start in 0..=10 {
            for end in start..=10 {
                let mut out = vec![0; (end - start) as usize * 4];
                stream.read(u64::from(start), out.as_mut_slice()).unwrap();
                assert_eq!(out, ids(start..end));
            }
        }
        assert!(stream.read(8, &mut [0; 12][..]).is_err());
        assert!(stream.read(u64::MAX, &mut [0; 4][..]).is_err());
    }

    #[test]
    fn more_shards_than_stay_open_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let count = u32::try_from(MAX_OPEN).unwrap() + 9;
        let stream = shards(directory.path(), &vec![1; count as usize]);
        for start in (0..count).chain((0..count).rev()) {
            let mut out = [0; 4];
            stream.read(u64::from(start), out.as_mut_slice()).unwrap();
            assert_eq!(out, start.to_le_bytes());
        }
        let open = stream.open.lock().unwrap();
        assert_eq!((open.files.len(), open.order.len()), (MAX_OPEN, MAX_OPEN));
    }

    #[test]
    fn gathered_rows_equal_single_reads() {
        let directory = tempfile::tempdir().unwrap();
        let stream = shards(directory.path(), &[3, 1, 1, 5000]);
        let starts = [4000, 0, 2, 4999, 2];
        let mut out = vec![0; starts.len() * 24];
        stream.gather(&starts, 24, out.as_mut_slice()).unwrap();
        for (start, row) in starts.into_iter().zip(out.chunks(24)) {
            let start = u32::try_from(start).unwrap();
            assert_eq!(row, ids(start..start + 6));
        }
        assert!(stream.gather(&[0, 5000], 24, out.as_mut_slice()).is_err());
    }

    #[test]
    fn a_truncated_shard_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let stream = shards(directory.path(), &[4, 4]);
        std::fs::write(directory.path().join("shard-00001.bin"), ids(4..6)).unwrap();
        let failure = stream.read(2, &mut [0; 24][..]).unwrap_err();
        assert_eq!((failure.shard, failure.error.kind()), (1, io::ErrorKind::UnexpectedEof));
        let failure = stream.gather(&[0, 6], 8, &mut [0; 16][..]).unwrap_err();
        assert_eq!((failure.shard, failure.error.kind()), (1, io::ErrorKind::UnexpectedEof));
        assert_eq!(stream.nbytes(1), 16);
    }
}
