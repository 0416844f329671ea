//! The journal of a consistency group and everything that is read out of it.
//!
//! The walk of a write through this crate, top to bottom:
//! [`group`] takes a batch of changes, gives each its place ([`record`]) in the one log ([`segment`]) and
//! enters it in the head index ([`extents`]); sealed segments get a sorted [`run`]; an image is a [`view`] over runs;
//! trimming folds what leaves the window into the [`base`]. What must survive but is not a record is in the [`superblock`].
//! All of it stands on [`files`], the seam under which a test can put a medium that loses power.
mod append;
mod asof;
mod base;
mod changed;
pub mod compare;
pub mod copier;
mod copy;
mod cover;
pub mod error;
mod extents;
pub mod files;
mod flush;
mod fold;
mod follow;
mod foreign;
mod group;
mod image;
mod index;
pub mod keep;
mod keeper;
mod ledger;
mod lineage;
mod mapped;
mod maps;
mod moment;
mod open;
mod point;
mod read;
pub mod reader;
mod record;
mod resync;
mod room;
mod run;
mod scan;
mod scratch;
mod segment;
pub mod ship;
mod step;
mod superblock;
mod sweep;
mod view;
mod volume;

pub use changed::Blocks;
pub use copy::{Copied, CopyPiece};
pub use error::{Error, Result};
pub use flush::FlushDone;
pub use follow::{promote, Follower, Taken};
pub use group::{
    check_name, Bookmark, BookmarkKind, Group, NewBase, Options, Point, Policy, Recovery, Stats, Window,
};
pub use image::{Image, ImageInfo};
pub use moment::Moment;
pub use record::FORMAT;
pub use resync::ResyncSpan;
pub use room::Room;
pub use superblock::{Rewind, VolumeInfo};
pub use volume::{Change, Extent, Volume};

/// A position in a group's log, in bytes. Point `x` is the state that every record starting before `x` has made.
pub type Lsn = u64;

/// Bytes of a logical block.
pub const BLOCK_BYTES: usize = 512;
