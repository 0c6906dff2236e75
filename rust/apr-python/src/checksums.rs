//! CRC32 of the parts of a file.
#![allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value

use std::{io::ErrorKind, path::PathBuf};

use apr_format::{
    Error,
    internal::{
        crc::crc32_parts,
        source::{Source, open_regular},
        watch::Watched,
    },
};
use pyo3::{prelude::*, types::PyTuple};

use crate::{
    errors::{os_error, raise},
    watch::{report_to, watched},
};

/// The checksums of a file of `size` bytes: of each part, of the bytes outside the parts, and of the whole.
#[pyclass(get_all, frozen, module = "apr._core")]
struct Checksums {
    size: u64,
    parts: Py<PyTuple>,
    rest: u32,
    whole: u32,
}

/// Compute CRC32s of a file in one pass, in parallel. A part is its first byte and its size; the parts must be in order
/// and not overlap.
///
/// `on_progress` is called with the number of bytes read so far; an exception that it raises ends the work.
#[pyfunction]
fn checksums(
    py: Python<'_>,
    path: PathBuf,
    parts: Vec<(u64, u64)>,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<Checksums> {
    let file = open_regular(&path).map_err(|error| os_error(py, &error, &path))?;
    let size = file.size().map_err(|error| os_error(py, &error, &path))?;
    let found = watched(py, report_to(on_progress), |watch| {
        crc32_parts(&Watched { source: &file, watch }, &parts, size)
    })?;
    let found = found.map_err(|error| match (error.kind(), file.size()) {
        (ErrorKind::UnexpectedEof, Ok(now)) => raise(py, &Error::cut_short(size, now), &path),
        _ => os_error(py, &error, &path),
    })?;
    let parts = PyTuple::new(py, found.parts)?.unbind();
    Ok(Checksums { size, parts, rest: found.rest, whole: found.whole })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Checksums>()?;
    module.add_function(wrap_pyfunction!(checksums, module)?)
}
