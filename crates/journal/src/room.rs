//! Room asked for before production is changed, by those whose production lives elsewhere.
//!
//! Room is segments that are ready. [`Volume::has_room`] and [`Volume::wait_for_room`] keep nothing: a change follows at once, and is small. What
//! takes long to come, or is much, keeps its room ([`Room`]): housekeeping would give the segments back that were made for it. Nobody else is
//! kept from writing to them.

use std::sync::{atomic::Ordering, Arc};

use crate::{
    append::Draft,
    group::Inner,
    record::{Opcode, MAX_PAYLOAD_BYTES},
    volume::Volume,
    Result,
};

/// Bytes of payload that segments stay ready for, once they are.
pub struct Room {
    group: Arc<Inner>,
    bytes: u64,
}

impl Room {
    /// They are `bytes` from now on.
    pub fn keep(&mut self, bytes: u64) {
        let kept = &self.group.kept_bytes;
        if bytes >= self.bytes {
            kept.fetch_add(bytes - self.bytes, Ordering::AcqRel);
        } else {
            kept.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
        }
        self.bytes = bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.keep(0);
    }
}

impl Volume {
    /// Room that is kept, none at first.
    pub fn room(&self) -> Room {
        Room { group: Arc::clone(&self.group.0), bytes: 0 }
    }

    /// Whether the journal takes a change with `payload_bytes` of payload without waiting. Nothing is kept for the caller: others may
    /// take the room.
    ///
    /// Errors: the group is closed, or has stopped taking writes.
    pub fn has_room(&self, payload_bytes: u64) -> Result<bool> {
        let i = &self.group.0;
        i.check_writable()?;
        self.check_present()?;
        let log = i.log.lock();
        Ok(i.fits(&log, &placeholders(payload_bytes, i.max_payload())))
    }

    /// As [`Volume::has_room`], but sees to it that there is room: makes segments, and waits for housekeeping, as a change does.
    ///
    /// Errors: also [`Error::NoSpace`].
    pub fn wait_for_room(&self, payload_bytes: u64) -> Result<()> {
        let i = &self.group.0;
        i.check_writable()?;
        self.check_present()?;
        let mut log = i.log.lock();
        i.make_room(&mut log, &placeholders(payload_bytes, i.max_payload()))
    }
}

impl Inner {
    /// How many segments stay ready because somebody's room is kept: a payload that does not fit the rest of a segment begins the next.
    pub(crate) fn kept_segments(&self) -> usize {
        match self.kept_bytes.load(Ordering::Acquire) {
            0 => 0,
            bytes => usize::try_from(bytes.div_ceil(self.segment_bytes / 2) + 1).unwrap_or(usize::MAX),
        }
    }
}

/// Stands for payloads of which only the length matters.
static NOTHING: [u8; MAX_PAYLOAD_BYTES] = [0; MAX_PAYLOAD_BYTES];

/// Drafts that take as much of the log as changes with `payload_bytes` of payload; one more than their payload needs, since several small
/// ones have as many headers.
fn placeholders(payload_bytes: u64, max_payload: usize) -> Vec<Draft<'static>> {
    let draft = |bytes: usize| Draft {
        opcode: Opcode::Pad,
        volume: 0,
        lba: 0,
        count: 0,
        payload: &NOTHING[..bytes],
        payload_crc: 0,
    };
    let max = max_payload as u64;
    let mut drafts: Vec<_> = (0..payload_bytes / max).map(|_| draft(max_payload)).collect();
    drafts.push(draft((payload_bytes % max) as usize));
    drafts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{files::DiskFiles, Error, Group, NewBase, Options};

    fn made(dir: &std::path::Path) -> Group {
        let options = Options { segment_bytes: 64 << 10, background: false };
        let group = Group::create(Arc::new(DiskFiles), dir, "g", &options).unwrap();
        group.add_volume("v", NewBase::Sparse { blocks: 4096 }).unwrap();
        group
    }

    #[test]
    fn room_is_told_of_before_it_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("g");
        let group = made(&dir);
        let volume = group.volume("v").unwrap();
        assert!(volume.has_room(4096).unwrap());
        assert!(!volume.has_room(1 << 20).unwrap());
        volume.wait_for_room(1 << 20).unwrap();
        assert!(volume.has_room(1 << 20).unwrap());
        group.close().unwrap();
        assert!(matches!(volume.has_room(1), Err(Error::Gone(_))));
    }

    #[test]
    fn housekeeping_gives_back_what_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let group = made(&dir.path().join("g"));
        let volume = group.volume("v").unwrap();
        let mut room = volume.room();
        room.keep(1 << 20);
        volume.wait_for_room(1 << 20).unwrap();
        group.tend().unwrap();
        assert!(volume.has_room(1 << 20).unwrap());
        room.keep(100 << 10);
        group.tend().unwrap();
        assert!(volume.has_room(100 << 10).unwrap() && !volume.has_room(1 << 20).unwrap());
        drop(room);
        group.tend().unwrap();
        assert!(!volume.has_room(300 << 10).unwrap());
    }
}
