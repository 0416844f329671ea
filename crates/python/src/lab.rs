//! The laboratory's splitter, for `playhead.lab` alone: see [`playhead_target::lab`] for why no service can make one of anything it has.

use std::path::PathBuf;

use playhead_target::{
    lab::{MissingSplitter, Place, MARK, MARK_TEXT},
    scsi::Offload,
};
use pyo3::prelude::*;

use crate::{error::native, lun::Lun};

#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct LabSplitter {
    inner: MissingSplitter,
}

#[pymethods]
impl LabSplitter {
    #[new]
    #[allow(clippy::needless_pass_by_value)] // what Python hands over is ours
    fn new(
        py: Python<'_>,
        dir: PathBuf,
        place: &str,
        names: Vec<String>,
        block_count: u64,
    ) -> PyResult<Self> {
        let place = Place::from_name(place)
            .ok_or_else(|| native("invalid", &format!("there is no splitter {place:?}")))?;
        let inner = py.detach(|| MissingSplitter::create(&dir, place, &names, block_count));
        Ok(Self { inner: inner.map_err(|text| native("conflict", &text))? })
    }

    /// Which offloads are carried out and not captured, from now on.
    #[allow(clippy::needless_pass_by_value)]
    fn miss(&self, offloads: Vec<String>) -> PyResult<()> {
        let found = offloads.iter().map(|name| {
            Offload::from_name(name)
                .ok_or_else(|| native("invalid", &format!("there is no offload {name:?}")))
        });
        self.inner.miss(found.collect::<PyResult<_>>()?);
        Ok(())
    }

    /// The LUN that hosts write to.
    fn production(&self, name: &str) -> PyResult<Lun> {
        let inner = self.inner.production(name);
        let inner = inner.ok_or_else(|| native("not-found", &format!("there is no LUN {name:?}")))?;
        Ok(Lun { inner })
    }

    /// Production past the splitter: host, port, iSCSI name and number; None where there is no such way.
    fn beyond(&self, name: &str) -> Option<(String, u16, &'static str, u16)> {
        let (address, iqn, number) = self.inner.beyond(name)?;
        Some((address.ip().to_string(), address.port(), iqn, number))
    }

    /// The replica as of now.
    fn replica(&self, py: Python<'_>, name: &str) -> PyResult<Lun> {
        let inner = py.detach(|| self.inner.replica(name)).map_err(|text| native("io", &text))?;
        Ok(Lun { inner })
    }

    /// Records of the journal, and bytes.
    fn journal(&self, py: Python<'_>) -> (u64, u64) {
        py.detach(|| self.inner.journal())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.close()).map_err(|text| native("io", &text))
    }

    /// Name and content of the file that makes a folder the laboratory's.
    #[staticmethod]
    fn mark() -> (&'static str, &'static str) {
        (MARK, MARK_TEXT)
    }
}
