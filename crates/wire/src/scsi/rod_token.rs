//! Tokens for data (ROD tokens, SPC-4 5.17.6) and the commands that make and use them (SBC-4 5.12, 5.59).

use super::extended_copy::{emit_cscd, Designator};
use super::sense::Sense;
use super::{be16, be32, be64};

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 512;
/// Its ROD TOKEN LENGTH: the bytes behind that field.
const TOKEN_LENGTH: u16 = (TOKEN_BYTES - 8) as u16;
/// Bytes of a token that REPORT ALL ROD TOKENS tells: those that are not secret.
pub const MANAGEMENT_BYTES: usize = 96;
/// ROD type: the data of one point in time.
pub const POINT_IN_TIME: u32 = 0x0080_0000;
/// ROD type: zeros.
pub const ZEROS: u32 = 0xffff_0001;
/// Random bytes of a token.
pub const SECRET_BYTES: usize = 128;

/// Where the secret lies: behind the target device descriptor.
const SECRET_AT: usize = TOKEN_BYTES - SECRET_BYTES;
const RANGE_BYTES: usize = 16;
const POPULATE_HEADER_BYTES: usize = 16;
const WRITE_HEADER_BYTES: usize = 536;

/// What a device allows of tokens (SBC-4 6.6.9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLimits {
    /// Most ranges of one list.
    pub ranges: u16,
    /// Longest inactivity timeout, in seconds.
    pub inactivity_max_s: u32,
    /// Inactivity timeout of those who do not care, in seconds.
    pub inactivity_s: u32,
    /// Longest life of a token, in seconds.
    pub lifetime_s: u32,
    /// Most blocks of one token or one write.
    pub blocks: u64,
    /// Blocks of the best write.
    pub optimal_blocks: u64,
}

/// A token, as it is made.
#[derive(Debug, Clone, Copy)]
pub struct TokenParts<'a> {
    /// Differs from every other token's.
    pub id: u64,
    /// NAA designator of the unit it was made on.
    pub naa: [u8; 16],
    /// Bytes it stands for.
    pub bytes: u128,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// iSCSI name of the target.
    pub target_name: &'a str,
    /// What nobody can guess.
    pub secret: &'a [u8; SECRET_BYTES],
}

/// Puts a point-in-time token together (SPC-4 table 112).
pub fn emit(parts: &TokenParts<'_>) -> [u8; TOKEN_BYTES] {
    let mut token = Vec::with_capacity(TOKEN_BYTES);
    token.extend_from_slice(&POINT_IN_TIME.to_be_bytes());
    token.extend_from_slice(&[0, 0]);
    token.extend_from_slice(&TOKEN_LENGTH.to_be_bytes());
    token.extend_from_slice(&parts.id.to_be_bytes());
    emit_cscd(&Designator::naa(&parts.naa), parts.block_bytes, &mut token);
    token.extend_from_slice(&parts.bytes.to_be_bytes());
    token.resize(MANAGEMENT_BYTES, 0);
    // Device type specific data: the size of a block.
    token.extend_from_slice(&parts.block_bytes.to_be_bytes());
    token.resize(128, 0);
    // The target device by its SCSI name string, cut where the secret begins.
    let mut name = parts.target_name.as_bytes().to_vec();
    name.resize((name.len() + 4) & !3, 0);
    name.truncate(SECRET_AT - 132);
    token.extend_from_slice(&[0x53, 0xa8, 0, name.len() as u8]);
    token.extend_from_slice(&name);
    token.resize(SECRET_AT, 0);
    token.extend_from_slice(parts.secret);
    let mut bytes = [0; TOKEN_BYTES];
    bytes.copy_from_slice(&token);
    bytes
}

/// What a token says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Any number of zeros.
    Zeros,
    /// Data of one point in time.
    PointInTime {
        /// Which token.
        id: u64,
    },
}

