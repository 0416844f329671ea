//! Doing what was planned: references where a LUN can record them, data in steps elsewhere.

use super::super::job::{Cancel, Job, JobEnd};
use super::super::nexus::{Changing, Nexus};
use super::super::policy::Offload;
use super::super::reach::Reached;
use super::super::unit::{sense_of_read, sense_of_write, Done, LogicalUnit, Refusal};
use super::held::AtWork;
use super::plan::Role;
use crate::lun::{Change, CopyPiece, CopySource, FrozenRef, LunError, BLOCK_BYTES};
use playhead_wire::scsi::copy_status::CopyState;
use playhead_wire::scsi::Sense;
use std::sync::{mpsc, Arc};
use std::time::Duration;

/// Blocks that move at once, between two looks at the cancel.
const STEP_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES as u64;
/// A step that turned out to be references alone lets the next be this many times longer,
const STEP_GROWTH: u64 = 8;
/// up to this, so that what changes to data is soon noticed. Where the LUN knows that no more than this will be data, a step is the rest.
const STEP_BLOCKS_MAX: u64 = (256 << 20) / BLOCK_BYTES as u64;
/// A copy onto itself that is shifted by less than this fraction of its length takes steps: as references it would be too many.
const SHIFTS_MAX: u64 = 1024;
/// How often a wait for a flush looks at the cancel.
const LOOK: Duration = Duration::from_millis(50);

/// A unit that takes part in a copy.
pub(super) struct Part {
    pub(super) unit: Arc<LogicalUnit>,
    nexus: Arc<Nexus>,
    epoch: u32,
}

impl Part {
    pub(super) fn new(reached: Reached) -> Part {
        let epoch = reached.unit.epoch(&reached.nexus);
        Part { unit: reached.unit, nexus: reached.nexus, epoch }
    }

    pub(super) fn may_take_part(&self, offload: Offload, role: Role) -> Result<(), Refusal> {
        self.unit.may_take_part(&self.nexus, offload, role)
    }

    /// For the time in which the copy changes it: whoever ends its tasks waits meanwhile.
    fn changing(&self) -> Result<Changing, Stop> {
        self.unit.changing(&self.nexus, self.epoch).ok_or(Stop::Lost)
    }

    /// Whether its tasks were ended, or it was taken away, since the copy began.
    fn is_lost(&self) -> bool {
        self.unit.is_retired() || self.nexus.is_gone() || self.unit.epoch(&self.nexus) != self.epoch
    }
}

/// Where a stretch reads.
pub(super) enum From {
    /// One of the parts.
    Part(usize),
    /// What a token stands for.
    Frozen(FrozenRef),
    /// Nowhere: zeros.
    Zeros,
}

/// Pieces from one source to one destination, each with the number of the segment it belongs to.
pub(super) struct Stretch {
    pub(super) from: From,
    /// One of the parts.
    pub(super) to: usize,
    pub(super) pieces: Vec<(CopyPiece, u16)>,
}

impl Stretch {
    pub(super) fn is_between(&self, source: usize, destination: usize) -> bool {
        matches!(self.from, From::Part(part) if part == source) && self.to == destination
    }

    /// Appends a piece, as part of the last if it goes on where that ends: what one command clones is then one record. `one_unit`: what
    /// is read is of the unit that is written to.
    pub(super) fn push(&mut self, piece: CopyPiece, segment: u16, one_unit: bool) {
        if let Some((last, of_segment)) = self.pieces.last_mut() {
            let adjoins =
                last.source_lba + last.count == piece.source_lba && last.lba + last.count == piece.lba;
            let whole = CopyPiece { count: last.count + piece.count, ..*last };
            // Joined, the second would not read what the first wrote.
            if adjoins && !(one_unit && overlaps_itself(&whole)) {
                (*last, *of_segment) = (whole, segment);
                return;
            }
        }
        self.pieces.push((piece, segment));
    }
}

/// Whether a piece within one unit writes where it reads.
fn overlaps_itself(piece: &CopyPiece) -> bool {
    piece.source_lba.abs_diff(piece.lba) < piece.count
}

/// A copy, ready to be done.
pub(super) struct Plan {
    pub(super) at_work: AtWork,
    pub(super) offload: Offload,
    pub(super) parts: Vec<Part>,
    /// In this order.
    pub(super) stretches: Vec<Stretch>,
    /// The source has less than was asked for.
    pub(super) short: bool,
}

/// What is to be done when a copy has ended, however it did.
pub(super) type After = Box<dyn FnOnce(&JobEnd) + Send>;

/// How a command ends whose copy is `plan`.
pub(super) fn done(plan: Plan, background: bool, after: After) -> Done {
    let job = Job::new(move |cancel| {
        let end = plan.run(cancel);
        after(&end);
        end
    });
    if background {
        Done::Beside(job)
    } else {
        Done::Job(job)
    }
}

/// Why a copy stopped.
enum Stop {
    Refused(Refusal),
    /// Its command is not there any more, or a unit is not.
    Lost,
    /// COPY OPERATION ABORT.
    Aborted,
}

