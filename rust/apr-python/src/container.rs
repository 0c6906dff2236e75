//! The container: open, map, verify, write.
#![allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use apr_format::{
    Error,
    internal::{
        atomic::AtomicFile,
        container::{self, Image},
        contents::{Contents, cut_short},
        dtype::Dtype,
        index::Tensor,
        keys::{Keys, Unlock},
        mapping::Mapping as Pages,
        quant,
        source::{open_regular, read_vec},
        threads,
        v1::read::Opened,
        v2::{
            layout::{Layout, Spec},
            stream::Stream,
            write,
        },
        watch::Watched,
    },
};
use pyo3::{
    exceptions::{PyKeyError, PyValueError},
    prelude::*,
    pybacked::PyBackedStr,
    types::{PyBytes, PyList, PyString, PyTuple},
};

use crate::{
    buffer::{Input, Mapping, Output},
    errors::{os_error, raise},
    findings::Findings,
    header::Header,
    v1::{V1Header, V1Signer},
    watch::{no_progress, report_to, watched},
};

/// Bytes that one thread reads at a time.
const SEGMENT: usize = 1 << 20;

/// Read bytes of a file into an output, from its byte `start` on.
fn read_into(out: &Output, start: usize, len: usize, image: &Image<'_, File>, offset: u64) -> io::Result<()> {
    match image {
        Image::File(file) => out.read_file(start, len, file, offset),
        Image::Memory(_) => out.write(start, &read_vec(image, offset, len as u64)?),
    }
}

/// An open file of any form: what its header, metadata and index say, and where to read from.
#[pyclass(frozen, module = "apr._core")]
struct Container {
    path: PathBuf,
    keys: Keys,
    opened: container::Container<File>,
}

