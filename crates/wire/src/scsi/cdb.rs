//! Command descriptor blocks, read into what they ask for (SPC-4 4.2 and 6, SBC-3 5).

use super::erase::{Format, Sanitize};
use super::log::LogSense;
use super::sense::Sense;
use super::{be16, be32, be64};

/// The blocks a command is about, and how careful to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub count: u32,
    /// Force unit access: the command ends only when the medium has the data.
    pub fua: bool,
}

/// What VERIFY compares (SBC-3 5.37, BYTCHK).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteCheck {
    /// The medium alone.
    Medium,
    /// Every block with its own data.
    Each,
    /// Every block with one block of data.
    One,
}

/// WRITE SAME (SBC-3 5.47, 5.48).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteSame {
    /// First block.
    pub lba: u64,
    /// Blocks; 0 means all to the end.
    pub count: u32,
    /// Deallocate if that reads as the data.
    pub unmap: bool,
    /// No data-out: zeros are meant.
    pub no_data: bool,
}

/// The 6- and 10-byte forms of MODE SENSE (SPC-4 6.13, 6.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeSense {
    /// The 10-byte form.
    pub long: bool,
    /// No block descriptors.
    pub without_descriptors: bool,
    /// 0 current, 1 changeable, 2 default, 3 saved.
    pub control: u8,
    /// Page, 0x3f for all.
    pub page: u8,
    /// Subpage.
    pub subpage: u8,
    /// Allocation length, in bytes.
    pub allocation_bytes: u32,
}

/// What is asked about copies (SPC-4 table 28; operation code 84h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The standard's commands.
#[repr(u8)]
pub enum CopyReport {
    Status1 = 0x00,
    Data1 = 0x01,
    OperatingParameters = 0x03,
    FailureDetails1 = 0x04,
    Status4 = 0x05,
    Data4 = 0x06,
    RodTokenInformation = 0x07,
    AllRodTokens = 0x08,
}

/// A command this device understands. Allocation and parameter list lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The variants are the standard's commands and their fields its fields.
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptor: bool,
        allocation_bytes: u32,
    },
    Inquiry {
        /// The vital product data page, or standard data.
        page: Option<u8>,
        allocation_bytes: u32,
    },
    ModeSelect {
        long: bool,
        list_bytes: u32,
    },
    ModeSense(ModeSense),
    LogSelect {
        /// PCR: counters start anew.
        reset: bool,
        list_bytes: u32,
    },
    LogSense(LogSense),
    Reserve,
    Release,
    StartStopUnit {
        start: bool,
        load_eject: bool,
        immediate: bool,
        /// Caches need not be written out.
        without_flush: bool,
    },
    PreventAllow {
        prevent: bool,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation_bytes: u32,
    },
    Read(Blocks),
    Write(Blocks),
    WriteAndVerify {
        blocks: Blocks,
        compare: bool,
    },
    Verify {
        blocks: Blocks,
        check: ByteCheck,
    },
    OrWrite(Blocks),
    WriteAtomic {
        blocks: Blocks,
        /// Blocks that stay together, of any size of their own choosing when 0.
        boundary: u16,
    },
    PreFetch {
        lba: u64,
        /// Blocks; 0 means all to the end.
        count: u32,
        immediate: bool,
    },
    SynchronizeCache {
        lba: u64,
        count: u32,
        immediate: bool,
    },
    WriteSame(WriteSame),
    Unmap {
        list_bytes: u32,
    },
    CompareAndWrite(Blocks),
    Sanitize(Sanitize),
    FormatUnit(Format),
    ReadDefectData {
        /// The 12-byte form.
        long: bool,
        /// REQ_PLIST, REQ_GLIST and the list's format, as they stand in the CDB.
        lists_and_format: u8,
        allocation_bytes: u32,
    },
    GetLbaStatus {
        lba: u64,
        allocation_bytes: u32,
    },
    ReportLuns {
        select: u8,
        allocation_bytes: u32,
    },
    ReportSupportedOpcodes {
        /// RCTD.
        timeouts: bool,
        /// Reporting options.
        options: u8,
        opcode: u8,
        service_action: u16,
        allocation_bytes: u32,
    },
    ReportSupportedTmfs {
        /// REPD: the 16-byte form.
        extended: bool,
        allocation_bytes: u32,
    },
    ReportTargetPortGroups {
        /// With the extended header.
        extended: bool,
        allocation_bytes: u32,
    },
    SetTargetPortGroups {
        list_bytes: u32,
    },
    /// EXTENDED COPY, with an identifier of one byte (LID1) or four (LID4).
    ExtendedCopy {
        long_id: bool,
        list_bytes: u32,
    },
    PopulateToken {
        list_id: u32,
        list_bytes: u32,
    },
    WriteUsingToken {
        list_id: u32,
        list_bytes: u32,
    },
    CopyOperationAbort {
        list_id: u32,
    },
    ReceiveCopy {
        what: CopyReport,
        list_id: u32,
        allocation_bytes: u32,
    },
    PersistentReserveIn {
        service_action: u8,
        allocation_bytes: u32,
    },
    PersistentReserveOut {
        service_action: u8,
        scope: u8,
        kind: u8,
        list_bytes: u32,
    },
}

