//! SANITIZE and FORMAT UNIT: everything a unit holds is erased, as hosts can reach it.
//!
//! An erase is one record: after it every block reads as zeros, before it every block is what it was, and a crash leaves one or the
//! other. An overwrite is that same record first, and then the pattern, a stretch at a time, each on the medium before it counts
//! as progress; so no crash brings old data back. The past stays in the journal until it leaves the window: a host that was broken
//! into must not be able to destroy its own history (docs/decisions/0010-sanitize-erases-production.md).
//!
//! An overwrite that ends because nobody presents the LUN any more has failed, and the LUN's [`Device`](super::Device) remembers that:
//! presented again it answers as after any failed SANITIZE. It does not go on by itself. Taking a LUN away is an administrator's deed,
//! and what he presents later may be what he rewound it to meanwhile; to overwrite that nobody has asked.

use super::job::Job;
use super::unit::{sense_of_write, Done, LogicalUnit, Refusal};
use crate::lun::{Change, LunError, LunRef, BLOCK_BYTES};
use parking_lot::{Condvar, Mutex};
use playhead_wire::scsi::erase::{Action, Format, Overwrite, Sanitize};
use playhead_wire::scsi::{Command, Sense};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::Arc;
use std::time::Duration;

/// Blocks that an overwrite writes and syncs at a time: 1 GiB.
const STRETCH_BLOCKS: u64 = (1 << 30) / BLOCK_BYTES as u64;
/// How often a command that waits for an overwrite looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Nothing is going on.
const IDLE: u8 = 0;
/// An overwrite is at work.
const RUNNING: u8 = 1;
/// The last one failed.
const FAILED: u8 = 2;
/// The last one failed, and only another one that succeeds ends that.
const FAILED_FOR_GOOD: u8 = 3;

/// The sanitize operation of a LUN: shared with the thread that does it, which ends when nobody presents the LUN any more, or when
/// somebody has put other contents there.
#[derive(Debug, Default)]
struct Progress {
    state: AtomicU8,
    /// In 65536ths.
    done: AtomicU16,
    abandoned: AtomicBool,
    /// Abandoned, and no failure.
    forgotten: AtomicBool,
    lock: Mutex<()>,
    over: Condvar,
}

/// A LUN's end of [`Progress`].
#[derive(Debug, Default)]
pub(super) struct Sanitizer(Arc<Progress>);

impl Drop for Sanitizer {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Sanitizer {
    /// Nobody presents the unit any more: its overwrite ends where it is.
    pub(super) fn abandon(&self) {
        self.0.abandoned.store(true, Ordering::Release);
    }

    /// The LUN's contents were replaced, or it is deleted: nothing is left of what was being sanitized, or had failed to be.
    pub(super) fn forget(&self) {
        let _held = self.0.lock.lock();
        self.0.forgotten.store(true, Ordering::Release);
        self.abandon();
        // What is under way ends so when its thread sees it.
        let forget = |state| (state != RUNNING).then_some(IDLE);
        let _ = self.0.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, forget);
    }

    /// Why commands cannot run now, if so: one load, for the hot path.
    pub(super) fn bars(&self) -> Option<Sense> {
        match self.0.state.load(Ordering::Acquire) {
            IDLE => None,
            RUNNING => Some(Sense::SANITIZE_IN_PROGRESS.with_progress(self.0.done.load(Ordering::Relaxed))),
            _ => Some(Sense::SANITIZE_FAILED),
        }
    }

    /// Begins an operation, which bars the unit; whoever begins it ends it. Returns the state before.
    fn claim(&self) -> Result<u8, Sense> {
        let begin = |state| (state != RUNNING).then_some(RUNNING);
        let _held = self.0.lock.lock();
        let claimed = self.0.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, begin);
        if claimed.is_ok() {
            self.0.forgotten.store(false, Ordering::Release);
        }
        claimed.map_err(|_| Sense::SANITIZE_IN_PROGRESS.with_progress(self.0.done.load(Ordering::Relaxed)))
    }
}

impl Progress {
    fn end(&self, state: u8) {
        let _held = self.lock.lock();
        let state = if self.forgotten.load(Ordering::Acquire) { IDLE } else { state };
        self.state.store(state, Ordering::Release);
        self.over.notify_all();
    }

    /// Writes the pattern everywhere. Returns whether it got to the end.
    fn overwrite(&self, lun: &LunRef, overwrite: &Overwrite) -> Result<bool, LunError> {
        let block_count = lun.block_count();
        let total = u128::from(block_count) * u128::from(overwrite.passes);
        for pass in 0..overwrite.passes {
            let block = overwrite.block_of_pass(pass);
            let mut lba = 0;
            while lba < block_count {
                if self.abandoned.load(Ordering::Acquire) {
                    return Ok(false);
                }
                let count = STRETCH_BLOCKS.min(block_count - lba);
                lun.submit(&[Change::WriteSame { lba, count, block: &block }])?;
                flush(lun)?;
                lba += count;
                let done = u128::from(block_count) * u128::from(pass) + u128::from(lba);
                self.done.store((done * 65_535 / total.max(1)) as u16, Ordering::Relaxed);
            }
        }
        Ok(true)
    }
}

