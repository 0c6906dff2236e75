//! Memory that Python and Rust share: the mapping as a buffer, and the bytes of Python's buffers.
#![allow(unsafe_code)]

use std::ffi::c_int;

use apr_format::mapping::Mapping as Pages;
use pyo3::{
    buffer::{PyBuffer, PyUntypedBuffer},
    exceptions::PyValueError,
    ffi,
    prelude::*,
};

/// A file's pages as a writable buffer; what is written to them stays in this process.
///
/// Every view of it keeps the mapping alive.
#[pyclass(frozen, module = "apr._core")]
pub(crate) struct Mapping(pub(crate) Pages);

#[pymethods]
impl Mapping {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    #[allow(clippy::needless_pass_by_value)] // PyO3 hands over an owned `slf` here
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let pages = &slf.get().0;
        let size = ffi::Py_ssize_t::try_from(pages.len())?;
        // SAFETY: `view` is the caller's to fill; the pages live as long as `slf`, to which
        // PyBuffer_FillInfo takes a reference; no Rust reference to them exists.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), pages.as_ptr().cast(), size, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// The bytes of a C-contiguous buffer.
pub(crate) fn bytes(buffer: &PyUntypedBuffer) -> PyResult<&[u8]> {
    if !buffer.is_c_contiguous() {
        return Err(PyValueError::new_err("values must be C-contiguous"));
    }
    if buffer.len_bytes() == 0 {
        return Ok(&[]);
    }
    // SAFETY: contiguous, so `len_bytes` bytes from `buf_ptr` on are the buffer's, which stays
    // exported, and thus in place, while `buffer` lives. Whoever writes to it meanwhile gets mixed
    // values into the file, as with every writer of arrays.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes()) })
}

/// The values of a writable C-contiguous float32 buffer that only the caller knows of.
pub(crate) fn floats_mut(buffer: &mut PyBuffer<f32>) -> PyResult<&mut [f32]> {
    if !buffer.is_c_contiguous() || buffer.readonly() {
        return Err(PyValueError::new_err("the output must be writable and C-contiguous"));
    }
    if buffer.item_count() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: contiguous and writable f32 (the buffer's type says so), exported while `buffer` lives;
    // the array was made by the caller for this call alone.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer.buf_ptr().cast(), buffer.item_count()) })
}
