//! The oracle: what every block of every volume, image and branch must be, at every moment the journal still has.
//!
//! It keeps one immutable [`Rope`](rope::Rope) per volume and moment, and knows nothing of segments, runs or timelines: a rewind is
//! taking up an old state again, a writable image is a state of its own.
#![allow(dead_code)]

pub(crate) mod block;
pub(crate) mod rope;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use block::{Token, BLOCK_BYTES};
use playhead_journal::{Change, Lsn};
use rope::{Rope, Run};

/// Bytes of a segment before its first record.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 64;

/// Whether two points are the same instant: the end of a segment's last record is the beginning of the next segment, too.
pub(crate) fn same_point(a: Lsn, b: Lsn, segment_bytes: u64) -> bool {
    let (low, high) = (a.min(b), a.max(b));
    low == high || high == (low / segment_bytes + 1) * segment_bytes + SEGMENT_HEADER_BYTES
}

/// All volumes of a group at one moment.
pub(crate) type State = BTreeMap<String, Rope>;

/// A change of one volume, owned.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Write { lba: u64, count: u64, tag: u64 },
    WriteSame { lba: u64, count: u64, tag: u64 },
    Zero { lba: u64, count: u64 },
    Unmap { lba: u64, count: u64 },
}

impl Act {
    pub(crate) fn range(&self) -> (u64, u64) {
        match *self {
            Act::Write { lba, count, .. }
            | Act::WriteSame { lba, count, .. }
            | Act::Zero { lba, count }
            | Act::Unmap { lba, count } => (lba, count),
        }
    }

    /// The bytes that travel with it.
    pub(crate) fn payload(&self) -> Vec<u8> {
        match *self {
            Act::Write { count, tag, .. } => {
                let mut bytes = vec![0; count as usize * BLOCK_BYTES];
                for (index, block) in bytes.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                    Token::Data { tag, index: index as u64 }.fill(block);
                }
                bytes
            }
            Act::WriteSame { tag, .. } => {
                let mut bytes = vec![0; BLOCK_BYTES];
                Token::Data { tag, index: u64::MAX }.fill(&mut bytes);
                bytes
            }
            Act::Zero { .. } | Act::Unmap { .. } => Vec::new(),
        }
    }

    /// As the journal takes it.
    pub(crate) fn change<'a>(&self, payload: &'a [u8]) -> Change<'a> {
        match *self {
            Act::Write { lba, .. } => Change::Write { lba, data: payload },
            Act::WriteSame { lba, count, .. } => Change::WriteSame { lba, count, block: payload },
            Act::Zero { lba, count } => Change::Zero { lba, count },
            Act::Unmap { lba, count } => Change::Unmap { lba, count },
        }
    }

    /// The records it becomes when none may carry more than `most` blocks.
    pub(crate) fn pieces(&self, most: u64) -> Vec<(u64, Rope)> {
        let (lba, count) = self.range();
        let whole = self.rope();
        match self {
            Act::Write { .. } => (0..count)
                .step_by(most as usize)
                .map(|at| (lba + at, whole.slice(at, most.min(count - at))))
                .collect(),
            _ => vec![(lba, whole)],
        }
    }

    fn rope(&self) -> Rope {
        let run = match *self {
            Act::Write { tag, .. } => Run::Data { tag, first: 0 },
            Act::WriteSame { tag, .. } => Run::Same { tag },
            Act::Zero { .. } | Act::Unmap { .. } => Run::Zero,
        };
        Rope::of(run, self.range().1)
    }

    /// What it makes of a volume.
    pub(crate) fn apply(&self, rope: &Rope) -> Rope {
        rope.with(self.range().0, self.rope())
    }
}

/// Production between two neighbouring positions of the head.
#[derive(Clone)]
pub(crate) struct Moment {
    pub(crate) head: Lsn,
    pub(crate) time_ns: u64,
    pub(crate) state: Arc<State>,
    /// For a batch of changes: production after each but the last, whose positions lie before `head`.
    pub(crate) steps: Vec<Arc<State>>,
    /// It was several records of which the oracle does not know the cuts: nothing is said of points inside it.
    pub(crate) opaque: bool,
}

/// Production's whole past, as far as the window reaches.
#[derive(Default)]
pub(crate) struct Past {
    moments: VecDeque<Moment>,
}

