//! Copies of a file with other metadata.
#![allow(clippy::needless_pass_by_value)] // PyO3 extracts arguments by value

use std::{borrow::Cow, fs::File, path::PathBuf};

use apr_format::internal::{
    atomic::AtomicFile,
    contents::Contents,
    source::open_regular,
    v2::{header::Header, read, stamp::stamp},
};
use pyo3::prelude::*;

use crate::errors::raise;

/// An open file of the current version, to write copies of with other metadata.
#[pyclass(frozen, module = "apr._core")]
struct Stamp {
    path: PathBuf,
    file: File,
    header: Header,
    contents: Contents,
}

#[pymethods]
impl Stamp {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let opened = py.detach(|| {
            let file = open_regular(&path)?;
            let (header, contents) = read::open(&file)?;
            Ok((file, header, contents))
        });
        let (file, header, contents) = opened.map_err(|error| raise(py, &error, &path))?;
        Ok(Self { path, file, header, contents })
    }

    /// The metadata's JSON text.
    fn metadata(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.contents.metadata(&self.file).map(Cow::into_owned))
            .map_err(|error| raise(py, &error, &self.path))
    }

    /// The header's flags.
    #[getter]
    fn flags(&self) -> u16 {
        self.header.flags
    }

    /// Write a copy to `target`. It replaces `target` once it is complete and every byte of this file was
    /// verified.
    fn write(&self, py: Python<'_>, target: PathBuf, metadata: &str, flags: u16) -> PyResult<()> {
        // Errors of the operating system are about the target: this file was read before.
        let out =
            py.detach(|| AtomicFile::create(&target)).map_err(|error| raise(py, &error.into(), &target))?;
        py.detach(|| {
            let out = stamp(&self.file, (&self.header, &self.contents), metadata, flags, out)?;
            Ok(out.commit()?)
        })
        .map_err(|error: apr_format::Error| {
            let is_io = matches!(error.rule, apr_format::Rule::Io(_));
            raise(py, &error, if is_io { &target } else { &self.path })
        })
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Stamp>()
}
