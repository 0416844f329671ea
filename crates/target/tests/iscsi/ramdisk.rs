//! A LUN in memory, for tests of the front ends: 4 KiB pages, mapped when written.

use parking_lot::RwLock;
use playhead_target::lun::{
    Change, Compared, Extent, FlushDone, Frozen, FrozenRef, Lsn, Lun, LunError, LunIdentity, BLOCK_BYTES,
};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

const PAGE_BYTES: usize = 4096;
const PAGE_BLOCKS: u64 = (PAGE_BYTES / BLOCK_BYTES) as u64;

type Page = Option<Box<[u8; PAGE_BYTES]>>;

/// Blocks in memory, with switches to make it fail.
pub(crate) struct RamDisk {
    identity: LunIdentity,
    pages: RwLock<Vec<Page>>,
    blocks: AtomicU64,
    position: AtomicU64,
    /// Refuse changes.
    pub(crate) read_only: AtomicBool,
    /// Bytes of a physical block.
    pub(crate) physical_block_bytes: AtomicU32,
    /// Blocks of a change that is all or none.
    pub(crate) atomic_blocks: AtomicU32,
    /// Calls that wait at a gate.
    pub(crate) at_gate: AtomicU64,
    /// Reads wait while it is set.
    pub(crate) read_gate: AtomicBool,
    /// Changes wait while it is set.
    pub(crate) change_gate: AtomicBool,
    /// Flushes wait while it is set.
    pub(crate) flush_gate: Arc<AtomicBool>,
    /// Flushes fail.
    pub(crate) flush_fails: AtomicBool,
    /// While set, changes wait before they are made.
    pub(crate) submit_gate: AtomicBool,
    /// Changes that are made yet; all behind them fail.
    pub(crate) submits_left: AtomicU64,
    /// Those that wait.
    pub(crate) submits_waiting: AtomicU64,
    /// Fail everything with an I/O error.
    pub(crate) broken: AtomicBool,
    /// Flushes so far.
    pub(crate) flushes: AtomicU64,
    /// Batches so far.
    pub(crate) batches: AtomicU64,
    /// What each batch takes at least.
    pub(crate) pause_ms: AtomicU64,
    /// Give up what was frozen.
    pub(crate) thawed: Arc<AtomicBool>,
}

impl RamDisk {
    pub(crate) fn new(name: &str, blocks: u64) -> RamDisk {
        let mut uuid = [0x5a; 16];
        for (slot, byte) in uuid.iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        let pages = blocks.div_ceil(PAGE_BLOCKS) as usize;
        RamDisk {
            identity: LunIdentity { uuid, name: name.to_owned() },
            pages: RwLock::new((0..pages).map(|_| None).collect()),
            blocks: AtomicU64::new(blocks),
            position: AtomicU64::new(0),
            read_only: AtomicBool::new(false),
            physical_block_bytes: AtomicU32::new(4096),
            atomic_blocks: AtomicU32::new(1024),
            at_gate: AtomicU64::new(0),
            read_gate: AtomicBool::new(false),
            change_gate: AtomicBool::new(false),
            flush_gate: Arc::default(),
            flush_fails: AtomicBool::new(false),
            submit_gate: AtomicBool::new(false),
            submits_left: AtomicU64::new(u64::MAX),
            submits_waiting: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            pause_ms: AtomicU64::new(0),
            thawed: Arc::default(),
        }
    }

    /// Makes it larger.
    pub(crate) fn grow(&self, blocks: u64) {
        let pages = blocks.div_ceil(PAGE_BLOCKS) as usize;
        self.pages.write().resize_with(pages, || None);
        self.blocks.store(blocks, Ordering::SeqCst);
    }

