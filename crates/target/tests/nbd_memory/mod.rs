//! A LUN in memory, sparse, that fails and dawdles when told to. For the NBD server's tests and its example.
#![allow(dead_code, unreachable_pub)]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use playhead_target::lun::{
    Change, Compared, Extent, FlushDone, Lsn, Lun, LunError, LunIdentity, BLOCK_BYTES,
};

const SHARD_BLOCKS: u64 = 2048;
const UNMAPPED: u8 = 0;
const ZERO: u8 = 1;
const DATA: u8 = 2;

/// One MiB of blocks; holds nothing until the first write.
#[derive(Default)]
struct Shard {
    bytes: Vec<u8>,
    states: Vec<u8>,
}

impl Shard {
    fn fill(&mut self) {
        if self.states.is_empty() {
            self.bytes = vec![0; SHARD_BLOCKS as usize * BLOCK_BYTES];
            self.states = vec![UNMAPPED; SHARD_BLOCKS as usize];
        }
    }

    fn state(&self, block: u64) -> u8 {
        self.states.get(block as usize).copied().unwrap_or(UNMAPPED)
    }
}

#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut shut = self.shut.lock();
        while *shut {
            self.opened.wait(&mut shut);
        }
    }

    fn set(&self, shut: bool) {
        *self.shut.lock() = shut;
        self.opened.notify_all();
    }
}

/// The disk.
pub struct MemoryLun {
    identity: LunIdentity,
    read_only: bool,
    blocks: u64,
    shards: Vec<RwLock<Shard>>,
    lsn: AtomicU64,
    /// Calls of `submit`.
    pub submits: AtomicUsize,
    /// Changes in them.
    pub changes: AtomicUsize,
    /// Calls of `flush`.
    pub flushes: AtomicUsize,
    refuse: Mutex<Option<LunError>>,
    bad_block: AtomicU64,
    submit_gate: Gate,
    held: Mutex<Option<Vec<FlushDone>>>,
}

impl MemoryLun {
    /// A disk of `mib` MiB, all of it unmapped.
    pub fn new(name: &str, mib: u64, read_only: bool) -> MemoryLun {
        MemoryLun {
            identity: LunIdentity { uuid: [7; 16], name: name.into() },
            read_only,
            blocks: mib * SHARD_BLOCKS,
            shards: (0..mib).map(|_| RwLock::default()).collect(),
            lsn: AtomicU64::new(0),
            submits: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            refuse: Mutex::new(None),
            bad_block: AtomicU64::new(u64::MAX),
            submit_gate: Gate::default(),
            held: Mutex::new(None),
        }
    }

    /// From now on every change fails with `error`, or none does.
    pub fn refuse_changes(&self, error: Option<LunError>) {
        *self.refuse.lock() = error;
    }

    /// From now on reads of this block fail.
    pub fn break_block(&self, lba: u64) {
        self.bad_block.store(lba, Ordering::SeqCst);
    }

    /// From now on changes wait, or go on.
    pub fn hold_submits(&self, hold: bool) {
        self.submit_gate.set(hold);
    }

    /// From now on flushes wait for `release_flushes`.
    pub fn hold_flushes(&self) {
        self.held.lock().get_or_insert_with(Vec::new);
    }

    /// How many flushes wait.
    pub fn held_flushes(&self) -> usize {
        self.held.lock().as_ref().map_or(0, Vec::len)
    }

    /// Lets the waiting flushes end with `result`, and later ones end at once.
    pub fn release_flushes(&self, result: Result<(), LunError>) {
        for done in self.held.lock().take().unwrap_or_default() {
            done(result.clone());
        }
    }

    /// Drops the waiting flushes without a word.
    pub fn abandon_flushes(&self) {
        drop(self.held.lock().take());
    }

    /// The bytes of a range.
    pub fn bytes(&self, offset: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        assert_eq!(self.read(offset / BLOCK_BYTES as u64, &mut bytes), Ok(()));
        bytes
    }

