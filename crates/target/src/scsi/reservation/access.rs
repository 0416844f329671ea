//! What each command needs of the reservations, and what a nexus has.

use playhead_wire::scsi::Command;

/// What a command needs (SPC-4 table 66, SBC-4 table 15). Each is more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Access {
    /// Runs whoever holds what.
    Always,
    /// Runs under persistent reservations, not under another's RESERVE.
    Status,
    /// Reads blocks, or asks about what only readers need to know.
    Read,
    /// Changes blocks, or the unit.
    Write,
}

impl Access {
    /// Total on purpose: a new command is to be given its place here before it compiles.
    pub(in super::super) fn of(command: &Command) -> Access {
        match command {
            Command::Inquiry { .. }
            | Command::ReportLuns { .. }
            | Command::RequestSense { .. }
            | Command::LogSense(_)
            | Command::ReportTargetPortGroups { .. }
            // RELEASE does nothing for those who hold nothing, and finds its other conflicts itself.
            | Command::PreventAllow { prevent: false }
            | Command::Release => Access::Always,
            // PERSISTENT RESERVE and RESERVE find their conflicts themselves.
            Command::PersistentReserveIn { .. }
            | Command::PersistentReserveOut { .. }
            | Command::Reserve
            | Command::TestUnitReady
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            // These tell a nexus of its own copies, and end them.
            | Command::ReceiveCopy { .. }
            | Command::CopyOperationAbort { .. }
            | Command::StartStopUnit { start: true, .. } => Access::Status,
            Command::Read(_)
            | Command::Verify { .. }
            | Command::PreFetch { .. }
            | Command::GetLbaStatus { .. }
            | Command::ReadDefectData { .. }
            | Command::PopulateToken { .. }
            | Command::ModeSense(_)
            | Command::ReportSupportedOpcodes { .. }
            | Command::ReportSupportedTmfs { .. } => Access::Read,
            Command::Write(_)
            | Command::OrWrite(_)
            | Command::WriteAtomic { .. }
            | Command::Sanitize(_)
            | Command::FormatUnit(_)
            | Command::WriteAndVerify { .. }
            | Command::WriteSame(_)
            | Command::Unmap { .. }
            | Command::CompareAndWrite(_)
            | Command::ExtendedCopy { .. }
            | Command::WriteUsingToken { .. }
            | Command::SynchronizeCache { .. }
            | Command::ModeSelect { .. }
            | Command::LogSelect { .. }
            | Command::SetTargetPortGroups { .. }
            | Command::StartStopUnit { start: false, .. }
            | Command::PreventAllow { prevent: true } => Access::Write,
        }
    }
}

/// What a nexus may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Rights(Access);

impl Rights {
    /// Everything.
    pub(in super::super) const ALL: Rights = Rights(Access::Write);

    pub(super) fn up_to(access: Access) -> Rights {
        Rights(access)
    }

    pub(in super::super) fn permit(self, access: Access) -> bool {
        access <= self.0
    }

    pub(in super::super) fn bits(self) -> u8 {
        self.0 as u8
    }

    pub(in super::super) fn from_bits(bits: u8) -> Rights {
        Rights(match bits {
            0 => Access::Always,
            1 => Access::Status,
            2 => Access::Read,
            _ => Access::Write,
        })
    }
}
