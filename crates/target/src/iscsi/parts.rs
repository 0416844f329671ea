//! What a forwarded command has taken, of one LUN or, if it is a copy, of several: from before it is sent until it is known what became
//! of it.
//!
//! Blocks of several LUNs are taken one LUN after another, in the order of their identities, so that no two commands wait for each other.
//! None of it waits: who has to is told when to go on.

use super::links::ArrayLink;
use super::outbox::Event as Message;
use super::registry::Handle;
use crate::fabric::limbo::Unended;
use crate::fabric::record::Range;
use crate::fabric::{copy, FabricLun, Recorder, Taken};
use crate::lun::LunError;
use crate::scsi::LogicalUnit;
use crate::splitter::{Wanted, WhenRead};
use parking_lot::Mutex;
use std::sync::Arc;

/// What a recorder has answered, and whether the session sleeps over it.
#[derive(Default)]
struct Begin {
    answer: Option<Result<Taken, LunError>>,
    waits: bool,
    /// The command is over: nobody comes for the answer.
    gone: bool,
}

type Awaited = Arc<Mutex<Begin>>;

/// How far the taking is.
pub(super) enum Taking {
    /// Everything is taken.
    Done,
    /// Whoever asked is told when to ask again.
    Waits,
    /// Nothing more is taken; what was is still here.
    Refused(LunError),
}

/// One LUN.
struct Part {
    unit: Arc<LogicalUnit>,
    wanted: Wanted,
    /// By place, where from the blocks come.
    copied: Option<(usize, Vec<crate::lun::CopyPiece>)>,
    taken: Option<Taken>,
    /// Where the blocks come while they are waited for.
    awaited: Option<Awaited>,
}

/// All of them, by place.
#[derive(Default)]
pub(super) struct Parts {
    all: Vec<Part>,
    /// Places in the order in which blocks are taken.
    order: Vec<usize>,
}

/// The LUN of an array that a unit is, if it is one.
pub(super) fn fabric(unit: &LogicalUnit) -> Option<&FabricLun> {
    unit.lun().as_any().downcast_ref()
}

impl Part {
    fn changes(&self) -> bool {
        !self.wanted.changes.is_empty()
    }

    /// Gives back what is taken, which nobody has changed.
    fn let_go(&mut self) {
        let answered = self.awaited.take().and_then(|awaited| {
            let mut begin = awaited.lock();
            begin.gone = true;
            begin.answer.take()
        });
        let taken = self.taken.take().into_iter().chain(answered.and_then(Result::ok));
        if let Some(lun) = fabric(&self.unit) {
            taken.for_each(|taken| lun.recorder().unchanged(taken));
        }
    }

    /// Nobody knows what became of it, and it is over; the host waits until it has been read, if it can.
    fn read_back(&mut self, reading: &Arc<Reading>) {
        if !self.changes() {
            return self.let_go();
        }
        if let (Some(lun), Some(taken)) = (fabric(&self.unit), self.taken.take()) {
            lun.recorder().read_back(taken, reading.told(None));
        }
    }

    /// Nobody knows what became of it, and it is over.
    fn unknown(&mut self) {
        if !self.changes() {
            return self.let_go();
        }
        if let (Some(lun), Some(taken)) = (fabric(&self.unit), self.taken.take()) {
            lun.recorder().unknown(taken);
        }
    }
}

/// Kept by all that is read back of one command, until it has been; then, dropped, it has the command answered.
pub(super) struct Reading {
    handle: Arc<Handle>,
    number: u64,
    failed: Mutex<Option<LunError>>,
}

impl Reading {
    pub(super) fn new(handle: &Arc<Handle>, number: u64) -> Arc<Reading> {
        Arc::new(Reading { handle: Arc::clone(handle), number, failed: Mutex::default() })
    }

    fn told(self: &Arc<Self>, sources: Option<Arc<Sources>>) -> WhenRead {
        let reading = Arc::clone(self);
        Box::new(move |outcome| {
            drop(sources);
            if let Err(error) = outcome {
                *reading.failed.lock() = Some(error);
            }
        })
    }
}

