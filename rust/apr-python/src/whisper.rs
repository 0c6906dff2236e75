//! Whisper's container, of which header and index are shown.
#![allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value

use std::path::PathBuf;

use apr_format::{
    file,
    variants::whisper::{self, Whisper},
};
use pyo3::{prelude::*, types::PyTuple};

use crate::errors::raise;

/// (version, model, quantization, compressed, tensors, flags, sizes), a (name, dims, bytes, offset) for each
/// tensor, and the file's length; None for every other form.
#[pyfunction]
fn read_whisper(py: Python<'_>, path: PathBuf) -> PyResult<Option<Bound<'_, PyTuple>>> {
    let found = py.detach(|| whisper::read(&file::open(&path)?)).map_err(|error| raise(py, &error, &path))?;
    let Some(found) = found else { return Ok(None) };
    let Whisper { version, model, quantization, is_compressed, tensor_count, flags, sizes, tensors, size } =
        found;
    let rows = tensors
        .into_iter()
        .map(|tensor| {
            (tensor.name, PyTuple::new(py, tensor.dims)?, tensor.nbytes, tensor.offset).into_pyobject(py)
        })
        .collect::<PyResult<Vec<_>>>()?;
    let header = (version, model, quantization, is_compressed, tensor_count, flags, sizes.to_vec());
    (header, PyTuple::new(py, rows)?, size).into_pyobject(py).map(Some)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(read_whisper, module)?)
}
