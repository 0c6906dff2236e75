//! Token shards: scanning them, reading ids from them, and the order of windows.
#![allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value

use std::{
    fmt::Write,
    fs::File,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use apr_format::{
    Error,
    internal::shards::{
        order,
        scan::{self, MAX_VOCAB, ScanOptions, ShardScan},
        stream::{Failure, Stream, Target},
    },
};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBytes, PyTuple},
};

use crate::{
    buffer::{Output, packed},
    errors::{os_error, raise},
    watch::{report_to, watched},
};

/// The result of scanning one shard: `first_out_of_range` is the index and the value of an id, `sha256` is in
/// hex.
#[pyclass(get_all, frozen, module = "apr._core")]
struct ShardRow {
    modified_ns: i64,
    max_id: Option<u32>,
    first_out_of_range: Option<(u64, u32)>,
    sha256: Option<String>,
}

/// The result of scanning shards. `counts` are little-endian u64, one for each id from 0 on.
#[pyclass(get_all, frozen, module = "apr._core")]
struct ScanResult {
    shards: Py<PyTuple>,
    counts: Py<PyBytes>,
    windows: u64,
    different_windows: u64,
}

/// Scan shards, each given with the number of its ids, in parallel. Ids at or above `limit` are out of range.
///
/// `on_progress` is called with the number of ids read so far; an exception that it raises ends the scan.
#[pyfunction]
fn scan_shards(
    py: Python<'_>,
    shards: Vec<(PathBuf, u64)>,
    limit: Option<u32>,
    hashes: bool,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<ScanResult> {
    let options = ScanOptions { limit: limit.unwrap_or(MAX_VOCAB), hash: hashes };
    let report = report_to(on_progress);
    let in_ids = move |py: Python<'_>, bytes| report(py, bytes / 4);
    let (scans, totals) =
        watched(py, in_ids, |watch| scan::scan_all(&shards, options, watch))?.map_err(|(shard, error)| {
            let path = shards.get(shard).map_or(Path::new(""), |(path, _)| path);
            raise(py, &error, path)
        })?;
    Ok(ScanResult {
        shards: PyTuple::new(py, scans.iter().map(ShardRow::new).collect::<Vec<_>>())?.unbind(),
        counts: packed(py, totals.counts.iter().map(|count| count.to_le_bytes()))?.unbind(),
        windows: totals.windows,
        different_windows: totals.different_windows,
    })
}

impl ShardRow {
    fn new(scan: &ShardScan) -> Self {
        let sha256 = scan.sha256.map(|digest| {
            digest.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        });
        let ShardScan { modified_ns, max_id, first_out_of_range, .. } = *scan;
        Self { modified_ns, max_id, first_out_of_range, sha256 }
    }
}

/// A shard directory as one stream of ids.
#[pyclass(frozen, module = "apr._core")]
struct TokenStream(Stream);

#[pymethods]
impl TokenStream {
    #[new]
    fn new(shards: Vec<(PathBuf, u64)>) -> PyResult<Self> {
        let stream =
            Stream::new(shards).ok_or_else(|| PyValueError::new_err("the shards have too many ids"))?;
        Ok(Self(stream))
    }

    /// Fill a writable C-contiguous buffer with little-endian u32 ids from `start` on.
    fn read(&self, py: Python<'_>, start: u64, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut out = Output::new(out)?;
        py.detach(|| self.0.read(start, &mut out)).map_err(|failure| self.raise(py, failure))
    }

    /// Fill rows of a writable C-contiguous u32 buffer with ids, each row from its start on.
    fn gather(&self, py: Python<'_>, starts: Vec<u64>, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut out = Output::new(out)?;
        let row = out.len().checked_div(starts.len()).unwrap_or(0);
        py.detach(|| self.0.gather(&starts, row, &mut out)).map_err(|failure| self.raise(py, failure))
    }
}

impl TokenStream {
    fn raise(&self, py: Python<'_>, failure: Failure) -> PyErr {
        let Failure { shard, error } = failure;
        let path = self.0.path(shard).unwrap_or(Path::new(""));
        if error.kind() == ErrorKind::UnexpectedEof
            && let Ok(metadata) = path.metadata()
        {
            return raise(py, &Error::cut_short(self.0.nbytes(shard), metadata.len()), path);
        }
        os_error(py, &error, path)
    }
}

impl Target for Output {
    fn nbytes(&self) -> usize {
        self.len()
    }

    fn fill(&mut self, start: usize, len: usize, file: &File, offset: u64) -> io::Result<()> {
        self.read_file(start, len, file, offset)
    }

    #[cfg(target_os = "linux")]
    fn fill_now(&mut self, start: usize, len: usize, file: &File, offset: u64) -> bool {
        self.read_cached(start, len, file, offset)
    }
}

/// Return the windows at `n` positions of a training run, from `start` on. An epoch has `count` windows.
#[pyfunction]
fn window_order(start: u64, n: usize, count: u64, seed: u64, shuffle: bool) -> PyResult<Vec<u64>> {
    order::windows(start, n, count, seed, shuffle).ok_or_else(|| {
        PyValueError::new_err(format!("the number of windows must be between 1 and 2^62, not {count}"))
    })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ScanResult>()?;
    module.add_class::<ShardRow>()?;
    module.add_class::<TokenStream>()?;
    module.add_function(wrap_pyfunction!(window_order, module)?)?;
    module.add_function(wrap_pyfunction!(scan_shards, module)?)
}
