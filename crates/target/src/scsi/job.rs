//! Work that takes longer than a session may stand still: the command ends when the work does, its session goes on meanwhile.

use super::nexus::{Changing, Nexus};
use super::unit::{LogicalUnit, Refusal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// How a job ends: data for the initiator, not yet cut to any allocation length, or a refusal.
pub type JobEnd = Result<Vec<u8>, Refusal>;

/// Whether a job's command still wants it.
#[derive(Debug)]
pub struct Cancel {
    unit: Arc<LogicalUnit>,
    nexus: Arc<Nexus>,
    epoch: u32,
    aborted: AtomicBool,
}

impl Cancel {
    /// For a command of `nexus` on `unit` that begins now.
    pub fn new(unit: Arc<LogicalUnit>, nexus: Arc<Nexus>) -> Cancel {
        let epoch = unit.epoch(&nexus);
        Cancel::since(unit, nexus, epoch)
    }

    /// As [`Cancel::new`], for a command that began in `epoch`.
    pub fn since(unit: Arc<LogicalUnit>, nexus: Arc<Nexus>, epoch: u32) -> Cancel {
        Cancel { unit, nexus, epoch, aborted: AtomicBool::new(false) }
    }

    /// The command was aborted, its tasks were cleared or its unit was reset: stop soon, and change nothing more.
    pub fn is_cancelled(&self) -> bool {
        self.aborted.load(Ordering::Acquire) || self.unit.epoch(&self.nexus) != self.epoch
    }

    /// For the time in which the job changes its unit; `None` if it may not any more.
    pub fn changing(&self) -> Option<Changing> {
        self.unit.changing(&self.nexus, self.epoch)
    }

    /// Asks the job to stop.
    pub fn cancel(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    /// The unit that was given the command.
    pub fn unit(&self) -> &Arc<LogicalUnit> {
        &self.unit
    }

    /// The nexus that gave it.
    pub fn nexus(&self) -> &Arc<Nexus> {
        &self.nexus
    }
}

/// The work of one command. It looks at its [`Cancel`] at least once for every MiB it moves.
pub struct Job(Box<dyn FnOnce(&Cancel) -> JobEnd + Send>);

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Job {
    /// A job.
    pub fn new(work: impl FnOnce(&Cancel) -> JobEnd + Send + 'static) -> Job {
        Job(Box::new(work))
    }

    /// Does the work.
    pub fn run(self, cancel: &Cancel) -> JobEnd {
        (self.0)(cancel)
    }
}
