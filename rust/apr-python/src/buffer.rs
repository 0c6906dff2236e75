//! Memory that Python and Rust share: the pages of a file as a buffer and as tensors, and the memory of
//! Python's buffers.
//!
//! All unsafe code of the bindings is in this file.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    ptr,
    sync::Arc,
};

use apr_format::{
    Error,
    internal::{dtype::Dtype, index::Entry, mapping::Mapping as Pages},
};
use pyo3::{
    buffer::{Element, PyUntypedBuffer},
    exceptions::PyValueError,
    ffi,
    prelude::*,
    types::PyBytes,
};

use crate::errors::raise;

/// The pages of a file as a writable buffer. Writes stay in this process.
///
/// Every view and every tensor keeps the mapping alive. The file's length is checked each time pages are
/// handed out: a file that was truncated meanwhile is then an error instead of a SIGBUS. The pages of a
/// decompressed file are memory and have no file to check.
#[pyclass(frozen, module = "apr._core")]
pub(crate) struct Mapping {
    pages: Arc<Pages>,
    file: Option<File>,
    path: PathBuf,
}

impl Mapping {
    pub(crate) fn of_file(pages: Pages, file: File, path: PathBuf) -> Self {
        Self { pages: Arc::new(pages), file: Some(file), path }
    }

    pub(crate) fn of_memory(pages: Arc<Pages>, path: PathBuf) -> Self {
        Self { pages, file: None, path }
    }

    /// Whether these are the pages of the file that was opened at `path`.
    pub(crate) fn is_of(&self, path: &Path) -> bool {
        // As text: comparing paths part by part costs more, and a container hands over its own path.
        self.path.as_os_str() == path.as_os_str()
    }

    /// Return a tensor on the pages as a `DLPack` capsule, which torch turns into a tensor in a fifth of the
    /// time of `torch.frombuffer` and `view`. `None` if the values are quantized, empty, or not aligned to
    /// their size.
    pub(crate) fn dlpack(&self, py: Python<'_>, entry: &Entry<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(element) = element(entry.dtype).filter(|_| entry.nbytes > 0) else { return Ok(None) };
        let itemsize = u64::from(element.bits / 8);
        if !entry.offset.is_multiple_of(itemsize) {
            return Ok(None);
        }
        self.check_length(py)?;
        let nbytes = entry.dims().try_fold(itemsize, u64::checked_mul);
        let start = usize::try_from(entry.offset)?;
        let end = usize::try_from(entry.offset.saturating_add(entry.nbytes))?;
        if end > self.pages.len() || nbytes != Some(entry.nbytes) {
            return Err(PyValueError::new_err(format!(
                "tensor {:?} does not fit the pages: {} bytes at byte {start} of {}, with shape {:?}",
                entry.name,
                entry.nbytes,
                self.pages.len(),
                entry.dims().collect::<Vec<_>>(),
            )));
        }
        let shape = entry.dims().map(i64::try_from).collect::<Result<_, _>>()?;
        // SAFETY: `nbytes` is the product of the dimensions and the size of an element, and all of these bytes
        // lie within the pages: both were just compared, whichever reader produced the entry. `start` is a
        // multiple of the size of an element, and pages begin at a multiple of the page size.
        unsafe { dlpack::capsule(py, Arc::clone(&self.pages), element, shape, start) }.map(Some)
    }

    fn check_length(&self, py: Python<'_>) -> PyResult<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let need = self.pages.len() as u64;
        let have = file.metadata().map_err(|error| raise(py, &error.into(), &self.path))?.len();
        if have < need {
            return Err(raise(py, &Error::cut_short(need, have), &self.path));
        }
        Ok(())
    }
}

#[pymethods]
impl Mapping {
    fn __len__(&self) -> usize {
        self.pages.len()
    }

    #[allow(clippy::needless_pass_by_value)] // PyO3 hands over an owned `slf` here
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        slf.get().check_length(slf.py())?;
        let pages = &slf.get().pages;
        let size = ffi::Py_ssize_t::try_from(pages.len())?;
        // SAFETY: Python passes a `view` to fill. The pages live as long as `slf`, to which PyBuffer_FillInfo
        // takes a reference. No Rust reference to them exists. Whoever writes through the view must synchronize
        // with those who read the same bytes, as NumPy requires.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), pages.as_mut_ptr().cast(), size, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Return the type code and the bits that `DLPack` gives a plain dtype; `None` for a quantized one.
fn element(dtype: Dtype) -> Option<dlpack::Element> {
    let (code, bits) = match dtype {
        Dtype::F64 => (dlpack::FLOAT, 64),
        Dtype::F32 => (dlpack::FLOAT, 32),
        Dtype::F16 => (dlpack::FLOAT, 16),
        Dtype::Bf16 => (dlpack::BFLOAT, 16),
        Dtype::I64 => (dlpack::INT, 64),
        Dtype::I32 => (dlpack::INT, 32),
        Dtype::I8 => (dlpack::INT, 8),
        Dtype::U8 => (dlpack::UINT, 8),
        Dtype::Q4 | Dtype::Q8 | Dtype::Q4K | Dtype::Q6K => return None,
    };
    Some(dlpack::Element { code, bits, lanes: 1 })
}

/// The structures of `DLPack` 0.8 (<https://dmlc.github.io/dlpack/latest/c_api.html>), which every torch
/// reads.
mod dlpack {
    use super::{Arc, Pages, PyAny, PyErr, PyResult, Python, c_int, c_void, ffi, ptr};
    use pyo3::{Bound, Py};