/// Flushes, and waits until it is over.
fn flush(lun: &LunRef) -> Result<(), LunError> {
    let (ended, end) = sync_channel(1);
    lun.flush(Box::new(move |result| {
        let _ = ended.try_send(result); // the other end waits below
    }));
    end.recv().unwrap_or_else(|_| Err(LunError::Gone { name: lun.identity().name.clone() }))
}

/// Commands that run while a unit is being sanitized, or after that failed (SBC-4 4.11.2). `execute` sees to SANITIZE itself.
pub(super) fn runs_anyway(command: &Command) -> bool {
    matches!(
        command,
        Command::Inquiry { .. }
            | Command::RequestSense { .. }
            | Command::ReportLuns { .. }
            | Command::ReportSupportedOpcodes { .. }
            | Command::ReportSupportedTmfs { .. }
            | Command::Sanitize(_)
    )
}

/// As [`runs_anyway`], as far as the operation code tells.
pub(super) fn runs_anyway_code(code: u8) -> bool {
    matches!(code, 0x03 | 0x12 | 0x48 | 0xa0 | 0xa3)
}

impl LogicalUnit {
    /// SANITIZE (SBC-4 5.30).
    pub(super) fn sanitize(&self, request: &Sanitize, data_out: &[u8]) -> Result<Done, Refusal> {
        let progress = &self.device.sanitizer.0;
        match request.action {
            Action::ExitFailureMode => {
                let before = self.device.sanitizer.claim()?;
                if before == FAILED_FOR_GOOD {
                    progress.end(before);
                    return Err(Sense::in_cdb(1, Some(4)).into());
                }
                progress.end(IDLE);
                Ok(Done::Good)
            }
            Action::BlockErase | Action::CryptographicErase => {
                let before = self.device.sanitizer.claim()?;
                let erased = self.erase();
                progress.end(if erased.is_ok() { IDLE } else { before });
                erased?;
                Ok(Done::AfterFlush)
            }
            Action::Overwrite { .. } => {
                let overwrite = Overwrite::parse(data_out, BLOCK_BYTES)?;
                self.start_overwrite(overwrite, request)
            }
        }
    }

    /// FORMAT UNIT (SBC-4 5.4): an erase.
    pub(super) fn format(&self, request: &Format, data_out: &[u8]) -> Result<Done, Refusal> {
        request.check(data_out)?;
        self.erase()?;
        Ok(Done::AfterFlush)
    }

    /// Everything becomes zeros, in one record. Copies in the background that would bring something back end.
    fn erase(&self) -> Result<(), Sense> {
        self.device.end_background_copies();
        let everything = Change::Unmap { lba: 0, count: self.lun.block_count() };
        self.lun.submit(&[everything]).map_err(|error| sense_of_write(&error))?;
        Ok(())
    }

    fn start_overwrite(&self, overwrite: Overwrite, request: &Sanitize) -> Result<Done, Refusal> {
        let progress = &self.device.sanitizer.0;
        let before = self.device.sanitizer.claim()?;
        progress.done.store(0, Ordering::Relaxed);
        progress.abandoned.store(false, Ordering::Release);
        if let Err(sense) = self.erase() {
            progress.end(before);
            return Err(sense.into());
        }
        let failed = if request.unrestricted_exit { FAILED } else { FAILED_FOR_GOOD };
        let (work, lun) = (Arc::clone(progress), Arc::clone(&self.lun));
        let spawned = std::thread::Builder::new().name("sanitize".to_owned()).spawn(move || {
            match work.overwrite(&lun, &overwrite) {
                Ok(true) => work.end(IDLE),
                Ok(false) => {
                    log::info!(
                        "SANITIZE of {} ended: the LUN was taken away or rewound",
                        lun.identity().name
                    );
                    work.end(failed);
                }
                Err(error) => {
                    log::warn!("SANITIZE of {} failed: {error}", lun.identity().name);
                    work.end(failed);
                }
            }
        });
        if let Err(error) = spawned {
            log::warn!("no thread for a SANITIZE of {}: {error}", self.lun.identity().name);
            progress.end(failed);
            return Err(Sense::SANITIZE_FAILED.into());
        }
        if request.immediate {
            return Ok(Done::Good);
        }
        let progress = Arc::clone(progress);
        Ok(Done::Job(Job::new(move |cancel| {
            let mut held = progress.lock.lock();
            while progress.state.load(Ordering::Acquire) == RUNNING && !cancel.is_cancelled() {
                progress.over.wait_for(&mut held, LOOK);
            }
            match progress.state.load(Ordering::Acquire) {
                IDLE => Ok(Vec::new()),
                _ => Err(Sense::SANITIZE_FAILED.into()),
            }
        })))
    }
}
