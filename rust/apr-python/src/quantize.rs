//! Quantizing values to the dtypes that apr writes.

use apr_format::internal::{dtype::Dtype, quant};
use pyo3::{buffer::PyBuffer, exceptions::PyValueError, prelude::*, types::PyBytes};

/// Quantize a float32 buffer to q4 or q8 and return the bytes to store.
#[pyfunction]
fn quantize<'py>(py: Python<'py>, dtype: &str, values: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let known = Dtype::from_name(dtype)
        .ok_or_else(|| PyValueError::new_err(format!("cannot quantize to {dtype:?}; use q4 or q8")))?;
    // A copy, because Python code may write to the array while this thread quantizes without the GIL.
    let values = PyBuffer::<f32>::get(values)?.to_vec(py)?;
    let stored = py.detach(|| quant::quantize(known, &values));
    stored.map(|bytes| PyBytes::new(py, &bytes)).map_err(|error| PyValueError::new_err(error.to_string()))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(quantize, module)?)
}
