//! A LUN of the array behind the splitter in the fabric: every change goes on to it as the command it is, in a session of the splitter's.

use std::any::Any;
use std::time::Duration;

use parking_lot::Mutex;
use playhead_initiator::{Answer, Blocking, Remote, Task};
use playhead_wire::iscsi::lun_bytes;

use super::beyond::{ArrayBeyond, IQN};
use super::medium::Medium;
use crate::lun::{Change, Compared, LunError, BLOCK_BYTES};
use crate::splitter::Production;

const INITIATOR: &str = "iqn.2026-11.io.playhead.lab:fabric";
const LIMIT: Duration = Duration::from_secs(60);
/// Unit attentions in a row.
const ATTENTIONS_MAX: usize = 8;
/// Bytes of a plain read or write.
const STEP_BYTES: usize = 1 << 20;
/// Blocks of one WRITE SAME, UNMAP or EXTENDED COPY segment.
const OFFLOAD_BLOCKS_MAX: u64 = 0x8000;
const GOOD: u8 = 0x00;
const UNIT_ATTENTION: u8 = 0x06;
const MISCOMPARE: u8 = 0x0e;

/// One LUN, in a session of its own.
pub(super) struct RemoteMedium {
    session: Mutex<Blocking>,
    number: u16,
    naa: [u8; 16],
    name: String,
    block_count: u64,
}

/// A CDB of 16 bytes: operation code, LBA in bytes 2 to 9, count in 10 to 13.
fn cdb_16(opcode: u8, lba: u64, count: u64) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&(count as u32).to_be_bytes());
    cdb
}

/// Stretches of at most [`OFFLOAD_BLOCKS_MAX`].
fn pieces(lba: u64, count: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..count.div_ceil(OFFLOAD_BLOCKS_MAX)).map(move |n| {
        let done = n * OFFLOAD_BLOCKS_MAX;
        (lba + done, OFFLOAD_BLOCKS_MAX.min(count - done))
    })
}

impl RemoteMedium {
    /// LUN `number` of `array`. Logs in when it is first used.
    pub(super) fn new(array: &ArrayBeyond, number: u16, name: &str, block_count: u64) -> RemoteMedium {
        let [high, low] = number.to_be_bytes();
        let remote = Remote::new(INITIATOR, [0x80, 0, 0, 0, high, low], Some(IQN), vec![array.address()]);
        let session = Mutex::new(Blocking::new(remote));
        RemoteMedium { session, number, naa: array.naa(number), name: name.to_owned(), block_count }
    }

    fn fault(&self, detail: String) -> LunError {
        LunError::Io { name: self.name.clone(), detail }
    }

    /// Runs a command past unit attentions.
    fn run(&self, cdb: [u8; 16], data_out: &[u8], read_bytes: u32) -> Result<Answer, LunError> {
        for _ in 0..ATTENTIONS_MAX {
            let task = Task {
                lun: lun_bytes(self.number),
                cdb,
                attribute: 1,
                read_bytes,
                write_bytes: data_out.len() as u32,
                data_out: data_out.to_vec(),
                ..Task::default()
            };
            let answer = self.session.lock().run(task, LIMIT).map_err(|e| self.fault(e.to_string()))?;
            if answer.sense_code().is_none_or(|(key, _, _)| key != UNIT_ATTENTION) {
                return Ok(answer);
            }
        }
        Err(self.fault("the array raises unit attentions without end".to_owned()))
    }

    /// Runs a command that has to end in GOOD.
    fn must(&self, cdb: [u8; 16], data_out: &[u8], read_bytes: u32) -> Result<Vec<u8>, LunError> {
        let answer = self.run(cdb, data_out, read_bytes)?;
        if answer.status == GOOD {
            return Ok(answer.data);
        }
        let (status, sense) = (answer.status, answer.sense_code());
        Err(self.fault(format!("command {:#04x}: status {status:#04x}, sense {sense:02x?}", cdb[0])))
    }

    fn write(&self, lba: u64, data: &[u8]) -> Result<(), LunError> {
        let mut at = lba;
        for part in data.chunks(STEP_BYTES) {
            let count = (part.len() / BLOCK_BYTES) as u64;
            self.must(cdb_16(0x8a, at, count), part, 0)?;
            at += count;
        }
        Ok(())
    }

    fn write_same(&self, lba: u64, count: u64, block: &[u8]) -> Result<(), LunError> {
        pieces(lba, count).try_for_each(|(lba, n)| self.must(cdb_16(0x93, lba, n), block, 0).map(|_| ()))
    }

