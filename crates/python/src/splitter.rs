//! Splitters whose production is not Playhead's own. To Python both kinds are one thing: what opens them differs, and nothing else.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use playhead_journal::files::DiskFiles;
use playhead_target::{
    fabric::{FabricLun, Identity, Production, Replica},
    lun::{LunError, LunIdentity},
    splitter::{HostDevice, HostLun, OnJournalFailure, Status},
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    array::Array,
    error::{native, unlocked},
    group::Group,
    lun::Lun,
};

/// What a splitter's refusal is to an administrator.
fn refused(e: &LunError) -> PyErr {
    let code = match e {
        LunError::NoSpace { .. } => "no-space",
        LunError::Gone { .. } => "gone",
        LunError::OutOfRange { .. } => "out-of-range",
        LunError::Io { detail, .. } if detail.contains("is in use") => "busy",
        _ => "io",
    };
    native(code, &e.to_string())
}

fn choice(word: &str) -> PyResult<OnJournalFailure> {
    match word {
        "stop" => Ok(OnJournalFailure::Stop),
        "track" => Ok(OnJournalFailure::Track),
        other => {
            Err(native("invalid", &format!("on_journal_failure {other:?}: it is \"stop\" or \"track\"")))
        }
    }
}

/// How production and replica stand to each other, of either kind.
fn status_dict(py: Python<'_>, status: Status) -> PyResult<Bound<'_, PyDict>> {
    let d = PyDict::new(py);
    d.set_item("state", status.state.name())?;
    d.set_item("reason", status.reason)?;
    d.set_item("lag_bytes", status.lag_bytes)?;
    d.set_item("since_ns", status.since_ns)?;
    d.set_item("resync_total_bytes", status.resync_total_bytes)?;
    d.set_item("marked_bytes", status.marked_bytes)?;
    Ok(d)
}

/// The size of a file or block device that could be attached, in bytes.
#[pyfunction]
pub(crate) fn host_device_size(py: Python<'_>, path: PathBuf, name: &str) -> PyResult<u64> {
    py.detach(|| HostDevice::open(&path, name).map(|device| device.size_bytes())).map_err(|e| refused(&e))
}

/// A file or block device of this host, and the volume that is its replica.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct HostSplitter {
    lun: Arc<HostLun>,
}

#[pymethods]
impl HostSplitter {
    /// Opens `path` and splits what is done to it into `volume` of `group`.
    #[staticmethod]
    fn open(
        py: Python<'_>,
        group: &Group,
        volume: &str,
        path: PathBuf,
        map_path: PathBuf,
        on_journal_failure: &str,
        physical_block_bytes: u32,
    ) -> PyResult<Self> {
        let choice = choice(on_journal_failure)?;
        let replica = unlocked(py, || group.inner.volume(volume))?;
        let name = format!("{}/{volume}", group.inner.name());
        let identity = LunIdentity { uuid: *replica.info().uuid.as_bytes(), name: name.clone() };
        let how: (&Path, _) = (&map_path, choice);
        let opened = py.detach(|| {
            let device = HostDevice::open(&path, &name)?;
            HostLun::open(&DiskFiles, device, replica, identity, physical_block_bytes, how)
        });
        Ok(Self { lun: Arc::new(opened.map_err(|e| refused(&e))?) })
    }

    /// The disk that hosts use.
    fn disk(&self) -> Lun {
        Lun { inner: Arc::clone(&self.lun) as _ }
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.lun.split().status());
        status_dict(py, status)
    }

    fn set_on_journal_failure(&self, word: &str) -> PyResult<()> {
        self.lun.split().set_on_journal_failure(choice(word)?);
        Ok(())
    }

    /// Compares everything.
    fn compare_all(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lun.split().compare_all()).map_err(|e| refused(&e))
    }

    /// Makes production and journal durable and lets go of the file. What is done to the disk later is refused.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lun.close()).map_err(|e| refused(&e))
    }
}

/// A LUN of another array, and the volume that is its replica.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct FabricSplitter {
    lun: Arc<FabricLun>,
    replica: Arc<Replica>,
}

#[pymethods]
impl FabricSplitter {
    /// Splits what is done to LUN `number` of `target` into `volume` of `group`. The array need not be there yet. `identity`: whose names
    /// hosts find, "own" (the array's) or "new" (the volume's). `reads_zeros`: unmapped blocks read as zeros for certain.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)] // What the catalogue knows of it.
    fn open(
        py: Python<'_>,
        group: &Group,
        volume: &str,
        target: &Array,
        number: u16,
        identity: &str,
        reads_zeros: bool,
        map_path: PathBuf,
        on_journal_failure: &str,
    ) -> PyResult<Self> {
        let choice = choice(on_journal_failure)?;
        let shown = if identity == "new" { Identity::New } else { Identity::Own };
        let replica = unlocked(py, || group.inner.volume(volume))?;
        let name = format!("{}/{volume}", group.inner.name());
        let identity = LunIdentity { uuid: *replica.info().uuid.as_bytes(), name: name.clone() };
        let array = Arc::clone(&target.inner);
        let opened = py.detach(|| {
            let production = Arc::new(Production::new(&array, number, &name, replica.block_count()));
            Replica::open(&DiskFiles, replica, Arc::clone(&production), &name, map_path, choice)
                .map(|replica| (production, Arc::new(replica)))
        });
        let (production, replica) = opened.map_err(|e| refused(&e))?;
        let lun = FabricLun::new(identity, shown, array, number, production, Arc::clone(&replica) as _);
        lun.set_thin_reads_zeros(reads_zeros);
        Ok(Self { lun: Arc::new(lun), replica })
    }

    /// The disk that hosts use.
    fn disk(&self) -> Lun {
        Lun { inner: Arc::clone(&self.lun) as _ }
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.replica.status());
        let status = status.ok_or_else(|| native("gone", "the splitter is closed"))?;
        status_dict(py, status)
    }

    fn set_on_journal_failure(&self, word: &str) -> PyResult<()> {
        self.replica.set_on_journal_failure(choice(word)?);
        Ok(())
    }

    /// Compares everything.
    fn compare_all(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.replica.compare_all()).map_err(|e| refused(&e))
    }

    /// Makes production and journal durable and lets go of the LUN. What is done to the disk later is refused.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.lun.abandon_limbo();
        py.detach(|| self.replica.close()).map_err(|e| refused(&e))
    }
}
