//! A recorder for tests: the rules of extents over a real journal, and a list of what is to be read from production instead of a map.

use parking_lot::Mutex;
use playhead_journal::Volume;
use playhead_target::fabric::record::Range;
use playhead_target::fabric::{Begun, Loss, Production, Recorder, Taken};
use playhead_target::lun::{Change, CopyPiece, FlushDone, LunError};
use playhead_target::splitter::{Wanted, WhenRead};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Default)]
struct Extents {
    next: u64,
    taken: Vec<(u64, Vec<Range>)>,
    waiting: Vec<(Vec<Range>, Begun)>,
}

pub(crate) struct Journalled {
    volume: Volume,
    extents: Mutex<Extents>,
    /// To be read from production.
    pub(crate) unknown: Mutex<Vec<Range>>,
    /// The journal cannot be written.
    pub(crate) full: AtomicBool,
    pub(crate) flushes: AtomicU64,
    /// Changes that were in doubt.
    pub(crate) doubts: AtomicU64,
    pub(crate) waits: AtomicU64,
    /// What waits to be read back, for as long as there is a list.
    pub(crate) reading: Mutex<Option<Vec<WhenRead>>>,
    /// Flushes that are not over, for as long as there is a list.
    pub(crate) flushing: Mutex<Option<Vec<FlushDone>>>,
    /// What the array has said to have lost.
    pub(crate) losses: Mutex<Vec<Loss>>,
}

fn overlap(a: &[Range], b: &[Range]) -> bool {
    a.iter().any(|(lba, count)| b.iter().any(|(l, c)| lba < &(l + c) && l < &(lba + count)))
}

impl Journalled {
    pub(crate) fn new(volume: Volume) -> Journalled {
        Journalled {
            volume,
            extents: Mutex::default(),
            unknown: Mutex::default(),
            full: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            doubts: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            reading: Mutex::default(),
            flushing: Mutex::default(),
            losses: Mutex::default(),
        }
    }

    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    pub(crate) fn taken(&self) -> usize {
        self.extents.lock().taken.len()
    }

    fn give_back(&self, taken: Taken) -> Vec<Range> {
        let number: u64 = *taken.downcast().unwrap();
        let (ranges, waiting) = {
            let mut extents = self.extents.lock();
            let at = extents.taken.iter().position(|(n, _)| *n == number).expect("given back once");
            (extents.taken.remove(at).1, std::mem::take(&mut extents.waiting))
        };
        waiting.into_iter().for_each(|(ranges, begun)| self.take(&ranges, begun));
        ranges
    }

    fn take(&self, ranges: &[Range], begun: Begun) {
        let mut extents = self.extents.lock();
        if extents.taken.iter().any(|(_, taken)| overlap(taken, ranges)) {
            extents.waiting.push((ranges.to_vec(), begun));
            drop(extents);
            self.waits.fetch_add(1, Ordering::SeqCst);
            return;
        }
        extents.next += 1;
        let number = extents.next;
        extents.taken.push((number, ranges.to_vec()));
        drop(extents);
        begun(Ok(Box::new(number)));
    }

    /// Reads what is not known from production.
    pub(crate) fn resynchronise(&self, production: &Production) {
        for (lba, count) in std::mem::take(&mut *self.unknown.lock()) {
            let mut data = vec![0; count as usize * 512];
            production.read(lba, &mut data).unwrap();
            self.volume.submit(&[Change::Write { lba, data: &data }]).unwrap();
        }
    }
}

impl Recorder for Journalled {
    fn begin(&self, wanted: Wanted, begun: Begun) {
        assert!(wanted.sources.is_empty(), "copies are for the real one");
        let ranges: Vec<Range> = wanted.changes.iter().map(|r| (r.start, r.end - r.start)).collect();
        if self.full.load(Ordering::SeqCst) {
            return begun(Err(LunError::NoSpace {
                name: "g/v".to_owned(),
                detail: "full on purpose".to_owned(),
            }));
        }
        self.take(&ranges, begun);
    }

    fn capture(&self, taken: Taken, changes: &[Change<'_>]) -> Result<(), LunError> {
        self.volume.submit(changes).unwrap();
        self.give_back(taken);
        Ok(())
    }

    fn refers_to(&self, _: &dyn Recorder) -> bool {
        false
    }

    fn capture_copy(
        &self,
        taken: Taken,
        _: &dyn Recorder,
        _: &[CopyPiece],
        when_read: WhenRead,
    ) -> Result<(), LunError> {
        self.read_back(taken, when_read);
        Ok(())
    }

    fn unchanged(&self, taken: Taken) {
        self.give_back(taken);
    }

    fn doubt(&self, _: &Taken) {
        self.doubts.fetch_add(1, Ordering::SeqCst);
    }

    fn let_pass(&self, taken: Taken) -> Taken {
        taken
    }

    fn unknown(&self, taken: Taken) {
        let ranges = self.give_back(taken);
        self.unknown.lock().extend(ranges);
    }

    fn read_back(&self, taken: Taken, when_read: WhenRead) {
        self.unknown(taken);
        match &mut *self.reading.lock() {
            Some(held) => held.push(when_read),
            None => when_read(Ok(())),
        }
    }

    fn lost(&self, what: Loss) {
        self.losses.lock().push(what);
    }

    fn flush(&self, done: FlushDone) {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        if let Some(held) = &mut *self.flushing.lock() {
            return held.push(done);
        }
        self.volume.flush_then(Box::new(move |result| {
            let io = |error: playhead_journal::Error| LunError::Io {
                name: "g/v".to_owned(),
                detail: error.to_string(),
            };
            done(result.map_err(io));
        }));
    }

    fn block_count(&self) -> u64 {
        self.volume.block_count()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
