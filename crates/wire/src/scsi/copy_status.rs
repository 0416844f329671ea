//! What became of copies: parameter data of the RECEIVE COPY commands (SPC-4 6.20 to 6.26).

use super::extended_copy::{CopyLimits, DESCRIPTORS};
use super::rod_token::TOKEN_BYTES;
use super::status;

/// COPY OPERATION STATUS (SPC-4 table 249).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CopyState {
    /// All is copied.
    Done = 0x01,
    /// An error ended it.
    Failed = 0x02,
    /// No error, but less than asked for.
    Partial = 0x03,
    /// At work; its command waits for it.
    Foreground = 0x11,
    /// At work behind a command that has ended.
    Background = 0x12,
    /// Ended by an abort.
    Terminated = 0x60,
}

impl CopyState {
    /// Whether it is over.
    pub fn is_over(self) -> bool {
        !matches!(self, CopyState::Foreground | CopyState::Background)
    }
}

/// Units of TRANSFER COUNT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferUnits {
    /// Bytes: EXTENDED COPY.
    Bytes,
    /// Logical blocks: tokens.
    Blocks,
}

/// One copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyStatus<'a> {
    /// The service action of the command that began it.
    pub service_action: u8,
    /// How it stands.
    pub state: CopyState,
    /// Status code it ended with.
    pub status: u8,
    /// Sense data it ended with.
    pub sense: &'a [u8],
    /// What is copied so far.
    pub transferred: u64,
    /// In these units.
    pub units: TransferUnits,
    /// Segments done or begun.
    pub segments: u16,
    /// Commands it would have taken, modulo 2^16.
    pub operations: u16,
}

/// What an initiator does well to wait before it asks again, in ms.
const UPDATE_DELAY_MS: u32 = 100;
/// That nothing will change.
const NO_UPDATES: u32 = 0xffff_fffe;

fn with_length(out: &mut Vec<u8>, f: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    f(out);
    let bytes = ((out.len() - start - 4) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&bytes);
}

