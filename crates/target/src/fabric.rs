//! The fabric-based splitter: Playhead between a host and a LUN of another array.
//!
//! A command of a host is not executed here. It goes on to the array, in a session that belongs to this host's session alone and logs in
//! with the host's own name and ISID: so reservations, unit attentions, masking, task sets and every status are between the host and the
//! array, as if nothing stood between them. What changes data is split on the way, in the order that [`record`] and the session keep:
//!
//! 1. the extents are taken: production's order and the journal's are equal where changes overlap, and a crash from here on finds them
//!    marked as possibly different;
//! 2. the array executes the command;
//! 3. GOOD: the change is captured in the replica's journal, and only then is the host answered. An answer that says for certain that
//!    nothing changed gives the extents back. GOOD for what the command does not say has them read from the array before the host is
//!    answered ([`read_back`](crate::splitter::read_back)); everything else leaves them marked, to be read from the array.
//!
//! Read in this order: [`plan`] (what becomes of each operation code), [`record`] (what a change is to the journal), [`edit`] (answers
//! that must tell the truth about the policy), [`copy`] (copies that the array makes by itself), [`array`](mod@array) (whom sessions log in to), [`limbo`] (changes whose end nobody knows),
//! [`loss`] (what an array says to have lost) and [`lun`]. The session's side, which polls the host's and the array's socket on one thread, is `iscsi::forward` and `iscsi::links`.

pub mod array;
pub mod copy;
mod copy_reports;
pub mod edit;
pub mod limbo;
pub mod loss;
pub mod lun;
pub mod plan;
pub mod record;
pub mod replica;

pub use array::{Array, LinkStatus};
pub use loss::Loss;
pub use lun::{Begun, FabricLun, Identity, Production, Recorder, Taken};
pub use replica::Replica;
