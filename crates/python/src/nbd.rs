//! The NBD front end, as Python starts, feeds and stops it.

use std::time::Duration;

use playhead_target::nbd::{Limits, Server, ServerError};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    error::{address, io, nanoseconds, native},
    iscsi::IscsiServer,
    lun::Lun,
    policy::{policy, PyRule},
};

/// An NBD service: exports by name, and the connections on them.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct NbdServer {
    inner: Server,
}

fn refusal(error: &ServerError) -> PyErr {
    let code = match error {
        ServerError::Bind { source, .. } | ServerError::Start(source) => {
            return io("NBD", &error.to_string(), source)
        }
        ServerError::NameTaken { .. } => "conflict",
        ServerError::BadName { .. } => "bad-name",
        ServerError::NoSuchExport { .. } => "not-found",
        ServerError::StillInUse { .. } => "busy",
    };
    native(code, &error.to_string())
}

#[pymethods]
impl NbdServer {
    /// Listens on `host` and `port` (0 picks one); answers from `open` on.
    #[new]
    fn new(py: Python<'_>, host: &str, port: u16) -> PyResult<Self> {
        let inner = py
            .detach(|| {
                let address = address("NBD", host, port)?;
                Ok(Server::bind_held(address, Limits::default()))
            })
            .and_then(|bound| bound.map_err(|e| refusal(&e)))?;
        Ok(Self { inner })
    }

    /// Answers those who connect, once the exports that hosts come back for are there.
    fn open(&self) {
        self.inner.open();
    }

    /// The address in use.
    #[getter]
    fn address(&self) -> (String, u16) {
        let bound = self.inner.address();
        (bound.ip().to_string(), bound.port())
    }

    /// Heeds the reservations that initiators of `iscsi` make, for the exports added from now on; to be called once.
    fn heed_reservations(&self, iscsi: &IscsiServer) {
        self.inner.heed_reservations(iscsi.devices());
    }

    #[pyo3(signature = (name, lun, description=""))]
    fn add_export(&self, py: Python<'_>, name: &str, lun: &Lun, description: &str) -> PyResult<()> {
        let disk = lun.inner.clone();
        py.detach(|| self.inner.add_export(name, disk, description)).map_err(|e| refusal(&e))
    }

    /// Removes it; waits at most `patience_s` seconds for its connections to let go.
    fn remove_export(&self, py: Python<'_>, name: &str, patience_s: f64) -> PyResult<()> {
        let patience = seconds(patience_s);
        py.detach(|| self.inner.remove_export(name, patience)).map_err(|e| refusal(&e))
    }

    /// Puts another offload policy in force, at once; of the rules those for everybody count.
    fn set_policy(&self, py: Python<'_>, rules: Vec<PyRule>) -> PyResult<()> {
        let policy = policy(rules)?;
        py.detach(|| self.inner.set_policy(policy));
        Ok(())
    }

    fn connections<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let connections = py.detach(|| self.inner.connections());
        connections
            .into_iter()
            .map(|c| {
                let d = PyDict::new(py);
                d.set_item("id", c.id)?;
                d.set_item("peer", c.peer.to_string())?;
                d.set_item("since_ns", nanoseconds(c.since))?;
                d.set_item("export", c.export)?;
                d.set_item("requests", c.requests)?;
                d.set_item("read_bytes", c.read_bytes)?;
                d.set_item("written_bytes", c.written_bytes)?;
                Ok(d)
            })
            .collect()
    }

    /// Ends every connection within about `patience_s` seconds. Returns how many had to be cut.
    fn stop(&self, py: Python<'_>, patience_s: f64) -> usize {
        let patience = seconds(patience_s);
        py.detach(|| self.inner.stop(patience)).cut
    }
}

/// Seconds from Python, kept within an hour: whatever comes, no panic.
pub(crate) fn seconds(value: f64) -> Duration {
    if value.is_finite() {
        Duration::from_secs_f64(value.clamp(0.0, 3600.0))
    } else {
        Duration::ZERO
    }
}