/// Reads a token. Errors: INVALID TOKEN OPERATION, and why.
pub fn parse(token: &[u8; TOKEN_BYTES]) -> Result<TokenKind, Sense> {
    if be16(token, 6) != TOKEN_LENGTH {
        return Err(Sense::INVALID_TOKEN_LENGTH);
    }
    match be32(token, 0) {
        ZEROS => Ok(TokenKind::Zeros),
        POINT_IN_TIME => {
            let same_block_bytes = token[45..48] == token[97..100];
            // Who made it: an identification descriptor by NAA.
            let creator =
                token[16] == super::extended_copy::IDENTIFICATION && token[21] == 3 && token[23] == 16;
            if !creator || !same_block_bytes {
                return Err(Sense::TOKEN_CORRUPT);
            }
            Ok(TokenKind::PointInTime { id: be64(token, 8) })
        }
        _ => Err(Sense::UNSUPPORTED_TOKEN_TYPE),
    }
}

/// A range of blocks: the first, and how many.
pub type Range = (u64, u32);

/// The list of POPULATE TOKEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Populate {
    /// GOOD may come before the token is made.
    pub immediate: bool,
    /// Seconds without use after which the token may go.
    pub inactivity_s: u32,
    /// The blocks, in the order of the data. None twice.
    pub ranges: Vec<Range>,
}

/// The list of WRITE USING TOKEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteUsing {
    /// GOOD comes when the list is found right.
    pub immediate: bool,
    /// The token is to be deleted afterwards.
    pub delete: bool,
    /// Blocks of the token's data to skip.
    pub offset: u64,
    /// The token.
    pub token: [u8; TOKEN_BYTES],
    /// The blocks to write, in the order of the data. None twice.
    pub ranges: Vec<Range>,
}

/// Reads the list of POPULATE TOKEN; an empty one asks for nothing.
pub fn parse_populate(list: &[u8], limits: &TokenLimits) -> Result<Option<Populate>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    if list.len() < POPULATE_HEADER_BYTES {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if be16(list, 0) < 0x1e {
        return Err(Sense::in_parameters(0));
    }
    let asked_s = be32(list, 4);
    if asked_s > limits.inactivity_max_s {
        return Err(Sense::in_parameters(4));
    }
    let kind_valid = list[2] & 2 != 0;
    // Of "any point in time" this is one.
    if kind_valid && !matches!(be32(list, 8), POINT_IN_TIME | 0x0080_ffff) {
        return Err(Sense::in_parameters(8));
    }
    let ranges = parse_ranges(list, POPULATE_HEADER_BYTES, limits)?;
    let inactivity_s = if asked_s == 0 { limits.inactivity_s } else { asked_s };
    Ok(Some(Populate { immediate: list[2] & 1 != 0, inactivity_s, ranges }))
}

/// Reads the list of WRITE USING TOKEN; an empty one asks for nothing.
pub fn parse_write_using(list: &[u8], limits: &TokenLimits) -> Result<Option<WriteUsing>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    if list.len() < WRITE_HEADER_BYTES {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if be16(list, 0) < 0x226 {
        return Err(Sense::in_parameters(0));
    }
    let mut token = [0; TOKEN_BYTES];
    token.copy_from_slice(&list[16..16 + TOKEN_BYTES]);
    let ranges = parse_ranges(list, WRITE_HEADER_BYTES, limits)?;
    Ok(Some(WriteUsing {
        immediate: list[2] & 1 != 0,
        delete: list[2] & 2 != 0,
        offset: be64(list, 8),
        token,
        ranges,
    }))
}

