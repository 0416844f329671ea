//! How the data path's errors reach Python: one exception with a stable `code`, the same words as docs/errors.md.

use pyo3::{exceptions::PyException, prelude::*};

pyo3::create_exception!(
    playhead._native,
    NativeError,
    PyException,
    "The data path refused. `code` is a stable word (docs/errors.md), `message` says what, why and what next."
);

/// Makes a [`NativeError`] of a code and a text.
pub(crate) fn native(code: &str, message: &str) -> PyErr {
    Python::attach(|py| {
        let error = NativeError::new_err(message.to_owned());
        let value = error.value(py);
        // Setting an attribute on a fresh exception fails only when memory does; that error is then the better one to raise.
        match value
            .setattr("code", code)
            .and_then(|()| value.setattr("message", message))
        {
            Ok(()) => error,
            Err(other) => other,
        }
    })
}

/// The journal's error, for Python.
pub(crate) fn journal(error: &playhead_journal::Error) -> PyErr {
    native(error.code(), &error.to_string())
}

/// An error of the operating system while doing `what`.
pub(crate) fn io(what: &str, error: &std::io::Error) -> PyErr {
    let code = match error.kind() {
        std::io::ErrorKind::AddrInUse => "address-in-use",
        std::io::ErrorKind::AddrNotAvailable => "address-not-available",
        std::io::ErrorKind::PermissionDenied => "permission",
        _ => "io",
    };
    native(code, &format!("{what}: {error}"))
}

/// Runs `work`, which may block, without the GIL.
pub(crate) fn unlocked<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> playhead_journal::Result<T> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(|e| journal(&e))
}
