//! What becomes of each operation code on its way to the array.
//!
//! The rule of the house: what is not known to change nothing, and cannot be captured, is refused as a device without it would refuse it
//! (05/20/00), so that hosts fall back. There is no third way.
//!
//! Copies that the array makes by itself are forwarded and recorded too ([`super::copy`]), if the policy says so.

use crate::lun::BLOCK_BYTES;
use crate::scsi::{Offload, Offloads, LIST_BYTES_MAX};
use playhead_initiator::blocking::{is_deferred, sense_code};
use playhead_wire::scsi::cdb::CopyReport;
use playhead_wire::scsi::{Command, Sense};

/// Most bytes that one command reads or writes: 32 MiB, so that one command's data fits a session's budget.
pub const TRANSFER_BYTES_MAX: u32 = 32 << 20;

/// An answer of the array that is looked over before the host gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Standard INQUIRY data.
    Inquiry,
    /// A vital product data page.
    Page(u8),
    /// READ CAPACITY(16).
    Capacity,
    /// RECEIVE COPY OPERATING PARAMETERS.
    CopyParameters,
    /// REPORT SUPPORTED OPERATION CODES; the list, or what is said of one code.
    Opcodes {
        /// Reporting options (SPC-4 6.30).
        options: u8,
        /// The code asked for.
        code: u8,
        /// The service action asked for.
        service_action: u16,
    },
}

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It changes no block: forwarded as it is, the answer too.
    Pass,
    /// Forwarded; the answer is looked over.
    Edit(Edit),
    /// Forwarded; GOOD once the journal is as safe as the array says it is.
    Flush {
        /// IMMED: GOOD is told before.
        immediate: bool,
    },
    /// It changes blocks: forwarded and recorded.
    Change(Command),
    /// An EXTENDED COPY, which may change blocks of any LUN that its host is shown: its list is looked at, then it is forwarded and recorded.
    Copy(Command),
}

/// Codes, with service actions where they have any, of commands that change no block.
fn passes(code: u8, service_action: u8) -> bool {
    match code {
        // TEST UNIT READY, REQUEST SENSE, READ, RESERVE, RELEASE, MODE SENSE and SELECT, START STOP UNIT, RECEIVE DIAGNOSTIC RESULTS.
        0x00 | 0x03 | 0x08 | 0x16 | 0x17 | 0x1a | 0x15 | 0x1b | 0x1c | 0x1e => true,
        // READ CAPACITY(10), READ, VERIFY, PRE-FETCH, READ DEFECT DATA, READ BUFFER, LOG SELECT and SENSE, MODE SELECT and SENSE(10),
        // RESERVE and RELEASE(10), PERSISTENT RESERVE IN and OUT.
        0x25 | 0x28 | 0x2f | 0x34 | 0x37 | 0x3c | 0x4c | 0x4d | 0x55 | 0x5a | 0x56 | 0x57 | 0x5e | 0x5f => {
            true
        }
        // READ(16), VERIFY(16), PRE-FETCH(16), READ(12), VERIFY(12), READ DEFECT DATA(12).
        0x88 | 0x8f | 0x90 | 0xa8 | 0xaf | 0xb7 => true,
        // GET LBA STATUS, REPORT REFERRALS.
        0x9e => matches!(service_action, 0x12 | 0x13),
        // REPORT IDENTIFYING INFORMATION, TARGET PORT GROUPS, ALIASES, TASK MANAGEMENT FUNCTIONS, PRIORITY, TIMESTAMP.
        0xa3 => matches!(service_action, 0x05 | 0x0a | 0x0b | 0x0d | 0x0e | 0x0f),
        // SET TARGET PORT GROUPS.
        0xa4 => service_action == 0x0a,
        _ => false,
    }
}

/// Whether blocks may be changed by `code` in a way that is captured here.
fn changes(code: u8) -> bool {
    matches!(
        code,
        0x04 | 0x0a
            | 0x2a
            | 0x2e
            | 0x41
            | 0x42
            | 0x48
            | 0x89
            | 0x8a
            | 0x8b
            | 0x8e
            | 0x93
            | 0x9c
            | 0xaa
            | 0xae
    )
}

/// Whether this splitter lets a command pass for an initiator that gets `offloads`: what REPORT SUPPORTED OPERATION CODES may list.
pub fn offered(code: u8, service_action: Option<u16>, offloads: Offloads) -> bool {
    let action = service_action.unwrap_or(0) as u8;
    match Offload::of_opcode(code, service_action) {
        Some(Offload::Xcopy | Offload::Odx) => copies(code, action, offloads),
        Some(offload) => offloads.contains(offload),
        None => {
            passes(code, action)
                || changes(code)
                || matches!(code, 0x12 | 0x35 | 0x91 | 0xa0)
                || code == 0x9e && action == 0x10
                || code == 0xa3 && action == 0x0c
        }
    }
}

