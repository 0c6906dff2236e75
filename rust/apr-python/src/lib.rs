//! `apr._core`: the Python module over `apr-format`.
//!
//! Argument conversion, release of the GIL and export of buffers only. Parsing and policy are in the other
//! crates and in Python.
#![deny(unsafe_code)]

use pyo3::prelude::*;

mod atomic;
mod buffer;
mod checksums;
mod container;
mod encode;
mod errors;
mod findings;
mod header;
mod quantize;
mod shards;
mod stamp;
mod v1;
mod watch;

/// The extension module; `python/apr/_core.pyi` describes it.
///
/// It works without the GIL: every class is frozen, and mutable state, such as a writer's, is behind a mutex.
/// No Python code runs while a mutex is locked, so there can be no deadlock with the GIL.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    atomic::register(module)?;
    checksums::register(module)?;
    container::register(module)?;
    findings::register(module)?;
    header::register(module)?;
    stamp::register(module)?;
    encode::register(module)?;
    quantize::register(module)?;
    shards::register(module)?;
    v1::register(module)
}
