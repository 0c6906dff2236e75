//! The header of a file as a class with named fields.

use apr_format::internal::{container::Form, v2, variants::json};
use pyo3::{prelude::*, types::PyBytes};

/// The fields of a header in file order. The JSON container has no place for a checksum and reserved bytes.
#[pyclass(get_all, frozen, module = "apr._core")]
pub(crate) struct Header {
    magic: Py<PyBytes>,
    version: (u8, u8),
    flags: u16,
    tensor_count: u32,
    metadata_offset: u64,
    metadata_size: u32,
    tensor_index_offset: u64,
    data_offset: u64,
    checksum: Option<u32>,
    reserved: Option<Py<PyBytes>>,
}

impl Header {
    /// `None` for version 1, whose header has other fields.
    pub(crate) fn new(py: Python<'_>, form: &Form) -> Option<Self> {
        match form {
            Form::V2(header) => Some(Self::of_v2(py, header)),
            Form::Json(header) => Some(Self::of_json(py, &json::MAGIC, header)),
            Form::Wrapped { magic, header, .. } => Some(Self::of_json(py, magic, header)),
            Form::V1(..) => None,
        }
    }

    fn of_v2(py: Python<'_>, header: &v2::header::Header) -> Self {
        Self {
            magic: PyBytes::new(py, &header.magic).unbind(),
            version: header.version,
            flags: header.flags,
            tensor_count: header.tensor_count,
            metadata_offset: header.metadata_offset,
            metadata_size: header.metadata_size,
            tensor_index_offset: header.tensor_index_offset,
            data_offset: header.data_offset,
            checksum: Some(header.checksum),
            reserved: Some(PyBytes::new(py, &header.reserved).unbind()),
        }
    }

    fn of_json(py: Python<'_>, magic: &[u8], header: &json::Header) -> Self {
        Self {
            magic: PyBytes::new(py, magic).unbind(),
            version: json::VERSION,
            flags: 0,
            tensor_count: header.tensor_count,
            metadata_offset: header.metadata_offset,
            metadata_size: header.metadata_size,
            tensor_index_offset: header.tensor_index_offset,
            data_offset: header.data_offset,
            checksum: None,
            reserved: None,
        }
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Header>()
}
