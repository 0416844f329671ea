//! Commands that take long: a job runs on one of the `workers`, and its session answers when it is over.

use super::commands::Asked;
use super::masking::Seen;
use super::outbox::Event;
use super::session::{Session, View};
use super::Shared;
use crate::scsi::{
    Attention, Cancel, InitiatorPort, Job, JobEnd, LogicalUnit, Nexus, Reach, Reached, Refusal, Tokens,
};
use parking_lot::{Condvar, Mutex};
use playhead_wire::iscsi::response::Residual;
use playhead_wire::scsi::{status, Command, Sense};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a session that ends waits for its jobs to notice.
const ABANDON_PATIENCE: Duration = Duration::from_secs(5);

/// Tells the worker from the session whether the job is over.
#[derive(Debug, Default)]
struct Over {
    flag: Mutex<bool>,
    changed: Condvar,
}

/// A command whose job is at work.
#[derive(Debug)]
pub(super) struct Working {
    asked: Asked,
    /// What the command may return at most, in bytes.
    allocation_bytes: usize,
    moved_bytes: u64,
    cancel: Arc<Cancel>,
    over: Arc<Over>,
    /// Aborted, or in the background: its end is not told.
    silent: bool,
}

impl Working {
    pub(super) fn unit(&self) -> &Arc<LogicalUnit> {
        self.cancel.unit()
    }

    /// Its tag; an aborted command has none that could be asked for.
    pub(super) fn itt(&self) -> u32 {
        if self.silent {
            playhead_wire::iscsi::RESERVED_TAG
        } else {
            self.asked.itt
        }
    }
}

/// What an initiator may name: the units of this session, and those it is shown of every other target.
pub(super) struct SessionReach<'a> {
    pub(super) shared: &'a Shared,
    pub(super) port: &'a InitiatorPort,
    pub(super) views: &'a [View],
}

impl SessionReach<'_> {
    /// The unit that `which` picks, if the initiator is shown it.
    pub(super) fn find(&self, which: impl Fn(&LogicalUnit) -> bool) -> Option<Reached> {
        if let Some(view) = self.views.iter().find(|view| which(&view.unit)) {
            return Some(Reached { unit: Arc::clone(&view.unit), nexus: Arc::clone(&view.nexus) });
        }
        let masking = self.shared.masking();
        let mut found: Option<Reached> = None;
        for target in self.shared.catalogue.targets() {
            let (_, units) = target.units();
            if !units.iter().any(|(_, unit)| which(unit)) {
                continue;
            }
            let view = masking.view(&target.name, units, &self.port.name);
            for (seen, unit) in view.into_values().filter(|(_, unit)| which(unit)) {
                // One LUN may be presented by several targets: where it may be written counts.
                if found.as_ref().is_none_or(|found| found.nexus.read_only() && !seen.read_only) {
                    let nexus = unit.visit(self.port.clone(), &self.shared.policy());
                    set_up(&nexus, seen);
                    nexus.forget(Attention::PowerOn);
                    found = Some(Reached { unit, nexus });
                }
            }
        }
        found
    }
}

impl Reach for SessionReach<'_> {
    fn by_naa(&self, naa: &[u8; 16]) -> Option<Reached> {
        self.find(|unit| unit.naa() == naa)
    }

    fn tokens(&self) -> Option<Arc<Tokens>> {
        Some(Arc::clone(&self.shared.tokens))
    }
}

/// Gives a new nexus what its initiator may; there is no change in it to tell.
pub(super) fn set_up(nexus: &Nexus, seen: Seen) {
    nexus.set_read_only(seen.read_only);
    nexus.forget(Attention::ModeParametersChanged);
}

