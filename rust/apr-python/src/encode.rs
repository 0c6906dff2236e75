//! Text to token ids.

use apr_encode::Encoder as Inner;
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    pybacked::PyBackedStr,
    types::{PyBytes, PyTuple},
};

/// A tokenizer that takes special tokens inside a text for text and adds none.
#[pyclass(frozen, module = "apr._core")]
struct Encoder(Inner);

#[pymethods]
impl Encoder {
    #[new]
    fn new(py: Python<'_>, json: &str, threads: usize) -> PyResult<Self> {
        py.detach(|| Inner::new(json, threads))
            .map(Self)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Whether texts take a faster way than the tokenizers library's.
    #[getter]
    fn is_fast(&self) -> bool {
        self.0.is_fast()
    }

    /// The ids of all texts as little-endian u32, and how many each text has.
    #[allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value
    fn encode<'py>(&self, py: Python<'py>, texts: Vec<PyBackedStr>) -> PyResult<Bound<'py, PyTuple>> {
        let encoded = py.detach(|| {
            let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
            self.0.encode(&texts).map(|encoded| {
                let bytes: Vec<u8> = encoded.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                (bytes, encoded.counts)
            })
        });
        let (bytes, counts) = encoded.map_err(|error| PyValueError::new_err(error.to_string()))?;
        (PyBytes::new(py, &bytes), counts).into_pyobject(py)
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Encoder>()
}
