//! Rust's errors as the classes of `apr.errors` and the operating system's as Python's own.

use std::{io, path::Path};

use apr_format::{Error, Foreign, Kind, Rule};
use pyo3::{
    exceptions::PyOSError,
    prelude::*,
    types::{IntoPyDict, PyString},
};

/// The exception for an error about the file at `path`.
pub(crate) fn raise(py: Python<'_>, error: &Error, path: &Path) -> PyErr {
    if let Rule::Io(error) = &error.rule {
        return os_error(py, error, path);
    }
    build(py, error, path).unwrap_or_else(|failure| failure)
}

/// `OSError(errno, text, path)`, of which Python makes the right subclass.
pub(crate) fn os_error(py: Python<'_>, error: &io::Error, path: &Path) -> PyErr {
    let Some(errno) = errno(error) else {
        return PyOSError::new_err(format!("{}: {error}", one_line(path)));
    };
    match py.import("os").and_then(|os| os.call_method1("strerror", (errno,))) {
        Ok(text) => PyOSError::new_err((errno, text.unbind(), path.as_os_str().to_owned())),
        Err(failure) => failure,
    }
}

/// The errno of an error. Those that Rust code raises by their kind get the number that the system would use.
fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or(match error.kind() {
        io::ErrorKind::IsADirectory => Some(libc::EISDIR),
        io::ErrorKind::OutOfMemory => Some(libc::ENOMEM),
        io::ErrorKind::AlreadyExists => Some(libc::EEXIST),
        _ => None,
    })
}

fn build(py: Python<'_>, error: &Error, path: &Path) -> PyResult<PyErr> {
    let class = match error.kind() {
        Kind::Format => "FormatError",
        Kind::Checksum => "ChecksumError",
        Kind::Truncated => "TruncatedError",
        Kind::Unsupported => "UnsupportedError",
        Kind::Decryption => "DecryptionError",
        Kind::Signature => "SignatureError",
        Kind::Invalid | Kind::Io => "AprError",
    };
    let class = py.import("apr.errors")?.getattr(class)?;
    let keywords = [
        ("path", path.as_os_str().into_pyobject(py)?.into_any()),
        ("tensor", error.tensor().into_pyobject(py)?),
        ("offset", error.offset().into_pyobject(py)?),
    ]
    .into_py_dict(py)?;
    let mut message = format!("{}: {error}", one_line(path));
    if let Some(remedy) = remedy(error) {
        message = format!("{message}; {remedy}");
    }
    let message = PyString::new(py, &message);
    Ok(PyErr::from_value(class.call((message,), Some(&keywords))?))
}

/// What to do about an error, in Python or on the command line. The Rust crate knows neither.
fn remedy(error: &Error) -> Option<&'static str> {
    match &error.rule {
        Rule::Foreign { format } => match format {
            Foreign::Gguf | Foreign::Safetensors => Some("convert it with apr convert FILE OUT.apr"),
            Foreign::Zip => Some(
                "convert a state dict that you trust with \
                 apr.save(torch.load(FILE, weights_only=True), 'OUT.apr'), or arrays with \
                 apr.save(dict(numpy.load(FILE)), 'OUT.apr')",
            ),
            Foreign::Npz => Some("convert it with apr.save(dict(numpy.load(FILE)), 'OUT.apr')"),
            Foreign::Pickle => Some(
                "convert a state dict that you trust with \
                 apr.save(torch.load(FILE, weights_only=True), 'OUT.apr')",
            ),
            Foreign::Npy => Some("convert it with apr.save({'name': numpy.load(FILE)}, 'OUT.apr')"),
            Foreign::Hdf5 => Some("read its tensors with h5py and write them with apr.save"),
            _ => None,
        },
        Rule::ReadOnly { .. } => Some(
            "convert it with apr.save(dict(file), 'OUT.apr', file.metadata), where file = apr.load(FILE)",
        ),
        _ => None,
    }
}

/// A path as text that neither breaks a line nor acts on a terminal.
fn one_line(path: &Path) -> String {
    path.to_string_lossy().chars().fold(String::new(), |mut text, character| {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
        text
    })
}