impl Command {
    /// Reads a CDB, padded with zeros to 16 bytes as iSCSI carries it. Errors are what to answer with.
    pub fn parse(cdb: &[u8; 16]) -> Result<Command, Sense> {
        let long = |byte: u16, bit: u8| Sense::in_cdb(byte, Some(bit));
        let control = match cdb[0] >> 5 {
            0 => 5,
            1 | 2 => 9,
            4 => 15,
            5 => 11,
            _ => return Err(Sense::INVALID_OPCODE),
        };
        let command = match cdb[0] {
            0x00 => Command::TestUnitReady,
            0x03 => {
                Command::RequestSense { descriptor: cdb[1] & 1 != 0, allocation_bytes: u32::from(cdb[4]) }
            }
            0x04 => Command::FormatUnit(Format::parse(cdb)?),
            0x08 | 0x0a => {
                let blocks = Blocks {
                    lba: u64::from(be32(cdb, 0) & 0x1f_ffff),
                    count: if cdb[4] == 0 { 256 } else { u32::from(cdb[4]) },
                    fua: false,
                };
                if cdb[0] == 0x08 {
                    Command::Read(blocks)
                } else {
                    Command::Write(blocks)
                }
            }
            0x12 => {
                let vital = cdb[1] & 1 != 0;
                if cdb[1] & 2 != 0 {
                    return Err(long(1, 1)); // CMDDT, obsolete
                }
                if !vital && cdb[2] != 0 {
                    return Err(long(2, 7));
                }
                Command::Inquiry { page: vital.then_some(cdb[2]), allocation_bytes: u32::from(be16(cdb, 3)) }
            }
            0x15 | 0x55 => {
                if cdb[1] & 1 != 0 {
                    return Err(long(1, 0)); // SP: nothing is saved
                }
                if cdb[1] & 0x10 == 0 {
                    return Err(long(1, 4)); // PF: only standard pages
                }
                Command::ModeSelect {
                    long: cdb[0] == 0x55,
                    list_bytes: if cdb[0] == 0x55 { u32::from(be16(cdb, 7)) } else { u32::from(cdb[4]) },
                }
            }
            0x1a | 0x5a => Command::ModeSense(ModeSense {
                long: cdb[0] == 0x5a,
                without_descriptors: cdb[1] & 0x08 != 0,
                control: cdb[2] >> 6,
                page: cdb[2] & 0x3f,
                subpage: cdb[3],
                allocation_bytes: if cdb[0] == 0x5a { u32::from(be16(cdb, 7)) } else { u32::from(cdb[4]) },
            }),
            0x4c => {
                if cdb[1] & 1 != 0 {
                    return Err(long(1, 0)); // SP: nothing is saved
                }
                let (reset, list_bytes) = (cdb[1] & 2 != 0, u32::from(be16(cdb, 7)));
                if reset && list_bytes != 0 {
                    return Err(long(1, 1));
                }
                if list_bytes == 0 && (cdb[2] & 0x3f != 0 || cdb[3] != 0) {
                    return Err(long(2, 5)); // all pages, or none
                }
                Command::LogSelect { reset, list_bytes }
            }
            0x4d => {
                if cdb[1] & 3 != 0 {
                    return Err(long(1, 1)); // SP: nothing is saved; PPC: obsolete
                }
                Command::LogSense(LogSense {
                    control: cdb[2] >> 6,
                    page: cdb[2] & 0x3f,
                    subpage: cdb[3],
                    pointer: be16(cdb, 5),
                    allocation_bytes: u32::from(be16(cdb, 7)),
                })
            }
            0x16 | 0x17 => {
                if cdb[1] & 0x11 != 0 {
                    return Err(long(1, 4)); // third party, extents: obsolete
                }
                if cdb[0] == 0x16 {
                    Command::Reserve
                } else {
                    Command::Release
                }
            }
            0x56 | 0x57 => {
                if cdb[1] & 0x13 != 0 {
                    return Err(long(1, 4)); // third party, long id, extents: obsolete
                }
                if be16(cdb, 7) != 0 {
                    return Err(long(7, 7)); // only a long id has a parameter list
                }
                if cdb[0] == 0x56 {
                    Command::Reserve
                } else {
                    Command::Release
                }
            }
            0x1b => {
                if cdb[4] >> 4 != 0 {
                    return Err(long(4, 7)); // no power conditions
                }
                Command::StartStopUnit {
                    start: cdb[4] & 1 != 0,
                    load_eject: cdb[4] & 2 != 0,
                    immediate: cdb[1] & 1 != 0,
                    without_flush: cdb[4] & 4 != 0,
                }
            }
            0x1e => {
                if cdb[4] & 2 != 0 {
                    return Err(long(4, 1)); // obsolete values
                }
                Command::PreventAllow { prevent: cdb[4] & 1 != 0 }
            }
            0x25 => {
                if cdb[8] & 1 != 0 {
                    return Err(long(8, 0)); // PMI, obsolete
                }
                if be32(cdb, 2) != 0 {
                    return Err(long(2, 7));
                }
                Command::ReadCapacity10
            }
            0x28 | 0xa8 | 0x88 => Command::Read(protected_blocks(cdb)?),
            0x2a | 0xaa | 0x8a => Command::Write(protected_blocks(cdb)?),
            0x2e | 0xae | 0x8e => {
                let mut blocks = protected_blocks(cdb)?;
                blocks.fua = true; // it is verified on the medium
                match cdb[1] >> 1 & 3 {
                    0 => Command::WriteAndVerify { blocks, compare: false },
                    1 => Command::WriteAndVerify { blocks, compare: true },
                    _ => return Err(long(1, 2)),
                }
            }
            0x2f | 0xaf | 0x8f => {
                let mut blocks = protected_blocks(cdb)?;
                blocks.fua = false;
                let check = match cdb[1] >> 1 & 3 {
                    0 => ByteCheck::Medium,
                    1 => ByteCheck::Each,
                    3 => ByteCheck::One,
                    _ => return Err(long(1, 2)),
                };
                Command::Verify { blocks, check }
            }
            0x34 | 0x90 => {
                let (lba, count) = extent(cdb);
                Command::PreFetch { lba, count, immediate: cdb[1] & 2 != 0 }
            }
            0x35 | 0x91 => {
                let (lba, count) = extent(cdb);
                Command::SynchronizeCache { lba, count, immediate: cdb[1] & 2 != 0 }
            }
            0x41 | 0x93 => {
                if cdb[1] >> 5 != 0 {
                    return Err(long(1, 7)); // no protection information
                }
                if cdb[1] & 0x10 != 0 {
                    return Err(long(1, 4)); // ANCHOR: no block is (ANC_SUP)
                }
                if cdb[1] & 0x06 != 0 {
                    return Err(long(1, 2)); // PBDATA, LBDATA: obsolete
                }
                let no_data = cdb[1] & 1 != 0;
                if no_data && cdb[0] == 0x41 {
                    return Err(long(1, 0)); // NDOB is the 16-byte form's
                }
                let (lba, count) = extent(cdb);
                Command::WriteSame(WriteSame { lba, count, unmap: cdb[1] & 0x08 != 0, no_data })
            }
            0x37 => Command::ReadDefectData {
                long: false,
                lists_and_format: cdb[2] & 0x1f,
                allocation_bytes: u32::from(be16(cdb, 7)),
            },
            0xb7 => Command::ReadDefectData {
                long: true,
                lists_and_format: cdb[1] & 0x1f,
                allocation_bytes: be32(cdb, 6),
            },
            0x48 => Command::Sanitize(Sanitize::parse(cdb)?),
            0x42 => {
                if cdb[1] & 1 != 0 {
                    return Err(long(1, 0)); // ANCHOR
                }
                Command::Unmap { list_bytes: u32::from(be16(cdb, 7)) }
            }
            0x83 => {
                let list_bytes = be32(cdb, 10);
                match cdb[1] & 0x1f {
                    0x00 => Command::ExtendedCopy { long_id: false, list_bytes },
                    0x01 => Command::ExtendedCopy { long_id: true, list_bytes },
                    0x10 => Command::PopulateToken { list_id: be32(cdb, 6), list_bytes },
                    0x11 => Command::WriteUsingToken { list_id: be32(cdb, 6), list_bytes },
                    0x1c => Command::CopyOperationAbort { list_id: be32(cdb, 2) },
                    _ => return Err(long(1, 4)),
                }
            }
            0x84 => {
                let what = match cdb[1] & 0x1f {
                    0x00 => CopyReport::Status1,
                    0x01 => CopyReport::Data1,
                    0x03 => CopyReport::OperatingParameters,
                    0x04 => CopyReport::FailureDetails1,
                    0x05 => CopyReport::Status4,
                    0x06 => CopyReport::Data4,
                    0x07 => CopyReport::RodTokenInformation,
                    0x08 => CopyReport::AllRodTokens,
                    _ => return Err(long(1, 4)),
                };
                let list_id = match what {
                    CopyReport::Status1 | CopyReport::Data1 | CopyReport::FailureDetails1 => cdb[2].into(),
                    CopyReport::Status4 | CopyReport::Data4 | CopyReport::RodTokenInformation => be32(cdb, 2),
                    CopyReport::OperatingParameters | CopyReport::AllRodTokens => 0,
                };
                Command::ReceiveCopy { what, list_id, allocation_bytes: be32(cdb, 10) }
            }
            0x89 => {
                if cdb[1] >> 5 != 0 {
                    return Err(long(1, 7));
                }
                Command::CompareAndWrite(Blocks {
                    lba: be64(cdb, 2),
                    count: u32::from(cdb[13]),
                    fua: cdb[1] & 0x08 != 0,
                })
            }
            0x8b => Command::OrWrite(protected_blocks(cdb)?),
            0x9c => {
                let fua = protected_blocks(cdb)?.fua;
                let blocks = Blocks { lba: be64(cdb, 2), count: u32::from(be16(cdb, 12)), fua };
                Command::WriteAtomic { blocks, boundary: be16(cdb, 10) }
            }
            0x9e => match cdb[1] & 0x1f {
                0x10 => Command::ReadCapacity16 { allocation_bytes: be32(cdb, 10) },
                0x12 => Command::GetLbaStatus { lba: be64(cdb, 2), allocation_bytes: be32(cdb, 10) },
                _ => return Err(long(1, 4)),
            },
            0xa0 => Command::ReportLuns { select: cdb[2], allocation_bytes: be32(cdb, 6) },
            0xa3 => match cdb[1] & 0x1f {
                0x0a => match cdb[1] >> 5 {
                    format @ (0 | 1) => Command::ReportTargetPortGroups {
                        extended: format == 1,
                        allocation_bytes: be32(cdb, 6),
                    },
                    _ => return Err(long(1, 7)),
                },
                0x0c => Command::ReportSupportedOpcodes {
                    timeouts: cdb[2] & 0x80 != 0,
                    options: cdb[2] & 7,
                    opcode: cdb[3],
                    service_action: be16(cdb, 4),
                    allocation_bytes: be32(cdb, 6),
                },
                0x0d => Command::ReportSupportedTmfs {
                    extended: cdb[2] & 0x80 != 0,
                    allocation_bytes: be32(cdb, 6),
                },
                _ => return Err(long(1, 4)),
            },
            0xa4 => match cdb[1] & 0x1f {
                0x0a => Command::SetTargetPortGroups { list_bytes: be32(cdb, 6) },
                _ => return Err(long(1, 4)),
            },
            0x5e => Command::PersistentReserveIn {
                service_action: cdb[1] & 0x1f,
                allocation_bytes: u32::from(be16(cdb, 7)),
            },
            0x5f => Command::PersistentReserveOut {
                service_action: cdb[1] & 0x1f,
                scope: cdb[2] >> 4,
                kind: cdb[2] & 0x0f,
                list_bytes: be32(cdb, 5),
            },
            _ => return Err(Sense::INVALID_OPCODE),
        };
        if cdb[control] & 0x04 != 0 {
            return Err(long(control as u16, 2)); // NACA: no auto contingent allegiance here
        }
        Ok(command)
    }

