//! Files that Python writes and that appear whole or not at all.
#![allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use apr_format::internal::atomic;
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::errors::os_error;

/// A temporary file beside `path`, which `commit` puts in its place.
///
/// It is removed by `abort`, when it is garbage collected, and, if the process is killed, by the next writer
/// of the same path.
#[pyclass(frozen, module = "apr._core")]
struct AtomicFile {
    path: PathBuf,
    file: Mutex<Option<atomic::AtomicFile>>,
}

#[pymethods]
impl AtomicFile {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let file =
            py.detach(|| atomic::AtomicFile::create(&path)).map_err(|error| os_error(py, &error, &path))?;
        Ok(Self { path, file: Mutex::new(Some(file)) })
    }

    /// The descriptor to write to. It is closed by `commit` and `abort`.
    fn fileno(&self) -> PyResult<RawFd> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = file.as_ref().ok_or_else(|| PyValueError::new_err("the file is closed"))?;
        Ok(file.as_fd().as_raw_fd())
    }

    /// Flush the file to the disk, give it its name, and flush the directory.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        let file = self.take().ok_or_else(|| PyValueError::new_err("the file is closed"))?;
        py.detach(|| file.commit()).map_err(|error| os_error(py, &error, &self.path))
    }

    /// Remove the temporary file. Does nothing after `commit`.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}

impl AtomicFile {
    fn take(&self) -> Option<atomic::AtomicFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<AtomicFile>()
}