#[pymethods]
impl Container {
    #[new]
    #[pyo3(signature = (path, password=None, recipient_key=None, trusted_key=None))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        password: Option<&str>,
        recipient_key: Option<&[u8]>,
        trusted_key: Option<&[u8]>,
    ) -> PyResult<Self> {
        let keys = keys(password, recipient_key, trusted_key)?;
        py.detach(|| container::Container::open_with(open_regular(&path)?, &keys))
            .map_err(|error| raise(py, &error, &path))
            .map(|opened| Self { path, keys, opened })
    }

    /// Return the name of the form of the format that the file has.
    #[getter]
    fn form(&self) -> &'static str {
        self.opened.form().name()
    }

    /// Return the header of a version 1 file; None for the other forms.
    fn v1_header(&self, py: Python<'_>) -> Option<V1Header> {
        self.opened.v1().map(|v1| V1Header::new(py, &v1.header))
    }

    /// Return the signer of a version 1 file; None if the file is not signed or has another form.
    #[getter]
    fn signer(&self, py: Python<'_>) -> Option<V1Signer> {
        self.opened.v1()?.signer.as_ref().map(|signer| V1Signer::new(py, signer))
    }

    /// Whether the payload is encrypted and the file was opened without a key.
    #[getter]
    fn locked(&self) -> bool {
        self.opened.v1().is_some_and(Opened::is_locked)
    }

    /// Return the decrypted and decompressed payload of a version 1 file; empty for the other forms.
    fn payload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let Some(v1) = self.opened.v1() else { return Ok(PyBytes::new(py, &[])) };
        let packed = py.detach(|| v1.packed(self.opened.source())).map_err(|error| self.raise(py, error))?;
        PyBytes::new_with(py, v1.payload_size(), |bytes| {
            py.detach(|| packed.unpack(bytes)).map_err(|error| self.raise(py, error))
        })
    }

    /// Return the header; None for a version 1 file, which has a `v1_header` instead.
    fn header(&self, py: Python<'_>) -> Option<Header> {
        Header::new(py, self.opened.form())
    }

    /// Read and check the metadata and return their JSON text.
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let text = py.detach(|| self.opened.metadata()).map_err(|error| self.raise(py, error))?;
        Ok(PyString::new(py, &text))
    }

    /// Return the JSON text of the value of one key; None if the metadata do not have the key.
    fn member(&self, py: Python<'_>, key: &str) -> PyResult<Option<String>> {
        py.detach(|| self.opened.member(key)).map_err(|error| self.raise(py, error))
    }

    /// Return the length of the file in bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.contents().size
    }

    /// Return the CRC32 in the footer; None if the file has no footer.
    #[getter]
    fn footer(&self) -> Option<u32> {
        self.contents().footer.map(|(_, crc)| crc)
    }

    /// Return the names of the tensors in the order of the index.
    fn names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.contents().tensors.names().collect::<Vec<_>>())
    }

    /// Return dtype, shape, nbytes and offset in the file of a tensor; None if there is no tensor of this name.
    fn info<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let Some(entry) = self.contents().tensors.get(name) else { return Ok(None) };
        let shape = PyTuple::new(py, entry.dims())?;
        (entry.dtype.name(), shape, entry.nbytes, entry.offset).into_pyobject(py).map(Some)
    }

    /// Return a tensor on pages from `map` as a `DLPack` capsule; None if the tensor is empty, tied, quantized or
    /// not aligned to the size of its values.
    fn dlpack(&self, py: Python<'_>, name: &str, pages: &Mapping) -> PyResult<Option<Py<PyAny>>> {
        if !pages.is_of(&self.path) {
            return Err(PyValueError::new_err(format!(
                "the pages for tensor {name:?} belong to another file"
            )));
        }
        let entry = self.contents().tensors.get(name);
        pages.dlpack(py, &entry.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?)
    }

    /// Return name, dtype, shape, nbytes and offset of the tensors that store the values of these: themselves, or the
    /// embedding for a tied head. One call, because a model may have 18,867.
    fn stored_entries<'py>(&self, py: Python<'py>, names: Vec<PyBackedStr>) -> PyResult<Bound<'py, PyList>> {
        let entries = PyList::empty(py);
        for name in names {
            let stored =
                self.contents().stored(self.find(&name)?).map_err(|error| raise(py, &error, &self.path))?;
            let shape = PyTuple::new(py, &stored.dims)?;
            entries.append((
                stored.name.as_str(),
                stored.dtype.name(),
                shape,
                stored.nbytes,
                stored.offset,
            ))?;
        }
        Ok(entries)
    }

    /// Return the name of the tensor that stores the values of this one: itself, or the embedding for a tied head.
    fn stored(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        self.contents()
            .stored(self.find(name)?)
            .map(|stored| stored.name)
            .map_err(|error| raise(py, &error, &self.path))
    }

    /// Map the pages of the file. For a file that had to be unpacked, return the memory that it was unpacked into.
    fn map(&self, py: Python<'_>) -> PyResult<Mapping> {
        let image = py.detach(|| self.opened.image()).map_err(|error| self.raise(py, error))?;
        let file = match image {
            Image::File(file) => file,
            Image::Memory(pages) => return Ok(Mapping::of_memory(Arc::clone(pages), self.path.clone())),
        };
        let mapped = Pages::new(file).and_then(|pages| Ok((pages, file.try_clone()?)));
        let (pages, file) = mapped.map_err(|error| os_error(py, &error, &self.path))?;
        let (need, have) = (self.contents().size, pages.len() as u64);
        if have < need {
            return Err(raise(py, &Error::cut_short(need, have), &self.path));
        }
        Ok(Mapping::of_file(pages, file, self.path.clone()))
    }

    /// Read bytes of the file into writable C-contiguous buffers, each from its offset on, in parallel.
    fn read(&self, py: Python<'_>, parts: Vec<(u64, Bound<'_, PyAny>)>) -> PyResult<()> {
        let parts = parts
            .iter()
            .map(|(offset, values)| Ok((*offset, Output::new(values)?)))
            .collect::<PyResult<Vec<_>>>()?;
        // Segments, not buffers, are what threads share: this reads many small tensors in parallel, and also one
        // large tensor.
        let segments: Vec<_> = parts
            .iter()
            .flat_map(|(offset, out)| {
                (0..out.len())
                    .step_by(SEGMENT)
                    .map(move |start| (offset.saturating_add(start as u64), out, start))
            })
            .collect();
        py.detach(|| {
            let image = self.opened.image()?;
            threads::try_map(segments, |(offset, out, start)| {
                let len = SEGMENT.min(out.len() - start);
                read_into(out, start, len, &image, offset)
            })?;
            Ok(())
        })
        .map_err(|error| self.raise(py, error))
    }

    /// Read parts of the file, each an offset and a length, into a ring of writable C-contiguous buffers: the `n`th
    /// part into buffer `n` modulo their number, several parts ahead of the one that is used. A thread reads
    /// `segment` bytes at a time.
    ///
    /// `use_part` is called on this thread with the number of each part, in order, once the part is read. The
    /// buffers of the last `held` parts stay as they are after the call; older ones are filled again.
    fn read_ring(
        &self,
        py: Python<'_>,
        parts: Vec<(u64, usize)>,
        ring: Vec<Bound<'_, PyAny>>,
        held: usize,
        segment: usize,
        use_part: Py<PyAny>,
    ) -> PyResult<()> {
        let ring = ring.iter().map(Output::new).collect::<PyResult<Vec<_>>>()?;
        if held >= ring.len() || segment == 0 {
            return Err(PyValueError::new_err(
                "the ring has no buffer to read into, or nothing to read at a time",
            ));
        }
        let raise = |error| Python::attach(|py| self.raise(py, error));
        py.detach(|| {
            let image = self.opened.image().map_err(raise)?;
            threads::scope(|scope| {
                let (sender, receiver) = mpsc::channel();
                let start = |part: usize| {
                    let (offset, len) = parts[part];
                    let (out, image) = (&ring[part % ring.len()], &image);
                    for first in (0..len).step_by(segment) {
                        let sender = sender.clone();
                        scope.spawn_fifo(move |_| {
                            let at = offset.saturating_add(first as u64);
                            let read = read_into(out, first, segment.min(len - first), image, at);
                            // Nobody receives it after an error of another part, which has ended the call.
                            let _ = sender.send((part, read));
                        });
                    }
                };
                let mut left: Vec<usize> = parts.iter().map(|(_, len)| len.div_ceil(segment)).collect();
                (0..parts.len().min(ring.len())).for_each(start);
                for part in 0..parts.len() {
                    while left[part] > 0 {
                        // `sender` lives: there is something to receive or a read that will send it.
                        let Ok((done, read)) = receiver.recv() else { break };
                        read.map_err(|error| raise(error.into()))?;
                        left[done] -= 1;
                    }
                    Python::attach(|py| use_part.call1(py, (part,)))?;
                    // The buffer of the part `held` before this one is free.
                    if part >= held && part - held + ring.len() < parts.len() {
                        start(part - held + ring.len());
                    }
                }
                Ok(())
            })
        })
    }

    /// Fill a writable C-contiguous float32 buffer with a quantized tensor's values from the `start`th on.
    fn dequantize(&self, py: Python<'_>, name: &str, start: u64, values: &Bound<'_, PyAny>) -> PyResult<()> {
        const ITEM: usize = size_of::<f32>();
        let tensor = self.find(name)?;
        let out = Output::of_floats(values)?;
        let count = out.len() / ITEM;
        py.detach(|| {
            let image = self.opened.image()?;
            let tasks = (0..count).step_by(quant::TASK).collect();
            threads::try_map(tasks, |first| {
                let mut at = first * ITEM;
                let task = quant::TASK.min(count - first);
                quant::decode(&image, &tensor, start.saturating_add(first as u64), task, |values| {
                    out.write(at, values)?;
                    at += size_of_val(values);
                    Ok(())
                })
            })
            .map(|_: Vec<()>| ())
        })
        .map_err(|error| self.raise(py, error))
    }

    /// Check what opening does not: the metadata, and the CRC32 in the footer.
    fn check_rest(&self, py: Python<'_>) -> PyResult<()> {
        watched(py, no_progress, |watch| {
            self.opened.metadata()?;
            self.opened.check_footer(watch).map(|_| ())
        })?
        .map_err(|error| self.raise(py, error))
    }

    /// Check the whole file again. `on_progress` is called with the number of bytes read so far; an exception that
    /// it raises ends the check.
    fn verify(&self, py: Python<'_>, on_progress: Option<Py<PyAny>>) -> PyResult<Findings> {
        let source = self.opened.source();
        let findings = watched(py, report_to(on_progress), |watch| {
            container::verify_with(&Watched { source, watch }, &self.keys)
        })?
        .map_err(|error| os_error(py, &error, &self.path))?;
        Findings::new(py, findings)
    }
}

