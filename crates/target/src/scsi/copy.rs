//! Copies inside the appliance: EXTENDED COPY, and tokens for data (Windows ODX).
//!
//! The session's thread reads a command's list, finds the units it names, and checks every range before anything moves (`plan`,
//! `odx`); what is to be done then runs as a job beside the session (`run`). A LUN that knows the source records references,
//! so that a copy of any size is a record or a few; between LUNs that do not know each other data moves, in steps that look at
//! the command's cancel. What became of a copy is held for its nexus (`held`) until the initiator asks (`reports`).
//! Units are found through [`super::reach::Reach`] alone: a unit that is not shown to the initiator cannot be named.

mod held;
mod odx;
mod plan;
mod reports;
mod run;
mod tokens;

pub(super) use held::Held;
pub(super) use reports::{offered, third_party_page};
pub use tokens::Tokens;

use crate::lun::BLOCK_BYTES;
use playhead_wire::scsi::extended_copy::CopyLimits;
use playhead_wire::scsi::rod_token::TokenLimits;

/// Copies of one nexus at once.
const CONCURRENT_MAX: u8 = 64;

/// What EXTENDED COPY may ask for. A list of the most segments clones 4 TiB.
pub(crate) const COPY_LIMITS: CopyLimits = CopyLimits {
    cscds: 128,
    segments: 1024,
    descriptor_bytes: 128 * 32 + 1024 * 32,
    segment_bytes: u32::MAX - (BLOCK_BYTES as u32 - 1),
    granularity_exponent: BLOCK_BYTES.trailing_zeros() as u8,
    concurrent: CONCURRENT_MAX,
};

/// What tokens may stand for, and how long. A token holds the past of its LUN, so an unused one goes after minutes. Within a group a
/// write of the most is as quick as one of a block; but to another group it is data, and a host waits for the command: the best is what
/// is over in time either way.
pub(crate) const TOKEN_LIMITS: TokenLimits = TokenLimits {
    ranges: 256,
    inactivity_max_s: 3600,
    inactivity_s: 60,
    lifetime_s: 24 * 3600,
    blocks: (1 << 40) / BLOCK_BYTES as u64,
    optimal_blocks: (1 << 30) / BLOCK_BYTES as u64,
};

/// Longest parameter list of a command about copies, in bytes: a header, and descriptors for all that may be named.
pub(crate) const LIST_BYTES_MAX: u32 = 64 << 10;