/// What a copy only reads, taken until every record says what was copied from there.
struct Sources(Mutex<Vec<(Arc<dyn Recorder>, Taken)>>);

impl Drop for Sources {
    fn drop(&mut self) {
        self.0.get_mut().drain(..).for_each(|(recorder, taken)| recorder.unchanged(taken));
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.handle.outbox.push(Message::Settled(self.number, self.failed.get_mut().take()));
    }
}

/// A change that was under way when its session was lost.
struct Lost {
    recorder: Arc<dyn Recorder>,
    taken: Option<Taken>,
}

impl Unended for Lost {
    fn let_pass(&mut self) {
        self.taken = self.taken.take().map(|taken| self.recorder.let_pass(taken));
    }

    fn conclude(mut self: Box<Self>) {
        if let Some(taken) = self.taken.take() {
            self.recorder.unknown(taken);
        }
    }
}

impl Parts {
    /// `ranges` of one LUN, which are changed. `payload_bytes` is what the command itself holds of that; `None`: it is to be read back.
    pub(super) fn change(unit: &Arc<LogicalUnit>, ranges: &[Range], payload_bytes: Option<u64>) -> Parts {
        let changes = ranges.iter().map(|(lba, count)| *lba..lba.saturating_add(*count)).collect();
        let wanted = Wanted { changes, payload_bytes: payload_bytes.unwrap_or(0), ..Wanted::default() };
        let wanted = if payload_bytes.is_none() { wanted.to_read_back() } else { wanted };
        let part = Part { unit: Arc::clone(unit), wanted, copied: None, taken: None, awaited: None };
        Parts { all: vec![part], order: vec![0] }
    }