/// Whether commands about copies may pass. Not REPORT ALL ROD TOKENS: where all hosts are one initiator to the array, it would tell a host
/// of others'.
fn copies(code: u8, action: u8, offloads: Offloads) -> bool {
    let (xcopy, odx) = (offloads.contains(Offload::Xcopy), offloads.contains(Offload::Odx));
    match (code, action) {
        // COPY OPERATION ABORT and RECEIVE COPY STATUS(LID4) are about both kinds.
        (0x83, 0x1c) | (0x84, 0x05) => xcopy || odx,
        (0x83, 0x00 | 0x01) | (0x84, 0x00 | 0x01 | 0x03 | 0x04 | 0x06) => xcopy,
        (0x83, 0x10 | 0x11) | (0x84, 0x07) => odx,
        _ => false,
    }
}

/// Whether an initiator finds any copies.
pub(super) fn any_copies(offloads: Offloads) -> bool {
    offloads.contains(Offload::Xcopy) || offloads.contains(Offload::Odx)
}

/// What becomes of `cdb`. Errors are what to answer with instead of forwarding it; the policy's are [`Sense::INVALID_OPCODE`].
pub fn plan(cdb: &[u8; 16], offloads: Offloads) -> Result<Plan, Sense> {
    let code = cdb[0];
    let action = cdb[1] & 0x1f;
    match code {
        0x12 if cdb[1] & 1 == 0 => return Ok(Plan::Edit(Edit::Inquiry)),
        0x12 if cdb[2] == 0x8f && !any_copies(offloads) => return Err(Sense::in_cdb(2, Some(7))),
        0x12 => return Ok(Plan::Edit(Edit::Page(cdb[2]))),
        0x9e if action == 0x10 => return Ok(Plan::Edit(Edit::Capacity)),
        0xa3 if action == 0x0c => {
            return Ok(Plan::Edit(Edit::Opcodes {
                options: cdb[2] & 7,
                code: cdb[3],
                service_action: u16::from_be_bytes([cdb[4], cdb[5]]),
            }));
        }
        0x35 | 0x91 => return Ok(Plan::Flush { immediate: cdb[1] & 2 != 0 }),
        _ if passes(code, action) => return Ok(Plan::Pass),
        0x83 | 0x84 if copies(code, action, offloads) => {}
        _ if !changes(code) => return Err(Sense::INVALID_OPCODE),
        _ => {}
    }
    // The array may know auto contingent allegiance; the reader of CDBs here does not.
    let mut readable = *cdb;
    let control = match code >> 5 {
        0 => 5,
        1 | 2 => 9,
        5 => 11,
        _ => 15,
    };
    readable[control] &= !0x04;
    let command = Command::parse(&readable)?;
    if let Some(offload) = Offload::of(&command) {
        if !offloads.contains(offload) {
            return Err(Sense::INVALID_OPCODE);
        }
    }
    match command {
        Command::WriteSame(request) if request.unmap && !offloads.contains(Offload::Unmap) => {
            Err(Sense::in_cdb(1, Some(3)))
        }
        Command::ExtendedCopy { list_bytes, .. } | Command::WriteUsingToken { list_bytes, .. }
            if list_bytes > LIST_BYTES_MAX =>
        {
            Err(Sense::PARAMETER_LIST_LENGTH)
        }
        Command::ExtendedCopy { .. } => Ok(Plan::Copy(command)),
        Command::ReceiveCopy { what: CopyReport::OperatingParameters, .. } => {
            Ok(Plan::Edit(Edit::CopyParameters))
        }
        // A token changes no block of what it stands for.
        Command::ReceiveCopy { .. } | Command::CopyOperationAbort { .. } | Command::PopulateToken { .. } => {
            Ok(Plan::Pass)
        }
        // What goes on after GOOD cannot be captured at GOOD: FORMAT's list says IMMED, SANITIZE's CDB does.
        Command::Sanitize(_) if cdb[1] & 0x80 != 0 => Err(Sense::in_cdb(1, Some(7))),
        _ => Ok(Plan::Change(command)),
    }
}

/// How to refuse a command whose data has come, and that goes on after GOOD, which nothing here could capture: IMMED in the lists of FORMAT
/// UNIT (SBC-4 5.4.2) and WRITE USING TOKEN (5.59).
pub fn goes_on_after_good(command: &Command, data_out: &[u8]) -> Option<Sense> {
    let (byte, bit) = match command {
        Command::FormatUnit(_) => (1, 0x02),
        Command::WriteUsingToken { .. } => (2, 0x01),
        _ => return None,
    };
    let set = data_out.get(usize::from(byte)).is_some_and(|flags| flags & bit != 0);
    set.then_some(Sense::in_parameters(byte))
}

