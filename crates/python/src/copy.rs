//! A copy of a group: kept up by a thread of the engine; Python starts and stops it and asks how it stands.

use std::{path::PathBuf, sync::Arc};

use playhead_journal::{
    self as engine, compare::compare, files::DiskFiles, keep::Keeping, ship::Feed, Policy,
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    error::{native, unlocked},
    group::{Group, Point},
};

/// A copy that is kept up. Stopped when it is dropped.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct Copy {
    inner: Keeping,
}

#[pymethods]
impl Copy {
    /// Keeps a copy of `source` in `dir`; without a source it is opened for its images alone.
    #[staticmethod]
    #[pyo3(signature = (source, dir, name, window_ns, limit_bytes, paused))]
    fn keep(
        py: Python<'_>,
        source: Option<&Group>,
        dir: PathBuf,
        name: &str,
        window_ns: Option<u64>,
        limit_bytes: Option<u64>,
        paused: bool,
    ) -> PyResult<Self> {
        let feed = source.map(|group| Arc::new(group.inner.clone()) as Arc<dyn Feed>);
        let policy = Policy { window_ns, limit_bytes, reserve_bytes: 0 };
        let inner = unlocked(py, || Keeping::start(feed, Arc::new(DiskFiles), &dir, name, policy, paused))?;
        Ok(Self { inner })
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.inner.stop());
    }

    fn pause(&self, paused: bool) {
        self.inner.pause(paused);
    }

    fn set_policy(&self, window_ns: Option<u64>, limit_bytes: Option<u64>) {
        self.inner.set_policy(Policy { window_ns, limit_bytes, reserve_bytes: 0 });
    }

    /// The copy as a group, for its images and points; `None` while it is not consistent or cannot be reached.
    fn group(&self) -> Option<Group> {
        self.inner.group().map(|inner| Group { inner })
    }

    fn standing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = py.detach(|| self.inner.standing());
        let d = PyDict::new(py);
        d.set_item("state", s.state.name())?;
        d.set_item("reason", s.reason)?;
        d.set_item("since_ns", s.since_ns)?;
        d.set_item("consistent", s.consistent)?;
        d.set_item("received_lsn", s.received_lsn)?;
        d.set_item("durable_lsn", s.durable_lsn)?;
        d.set_item("head", s.head.map(Point::from))?;
        d.set_item("lag_bytes", s.lag_bytes)?;
        d.set_item("lag_ns", s.lag_ns)?;
        d.set_item("received_bytes", s.received_bytes)?;
        d.set_item("opened", s.opened)?;
        let sweep = s.sweep.map(|f| (f.left_bytes, f.total_bytes, f.moved_bytes));
        d.set_item("left_bytes", sweep.map(|f| f.0))?;
        d.set_item("total_bytes", sweep.map(|f| f.1))?;
        d.set_item("moved_bytes", sweep.map(|f| f.2))?;
        Ok(d)
    }

    /// Compares the copy with `source` as of `lsn`, which both must have. `progress(done_bytes, total_bytes)` cancels with false.
    fn verify<'py>(
        &self,
        py: Python<'py>,
        source: &Group,
        lsn: u64,
        progress: Py<PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let group = self.inner.group().ok_or_else(|| {
            native(
                "conflict",
                "the copy is not consistent, or cannot be reached: wait until it is synchronised",
            )
        })?;
        let mut raised: Option<PyErr> = None;
        let outcome = py.detach(|| {
            compare(&source.inner, &group, lsn, &mut |done, total| {
                Python::attach(|py| {
                    match progress.call1(py, (done, total)).and_then(|go_on| go_on.is_truthy(py)) {
                        Ok(go_on) => go_on,
                        Err(e) => {
                            raised = Some(e);
                            false
                        }
                    }
                })
            })
        });
        if let Some(e) = raised {
            return Err(e);
        }
        let found = outcome.map_err(|e: engine::Error| crate::error::journal(&e))?;
        let d = PyDict::new(py);
        d.set_item("point", Point::from(found.point))?;
        d.set_item("total_bytes", found.total_bytes)?;
        d.set_item("hashed_bytes", found.hashed_bytes)?;
        d.set_item("differing_blocks", found.differing_blocks)?;
        let differences: Vec<_> = found.differences.into_iter().map(|x| (x.volume, x.lba, x.count)).collect();
        d.set_item("differences", differences)?;
        Ok(d)
    }
}

/// Makes the copy in `dir`, which nobody has open, production. `allow_inconsistent`: also at a point of a resynchronisation.
#[pyfunction]
pub(crate) fn promote_copy(py: Python<'_>, dir: PathBuf, allow_inconsistent: bool) -> PyResult<()> {
    unlocked(py, || engine::promote(Arc::new(DiskFiles), &dir, allow_inconsistent))
}
