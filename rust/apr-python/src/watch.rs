//! Long work on a thread of its own, while this one, which gets the signals, looks after it.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use apr_format::watch::Watch;
use pyo3::{exceptions::PyRuntimeError, prelude::*};

/// How long work goes on before it is looked whether Ctrl-C was pressed, and said how far it is.
const PATIENCE: Duration = Duration::from_millis(100);

/// Do something without the GIL; Ctrl-C, or what `on_progress` raises when it is told of the bytes read so far,
/// makes it end soon.
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
                match receiver.recv_timeout(PATIENCE) {
                    Ok(found) => return Ok(found),
                    Err(RecvTimeoutError::Timeout) => {}
                    // The work panicked, which the end of the scope passes on.
                    Err(RecvTimeoutError::Disconnected) => return Err(PyRuntimeError::new_err("no outcome")),
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

/// Tell nobody how far the work is.
#[allow(clippy::unnecessary_wraps)] // as `on_progress` is
pub(crate) fn in_silence(_: Python<'_>, _: u64) -> PyResult<()> {
    Ok(())
}

/// Call Python with the bytes read so far, where there is something to call.
pub(crate) fn tell(call: Option<Py<PyAny>>) -> impl Fn(Python<'_>, u64) -> PyResult<()> + Send {
    move |py, bytes| call.as_ref().map_or(Ok(()), |call| call.call1(py, (bytes,)).map(|_| ()))
}