impl Container {
    fn contents(&self) -> &Contents {
        self.opened.contents()
    }

    fn find(&self, name: &str) -> PyResult<Tensor> {
        self.contents().tensor(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    /// Return the exception for an error in a part that was valid when the file was opened.
    fn raise(&self, py: Python<'_>, error: Error) -> PyErr {
        raise(py, &cut_short(self.opened.source(), self.contents().size, error), &self.path)
    }
}

/// Check the whole file at `path`. `on_progress` is called with the number of bytes read so far; an exception that it
/// raises ends the check.
#[pyfunction]
#[pyo3(signature = (path, on_progress=None, password=None, recipient_key=None, trusted_key=None))]
fn verify_file(
    py: Python<'_>,
    path: PathBuf,
    on_progress: Option<Py<PyAny>>,
    password: Option<&str>,
    recipient_key: Option<&[u8]>,
    trusted_key: Option<&[u8]>,
) -> PyResult<Findings> {
    let keys = keys(password, recipient_key, trusted_key)?;
    let findings = watched(py, report_to(on_progress), |watch| {
        container::verify_with(&Watched { source: &open_regular(&path)?, watch }, &keys)
    })?
    .map_err(|error| os_error(py, &error, &path))?;
    Findings::new(py, findings)
}

/// Return the keys that a caller passed. Errors do not show them, because they are secret.
fn keys(password: Option<&str>, recipient_key: Option<&[u8]>, trusted_key: Option<&[u8]>) -> PyResult<Keys> {
    let of_32 = |what: &str, key: &[u8]| {
        <[u8; 32]>::try_from(key)
            .map_err(|_| PyValueError::new_err(format!("{what} must be 32 bytes, not {}", key.len())))
    };
    let unlock = match (password, recipient_key) {
        (Some(_), Some(_)) => {
            return Err(PyValueError::new_err("pass a password or a recipient key, not both"));
        }
        (Some(password), None) => Some(Unlock::Password(password.to_owned().into())),
        (None, Some(key)) => Some(Unlock::Recipient(of_32("recipient_key", key)?.into())),
        (None, None) => None,
    };
    let trusted = trusted_key.map(|key| of_32("trusted_key", key)).transpose()?;
    Ok(Keys { unlock, trusted })
}

/// Return the number of bytes that a tensor takes in a file.
#[pyfunction]
fn nbytes(dtype: &str, shape: Vec<u64>) -> PyResult<u64> {
    let known = Dtype::from_name(dtype).ok_or_else(|| {
        PyValueError::new_err(format!("unknown dtype {dtype:?}; use one of {}", dtype_names()))
    })?;
    known
        .nbytes(&shape)
        .ok_or_else(|| PyValueError::new_err(format!("the product of the dims {shape:?} is out of range")))
}

fn dtype_names() -> String {
    Dtype::ALL.map(Dtype::name).join(", ")
}

/// The destination of a [`Writer`].
enum Out {
    File(AtomicFile),
    Memory(Vec<u8>),
}

impl io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Memory(memory) => memory.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Memory(memory) => memory.flush(),
        }
    }
}

