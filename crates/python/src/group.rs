//! A consistency group: its volumes, points, bookmarks, images and rewinds.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use playhead_journal::{self as engine, files::DiskFiles, Error, BLOCK_BYTES};
use pyo3::{exceptions::PyValueError, prelude::*, types::PyDict};
use uuid::Uuid;

use crate::{
    error::{native, unlocked},
    lun::Lun,
};

/// A position in the journal and when it was.
#[derive(IntoPyObject)]
pub(crate) struct Point {
    lsn: u64,
    time_ns: u64,
}

impl From<engine::Point> for Point {
    fn from(p: engine::Point) -> Self {
        Self { lsn: p.lsn, time_ns: p.time_ns }
    }
}

/// What Python sees of a volume.
#[derive(IntoPyObject)]
pub(crate) struct Volume {
    number: u32,
    name: String,
    uuid: String,
    block_count: u64,
    base: Vec<String>,
    adopted: bool,
    created_lsn: u64,
}

impl From<&engine::VolumeInfo> for Volume {
    fn from(v: &engine::VolumeInfo) -> Self {
        Self {
            number: v.number,
            name: v.name.clone(),
            uuid: v.uuid.to_string(),
            block_count: v.block_count,
            base: v.base.iter().map(|p| p.display().to_string()).collect(),
            adopted: v.adopted,
            created_lsn: v.created_lsn,
        }
    }
}

/// What Python sees of an image.
#[derive(IntoPyObject)]
pub(crate) struct Image {
    name: String,
    point: Point,
    writable: bool,
    created_ns: u64,
    scratch_bytes: Option<u64>,
    alert: Option<String>,
}

impl From<engine::ImageInfo> for Image {
    fn from(i: engine::ImageInfo) -> Self {
        Self {
            name: i.name,
            point: i.point.into(),
            writable: i.writable,
            created_ns: i.created_ns,
            scratch_bytes: i.scratch_bytes,
            alert: i.alert,
        }
    }
}

/// What Python sees of a bookmark.
#[derive(IntoPyObject)]
pub(crate) struct Bookmark {
    name: String,
    kind: &'static str,
    point: Point,
}

/// What Python sees of a rewind.
#[derive(IntoPyObject)]
pub(crate) struct Rewind {
    at: Point,
    to: Point,
    undo_lsn: u64,
}

impl From<engine::Rewind> for Rewind {
    fn from(r: engine::Rewind) -> Self {
        Self { at: r.at.into(), to: r.to.into(), undo_lsn: r.undo_lsn }
    }
}

/// The window's two ends.
#[derive(IntoPyObject)]
pub(crate) struct Window {
    edge: Point,
    head: Point,
}

/// An open group. The journal's own handle is shared, so this one is too.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct Group {
    pub(crate) inner: engine::Group,
}

fn options(segment_bytes: Option<u64>) -> engine::Options {
    let mut options = engine::Options { background: true, ..engine::Options::default() };
    if let Some(bytes) = segment_bytes {
        options.segment_bytes = bytes;
    }
    options
}

/// An image's disk is not the production disk, and a host that sees both must not take them for two paths to one (SPC-4
/// 7.8.6: the designator names the logical unit). The same image keeps its identity over restarts.
fn image_uuid(volume: Uuid, image: &engine::ImageInfo) -> Uuid {
    Uuid::new_v5(&volume, format!("{}@{}#{}", image.name, image.point.lsn, image.created_ns).as_bytes())
}

#[pymethods]
impl Group {
    #[staticmethod]
    #[pyo3(signature = (dir, name, segment_bytes=None))]
    fn create(py: Python<'_>, dir: PathBuf, name: &str, segment_bytes: Option<u64>) -> PyResult<Self> {
        let inner =
            unlocked(py, || engine::Group::create(Arc::new(DiskFiles), &dir, name, &options(segment_bytes)))?;
        Ok(Self { inner })
    }

    #[staticmethod]
    fn open(py: Python<'_>, dir: PathBuf) -> PyResult<Self> {
        let inner = unlocked(py, || engine::Group::open(Arc::new(DiskFiles), &dir, &options(None)))?;
        Ok(Self { inner })
    }

    #[getter]
    fn name(&self) -> &str {
        self.inner.name()
    }