/// The ranges behind a header whose last two bytes are their length. What is left over of less than a range is ignored.
fn parse_ranges(list: &[u8], header_bytes: usize, limits: &TokenLimits) -> Result<Vec<Range>, Sense> {
    let length_at = header_bytes - 2;
    let described_bytes = usize::from(be16(list, length_at));
    // The data length counts what stands behind itself: the rest of the header, and the ranges.
    if described_bytes < RANGE_BYTES || usize::from(be16(list, 0)) != described_bytes + length_at {
        return Err(Sense::in_parameters(length_at as u16));
    }
    // GOOD for a range that was announced and did not come would claim what was not done.
    if list.len() < header_bytes + described_bytes / RANGE_BYTES * RANGE_BYTES {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let bytes = &list[header_bytes..list.len().min(header_bytes + described_bytes)];
    if bytes.len() / RANGE_BYTES > usize::from(limits.ranges) {
        return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS.at_parameter(length_at as u16));
    }
    let ranges: Vec<Range> = bytes.chunks_exact(RANGE_BYTES).map(|r| (be64(r, 0), be32(r, 8))).collect();
    let place = |i: usize| Sense::in_parameters((header_bytes + i * RANGE_BYTES) as u16);
    let mut order: Vec<usize> = (0..ranges.len()).filter(|&i| ranges[i].1 > 0).collect();
    order.sort_unstable_by_key(|&i| ranges[i].0);
    for pair in order.windows(2) {
        let (lba, count) = ranges[pair[0]];
        if ranges[pair[1]].0 - lba < u64::from(count) {
            return Err(place(pair[0].max(pair[1])));
        }
    }
    if ranges.iter().map(|r| u64::from(r.1)).sum::<u64>() > limits.blocks {
        return Err(Sense::in_parameters(length_at as u16));
    }
    Ok(ranges)
}

fn push_ranges(ranges: &[Range], start: usize, out: &mut Vec<u8>) {
    let described_bytes = (ranges.len() * RANGE_BYTES) as u16;
    let at = out.len();
    out[at - 2..].copy_from_slice(&described_bytes.to_be_bytes());
    for (lba, count) in ranges {
        out.extend_from_slice(&lba.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
    }
    let length = ((out.len() - start - 2) as u16).to_be_bytes();
    out[start..start + 2].copy_from_slice(&length);
}

/// Appends a list of POPULATE TOKEN.
pub fn emit_populate(populate: &Populate, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, u8::from(populate.immediate), 0]);
    out.extend_from_slice(&populate.inactivity_s.to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    push_ranges(&populate.ranges, start, out);
}

