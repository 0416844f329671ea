//! What LOG SENSE tells of a LUN, counted while commands run.

use super::device::Device;
use super::nexus::{Attention, Nexus};
use playhead_wire::scsi::log::{Logs, Transfers};
use playhead_wire::scsi::Sense;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lines of counters; nexuses are spread over them, so that sessions on several cores do not fight for one.
const LINES: usize = 16;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// All counters of a LUN.
#[derive(Debug, Default)]
pub(super) struct Counters {
    lines: [Line; LINES],
    read_errors: AtomicU64,
    write_errors: AtomicU64,
}

impl Counters {
    fn logs(&self) -> Logs {
        let sum = |of: fn(&Line) -> &AtomicU64| {
            self.lines.iter().map(|line| of(line).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
        };
        let errors = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Logs {
            reads: Transfers { bytes: sum(|line| &line.read_bytes), errors: errors(&self.read_errors) },
            writes: Transfers { bytes: sum(|line| &line.written_bytes), errors: errors(&self.write_errors) },
            resources: None,
        }
    }

    fn clear(&self) {
        for line in &self.lines {
            line.read_bytes.store(0, Ordering::Relaxed);
            line.written_bytes.store(0, Ordering::Relaxed);
        }
        self.read_errors.store(0, Ordering::Relaxed);
        self.write_errors.store(0, Ordering::Relaxed);
    }

    pub(super) fn read(&self, nexus: &Nexus, bytes: u64) {
        self.lines[nexus.id as usize % LINES].read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn written(&self, nexus: &Nexus, bytes: u64) {
        self.lines[nexus.id as usize % LINES].written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a medium error; others are not the medium's.
    pub(super) fn failed(&self, sense: &Sense) {
        if sense.code == Sense::UNRECOVERED_READ.code {
            self.read_errors.fetch_add(1, Ordering::Relaxed);
        } else if sense.code == Sense::WRITE_ERROR.code {
            self.write_errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Device {
    pub(super) fn logs(&self) -> Logs {
        self.counters.logs()
    }

    /// LOG SELECT (SPC-4 6.7): nothing can be set; `reset` (PCR) starts every counter anew, and tells the others.
    pub(super) fn log_select(&self, by: &Nexus, reset: bool, data_out: &[u8]) -> Result<(), Sense> {
        if !data_out.is_empty() {
            return Err(Sense::in_parameters(0));
        }
        if reset {
            self.counters.clear();
            self.attend(Attention::LogParametersChanged, |nexus| nexus.id != by.id);
        }
        Ok(())
    }
}
