//! What a change that the array executed is to the journal.
//!
//! What is in the command is recorded from the command: plain writes, the second half of a COMPARE AND WRITE, one block repeated. What
//! is not in it is read back from the array: ORWRITE, of which only the operand is known; FORMAT and SANITIZE; a write that announced
//! less than its CDB says; WRITE USING TOKEN (its data is the array's, and GOOD may come for less than was asked for: the count is told by
//! RECEIVE ROD TOKEN INFORMATION alone, SBC-4 5.59); and UNMAP, because it is a hint: a target that leaves a block mapped leaves its old data there, and is right
//! (SBC-4 4.7.3.3), whatever LBPRZ says of unmapped blocks.

use crate::lun::{Change, BLOCK_BYTES};
use crate::scsi::TOKEN_LIMITS;
use playhead_wire::scsi::cdb::Blocks;
use playhead_wire::scsi::{rod_token, unmap, Command, Sense};

/// Most ranges of one UNMAP.
const UNMAP_DESCRIPTORS_MAX: usize = 4096;

/// Blocks: first and how many.
pub type Range = (u64, u64);

/// The blocks that `command` may change.
///
/// Errors: blocks beyond `block_count`, or a list that is none; to be answered with.
pub fn extents(command: &Command, data_out: &[u8], block_count: u64) -> Result<Vec<Range>, Sense> {
    let one = |lba: u64, count: u64| {
        if lba > block_count || count > block_count - lba {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        Ok(if count == 0 { Vec::new() } else { vec![(lba, count)] })
    };
    match *command {
        Command::Write(b)
        | Command::WriteAndVerify { blocks: b, .. }
        | Command::OrWrite(b)
        | Command::WriteAtomic { blocks: b, .. }
        | Command::CompareAndWrite(b) => one(b.lba, u64::from(b.count)),
        Command::WriteSame(request) => {
            let to_end = block_count.saturating_sub(request.lba);
            one(request.lba, if request.count == 0 { to_end } else { u64::from(request.count) })
        }
        Command::Unmap { .. } => {
            let mut ranges = Vec::new();
            for (lba, count) in unmap::parse(data_out, UNMAP_DESCRIPTORS_MAX)? {
                ranges.extend(one(lba, u64::from(count))?);
            }
            ranges.sort_unstable();
            Ok(ranges)
        }
        Command::WriteUsingToken { list_bytes, .. } => {
            let list = data_out.get(..list_bytes as usize).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            let mut ranges = Vec::new();
            for (lba, count) in
                rod_token::parse_write_using(list, &TOKEN_LIMITS)?.map_or(Vec::new(), |w| w.ranges)
            {
                ranges.extend(one(lba, u64::from(count))?);
            }
            ranges.sort_unstable();
            Ok(ranges)
        }
        // FORMAT UNIT and SANITIZE, and whatever else is let pass one day.
        _ => one(0, block_count),
    }
}

/// What to record of `command`, which ended in GOOD. `None`: read it back. `thin_reads_zeros`: unmapped blocks read as zeros for certain
/// (LBPRZ).
pub fn changes<'a>(
    command: &Command,
    data_out: &'a [u8],
    block_count: u64,
    thin_reads_zeros: bool,
) -> Option<Vec<Change<'a>>> {
    let bytes_of = |b: &Blocks| b.count as usize * BLOCK_BYTES;
    match command {
        Command::Write(b)
        | Command::WriteAndVerify { blocks: b, .. }
        | Command::WriteAtomic { blocks: b, .. } => {
            if data_out.len() != bytes_of(b) {
                return None;
            }
            Some(if data_out.is_empty() {
                Vec::new()
            } else {
                vec![Change::Write { lba: b.lba, data: data_out }]
            })
        }
        Command::CompareAndWrite(b) => {
            if data_out.len() != 2 * bytes_of(b) {
                return None;
            }
            let data = &data_out[bytes_of(b)..];
            Some(if data.is_empty() { Vec::new() } else { vec![Change::Write { lba: b.lba, data }] })
        }
        Command::WriteSame(request) => {
            let zeros = request.no_data || data_out.iter().all(|&byte| byte == 0);
            if request.unmap && !(zeros && thin_reads_zeros)
                || !request.no_data && data_out.len() != BLOCK_BYTES
            {
                return None;
            }
            let lba = request.lba;
            let to_end = block_count.saturating_sub(lba);
            let count = if request.count == 0 { to_end } else { u64::from(request.count) };
            if count == 0 {
                return Some(Vec::new());
            }
            Some(vec![match (zeros, request.unmap) {
                (true, true) => Change::Unmap { lba, count },
                (true, false) => Change::Zero { lba, count },
                (false, _) => Change::WriteSame { lba, count, block: data_out },
            }])
        }
        _ => None,
    }
}

/// Whether GOOD promises that the change survives a loss of power.
pub fn is_durable(command: &Command) -> bool {
    match command {
        Command::Write(b)
        | Command::OrWrite(b)
        | Command::CompareAndWrite(b)
        | Command::WriteAtomic { blocks: b, .. } => b.fua,
        Command::WriteAndVerify { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(bytes: &[u8]) -> Command {
        let mut cdb = [0; 16];
        cdb[..bytes.len()].copy_from_slice(bytes);
        Command::parse(&cdb).unwrap()
    }

    #[test]
    fn what_the_command_holds_is_recorded_and_the_rest_is_read_back() {
        let write = command(&[0x2a, 0, 0, 0, 0, 8, 0, 0, 2, 0]);
        assert_eq!(extents(&write, &[], 100), Ok(vec![(8, 2)]));
        assert_eq!(extents(&write, &[], 9), Err(Sense::LBA_OUT_OF_RANGE));
        assert!(changes(&write, &[1; 512], 100, true).is_none());
        assert_eq!(changes(&write, &[1; 1024], 100, true).unwrap().len(), 1);
        let compare = command(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1]);
        let data = [[1; 512], [2; 512]].concat();
        assert!(
            matches!(changes(&compare, &data, 100, true).unwrap()[..], [Change::Write { lba: 4, data }] if data == [2; 512])
        );
        assert!(changes(&command(&[0x8b]), &[], 100, true).is_none());
        let unmap = command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24]);
        let list =
            [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 0]].concat();
        assert_eq!(extents(&unmap, &list, 100), Ok(vec![(5, 3)]));
        assert!(changes(&unmap, &list, 100, true).is_none());
    }

    #[test]
    fn one_block_repeated_is_one_record_and_unmapping_counts_only_where_it_reads_zeros() {
        let same = |flags: u8| command(&[0x93, flags, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2]);
        let change = |flags: u8, fill: u8, lbprz: bool| {
            changes(&same(flags), &[fill; 512], 100, lbprz).map(|c| {
                c.iter().map(|c| format!("{c:?}").chars().take(6).collect::<String>()).collect::<String>()
            })
        };
        assert_eq!(change(0, 7, false).as_deref(), Some("WriteS"));
        assert_eq!(change(0, 0, false).as_deref(), Some("Zero {"));
        assert_eq!(change(8, 0, true).as_deref(), Some("Unmap "));
        assert_eq!(change(8, 0, false), None);
        assert_eq!(change(8, 7, true), None);
        let to_end = command(&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(extents(&to_end, &[0; 512], 100), Ok(vec![(4, 96)]));
    }
}