impl<T: Into<Refusal>> std::convert::From<T> for Stop {
    fn from(refusal: T) -> Stop {
        Stop::Refused(refusal.into())
    }
}

impl Plan {
    fn run(self, cancel: &Cancel) -> JobEnd {
        let operation = &self.at_work.0;
        let stop = match self.copy(cancel) {
            Ok(()) => {
                let blocks = self.blocks();
                // What would have been read and then written by the host; zeros are only written.
                let zeros = self.stretches.iter().all(|stretch| matches!(stretch.from, From::Zeros));
                let times = if zeros { 1 } else { 2 };
                cancel.nexus().served(self.offload, times * blocks * BLOCK_BYTES as u64);
                if !self.short {
                    operation.end(CopyState::Done, Ok(()));
                    return Ok(Vec::new());
                }
                let count = operation.transferred_so_far();
                let refusal = Refusal::Check(Sense::COPY_UNDERRUN.with_information(count));
                operation.end(CopyState::Partial, Err(refusal));
                return Err(refusal);
            }
            Err(stop) => stop,
        };
        match stop {
            Stop::Refused(refusal) => {
                operation.end(CopyState::Failed, Err(refusal));
                Err(refusal)
            }
            Stop::Aborted => {
                operation.end(CopyState::Terminated, Ok(()));
                Err(Sense::COPY_CLEARED.into())
            }
            Stop::Lost => {
                operation.end(CopyState::Terminated, Ok(()));
                Err(Sense::NOT_READY.into())
            }
        }
    }

    fn blocks(&self) -> u64 {
        self.stretches.iter().flat_map(|stretch| &stretch.pieces).map(|(piece, _)| piece.count).sum()
    }

    fn copy(&self, cancel: &Cancel) -> Result<(), Stop> {
        for stretch in &self.stretches {
            self.look(stretch, cancel)?;
            self.copy_stretch(stretch, cancel)?;
        }
        let mut flushed: Vec<usize> = Vec::new();
        for stretch in &self.stretches {
            if self.parts[stretch.to].unit.flushes(false) && !flushed.contains(&stretch.to) {
                flushed.push(stretch.to);
                self.flush(stretch, cancel)?;
            }
        }
        Ok(())
    }

    /// Whether to go on. What was allowed when the copy began may not be any more: a preempted initiator must not write.
    fn look(&self, stretch: &Stretch, cancel: &Cancel) -> Result<(), Stop> {
        if self.at_work.0.is_aborted() {
            return Err(Stop::Aborted);
        }
        if cancel.is_cancelled() || self.parts.iter().any(Part::is_lost) {
            return Err(Stop::Lost);
        }
        if let From::Part(source) = stretch.from {
            self.check(source, Role::Source, stretch)?;
        }
        self.check(stretch.to, Role::Destination, stretch)
    }

    fn check(&self, part: usize, role: Role, stretch: &Stretch) -> Result<(), Stop> {
        self.parts[part].may_take_part(self.offload, role).map_err(|refusal| match self.offload {
            Offload::Xcopy => {
                let byte = if role == Role::Source { 4 } else { 6 };
                let segment = stretch.pieces.first().map_or(0, |(_, segment)| *segment);
                Stop::from(Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(segment, byte))
            }
            _ => Stop::Refused(refusal),
        })
    }

    fn copy_stretch(&self, stretch: &Stretch, cancel: &Cancel) -> Result<(), Stop> {
        let part = &self.parts[stretch.to];
        let to = part.unit.lun();
        let operation = &self.at_work.0;
        let last_segment = stretch.pieces.last().map_or(0, |(_, segment)| *segment);
        let pieces: Vec<CopyPiece> =
            stretch.pieces.iter().map(|(piece, _)| *piece).filter(|piece| piece.count > 0).collect();
        let blocks: u64 = pieces.iter().map(|piece| piece.count).sum();
        if pieces.is_empty() {
            operation.at_segment(last_segment);
            return Ok(());
        }
        let source = match &stretch.from {
            From::Part(part) => CopySource::Now(self.parts[*part].unit.lun().as_ref()),
            From::Frozen(frozen) => CopySource::Frozen(frozen.as_ref()),
            From::Zeros => {
                let zeros: Vec<Change<'_>> =
                    pieces.iter().map(|piece| Change::Zero { lba: piece.lba, count: piece.count }).collect();
                let _changing = part.changing()?;
                to.submit(&zeros).map_err(|error| self.failure(stretch, last_segment, &error))?;
                self.count(blocks);
                return Ok(());
            }
        };
        let onto_itself =
            matches!(source, CopySource::Now(from) if from.identity().uuid == to.identity().uuid);
        let shifted = |piece: &CopyPiece| {
            onto_itself && piece.count / SHIFTS_MAX >= piece.source_lba.abs_diff(piece.lba).max(1)
        };
        if to.copies_by_reference(&source) && !pieces.iter().any(shifted) {
            operation.at_segment(last_segment);
            let _changing = part.changing()?;
            to.copy_from(&source, &pieces).map_err(|error| self.failure(stretch, last_segment, &error))?;
            self.count(blocks);
            return Ok(());
        }
        for (piece, segment) in stretch.pieces.iter().filter(|(piece, _)| piece.count > 0) {
            operation.at_segment(*segment);
            // A piece that overlaps its own source is read before it is written over.
            let backward = onto_itself && piece.source_lba < piece.lba && overlaps_itself(piece);
            let mut done = 0;
            let mut step_blocks = STEP_BLOCKS;
            while done < piece.count {
                self.look(stretch, cancel)?;
                let rest = CopyPiece {
                    source_lba: piece.source_lba + done,
                    lba: piece.lba + done,
                    count: piece.count - done,
                };
                let known_short = !backward && to.copy_moves_at_most(&source, &rest) <= STEP_BLOCKS_MAX;
                // All there is left: what it refers to is one record then.
                let count = if known_short && rest.count > STEP_BLOCKS {
                    rest.count
                } else {
                    step_blocks.min(rest.count)
                };
                let at = if backward { piece.count - done - count } else { done };
                let step = CopyPiece { source_lba: piece.source_lba + at, lba: piece.lba + at, count };
                let _changing = part.changing()?;
                let copied = to
                    .copy_from(&source, &[step])
                    .map_err(|error| self.failure(stretch, *segment, &error))?;
                let grown = if copied.moved_blocks == 0 { step_blocks * STEP_GROWTH } else { STEP_BLOCKS };
                step_blocks = grown.min(STEP_BLOCKS_MAX);
                done += count;
                // What is told counts from the first block on.
                if !backward {
                    self.count(count);
                }
            }
            if backward {
                self.count(piece.count);
            }
        }
        Ok(())
    }