/// Whether a command whose data has come is a MODE SELECT (6 or 10) with a block descriptor that asks for other blocks than the
/// `block_count` of 512 bytes that there are (SBC-4 6.5.2): the journal's are those. Zero blocks asks for as many as there are.
pub fn changes_block_size(cdb: &[u8; 16], data_out: &[u8], block_count: u64) -> bool {
    let byte = |at: usize| u64::from(data_out.get(at).copied().unwrap_or(0));
    let number = |at: usize, len: usize| (at..at + len).fold(0, |number, at| number << 8 | byte(at));
    let (at, bytes, is_long) = match cdb[0] {
        0x15 => (4, byte(3), false),
        0x55 => (8, number(6, 2), byte(4) & 1 != 0),
        _ => return false,
    };
    if bytes == 0 {
        return false;
    }
    let (blocks, block_bytes) =
        if is_long { (number(at, 8), number(at + 12, 4)) } else { (number(at, 4), number(at + 5, 3)) };
    // What does not fit the short form is told as all ones.
    let here = if is_long { block_count } else { block_count.min(u64::from(u32::MAX)) };
    block_bytes != BLOCK_BYTES as u64 || blocks != 0 && blocks != here
}

/// Whether a COMPARE AND WRITE that ended so has found other data than it was to.
pub fn is_miscompare(status: u8, sense: &[u8]) -> bool {
    status == 0x02 && !is_deferred(sense) && matches!(sense_code(sense), Some((0x0e, 0x1d, _)))
}

