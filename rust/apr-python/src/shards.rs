//! Token shards.
#![allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value

use std::{fmt::Write, path::PathBuf};

use apr_format::shards::scan::{self, MAX_VOCAB, ShardScan, Wanted};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyTuple},
};

use crate::errors::os_error;

/// Scan shards in parallel; ids at or above `limit` are out of range.
///
/// For each shard (tokens, `max_id`, (index, id) of the first id out of range, SHA-256 in hex or None, counts):
/// the counts are little-endian u64, one for each id from 0 on.
#[pyfunction]
fn scan_shards(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    limit: Option<u32>,
    hashes: bool,
) -> PyResult<Bound<'_, PyTuple>> {
    let wanted = Wanted { limit: limit.unwrap_or(MAX_VOCAB), hash: hashes };
    let scans =
        py.detach(|| scan::scan_all(&paths, wanted)).map_err(|(i, error)| os_error(py, &error, &paths[i]))?;
    PyTuple::new(py, scans.iter().map(|scan| row(py, scan)).collect::<PyResult<Vec<_>>>()?)
}

fn row<'py>(py: Python<'py>, scan: &ShardScan) -> PyResult<Bound<'py, PyTuple>> {
    let counts: Vec<u8> = scan.counts.iter().flat_map(|count| count.to_le_bytes()).collect();
    let sha256 = scan.sha256.map(|digest| {
        digest.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    });
    (scan.tokens, scan.max_id, scan.first_beyond, sha256, PyBytes::new(py, &counts)).into_pyobject(py)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(scan_shards, module)?)
}