impl Past {
    /// Adds the newest moment. At the same head, only the state is new (a volume came or went).
    pub(crate) fn push(&mut self, moment: Moment) {
        if let Some(last) = self.moments.back_mut() {
            assert!(last.head <= moment.head, "the head went back from {} to {}", last.head, moment.head);
            if last.head == moment.head {
                last.state = moment.state;
                return;
            }
        }
        self.moments.push_back(moment);
    }

    /// Forgets what is before `edge`; the moment that a point between two heads still shows is kept.
    pub(crate) fn trim(&mut self, edge: Lsn) {
        while self.moments.get(1).is_some_and(|m| m.head <= edge) {
            self.moments.pop_front();
        }
    }

    /// A volume that was removed is in no state any more.
    pub(crate) fn forget_volume(&mut self, name: &str) {
        // Neighbours share states; so do what remains of them.
        let mut done: Option<(*const State, Arc<State>)> = None;
        let mut without = |state: &mut Arc<State>| {
            if !state.contains_key(name) {
                return;
            }
            let key = Arc::as_ptr(state);
            let new = match &done {
                Some((known, new)) if *known == key => new.clone(),
                _ => {
                    let mut new = (**state).clone();
                    new.remove(name);
                    Arc::new(new)
                }
            };
            done = Some((key, new.clone()));
            *state = new;
        };
        for moment in &mut self.moments {
            moment.steps.iter_mut().for_each(&mut without);
            without(&mut moment.state);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.moments.len()
    }

    pub(crate) fn get(&self, index: usize) -> &Moment {
        &self.moments[index]
    }

    pub(crate) fn last(&self) -> &Moment {
        &self.moments[self.moments.len() - 1]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Moment> {
        self.moments.iter()
    }

    /// The moment whose head is `lsn`, or the last before it if nothing but the end of a segment lies between.
    pub(crate) fn exactly(&self, lsn: Lsn, segment_bytes: u64) -> Option<&Moment> {
        let i = self.moments.partition_point(|m| m.head < lsn);
        let moment = self.moments.get(i)?;
        if moment.head == lsn {
            return Some(moment);
        }
        // One record, which as a whole lies after the segment's beginning.
        let begins = lsn % segment_bytes == SEGMENT_HEADER_BYTES && moment.steps.is_empty() && !moment.opaque;
        self.moments.get(i.checked_sub(1)?).filter(|_| begins)
    }

    /// The states that point `lsn` may show: one, unless it lies inside a batch, whose inner positions the oracle does not know;
    /// none, if it cannot be told.
    pub(crate) fn candidates(&self, lsn: Lsn, segment_bytes: u64) -> Vec<Arc<State>> {
        if let Some(moment) = self.exactly(lsn, segment_bytes) {
            return vec![moment.state.clone()];
        }
        let i = self.moments.partition_point(|m| m.head < lsn);
        let Some(moment) = self.moments.get(i) else {
            return Vec::new();
        };
        if moment.opaque {
            return Vec::new();
        }
        let before = i.checked_sub(1).map(|b| self.moments[b].state.clone());
        before.into_iter().chain(moment.steps.iter().cloned()).chain([moment.state.clone()]).collect()
    }

    /// The index of the last moment not after a time.
    pub(crate) fn at_time(&self, time_ns: u64) -> Option<usize> {
        self.moments.partition_point(|m| m.time_ns <= time_ns).checked_sub(1)
    }
}

/// Compares a stretch with what was read; says where and how they differ.
pub(crate) fn difference(rope: &Rope, lba: u64, read: &[u8]) -> Option<String> {
    let mut expected = vec![0; read.len()];
    rope.read(lba, &mut expected);
    if expected == read {
        return None;
    }
    let mut wrong = 0;
    let mut first = String::new();
    for (i, (want, got)) in expected.chunks(BLOCK_BYTES).zip(read.chunks(BLOCK_BYTES)).enumerate() {
        if want != got {
            if wrong == 0 {
                first = format!(
                    "block {} should be {} but is {}",
                    lba + i as u64,
                    Token::describe(want),
                    Token::describe(got)
                );
            }
            wrong += 1;
        }
    }
    Some(format!("{first} ({wrong} of {} blocks differ)", read.len() / BLOCK_BYTES))
}
