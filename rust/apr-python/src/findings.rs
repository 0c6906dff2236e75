//! The checks of a file as classes with named fields.

use apr_format::internal::verify;
use pyo3::{prelude::*, types::PyTuple};

/// One check of a file; `passed` is None if the file has nothing to check, such as no footer.
#[pyclass(get_all, frozen, module = "apr._core")]
pub(crate) struct Check {
    name: &'static str,
    passed: Option<bool>,
    detail: String,
    tensor: Option<String>,
    offset: Option<u64>,
}

/// Whether a file opened, and its checks in file order.
#[pyclass(get_all, frozen, module = "apr._core")]
pub(crate) struct Findings {
    opened: bool,
    checks: Py<PyTuple>,
}

impl Findings {
    pub(crate) fn new(py: Python<'_>, findings: verify::Findings) -> PyResult<Self> {
        let checks = findings.checks.into_iter().map(|check| Check {
            name: check.part.name(),
            passed: check.passed,
            detail: check.detail,
            tensor: check.tensor,
            offset: check.offset,
        });
        let checks = PyTuple::new(py, checks.collect::<Vec<_>>())?.unbind();
        Ok(Self { opened: findings.opened, checks })
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Check>()?;
    module.add_class::<Findings>()
}
