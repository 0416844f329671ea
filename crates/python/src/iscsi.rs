//! The iSCSI front end, as Python starts, feeds and stops it.

use std::time::Duration;

use playhead_target::iscsi::Server;
use pyo3::{prelude::*, types::PyDict};

use crate::{error::io, lun::Lun};

/// An iSCSI target service: targets with LUNs, and the sessions on them.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct IscsiServer {
    inner: Server,
}

#[pymethods]
impl IscsiServer {
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
            .map_err(|e| io(&format!("iSCSI on {address}"), &e))?;
        Ok((bound.ip().to_string(), bound.port()))
    }

    fn add_target(&self, py: Python<'_>, iqn: &str) {
        py.detach(|| self.inner.add_target(iqn));
    }

    fn remove_target(&self, py: Python<'_>, iqn: &str) {
        py.detach(|| self.inner.remove_target(iqn));
    }

    fn set_lun(&self, py: Python<'_>, iqn: &str, number: u64, lun: &Lun) {
        let disk = lun.inner.clone();
        py.detach(|| self.inner.set_lun(iqn, number, disk));
    }

    fn remove_lun(&self, py: Python<'_>, iqn: &str, number: u64) {
        py.detach(|| self.inner.remove_lun(iqn, number));
    }

    fn sessions<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let sessions = py.detach(|| self.inner.sessions());
        sessions
            .into_iter()
            .map(|s| {
                let d = PyDict::new(py);
                d.set_item("target", s.target)?;
                d.set_item("initiator", s.initiator)?;
                d.set_item("address", s.address)?;
                Ok(d)
            })
            .collect()
    }

    /// Ends every session and thread within `deadline_s` seconds.
    fn stop(&self, py: Python<'_>, deadline_s: f64) {
        let deadline = Duration::from_secs_f64(deadline_s.clamp(0.0, 3600.0));
        py.detach(|| self.inner.stop(deadline));
    }
}

/// `host:port`, with the brackets an IPv6 address needs (RFC 3986 3.2.2).
pub(crate) fn socket_address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
