//! VPD page 8Fh, third-party copy (SPC-4 7.8.17, SBC-4 6.6.9): which copies there are, and their limits.

use super::extended_copy::{CopyLimits, DESCRIPTORS, THIS_UNIT};
use super::rod_token::TokenLimits;

/// The page.
pub const PAGE: u8 = 0x8f;

/// What there is.
#[derive(Debug, Clone, Copy)]
pub struct ThirdPartyCopy<'a> {
    /// Operation codes and service actions, ascending.
    pub commands: &'a [(u8, u8)],
    /// EXTENDED COPY.
    pub extended_copy: Option<CopyLimits>,
    /// Tokens.
    pub tokens: Option<TokenLimits>,
    /// Bytes of a logical block.
    pub block_bytes: u32,
}

/// Appends one descriptor, padded to a multiple of four bytes.
fn push(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
    let padded = (body.len() + 3) & !3;
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(padded as u16).to_be_bytes());
    out.extend_from_slice(body);
    out.resize(out.len() + padded - body.len(), 0);
}

/// Appends the page.
pub fn emit(page: &ThirdPartyCopy<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[super::inquiry::PRESENT, PAGE, 0, 0]);
    if let Some(limits) = &page.tokens {
        push(out, 0x0000, &rod_token_limits(limits));
    }
    push(out, 0x0001, &supported_commands(page.commands));
    if let Some(limits) = &page.extended_copy {
        let mut parameters = [0; 28];
        parameters[4..6].copy_from_slice(&limits.cscds.to_be_bytes());
        parameters[6..8].copy_from_slice(&limits.segments.to_be_bytes());
        parameters[8..12].copy_from_slice(&limits.descriptor_bytes.to_be_bytes());
        push(out, 0x0004, &parameters);
        push(out, 0x0008, &[[DESCRIPTORS.len() as u8].as_slice(), &DESCRIPTORS].concat());
        push(out, 0x000c, &[[0, 2], THIS_UNIT.to_be_bytes()].concat());
    }
    if let Some(limits) = &page.tokens {
        push(out, 0x0106, &token_features(limits, page.block_bytes));
    }
    // General copy operations and held data are told in any case.
    let mut general = [0; 32];
    if let Some(limits) = &page.extended_copy {
        let concurrent = u32::from(limits.concurrent).to_be_bytes();
        general[..4].copy_from_slice(&concurrent);
        general[4..8].copy_from_slice(&concurrent);
        general[8..12].copy_from_slice(&limits.segment_bytes.to_be_bytes());
        general[12] = limits.granularity_exponent;
    }
    push(out, 0x8001, &general);
    push(out, 0xc001, &[0; 28]);
    let bytes = ((out.len() - start - 4) as u16).to_be_bytes();
    out[start + 2..start + 4].copy_from_slice(&bytes);
}

/// Block device ROD token limits (SBC-4 6.6.9.3).
fn rod_token_limits(limits: &TokenLimits) -> [u8; 32] {
    let mut body = [0; 32];
    body[6..8].copy_from_slice(&limits.ranges.to_be_bytes());
    body[8..12].copy_from_slice(&limits.inactivity_max_s.to_be_bytes());
    body[12..16].copy_from_slice(&limits.inactivity_s.to_be_bytes());
    body[16..24].copy_from_slice(&limits.blocks.to_be_bytes());
    body[24..32].copy_from_slice(&limits.optimal_blocks.to_be_bytes());
    body
}

/// For each operation code: how many service actions, and which.
fn supported_commands(commands: &[(u8, u8)]) -> Vec<u8> {
    let mut body = vec![0];
    for of_one_code in commands.chunk_by(|a, b| a.0 == b.0) {
        body.extend_from_slice(&[of_one_code[0].0, of_one_code.len() as u8]);
        body.extend(of_one_code.iter().map(|(_, service_action)| service_action));
    }
    body[0] = (body.len() - 1) as u8;
    body
}

/// ROD token features (SPC-4 7.8.17.8), with those of block devices.
fn token_features(limits: &TokenLimits, block_bytes: u32) -> [u8; 92] {
    let mut body = [0; 92];
    // REMOTE TOKENS 0: those of other devices are not known here.
    body[12..16].copy_from_slice(&1u32.to_be_bytes());
    body[16..20].copy_from_slice(&limits.lifetime_s.to_be_bytes());
    body[20..24].copy_from_slice(&limits.inactivity_max_s.to_be_bytes());
    body[42..44].copy_from_slice(&48u16.to_be_bytes());
    let block = &mut body[44..];
    block[2..4].copy_from_slice(&0x2cu16.to_be_bytes());
    let bytes = limits.blocks.saturating_mul(u64::from(block_bytes));
    let optimal_bytes = limits.optimal_blocks.saturating_mul(u64::from(block_bytes));
    block[8..16].copy_from_slice(&bytes.to_be_bytes());
    for at in [16, 24, 32] {
        block[at..at + 8].copy_from_slice(&optimal_bytes.to_be_bytes());
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: CopyLimits = CopyLimits {
        cscds: 1,
        segments: 2,
        descriptor_bytes: 3,
        segment_bytes: 4,
        granularity_exponent: 9,
        concurrent: 6,
    };
    const TOKENS: TokenLimits = TokenLimits {
        ranges: 8,
        inactivity_max_s: 100,
        inactivity_s: 7,
        lifetime_s: 1000,
        blocks: 1 << 20,
        optimal_blocks: 1 << 10,
    };

    /// The descriptor types of a page, whose lengths must add up.
    fn kinds(page: &ThirdPartyCopy<'_>) -> Vec<u16> {
        let mut out = Vec::new();
        emit(page, &mut out);
        assert_eq!(usize::from(out[2]) << 8 | usize::from(out[3]), out.len() - 4);
        let mut rest = &out[4..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            kinds.push(u16::from_be_bytes([rest[0], rest[1]]));
            let length = usize::from(rest[2]) << 8 | usize::from(rest[3]);
            assert_eq!(length % 4, 0);
            rest = &rest[4 + length..];
        }
        kinds
    }

    #[test]
    fn descriptors_ascend_and_follow_what_there_is() {
        let commands = [(0x83, 0), (0x83, 1), (0x84, 0)];
        let page = ThirdPartyCopy {
            commands: &commands,
            extended_copy: Some(COPY),
            tokens: Some(TOKENS),
            block_bytes: 512,
        };
        assert_eq!(kinds(&page), [0, 1, 4, 8, 0xc, 0x106, 0x8001, 0xc001]);
        assert_eq!(kinds(&ThirdPartyCopy { tokens: None, ..page }), [1, 4, 8, 0xc, 0x8001, 0xc001]);
        assert_eq!(kinds(&ThirdPartyCopy { extended_copy: None, ..page }), [0, 1, 0x106, 0x8001, 0xc001]);
    }

    #[test]
    fn commands_are_listed_by_operation_code() {
        assert_eq!(supported_commands(&[(0x83, 0), (0x83, 1), (0x84, 3)]), [7, 0x83, 2, 0, 1, 0x84, 1, 3]);
    }
}
