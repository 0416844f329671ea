//! Durability by group commit: all flushes that wait share one sync of the log.

use std::{
    collections::VecDeque,
    sync::{atomic::Ordering, Arc},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    group::{Group, Inner},
    segment::Segment,
    Error, Lsn, Result,
};

/// Called once when a flush is over, from any thread. Must not block.
pub type FlushDone = Box<dyn FnOnce(Result<()>) + Send>;

/// Flushes that wait for the flusher.
#[derive(Default)]
pub(crate) struct FlushQueue {
    waiting: Mutex<VecDeque<FlushDone>>,
    asked: Condvar,
}

impl FlushQueue {
    pub(crate) fn wake(&self) {
        // With the lock held, so that it cannot fall between the flusher's look and its wait.
        let _waiting = self.waiting.lock();
        self.asked.notify_all();
    }
}

impl Group {
    /// Makes everything captured so far survive power loss; returns what is durable now.
    pub fn flush(&self) -> Result<Lsn> {
        self.0.check_open()?;
        self.0.counters.flushes.fetch_add(1, Ordering::Relaxed);
        self.0.flush_inline()
    }

    /// As [`Group::flush`], but returns at once and calls `done` when it is over.
    pub fn flush_then(&self, done: FlushDone) {
        let i = &self.0;
        i.counters.flushes.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = i.check_open() {
            return done(Err(e));
        }
        if !i.background {
            return done(i.flush_inline().map(|_| ()));
        }
        let mut waiting = i.flush.waiting.lock();
        // The flusher empties the queue after `closed` is set, with this lock held; so here either it still will, or we refuse.
        if i.closed.load(Ordering::Acquire) {
            drop(waiting);
            return done(Err(Error::Gone(format!("group {}", i.name))));
        }
        waiting.push_back(done);
        i.flush.asked.notify_one();
    }
}

impl Inner {
    /// The flusher's thread: until the group is closed and nobody waits.
    pub(crate) fn run_flusher(&self) {
        loop {
            let batch = {
                let mut waiting = self.flush.waiting.lock();
                while waiting.is_empty() {
                    if self.closed.load(Ordering::Acquire) {
                        return;
                    }
                    self.flush.asked.wait(&mut waiting);
                }
                std::mem::take(&mut *waiting)
            };
            let outcome = self.flush_inline();
            for done in batch {
                done(match &outcome {
                    Ok(_) => Ok(()),
                    Err(e) => Err(e.again()),
                });
            }
        }
    }

    /// Syncs what of the log is not durable, in order; returns what is durable now.
    pub(crate) fn flush_inline(&self) -> Result<Lsn> {
        let _one_at_a_time = self.syncing.lock();
        self.check_medium()?;
        let (target, segments): (Lsn, Vec<Arc<Segment>>) = {
            let state = self.state.read();
            let unsettled = state.segments.values().rev().take_while(|s| !s.is_settled()).cloned().collect();
            (state.head.lsn, unsettled)
        };
        if self.durable.load(Ordering::Acquire) >= target {
            return Ok(self.durable.load(Ordering::Acquire));
        }
        for segment in segments.iter().rev() {
            segment.sync(&*self.files).inspect_err(|e| self.fail(e))?;
        }
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        // All but the newest were full before the sync began, so they are done with for ever.
        for segment in segments.iter().skip(1) {
            segment.settled.store(true, Ordering::Release);
        }
        Ok(self.durable.fetch_max(target, Ordering::AcqRel).max(target))
    }
    /// Makes a full segment durable.
    pub(crate) fn settle_segment(&self, segment: &Segment) -> Result<()> {
        let _one_at_a_time = self.syncing.lock();
        self.check_medium()?;
        if !segment.is_settled() {
            segment.sync(&*self.files).inspect_err(|e| self.fail(e))?;
            segment.settled.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn check_medium(&self) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some(cause) => Err(Error::Failed { group: self.name.clone(), cause: cause.clone() }),
        }
    }
}
