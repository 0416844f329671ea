//! Task management (RFC 7143 11.5, RFC 7144 4): ending tasks, and asking after them.
//!
//! What a function ends is ended at once, but it is answered only when nothing of that can change a unit any more. The session goes
//! on meanwhile: a LUN that does not answer costs it that one answer.

use super::commands::Flushing;
use super::connection::Ended;
use super::session::{Order, Session, View};
use crate::scsi::LogicalUnit;
use playhead_wire::iscsi::bhs::BHS_LEN;
use playhead_wire::iscsi::request::{function, TaskManagement};
use playhead_wire::iscsi::response::{reject, Response};
use playhead_wire::iscsi::SerialNumber;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Functions that may wait for their answer at once.
const MANAGING_MAX: usize = 16;
/// How long they may.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at whether they still must.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Task management responses (RFC 7143 11.6.1, RFC 7144 4.2).
pub(super) mod outcome {
    pub(in crate::iscsi) const COMPLETE: u8 = 0;
    pub(in crate::iscsi) const NO_TASK: u8 = 1;
    pub(in crate::iscsi) const NO_LUN: u8 = 2;
    pub(in crate::iscsi) const NO_REASSIGNMENT: u8 = 4;
    pub(in crate::iscsi) const NOT_SUPPORTED: u8 = 5;
    /// Yes, to a question.
    pub(in crate::iscsi) const SUCCEEDED: u8 = 7;
    pub(in crate::iscsi) const REJECTED: u8 = 255;
}

/// A function whose work is not over.
pub(super) struct Managing {
    itt: u32,
    /// Jobs of this session that were told to stop.
    jobs: Vec<u64>,
    /// Units nobody may be changing.
    units: Vec<Arc<LogicalUnit>>,
    until: Instant,
    /// The session ends with the answer.
    cold: bool,
}

/// What is to be answered.
pub(super) enum Answer {
    Now(u8),
    /// COMPLETE, once these jobs are over and nobody changes these units.
    After(Vec<u64>, Vec<Arc<LogicalUnit>>),
}

impl Session {
    pub(super) fn task_management(
        &mut self,
        request: &TaskManagement,
        bhs: &[u8; BHS_LEN],
    ) -> Result<(), Ended> {
        if self.order(request.immediate, request.cmd_sn, bhs)? == Order::Ignore {
            return Ok(());
        }
        // What came before is captured before anything is aborted.
        self.submit_batch();
        if self.target.is_none() {
            self.reject(reject::PROTOCOL, bhs);
            return Ok(());
        }
        if self.managing.len() >= MANAGING_MAX {
            self.reject(reject::IMMEDIATE, bhs);
            return Ok(());
        }
        let answer = match request.function {
            function::ABORT_TASK => self.abort_task(request),
            function::ABORT_TASK_SET
            | function::CLEAR_TASK_SET
            | function::LOGICAL_UNIT_RESET
            | function::QUERY_TASK_SET => match self.view(request.lun) {
                None => Answer::Now(outcome::NO_LUN),
                Some(at) => {
                    let view = self.views[at].clone();
                    self.on_unit(request.itt, request.function, &view)
                }
            },
            function::TARGET_WARM_RESET | function::TARGET_COLD_RESET => {
                let jobs = self.abort_all(|_| true);
                // Those of arrays are reset when their array says that they are: until then it may execute what it has.
                let own = self.views.iter().filter(|view| !Session::forwards(view));
                let units: Vec<_> = own.map(|view| Arc::clone(&view.unit)).collect();
                units.iter().for_each(|unit| unit.reset());
                self.reset_arrays(request.itt);
                Answer::After(jobs, units)
            }
            function::I_T_NEXUS_RESET => {
                let jobs = self.abort_all(|_| true);
                self.cancel_background();
                self.end_all_forwarded();
                self.forwarding.links.reset();
                self.lose_nexuses();
                Answer::After(jobs, Vec::new())
            }
            function::QUERY_TASK if self.has_task(request.referenced_itt) => Answer::Now(outcome::SUCCEEDED),
            function::QUERY_TASK => Answer::Now(outcome::COMPLETE),
            function::TASK_REASSIGN => Answer::Now(outcome::NO_REASSIGNMENT),
            _ => Answer::Now(outcome::NOT_SUPPORTED),
        };
        let cold = request.function == function::TARGET_COLD_RESET;
        if cold {
            // It ends every session of the target, this one after its answer (RFC 7143 11.5.1).
            if let Some(target) = &self.target {
                self.shared.registry.close_others_of_target(&target.name, self.handle.id);
            }
        }
        match answer {
            Answer::Now(response) => self.managed(request.itt, response, cold),
            Answer::After(jobs, units) => {
                let until = Instant::now() + PATIENCE;
                self.managing.push(Managing { itt: request.itt, jobs, units, until, cold });
                self.settle_tasks();
            }
        }
        Ok(())
    }