    /// Bytes the command takes from the initiator, for blocks of `block_bytes`.
    pub fn data_out_bytes(&self, block_bytes: u64) -> u64 {
        match *self {
            Command::Write(b)
            | Command::OrWrite(b)
            | Command::WriteAtomic { blocks: b, .. }
            | Command::WriteAndVerify { blocks: b, .. } => u64::from(b.count) * block_bytes,
            Command::Verify { blocks, check } => match check {
                ByteCheck::Medium => 0,
                ByteCheck::Each => u64::from(blocks.count) * block_bytes,
                ByteCheck::One => u64::from(blocks.count.min(1)) * block_bytes,
            },
            Command::CompareAndWrite(b) => 2 * u64::from(b.count) * block_bytes,
            Command::WriteSame(w) if !w.no_data => block_bytes,
            _ => self.list_bytes().map_or(0, u64::from),
        }
    }

    /// The length of its parameter list, in bytes, for a command that takes one. A list of which less is announced ends early.
    pub fn list_bytes(&self) -> Option<u32> {
        match *self {
            Command::ModeSelect { list_bytes, .. }
            | Command::Unmap { list_bytes }
            | Command::FormatUnit(Format { list_bytes })
            | Command::LogSelect { list_bytes, .. }
            | Command::SetTargetPortGroups { list_bytes }
            | Command::ExtendedCopy { list_bytes, .. }
            | Command::PopulateToken { list_bytes, .. }
            | Command::WriteUsingToken { list_bytes, .. }
            | Command::PersistentReserveOut { list_bytes, .. } => Some(list_bytes),
            Command::Sanitize(request) => Some(request.list_bytes()),
            _ => None,
        }
    }

