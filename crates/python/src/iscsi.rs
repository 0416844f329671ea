//! The iSCSI front end, as Python starts, feeds and stops it.

use std::{collections::HashMap, io::ErrorKind, path::PathBuf, sync::Arc};

use playhead_target::{
    iscsi::{Chap, Credentials, Grant, Limits, Masking, Redirect, Server, ServerError, UnitName, User},
    scsi::Devices,
};
use pyo3::{prelude::*, types::PyDict};
use uuid::Uuid;

use crate::{
    error::{address, io, nanoseconds, native},
    lun::Lun,
    nbd::seconds,
    policy::{policy, PyRule},
};

/// An iSCSI target service: targets with LUNs, and the sessions on them.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct IscsiServer {
    inner: Server,
}

fn refusal(error: &ServerError) -> PyErr {
    let code = match error {
        ServerError::Bind { source, .. } | ServerError::Start(source) => {
            return io("iSCSI", &error.to_string(), source)
        }
        ServerError::NameTaken { .. } => "conflict",
        ServerError::BadName { .. } => "bad-name",
        ServerError::BadMasking { .. }
        | ServerError::BadCredentials { .. }
        | ServerError::BadAddress { .. } => "invalid",
        ServerError::NoSuchTarget { .. } | ServerError::NoSuchLun { .. } => "not-found",
        ServerError::StillInUse { .. } => "busy",
        ServerError::Reservations { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            "permission"
        }
        ServerError::Reservations { .. } => "io",
    };
    native(code, &error.to_string())
}

/// User and secret, and those of the target where it is to prove itself too.
type ChapTuple = (String, Vec<u8>, Option<String>, Option<Vec<u8>>);

fn chap(whose: &str, tuple: ChapTuple) -> PyResult<Chap> {
    let (name, secret, mutual_name, mutual_secret) = tuple;
    let target = match (mutual_name, mutual_secret) {
        (None, None) => None,
        (Some(name), Some(secret)) => Some(User { name, secret }),
        _ => {
            return Err(native(
                "invalid",
                &format!("the mutual CHAP credentials of {whose} lack user or secret"),
            ))
        }
    };
    Ok(Chap { initiator: User { name, secret }, target })
}

impl IscsiServer {
    /// For other front ends that serve the same LUNs.
    pub(crate) fn devices(&self) -> Arc<Devices> {
        self.inner.devices()
    }
}

#[pymethods]
impl IscsiServer {
    /// Listens on `host` and `port` (0 picks one); answers from `open` on.
    #[new]
    fn new(py: Python<'_>, host: &str, port: u16) -> PyResult<Self> {
        let inner = py
            .detach(|| {
                let address = address("iSCSI", host, port)?;
                Ok(Server::bind_held(address, Limits::default()))
            })
            .and_then(|bound| bound.map_err(|e| refusal(&e)))?;
        Ok(Self { inner })
    }

    /// Answers those who connect, once the targets that hosts come back for are there.
    fn open(&self) {
        self.inner.open();
    }

    /// Listens on a further `host` and `port`: another way to the same targets.
    fn listen(&self, py: Python<'_>, host: &str, port: u16) -> PyResult<()> {
        py.detach(|| {
            let address = address("iSCSI", host, port)?;
            Ok(self.inner.listen(address))
        })
        .and_then(|bound| bound.map_err(|e| refusal(&e)))?;
        Ok(())
    }

    /// The addresses in use, in the order in which they were asked for.
    #[getter]
    fn portals(&self) -> Vec<(String, u16)> {
        self.inner.portals().iter().map(|bound| (bound.ip().to_string(), bound.port())).collect()
    }

