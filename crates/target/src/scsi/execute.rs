//! Running the commands that are not plain reads and writes.

use super::limits;
use super::nexus::Nexus;
use super::policy::Offload;
use super::reach::Reach;
use super::report;
use super::unit::{Done, LogicalUnit, Refusal};
use crate::lun::BLOCK_BYTES;
use playhead_wire::scsi::mode::{self, Device};
use playhead_wire::scsi::{capacity, erase};
use playhead_wire::scsi::{Command, Sense};
use std::sync::atomic::Ordering;
use std::sync::Arc;

impl LogicalUnit {
    fn device(&self, nexus: &Nexus) -> Device {
        Device {
            block_count: self.lun.block_count(),
            block_bytes: BLOCK_BYTES as u32,
            write_protected: self.lun.read_only() || nexus.read_only() || self.settings().write_protect,
        }
    }

    /// What stands in the way of commands about blocks.
    fn not_ready(&self) -> Option<Sense> {
        self.device.stopped.load(Ordering::Relaxed).then_some(Sense::NEEDS_START)
    }

    /// Runs an admitted command. `data_out` is what the initiator sent; data for it is appended to the empty `data_in`,
    /// already cut to the allocation length. `reach` finds the other units that a copy may name.
    ///
    /// READ and WRITE are not for here: the session moves their data itself. They, and REPORT LUNS, which is about the target,
    /// end in INTERNAL TARGET FAILURE.
    pub fn execute(
        self: &Arc<Self>,
        nexus: &Arc<Nexus>,
        command: &Command,
        data_out: &[u8],
        data_in: &mut Vec<u8>,
        reach: &dyn Reach,
    ) -> Result<Done, Refusal> {
        let mut done = Done::Good;
        match *command {
            Command::TestUnitReady | Command::PreventAllow { .. } => {}
            Command::PreFetch { lba, count, immediate } => done = self.prefetch(lba, count, immediate)?,
            Command::RequestSense { descriptor, .. } => {
                let standing =
                    || self.device.sanitizer.bars().or(self.device.access.sense()).or(self.not_ready());
                let sense = nexus.take_attention().or_else(standing).unwrap_or(Sense::NONE);
                sense.emit(descriptor, data_in);
            }
            Command::Inquiry { page, .. } => {
                report::inquiry(self, nexus, page, data_in)?;
            }
            Command::ModeSense(request) => {
                mode::emit_sense(&request, &self.settings(), &self.device(nexus), data_in)?;
            }
            Command::ModeSelect { long, .. } => {
                refuse_to_readers(nexus)?;
                let chosen = mode::parse_select(data_out, long, &self.settings(), &self.device(nexus))?;
                // Turning the cache off promises that what it held is safe.
                if self.settings().write_cache && !chosen.write_cache {
                    done = Done::AfterFlush;
                }
                self.set_settings(chosen, nexus);
            }
            Command::StartStopUnit { start, load_eject, immediate, without_flush } => {
                if load_eject {
                    return Err(Sense::in_cdb(4, Some(1)).into()); // the medium is not removable
                }
                if !start {
                    refuse_to_readers(nexus)?;
                }
                self.device.stopped.store(!start, Ordering::Relaxed);
                if !start && !without_flush {
                    done = if immediate { Done::GoodAndFlush } else { Done::AfterFlush };
                }
            }
            Command::ReadCapacity10 => {
                let count = self.lun.block_count();
                capacity::emit_read_capacity_10(count, BLOCK_BYTES as u32, data_in);
            }
            Command::ReadCapacity16 { .. } => {
                let count = self.lun.block_count();
                let per_physical = self.lun.physical_block_bytes() / BLOCK_BYTES as u32;
                let exponent = per_physical.max(1).ilog2() as u8;
                let thin = limits::thin(nexus).unmap;
                capacity::emit_read_capacity_16(count, BLOCK_BYTES as u32, exponent, thin, data_in);
            }
            Command::GetLbaStatus { lba, allocation_bytes } => {
                self.lba_status(lba, allocation_bytes, data_in)?;
            }
            Command::SynchronizeCache { immediate, .. } => {
                done = if immediate { Done::GoodAndFlush } else { Done::AfterFlush };
            }
            Command::WriteAndVerify { blocks, compare } => {
                self.write_and_verify(blocks, compare, data_out)?;
                done = Done::AfterFlush;
            }
            Command::Verify { blocks, check } => self.verify(blocks, check, data_out)?,
            Command::WriteSame(request) => {
                let bytes = self.write_same(&request, data_out)?;
                nexus.served(Offload::WriteSame, bytes.saturating_sub(data_out.len() as u64));
                done = self.after_change(false);
            }
            Command::Unmap { .. } => {
                let bytes = self.unmap(data_out)?;
                nexus.served(Offload::Unmap, bytes.saturating_sub(data_out.len() as u64));
                done = self.after_change(false);
            }
            Command::CompareAndWrite(blocks) => {
                let outcome = self.compare_and_write(blocks, data_out);
                if !matches!(outcome, Err(sense) if sense.code != Sense::MISCOMPARE.code) {
                    nexus.served(Offload::Ats, 0);
                }
                outcome?;
                done = self.after_change(blocks.fua);
            }
            Command::OrWrite(blocks) => {
                self.or_write(blocks, data_out)?;
                done = self.after_change(blocks.fua);
            }
            Command::WriteAtomic { blocks, .. } => {
                self.write_atomic(blocks, data_out)?;
                done = self.after_change(blocks.fua);
            }
            Command::Sanitize(request) => {
                done = self.sanitize(&request, data_out)?;
                self.revoke_tokens(reach);
            }
            Command::FormatUnit(request) => {
                done = self.format(&request, data_out)?;
                self.revoke_tokens(reach);
            }
            Command::ReadDefectData { long, lists_and_format, .. } => {
                erase::emit_no_defects(long, lists_and_format, data_in);
            }
            Command::ReportSupportedOpcodes { timeouts, options, opcode, service_action, .. } => {
                report::opcodes(self, nexus, timeouts, options, opcode, service_action, data_in)?;
            }
            Command::ReportSupportedTmfs { extended, .. } => {
                report::task_management(extended, data_in);
            }
            Command::LogSense(request) => self.device.logs().emit(&request, data_in)?,
            Command::LogSelect { reset, .. } => self.device.log_select(nexus, reset, data_out)?,
            Command::ReportTargetPortGroups { extended, .. } => self.device.report_groups(extended, data_in),
            Command::SetTargetPortGroups { list_bytes } => {
                if data_out.len() < list_bytes as usize {
                    return Err(Sense::PARAMETER_LIST_LENGTH.into());
                }
                refuse_to_readers(nexus)?;
                self.device.set_groups(nexus, data_out)?;
            }
            Command::ExtendedCopy { .. } => done = self.extended_copy(nexus, command, data_out, reach)?,
            Command::PopulateToken { list_id, .. } => {
                done = self.populate_token(nexus, list_id, data_out, reach)?;
            }
            Command::WriteUsingToken { list_id, .. } => {
                done = self.write_using_token(nexus, list_id, data_out, reach)?;
            }
            Command::CopyOperationAbort { list_id } => done = self.abort_copy(nexus, list_id)?,
            Command::ReceiveCopy { what, list_id, allocation_bytes } => {
                self.receive_copy(nexus, what, list_id, allocation_bytes, reach, data_in)?;
            }
            Command::Reserve => {
                self.device.change_in_memory(|r| r.reserve_legacy(&nexus.it_nexus()))?;
            }
            Command::Release => {
                self.device.change_in_memory(|r| r.release_legacy(&nexus.it_nexus()))?;
            }
            Command::PersistentReserveIn { service_action, .. } => {
                self.device.reserve_in(service_action, data_in)?;
            }
            Command::PersistentReserveOut { service_action, scope, kind, .. } => {
                self.device.reserve_out(nexus, service_action, scope, kind, data_out)?;
            }
            Command::Read(_) | Command::Write(_) | Command::ReportLuns { .. } => {
                return Err(Sense::INTERNAL_FAILURE.into());
            }
        }
        data_in.truncate(command.allocation_bytes().map_or(usize::MAX, |bytes| bytes as usize));
        Ok(done)
    }

    /// Whether a change ends only after a flush: with FUA, or with the write cache off.
    pub fn flushes(&self, fua: bool) -> bool {
        fua || !self.settings().write_cache
    }

    /// Tokens that stand for what was just erased would bring it back.
    fn revoke_tokens(&self, reach: &dyn Reach) {
        if let Some(tokens) = reach.tokens() {
            tokens.revoke_erased(&self.lun.identity().uuid);
        }
    }

    /// How a change ends: with FUA, or with the write cache off, only after a flush.
    pub(super) fn after_change(&self, fua: bool) -> Done {
        if self.flushes(fua) {
            Done::AfterFlush
        } else {
            Done::Good
        }
    }
}

/// An initiator that may only read does not get to stop the unit, or to protect it, for those who may write.
fn refuse_to_readers(nexus: &Nexus) -> Result<(), Sense> {
    if nexus.read_only() {
        return Err(Sense::WRITE_PROTECTED);
    }
    Ok(())
}
