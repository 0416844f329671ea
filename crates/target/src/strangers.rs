//! A LUN as hosts without an initiator name use it, those of NBD and this host's own block devices: what reservations and the offload
//! policy leave them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crate::lun::{LunRef, BLOCK_BYTES};
use crate::scsi::{Device, Devices, Offload, Policy};

/// A LUN and what strangers may do with it now.
pub(crate) struct Strangers {
    pub(crate) lun: LunRef,
    /// What the LUN is to SCSI initiators, if there are any.
    device: Option<Arc<Device>>,
    unmaps: AtomicBool,
    zeroes: AtomicBool,
}

impl Strangers {
    pub(crate) fn new(lun: LunRef, devices: Option<&Arc<Devices>>, policy: &Policy) -> Strangers {
        let strangers = Strangers {
            device: devices.map(|devices| devices.find(&lun.identity().uuid)),
            lun,
            unmaps: AtomicBool::new(true),
            zeroes: AtomicBool::new(true),
        };
        strangers.obey(policy);
        strangers
    }

    /// Size in bytes, at this moment.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.lun.block_count().saturating_mul(BLOCK_BYTES as u64)
    }

    /// Whether the reservations that SCSI initiators have let a stranger read (or also `write`).
    pub(crate) fn admitted(&self, write: bool) -> bool {
        self.device.as_ref().is_none_or(|device| device.admits_strangers(write))
    }

    /// Whether UNMAP is carried out.
    pub(crate) fn unmaps(&self) -> bool {
        self.unmaps.load(Ordering::Relaxed)
    }

    /// Whether zeros are written without their data.
    pub(crate) fn zeroes(&self) -> bool {
        self.zeroes.load(Ordering::Relaxed)
    }

    /// Puts another policy in force. Strangers have no name, so only the rules for everybody count.
    pub(crate) fn obey(&self, policy: &Policy) {
        let offloads = policy.in_force(&self.lun.identity().uuid, "");
        self.unmaps.store(offloads.contains(Offload::Unmap), Ordering::Relaxed);
        self.zeroes.store(offloads.contains(Offload::WriteSame), Ordering::Relaxed);
    }
}