    pub(super) const INT: u8 = 0;
    pub(super) const UINT: u8 = 1;
    pub(super) const FLOAT: u8 = 2;
    pub(super) const BFLOAT: u8 = 4;
    const CPU: c_int = 1;
    const NAME: &std::ffi::CStr = c"dltensor";

    /// `DLDataType`.
    #[repr(C)]
    pub(super) struct Element {
        pub(super) code: u8,
        pub(super) bits: u8,
        pub(super) lanes: u16,
    }

    /// `DLDevice`.
    #[repr(C)]
    struct Device {
        kind: c_int,
        id: c_int,
    }

    /// `DLTensor`.
    #[repr(C)]
    struct Tensor {
        data: *mut c_void,
        device: Device,
        ndim: c_int,
        element: Element,
        shape: *mut i64,
        strides: *mut i64,
        byte_offset: u64,
    }

    /// `DLManagedTensor`, and behind it what it points to.
    #[repr(C)]
    struct Managed {
        tensor: Tensor,
        context: *mut c_void,
        deleter: Option<unsafe extern "C" fn(*mut Managed)>,
        shape: Vec<i64>,
        pages: Arc<Pages>,
    }

    /// Return a capsule of the tensor whose first byte is byte `offset` of the pages, in row-major order.
    ///
    /// # Safety
    /// The product of `shape` and the size of an element, added to `offset`, must be at most the length of the
    /// pages, and `offset` must be a multiple of the size of an element: the consumer accesses all of these bytes
    /// without a check of its own.
    pub(super) unsafe fn capsule(
        py: Python<'_>,
        pages: Arc<Pages>,
        element: Element,
        shape: Vec<i64>,
        offset: usize,
    ) -> PyResult<Py<PyAny>> {
        let tensor = Tensor {
            data: pages.as_mut_ptr().wrapping_add(offset).cast(),
            device: Device { kind: CPU, id: 0 },
            ndim: c_int::try_from(shape.len())?,
            element,
            shape: ptr::null_mut(),
            strides: ptr::null_mut(), // row-major
            byte_offset: 0,
        };
        let mut managed =
            Box::new(Managed { tensor, context: ptr::null_mut(), deleter: Some(delete), shape, pages });
        managed.tensor.shape = managed.shape.as_mut_ptr();
        let managed = Box::into_raw(managed);
        // SAFETY: `managed` comes from `Box::into_raw` and owns the shape and a reference to the pages, to which
        // `tensor` points; both stay in place until `delete` frees the box. The capsule owns the box until a
        // consumer renames the capsule; from then on the consumer must call `deleter`. A capsule that could not be
        // created has no owner, so the box is freed here, once.
        unsafe {
            let capsule = ffi::PyCapsule_New(managed.cast(), NAME.as_ptr(), Some(release));
            if capsule.is_null() {
                delete(managed);
                return Err(PyErr::fetch(py));
            }
            Ok(Bound::from_owned_ptr(py, capsule).unbind())
        }
    }

    /// Free the tensor. It is memory of Rust only, so this may be called without the GIL, as `DLPack` allows.
    unsafe extern "C" fn delete(managed: *mut Managed) {
        // SAFETY: the pointer comes from `Box::into_raw` in `capsule`, and the protocol calls a deleter once.
        drop(unsafe { Box::from_raw(managed) });
    }

    /// Free a capsule that nobody consumed. A consumer renames the capsule, and then calls the deleter
    /// itself.
    unsafe extern "C" fn release(capsule: *mut ffi::PyObject) {
        // SAFETY: Python calls this with the capsule that `capsule` created. A capsule that still has its first name
        // was not consumed, so nobody else frees its pointer.
        unsafe {
            if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
                delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
            }
        }
    }
}

/// The memory of a C-contiguous Python buffer, to read from.
///
/// Python code may hold other views of this memory and may pass the same array twice. A `&[u8]` would promise the
/// compiler that it does not, so [`Input`] and [`Output`] form no reference: bytes are copied through the raw
/// pointer, or the kernel reads a file into it.
///
/// The copies are not atomic and run without the GIL. A thread that writes to the array meanwhile (or, for an
/// [`Output`], reads it) makes them a data race in Rust's memory model. The caller must synchronize such threads,
/// as `NumPy` requires of whoever shares an array. Overlapping arrays passed to one call are such a race between the
/// threads of that call.
pub(crate) struct Input(PyUntypedBuffer);