impl Session {
    /// Has a worker do `job`; the command ends when it is over, or now if the job goes on in the background. That ends with the
    /// session: an initiator that lost sight of it must not find it writing later.
    pub(super) fn start_job(
        &mut self,
        view: &View,
        command: &Command,
        asked: &Asked,
        job: Job,
        background: bool,
    ) {
        let number = self.next_job;
        self.next_job += 1;
        let cancel = Arc::new(Cancel::since(Arc::clone(&view.unit), Arc::clone(&view.nexus), asked.epoch));
        let over = Arc::new(Over::default());
        let working = Working {
            asked: *asked,
            allocation_bytes: command.allocation_bytes().map_or(usize::MAX, |bytes| bytes as usize),
            moved_bytes: command.data_out_bytes(crate::lun::BLOCK_BYTES as u64),
            cancel: Arc::clone(&cancel),
            over: Arc::clone(&over),
            silent: background,
        };
        let moved_bytes = working.moved_bytes;
        let handle = Arc::clone(&self.handle);
        let task = Box::new(move || {
            let changing = cancel.changing();
            let end = if changing.is_none() || cancel.is_cancelled() {
                Err(Refusal::Check(Sense::INTERNAL_FAILURE)) // not told to anyone
            } else {
                // A fault in one copy must not cost the others their worker.
                catch_unwind(AssertUnwindSafe(|| job.run(&cancel)))
                    .unwrap_or(Err(Refusal::Check(Sense::INTERNAL_FAILURE)))
            };
            drop(changing);
            drop(cancel);
            *over.flag.lock() = true;
            over.changed.notify_all();
            handle.outbox.push(Event::Worked(number, end));
        });
        // Those in the background have left the window, and must have a bound too.
        let has_room = self.working.len() < 2 * self.shared.limits.tasks_max as usize;
        if has_room && self.shared.workers.give(&self.port.name, *view.unit.naa(), task) {
            self.working.insert(number, working);
            if background {
                self.answers.ending(&asked.ending(status::GOOD, moved_bytes));
            }
        } else {
            let residual = Residual::of(asked.expected_bytes, 0);
            let busy = super::answers::Ending { residual, ..asked.ending(status::BUSY, 0) };
            self.answers.ending(&busy);
        }
    }

    /// A job is over: its command ends, unless it was aborted meanwhile.
    pub(super) fn worked(&mut self, number: u64, end: JobEnd) {
        let Some(working) = self.working.remove(&number) else {
            return;
        };
        if working.silent {
            return;
        }
        if working.cancel.is_cancelled() {
            self.answers.finish(working.asked.immediate);
            return;
        }
        match end {
            Ok(mut data) if !data.is_empty() => {
                data.truncate(working.allocation_bytes);
                self.give(&working.asked, &data);
            }
            Ok(_) => self.answers.ending(&working.asked.ending(status::GOOD, working.moved_bytes)),
            Err(refusal) => {
                let unit = Arc::clone(working.unit());
                self.refuse_of(&unit, &working.asked, refusal, working.moved_bytes);
            }
        }
    }

    /// Ends the chosen jobs unanswered. Returns those that have not noticed: they are gone from `working` when they have.
    pub(super) fn abort_jobs(&mut self, chosen: impl Fn(&Working) -> bool) -> Vec<u64> {
        let mut told = Vec::new();
        for (number, working) in self.working.iter_mut().filter(|(_, working)| !working.silent) {
            if chosen(working) {
                working.cancel.cancel();
                working.silent = true;
                self.answers.finish(working.asked.immediate);
                told.push(*number);
            }
        }
        told
    }

    /// Has what goes on in the background end, too.
    pub(super) fn cancel_background(&self) {
        self.working.values().for_each(|working| working.cancel.cancel());
    }

    /// The session ends: so do its jobs. Waits until they change nothing more, for a session that takes this one's place must not
    /// meet them.
    pub(super) fn abandon_jobs(&mut self) {
        self.working.values().for_each(|working| working.cancel.cancel());
        let deadline = Instant::now() + ABANDON_PATIENCE;
        for (_, working) in self.working.drain() {
            let mut over = working.over.flag.lock();
            while !*over && !working.over.changed.wait_until(&mut over, deadline).timed_out() {}
        }
    }
}