    fn count(&self, blocks: u64) {
        let units = if self.offload == Offload::Xcopy { blocks * BLOCK_BYTES as u64 } else { blocks };
        self.at_work.0.transferred(units);
    }

    /// What a LUN's refusal in the midst of a copy is to the initiator. That space is out hosts must hear as such.
    fn failure(&self, stretch: &Stretch, segment: u16, error: &LunError) -> Stop {
        let gone = matches!(error, LunError::Gone { .. });
        let sense = match (&stretch.from, self.offload) {
            _ if matches!(error, LunError::NoSpace { .. }) => sense_of_write(error),
            (_, Offload::Xcopy) => Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(segment, 0),
            (From::Frozen(_), _) if gone && !self.parts[stretch.to].is_lost() => Sense::TOKEN_CANCELLED,
            (From::Frozen(frozen), _) if names(error, &frozen.identity().name) => sense_of_read(error),
            _ => sense_of_write(error),
        };
        Stop::from(sense)
    }

    fn flush(&self, stretch: &Stretch, cancel: &Cancel) -> Result<(), Stop> {
        let (tell, told) = mpsc::channel();
        self.parts[stretch.to].unit.lun().flush(Box::new(move |result| {
            // Nobody waits any more if the command was aborted.
            let _ = tell.send(result);
        }));
        loop {
            match told.recv_timeout(LOOK) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => {
                    let segment = stretch.pieces.last().map_or(0, |(_, segment)| *segment);
                    return Err(self.failure(stretch, segment, &error));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Stop::from(Sense::WRITE_ERROR)),
                Err(mpsc::RecvTimeoutError::Timeout) if cancel.is_cancelled() => return Err(Stop::Lost),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Whether an error is about the LUN `name`.
fn names(error: &LunError, name: &str) -> bool {
    match error {
        LunError::OutOfRange { name: of, .. }
        | LunError::ReadOnly { name: of }
        | LunError::NoSpace { name: of, .. }
        | LunError::Gone { name: of }
        | LunError::Unsupported { name: of, .. }
        | LunError::Io { name: of, .. } => of == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(pieces: &[(u64, u64, u64)], one_unit: bool) -> Vec<(u64, u64, u64)> {
        let mut stretch = Stretch { from: From::Part(0), to: 1, pieces: Vec::new() };
        for (number, &(source_lba, lba, count)) in pieces.iter().enumerate() {
            stretch.push(CopyPiece { source_lba, lba, count }, number as u16, one_unit);
        }
        stretch.pieces.iter().map(|(p, _)| (p.source_lba, p.lba, p.count)).collect()
    }

    #[test]
    fn pieces_that_adjoin_are_one_unless_it_would_read_what_it_wrote() {
        assert_eq!(pushed(&[(0, 100, 8), (8, 108, 8), (16, 116, 4)], false), [(0, 100, 20)]);
        assert_eq!(pushed(&[(0, 100, 8), (16, 108, 8)], false), [(0, 100, 8), (16, 108, 8)]);
        // The second piece reads what the first wrote.
        assert_eq!(pushed(&[(0, 8, 8), (8, 16, 8)], true), [(0, 8, 8), (8, 16, 8)]);
        assert_eq!(pushed(&[(0, 8, 8), (8, 16, 8)], false), [(0, 8, 16)]);
        assert_eq!(pushed(&[(0, 16, 8), (8, 24, 8)], true), [(0, 16, 16)]);
    }
}