    fn on_unit(&mut self, itt: u32, what: u8, view: &View) -> Answer {
        if what == function::QUERY_TASK_SET {
            let any = self.has_task_on(&view.unit);
            return Answer::Now(if any { outcome::SUCCEEDED } else { outcome::COMPLETE });
        }
        let jobs = self.abort_all(|unit| Arc::ptr_eq(unit, &view.unit));
        if Session::forwards(view) {
            return self.manage_array(itt, what, view);
        }
        match what {
            function::CLEAR_TASK_SET => view.unit.clear_task_set(&view.nexus),
            function::LOGICAL_UNIT_RESET => view.unit.reset(),
            _ => return Answer::After(jobs, Vec::new()),
        }
        Answer::After(jobs, vec![Arc::clone(&view.unit)])
    }

    fn abort_task(&mut self, request: &TaskManagement) -> Answer {
        let itt = request.referenced_itt;
        if let Some(answer) = self.abort_forwarded(request.itt, itt) {
            return answer;
        }
        if self.abort_transfer(itt) {
            return Answer::Now(outcome::COMPLETE);
        }
        let jobs = self.abort_jobs(|working| working.itt() == itt);
        if !jobs.is_empty() {
            return Answer::After(jobs, Vec::new());
        }
        let mut found = None;
        for flushing in self.flushing.values_mut() {
            if let Some(at) = flushing.endings.iter().position(|e| e.itt == itt) {
                found = Some(flushing.endings.remove(at));
            }
        }
        if let Some(ending) = found {
            self.answers.finish(ending.immediate);
            return Answer::Now(outcome::COMPLETE);
        }
        // A command that is yet to come counts as aborted; one that has ended does not exist (RFC 7143 11.6.1).
        let referenced = SerialNumber(request.ref_cmd_sn);
        let last = self.answers.max_cmd_sn();
        if !request.immediate || !referenced.is_within(self.answers.exp_cmd_sn, last) {
            return Answer::Now(outcome::NO_TASK);
        }
        Answer::Now(outcome::COMPLETE)
    }

    /// Ends this session's tasks on the chosen units, unanswered. Returns the jobs that are yet to notice.
    fn abort_all(&mut self, chosen: impl Fn(&Arc<LogicalUnit>) -> bool) -> Vec<u64> {
        self.abort_transfers(&chosen);
        self.abort_flushing(|flushing| chosen(&flushing.view.unit));
        self.abort_jobs(|working| chosen(working.unit()))
    }

    fn abort_flushing(&mut self, chosen: impl Fn(&Flushing) -> bool) {
        for flushing in self.flushing.values_mut() {
            if chosen(flushing) {
                for ending in flushing.endings.drain(..) {
                    self.answers.finish(ending.immediate);
                }
            }
        }
    }

    /// Answers the functions whose work is over.
    pub(super) fn settle_tasks(&mut self) {
        if self.managing.is_empty() {
            return;
        }
        for managing in std::mem::take(&mut self.managing) {
            let over = managing.jobs.iter().all(|job| !self.working.contains_key(job))
                && managing.units.iter().all(|unit| !unit.is_changing())
                && !self.forwarding.is_managing(managing.itt);
            if over {
                let response = self.forwarding.outcome(managing.itt);
                self.managed(managing.itt, response, managing.cold);
            } else if Instant::now() >= managing.until {
                log::warn!(
                    "{} of {} ended commands on a LUN, but what they have under way does not come back",
                    self.handle.peer,
                    self.port.name
                );
                // Whatever an array has answered meanwhile is not the whole.
                self.forwarding.outcome(managing.itt);
                self.managed(managing.itt, outcome::REJECTED, managing.cold);
            } else {
                self.managing.push(managing);
            }
        }
    }

    fn managed(&mut self, itt: u32, response: u8, cold: bool) {
        self.answers.pdu(&Response::TaskManagement { response, itt }, &[], true);
        self.closing |= cold;
    }
}