/// Appends a list of WRITE USING TOKEN.
pub fn emit_write_using(write: &WriteUsing, out: &mut Vec<u8>) {
    let start = out.len();
    let flags = u8::from(write.delete) << 1 | u8::from(write.immediate);
    out.extend_from_slice(&[0, 0, flags, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&write.offset.to_be_bytes());
    out.extend_from_slice(&write.token);
    out.extend_from_slice(&[0; 8]);
    push_ranges(&write.ranges, start, out);
}

/// The token that stands for zeros (SBC-4 4.28.4).
pub fn zeros() -> [u8; TOKEN_BYTES] {
    let mut token = [0; TOKEN_BYTES];
    token[..4].copy_from_slice(&ZEROS.to_be_bytes());
    token[6..8].copy_from_slice(&TOKEN_LENGTH.to_be_bytes());
    token
}

/// REPORT ALL ROD TOKENS (SPC-4 6.31): what is not secret of each of `tokens`.
pub fn emit_all<'a>(tokens: impl Iterator<Item = &'a [u8; TOKEN_BYTES]>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    for token in tokens {
        out.extend_from_slice(&token[..MANAGEMENT_BYTES]);
    }
    let bytes = ((out.len() - start - 4) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: TokenLimits = TokenLimits {
        ranges: 8,
        inactivity_max_s: 100,
        inactivity_s: 7,
        lifetime_s: 1000,
        blocks: 1 << 40,
        optimal_blocks: 1 << 20,
    };

    fn token(secret: u8) -> [u8; TOKEN_BYTES] {
        emit(&TokenParts {
            id: 77,
            naa: [6; 16],
            bytes: 5 << 40,
            block_bytes: 512,
            target_name: "iqn.2026-01.example:t",
            secret: &[secret; SECRET_BYTES],
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_lists_and_tokens_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            let _ = parse_populate(&bytes, &LIMITS);
            if let Ok(Some(write)) = parse_write_using(&bytes, &LIMITS) {
                let _ = parse(&write.token);
                prop_assert!(write.ranges.len() <= 8);
            }
        }

        #[test]
        fn lists_are_read_as_they_were_written(
            gaps in proptest::collection::vec((0..1u64 << 40, 0..u32::MAX), 1..8),
            offset in any::<u64>(),
            flags in any::<[bool; 2]>(),
            inactivity_s in 1..=100u32,
        ) {
            let mut next = 0;
            let ranges: Vec<Range> = gaps.iter().map(|&(gap, count)| {
                let lba = next + gap;
                next = lba + u64::from(count);
                (lba, count)
            }).collect();
            let populate = Populate { immediate: flags[0], inactivity_s, ranges: ranges.clone() };
            let mut bytes = Vec::new();
            emit_populate(&populate, &mut bytes);
            prop_assert_eq!(parse_populate(&bytes, &LIMITS), Ok(Some(populate)));
            let write = WriteUsing { immediate: flags[0], delete: flags[1], offset, token: token(3), ranges };
            let mut bytes = Vec::new();
            emit_write_using(&write, &mut bytes);
            prop_assert_eq!(parse_write_using(&bytes, &LIMITS), Ok(Some(write)));
        }
    }

    #[test]
    fn tokens_have_the_standards_fields_in_place() {
        let token = token(9);
        assert_eq!(token[..8], [0, 0x80, 0, 0, 0, 0, 1, 0xf8]);
        assert_eq!(token[16..24], [0xe4, 0, 0, 0, 1, 3, 0, 16]);
        assert_eq!(token[48..64], (5u128 << 40).to_be_bytes());
        assert_eq!(token[SECRET_AT..], [9; SECRET_BYTES]);
        assert_eq!(parse(&token), Ok(TokenKind::PointInTime { id: 77 }));
        assert_eq!(parse(&zeros()), Ok(TokenKind::Zeros));
        for (byte, code) in [(0, 0x2301), (6, 0x230a), (16, 0x2305), (47, 0x2305)] {
            let mut wrong = token;
            wrong[byte] ^= 0x40;
            assert_eq!(parse(&wrong).map_err(|s| s.code), Err(code), "byte {byte}");
        }
    }

    #[test]
    fn names_that_are_too_long_do_not_reach_the_secret() {
        let name = "iqn.2026-01.example:".to_owned() + &"x".repeat(400);
        let parts = TokenParts {
            id: 1,
            naa: [6; 16],
            bytes: 0,
            block_bytes: 512,
            target_name: &name,
            secret: &[5; SECRET_BYTES],
        };
        assert_eq!(emit(&parts)[SECRET_AT..], [5; SECRET_BYTES]);
    }

    #[test]
    fn ranges_that_overlap_or_are_too_many_are_refused() {
        let populate = |ranges: &[Range]| {
            let mut bytes = Vec::new();
            emit_populate(
                &Populate { immediate: false, inactivity_s: 0, ranges: ranges.to_vec() },
                &mut bytes,
            );
            parse_populate(&bytes, &LIMITS).map(|p| p.map(|p| p.inactivity_s)).map_err(|sense| sense.code)
        };
        assert_eq!(populate(&[(8, 8), (0, 8), (4, 0)]), Ok(Some(7)));
        assert_eq!(populate(&[(8, 8), (0, 9)]), Err(0x2600));
        assert_eq!(populate(&[(8, 8), (8, 1)]), Err(0x2600));
        assert_eq!(populate(&[]), Err(0x2600));
        assert_eq!(populate(&[(0, 0); 9]), Err(0x2608));
        assert_eq!(populate(&[(u64::MAX, 1), (u64::MAX - 8, 8)]), Ok(Some(7)));
    }
}