    /// The most data-in the initiator takes, in bytes; `None` for commands whose data-in has a length of its own.
    pub fn allocation_bytes(&self) -> Option<u32> {
        match *self {
            Command::RequestSense { allocation_bytes, .. }
            | Command::Inquiry { allocation_bytes, .. }
            | Command::ModeSense(ModeSense { allocation_bytes, .. })
            | Command::ReadCapacity16 { allocation_bytes }
            | Command::GetLbaStatus { allocation_bytes, .. }
            | Command::ReadDefectData { allocation_bytes, .. }
            | Command::ReportLuns { allocation_bytes, .. }
            | Command::ReceiveCopy { allocation_bytes, .. }
            | Command::ReportSupportedOpcodes { allocation_bytes, .. }
            | Command::ReportSupportedTmfs { allocation_bytes, .. }
            | Command::ReportTargetPortGroups { allocation_bytes, .. }
            | Command::LogSense(LogSense { allocation_bytes, .. })
            | Command::PersistentReserveIn { allocation_bytes, .. } => Some(allocation_bytes),
            _ => None,
        }
    }

    /// Whether the initiator must announce exactly [`Command::data_out_bytes`]: where less or more data would mean
    /// another operation, not a shorter one.
    pub fn needs_exact_data(&self) -> bool {
        matches!(
            self,
            Command::CompareAndWrite(_)
                | Command::OrWrite(_)
                | Command::WriteAtomic { .. }
                | Command::WriteSame(WriteSame { no_data: false, .. })
        )
    }

