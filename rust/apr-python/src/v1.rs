//! What only files of version 1 have: their header and their signer.

use apr_format::internal::v1::{header, read};
use pyo3::{prelude::*, types::PyBytes};

/// The fields of a version 1 header, without the magic.
#[pyclass(get_all, frozen, module = "apr._core")]
pub(crate) struct V1Header {
    version: (u8, u8),
    model_type: u16,
    metadata_size: u32,
    payload_size: u32,
    uncompressed_size: u32,
    compression: &'static str,
    flags: u8,
    quality: u8,
    reserved: Py<PyBytes>,
}

impl V1Header {
    pub(crate) fn new(py: Python<'_>, header: &header::Header) -> Self {
        Self {
            version: header.version,
            model_type: header.model_type,
            metadata_size: header.metadata_size,
            payload_size: header.payload_size,
            uncompressed_size: header.uncompressed_size,
            compression: header.compression.name(),
            flags: header.flags,
            quality: header.quality,
            reserved: PyBytes::new(py, &header.reserved).unbind(),
        }
    }
}

/// The key that signed a file, and whether it is the one that the caller trusts.
#[pyclass(get_all, frozen, module = "apr._core")]
pub(crate) struct V1Signer {
    public_key: Py<PyBytes>,
    is_trusted: bool,
}

impl V1Signer {
    pub(crate) fn new(py: Python<'_>, signer: &read::Signer) -> Self {
        Self { public_key: PyBytes::new(py, &signer.public_key).unbind(), is_trusted: signer.is_trusted }
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<V1Header>()?;
    module.add_class::<V1Signer>()
}
