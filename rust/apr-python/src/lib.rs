//! `apr._core`: the Python module over `apr-format`.
//!
//! Only argument conversion, release of the GIL and export of buffers. No parsing, no policy.
#![deny(unsafe_code)]

use pyo3::prelude::*;

mod atomic;
mod buffer;
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

/// The extension module; `python/apr/_core.pyi` describes what is in it.
///
/// It needs no GIL: every class is frozen, and what changes (a writer's state) is behind a mutex, under which
/// no Python code runs.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    atomic::register(module)?;
    container::register(module)?;
    findings::register(module)?;
    header::register(module)?;
    stamp::register(module)?;
    encode::register(module)?;
    quantize::register(module)?;
    shards::register(module)?;
    v1::register(module)
}
