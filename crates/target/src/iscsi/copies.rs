//! EXTENDED COPY on a LUN of another array: whom a host may name, and what the session makes of the array's answer. What is copied, and
//! how it is recorded, is in [`crate::fabric::copy`].

use super::forward::Prepared;
use super::jobs::SessionReach;
use super::parts::{fabric, Parts};
use super::session::{Session, View};
use crate::fabric::copy::{self, Luns, Role};
use crate::fabric::{FabricLun, Recorder};
use crate::lun::BLOCK_BYTES;
use crate::scsi::{LogicalUnit, Offload, Reached};
use playhead_wire::scsi::extended_copy::{CopyLimits, Designator};
use playhead_wire::scsi::{Command, Sense};
use std::sync::Arc;

/// Where the length of the list stands in the CDB.
const LIST_BYTES_AT: std::ops::Range<usize> = 10..14;

/// The LUNs of one array that the session's host is shown, by the places they have in a copy.
struct Shown<'a> {
    reach: SessionReach<'a>,
    own: Reached,
    found: Vec<Reached>,
}

fn is_same(a: &FabricLun, b: &FabricLun) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a.recorder()), Arc::as_ptr(b.recorder()))
}

impl Shown<'_> {
    fn place(&mut self, reached: Reached) -> usize {
        let same = |known: &Reached| match (fabric(&known.unit), fabric(&reached.unit)) {
            (Some(known), Some(reached)) => is_same(known, reached),
            _ => false,
        };
        self.found.iter().position(same).unwrap_or_else(|| {
            self.found.push(reached);
            self.found.len() - 1
        })
    }

    /// The array's name for a unit, if it is a LUN of our array that `name` may mean.
    fn means(&self, unit: &LogicalUnit, name: &Designator) -> Option<Designator> {
        let (own, lun) = (fabric(&self.own.unit)?, fabric(unit)?);
        lun.array_name(name).filter(|_| lun.array().is_beside(own.array()))
    }

    /// Whether two LUNs of the array have the name: then it is none.
    fn is_ambiguous(&self, name: &Designator) -> bool {
        let mut first: Option<*const dyn Recorder> = None;
        for target in self.reach.shared.catalogue.targets() {
            for (_, unit) in target.units().1 {
                let Some(lun) = self.means(&unit, name).and_then(|_| fabric(&unit)) else {
                    continue;
                };
                let recorder = Arc::as_ptr(lun.recorder());
                if !std::ptr::addr_eq(*first.get_or_insert(recorder), recorder) {
                    return true;
                }
            }
        }
        false
    }
}

impl Luns for Shown<'_> {
    fn own(&mut self) -> usize {
        self.place(self.own.clone())
    }

    fn find(&mut self, name: &Designator) -> Option<(usize, Designator)> {
        if self.is_ambiguous(name) {
            return None;
        }
        let reached = match self.means(&self.own.unit, name) {
            Some(_) => self.own.clone(),
            None => self.reach.find(|unit| self.means(unit, name).is_some())?,
        };
        let array_name = self.means(&reached.unit, name)?;
        Some((self.place(reached), array_name))
    }

    fn admit(&self, at: usize, role: Role, (segment, byte): (u16, u16)) -> Result<(), Sense> {
        let Reached { unit, nexus } = &self.found[at];
        let sense = if !nexus.offloads().contains(Offload::Xcopy) {
            nexus.rejected(Offload::Xcopy);
            Sense::INVALID_OPCODE
        } else if nexus.is_gone() || unit.is_retired() {
            Sense::LUN_NOT_SUPPORTED
        } else if role == Role::Destination && (unit.lun().read_only() || nexus.read_only()) {
            Sense::WRITE_PROTECTED
        } else {
            return Ok(());
        };
        // A refusal by the unit that was given the command is the command's own; another's ends the copy.
        let is_own = Arc::ptr_eq(unit, &self.own.unit);
        Err(if is_own { sense } else { Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(segment, byte) })
    }

    fn block_count(&self, at: usize) -> u64 {
        self.found[at].unit.lun().block_count()
    }

    fn limits(&self) -> Option<CopyLimits> {
        fabric(&self.own.unit)?.production().copy_limits()
    }
}

impl Session {
    /// Makes an EXTENDED COPY ready to be forwarded: the list, and what is to be taken.
    pub(super) fn prepare_copy(
        &self,
        view: &View,
        command: &Command,
        cdb: &[u8; 16],
        data_out: &[u8],
    ) -> Result<Prepared, Sense> {
        let &Command::ExtendedCopy { long_id, list_bytes } = command else {
            return Err(Sense::INTERNAL_FAILURE);
        };
        // The initiator may have announced less than the CDB says.
        let list = data_out.get(..list_bytes as usize).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let own = Reached { unit: Arc::clone(&view.unit), nexus: Arc::clone(&view.nexus) };
        let reach = SessionReach { shared: &self.shared, port: &self.port, views: &self.views };
        let mut shown = Shown { reach, own, found: Vec::new() };
        let planned = copy::plan(list, long_id, &mut shown)?;
        let mut cdb = *cdb;
        cdb[LIST_BYTES_AT].copy_from_slice(&(planned.list.len() as u32).to_be_bytes());
        let units = shown.found.into_iter().map(|reached| reached.unit).collect();
        let saved_bytes = 2 * planned.blocks * BLOCK_BYTES as u64;
        Ok(Prepared { cdb, data_out: planned.list, parts: Parts::copy(units, planned.parts), saved_bytes })
    }
}
