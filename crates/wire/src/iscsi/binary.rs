//! Binary values in text: hexadecimal and base64 constants (RFC 7143 6.1).

/// Longest binary value of authentication, in bytes (RFC 7143 12.1.3).
pub const BINARY_MAX_BYTES: usize = 1024;

/// The bytes of a hex-constant (`0x`) or base64-constant (`0b`), one to [`BINARY_MAX_BYTES`] of them; `None` for anything else.
///
/// A hex-constant with an odd number of digits has a zero before them. Base64 is that of RFC 4648 4, its padding required.
pub fn parse(value: &str) -> Option<Vec<u8>> {
    let (form, digits) = value.split_at_checked(2)?;
    let bytes = match form {
        "0x" | "0X" => from_hex(digits.as_bytes())?,
        "0b" | "0B" => from_base64(digits.as_bytes())?,
        _ => return None,
    };
    (1..=BINARY_MAX_BYTES).contains(&bytes.len()).then_some(bytes)
}

/// The hex-constant of `bytes`.
pub fn emit_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    let digits = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    ['0', 'x'].into_iter().chain(digits).collect()
}

/// The base64-constant of `bytes`.
pub fn emit_base64(bytes: &[u8]) -> String {
    let mut out = String::from("0b");
    for group in bytes.chunks(3) {
        let bits =
            group.iter().enumerate().fold(0u32, |bits, (i, byte)| bits | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let is_padding = i > group.len();
            out.push(if is_padding { '=' } else { base64_digit((bits >> (18 - 6 * i)) as u8 & 63) });
        }
    }
    out
}

fn base64_digit(value: u8) -> char {
    char::from(match value {
        0..=25 => b'A' + value,
        26..=51 => b'a' + value - 26,
        52..=61 => b'0' + value - 52,
        62 => b'+',
        _ => b'/',
    })
}

fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    if digits.len() > 2 * BINARY_MAX_BYTES {
        return None;
    }
    let value = |digit: &u8| char::from(*digit).to_digit(16).map(|value| value as u8);
    let (first, pairs) = digits.split_at(digits.len() % 2);
    let mut bytes = Vec::with_capacity(digits.len() / 2 + 1);
    for digit in first {
        bytes.push(value(digit)?);
    }
    for pair in pairs.chunks_exact(2) {
        bytes.push(value(&pair[0])? << 4 | value(&pair[1])?);
    }
    Some(bytes)
}

fn from_base64(digits: &[u8]) -> Option<Vec<u8>> {
    if digits.is_empty() || digits.len() % 4 != 0 || digits.len() > BINARY_MAX_BYTES.div_ceil(3) * 4 {
        return None;
    }
    let padding = digits.iter().rev().take_while(|&&digit| digit == b'=').count();
    if padding > 2 {
        return None;
    }
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    let (mut bits, mut have) = (0u32, 0);
    for digit in &digits[..digits.len() - padding] {
        bits = bits << 6 | u32::from(value(*digit)?);
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have) as u8);
        }
    }
    // What is left over of the last digit carries nothing.
    (bits & ((1 << have) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_forms_round_trip(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            prop_assert_eq!(parse(&emit_hex(&bytes)), Some(bytes.clone()));
            prop_assert_eq!(parse(&emit_base64(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_bytes_or_nothing(text in "(0x|0b|0X|0B)?\\PC{0,40}") {
            if let Some(bytes) = parse(&text) {
                prop_assert!((1..=BINARY_MAX_BYTES).contains(&bytes.len()));
            }
        }
    }

    #[test]
    fn the_examples_of_rfc_4648_and_odd_digits() {
        assert_eq!(parse("0bZm9vYmFy").as_deref(), Some(&b"foobar"[..]));
        assert_eq!(parse("0bZm9vYmE=").as_deref(), Some(&b"fooba"[..]));
        assert_eq!(parse("0BZg==").as_deref(), Some(&b"f"[..]));
        assert_eq!(emit_base64(b"foob"), "0bZm9vYg==");
        assert_eq!(parse("0xABC").as_deref(), Some(&[0x0a, 0xbc][..]));
        for bad in [
            "",
            "0",
            "0x",
            "0b",
            "ab",
            "0bZm9",
            "0bZg=a",
            "0bZh==",
            "0b====",
            "0xgg",
            "0bZ\u{e9}==",
            "0b Zg=",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(parse(&emit_hex(&[1; 1025])), None);
        assert_eq!(parse(&emit_base64(&[1; 1025])), None);
        assert_eq!(parse(&emit_base64(&[1; 1024])).map(|bytes| bytes.len()), Some(1024));
    }
}
