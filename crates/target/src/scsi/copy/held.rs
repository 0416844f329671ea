//! Copies by list identifier: those at work, and what became of the latest.

use super::super::unit::Refusal;
use super::CONCURRENT_MAX;
use parking_lot::{Condvar, Mutex};
use playhead_wire::scsi::copy_status::{CopyState, CopyStatus, TransferUnits};
use playhead_wire::scsi::rod_token::TOKEN_BYTES;
use playhead_wire::scsi::{status, Sense};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Copies one nexus is told of; the oldest that is over makes room.
const HELD_MAX: usize = 128;

/// What is known of a copy.
#[derive(Debug)]
struct Record {
    state: CopyState,
    status: u8,
    sense: Option<Sense>,
    transferred: u64,
    segments: u16,
    operations: u16,
    token: Option<Box<[u8; TOKEN_BYTES]>>,
    /// RECEIVE COPY STATUS(LID1) has told the end.
    told_1: bool,
    /// RECEIVE COPY FAILURE DETAILS(LID1) has told the failure.
    told_failure: bool,
}

/// One copy, as the initiator that asked for it and the job that does it see it.
#[derive(Debug)]
pub(in crate::scsi) struct Operation {
    service_action: u8,
    units: TransferUnits,
    abort: AtomicBool,
    record: Mutex<Record>,
    over: Condvar,
}

impl Operation {
    /// A copy that begins now for the command of this service action.
    pub(super) fn new(service_action: u8, background: bool) -> Operation {
        let state = if background { CopyState::Background } else { CopyState::Foreground };
        Operation {
            service_action,
            units: if service_action >= 0x10 { TransferUnits::Blocks } else { TransferUnits::Bytes },
            abort: AtomicBool::new(false),
            record: Mutex::new(Record {
                state,
                status: status::GOOD,
                sense: None,
                transferred: 0,
                segments: 0,
                operations: 0,
                token: None,
                told_1: false,
                told_failure: false,
            }),
            over: Condvar::new(),
        }
    }

    /// The work has come to `segment`, from 0.
    pub(super) fn at_segment(&self, segment: u16) {
        let mut record = self.record.lock();
        record.segments = record.segments.max(segment.saturating_add(1));
    }

    /// More is copied, in the units of this kind of copy.
    pub(super) fn transferred(&self, more: u64) {
        let mut record = self.record.lock();
        record.transferred += more;
        record.operations = record.operations.wrapping_add(1);
    }

    /// What is copied so far, in the units of this kind of copy.
    pub(super) fn transferred_so_far(&self) -> u64 {
        self.record.lock().transferred
    }

    /// The copy is over. Only the first call counts.
    pub(super) fn end(&self, state: CopyState, end: Result<(), Refusal>) {
        let mut record = self.record.lock();
        if record.state.is_over() {
            return;
        }
        record.state = state;
        match end {
            Ok(()) => {}
            Err(Refusal::Check(sense)) => {
                record.status = status::CHECK_CONDITION;
                record.sense = Some(sense);
            }
            Err(Refusal::Conflict) => record.status = status::RESERVATION_CONFLICT,
        }
        self.over.notify_all();
    }

    /// The token it made.
    pub(super) fn made(&self, token: [u8; TOKEN_BYTES]) {
        self.record.lock().token = Some(Box::new(token));
    }

    /// Asks the job to stop.
    pub(super) fn abort(&self) {
        self.abort.store(true, Ordering::Release);
    }

    /// Whether it was asked to stop.
    pub(super) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Acquire)
    }

    /// Waits for the end, at most for `patience`. False: it has not come.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let mut record = self.record.lock();
        if !record.state.is_over() {
            self.over.wait_while_for(&mut record, |record| !record.state.is_over(), patience);
        }
        record.state.is_over()
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.record.lock().state.is_over()
    }

    /// Has `f` word what is known; `sense` in the format of the unit's control mode page.
    pub(super) fn tell(&self, descriptor_format: bool, f: impl FnOnce(&CopyStatus<'_>)) {
        let record = self.record.lock();
        let mut sense = Vec::new();
        if let Some(of) = &record.sense {
            of.emit(descriptor_format, &mut sense);
        }
        f(&CopyStatus {
            service_action: self.service_action,
            state: record.state,
            status: record.status,
            sense: &sense,
            transferred: record.transferred,
            units: self.units,
            segments: record.segments,
            operations: record.operations,
        });
    }

    /// The token it made, once it is over without error.
    pub(super) fn token(&self) -> Option<Box<[u8; TOKEN_BYTES]>> {
        let record = self.record.lock();
        let told = matches!(record.state, CopyState::Done | CopyState::Partial);
        record.token.clone().filter(|_| told)
    }

    /// The initiator has the token now.
    pub(super) fn forget_token(&self) {
        self.record.lock().token = None;
    }

    /// For RECEIVE COPY STATUS(LID1), which tells an end only once. False: it was told.
    pub(super) fn tell_once(&self) -> bool {
        let mut record = self.record.lock();
        let told = record.told_1;
        record.told_1 = record.state.is_over();
        !told
    }

    /// For RECEIVE COPY FAILURE DETAILS(LID1), which tells them once: status and sense of a failed EXTENDED COPY.
    pub(super) fn take_failure(&self) -> Option<(u8, Option<Sense>)> {
        let mut record = self.record.lock();
        let failed = record.state == CopyState::Failed && !record.told_failure;
        record.told_failure = true;
        failed.then_some((record.status, record.sense))
    }
}

