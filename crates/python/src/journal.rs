//! The offline reader: `playhead journal dump|verify` on files that nobody vouches for.

use std::path::PathBuf;

use playhead_journal::{files::DiskFiles, reader};
use pyo3::{prelude::*, types::PyDict};

use crate::{error::unlocked, group::directory};

/// One record, without its payload.
#[derive(IntoPyObject)]
pub(crate) struct Record {
    lsn: u64,
    time_ns: u64,
    epoch: u32,
    timeline: u32,
    volume: u32,
    opcode: String,
    lba: u64,
    count: u64,
    payload_bytes: u32,
    detail: String,
}

/// Shows every record from `from_lsn` on to `visit`, until that returns false.
#[pyfunction]
pub(crate) fn dump(py: Python<'_>, dir: PathBuf, from_lsn: u64, visit: Py<PyAny>) -> PyResult<()> {
    let dir = directory(&dir)?;
    let mut raised: Option<PyErr> = None;
    unlocked(py, || {
        reader::dump(&DiskFiles, dir, from_lsn, &mut |r| {
            let record = Record {
                lsn: r.lsn,
                time_ns: r.time_ns,
                epoch: r.epoch,
                timeline: r.timeline,
                volume: r.volume,
                opcode: r.opcode.to_owned(),
                lba: r.lba,
                count: r.count,
                payload_bytes: r.payload_bytes,
                detail: r.detail.clone(),
            };
            Python::attach(|py| match visit.call1(py, (record,)).and_then(|go_on| go_on.is_truthy(py)) {
                Ok(go_on) => go_on,
                Err(e) => {
                    raised = Some(e);
                    false
                }
            })
        })
    })?;
    raised.map_or(Ok(()), Err)
}

/// Reads a whole journal and says what is wrong with it.
#[pyfunction]
pub(crate) fn verify<'py>(py: Python<'py>, dir: PathBuf) -> PyResult<Bound<'py, PyDict>> {
    let dir = directory(&dir)?;
    let verdict = unlocked(py, || reader::verify(&DiskFiles, dir))?;
    let d = PyDict::new(py);
    d.set_item("segments", verdict.segments)?;
    d.set_item("records", verdict.records)?;
    d.set_item("bytes", verdict.bytes)?;
    d.set_item("edge", verdict.edge)?;
    d.set_item("head", verdict.head)?;
    d.set_item("problems", verdict.problems)?;
    Ok(d)
}
