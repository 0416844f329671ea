//! The split of a volume whose production lives elsewhere: it sees to it that what changes production is in the journal, in
//! production's order, or else is known to be missing there.
//!
//! Inside Playhead such a volume is an ordinary one, the *replica*: its head equals production whenever the state is
//! [`State::Synchronised`]. One change takes this way, production first, so that a record is always true:
//!
//! 1. [`Split::begin`] (or [`Split::begin_then`], which never blocks) takes the blocks, so that changes which overlap reach
//!    production and journal in one order ([`super::takes`]), and has their regions marked on the medium ([`super::change_map`]).
//! 2. The caller changes production.
//! 3. It did change: [`Split::capture`] puts it into the journal, then the host is answered. It certainly did not:
//!    [`Split::unchanged`]. Anything else: [`Split::unknown`], and production is read, or [`Split::read_back`], and it is read first
//!    ([`super::read_back`]). A [`Taken`] that is dropped is unknown.
//!
//! As long as anything differs, what is captured lies between RESYNC_BEGIN and RESYNC_END: the former is in the log before the first
//! record that follows a change which is missing, or a sign that production has lost something. When the journal refuses, the group's choice decides ([`OnJournalFailure`]).
//!
//! Locks: `span` -> the journal's; `syncing` -> `inside`; `state` -> the group's `log`, for a look at the room. Callbacks are called with nothing held.

use std::{
    collections::VecDeque,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::{Condvar, Mutex};
use playhead_journal::{files::Files, Change, CopyPiece, Lsn, Room, Volume};

use super::{
    change_map::{ChangeMap, MapOf, Stamp},
    marks::Marks,
    read_back::{ToRead, WhenRead},
    takes::{Takes, Wanted},
};
use crate::lun::{FlushDone, LunError};

/// What a resynchronisation has to know of production. Blocks are of 512 bytes.
pub trait Production: Send + Sync {
    /// Size in blocks.
    fn block_count(&self) -> u64;

    /// Fills `buf`, whole blocks, from `lba` on.
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), LunError>;

    /// Makes what production has answered GOOD for survive a loss of power.
    fn flush(&self) -> Result<(), LunError>;

    /// Rises whenever production may have lost what it has answered GOOD for and was not flushed: it was out of sight, and may have been
    /// without power. Zero as long as nobody has looked.
    ///
    /// Errors: it is not in sight.
    fn generation(&self) -> Result<u64, LunError> {
        Ok(0)
    }

    /// Rises with every sign that [`Production::generation`] may have risen, and costs nothing to ask.
    fn disturbed(&self) -> u64 {
        0
    }

    /// Rises whenever nothing that production has ever answered is certain any more: all of it is to be compared.
    fn lost(&self) -> u64 {
        0
    }

    /// Whether there is data at `lba`, or certainly zeros, and for how many blocks at least (1 to `count`).
    fn data_at(&self, _lba: u64, count: u64) -> Result<(bool, u64), LunError> {
        Ok((true, count))
    }

    /// What tells, after the service was off, that nobody else has changed production meanwhile; none if nothing can.
    fn stamp(&self) -> Option<Stamp> {
        None
    }

    /// Whether the stamp is of what production is, not of what it holds: it is true while hosts work, and after a crash.
    fn stamp_lasts(&self) -> bool {
        false
    }

    /// Whether production is certainly as it was when it had the stamp `left`.
    fn is_as_left(&self, left: &Stamp) -> bool {
        self.stamp().is_some_and(|now| now == *left)
    }
}

/// What happens to hosts while the journal cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnJournalFailure {
    /// Changes are refused before production is changed.
    Stop,
    /// Production goes on; what changes is resynchronised later.
    Track,
}

/// How production and replica stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The first synchronisation has not come to its end yet.
    Initialising,
    /// What differs is being found and recorded.
    Resynchronising,
    /// The journal cannot be written; production goes on.
    Tracking,
    /// The journal cannot be written; hosts are stopped.
    Stopped,
    /// The head equals production.
    Synchronised,
    /// Production is not there.
    ProductionLost,
}

impl State {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            State::Initialising => "initialising",
            State::Resynchronising => "resynchronising",
            State::Tracking => "tracking",
            State::Stopped => "stopped",
            State::Synchronised => "synchronised",
            State::ProductionLost => "production-lost",
        }
    }
}

/// Why a region waits to be compared.
const MAY_COME_YET: &str = "what was under way by a portal that is not reached any more may be executed yet; that is certain when the portal \
     is back, and if it is gone for good, `playhead volume resync`";

