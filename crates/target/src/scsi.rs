//! The SCSI device server: what a logical unit answers to each command, whichever transport brought it.
//!
//! Where it stands on the way of a write: the session hands a parsed command to [`LogicalUnit::admit`], which says whether it may
//! run now; plain reads and writes then go to the [`crate::lun::Lun`] straight from the session's buffers, everything else through
//! [`LogicalUnit::execute`]. What is not implemented is refused with the standard's sense data, never answered with GOOD.

mod alua;
mod blocks;
mod copy;
mod device;
mod execute;
mod job;
mod limits;
mod logs;
mod nexus;
mod policy;
mod reach;
mod report;
mod reservation;
mod sanitize;
mod unit;

pub use copy::Tokens;
pub(crate) use copy::{COPY_LIMITS, LIST_BYTES_MAX, TOKEN_LIMITS};
pub use device::{Device, Devices, TargetPort};
pub use job::{Cancel, Job, JobEnd};
pub use limits::TRANSFER_BLOCKS_MAX;
pub use nexus::{Attention, Changing, InitiatorPort, Nexus};
pub use policy::{Offload, OffloadCount, Offloads, Policy, Rule};
pub use reach::{Nowhere, Reach, Reached};
pub(crate) use report::PORTAL_GROUP;
pub use report::{execute_without_unit, report_luns};
pub(crate) use unit::naa_of;
pub use unit::{sense_of_read, sense_of_write, Done, LogicalUnit, Refusal};
