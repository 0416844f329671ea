//! Offload policy, as Python hands it to both front ends.

use playhead_target::scsi::{Offload, Policy, Rule};
use pyo3::prelude::*;

use crate::error::native;

/// A rule: the LUN's uuid or any, the initiator's name or any, the offload, whether it is supported.
pub(crate) type PyRule = (Option<[u8; 16]>, Option<String>, String, bool);

/// Puts rules together. An offload of an unknown name is an error: it would silently stay supported.
pub(crate) fn policy(rules: Vec<PyRule>) -> PyResult<Policy> {
    let rules = rules.into_iter().map(|(lun, initiator, offload, support)| {
        let offload = Offload::from_name(&offload)
            .ok_or_else(|| native("invalid", &format!("there is no offload {offload:?}")))?;
        Ok(Rule { lun, initiator, offload, support })
    });
    Ok(Policy::new(rules.collect::<PyResult<Vec<_>>>()?))
}