/// How it stands, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// In a word.
    pub state: State,
    /// Why it is not synchronised, if something is in the way.
    pub reason: Option<String>,
    /// Bytes of production that may differ from the replica.
    pub lag_bytes: u64,
    /// Since when they do, ns since the Unix epoch; none when synchronised.
    pub since_ns: Option<u64>,
    /// Bytes that had to be compared in this resynchronisation; 0 when synchronised.
    pub resync_total_bytes: u64,
    /// Bytes that would have to be compared after a crash now.
    pub marked_bytes: u64,
}

/// How a split is opened.
pub struct SplitOptions {
    /// For messages.
    pub name: String,
    /// Where the change map is, or is to be.
    pub map_path: PathBuf,
    /// The group's choice.
    pub on_journal_failure: OnJournalFailure,
}

/// What became of a change that production has executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Captured {
    /// It is in the journal; the head behind it.
    Recorded(Lsn),
    /// It is not, but known to be missing: it is resynchronised later. The host is answered GOOD.
    Tracked,
}

/// Called once when a change may go on, or is refused; from any thread, also the asking one before the call returns. Must not block.
pub type Begun = Box<dyn FnOnce(Result<Taken, LunError>) + Send>;

/// What an inner take does when it has its blocks.
pub(super) struct Waiter {
    pub(super) begun: Begun,
    /// The resynchroniser's, which no choice stops.
    pub(super) exempt: bool,
}

/// Everything under one lock.
pub(super) struct Inside {
    pub(super) takes: Takes<Waiter>,
    pub(super) marks: Marks,
    /// Takes that wait for the medium or for room.
    pub(super) queue: Vec<u64>,
    /// Takes that wait for others' reading back, in their order.
    pub(super) held: Vec<u64>,
    /// What those keep who may read back.
    pub(super) room: Room,
    /// A RESYNC_BEGIN is in the log and no END.
    pub(super) span_open: bool,
    /// The END is being written.
    pub(super) ending: bool,
    /// The region that is being compared.
    pub(super) looked_at: Option<u32>,
    /// Why the journal cannot be written.
    pub(super) refused: Option<LunError>,
    /// Why production is not there.
    pub(super) lost: Option<String>,
    /// The production that what is not marked equals: see [`Production::generation`], and the signs that were seen before it was asked.
    pub(super) generation: u64,
    pub(super) disturbed: u64,
    pub(super) lost_count: u64,
    /// Why it could not be read.
    pub(super) unreadable: Option<LunError>,
    /// Why it could not be asked whether it has lost anything.
    pub(super) unseen: Option<LunError>,
    pub(super) choice: OnJournalFailure,
    pub(super) total_bytes: u64,
    pub(super) since_ns: u64,
    /// The tender has something to do.
    pub(super) woken: bool,
    /// To be read back, in this order.
    pub(super) to_read: VecDeque<ToRead>,
    pub(super) closed: bool,
}

impl Inside {
    /// Gives blocks back. Those who may go on now, or find out that they may not yet.
    pub(super) fn release(&mut self, number: u64) -> Vec<u64> {
        let mut free = std::mem::take(&mut self.held);
        free.extend(self.takes.release(number));
        self.room.keep(self.takes.read_back_bytes());
        free
    }

    /// Whether anything differs.
    pub(super) fn differs(&self) -> bool {
        self.looked_at.is_some() || self.marks.differs().count() > 0
    }

    /// Whether any of `ranges` may.
    pub(super) fn differs_in(&self, ranges: &[Range<u64>]) -> bool {
        self.marks.differs_in(ranges, self.looked_at)
    }

    pub(super) fn lag_bytes(&self) -> u64 {
        let looked_at = u64::from(self.looked_at.is_some()) * self.marks.region_bytes();
        self.marks.differing_bytes() + looked_at
    }

    /// Notes that something differs, or more than before.
    pub(super) fn note_lag(&mut self) {
        self.total_bytes = self.total_bytes.max(self.lag_bytes());
        if self.since_ns == 0 {
            self.since_ns = now_ns();
            let since_ns = self.since_ns;
            if let Err(e) = self.marks.map.set_header(|h| h.since_ns = since_ns) {
                log::warn!("change map: {e}");
            }
        }
    }

    pub(super) fn state(&self) -> State {
        match (&self.lost, &self.refused, self.choice) {
            (Some(_), ..) => State::ProductionLost,
            (None, Some(_), OnJournalFailure::Track) => State::Tracking,
            (None, Some(_), OnJournalFailure::Stop) => State::Stopped,
            (None, None, _) if !self.differs() && !self.span_open && !self.ending => State::Synchronised,
            _ if self.marks.map.header().initialised => State::Resynchronising,
            _ => State::Initialising,
        }
    }
}