/// Sees to it that a copy that nobody does any more is over.
#[derive(Debug)]
pub(in crate::scsi) struct AtWork(pub(super) Arc<Operation>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.end(CopyState::Terminated, Ok(()));
    }
}

/// The copies of one nexus. A list identifier of one byte is one of four (SPC-4 5.17.4.2).
#[derive(Debug, Default)]
pub(in crate::scsi) struct Held {
    by_id: Mutex<Copies>,
}

#[derive(Debug, Default)]
struct Copies {
    by_id: BTreeMap<u32, (u64, Arc<Operation>)>,
    /// Numbers copies in the order they began.
    next: u64,
}

impl Held {
    /// Begins a copy under `list_id`, or under none.
    ///
    /// Errors: OPERATION IN PROGRESS, INSUFFICIENT RESOURCES.
    pub(super) fn begin(&self, list_id: Option<u32>, operation: Operation) -> Result<AtWork, Sense> {
        let operation = Arc::new(operation);
        let Some(list_id) = list_id else {
            return Ok(AtWork(operation));
        };
        let mut copies = self.by_id.lock();
        if copies.by_id.get(&list_id).is_some_and(|(_, older)| !older.is_over()) {
            return Err(Sense::OPERATION_IN_PROGRESS);
        }
        let at_work = copies.by_id.values().filter(|(_, other)| !other.is_over()).count();
        if at_work >= usize::from(CONCURRENT_MAX) {
            return Err(Sense::INSUFFICIENT_RESOURCES);
        }
        if copies.by_id.len() >= HELD_MAX && !copies.by_id.contains_key(&list_id) {
            let over = copies.by_id.iter().filter(|(_, (_, other))| other.is_over());
            if let Some(oldest) = over.min_by_key(|(_, (number, _))| *number).map(|(id, _)| *id) {
                copies.by_id.remove(&oldest);
            }
        }
        let number = copies.next;
        copies.next += 1;
        copies.by_id.insert(list_id, (number, Arc::clone(&operation)));
        Ok(AtWork(operation))
    }

    /// The copy of `list_id`.
    pub(super) fn find(&self, list_id: u32) -> Option<Arc<Operation>> {
        self.by_id.lock().by_id.get(&list_id).map(|(_, operation)| Arc::clone(operation))
    }

    /// The unit was reset: copies at work end, and what became of others is forgotten.
    pub(in crate::scsi) fn reset(&self) {
        for (_, operation) in std::mem::take(&mut self.by_id.lock().by_id).into_values() {
            operation.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation() -> Operation {
        Operation::new(1, true)
    }

    #[test]
    fn an_identifier_is_taken_while_its_copy_is_at_work() {
        let held = Held::default();
        let at_work = held.begin(Some(7), operation()).unwrap();
        assert_eq!(held.begin(Some(7), operation()).unwrap_err(), Sense::OPERATION_IN_PROGRESS);
        assert!(held.begin(Some(8), operation()).is_ok());
        drop(at_work);
        assert!(held.find(7).unwrap().is_over());
        assert!(held.begin(Some(7), operation()).is_ok());
    }

    #[test]
    fn what_is_held_and_what_is_at_work_is_bounded() {
        let held = Held::default();
        for id in 0..2 * HELD_MAX as u32 {
            drop(held.begin(Some(id), operation()).unwrap());
        }
        assert_eq!(held.by_id.lock().by_id.len(), HELD_MAX);
        assert!(held.find(0).is_none() && held.find(2 * HELD_MAX as u32 - 1).is_some());
        let at_work: Vec<AtWork> = (0..u32::from(CONCURRENT_MAX))
            .map(|id| held.begin(Some(1000 + id), operation()).unwrap())
            .collect();
        assert_eq!(held.begin(Some(5000), operation()).unwrap_err(), Sense::INSUFFICIENT_RESOURCES);
        drop(at_work);
        assert!(held.begin(Some(5000), operation()).is_ok());
    }

    #[test]
    fn the_first_end_counts() {
        let operation = operation();
        operation.end(CopyState::Failed, Err(Sense::COPY_CLEARED.into()));
        operation.end(CopyState::Done, Ok(()));
        assert_eq!(operation.take_failure(), Some((status::CHECK_CONDITION, Some(Sense::COPY_CLEARED))));
        assert_eq!(operation.take_failure(), None);
        assert!(operation.tell_once());
        assert!(!operation.tell_once());
    }
}
