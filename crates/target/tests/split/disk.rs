//! Production in memory: it fails when it is told to, and remembers what it did in which order.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use parking_lot::Mutex;
use playhead_target::{lun::LunError, splitter::Production};

pub(crate) struct Disk {
    bytes: Mutex<Vec<u8>>,
    done: Mutex<Vec<Range<u64>>>,
    pub(crate) unreadable: AtomicBool,
    pub(crate) generation: AtomicU64,
}

impl Disk {
    pub(crate) fn new(blocks: u64) -> Disk {
        let bytes = Mutex::new(vec![0; blocks as usize * 512]);
        Disk {
            bytes,
            done: Mutex::default(),
            unreadable: AtomicBool::new(false),
            generation: AtomicU64::new(1),
        }
    }

    /// Writes the first `written` blocks of what was asked for.
    pub(crate) fn write(&self, lba: u64, data: &[u8], written: u64) {
        let mut bytes = self.bytes.lock();
        let end = (lba + written) as usize * 512;
        bytes[lba as usize * 512..end].copy_from_slice(&data[..written as usize * 512]);
        self.done.lock().push(lba..lba + (data.len() / 512) as u64);
    }

    /// What was written, in order.
    pub(crate) fn done(&self) -> Vec<Range<u64>> {
        self.done.lock().clone()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }
}

impl Production for Disk {
    fn block_count(&self) -> u64 {
        self.bytes.lock().len() as u64 / 512
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        if self.unreadable.load(Ordering::Relaxed) {
            return Err(LunError::Io { name: "disk".into(), detail: "as told".into() });
        }
        buf.copy_from_slice(&self.bytes.lock()[lba as usize * 512..][..buf.len()]);
        Ok(())
    }

    fn flush(&self) -> Result<(), LunError> {
        Ok(())
    }

    fn generation(&self) -> Result<u64, LunError> {
        Ok(self.generation.load(Ordering::Relaxed))
    }
}
