//! What can go wrong in the journal, as one typed family. Every text names the object, the cause and, where there is one, the next step.

use std::{io, path::PathBuf};

/// A journal error. [`Error::code`] is stable and documented in docs/errors.md.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done, such as "writing".
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Nothing is left to write into.
    #[error("no space left for the journal of group {group}: {detail}")]
    NoSpace {
        /// Group directory or name.
        group: String,
        /// What is full and what to do.
        detail: String,
    },
    /// A file is not what it says, or not of this group.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        detail: String,
    },
    /// A file of a later version of Playhead.
    #[error("{path} has format {found}; this version reads up to {supported}: use a newer Playhead")]
    NewerFormat {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// Blocks beyond the end of a volume.
    #[error("LBA {lba} + {count} blocks is beyond the end of volume {volume} ({blocks} blocks)")]
    OutOfRange {
        /// Volume name.
        volume: String,
        /// First block.
        lba: u64,
        /// Blocks.
        count: u64,
        /// The volume's size in blocks.
        blocks: u64,
    },
    /// A request that makes no sense; the text says why and what would.
    #[error("{0}")]
    Invalid(String),
    /// The thing named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A point outside the protection window.
    #[error(
        "point {lsn} is outside the protection window {edge}..{head} of group {group}: choose one inside it"
    )]
    OutsideWindow {
        /// Group.
        group: String,
        /// The point asked for.
        lsn: u64,
        /// The window's trailing edge.
        edge: u64,
        /// The head.
        head: u64,
    },
    /// A point at which a volume was not in step with its production.
    #[error("point {lsn} of group {group} lies in a resynchronisation, so its volumes are not consistent: {}, or force it", nearest(*.before, *.after))]
    Inconsistent {
        /// Group.
        group: String,
        /// The point asked for.
        lsn: u64,
        /// The nearest consistent point before it, if the window has one.
        before: Option<u64>,
        /// The nearest one after it, if there is one yet.
        after: Option<u64>,
    },
    /// A time before the protection window.
    #[error("{time_ns} ns since 1970 is before the protection window of group {group}, which begins {}.{:03} s later: choose a later time", (edge_ns - time_ns) / 1_000_000_000, (edge_ns - time_ns) / 1_000_000 % 1000)]
    BeforeWindow {
        /// Group.
        group: String,
        /// The time asked for, ns since the Unix epoch.
        time_ns: u64,
        /// Time of the window's trailing edge.
        edge_ns: u64,
    },
    /// Another process or group holds it.
    #[error("{path} is in use by another process: stop that one first")]
    Busy {
        /// What is held.
        path: PathBuf,
    },
    /// Something stands in the way; the text says what and how to move it.
    #[error("{0}")]
    Conflict(String),
    /// An earlier failure of the medium stopped the group; what was acknowledged is safe.
    #[error("group {group} has stopped taking writes: {cause}; mend the medium and restart")]
    Failed {
        /// Group.
        group: String,
        /// The first failure.
        cause: String,
    },
    /// Closed image, removed volume, or stopped group.
    #[error("{0} is gone")]
    Gone(String),
}

impl Error {
    /// The same error for another of those who waited for one operation. The system's own error keeps its kind and words.
    pub(crate) fn again(&self) -> Error {
        match self {
            Error::Io { what, path, source } => Error::Io {
                what,
                path: path.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
            Error::Failed { group, cause } => Error::Failed { group: group.clone(), cause: cause.clone() },
            Error::Gone(what) => Error::Gone(what.clone()),
            other => Error::Conflict(other.to_string()),
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } => "io",
            Error::NoSpace { .. } => "no-space",
            Error::Damaged { .. } => "damaged",
            Error::NewerFormat { .. } => "newer-format",
            Error::OutOfRange { .. } => "out-of-range",
            Error::Invalid(_) => "invalid",
            Error::NotFound(_) => "not-found",
            Error::Inconsistent { .. } => "inconsistent",
            Error::OutsideWindow { .. } | Error::BeforeWindow { .. } => "outside-window",
            Error::Busy { .. } => "busy",
            Error::Conflict(_) => "conflict",
            Error::Failed { .. } => "failed",
            Error::Gone(_) => "gone",
        }
    }
}

/// What to choose instead of a point that is not consistent.
fn nearest(before: Option<u64>, after: Option<u64>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("choose {before} before it or {after} after it"),
        (Some(before), None) => format!("choose {before} before it, or wait until it is over"),
        (None, Some(after)) => format!("choose {after} after it"),
        (None, None) => "wait until it is over".into(),
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds to an I/O result what was done and to which file.
pub(crate) trait Context<T> {
    fn doing(self, what: &'static str, path: &std::path::Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, what: &'static str, path: &std::path::Path) -> Result<T> {
        self.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Damaged {
                path: path.to_path_buf(),
                detail: format!("it ends before what it must hold ({what})"),
            },
            _ => Error::Io { what, path: path.to_path_buf(), source },
        })
    }
}
