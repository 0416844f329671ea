//! Moments: a volume's blocks as of one instant, for as long as the journal still has them.
//!
//! A moment costs nothing and holds nothing: no record, no memory but its own, and the trailing edge moves past it as if it were not
//! there. Whoever reads it then is told that it is gone. That is what a token of an offloaded copy needs: it may fail, and the host
//! then moves the data itself; it may not make a host's writes wait for room.

use std::sync::Arc;

use crate::{
    read::{Line, Past},
    superblock::VolumeInfo,
    volume::{Extent, Volume},
    Error, Lsn, Result,
};

/// A volume as it was. Cheap to clone; usable from many threads at once. It ends with the process, and when the window has moved past it.
#[derive(Clone)]
pub struct Moment(pub(crate) Volume);

impl Volume {
    /// The volume as it is now, to be read or copied from later.
    pub fn freeze(&self) -> Result<Moment> {
        self.check_present()?;
        let mut frozen = self.clone();
        if !self.read_only() {
            let state = self.group.0.state.read();
            let timeline = match &self.line {
                Line::Image(image) => image.entry.timeline,
                _ => state.history.production(),
            };
            let past = Past { of: self.line.clone(), timeline, lsn: state.head.lsn };
            frozen.line = Line::Past(Arc::new(past));
        }
        Ok(Moment(frozen))
    }

    pub(crate) fn moment_gone(&self) -> Error {
        let lsn = match &self.line {
            Line::Past(past) => past.lsn,
            _ => 0,
        };
        Error::Gone(format!(
            "volume {} as of LSN {lsn}, which the window of group {} has left behind,",
            self.volume.info.name, self.group.0.name
        ))
    }
}

impl Moment {
    /// What it is a moment of.
    pub fn info(&self) -> &VolumeInfo {
        self.0.info()
    }

    /// Size in blocks.
    pub fn block_count(&self) -> u64 {
        self.0.block_count()
    }

    /// The point it shows: all records of its line that start before.
    pub fn lsn(&self) -> Lsn {
        match &self.0.line {
            Line::Past(past) => past.lsn,
            Line::Image(image) => image.entry.point.lsn,
            Line::Production => 0,
        }
    }

    /// Refuses, as a read would, if it is gone: [`Error::Gone`].
    pub fn check(&self) -> Result<()> {
        self.0.check_present()
    }

    /// As [`Volume::read`], as of the moment. [`Error::Gone`] once the window has moved past it.
    pub fn read(&self, lba: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read(lba, buf)
    }

    /// As [`Volume::extents`], as of the moment.
    pub fn extents(&self, lba: u64, count: u64, limit: usize) -> Result<Vec<Extent>> {
        self.0.extents(lba, count, limit)
    }
}