    /// What a copy needs of `units`, which are by its places.
    pub(super) fn copy(units: Vec<Arc<LogicalUnit>>, parts: Vec<copy::Part>) -> Parts {
        let all: Vec<Part> = units
            .into_iter()
            .zip(parts)
            .map(|(unit, copy::Part { wanted, copied })| Part {
                unit,
                wanted,
                copied,
                taken: None,
                awaited: None,
            })
            .collect();
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|at| all[*at].unit.lun().identity().uuid);
        let mut parts = Parts { all, order };
        for at in 0..parts.all.len() {
            if parts.all[at].changes() && parts.certain_source(at).is_none() {
                let part = &mut parts.all[at];
                part.wanted = std::mem::take(&mut part.wanted).to_read_back();
            }
        }
        parts
    }

    /// Where from the blocks of the LUN at this place come, if a record may say so; as far as that can be told without having them.
    fn certain_source(&self, at: usize) -> Option<Arc<LogicalUnit>> {
        let part = &self.all[at];
        let source = &self.all[part.copied.as_ref()?.0].unit;
        let (to, from) = (fabric(&part.unit)?, fabric(source)?);
        // Signs of trouble at one of them are signs for the other.
        let signs = Arc::ptr_eq(&to.array().signs, &from.array().signs);
        let certain = signs && from.production().is_steady() && to.recorder().refers_to(&**from.recorder());
        certain.then(|| Arc::clone(source))
    }

    /// Whether something of it is to be read back, as far as that is known before.
    pub(super) fn to_read_back(&self) -> bool {
        self.all.iter().any(|part| part.wanted.read_back_bytes > 0 || part.copied.is_some())
    }

    /// Blocks that are changed.
    pub(super) fn changed_blocks(&self) -> u64 {
        self.all.iter().map(|part| part.wanted.changed_blocks()).sum()
    }

    /// Takes what is not taken yet, as far as it can be had now. `tell` is called when it is worth asking again.
    pub(super) fn take(&mut self, tell: impl Fn() + Clone + Send + 'static) -> Taking {
        for at in &self.order {
            let part = &mut self.all[*at];
            let nothing = part.wanted.changes.is_empty() && part.wanted.sources.is_empty();
            if nothing || part.taken.is_some() {
                continue;
            }
            let Some(lun) = fabric(&part.unit) else {
                continue;
            };
            let awaited = part.awaited.get_or_insert_with(|| {
                let awaited = Awaited::default();
                let (place, recorder, tell) =
                    (Arc::clone(&awaited), Arc::clone(lun.recorder()), tell.clone());
                let begun = Box::new(move |answer| {
                    let mut begin = place.lock();
                    match answer {
                        Ok(taken) if begin.gone => return recorder.unchanged(taken),
                        answer => begin.answer = Some(answer),
                    }
                    // Told before the call returned, it is seen without a message.
                    if begin.waits {
                        tell();
                    }
                });
                lun.recorder().begin(part.wanted.clone(), begun);
                awaited
            });
            let answer = {
                let mut begin = awaited.lock();
                begin.waits = true;
                begin.answer.take()
            };
            match answer {
                None => return Taking::Waits,
                Some(Ok(taken)) => (part.taken, part.awaited) = (Some(taken), None),
                Some(Err(error)) => return Taking::Refused(error),
            }
        }
        Taking::Done
    }

    /// Nothing was changed: all is given back, also what comes yet.
    pub(super) fn let_go(&mut self) {
        self.all.iter_mut().for_each(Part::let_go);
    }

    /// It is over, and nobody knows how: what was to be changed is read back.
    pub(super) fn unknown(&mut self) {
        self.all.iter_mut().for_each(Part::unknown);
    }

    /// As [`Parts::unknown`], before the host is answered, where that does not take long.
    pub(super) fn read_back(&mut self, reading: &Arc<Reading>) {
        self.all.iter_mut().for_each(|part| part.read_back(reading));
    }

    /// It is lost, and the array may execute it yet: what is to be changed stays taken, and is read back when it is over for certain.
    pub(super) fn doubt(&mut self, link: Option<&ArrayLink>) {
        for part in &mut self.all {
            let lun = fabric(&part.unit).filter(|_| part.changes());
            let (Some(lun), Some(link)) = (lun, link) else {
                part.unknown();
                continue;
            };
            if let Some(taken) = part.taken.take() {
                let recorder = Arc::clone(lun.recorder());
                recorder.doubt(&taken);
                link.put_in_limbo(lun.in_limbo(), Box::new(Lost { recorder, taken: Some(taken) }));
            }
        }
    }

    /// What the one LUN there is has taken.
    pub(super) fn only(&mut self) -> Option<Taken> {
        self.all.first_mut().and_then(|part| part.taken.take())
    }

    /// The array has copied everything. What is only read is let go of when all is recorded. What no record says is read back.
    ///
    /// Errors: of the first LUN that could not record it. The others are recorded all the same.
    pub(super) fn copied(&mut self, reading: &Arc<Reading>) -> Result<(), LunError> {
        let mut outcome = Ok(());
        let only_read = self.all.iter_mut().filter(|part| !part.changes());
        let taken = |part: &mut Part| Some((Arc::clone(fabric(&part.unit)?.recorder()), part.taken.take()?));
        let sources = Arc::new(Sources(Mutex::new(only_read.filter_map(taken).collect())));
        for at in 0..self.all.len() {
            let source = self.certain_source(at);
            let copied = self.all[at].copied.take();
            let source = source.as_deref().and_then(fabric);
            let part = &mut self.all[at];
            match (fabric(&part.unit).filter(|_| part.changes()), copied, source) {
                (Some(lun), Some((_, pieces)), Some(source)) => {
                    if let Some(taken) = part.taken.take() {
                        let recorder = source.recorder();
                        let (to, told) = (lun.recorder(), reading.told(Some(Arc::clone(&sources))));
                        let captured = to.capture_copy(taken, &**recorder, &pieces, told);
                        outcome = outcome.and(captured);
                    }
                }
                (Some(_), ..) => part.read_back(reading),
                (None, ..) => {}
            }
        }
        outcome
    }
}