impl Input {
    pub(crate) fn new(values: &Bound<'_, PyAny>) -> PyResult<Self> {
        contiguous(values).map(Self)
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len_bytes()
    }

    /// Return a reader of the bytes in order, which copies each byte once.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { input: self, position: 0 }
    }
}

/// Copies an [`Input`] out, a part at a time.
pub(crate) struct Reader<'a> {
    input: &'a Input,
    position: usize,
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.input.len() - self.position);
        if count > 0 {
            let from = self.input.0.buf_ptr().cast::<u8>();
            // SAFETY: the buffer is contiguous and has `len` bytes, and `position + count` is at most that.
            // It stays exported, and so in place, while `self.input` lives. `out` is an exclusive borrow of
            // `count` bytes or more; `copy` allows an overlap. That no thread writes to the array meanwhile is
            // relied on and cannot be checked: see `Input`.
            unsafe { ptr::copy(from.add(self.position), out.as_mut_ptr(), count) };
            self.position += count;
        }
        Ok(count)
    }
}

/// The memory of a writable C-contiguous Python buffer, to fill.
///
/// As with an [`Input`], no reference to it is formed, and the caller must synchronize other threads that use it.
pub(crate) struct Output(PyUntypedBuffer);

impl Output {
    pub(crate) fn new(values: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = contiguous(values)?;
        if buffer.readonly() {
            return Err(PyValueError::new_err("the output buffer is read-only"));
        }
        Ok(Self(buffer))
    }

    /// Create an output of float32 values.
    pub(crate) fn of_floats(values: &Bound<'_, PyAny>) -> PyResult<Self> {
        let output = Self::new(values)?;
        output.0.as_typed::<f32>()?;
        Ok(output)
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len_bytes()
    }

    /// Copy values to byte `start` and after it.
    pub(crate) fn write<T: Element>(&self, start: usize, values: &[T]) -> io::Result<()> {
        let bytes = size_of_val(values);
        let to = self.pointer(start, bytes)?;
        // SAFETY: `pointer` has checked that `bytes` bytes of writable memory begin at `to`, which stays
        // exported while `self` lives. An `Element` is plain data. `copy` on bytes needs no alignment and
        // allows an overlap. That no other thread uses these bytes meanwhile is relied on and cannot be
        // checked: see `Output`.
        unsafe { ptr::copy(values.as_ptr().cast::<u8>(), to, bytes) };
        Ok(())
    }

    /// Read `len` bytes of a file, from `offset` on, into the memory from byte `start` on.
    pub(crate) fn read_file(&self, start: usize, len: usize, file: &File, offset: u64) -> io::Result<()> {
        let mut to = self.pointer(start, len)?;
        let mut offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let mut left = len;
        while left > 0 {
            // Not `File::read_at`, which wants a `&mut [u8]`.
            // SAFETY: `pointer` has checked that `left` bytes of writable memory begin at `to`, which stays
            // exported while `self` lives. The kernel writes to no other memory. That no other thread uses these
            // bytes meanwhile is relied on and cannot be checked: see `Output`.
            let read = unsafe { libc::pread(file.as_raw_fd(), to.cast(), left, offset) };
            match usize::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    to = to.wrapping_add(count);
                    left -= count;
                    offset += read as libc::off_t;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Read `len` bytes of a file into the memory from byte `start` on, if they are in the page cache. Return whether
    /// they were; if not, the content of the memory is unspecified.
    #[cfg(target_os = "linux")]
    pub(crate) fn read_cached(&self, start: usize, len: usize, file: &File, offset: u64) -> bool {
        let (Ok(to), Ok(offset)) = (self.pointer(start, len), libc::off_t::try_from(offset)) else {
            return false;
        };
        let part = libc::iovec { iov_base: to.cast(), iov_len: len };
        // SAFETY: as in `read_file`; `part` lives until the call returns.
        let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
        usize::try_from(read) == Ok(len)
    }

    /// Return the address of byte `start`; an error unless `len` bytes from there on are part of the memory.
    fn pointer(&self, start: usize, len: usize) -> io::Result<*mut u8> {
        if start.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the output buffer is too short"));
        }
        Ok(self.0.buf_ptr().cast::<u8>().wrapping_add(start))
    }
}

fn contiguous(values: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(values)?;
    if !buffer.is_c_contiguous() {
        return Err(PyValueError::new_err("values must be C-contiguous"));
    }
    Ok(buffer)
}

/// Return `bytes` with little-endian numbers, one after another.
pub(crate) fn packed<const N: usize>(
    py: Python<'_>,
    numbers: impl ExactSizeIterator<Item = [u8; N]>,
) -> PyResult<Bound<'_, PyBytes>> {
    PyBytes::new_with(py, N * numbers.len(), |bytes| {
        for (place, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
            *place = number;
        }
        Ok(())
    })
}
