//! The encoder of texts.

use std::path::PathBuf;

use apr_encode::{Encoder as Inner, Ends, Error, Stored};
use pyo3::{
    exceptions::{PyInterruptedError, PyValueError},
    prelude::*,
    pybacked::{PyBackedBytes, PyBackedStr},
    types::PyBytes,
};

use crate::buffer::packed;

/// Encoded texts: their ids one after another as little-endian u32; as i64 the number of ids of each text, or
/// -1 for input that is not text; and as u64 the bytes of each text.
#[pyclass(get_all, frozen, module = "apr._core")]
struct Encoded {
    ids: Py<PyBytes>,
    counts: Py<PyBytes>,
    text_bytes: Py<PyBytes>,
}

/// A tokenizer that treats special tokens inside a text as plain text and adds none.
#[pyclass(frozen, module = "apr._core")]
struct Encoder {
    inner: Inner,
    ends: Ends,
}

#[pymethods]
#[allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value
impl Encoder {
    /// Create an encoder from the text of a tokenizer.json. `before` and `after` are ids added around each
    /// stored text.
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

    /// Whether texts take the fast path instead of the tokenizers library.
    #[getter]
    fn is_fast(&self) -> bool {
        self.inner.is_fast()
    }

    /// Return the pieces of a text that the fast path merges; None without a fast path.
    fn pieces<'a>(&self, text: &'a str) -> Option<Vec<&'a str>> {
        self.inner.pieces(text)
    }

    /// Encode strings, without the ids around them.
    fn encode(&self, py: Python<'_>, texts: Vec<PyBackedStr>) -> PyResult<Encoded> {
        self.run(py, &texts.iter().map(|text| Stored::Text(text)).collect::<Vec<_>>(), Ends::default())
    }

    /// Encode files with one text each.
    fn encode_files(&self, py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<Encoded> {
        self.run(py, &paths.iter().map(|path| Stored::File(path)).collect::<Vec<_>>(), self.ends)
    }

    /// Encode lines, each a JSON object with the text under the key `field`.
    fn encode_lines(&self, py: Python<'_>, lines: Vec<PyBackedBytes>, field: &str) -> PyResult<Encoded> {
        self.run(py, &lines.iter().map(|line| Stored::Line(line, field)).collect::<Vec<_>>(), self.ends)
    }

    /// Encode texts given as UTF-8; None is not text.
    fn encode_values(&self, py: Python<'_>, values: Vec<Option<PyBackedBytes>>) -> PyResult<Encoded> {
        self.run(
            py,
            &values.iter().map(|value| Stored::Value(value.as_deref())).collect::<Vec<_>>(),
            self.ends,
        )
    }

    /// Make running and later calls end soon with `InterruptedError`.
    fn stop(&self) {
        self.inner.stop();
    }
}

impl Encoder {
    fn run(&self, py: Python<'_>, texts: &[Stored<'_>], ends: Ends) -> PyResult<Encoded> {
        let encoded = py.detach(|| self.inner.encode(texts, ends));
        let encoded = encoded.map_err(|error| to_python(&error))?;
        let ids = PyBytes::new_with(py, 4 * encoded.len(), |bytes| {
            let mut places = bytes.as_chunks_mut::<4>().0;
            // One vector after another: over all of them at once, each id would be copied by itself.
            for ids in &encoded.ids {
                let (these, rest) = places.split_at_mut(ids.len());
                for (place, id) in these.iter_mut().zip(ids) {
                    *place = id.to_le_bytes();
                }
                places = rest;
            }
            Ok(())
        })?;
        let counts = packed(py, encoded.counts.iter().map(|count| count.to_le_bytes()))?;
        let text_bytes = packed(py, encoded.text_bytes.iter().map(|bytes| bytes.to_le_bytes()))?;
        Ok(Encoded { ids: ids.unbind(), counts: counts.unbind(), text_bytes: text_bytes.unbind() })
    }
}

fn to_python(error: &Error) -> PyErr {
    match error {
        Error::Stopped => PyInterruptedError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Encoded>()?;
    module.add_class::<Encoder>()
}
