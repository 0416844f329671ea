//! The iSCSI initiator: what Playhead is to another array (RFC 7143).
//!
//! Read in this order: [`remote`] (whom to log in to, as whom, by which ways), [`login`] and [`chap`] (the login phase, without I/O),
//! [`task`] (one command and its data), [`connection`] (one TCP connection in the full feature phase), [`nexus`] (what users hold: a
//! session that comes back after its connection is lost), [`blocking`] (one command at a time, for whoever has nothing else to do)
//! and [`discovery`].
//!
//! **No thread is behind it.** A [`Nexus`] is owned by whoever uses it, who polls its descriptor beside its own, and calls
//! [`Nexus::progress`]. A front end that stands between a host and an array thus serves both sockets on one thread: a command goes from
//! one to the other without waking anybody.
//!
//! **What is not known is said.** A command that was sent and whose answer did not come is [`Outcome::Lost`]: it may have been executed,
//! or be executed yet; one that the target itself has ended without a status is [`Outcome::Ended`]. Only one of which no byte was sent is [`Outcome::NotSent`]. Nothing is ever sent twice.
//!
//! One connection per session and ErrorRecoveryLevel 0: a session that lost its connection begins anew (RFC 7143 7.1.1), which is what
//! nearly all arrays speak. Several portals are ways to the same target, tried in turn.
//!
//! Every length that comes from outside is checked against what was asked for before it becomes memory.

pub mod blocking;
mod buffers;
pub mod chap;
pub mod connection;
pub mod discovery;
pub mod login;
pub mod nexus;
pub mod remote;
pub mod task;

pub use blocking::{Answer, Blocking, Error};
pub use nexus::{Event, Nexus, State, Status};
pub use remote::{Chap, Remote, Secret, Timeouts};
pub use task::{Done, Outcome, Task};
