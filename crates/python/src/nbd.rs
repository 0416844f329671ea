//! The NBD front end, as Python starts, feeds and stops it.

use std::time::Duration;

use playhead_target::nbd::Server;
use pyo3::{prelude::*, types::PyDict};

use crate::{error::io, iscsi::socket_address, lun::Lun};

/// An NBD service: exports by name, and the connections on them.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct NbdServer {
    inner: Server,
}

#[pymethods]
impl NbdServer {
    #[new]
    fn new() -> Self {
        Self {
            inner: Server::new(),
        }
    }

    /// Listens on `host` and `port` (0 picks one) and returns the address in use.
    fn bind(&self, py: Python<'_>, host: &str, port: u16) -> PyResult<(String, u16)> {
        let address = socket_address(host, port);
        let bound = py
            .detach(|| self.inner.bind(&address))
            .map_err(|e| io(&format!("NBD on {address}"), &e))?;
        Ok((bound.ip().to_string(), bound.port()))
    }

    #[pyo3(signature = (name, lun, description=""))]
    fn add_export(&self, py: Python<'_>, name: &str, lun: &Lun, description: &str) {
        let disk = lun.inner.clone();
        py.detach(|| self.inner.add_export(name, disk, description));
    }

    fn remove_export(&self, py: Python<'_>, name: &str) {
        py.detach(|| self.inner.remove_export(name));
    }

    fn connections<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let connections = py.detach(|| self.inner.connections());
        connections
            .into_iter()
            .map(|c| {
                let d = PyDict::new(py);
                d.set_item("export", c.target)?;
                d.set_item("address", c.address)?;
                Ok(d)
            })
            .collect()
    }

    /// Ends every connection and thread within `deadline_s` seconds.
    fn stop(&self, py: Python<'_>, deadline_s: f64) {
        let deadline = Duration::from_secs_f64(deadline_s.clamp(0.0, 3600.0));
        py.detach(|| self.inner.stop(deadline));
    }
}
