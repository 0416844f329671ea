//! READ: from the LUN straight into the send buffer, as fast as the peer takes it.

use super::commands::Asked;
use super::connection::Ended;
use super::session::{Session, View, OUT_HIGH_BYTES};
use crate::lun::BLOCK_BYTES;
use crate::scsi;
use playhead_wire::iscsi::response::{DataIn, Residual};
use playhead_wire::scsi::cdb::Blocks;
use playhead_wire::scsi::status;
use std::sync::atomic::Ordering;

/// A read under way. While one waits for the peer, nothing further is parsed.
pub(super) struct Stream {
    view: View,
    lba: u64,
    asked: Asked,
    residual: Residual,
    total: usize,
    offset: usize,
    data_sn: u32,
}

impl Session {
    pub(super) fn start_read(&mut self, at: usize, blocks: &Blocks, asked: &Asked) -> Result<(), Ended> {
        let needed = u64::from(blocks.count) * BLOCK_BYTES as u64;
        // A read announced as a write has room for nothing.
        let room = if asked.read { asked.expected_bytes } else { 0 };
        let total = needed.min(u64::from(room)) as usize;
        if total == 0 {
            let mut ending = asked.ending(status::GOOD, needed);
            ending.residual = Residual::of(room, needed);
            self.answers.ending(&ending);
            return Ok(());
        }
        self.stream = Some(Stream {
            view: self.views[at].clone(),
            lba: blocks.lba,
            asked: *asked,
            residual: Residual::of(asked.expected_bytes, needed),
            total,
            offset: 0,
            data_sn: 0,
        });
        self.pump_stream()
    }

    /// Goes on with the read until it is worded or the send buffer is full.
    pub(super) fn pump_stream(&mut self) -> Result<(), Ended> {
        let Some(mut stream) = self.stream.take() else {
            return Ok(());
        };
        // Bounded by the transfer limit: every turn words at least a block.
        while stream.offset < stream.total {
            if self.answers.out.len() > OUT_HIGH_BYTES {
                self.link.send(&mut self.answers)?;
                if self.answers.out.len() > OUT_HIGH_BYTES {
                    self.stream = Some(stream);
                    return Ok(());
                }
            }
            let left = stream.total - stream.offset;
            let (len, is_final) = self.answers.data_in_len(stream.offset, left);
            let header = DataIn {
                is_final,
                status: (len == left).then_some(status::GOOD),
                residual: stream.residual,
                itt: stream.asked.itt,
                data_sn: stream.data_sn,
                offset_bytes: stream.offset as u32,
            };
            let lun = stream.view.unit.lun();
            let lba = stream.lba + (stream.offset / BLOCK_BYTES) as u64;
            let scratch = &mut self.scratch;
            let read = self.answers.data_in(header, stream.asked.immediate, len, |room| {
                if len % BLOCK_BYTES == 0 {
                    return lun.read(lba, room);
                }
                // The initiator announced part of a block.
                scratch.resize(len.next_multiple_of(BLOCK_BYTES), 0);
                lun.read(lba, scratch)?;
                room.copy_from_slice(&scratch[..len]);
                Ok(())
            });
            if let Err(error) = read {
                let sense = scsi::sense_of_read(&error);
                stream.view.unit.count_failure(&sense);
                let mut ending = stream.asked.ending(status::CHECK_CONDITION, stream.offset as u64);
                ending.exp_data_sn = stream.data_sn;
                let descriptor_format = stream.view.unit.settings().descriptor_sense;
                self.answers.check(&ending, &sense, descriptor_format);
                return Ok(());
            }
            stream.offset += len;
            stream.data_sn += 1;
        }
        self.handle.read_bytes.fetch_add(stream.total as u64, Ordering::Relaxed);
        stream.view.unit.count_read(&stream.view.nexus, stream.total as u64);
        Ok(())
    }
}