    #[getter]
    fn id(&self) -> String {
        self.inner.id().to_string()
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        unlocked(py, || self.inner.close())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = py.detach(|| self.inner.stats());
        let d = PyDict::new(py);
        d.set_item("head", Point::from(s.head))?;
        d.set_item("edge", Point::from(s.edge))?;
        d.set_item("durable_lsn", s.durable_lsn)?;
        d.set_item("folded_lsn", s.folded_lsn)?;
        d.set_item("journal_bytes", s.journal_bytes)?;
        d.set_item("segment_count", s.segment_count)?;
        d.set_item("ready_bytes", s.ready_bytes)?;
        d.set_item("index_bytes", s.index_bytes)?;
        d.set_item("records", s.records)?;
        d.set_item("bytes_written", s.bytes_written)?;
        d.set_item("flushes", s.flushes)?;
        d.set_item("syncs", s.syncs)?;
        d.set_item("images", s.images)?;
        d.set_item("alert", s.alert)?;
        d.set_item("over_limit", s.over_limit)?;
        let r = PyDict::new(py);
        r.set_item("records_scanned", s.recovery.records_scanned)?;
        r.set_item("bytes_scanned", s.recovery.bytes_scanned)?;
        r.set_item("discarded_bytes", s.recovery.discarded_bytes)?;
        r.set_item("duration_ns", s.recovery.duration_ns)?;
        d.set_item("recovery", r)?;
        Ok(d)
    }

    fn add_sparse_volume(&self, py: Python<'_>, name: &str, size_bytes: u64) -> PyResult<Volume> {
        let block = BLOCK_BYTES as u64;
        if size_bytes == 0 || size_bytes % block != 0 {
            return Err(native(
                "invalid",
                &format!(
                    "volume {name}: {size_bytes} bytes is not a positive multiple of {block}: round it up"
                ),
            ));
        }
        let base = engine::NewBase::Sparse { blocks: size_bytes / block };
        unlocked(py, || self.inner.add_volume(name, base)).map(|v| v.info().into())
    }

    fn adopt_volume(&self, py: Python<'_>, name: &str, path: PathBuf) -> PyResult<Volume> {
        unlocked(py, || self.inner.add_volume(name, engine::NewBase::Adopt { path })).map(|v| v.info().into())
    }

    fn remove_volume(&self, py: Python<'_>, name: &str, delete_base: bool) -> PyResult<()> {
        unlocked(py, || self.inner.remove_volume(name, delete_base))
    }

    fn volumes(&self, py: Python<'_>) -> Vec<Volume> {
        py.detach(|| self.inner.volumes()).iter().map(Volume::from).collect()
    }

    #[pyo3(signature = (name, physical_block_bytes = 4096))]
    fn volume_lun(&self, py: Python<'_>, name: &str, physical_block_bytes: u32) -> PyResult<Lun> {
        let volume = unlocked(py, || self.inner.volume(name))?;
        let uuid = volume.info().uuid;
        Lun::new(volume, uuid, format!("{}/{name}", self.inner.name()), physical_block_bytes)
    }

    fn head(&self, py: Python<'_>) -> Point {
        py.detach(|| self.inner.head()).into()
    }

    fn window(&self, py: Python<'_>) -> Window {
        let w = py.detach(|| self.inner.window());
        Window { edge: w.edge.into(), head: w.head.into() }
    }

    fn flush(&self, py: Python<'_>) -> PyResult<u64> {
        unlocked(py, || self.inner.flush())
    }

    fn bookmark(&self, py: Python<'_>, name: &str, kind: &str) -> PyResult<Point> {
        let kind = match kind {
            "crash" => engine::BookmarkKind::Crash,
            "application" => engine::BookmarkKind::Application,
            other => {
                return Err(PyValueError::new_err(format!(
                    "bookmark kind {other:?}: it is \"crash\" or \"application\""
                )))
            }
        };
        unlocked(py, || self.inner.bookmark(name, kind)).map(Point::from)
    }

    fn bookmarks(&self, py: Python<'_>) -> Vec<Bookmark> {
        let found = py.detach(|| self.inner.bookmarks());
        found
            .into_iter()
            .map(|b| Bookmark {
                name: b.name,
                kind: match b.kind {
                    engine::BookmarkKind::Crash => "crash",
                    engine::BookmarkKind::Application => "application",
                },
                point: b.point.into(),
            })
            .collect()
    }

