//! A disk that a front end can export.

use crate::error::native;
use playhead_target::{
    fabric::FabricLun,
    lun::{LunIdentity, LunRef},
    splitter::{ArraySplitter, HostLun},
};
use pyo3::prelude::*;
use std::sync::Arc;
use uuid::Uuid;

/// A volume of production or of an image, ready to be exported. Opaque to Python but for who it is.
#[pyclass(frozen, module = "playhead._native")]
pub(crate) struct Lun {
    pub(crate) inner: LunRef,
}

impl Lun {
    /// Puts `volume` behind the array-based splitter, in physical blocks of `physical_block_bytes`: 512 or 4096.
    pub(crate) fn new(
        volume: playhead_journal::Volume,
        uuid: Uuid,
        name: String,
        physical_block_bytes: u32,
    ) -> PyResult<Self> {
        if !matches!(physical_block_bytes, 512 | 4096) {
            return Err(native(
                "invalid",
                &format!("a physical block has 512 or 4096 bytes, not {physical_block_bytes}"),
            ));
        }
        let identity = LunIdentity { uuid: *uuid.as_bytes(), name };
        let splitter = ArraySplitter::new(volume, identity).with_physical_block_bytes(physical_block_bytes);
        Ok(Self { inner: Arc::new(splitter) })
    }
}

#[pymethods]
impl Lun {
    #[getter]
    fn name(&self) -> &str {
        &self.inner.identity().name
    }

    #[getter]
    fn uuid(&self) -> String {
        Uuid::from_bytes(self.inner.identity().uuid).to_string()
    }

    #[getter]
    fn block_count(&self) -> u64 {
        self.inner.block_count()
    }

    /// Lets everybody only read from now on, or write again.
    fn set_read_only(&self, read_only: bool) {
        if let Some(splitter) = self.inner.as_any().downcast_ref::<ArraySplitter>() {
            splitter.set_read_only(read_only);
        } else if let Some(fabric) = self.inner.as_any().downcast_ref::<FabricLun>() {
            fabric.set_read_only(read_only);
        } else if let Some(attached) = self.inner.as_any().downcast_ref::<HostLun>() {
            attached.set_read_only(read_only);
        }
    }

    /// Whether its production is on another array: only iSCSI hosts reach it.
    #[getter]
    fn on_array(&self) -> bool {
        self.inner.as_any().is::<FabricLun>()
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.inner.read_only()
    }
}