/// Whether a command that ended otherwise than GOOD has certainly changed nothing (SAM-5 5.3.1; sense keys of SPC-4 4.5.6).
pub fn changed_nothing(command: &Command, status: u8, sense: &[u8]) -> bool {
    match status {
        // BUSY, RESERVATION CONFLICT, TASK SET FULL, ACA ACTIVE: never begun; of what an array does in steps they may be a step's.
        0x08 | 0x18 | 0x28 | 0x30 => !matches!(command, Command::WriteUsingToken { .. }),
        // An earlier command's end: this one was not executed. But nothing is certain of an array that has such errors.
        0x02 if is_deferred(sense) => false,
        0x02 => {
            let one_step = !matches!(
                command,
                Command::FormatUnit(_)
                    | Command::Sanitize(_)
                    | Command::Unmap { .. }
                    | Command::WriteSame(_)
                    | Command::WriteUsingToken { .. }
            );
            match sense_code(sense) {
                // INVALID COMMAND OPERATION CODE: the array does not know it.
                Some((0x05, 0x20, 0x00)) => true,
                // ILLEGAL REQUEST: found before the first block of what is one transfer. NOT READY may come in the midst of it.
                Some((0x05, _, _)) => one_step,
                // UNIT ATTENTION: told instead of running the command.
                Some((0x06, _, _)) => true,
                // DATA PROTECT: write-protected. Want of space may come half way.
                Some((0x07, 0x27, 0x00..=0x06)) => true,
                // MISCOMPARE of a COMPARE AND WRITE.
                Some((0x0e, _, _)) => matches!(command, Command::CompareAndWrite(_)),
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(bytes: &[u8]) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    #[test]
    fn every_operation_code_passes_is_recorded_or_is_refused() {
        let mut refused = 0;
        for code in 0..=255u8 {
            match plan(&cdb(&[code]), Offloads::ALL) {
                Ok(Plan::Change(command)) => assert!(command.changes_blocks(), "{code:#x}"),
                Ok(_) => assert!(!changes(code), "{code:#x}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 180);
        // Vendor's, WRITE BUFFER, WRITE LONG, variable length, SCRAMBLE-like ones of tomorrow.
        for code in [0xc1, 0x3b, 0x3f, 0x7f, 0x9f, 0x1d, 0x9d] {
            assert_eq!(plan(&cdb(&[code]), Offloads::ALL), Err(Sense::INVALID_OPCODE), "{code:#x}");
        }
    }

    #[test]
    fn policy_refuses_as_a_device_without_the_offload_would() {
        for (code, offload) in [(0x89, Offload::Ats), (0x93, Offload::WriteSame), (0x42, Offload::Unmap)] {
            assert!(plan(&cdb(&[code]), Offloads::ALL).is_ok());
            let without = Offloads::ALL.with(offload, false);
            assert_eq!(plan(&cdb(&[code]), without), Err(Sense::INVALID_OPCODE));
            assert!(!offered(code, None, without) && offered(code, None, Offloads::ALL));
        }
        let without = Offloads::ALL.with(Offload::Unmap, false);
        assert_eq!(plan(&cdb(&[0x93, 0x08]), without), Err(Sense::in_cdb(1, Some(3))));
    }

    #[test]
    fn mode_pages_may_be_set_and_the_blocks_may_not() {
        let select = |code, list: &[u8]| changes_block_size(&cdb(&[code, 0x10]), list, 1000);
        let caching = [0x08, 0x12, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(!select(0x15, &[&[0, 0, 0, 0][..], &caching].concat()));
        assert!(!select(0x15, &[0, 0, 0, 8, 0, 0, 3, 0xe8, 0, 0, 2, 0]));
        assert!(!select(0x15, &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0]));
        assert!(select(0x15, &[0, 0, 0, 8, 0, 0, 3, 0xe8, 0, 0, 0x10, 0]));
        assert!(select(0x15, &[0, 0, 0, 8, 0, 0, 3, 0xe7, 0, 0, 2, 0]));
        assert!(select(0x15, &[0, 0, 0, 8, 0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]));
        assert!(select(0x15, &[0, 0, 0, 8, 0, 0]), "a list cut short");
        let long = |blocks: u64, bytes: u32| {
            [&[0, 0, 0, 0, 1, 0, 0, 16][..], &blocks.to_be_bytes(), &[0; 4], &bytes.to_be_bytes()].concat()
        };
        assert!(
            !select(0x55, &long(1000, 512)) && select(0x55, &long(1000, 4096)) && select(0x55, &long(9, 512))
        );
        assert!(!changes_block_size(&cdb(&[0x15]), &[0, 0, 0, 8, 255, 255, 255, 255, 0, 0, 2, 0], 1 << 33));
        assert!(!select(0x2a, &[0, 0, 0, 8]));
    }

    #[test]
    fn copies_pass_by_policy_and_what_nobody_knows_of_them_does_not() {
        let of = |offloads: Offloads| {
            let mut found = Vec::new();
            for (code, action) in [0x83, 0x84].into_iter().flat_map(|code| (0..32).map(move |a| (code, a))) {
                let passes = plan(&cdb(&[code, action]), offloads).is_ok();
                assert_eq!(passes, offered(code, Some(action.into()), offloads), "{code:#x} {action:#x}");
                found.extend(passes.then_some((code, action)));
            }
            found
        };
        let xcopy =
            [(0x83, 0), (0x83, 1), (0x83, 0x1c), (0x84, 0), (0x84, 1), (0x84, 3), (0x84, 4), (0x84, 5)];
        let odx = [(0x83, 0x10), (0x83, 0x11), (0x83, 0x1c), (0x84, 5), (0x84, 7)];
        assert_eq!(of(Offloads::ALL.with(Offload::Xcopy, false)), odx);
        assert_eq!(of(Offloads::ALL.with(Offload::Odx, false))[..8], xcopy);
        assert!(of(Offloads::ALL.with(Offload::Odx, false).with(Offload::Xcopy, false)).is_empty());
        assert!(matches!(plan(&cdb(&[0x83]), Offloads::ALL), Ok(Plan::Copy(_))));
        assert!(matches!(plan(&cdb(&[0x83, 0x11]), Offloads::ALL), Ok(Plan::Change(_))));
        let long = cdb(&[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(plan(&long, Offloads::ALL), Err(Sense::PARAMETER_LIST_LENGTH));
    }

    #[test]
    fn only_what_is_certain_counts_as_nothing_changed() {
        let write = Command::parse(&cdb(&[0x2a])).unwrap();
        let compare = Command::parse(&cdb(&[0x89])).unwrap();
        let sense = |key, asc| [0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, 0, 0, 0, 0, 0];
        assert!(changed_nothing(&write, 0x08, &[]) && changed_nothing(&write, 0x18, &[]));
        assert!(changed_nothing(&write, 0x02, &sense(6, 0x29)));
        assert!(changed_nothing(&compare, 0x02, &sense(0xe, 0x1d)));
        for key in [1, 2, 3, 4, 0xb, 0xd, 0xe] {
            assert!(!changed_nothing(&write, 0x02, &sense(key, 0)), "{key:#x}");
        }
        assert!(changed_nothing(&write, 0x02, &sense(7, 0x27)));
        assert!(!changed_nothing(
            &write,
            0x02,
            &[0x71, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0]
        ));
        assert!(!changed_nothing(&write, 0x40, &[]) && !changed_nothing(&write, 0x02, &[]));
    }
}