/// The header that all commands with identifiers of four bytes share, without its AVAILABLE DATA.
fn push_header(copy: &CopyStatus<'_>, out: &mut Vec<u8>) {
    let terminated = copy.state == CopyState::Terminated;
    let told = copy.state.is_over() && !terminated;
    let sense = if told { copy.sense } else { &[] };
    let padded = (sense.len() + 3) & !3;
    out.extend_from_slice(&[copy.service_action & 0x1f, copy.state as u8]);
    out.extend_from_slice(&copy.operations.to_be_bytes());
    let delay = if copy.state.is_over() { NO_UPDATES } else { UPDATE_DELAY_MS };
    out.extend_from_slice(&delay.to_be_bytes());
    out.push(match (terminated, told) {
        (true, _) => status::TASK_ABORTED,
        (_, true) => copy.status,
        _ => 0,
    });
    out.extend_from_slice(&[padded as u8, sense.len() as u8]);
    out.push(match copy.units {
        TransferUnits::Bytes => 0x00,
        TransferUnits::Blocks => 0xf1,
    });
    out.extend_from_slice(&copy.transferred.to_be_bytes());
    out.extend_from_slice(&copy.segments.to_be_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(sense);
    out.resize(out.len() + padded - sense.len(), 0);
}

/// RECEIVE COPY STATUS(LID4), SPC-4 6.24.
pub fn emit_status_4(copy: &CopyStatus<'_>, out: &mut Vec<u8>) {
    with_length(out, |out| push_header(copy, out));
}

/// RECEIVE COPY DATA(LID4), SPC-4 6.20: no data is held.
pub fn emit_data_4(copy: &CopyStatus<'_>, out: &mut Vec<u8>) {
    with_length(out, |out| {
        push_header(copy, out);
        out.extend_from_slice(&[0; 4]);
    });
}

/// RECEIVE ROD TOKEN INFORMATION, SPC-4 6.26.
pub fn emit_rod_token_information(
    copy: &CopyStatus<'_>,
    token: Option<&[u8; TOKEN_BYTES]>,
    out: &mut Vec<u8>,
) {
    with_length(out, |out| {
        push_header(copy, out);
        with_length(out, |out| {
            if let Some(token) = token {
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(token);
            }
        });
    });
}

/// RECEIVE COPY STATUS(LID1), SPC-4 6.25.
pub fn emit_status_1(copy: &CopyStatus<'_>, out: &mut Vec<u8>) {
    let state = match copy.state {
        CopyState::Foreground | CopyState::Background => 0x00,
        CopyState::Done => 0x01,
        CopyState::Failed | CopyState::Partial | CopyState::Terminated => 0x02,
    };
    // The count has 32 bits here: in the smallest unit that it fits.
    let (mut units, mut count) = match copy.units {
        TransferUnits::Bytes => (0x00, copy.transferred),
        TransferUnits::Blocks => (0xf1, copy.transferred),
    };
    while count > u64::from(u32::MAX) && units < 6 {
        units += 1;
        count >>= 10;
    }
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    with_length(out, |out| {
        out.push(state);
        out.extend_from_slice(&copy.segments.to_be_bytes());
        out.push(units);
        out.extend_from_slice(&count.to_be_bytes());
    });
}

/// RECEIVE COPY DATA(LID1), SPC-4 6.21: no data is held.
pub fn emit_data_1(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

/// RECEIVE COPY FAILURE DETAILS(LID1), SPC-4 6.23; `None`: there are none.
pub fn emit_failure_details_1(failure: Option<(u8, &[u8])>, out: &mut Vec<u8>) {
    with_length(out, |out| {
        if let Some((status, sense)) = failure {
            out.extend_from_slice(&[0; 52]);
            out.extend_from_slice(&[status, 0]);
            out.extend_from_slice(&(sense.len() as u16).to_be_bytes());
            out.extend_from_slice(sense);
        }
    });
}

/// RECEIVE COPY OPERATING PARAMETERS, SPC-4 6.22.
pub fn emit_operating_parameters(limits: &CopyLimits, out: &mut Vec<u8>) {
    with_length(out, |out| {
        out.extend_from_slice(&[0x01, 0, 0, 0]); // SNLID: lists without an identifier
        out.extend_from_slice(&limits.cscds.to_be_bytes());
        out.extend_from_slice(&limits.segments.to_be_bytes());
        out.extend_from_slice(&limits.descriptor_bytes.to_be_bytes());
        out.extend_from_slice(&limits.segment_bytes.to_be_bytes());
        // Neither inline data, nor held data, nor streams.
        out.extend_from_slice(&[0; 12]);
        out.extend_from_slice(&[0, 0, 0, limits.concurrent, limits.concurrent, limits.granularity_exponent]);
        out.extend_from_slice(&[0, 0, 0, 0, 0, DESCRIPTORS.len() as u8]);
        out.extend_from_slice(&DESCRIPTORS);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(state: CopyState, sense: &[u8]) -> CopyStatus<'_> {
        CopyStatus {
            service_action: 0x11,
            state,
            status: status::CHECK_CONDITION,
            sense,
            transferred: 5,
            units: TransferUnits::Blocks,
            segments: 0,
            operations: 7,
        }
    }

    #[test]
    fn the_shared_header_is_in_place() {
        let mut out = Vec::new();
        emit_rod_token_information(&copy(CopyState::Partial, &[9; 18]), None, &mut out);
        assert_eq!(out.len(), 32 + 20 + 4);
        assert_eq!(out[..8], [0, 0, 0, 52, 0x11, 3, 0, 7]);
        assert_eq!(out[8..12], [0xff, 0xff, 0xff, 0xfe]);
        assert_eq!(out[12..16], [2, 20, 18, 0xf1]);
        assert_eq!(out[16..24], 5u64.to_be_bytes());
        assert_eq!(out[32..52], [[9; 18].as_slice(), &[0, 0]].concat());
        assert_eq!(out[52..], [0; 4]);
    }

    #[test]
    fn a_copy_at_work_or_aborted_has_no_sense() {
        for (state, expected) in [(CopyState::Background, 0), (CopyState::Terminated, 0x40)] {
            let mut out = Vec::new();
            emit_status_4(&copy(state, &[9; 18]), &mut out);
            assert_eq!(out.len(), 32);
            assert_eq!(out[12..15], [expected, 0, 0]);
        }
    }

    #[test]
    fn a_token_comes_after_two_bytes_of_its_descriptor() {
        let mut out = Vec::new();
        emit_rod_token_information(&copy(CopyState::Done, &[]), Some(&[3; TOKEN_BYTES]), &mut out);
        assert_eq!(out[32..38], [0, 0, 2, 2, 0, 0]);
        assert_eq!(out.len(), 38 + TOKEN_BYTES);
    }

    #[test]
    fn large_counts_of_bytes_are_told_in_larger_units() {
        let mut out = Vec::new();
        let large =
            CopyStatus { transferred: 100 << 30, units: TransferUnits::Bytes, ..copy(CopyState::Done, &[]) };
        emit_status_1(&large, &mut out);
        assert_eq!(out[..8], [0, 0, 0, 8, 1, 0, 0, 1]);
        assert_eq!(out[8..], (100u32 << 20).to_be_bytes());
    }

    #[test]
    fn operating_parameters_are_in_place() {
        let limits = CopyLimits {
            cscds: 1,
            segments: 2,
            descriptor_bytes: 3,
            segment_bytes: 4,
            granularity_exponent: 9,
            concurrent: 6,
        };
        let mut out = Vec::new();
        emit_operating_parameters(&limits, &mut out);
        assert_eq!(out[..20], [0, 0, 0, 43, 1, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]);
        assert_eq!(out[34..40], [0, 6, 6, 9, 0, 0]);
        assert_eq!(out[43..], [3, 2, 0x0a, 0xe4]);
    }
}
