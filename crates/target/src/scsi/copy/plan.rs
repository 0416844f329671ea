//! EXTENDED COPY: who takes part, whether they may, and which blocks go where.

use super::super::nexus::Nexus;
use super::super::policy::Offload;
use super::super::reach::{Reach, Reached};
use super::super::reservation::Access;
use super::super::unit::{Done, LogicalUnit, Refusal};
use super::held::Operation;
use super::run::{From, Part, Plan, Stretch};
use super::{run, COPY_LIMITS};
use crate::lun::{CopyPiece, BLOCK_BYTES};
use playhead_wire::scsi::extended_copy::{self, CopyList, ListUse, Segment, CSCD_BYTES, THIS_UNIT};
use playhead_wire::scsi::{Command, Sense};
use std::sync::Arc;

/// What a unit does in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Destination,
}

impl LogicalUnit {
    /// Whether the initiator of `nexus` may have this unit take part in a copy by a command of `offload` now.
    pub(super) fn may_take_part(&self, nexus: &Nexus, offload: Offload, role: Role) -> Result<(), Refusal> {
        if !nexus.offloads().contains(offload) {
            nexus.rejected(offload);
            return Err(Sense::INVALID_OPCODE.into());
        }
        let access = if role == Role::Source { Access::Read } else { Access::Write };
        // What a host would hear that tried it with commands of its own.
        if let Some(sense) = self.device.access.refusal(&Command::TestUnitReady) {
            return Err(sense.into());
        }
        self.check_access(nexus, access)?;
        if let Some(sense) = self.barred(&Command::TestUnitReady) {
            return Err(sense.into());
        }
        self.check_medium()?;
        if role == Role::Destination {
            self.check_writable(nexus)?;
        }
        Ok(())
    }

    /// EXTENDED COPY (SPC-4 6.4, 6.5).
    pub(in crate::scsi) fn extended_copy(
        self: &Arc<Self>,
        nexus: &Arc<Nexus>,
        command: &Command,
        list: &[u8],
        reach: &dyn Reach,
    ) -> Result<Done, Refusal> {
        let &Command::ExtendedCopy { long_id, list_bytes } = command else {
            return Err(Sense::INTERNAL_FAILURE.into());
        };
        // The initiator may have announced less than the CDB says.
        if list.len() < list_bytes as usize {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        let Some(list) = extended_copy::parse(list, long_id, &COPY_LIMITS)? else {
            return Ok(Done::Good);
        };
        let list_id = (list.list_use != ListUse::None).then_some(list.list_id);
        let operation = Operation::new(u8::from(long_id), list.immediate);
        let at_work = nexus.copies.begin(list_id, operation)?;
        let own = Reached { unit: Arc::clone(self), nexus: Arc::clone(nexus) };
        let (parts, stretches) = match Lists::new(&own, &list, reach).stretches() {
            Ok(found) => found,
            Err(refusal) => {
                at_work.0.end(playhead_wire::scsi::copy_status::CopyState::Failed, Err(refusal));
                return Err(refusal);
            }
        };
        let plan = Plan { at_work, offload: Offload::Xcopy, parts, stretches, short: false };
        Ok(run::done(plan, list.immediate, Box::new(|_| {})))
    }
}

/// A list, and those of its units that were looked for.
struct Lists<'a> {
    own: &'a Reached,
    list: &'a CopyList,
    reach: &'a dyn Reach,
    /// By CSCD descriptor ID: a place in `parts`, once found.
    found: Vec<Option<usize>>,
    parts: Vec<Part>,
}

impl<'a> Lists<'a> {
    fn new(own: &'a Reached, list: &'a CopyList, reach: &'a dyn Reach) -> Lists<'a> {
        Lists { own, list, reach, found: vec![None; list.cscds.len()], parts: Vec::new() }
    }

    /// Everything that takes part, and what is to be copied, in order; nothing has moved yet.
    fn stretches(mut self) -> Result<(Vec<Part>, Vec<Stretch>), Refusal> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for (number, segment) in self.list.segments.iter().enumerate() {
            let number = number as u16;
            let source = self.part(segment.source, number, 4)?;
            let destination = self.part(segment.destination, number, 6)?;
            self.check_role(source, Role::Source, number, 4)?;
            self.check_role(destination, Role::Destination, number, 6)?;
            let count = segment.blocks(number, BLOCK_BYTES as u32, &COPY_LIMITS)?;
            self.check_range(source, segment.source_lba, count, number, 12)?;
            self.check_range(destination, segment.lba, count, number, 20)?;
            let piece = piece_of(segment, count);
            match stretches.last_mut() {
                Some(last) if last.is_between(source, destination) => {
                    let one_unit = self.parts[source].unit.naa() == self.parts[destination].unit.naa();
                    last.push(piece, number, one_unit);
                }
                _ => stretches.push(Stretch {
                    from: From::Part(source),
                    to: destination,
                    pieces: vec![(piece, number)],
                }),
            }
        }
        Ok((self.parts, stretches))
    }

    /// The unit that a segment means by `id`, which stands at `byte` of its descriptor.
    fn part(&mut self, id: u16, number: u16, byte: u16) -> Result<usize, Refusal> {
        let unreachable = Sense::UNREACHABLE_COPY_TARGET.in_segment(number, byte);
        if id == THIS_UNIT {
            return Ok(self.add(self.own.clone()));
        }
        let at = usize::from(id);
        let cscd = self.list.cscds.get(at).ok_or(unreachable)?;
        if let Some(part) = self.found[at] {
            return Ok(part);
        }
        let naa = cscd.name.and_then(|name| name.as_naa()).ok_or(unreachable)?;
        let reached = if naa == *self.own.unit.naa() {
            self.own.clone()
        } else {
            self.reach.by_naa(&naa).ok_or(unreachable)?
        };
        if cscd.device_type != 0 {
            return Err(Sense::INCORRECT_COPY_TARGET_TYPE.in_segment(number, byte).into());
        }
        if cscd.block_bytes != BLOCK_BYTES as u32 {
            let at = usize::from(self.list.cscds_at) + at * CSCD_BYTES + 29;
            return Err(Sense::in_parameters(at as u16).into());
        }
        let part = self.add(reached);
        self.found[at] = Some(part);
        Ok(part)
    }

    fn add(&mut self, reached: Reached) -> usize {
        let known = self.parts.iter().position(|part| Arc::ptr_eq(&part.unit, &reached.unit));
        known.unwrap_or_else(|| {
            self.parts.push(Part::new(reached));
            self.parts.len() - 1
        })
    }

    /// A refusal by the unit that was given the command is the command's own; another's ends the copy.
    fn check_role(&self, at: usize, role: Role, number: u16, byte: u16) -> Result<(), Refusal> {
        let part = &self.parts[at];
        part.may_take_part(Offload::Xcopy, role).map_err(|refusal| {
            if Arc::ptr_eq(&part.unit, &self.own.unit) {
                return refusal;
            }
            Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(number, byte).into()
        })
    }

    fn check_range(&self, at: usize, lba: u64, count: u64, number: u16, byte: u16) -> Result<(), Refusal> {
        let block_count = self.parts[at].unit.lun().block_count();
        if lba > block_count || count > block_count - lba {
            return Err(Sense::COPY_TARGET_NOT_REACHABLE.in_segment(number, byte).into());
        }
        Ok(())
    }
}

fn piece_of(segment: &Segment, count: u64) -> CopyPiece {
    CopyPiece { source_lba: segment.source_lba, lba: segment.lba, count }
}
