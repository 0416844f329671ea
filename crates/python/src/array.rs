//! Other arrays: what they have. The splitters of their LUNs are in `splitter`.

use crate::error::{address, native};
use playhead_initiator::{discovery, Blocking, Chap, Remote, Secret};
use playhead_target::fabric;
use pyo3::{prelude::*, types::PyDict};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// For one answer of an array.
const LIMIT: Duration = Duration::from_secs(15);

/// User and secret, and those of the array where it is to prove itself too.
type ChapTuple = (String, Vec<u8>, Option<String>, Option<Vec<u8>>);

/// One target of an array, or, without a target, the array itself.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct Array {
    pub(crate) inner: Arc<fabric::Array>,
}

fn chap(tuple: ChapTuple) -> Chap {
    let (name, secret, mutual_name, mutual_secret) = tuple;
    let theirs = mutual_name.zip(mutual_secret).map(|(name, secret)| Secret { name, secret });
    Chap { ours: Secret { name, secret }, theirs }
}

fn lost(error: &playhead_initiator::blocking::Error) -> PyErr {
    native("array", &error.to_string())
}

fn portal_text(portal: &SocketAddr) -> String {
    portal.to_string()
}

#[pymethods]
impl Array {
    /// `portals` are tried in this order. `initiator` and `isid` (6 bytes) are Playhead's own; with `as_host` hosts' sessions log in under
    /// the hosts' own names.
    #[new]
    #[allow(clippy::too_many_arguments)] // What the catalogue knows of it.
    #[pyo3(signature = (portals, initiator, isid, target, as_host, chap_tuple, digests))]
    fn new(
        py: Python<'_>,
        portals: Vec<(String, u16)>,
        initiator: &str,
        isid: [u8; 6],
        target: Option<&str>,
        as_host: bool,
        chap_tuple: Option<ChapTuple>,
        digests: bool,
    ) -> PyResult<Self> {
        let mut addresses = Vec::with_capacity(portals.len());
        for (host, port) in portals {
            addresses.push(py.detach(|| address("array", &host, port))?);
        }
        let mut remote = Remote::new(initiator, isid, target, addresses);
        remote.chap = chap_tuple.map(chap);
        (remote.header_digest, remote.data_digest) = (digests, digests);
        Ok(Self { inner: fabric::Array::new(remote, as_host) })
    }

    /// The targets there are: (IQN, portals).
    fn targets(&self, py: Python<'_>) -> PyResult<Vec<(String, Vec<String>)>> {
        let found = py.detach(|| discovery::targets(self.inner.remote(), LIMIT)).map_err(|e| lost(&e))?;
        Ok(found.into_iter().map(|t| (t.iqn, t.portals.iter().map(portal_text).collect())).collect())
    }

    /// The LUNs of the target, as Playhead itself is shown them.
    fn luns<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let look = || discovery::luns(&mut Blocking::new(self.inner.own_remote(u16::MAX)), LIMIT);
        let found = py.detach(look).map_err(|e| lost(&e))?;
        found.into_iter().map(|lun| describe(py, lun)).collect()
    }

    /// One LUN of the target; None if there is nothing behind the number.
    fn lun<'py>(&self, py: Python<'py>, number: u16) -> PyResult<Option<Bound<'py, PyDict>>> {
        let look = || discovery::look_at(&mut Blocking::new(self.inner.own_remote(u16::MAX)), number, LIMIT);
        let found = py.detach(look).map_err(|e| lost(&e))?;
        found.map(|lun| describe(py, lun)).transpose()
    }

    /// The sessions that hosts have with the target by way of us.
    fn links<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let links = self.inner.links();
        links
            .into_iter()
            .map(|link| {
                let d = PyDict::new(py);
                d.set_item("initiator", &*link.initiator)?;
                d.set_item("state", link.status.state.name())?;
                d.set_item("portal", link.status.portal.as_ref().map(portal_text))?;
                d.set_item("reason", link.status.last_error.filter(|_| link.status.state.name() != "up"))?;
                d.set_item("sessions", link.status.sessions)?;
                Ok(d)
            })
            .collect()
    }
}

fn describe(py: Python<'_>, lun: discovery::FoundLun) -> PyResult<Bound<'_, PyDict>> {
    let d = PyDict::new(py);
    let [vendor, product, revision] = lun.identification;
    d.set_item("number", lun.number)?;
    d.set_item("device_type", lun.device_type)?;
    d.set_item("vendor", vendor)?;
    d.set_item("product", product)?;
    d.set_item("revision", revision)?;
    d.set_item("block_count", lun.block_count)?;
    d.set_item("block_bytes", lun.block_bytes)?;
    d.set_item("reads_zeros", lun.reads_zeros)?;
    d.set_item("names", lun.names)?;
    Ok(d)
}