    /// Keeps the persistent reservations that hosts want kept (APTPL) in this directory, made if need be; without it hosts are refused
    /// that. To be called once, before the first `set_lun`.
    fn set_reservation_directory(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.inner.set_reservation_directory(&path)).map_err(|e| refusal(&e))
    }

    /// Forgets every reservation of the LUN with this UUID, also on disk: when the volume is deleted, or an administrator wants it.
    fn forget_reservations(&self, py: Python<'_>, uuid: &str) -> PyResult<()> {
        let Ok(parsed) = Uuid::parse_str(uuid) else {
            return Err(native("invalid", &format!("{uuid:?} is not a UUID")));
        };
        py.detach(|| self.inner.forget_reservations(parsed.as_bytes())).map_err(|e| refusal(&e))
    }

    fn add_target(&self, py: Python<'_>, iqn: &str) -> PyResult<()> {
        py.detach(|| self.inner.add_target(iqn)).map_err(|e| refusal(&e))
    }

    /// Removes it with its LUNs; waits at most `patience_s` seconds for its sessions to let go.
    fn remove_target(&self, py: Python<'_>, iqn: &str, patience_s: f64) -> PyResult<()> {
        let patience = seconds(patience_s);
        py.detach(|| self.inner.remove_target(iqn, patience)).map_err(|e| refusal(&e))
    }

    fn set_lun(&self, py: Python<'_>, iqn: &str, number: u16, lun: &Lun) -> PyResult<()> {
        let disk = lun.inner.clone();
        py.detach(|| self.inner.set_lun(iqn, number, disk)).map_err(|e| refusal(&e))
    }

    /// Removes it; waits at most `patience_s` seconds for commands under way.
    fn remove_lun(&self, py: Python<'_>, iqn: &str, number: u16, patience_s: f64) -> PyResult<()> {
        let patience = seconds(patience_s);
        py.detach(|| self.inner.remove_lun(iqn, number, patience)).map_err(|e| refusal(&e))
    }

    /// Tells the initiators of a target that the blocks of its LUNs may be others than before.
    fn changed(&self, iqn: &str) -> PyResult<()> {
        self.inner.contents_changed(iqn).map_err(|e| refusal(&e))
    }

    /// Tells the initiators of a target that space for writes gets short.
    fn space_low(&self, iqn: &str) -> PyResult<()> {
        self.inner.space_low(iqn).map_err(|e| refusal(&e))
    }

    /// Puts another offload policy in force, at once; initiators that get other offloads than before are told.
    fn set_policy(&self, py: Python<'_>, rules: Vec<PyRule>) -> PyResult<()> {
        let policy = policy(rules)?;
        py.detach(|| self.inner.set_policy(policy));
        Ok(())
    }

    /// What became of the offloads that initiators asked for, of the LUNs there are.
    fn offload_counts<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let counts = py.detach(|| self.inner.offload_counts());
        counts
            .into_iter()
            .map(|(target, count)| {
                let d = PyDict::new(py);
                d.set_item("target", &*target)?;
                d.set_item("lun", Uuid::from_bytes(count.lun).to_string())?;
                d.set_item("initiator", count.initiator)?;
                d.set_item("offload", count.offload.name())?;
                d.set_item("served", count.served)?;
                d.set_item("rejected", count.rejected)?;
                d.set_item("saved_bytes", count.saved_bytes)?;
                Ok(d)
            })
            .collect()
    }

    /// What was read, written and failed, of the LUNs there are.
    fn traffic<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let traffic = py.detach(|| self.inner.traffic());
        traffic
            .into_iter()
            .map(|(target, lun, logs)| {
                let d = PyDict::new(py);
                d.set_item("target", &*target)?;
                d.set_item("lun", Uuid::from_bytes(lun).to_string())?;
                d.set_item("read_bytes", logs.reads.bytes)?;
                d.set_item("written_bytes", logs.writes.bytes)?;
                d.set_item("read_errors", logs.reads.errors)?;
                d.set_item("write_errors", logs.writes.errors)?;
                Ok(d)
            })
            .collect()
    }

    /// Tells the initiators of a LUN to read its mode pages again: it is write-protected now, or no longer.
    fn mode_changed(&self, py: Python<'_>, iqn: &str, number: u16) -> PyResult<()> {
        py.detach(|| self.inner.mode_changed(iqn, number)).map_err(|e| refusal(&e))
    }

    /// Says which initiator sees which unit, at once: (target, unit) -> [(initiator, number there, read-only)]. A unit that is not in
    /// the table is everyone's, under its own number; one with an empty list is nobody's.
    fn set_masking(
        &self,
        py: Python<'_>,
        table: HashMap<UnitName, Vec<(String, u16, bool)>>,
    ) -> PyResult<()> {
        let grant = |(initiator, number, read_only)| Grant { initiator, number, read_only };
        let table = table.into_iter().map(|(unit, grants)| (unit, grants.into_iter().map(grant).collect()));
        let masking = Masking::new(table).map_err(|e| refusal(&e))?;
        py.detach(|| self.inner.set_masking(masking));
        Ok(())
    }

    /// Says who must prove itself with CHAP, for logins from now on: whoever is in `initiators`, with `required` everyone, and with
    /// `discovery` whoever asks for the targets there are.
    fn set_credentials(
        &self,
        py: Python<'_>,
        required: bool,
        discovery: Option<ChapTuple>,
        initiators: HashMap<String, ChapTuple>,
    ) -> PyResult<()> {
        let discovery = discovery.map(|tuple| chap("discovery", tuple)).transpose()?;
        let mut of_initiators = Vec::with_capacity(initiators.len());
        for (name, tuple) in initiators {
            let chap = chap(&name, tuple)?;
            of_initiators.push((name, chap));
        }
        let credentials = Credentials::new(required, discovery, of_initiators).map_err(|e| refusal(&e))?;
        py.detach(|| self.inner.set_credentials(credentials));
        Ok(())
    }

    /// Logins that failed for lack of proof, since the server started.
    fn authentication_failures(&self) -> u64 {
        self.inner.authentication_failures()
    }

    /// Sends logins to a target, which need not be here, to another address from now on; with None no longer.
    fn set_redirect(
        &self,
        py: Python<'_>,
        iqn: &str,
        address: Option<&str>,
        permanent: bool,
    ) -> PyResult<()> {
        let redirect = address.map(|address| Redirect::new(address, permanent)).transpose();
        let redirect = redirect.map_err(|e| refusal(&e))?;
        py.detach(|| self.inner.set_redirect(iqn, redirect));
        Ok(())
    }

    fn sessions<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let sessions = py.detach(|| self.inner.sessions());
        sessions
            .into_iter()
            .map(|s| {
                let d = PyDict::new(py);
                d.set_item("peer", s.peer.to_string())?;
                d.set_item("initiator", s.initiator)?;
                d.set_item("target", s.target)?;
                d.set_item("since_ns", nanoseconds(s.since))?;
                d.set_item("commands", s.commands)?;
                d.set_item("read_bytes", s.read_bytes)?;
                d.set_item("written_bytes", s.written_bytes)?;
                Ok(d)
            })
            .collect()
    }

    /// Ends every session within about `patience_s` seconds. Returns how many had to be cut.
    fn stop(&self, py: Python<'_>, patience_s: f64) -> usize {
        let patience = seconds(patience_s);
        py.detach(|| self.inner.stop(patience)).cut
    }
}
