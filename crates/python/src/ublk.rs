//! Block devices of this host, as Python has them made and taken away.

use playhead_target::ublk::{Server, UblkError};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    error::{nanoseconds, native},
    iscsi::IscsiServer,
    lun::Lun,
    nbd::seconds,
    policy::{policy, PyRule},
};

/// LUNs as `/dev/ublkbN`, by name. Needs nothing of the kernel until the first is served.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct UblkServer {
    inner: Server,
}

fn refusal(error: &UblkError) -> PyErr {
    let code = match error {
        UblkError::Missing | UblkError::Old => "not-supported",
        UblkError::NotAllowed { .. } => "permission",
        UblkError::Taken { .. } | UblkError::Changed { .. } | UblkError::Served { .. } => "conflict",
        UblkError::InUse { .. } | UblkError::StillBusy { .. } => "busy",
        UblkError::Kernel { .. } => "io",
    };
    native(code, &error.to_string())
}

#[pymethods]
impl UblkServer {
    #[new]
    fn new() -> Self {
        Self { inner: Server::default() }
    }

    /// Heeds the reservations that initiators of `iscsi` make, for what is served from now on; to be called once.
    fn heed_reservations(&self, iscsi: &IscsiServer) {
        self.inner.heed_reservations(iscsi.devices());
    }

    /// Puts another offload policy in force, at once; of the rules those for everybody count.
    fn set_policy(&self, py: Python<'_>, rules: Vec<PyRule>) -> PyResult<()> {
        let policy = policy(rules)?;
        py.detach(|| self.inner.set_policy(policy));
        Ok(())
    }

    /// Serves `lun` as `/dev/ublkbN`: makes the device, or takes up the one that an earlier service left. May take half a minute.
    fn serve(&self, py: Python<'_>, name: &str, number: u32, lun: &Lun) -> PyResult<()> {
        let disk = lun.inner.clone();
        py.detach(|| self.inner.serve(name, number, disk)).map_err(|e| refusal(&e))
    }

    /// Serves it no longer for the time being; the device stays and what is asked of it waits.
    fn let_go(&self, py: Python<'_>, name: &str, patience_s: f64) -> PyResult<()> {
        let patience = seconds(patience_s);
        py.detach(|| self.inner.let_go(name, patience)).map_err(|e| refusal(&e))
    }

    /// Takes the device of the LUN of this identity away, served or not; not if it is mounted.
    fn remove(&self, py: Python<'_>, name: &str, number: u32, uuid: &str) -> PyResult<()> {
        let uuid =
            uuid::Uuid::parse_str(uuid).map_err(|e| native("invalid", &format!("{name}: {uuid:?}: {e}")))?;
        py.detach(|| self.inner.remove(name, number, uuid.as_bytes())).map_err(|e| refusal(&e))
    }

    fn devices<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let devices = py.detach(|| self.inner.devices());
        devices
            .into_iter()
            .map(|device| {
                let d = PyDict::new(py);
                d.set_item("name", device.name)?;
                d.set_item("number", device.number)?;
                d.set_item("since_ns", nanoseconds(device.since))?;
                d.set_item("serving", device.serving)?;
                d.set_item("requests", device.requests)?;
                d.set_item("read_bytes", device.read_bytes)?;
                d.set_item("written_bytes", device.written_bytes)?;
                Ok(d)
            })
            .collect()
    }

    /// Lets go of all within about `patience_s` seconds. Returns how many had I/O under way still.
    fn stop(&self, py: Python<'_>, patience_s: f64) -> usize {
        let patience = seconds(patience_s);
        py.detach(|| self.inner.stop(patience))
    }
}
