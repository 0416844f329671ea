//! Tokens for data: POPULATE TOKEN freezes blocks, WRITE USING TOKEN captures them elsewhere (SBC-4 5.12, 5.59).

use super::super::nexus::Nexus;
use super::super::policy::Offload;
use super::super::reach::{Reach, Reached};
use super::super::unit::{sense_of_read, Done, LogicalUnit, Refusal};
use super::held::Operation;
use super::plan::Role;
use super::run::{self, From, Part, Plan, Stretch};
use super::tokens::Represented;
use super::TOKEN_LIMITS;
use crate::lun::CopyPiece;
use playhead_wire::scsi::copy_status::CopyState;
use playhead_wire::scsi::rod_token::{self, Range, TokenKind, WriteUsing};
use playhead_wire::scsi::Sense;
use std::sync::Arc;
use std::time::Duration;

const POPULATE_TOKEN: u8 = 0x10;
const WRITE_USING_TOKEN: u8 = 0x11;

/// Refuses ranges beyond the end.
fn check_ranges(ranges: &[Range], block_count: u64) -> Result<(), Sense> {
    let outside = |&(lba, count): &Range| lba > block_count || u64::from(count) > block_count - lba;
    if ranges.iter().any(outside) {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    Ok(())
}

/// What writes the data of `source`, from block `offset` of it on, to the ranges `to`, as far as the data reaches. Ranges have 32-bit
/// counts, and hosts split what is longer; where both sides go on, so does the piece.
fn stretch(source: &Represented, offset: u64, to: &[Range], one_unit: bool) -> Stretch {
    let from = From::Frozen(Arc::clone(&source.frozen));
    let mut stretch = Stretch { from, to: 0, pieces: Vec::new() };
    pieces(&source.ranges, offset, to, |piece| stretch.push(piece, 0, one_unit));
    stretch
}

/// Zeros for the ranges `to`.
fn zeros(to: &[Range]) -> Stretch {
    let mut stretch = Stretch { from: From::Zeros, to: 0, pieces: Vec::new() };
    for &(lba, count) in to.iter().filter(|range| range.1 > 0) {
        // Zeros come from nowhere: they go on where the destination does.
        stretch.push(CopyPiece { source_lba: lba, lba, count: count.into() }, 0, false);
    }
    stretch
}

/// Tells `push` the pieces of a copy between two lists of ranges, none of them empty.
fn pieces(from: &[Range], offset: u64, to: &[Range], mut push: impl FnMut(CopyPiece)) {
    let mut skip = offset;
    let mut sources = from.iter().filter_map(|&(lba, count)| {
        let skipped = skip.min(u64::from(count));
        skip -= skipped;
        (u64::from(count) > skipped).then(|| (lba + skipped, u64::from(count) - skipped))
    });
    let mut source = sources.next();
    for &(mut lba, count) in to {
        let mut left = u64::from(count);
        while left > 0 {
            let Some((source_lba, there)) = source else {
                return;
            };
            let count = left.min(there);
            push(CopyPiece { source_lba, lba, count });
            lba += count;
            left -= count;
            source = if there > count { Some((source_lba + count, there - count)) } else { sources.next() };
        }
    }
}

impl LogicalUnit {
    /// POPULATE TOKEN. What the token stands for is frozen before the command ends, with IMMED or without.
    pub(in crate::scsi) fn populate_token(
        self: &Arc<Self>,
        nexus: &Arc<Nexus>,
        list_id: u32,
        list: &[u8],
        reach: &dyn Reach,
    ) -> Result<Done, Refusal> {
        let Some(tokens) = reach.tokens().filter(|_| self.lun().freezes()) else {
            return Err(Sense::in_cdb(1, Some(4)).into());
        };
        let Some(populate) = rod_token::parse_populate(list, &TOKEN_LIMITS)? else {
            return Ok(Done::Good);
        };
        let at_work =
            nexus.copies.begin(Some(list_id), Operation::new(POPULATE_TOKEN, populate.immediate))?;
        let make = || -> Result<u64, Refusal> {
            self.may_take_part(nexus, Offload::Odx, Role::Source)?;
            check_ranges(&populate.ranges, self.lun().block_count())?;
            let frozen = self.lun().freeze().map_err(|error| sense_of_read(&error))?;
            check_ranges(&populate.ranges, frozen.block_count())?;
            let blocks = populate.ranges.iter().map(|range| u64::from(range.1)).sum();
            let data = Represented { frozen, ranges: populate.ranges.clone().into() };
            let inactivity = Duration::from_secs(u64::from(populate.inactivity_s));
            at_work.0.made(tokens.make(self, nexus, data, inactivity)?);
            Ok(blocks)
        };
        match make() {
            Ok(blocks) => {
                at_work.0.transferred(blocks);
                at_work.0.end(CopyState::Done, Ok(()));
                nexus.served(Offload::Odx, 0);
                Ok(Done::Good)
            }
            Err(refusal) => {
                at_work.0.end(CopyState::Failed, Err(refusal));
                Err(refusal)
            }
        }
    }

    /// WRITE USING TOKEN.
    pub(in crate::scsi) fn write_using_token(
        self: &Arc<Self>,
        nexus: &Arc<Nexus>,
        list_id: u32,
        list: &[u8],
        reach: &dyn Reach,
    ) -> Result<Done, Refusal> {
        let Some(write) = rod_token::parse_write_using(list, &TOKEN_LIMITS)? else {
            return Ok(Done::Good);
        };
        let at_work =
            nexus.copies.begin(Some(list_id), Operation::new(WRITE_USING_TOKEN, write.immediate))?;
        match self.plan_write(nexus, &write, reach) {
            Ok((stretch, short, after)) => {
                let own = Reached { unit: Arc::clone(self), nexus: Arc::clone(nexus) };
                let plan = Plan {
                    at_work,
                    offload: Offload::Odx,
                    parts: vec![Part::new(own)],
                    stretches: vec![stretch],
                    short,
                };
                Ok(run::done(plan, write.immediate, after))
            }
            Err(refusal) => {
                at_work.0.end(CopyState::Failed, Err(refusal));
                Err(refusal)
            }
        }
    }

    /// What to write, whether it is less than was asked for, and what becomes of the token afterwards.
    fn plan_write(
        &self,
        nexus: &Nexus,
        write: &WriteUsing,
        reach: &dyn Reach,
    ) -> Result<(Stretch, bool, run::After), Refusal> {
        self.may_take_part(nexus, Offload::Odx, Role::Destination)?;
        let kind = rod_token::parse(&write.token)?;
        let TokenKind::PointInTime { id } = kind else {
            check_ranges(&write.ranges, self.lun().block_count())?;
            return Ok((zeros(&write.ranges), false, Box::new(|_| {})));
        };
        let tokens = reach.tokens().ok_or(Sense::TOKEN_UNKNOWN)?;
        let data = tokens.take(id, &write.token, self.naa(), nexus, reach)?;
        let there: u64 = data.ranges.iter().map(|range| u64::from(range.1)).sum();
        if write.offset >= there {
            return Err(Sense::in_parameters(8).into());
        }
        check_ranges(&write.ranges, self.lun().block_count())?;
        let asked: u64 = write.ranges.iter().map(|range| u64::from(range.1)).sum();
        let one_unit = data.frozen.identity().uuid == self.lun().identity().uuid;
        let stretch = stretch(&data, write.offset, &write.ranges, one_unit);
        let delete = write.delete;
        let after: run::After = Box::new(move |end| match end {
            Err(Refusal::Check(Sense::TOKEN_CANCELLED)) => tokens.cancel(id),
            Ok(_) if delete => tokens.delete(id),
            _ => tokens.touch(id),
        });
        Ok((stretch, asked > there - write.offset, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(from: &[Range], offset: u64, to: &[Range]) -> Vec<(u64, u64, u64)> {
        let mut stretch = Stretch { from: From::Zeros, to: 0, pieces: Vec::new() };
        pieces(from, offset, to, |piece| stretch.push(piece, 0, false));
        told(&stretch)
    }

    fn told(stretch: &Stretch) -> Vec<(u64, u64, u64)> {
        stretch.pieces.iter().map(|(p, _)| (p.source_lba, p.lba, p.count)).collect()
    }

    #[test]
    fn ranges_that_adjoin_on_both_sides_are_one_piece_beyond_32_bits() {
        const MOST: u32 = u32::MAX;
        let long = |at: u64| [(at, MOST), (at + u64::from(MOST), MOST)];
        assert_eq!(found(&long(5), 0, &long(9)), [(5, 9, 2 * u64::from(MOST))]);
        // Cut elsewhere on either side, begun within, and with nothing in between.
        assert_eq!(found(&[(0, 64)], 8, &[(100, 7), (107, 0), (107, 30)]), [(8, 100, 37)]);
        assert_eq!(found(&[(0, 8), (8, 8)], 0, &[(100, 3), (103, 13)]), [(0, 100, 16)]);
        // Where only one side goes on.
        assert_eq!(found(&[(0, 8), (9, 8)], 0, &[(100, 16)]), [(0, 100, 8), (9, 108, 8)]);
        assert_eq!(found(&[(0, 16)], 0, &[(100, 8), (109, 8)]), [(0, 100, 8), (8, 109, 8)]);
        assert_eq!(
            told(&zeros(&[(8, MOST), (8 + u64::from(MOST), 5), (7, 0), (0, 4)])),
            [(8, 8, u64::from(MOST) + 5), (0, 0, 4)]
        );
    }

    #[test]
    fn pieces_follow_both_lists_of_ranges() {
        let from = [(100, 4), (0, 0), (50, 8)];
        assert_eq!(found(&from, 0, &[(7, 12)]), [(100, 7, 4), (50, 11, 8)]);
        assert_eq!(found(&from, 2, &[(7, 1), (20, 3)]), [(102, 7, 1), (103, 20, 1), (50, 21, 2)]);
        assert_eq!(found(&from, 4, &[(7, 100)]), [(50, 7, 8)]);
        assert_eq!(found(&from, 11, &[(7, 0), (9, 5)]), [(57, 9, 1)]);
        assert_eq!(found(&from, 12, &[(7, 1)]), []);
    }
}
