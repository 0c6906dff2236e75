//! The encoder of texts.

use std::{path::PathBuf, sync::Arc};

use apr_encode::{ByteLevel as InnerByteLevel, Encoder as Inner, Ends, Error, Stored};
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

/// A tokenizer.json that has a fast path, read without the tokenizers library.
#[pyclass(frozen, module = "apr._core")]
struct ByteLevel {
    inner: Arc<InnerByteLevel>,
}

#[pymethods]
impl ByteLevel {
    /// Read the text of a tokenizer.json. None if it has no fast path or is not of the usual form.
    #[staticmethod]
    fn read(py: Python<'_>, content: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(content).ok()?;
        py.detach(|| InnerByteLevel::read(text)).map(|inner| Self { inner: inner.into() })
    }

    /// The id of a token, also of an added one; None if there is none.
    fn id(&self, token: &str) -> Option<u32> {
        self.inner.id(token)
    }

    /// The highest id + 1.
    #[getter]
    fn vocab_size(&self) -> u64 {
        self.inner.vocab_size()
    }

    /// The tokens that are added to those of the model, each with its id and whether it is special.
    #[getter]
    fn added_tokens(&self) -> Vec<(u32, &str, bool)> {
        let added = self.inner.added_tokens().iter();
        added.map(|token| (token.id, token.content.as_str(), token.special)).collect()
    }

    /// The token for bytes that are not in the vocabulary.
    #[getter]
    fn unknown(&self) -> Option<&str> {
        self.inner.unknown()
    }

    /// The bytes that ids stand for, which are given as little-endian u32; None if the tokenizer does not say.
    fn decode<'py>(&self, py: Python<'py>, ids: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let ids = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id));
        self.inner.decode(ids).map(|bytes| PyBytes::new(py, &bytes))
    }

    /// The text that the identity of the tokenizer is a hash of.
    fn identity_text<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, py.detach(|| self.inner.identity_text()).as_bytes())
    }
}

/// What an encoder is made from.
#[derive(FromPyObject)]
enum Source<'py> {
    Read(PyRef<'py, ByteLevel>),
    Json(PyBackedStr),
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
    /// Create an encoder from a tokenizer that was read, or the text of a tokenizer.json. `before` and `after` are
    /// ids added around each stored text.
    #[new]
    #[pyo3(signature = (tokenizer, threads, *, before=None, after=None, nfc=false))]
    fn new(
        py: Python<'_>,
        tokenizer: Source<'_>,
        threads: usize,
        before: Option<u32>,
        after: Option<u32>,
        nfc: bool,
    ) -> PyResult<Self> {
        let inner = match tokenizer {
            Source::Read(read) => Inner::from_byte_level(read.inner.clone(), threads, nfc),
            Source::Json(json) => py.detach(|| Inner::new(&json, threads, nfc)),
        };
        let inner = inner.map_err(|error| to_python(&error))?;
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
    module.add_class::<ByteLevel>()?;
    module.add_class::<Encoded>()?;
    module.add_class::<Encoder>()
}
