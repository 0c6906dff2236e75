//! Text to token ids.

use std::path::PathBuf;

use apr_encode::{Encoder as Inner, Ends, Error, Stored};
use pyo3::{
    exceptions::{PyInterruptedError, PyValueError},
    prelude::*,
    pybacked::{PyBackedBytes, PyBackedStr},
    types::PyBytes,
};

/// The ids of all texts as little-endian u32, how many each has as i64 (-1: it is none), the bytes of text.
type Found<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, usize);

/// A tokenizer that takes special tokens inside a text for text and adds none.
#[pyclass(frozen, module = "apr._core")]
struct Encoder {
    inner: Inner,
    ends: Ends,
}

#[pymethods]
#[allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value
impl Encoder {
    /// From the text of a tokenizer.json; `before` and `after` are ids around each stored text.
    #[new]
    #[pyo3(signature = (json, threads, *, before=None, after=None, nfc=false))]
    fn new(
        py: Python<'_>,
        json: &str,
        threads: usize,
        before: Option<u32>,
        after: Option<u32>,
        nfc: bool,
    ) -> PyResult<Self> {
        let inner = py.detach(|| Inner::new(json, threads, nfc)).map_err(|error| to_python(&error))?;
        Ok(Self { inner, ends: Ends { before, after } })
    }

    /// Whether texts take a faster way than the tokenizers library's.
    #[getter]
    fn is_fast(&self) -> bool {
        self.inner.is_fast()
    }

    /// Texts as they are, nothing around them.
    fn encode<'py>(&self, py: Python<'py>, texts: Vec<PyBackedStr>) -> PyResult<Found<'py>> {
        self.found(py, &texts.iter().map(|text| Stored::Text(text)).collect::<Vec<_>>(), Ends::default())
    }

    /// Files that are one text each.
    fn encode_files<'py>(&self, py: Python<'py>, paths: Vec<PathBuf>) -> PyResult<Found<'py>> {
        self.found(py, &paths.iter().map(|path| Stored::File(path)).collect::<Vec<_>>(), self.ends)
    }

    /// Lines of JSON objects with the text under a key.
    fn encode_lines<'py>(
        &self,
        py: Python<'py>,
        lines: Vec<PyBackedBytes>,
        field: &str,
    ) -> PyResult<Found<'py>> {
        self.found(py, &lines.iter().map(|line| Stored::Line(line, field)).collect::<Vec<_>>(), self.ends)
    }

    /// Bytes of texts.
    fn encode_values<'py>(
        &self,
        py: Python<'py>,
        values: Vec<Option<PyBackedBytes>>,
    ) -> PyResult<Found<'py>> {
        self.found(
            py,
            &values.iter().map(|value| Stored::Value(value.as_deref())).collect::<Vec<_>>(),
            self.ends,
        )
    }

    /// Let what is being encoded, and all that comes, end soon with `InterruptedError`.
    fn stop(&self) {
        self.inner.stop();
    }
}

impl Encoder {
    fn found<'py>(&self, py: Python<'py>, texts: &[Stored<'_>], ends: Ends) -> PyResult<Found<'py>> {
        let encoded = py.detach(|| self.inner.encode(texts, ends));
        let encoded = encoded.map_err(|error| to_python(&error))?;
        let ids = PyBytes::new_with(py, 4 * encoded.len(), |bytes| {
            let mut places = bytes.as_chunks_mut::<4>().0.iter_mut();
            for (place, id) in places.by_ref().zip(encoded.ids.iter().flatten()) {
                *place = id.to_le_bytes();
            }
            Ok(())
        })?;
        let counts: Vec<u8> = encoded.counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        Ok((ids, PyBytes::new(py, &counts), encoded.text_bytes))
    }
}

fn to_python(error: &Error) -> PyErr {
    match error {
        Error::Stopped => PyInterruptedError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Encoder>()
}
