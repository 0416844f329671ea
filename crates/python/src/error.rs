//! How the data path's errors reach Python: one exception with a stable `code`, the same words as docs/errors.md.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::SystemTime,
};

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
        match value.setattr("code", code).and_then(|()| value.setattr("message", message)) {
            Ok(()) => error,
            Err(other) => other,
        }
    })
}

/// The journal's error, for Python.
pub(crate) fn journal(error: &playhead_journal::Error) -> PyErr {
    native(error.code(), &error.to_string())
}

/// An error of the operating system; `text` says what was being done.
pub(crate) fn io(what: &str, text: &str, error: &std::io::Error) -> PyErr {
    use std::io::ErrorKind as Kind;
    let (code, step) = match error.kind() {
        Kind::AddrInUse => ("address-in-use", ": stop what listens there, or choose another port"),
        Kind::AddrNotAvailable => ("address-not-available", ": choose an address of this machine"),
        Kind::PermissionDenied => ("permission", ": ports below 1024 need privileges"),
        _ => ("io", ""),
    };
    native(code, &format!("{what}: {text}{step}"))
}

/// The first address that `host` and `port` stand for. May ask the resolver, so call it without the GIL.
pub(crate) fn address(what: &str, host: &str, port: u16) -> PyResult<SocketAddr> {
    let found = (host, port).to_socket_addrs().map(|mut all| all.next());
    found.ok().flatten().ok_or_else(|| {
        native("invalid", &format!("{what}: {host:?} is no address and no name that resolves to one"))
    })
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Runs `work`, which may block, without the GIL.
pub(crate) fn unlocked<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> playhead_journal::Result<T> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(|e| journal(&e))
}