/// What handle and threads share.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) volume: Volume,
    pub(super) production: Arc<dyn Production>,
    pub(super) inside: Mutex<Inside>,
    /// One RESYNC record at a time.
    pub(super) span: Mutex<()>,
    /// One sync of the change map at a time: the system tells of a failure once.
    pub(super) syncing: Mutex<()>,
    /// Wakes the marker.
    pub(super) queued: Condvar,
    /// Wakes the tender.
    pub(super) tending: Condvar,
    /// Wakes the reader.
    pub(super) reading: Condvar,
}

/// The split of one volume. Dropping it stops its threads and leaves the map as a crash would; [`Split::close`] leaves it in order.
pub struct Split {
    pub(super) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A change that production may execute yet though its blocks are given back: what it touches is not compared before this is dropped.
#[must_use]
pub struct InDoubt {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u64,
    pub(super) ranges: Vec<Range<u64>>,
}

/// Blocks that somebody has for himself while he changes production. Dropped without having said what became of it, it is unknown.
#[must_use]
pub struct Taken {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u64,
    pub(super) over: bool,
}

impl Split {
    /// Splits changes of `production` into `volume`. What its change map has marked is resynchronised from now on; everything, if there is no map,
    /// or somebody else has changed production meanwhile.
    ///
    /// Errors: the change map cannot be opened (also: another process has it), or the sizes differ.
    pub fn open(
        files: &dyn Files,
        volume: Volume,
        production: Arc<dyn Production>,
        options: SplitOptions,
    ) -> Result<Split, LunError> {
        let SplitOptions { name, map_path, on_journal_failure } = options;
        let failed = |detail: String| LunError::Io { name: name.clone(), detail };
        if production.block_count() != volume.block_count() {
            return Err(failed(format!(
                "production has {} blocks, the volume {}: they must be of one size",
                production.block_count(),
                volume.block_count()
            )));
        }
        let of = MapOf { volume: *volume.info().uuid.as_bytes(), block_count: volume.block_count() };
        let map_error = |e: std::io::Error| failed(format!("change map {}: {e}", map_path.display()));
        let map = ChangeMap::open(files, &map_path, of).map_err(map_error)?;
        let left = map.header().stamp;
        let mut marks = Marks::new(map);
        if left != [0; 64] && !production.is_as_left(&left) {
            log::warn!("{name}: production was, or may have been, changed while it was not protected; all of it is compared");
            marks.all_differ().map_err(map_error)?;
        }
        if !production.stamp_lasts() {
            // From here on it is not true any more.
            marks.map.set_header(|h| h.stamp = [0; 64]).map_err(map_error)?;
        }
        marks.map.begin_sync().and_then(|file| file.sync()).map_err(map_error)?;
        let mut inside = Inside {
            takes: Takes::default(),
            span_open: volume.resyncing(),
            queue: Vec::new(),
            held: Vec::new(),
            room: volume.room(),
            ending: false,
            woken: true,
            looked_at: None,
            refused: None,
            lost: None,
            generation: 0,
            disturbed: production.disturbed(),
            lost_count: production.lost(),
            unreadable: None,
            unseen: None,
            choice: on_journal_failure,
            total_bytes: 0,
            since_ns: marks.map.header().since_ns,
            to_read: VecDeque::new(),
            closed: false,
            marks,
        };
        if inside.differs() || inside.span_open {
            inside.note_lag();
        }
        let shared = Arc::new(Shared {
            name: name.clone(),
            volume,
            production,
            inside: Mutex::new(inside),
            span: Mutex::new(()),
            syncing: Mutex::new(()),
            queued: Condvar::new(),
            tending: Condvar::new(),
            reading: Condvar::new(),
        });
        type Work = (&'static str, fn(&Arc<Shared>));
        let work: [Work; 3] =
            [("mark", Shared::run_marker), ("tend", Shared::run_tender), ("read", Shared::run_reader)];
        let split = Split { shared, threads: Mutex::default() };
        for (what, run) in work {
            let shared = Arc::clone(&split.shared);
            let thread = std::thread::Builder::new()
                .name(format!("{what} {name}").chars().take(15).collect())
                .spawn(move || run(&shared))
                .map_err(|e| failed(format!("starting a thread: {e}")))?;
            split.threads.lock().push(thread);
        }
        Ok(split)
    }

    /// The replica.
    pub fn volume(&self) -> &Volume {
        &self.shared.volume
    }

    /// How production and replica stand to each other.
    pub fn status(&self) -> Status {
        let mut inside = self.shared.inside.lock();
        let state = match inside.state() {
            // What it may have lost is found in a moment.
            State::Synchronised if self.shared.doubtful(&inside) => {
                inside.woken = true;
                self.shared.tending.notify_all();
                State::Resynchronising
            }
            state => state,
        };
        let behind = state != State::Synchronised;
        let reason = inside.lost.clone().or_else(|| {
            let what = inside.refused.as_ref().or(inside.unreadable.as_ref());
            what.or(inside.unseen.as_ref().filter(|_| behind)).map(ToString::to_string)
        });
        let reason = reason.or_else(|| inside.marks.any_in_doubt().then(|| MAY_COME_YET.to_owned()));
        Status {
            state,
            reason,
            lag_bytes: inside.lag_bytes().min(self.shared.volume.block_count() * 512),
            since_ns: (behind && inside.since_ns != 0).then_some(inside.since_ns),
            resync_total_bytes: inside.total_bytes.min(self.shared.volume.block_count() * 512),
            marked_bytes: u64::from(inside.marks.map.marked().count()) * inside.marks.region_bytes(),
        }
    }

    /// Changes the group's choice.
    pub fn set_on_journal_failure(&self, choice: OnJournalFailure) {
        self.shared.inside.lock().choice = choice;
    }

    /// Production is not there, for a reason to be shown: changes are refused with [`LunError::Gone`] until [`Split::production_found`].
    pub fn production_lost(&self, reason: &str) {
        let mut inside = self.shared.inside.lock();
        inside.lost = Some(reason.to_owned());
        inside.note_lag();
    }

    /// It is there again. If anything may have been changed meanwhile, the caller says so with [`Split::compare_all`].
    pub fn production_found(&self) {
        self.shared.inside.lock().lost = None;
        self.shared.wake();
    }

    /// Production may have lost what was not flushed: that is compared.
    pub fn compare_marked(&self) {
        {
            let mut inside = self.shared.inside.lock();
            inside.marks.marked_differ();
            if inside.differs() {
                inside.note_lag();
            }
        }
        self.shared.wake();
    }

    /// Nothing that production has answered is certain any more: all of it differs from now on, and is compared. Waits for no medium.
    pub fn distrust(&self) {
        self.shared.distrust();
        self.shared.wake();
    }

    /// Nobody knows what differs: all of it is compared.
    pub fn compare_all(&self) -> Result<(), LunError> {
        let shared = &self.shared;
        let failed = |e: std::io::Error| LunError::Io { name: shared.name.clone(), detail: e.to_string() };
        {
            let mut inside = shared.inside.lock();
            inside.marks.end_all_doubts();
            inside.marks.all_differ().map_err(failed)?;
            inside.note_lag();
        }
        shared.wake();
        shared.sync_map().map_err(failed)
    }

    /// Takes what is wanted and has it marked; waits for changes that overlap, and for the medium.
    ///
    /// Who takes blocks of several volumes at once takes them in the order of the volumes' identities.
    ///
    /// Errors: the journal cannot be written and hosts are to be stopped ([`LunError::NoSpace`], [`LunError::Io`]), production is not there or
    /// the split is closed ([`LunError::Gone`]), blocks beyond the end. Production must not be changed then.
    pub fn begin(&self, wanted: Wanted) -> Result<Taken, LunError> {
        self.shared.begin(wanted, false)
    }

    /// As [`Split::begin`], for callers that must not wait: `begun` is told.
    pub fn begin_then(&self, wanted: Wanted, begun: Begun) {
        self.shared.begin_then(wanted, Waiter { begun, exempt: false });
    }

    /// Puts what production has executed into the journal, in this order; all or none. On return it survives the death of the process.
    /// `changes` lie within what was taken.
    ///
    /// Errors: the journal refused, and hosts are to be stopped: the host is told that the change failed. It is in production all the
    /// same, and resynchronised.
    pub fn capture(&self, taken: Taken, changes: &[Change<'_>]) -> Result<Captured, LunError> {
        let covered = self
            .shared
            .inside
            .lock()
            .takes
            .wanted(taken.number)
            .is_some_and(|wanted| changes.iter().all(|change| wanted.covers(change)));
        if !covered {
            drop(taken);
            return Err(self.shared.defect("a change outside of what was taken for it"));
        }
        self.shared.record(taken, |volume| volume.submit(changes))
    }

    /// As [`Split::capture`], for a copy that production has executed by itself: `pieces` of `source`, which were taken as sources, became
    /// what was taken here. Where blocks differ there, what came of them is read back here. If there is a sign that production may have
    /// lost some of them, it is looked into first.
    ///
    /// Errors: as of [`Split::capture`].
    pub fn capture_copy(
        &self,
        taken: Taken,
        source: &Split,
        pieces: &[CopyPiece],
        when_read: WhenRead,
    ) -> Result<(), LunError> {
        let covered = self.shared.inside.lock().takes.wanted(taken.number).is_some_and(|wanted| {
            pieces.iter().all(|p| wanted.covers(&Change::Zero { lba: p.lba, count: p.count }))
        });
        if !covered {
            drop(taken);
            return Err(self.shared.defect("a copy outside of what was taken for it"));
        }
        let source = Arc::clone(&source.shared);
        match source.is_in_step(pieces) {
            Some(true) => self.shared.record_copy(taken, &source, pieces).map(|_| ()),
            Some(false) => {
                self.read_back(taken, when_read);
                Ok(())
            }
            None => {
                self.look_and_copy(taken, source, pieces, when_read);
                Ok(())
            }
        }
    }

    /// Production certainly did not change.
    pub fn unchanged(&self, taken: Taken) {
        self.shared.finish(taken, false);
    }

    /// Nobody knows whether production has executed what was taken, and it may do so yet: it counts as differing from now on, so that no
    /// point of the time in doubt is taken for consistent. [`Split::unknown`] ends it.
    pub fn doubt(&self, taken: &Taken) {
        self.shared.doubt(taken.number);
    }

    /// Production may have changed, nobody knows how: what was taken is read and compared.
    pub fn unknown(&self, taken: Taken) {
        self.shared.finish(taken, true);
    }

    /// A change in doubt that may stay so for long: others may have its blocks from now on.
    pub fn let_pass(&self, taken: Taken) -> InDoubt {
        self.shared.let_pass(taken)
    }

    /// Makes what was captured survive a loss of power, as far as the journal goes; production's own flush comes first. While changes are
    /// tracked there is nothing to do: their marks are on the medium.
    pub fn flush_then(&self, done: FlushDone) {
        if self.shared.tracking() {
            return done(Ok(()));
        }
        let shared = Arc::clone(&self.shared);
        self.shared.volume.flush_then(Box::new(move |outcome| match outcome {
            Ok(()) => done(Ok(())),
            Err(e) => {
                let error = shared.refuse(e);
                done(if shared.tracking() { Ok(()) } else { Err(error) });
            }
        }));
    }

    /// Ends it in order: waits for changes under way, makes production and journal durable, and leaves nothing marked but what differs. What
    /// begins later is refused with [`LunError::Gone`].
    ///
    /// Errors: something could not be made durable; what is marked is then compared when the split is opened again.
    pub fn close(&self) -> Result<(), LunError> {
        self.stop();
        let shared = &self.shared;
        let mut inside = shared.inside.lock();
        while !inside.takes.is_empty() {
            shared.tending.wait(&mut inside);
        }
        drop(inside);
        shared.unmark(true)?;
        let failed = |e: std::io::Error| LunError::Io { name: shared.name.clone(), detail: e.to_string() };
        let stamp = shared.production.stamp().unwrap_or([0; 64]);
        shared.inside.lock().marks.map.set_header(|h| h.stamp = stamp).map_err(failed)?;
        shared.sync_map().map_err(failed)
    }

    fn stop(&self) {
        let (waiting, held) = {
            let mut inside = self.shared.inside.lock();
            inside.closed = true;
            let held = std::mem::take(&mut inside.held);
            (inside.takes.give_up(), self.shared.grant(&mut inside, held))
        };
        self.shared.tell(held);
        // Also the tender, if it waits for somebody who does not come back before we have ended.
        for (_, waiter) in waiting {
            (waiter.begun)(Err(LunError::Gone { name: self.shared.name.clone() }));
        }
        self.shared.queued.notify_all();
        self.shared.tending.notify_all();
        self.shared.reading.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                log::error!("{}: a thread of its split had panicked", self.shared.name);
            }
        }
        // Nobody is left to read them.
        let unread = std::mem::take(&mut self.shared.inside.lock().to_read);
        drop(unread);
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Drop for InDoubt {
    fn drop(&mut self) {
        self.shared.end_doubt(self.number, &self.ranges);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.over {
            self.shared.over(self.number, true);
        }
    }
}

pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