    fn check(&self, lba: u64, count: u64, change: bool) -> Result<(), LunError> {
        let gate = if change { &self.change_gate } else { &self.read_gate };
        self.at_gate.fetch_add(1, Ordering::SeqCst);
        while gate.load(Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.at_gate.fetch_sub(1, Ordering::SeqCst);
        let name = || self.identity.name.clone();
        if self.broken.load(Ordering::Relaxed) {
            let detail = "broken on purpose".to_owned();
            return Err(LunError::Io { name: name(), detail });
        }
        if change && self.read_only() {
            return Err(LunError::ReadOnly { name: name() });
        }
        let blocks = self.block_count();
        if lba > blocks || count > blocks - lba {
            return Err(LunError::OutOfRange { name: name(), lba, count });
        }
        Ok(())
    }
}

fn read(pages: &[Page], lba: u64, buf: &mut [u8]) {
    let mut at = lba as usize * BLOCK_BYTES;
    let mut buf = buf;
    while !buf.is_empty() {
        let (page, from) = (at / PAGE_BYTES, at % PAGE_BYTES);
        let len = buf.len().min(PAGE_BYTES - from);
        let (part, rest) = buf.split_at_mut(len);
        match &pages[page] {
            Some(bytes) => part.copy_from_slice(&bytes[from..from + len]),
            None => part.fill(0),
        }
        buf = rest;
        at += len;
    }
}

fn write(pages: &mut [Page], lba: u64, data: &[u8]) {
    let mut at = lba as usize * BLOCK_BYTES;
    let mut data = data;
    while !data.is_empty() {
        let (page, from) = (at / PAGE_BYTES, at % PAGE_BYTES);
        let len = data.len().min(PAGE_BYTES - from);
        let bytes = pages[page].get_or_insert_with(|| Box::new([0; PAGE_BYTES]));
        bytes[from..from + len].copy_from_slice(&data[..len]);
        data = &data[len..];
        at += len;
    }
}

fn unmap(pages: &mut [Page], lba: u64, count: u64) {
    let mut lba = lba;
    let end = lba + count;
    while lba < end {
        let page = (lba / PAGE_BLOCKS) as usize;
        if lba % PAGE_BLOCKS == 0 && end - lba >= PAGE_BLOCKS {
            pages[page] = None;
            lba += PAGE_BLOCKS;
            continue;
        }
        if pages[page].is_some() {
            write(pages, lba, &[0; BLOCK_BYTES]);
        }
        lba += 1;
    }
}

/// A disk as it was: a copy of its pages.
struct Ice {
    identity: LunIdentity,
    pages: Vec<Page>,
    blocks: u64,
    thawed: Arc<AtomicBool>,
}

impl Frozen for Ice {
    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.blocks
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        let name = || self.identity.name.clone();
        if self.thawed.load(Ordering::Relaxed) {
            return Err(LunError::Gone { name: name() });
        }
        let count = (buf.len() / BLOCK_BYTES) as u64;
        if lba > self.blocks || count > self.blocks - lba {
            return Err(LunError::OutOfRange { name: name(), lba, count });
        }
        read(&self.pages, lba, buf);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Lun for RamDisk {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    fn atomic_blocks(&self) -> u32 {
        self.atomic_blocks.load(Ordering::Relaxed)
    }

    fn physical_block_bytes(&self) -> u32 {
        self.physical_block_bytes.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        self.check(lba, (buf.len() / BLOCK_BYTES) as u64, false)?;
        read(&self.pages.read(), lba, buf);
        Ok(())
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        if self.submit_gate.load(Ordering::SeqCst) {
            self.submits_waiting.fetch_add(1, Ordering::SeqCst);
            while self.submit_gate.load(Ordering::SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            self.submits_waiting.fetch_sub(1, Ordering::SeqCst);
        }
        let less = |left: u64| Some(if left == u64::MAX { left } else { left.saturating_sub(1) });
        if self.submits_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) == Ok(0) {
            let detail = "broken half way on purpose".to_owned();
            return Err(LunError::Io { name: self.identity.name.clone(), detail });
        }
        for change in changes {
            let (lba, count) = match *change {
                Change::Write { lba, data } => (lba, (data.len() / BLOCK_BYTES) as u64),
                Change::WriteSame { lba, count, .. }
                | Change::Zero { lba, count }
                | Change::Unmap { lba, count } => (lba, count),
            };
            self.check(lba, count, true)?;
        }
        let pause_ms = self.pause_ms.load(Ordering::Relaxed);
        if pause_ms > 0 {
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
        let mut pages = self.pages.write();
        for change in changes {
            match *change {
                Change::Write { lba, data } => write(&mut pages, lba, data),
                Change::WriteSame { lba, count, block } => {
                    (lba..lba + count).for_each(|lba| write(&mut pages, lba, block));
                }
                Change::Zero { lba, count } => {
                    (lba..lba + count).for_each(|lba| write(&mut pages, lba, &[0; BLOCK_BYTES]));
                }
                Change::Unmap { lba, count } => unmap(&mut pages, lba, count),
            }
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
        Ok(self.position.fetch_add(1, Ordering::Relaxed))
    }

    fn compare_and_write(&self, lba: u64, compare: &[u8], new: &[u8]) -> Result<Compared, LunError> {
        self.check(lba, (compare.len() / BLOCK_BYTES) as u64, true)?;
        let mut pages = self.pages.write();
        let mut current = vec![0; compare.len()];
        read(&pages, lba, &mut current);
        if let Some(offset_bytes) = (0..compare.len()).find(|&i| current[i] != compare[i]) {
            return Ok(Compared::Differs { offset_bytes });
        }
        write(&mut pages, lba, new);
        Ok(Compared::Written)
    }

    fn freeze(&self) -> Result<FrozenRef, LunError> {
        self.check(0, 0, false)?;
        let pages = self.pages.read().clone();
        let identity = self.identity.clone();
        Ok(Arc::new(Ice { identity, pages, blocks: self.block_count(), thawed: Arc::clone(&self.thawed) }))
    }

    fn freezes(&self) -> bool {
        true
    }

    fn flush(&self, done: FlushDone) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        // From another thread, as a journal would.
        let gate = Arc::clone(&self.flush_gate);
        let fails = self.flush_fails.load(Ordering::SeqCst);
        let name = self.identity.name.clone();
        std::thread::spawn(move || {
            while gate.load(Ordering::SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let detail = "failed on purpose".to_owned();
            done(if fails { Err(LunError::Io { name, detail }) } else { Ok(()) });
        });
    }

    fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>, LunError> {
        self.check(lba, count, false)?;
        let pages = self.pages.read();
        let mut extents: Vec<Extent> = Vec::new();
        let (mut lba, end) = (lba, lba + count);
        while lba < end {
            let mapped = pages[(lba / PAGE_BLOCKS) as usize].is_some();
            let len = (PAGE_BLOCKS - lba % PAGE_BLOCKS).min(end - lba);
            let is_full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.mapped == mapped => last.count += len,
                _ if is_full => break,
                _ => extents.push(Extent { lba, count: len, mapped, zero: !mapped }),
            }
            lba += len;
        }
        Ok(extents)
    }
}