/// Writes a file under a temporary name and renames it to its target when it is complete. Without a path, writes to
/// memory.
#[pyclass(frozen, module = "apr._core")]
struct Writer {
    path: PathBuf,
    state: Mutex<Option<write::Writer<Out>>>,
}

#[pymethods]
impl Writer {
    #[new]
    fn new(
        py: Python<'_>,
        path: Option<PathBuf>,
        specs: Vec<(String, String, Vec<u64>)>,
        metadata: &str,
        flags: u16,
    ) -> PyResult<Self> {
        let writer = py.detach(|| start(path.as_deref(), specs, metadata, flags));
        let path = path.unwrap_or_else(|| IN_MEMORY.into());
        let writer = writer.map_err(|error| raise(py, &error, &path))?;
        Ok(Self { path, state: Mutex::new(Some(writer)) })
    }

    /// Write the next bytes of the current tensor. Tensors come in the order of their names.
    fn part(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<()> {
        let values = Input::new(values)?;
        py.detach(|| self.with(|writer| writer.part_from(values.len() as u64, &mut values.reader())))
            .map_err(|error| raise(py, &error, &self.path))
    }

    /// End the current tensor, which must have all its bytes, and go to the next one.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        self.with(write::Writer::end).map_err(|error| raise(py, &error, &self.path))
    }