    fn bound(&self, lba: u64, count: u64) -> Result<(), LunError> {
        match lba.checked_add(count) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => Err(LunError::OutOfRange { name: self.identity.name.clone(), lba, count }),
        }
    }

    /// Calls `part` for every shard of a range with the shard, the first block in it, the blocks, and the blocks before it.
    fn each_shard(&self, lba: u64, count: u64, mut part: impl FnMut(&RwLock<Shard>, u64, u64, u64)) {
        let mut done = 0;
        while done < count {
            let at = lba + done;
            let first = at % SHARD_BLOCKS;
            let blocks = (SHARD_BLOCKS - first).min(count - done);
            part(&self.shards[(at / SHARD_BLOCKS) as usize], first, blocks, done);
            done += blocks;
        }
    }

    fn put(&self, lba: u64, count: u64, state: u8, bytes: impl Fn(&mut [u8], u64)) {
        self.each_shard(lba, count, |shard, first, blocks, done| {
            let mut shard = shard.write();
            shard.fill();
            let blocks_range = first as usize..(first + blocks) as usize;
            let bytes_range = blocks_range.start * BLOCK_BYTES..blocks_range.end * BLOCK_BYTES;
            shard.states[blocks_range].fill(state);
            bytes(&mut shard.bytes[bytes_range], done);
        });
    }

    fn apply(&self, change: &Change<'_>) {
        match *change {
            Change::Write { lba, data } => {
                let count = (data.len() / BLOCK_BYTES) as u64;
                self.put(lba, count, DATA, |bytes, done| {
                    let start = done as usize * BLOCK_BYTES;
                    bytes.copy_from_slice(&data[start..start + bytes.len()]);
                });
            }
            Change::WriteSame { lba, count, block } => self.put(lba, count, DATA, |bytes, _| {
                bytes.chunks_mut(BLOCK_BYTES).for_each(|b| b.copy_from_slice(block));
            }),
            Change::Zero { lba, count } => self.put(lba, count, ZERO, |bytes, _| bytes.fill(0)),
            Change::Unmap { lba, count } => {
                self.each_shard(lba, count, |shard, first, blocks, _| {
                    let mut shard = shard.write();
                    if blocks == SHARD_BLOCKS {
                        *shard = Shard::default();
                    } else if !shard.states.is_empty() {
                        let range = first as usize..(first + blocks) as usize;
                        shard.bytes[range.start * BLOCK_BYTES..range.end * BLOCK_BYTES].fill(0);
                        shard.states[range].fill(UNMAPPED);
                    }
                });
            }
        }
    }
}

fn extent_of(change: &Change<'_>) -> (u64, u64) {
    match *change {
        Change::Write { lba, data } => {
            assert!(!data.is_empty() && data.len() % BLOCK_BYTES == 0);
            (lba, (data.len() / BLOCK_BYTES) as u64)
        }
        Change::WriteSame { lba, count, .. } | Change::Zero { lba, count } | Change::Unmap { lba, count } => {
            assert!(count > 0);
            (lba, count)
        }
    }
}

impl Lun for MemoryLun {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn identity(&self) -> &LunIdentity {
        &self.identity
    }

    fn block_count(&self) -> u64 {
        self.blocks
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError> {
        let count = (buf.len() / BLOCK_BYTES) as u64;
        self.bound(lba, count)?;
        let bad = self.bad_block.load(Ordering::Relaxed);
        if bad >= lba && bad < lba + count {
            return Err(LunError::Io {
                name: self.identity.name.clone(),
                detail: format!("block {bad} is broken"),
            });
        }
        self.each_shard(lba, count, |shard, first, blocks, done| {
            let start = done as usize * BLOCK_BYTES;
            let slot = &mut buf[start..start + blocks as usize * BLOCK_BYTES];
            let shard = shard.read();
            match shard.bytes.get(first as usize * BLOCK_BYTES..) {
                Some(bytes) if !bytes.is_empty() => slot.copy_from_slice(&bytes[..slot.len()]),
                _ => slot.fill(0),
            }
        });
        Ok(())
    }

    fn submit(&self, changes: &[Change<'_>]) -> Result<Lsn, LunError> {
        self.submit_gate.pass();
        self.submits.fetch_add(1, Ordering::Relaxed);
        self.changes.fetch_add(changes.len(), Ordering::Relaxed);
        if let Some(error) = self.refuse.lock().clone() {
            return Err(error);
        }
        for change in changes {
            let (lba, count) = extent_of(change);
            self.bound(lba, count)?;
        }
        changes.iter().for_each(|change| self.apply(change));
        Ok(self.lsn.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn compare_and_write(&self, _: u64, _: &[u8], _: &[u8]) -> Result<Compared, LunError> {
        unreachable!("NBD has no compare and write")
    }

    fn flush(&self, done: FlushDone) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        if let Some(held) = self.held.lock().as_mut() {
            return held.push(done);
        }
        done(Ok(()));
    }

    fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>, LunError> {
        self.bound(lba, count)?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = lba;
        while at < lba + count {
            let shard = self.shards[(at / SHARD_BLOCKS) as usize].read();
            let (state, step) = if shard.states.is_empty() {
                let rest = SHARD_BLOCKS - at % SHARD_BLOCKS;
                (UNMAPPED, rest.min(lba + count - at))
            } else {
                (shard.state(at % SHARD_BLOCKS), 1)
            };
            let (mapped, zero) = (state != UNMAPPED, state != DATA);
            let full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if (last.mapped, last.zero) == (mapped, zero) => last.count += step,
                _ if full => break,
                _ => extents.push(Extent { lba: at, count: step, mapped, zero }),
            }
            at += step;
        }
        Ok(extents)
    }
}