    fn point_at_lsn(&self, py: Python<'_>, lsn: u64) -> PyResult<Point> {
        unlocked(py, || self.inner.point_at_lsn(lsn)).map(Point::from)
    }

    fn point_at_time(&self, py: Python<'_>, time_ns: u64) -> PyResult<Point> {
        unlocked(py, || self.inner.point_at_time(time_ns)).map(Point::from)
    }

    /// Refuses a point of a resynchronisation.
    fn check_consistent(&self, py: Python<'_>, lsn: u64) -> PyResult<()> {
        unlocked(py, || self.inner.check_consistent(lsn))
    }

    /// `force`: also at a point of a resynchronisation.
    #[pyo3(signature = (name, lsn, writable, force = false))]
    fn open_image(
        &self,
        py: Python<'_>,
        name: &str,
        lsn: u64,
        writable: bool,
        force: bool,
    ) -> PyResult<Image> {
        unlocked(py, || match force {
            true => self.inner.open_any_image(name, lsn, writable),
            false => self.inner.open_image(name, lsn, writable),
        })
        .map(|i| i.info().into())
    }

    fn close_image(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        unlocked(py, || self.inner.close_image(name))
    }

    fn images(&self, py: Python<'_>) -> Vec<Image> {
        py.detach(|| self.inner.images()).into_iter().map(Image::from).collect()
    }

    fn image_volumes(&self, py: Python<'_>, image: &str) -> PyResult<Vec<Volume>> {
        let volumes = unlocked(py, || Ok(self.inner.image(image)?.volumes()))?;
        Ok(volumes.iter().map(Volume::from).collect())
    }

    #[pyo3(signature = (image, volume, physical_block_bytes = 4096))]
    fn image_lun(
        &self,
        py: Python<'_>,
        image: &str,
        volume: &str,
        physical_block_bytes: u32,
    ) -> PyResult<Lun> {
        let (info, found) = unlocked(py, || {
            let opened = self.inner.image(image)?;
            Ok((opened.info(), opened.volume(volume)?))
        })?;
        let uuid = image_uuid(found.info().uuid, &info);
        Lun::new(found, uuid, format!("{}/{image}/{volume}", self.inner.name()), physical_block_bytes)
    }

    fn rewind(&self, py: Python<'_>, lsn: u64) -> PyResult<Rewind> {
        unlocked(py, || self.inner.rewind(lsn)).map(Rewind::from)
    }

    fn undo_rewind(&self, py: Python<'_>) -> PyResult<Rewind> {
        unlocked(py, || self.inner.undo_rewind()).map(Rewind::from)
    }

    fn rewinds(&self, py: Python<'_>) -> Vec<Rewind> {
        py.detach(|| self.inner.rewinds()).into_iter().map(Rewind::from).collect()
    }

    /// Forgets a copy that was removed: nothing is noted for it any more.
    fn forget_copy(&self, py: Python<'_>, copy: &str) -> PyResult<()> {
        unlocked(py, || self.inner.forget_copy(copy))
    }

    fn set_policy(
        &self,
        py: Python<'_>,
        window_ns: Option<u64>,
        limit_bytes: Option<u64>,
        reserve_bytes: u64,
    ) {
        py.detach(|| self.inner.set_policy(engine::Policy { window_ns, limit_bytes, reserve_bytes }));
    }

    fn trim_to(&self, py: Python<'_>, lsn: u64) -> PyResult<Point> {
        unlocked(py, || self.inner.trim_to(lsn)).map(Point::from)
    }

    /// Calls `progress(done_bytes, total_bytes)` now and then; when that returns false or raises, settling stops.
    fn settle(&self, py: Python<'_>, progress: Py<PyAny>) -> PyResult<()> {
        let mut raised: Option<PyErr> = None;
        let outcome = py.detach(|| {
            self.inner.settle(&mut |done, total| {
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
        match (raised, outcome) {
            (Some(e), _) => Err(e),
            (None, outcome) => outcome.map_err(|e: Error| crate::error::journal(&e)),
        }
    }
}

/// Where a group's files are, for the offline reader.
pub(crate) fn directory(dir: &Path) -> PyResult<&Path> {
    if dir.is_dir() {
        return Ok(dir);
    }
    Err(native(
        "not-found",
        &format!("{} is not a directory: give a group's folder in the store", dir.display()),
    ))
}
