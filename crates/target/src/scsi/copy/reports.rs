//! What initiators are told of copies: RECEIVE COPY RESULTS and its kin, COPY OPERATION ABORT, VPD page 8Fh.

use super::super::job::Job;
use super::super::nexus::Nexus;
use super::super::policy::{Offload, Offloads};
use super::super::reach::Reach;
use super::super::unit::{Done, LogicalUnit, Refusal};
use super::held::Operation;
use super::{COPY_LIMITS, TOKEN_LIMITS};
use crate::lun::BLOCK_BYTES;
use playhead_wire::scsi::cdb::CopyReport;
use playhead_wire::scsi::{copy_status, opcodes, rod_token, third_party, Sense};
use std::sync::Arc;
use std::time::Duration;

const COPY: u8 = 0x83;
const RECEIVE: u8 = 0x84;
const COPY_OPERATION_ABORT: u16 = 0x1c;
const POPULATE_TOKEN: u16 = 0x10;
const RECEIVE_COPY_STATUS_4: u16 = 0x05;

/// How long an abort waits between looks at whether it is aborted itself.
const LOOK: Duration = Duration::from_millis(50);

/// Whether a unit has the command, given what policy leaves of its offloads. Commands that are not about copies have it.
pub(in crate::scsi) fn offered(
    unit: &LogicalUnit,
    offloads: Offloads,
    code: u8,
    service_action: Option<u16>,
) -> bool {
    match (code, service_action) {
        // These are about both kinds of copies.
        (COPY, Some(COPY_OPERATION_ABORT)) | (RECEIVE, Some(RECEIVE_COPY_STATUS_4)) => {
            offloads.contains(Offload::Xcopy) || offloads.contains(Offload::Odx)
        }
        (COPY, Some(POPULATE_TOKEN)) if !unit.lun().freezes() => false,
        _ => Offload::of_opcode(code, service_action).is_none_or(|offload| offloads.contains(offload)),
    }
}

/// VPD page 8Fh as this initiator finds it. False: there are no copies for it.
pub(in crate::scsi) fn third_party_page(unit: &LogicalUnit, nexus: &Nexus, out: &mut Vec<u8>) -> bool {
    let offloads = nexus.offloads();
    let commands: Vec<(u8, u8)> = opcodes::SUPPORTED
        .iter()
        .filter(|known| matches!(known.code, COPY | RECEIVE))
        .filter(|known| offered(unit, offloads, known.code, known.service_action))
        .map(|known| (known.code, known.service_action.unwrap_or(0) as u8))
        .collect();
    if commands.is_empty() {
        return false;
    }
    third_party::emit(
        &third_party::ThirdPartyCopy {
            commands: &commands,
            extended_copy: offloads.contains(Offload::Xcopy).then_some(COPY_LIMITS),
            tokens: offloads.contains(Offload::Odx).then_some(TOKEN_LIMITS),
            block_bytes: BLOCK_BYTES as u32,
        },
        out,
    );
    true
}

impl LogicalUnit {
    /// Refuses commands about both kinds of copies while policy rejects both.
    fn check_copies(&self, nexus: &Nexus) -> Result<(), Refusal> {
        let offloads = nexus.offloads();
        if !offloads.contains(Offload::Xcopy) && !offloads.contains(Offload::Odx) {
            nexus.rejected(Offload::Xcopy);
            return Err(Sense::INVALID_OPCODE.into());
        }
        Ok(())
    }

    /// RECEIVE COPY RESULTS, by whichever of its names.
    pub(in crate::scsi) fn receive_copy(
        &self,
        nexus: &Nexus,
        what: CopyReport,
        list_id: u32,
        allocation_bytes: u32,
        reach: &dyn Reach,
        data_in: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        self.check_copies(nexus)?;
        match what {
            CopyReport::OperatingParameters => {
                copy_status::emit_operating_parameters(&COPY_LIMITS, data_in);
                return Ok(());
            }
            CopyReport::AllRodTokens => {
                let shown = |naa: &[u8; 16]| naa == self.naa() || reach.by_naa(naa).is_some();
                let made = reach.tokens().map(|tokens| tokens.made_by(&nexus.port().name, shown));
                rod_token::emit_all(made.unwrap_or_default().iter(), data_in);
                return Ok(());
            }
            _ => {}
        }
        let unknown = Sense::in_cdb(2, None);
        let operation = nexus.copies.find(list_id).ok_or(unknown)?;
        let descriptor_format = self.settings().descriptor_sense;
        let tell =
            |f: &mut dyn FnMut(&copy_status::CopyStatus<'_>)| operation.tell(descriptor_format, |c| f(c));
        match what {
            CopyReport::Status1 if !operation.tell_once() => return Err(unknown.into()),
            CopyReport::Status1 => tell(&mut |copy| copy_status::emit_status_1(copy, data_in)),
            CopyReport::Data1 | CopyReport::FailureDetails1 if !operation.is_over() => {
                return Err(unknown.into())
            }
            CopyReport::Data1 => copy_status::emit_data_1(data_in),
            CopyReport::FailureDetails1 => failure_details(&operation, descriptor_format, data_in),
            CopyReport::Data4 => tell(&mut |copy| copy_status::emit_data_4(copy, data_in)),
            CopyReport::RodTokenInformation => {
                let token = operation.token();
                tell(&mut |copy| copy_status::emit_rod_token_information(copy, token.as_deref(), data_in));
                // Told in full, or not wanted: it is not told again.
                if operation.is_over()
                    && (allocation_bytes == 0 || allocation_bytes as usize >= data_in.len())
                {
                    operation.forget_token();
                }
            }
            _ => tell(&mut |copy| copy_status::emit_status_4(copy, data_in)),
        }
        Ok(())
    }

    /// COPY OPERATION ABORT (SPC-4 6.3): ends when the copy has.
    pub(in crate::scsi) fn abort_copy(&self, nexus: &Nexus, list_id: u32) -> Result<Done, Refusal> {
        self.check_copies(nexus)?;
        let Some(operation) = nexus.copies.find(list_id).filter(|operation| !operation.is_over()) else {
            return Err(Sense::in_cdb(2, None).into());
        };
        operation.abort();
        Ok(Done::Job(Job::new(move |cancel| {
            while !operation.wait(LOOK) && !cancel.is_cancelled() {}
            Ok(Vec::new())
        })))
    }
}

fn failure_details(operation: &Arc<Operation>, descriptor_format: bool, data_in: &mut Vec<u8>) {
    let failure = operation.take_failure().map(|(status, sense)| {
        let mut bytes = Vec::new();
        if let Some(sense) = sense {
            sense.emit(descriptor_format, &mut bytes);
        }
        (status, bytes)
    });
    copy_status::emit_failure_details_1(
        failure.as_ref().map(|(status, sense)| (*status, sense.as_slice())),
        data_in,
    );
}
