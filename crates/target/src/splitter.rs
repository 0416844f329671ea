//! The splitters: the place where a front end's change becomes a journal record.
//!
//! - [`array`]: Playhead is the array, and the split is the write.
//! - [`split`]: production lives elsewhere, and what changes it goes to both. This is the part that all such splitters share; what
//!   production is they know.
//! - [`host`]: production is a file or block device of this host.

mod admission;
pub mod array;
mod bits;
mod change_map;
pub mod host;
mod marks;
pub mod read_back;
mod resync;
pub mod split;
mod takes;
mod touched;

pub use array::{lun, ArraySplitter};
pub use change_map::Stamp;
pub use host::{HostDevice, HostLun};
pub use read_back::WhenRead;
pub use split::{Begun, Captured, OnJournalFailure, Production, Split, SplitOptions, State, Status, Taken};
pub use takes::Wanted;

use playhead_journal::Error;

use crate::lun::LunError;

/// What the journal's error means to a host. A failure the host can do nothing about is an I/O error with the journal's own words.
fn refusal(name: &str, error: Error) -> LunError {
    let name = name.to_owned();
    match error {
        Error::OutOfRange { lba, count, .. } => LunError::OutOfRange { name, lba, count },
        Error::NoSpace { detail, .. } => LunError::NoSpace { name, detail },
        Error::Gone(_) | Error::NotFound(_) => LunError::Gone { name },
        other => LunError::Io { name, detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_journal_and_a_closed_image_keep_their_meaning() {
        let full = Error::NoSpace { group: "g".into(), detail: "disk full".into() };
        assert_eq!(refusal("v", full), LunError::NoSpace { name: "v".into(), detail: "disk full".into() });
        assert_eq!(refusal("v", Error::Gone("image i".into())), LunError::Gone { name: "v".into() });
        let failed = Error::Failed { group: "g".into(), cause: "EIO".into() };
        assert!(matches!(refusal("v", failed), LunError::Io { detail, .. } if detail.contains("EIO")));
    }
}
