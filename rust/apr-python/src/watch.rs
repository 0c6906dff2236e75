//! Long work on a thread of its own, while the calling thread handles Ctrl-C and reports progress.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use apr_format::internal::watch::Watch;
use pyo3::{exceptions::PyRuntimeError, prelude::*};

/// Time between two checks for Ctrl-C, and between two reports of progress: short enough to feel immediate,
/// long enough to cost nothing.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Run `work` without the GIL. Python delivers signals to the main thread only, so the work gets a thread of
/// its own and this one stays free to notice them. Ctrl-C, or an exception of `on_progress`, which gets the
/// bytes read so far, ends the work at its next read.
pub(crate) fn watched<R: Send>(
    py: Python<'_>,
    on_progress: impl Fn(Python<'_>, u64) -> PyResult<()> + Send,
    work: impl FnOnce(&Watch) -> R + Send,
) -> PyResult<R> {
    py.detach(move || {
        let watch = Watch::default();
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| sender.send(work(&watch)));
            loop {
                match receiver.recv_timeout(POLL_INTERVAL) {
                    Ok(result) => return Ok(result),
                    Err(RecvTimeoutError::Timeout) => {}
                    // The work panicked; the end of the scope propagates the panic.
                    Err(RecvTimeoutError::Disconnected) => return Err(PyRuntimeError::new_err("no result")),
                }
                Python::attach(|py| {
                    py.check_signals()?;
                    on_progress(py, watch.bytes())
                })
                .inspect_err(|_| watch.stop())?;
            }
        })
    })
}

/// An `on_progress` that reports nothing.
#[allow(clippy::unnecessary_wraps)] // the signature of `on_progress`
pub(crate) fn no_progress(_: Python<'_>, _: u64) -> PyResult<()> {
    Ok(())
}

/// An `on_progress` that calls a Python function, if there is one, with the bytes read so far.
pub(crate) fn report_to(call: Option<Py<PyAny>>) -> impl Fn(Python<'_>, u64) -> PyResult<()> + Send {
    move |py, bytes| call.as_ref().map_or(Ok(()), |call| call.call1(py, (bytes,)).map(|_| ()))
}