    /// Whether the command changes blocks of its unit. An EXTENDED COPY may change other units' alone.
    pub fn changes_blocks(&self) -> bool {
        matches!(
            self,
            Command::Write(_)
                | Command::WriteAndVerify { .. }
                | Command::OrWrite(_)
                | Command::WriteAtomic { .. }
                | Command::Sanitize(_)
                | Command::FormatUnit(_)
                | Command::WriteSame(_)
                | Command::Unmap { .. }
                | Command::WriteUsingToken { .. }
                | Command::CompareAndWrite(_)
        )
    }
}

/// LBA and count of the 10-, 12- and 16-byte forms (SPC-4 4.2.5).
fn extent(cdb: &[u8; 16]) -> (u64, u32) {
    match cdb[0] >> 5 {
        1 | 2 => (u64::from(be32(cdb, 2)), u32::from(be16(cdb, 7))),
        5 => (u64::from(be32(cdb, 2)), be32(cdb, 6)),
        _ => (be64(cdb, 2), be32(cdb, 10)),
    }
}

/// As [`extent`], with FUA, for commands whose byte 1 has a protection field; this device has no protection information.
fn protected_blocks(cdb: &[u8; 16]) -> Result<Blocks, Sense> {
    if cdb[1] >> 5 != 0 {
        return Err(Sense::in_cdb(1, Some(7)));
    }
    let (lba, count) = extent(cdb);
    Ok(Blocks { lba, count, fua: cdb[1] & 0x08 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cdb_is_a_command_or_a_sense(bytes in proptest::array::uniform16(any::<u8>())) {
            if let Ok(command) = Command::parse(&bytes) {
                prop_assert!(command.data_out_bytes(512) <= 512 * u64::from(u32::MAX));
            }
        }
    }

    #[test]
    fn the_four_forms_of_read_mean_the_same() {
        let six = [0x08, 0x1f, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let twelve = [0xa8, 0x08, 0, 0x1f, 1, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0];
        let blocks = |fua| Blocks { lba: 0x1f_0102, count: 3, fua };
        assert_eq!(Command::parse(&six), Ok(Command::Read(blocks(false))));
        assert_eq!(Command::parse(&twelve), Ok(Command::Read(blocks(true))));
    }

    #[test]
    fn six_byte_counts_of_zero_are_256() {
        let mut cdb = [0u8; 16];
        cdb[0] = 0x0a;
        assert!(matches!(Command::parse(&cdb), Ok(Command::Write(b)) if b.count == 256));
    }

    #[test]
    fn anchor_naca_and_protection_are_refused() {
        for (opcode, byte, value) in [(0x93, 1, 0x10), (0x42, 1, 1), (0x28, 1, 0x20), (0x28, 9, 4)] {
            let mut cdb = [0u8; 16];
            cdb[0] = opcode;
            cdb[byte] = value;
            assert_eq!(Command::parse(&cdb).map_err(|s| s.code), Err(0x2400), "{opcode:#x}");
        }
    }
}
