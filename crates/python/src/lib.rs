//! The Python binding, `playhead._native`: one file per noun, and nothing here that decides anything.
//!
//! Bytes of user data never pass through Python. Python hands over names and numbers, gets dictionaries back, and every call
//! that may block lets go of the GIL meanwhile. The types are written down in `python/playhead/_native.pyi`.

use pyo3::prelude::*;

mod array;
mod copy;
mod error;
mod group;
mod iscsi;
mod journal;
mod lab;
mod log;
mod lun;
mod nbd;
mod policy;
mod splitter;
mod ublk;

/// The package's version, which is the workspace's.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NativeError", module.py().get_type::<error::NativeError>())?;
    module.add_class::<group::Group>()?;
    module.add_class::<copy::Copy>()?;
    module.add_function(wrap_pyfunction!(copy::promote_copy, module)?)?;
    module.add_class::<lun::Lun>()?;
    module.add_class::<array::Array>()?;
    module.add_class::<splitter::HostSplitter>()?;
    module.add_class::<splitter::FabricSplitter>()?;
    module.add_class::<iscsi::IscsiServer>()?;
    module.add_class::<nbd::NbdServer>()?;
    module.add_class::<ublk::UblkServer>()?;
    module.add_class::<lab::LabSplitter>()?;
    module.add_function(wrap_pyfunction!(journal::dump, module)?)?;
    module.add_function(wrap_pyfunction!(journal::verify, module)?)?;
    module.add_function(wrap_pyfunction!(log::log_to_stderr, module)?)?;
    module.add_function(wrap_pyfunction!(splitter::host_device_size, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)?;
    Ok(())
}