    /// UNMAP with one descriptor (SBC-4 5.35).
    fn unmap(&self, lba: u64, count: u64) -> Result<(), LunError> {
        pieces(lba, count).try_for_each(|(lba, n)| {
            let mut list = [0; 24];
            list[1] = 22;
            list[3] = 16;
            list[8..16].copy_from_slice(&lba.to_be_bytes());
            list[16..20].copy_from_slice(&(n as u32).to_be_bytes());
            let mut cdb = [0; 16];
            (cdb[0], cdb[8]) = (0x42, 24);
            self.must(cdb, &list, 0).map(|_| ())
        })
    }

    /// EXTENDED COPY(LID1) of one segment, block to block (SPC-4 6.4).
    fn extended_copy(
        &self,
        source: &[u8; 16],
        source_lba: u64,
        lba: u64,
        count: u64,
    ) -> Result<(), LunError> {
        let mut list = vec![0; 16];
        list[3] = 64;
        list[11] = 28;
        for naa in [source, &self.naa] {
            let mut descriptor = [0; 32];
            (descriptor[0], descriptor[4], descriptor[5], descriptor[7]) = (0xe4, 1, 3, 16);
            descriptor[8..24].copy_from_slice(naa);
            descriptor[30] = (BLOCK_BYTES >> 8) as u8;
            list.extend_from_slice(&descriptor);
        }
        let mut segment = [0; 28];
        (segment[0], segment[3], segment[7]) = (0x02, 0x18, 1);
        segment[10..12].copy_from_slice(&(count as u16).to_be_bytes());
        segment[12..20].copy_from_slice(&source_lba.to_be_bytes());
        segment[20..28].copy_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&segment);
        let mut cdb = [0; 16];
        (cdb[0], cdb[13]) = (0x83, list.len() as u8);
        self.must(cdb, &list, 0).map(|_| ())
    }
}

impl Production for RemoteMedium {
    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        let mut at = lba;
        for part in buf.chunks_mut(STEP_BYTES) {
            let count = (part.len() / BLOCK_BYTES) as u64;
            let data = self.must(cdb_16(0x88, at, count), &[], part.len() as u32)?;
            if data.len() != part.len() {
                return Err(self.fault("the array sends less than was asked for".to_owned()));
            }
            part.copy_from_slice(&data);
            at += count;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), LunError> {
        let mut cdb = [0; 16];
        cdb[0] = 0x35;
        self.must(cdb, &[], 0).map(|_| ())
    }
}

impl Medium for RemoteMedium {
    fn carry_out(&self, change: &Change<'_>) -> Result<(), LunError> {
        match *change {
            Change::Write { lba, data } => self.write(lba, data),
            Change::WriteSame { lba, count, block } => self.write_same(lba, count, block),
            Change::Zero { lba, count } => self.write_same(lba, count, &[0; BLOCK_BYTES]),
            Change::Unmap { lba, count } => self.unmap(lba, count),
        }
    }

    /// COMPARE AND WRITE (SBC-4 5.3); the array says where it differs in INFORMATION.
    fn compare_and_write(&self, lba: u64, compare: &[u8], write: &[u8]) -> Result<Compared, LunError> {
        let mut cdb = cdb_16(0x89, lba, 0);
        cdb[13] = (write.len() / BLOCK_BYTES) as u8;
        let answer = self.run(cdb, &[compare, write].concat(), 0)?;
        match (answer.status, answer.sense_code()) {
            (GOOD, _) => Ok(Compared::Written),
            (_, Some((MISCOMPARE, _, _))) => {
                Ok(Compared::Differs { offset_bytes: information(&answer.sense) })
            }
            (status, sense) => {
                Err(self.fault(format!("COMPARE AND WRITE: status {status:#04x}, sense {sense:02x?}")))
            }
        }
    }

    fn copy(&self, from: &dyn Medium, source_lba: u64, lba: u64, count: u64) -> Result<bool, LunError> {
        let Some(from) = from.as_any().downcast_ref::<RemoteMedium>() else { return Ok(false) };
        for (at, n) in pieces(lba, count) {
            self.extended_copy(&from.naa, source_lba + (at - lba), at, n)?;
        }
        Ok(true)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// INFORMATION of sense data in fixed format (SPC-4 4.5.3); 0 if it has none.
fn information(sense: &[u8]) -> usize {
    match sense {
        [first, _, _, a, b, c, d, ..] if first >> 7 == 1 => u32::from_be_bytes([*a, *b, *c, *d]) as usize,
        _ => 0,
    }
}