    /// Write the footer, flush the file to disk and rename it to its target; or return the bytes.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let finished = py.detach(|| {
            match self.take().ok_or_else(closed)?.finish()? {
                Out::File(file) => file.commit()?,
                Out::Memory(memory) => return Ok(Some(memory)),
            }
            Ok(None)
        });
        let memory = finished.map_err(|error| raise(py, &error, &self.path))?;
        // This copies the file. Without the copy, the `bytes` object would be allocated before the first tensor and
        // filled through a raw pointer: a second writer and more unsafe code, for files that fit in memory anyway.
        Ok(memory.map(|memory| PyBytes::new(py, &memory)))
    }

    /// Remove what was written. After `finish`, do nothing.
    fn abort(&self) {
        drop(self.take());
    }
}

impl Writer {
    fn take(&self) -> Option<write::Writer<Out>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn with<T>(
        &self,
        act: impl FnOnce(&mut write::Writer<Out>) -> apr_format::Result<T>,
    ) -> apr_format::Result<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        act(state.as_mut().ok_or_else(closed)?)
    }
}

/// Writes a file whose tensors are not known in advance.
#[pyclass(frozen, module = "apr._core")]
struct StreamWriter {
    path: PathBuf,
    state: Mutex<Option<Stream>>,
}

#[pymethods]
impl StreamWriter {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let stream = py.detach(|| Stream::create(&path)).map_err(|error| raise(py, &error, &path))?;
        Ok(Self { path, state: Mutex::new(Some(stream)) })
    }

    /// Write one complete tensor.
    fn add(
        &self,
        py: Python<'_>,
        name: String,
        dtype: &str,
        shape: Vec<u64>,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let values = Input::new(values)?;
        py.detach(|| {
            let spec = spec(name, dtype, shape)?;
            let mut stream = self.lock();
            stream.as_mut().ok_or_else(closed)?.add_from(spec, values.len() as u64, &mut values.reader())
        })
        .map_err(|error| raise(py, &error, &self.path))
    }

    /// Complete the file, flush it to disk and rename it to its target.
    fn finish(&self, py: Python<'_>, metadata: &str, flags: u16) -> PyResult<()> {
        py.detach(|| {
            let stream = self.lock().take().ok_or_else(closed)?;
            stream.finish(metadata, flags)
        })
        .map_err(|error| raise(py, &error, &self.path))
    }

    /// Remove what was written. After `finish`, do nothing.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| drop(self.lock().take()));
    }
}

impl StreamWriter {
    fn lock(&self) -> MutexGuard<'_, Option<Stream>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path that errors show for a file in memory.
const IN_MEMORY: &str = "<bytes>";

fn closed() -> Error {
    Error::invalid("the writer is closed")
}

fn start(
    path: Option<&Path>,
    specs: Vec<(String, String, Vec<u64>)>,
    metadata: &str,
    flags: u16,
) -> apr_format::Result<write::Writer<Out>> {
    let specs = specs
        .into_iter()
        .map(|(name, dtype, dims)| spec(name, &dtype, dims))
        .collect::<apr_format::Result<Vec<_>>>()?;
    // The layout comes before the file, so that invalid tensors leave no file behind.
    let layout = Layout::new(specs, metadata, flags)?;
    let out = if let Some(path) = path {
        Out::File(AtomicFile::create(path)?)
    } else {
        // At its whole size: a growing vector would copy what it holds again and again, and hold it twice.
        let out_of_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        let mut memory = Vec::new();
        let size = usize::try_from(layout.size).map_err(|_| out_of_memory())?;
        memory.try_reserve_exact(size).map_err(|_| out_of_memory())?;
        Out::Memory(memory)
    };
    write::Writer::new(out, layout)
}

fn spec(name: String, dtype: &str, dims: Vec<u64>) -> apr_format::Result<Spec> {
    let Some(dtype) = Dtype::from_name(dtype) else {
        let what = format!("unknown dtype {dtype:?}; use one of {}", dtype_names());
        return Err(Error::invalid(what).of_tensor(name));
    };
    Ok(Spec { name, dtype, dims })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Container>()?;
    module.add_class::<Mapping>()?;
    module.add_class::<StreamWriter>()?;
    module.add_class::<Writer>()?;
    module.add_function(wrap_pyfunction!(verify_file, module)?)?;
    module.add_function(wrap_pyfunction!(nbytes, module)?)
}
