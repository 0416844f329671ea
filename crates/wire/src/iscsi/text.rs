//! Text data segments: `key=value` pairs, each ended by NUL (RFC 7143 6.1).

/// Longest key (RFC 7143 6.1).
pub const KEY_MAX_BYTES: usize = 63;
/// Longest value: only authentication values may pass 255 bytes, and those stay within this (RFC 7143 6.1, 12.1).
pub const VALUE_MAX_BYTES: usize = 8192;
/// Most pairs taken from one negotiation.
pub const PAIRS_MAX: usize = 256;

/// Why text is not pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// No `=` in a pair.
    #[error("a pair has no '='")]
    NoValue,
    /// A key of the wrong length or alphabet.
    #[error("a key is not a key name")]
    Key,
    /// A value that is too long or not UTF-8.
    #[error("a value is too long or not UTF-8")]
    Value,
    /// More pairs than [`PAIRS_MAX`].
    #[error("too many pairs")]
    TooMany,
}

/// The pairs of `text`, in order. A missing last NUL and empty strings between NULs are tolerated, as peers send both.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = Result<(&str, &str), TextError>> {
    text.split(|&byte| byte == 0).filter(|part| !part.is_empty()).enumerate().take(PAIRS_MAX + 1).map(
        |(i, part)| {
            if i == PAIRS_MAX {
                return Err(TextError::TooMany);
            }
            let equals = part.iter().position(|&byte| byte == b'=').ok_or(TextError::NoValue)?;
            let (key, value) = (&part[..equals], &part[equals + 1..]);
            if key.is_empty() || key.len() > KEY_MAX_BYTES || !key.iter().all(is_key_byte) {
                return Err(TextError::Key);
            }
            if value.len() > VALUE_MAX_BYTES {
                return Err(TextError::Value);
            }
            let key = std::str::from_utf8(key).map_err(|_| TextError::Key)?;
            let value = std::str::from_utf8(value).map_err(|_| TextError::Value)?;
            Ok((key, value))
        },
    )
}

/// Key names are a letter and then letters, digits, `. - + @ _`; extension keys have a `#` too (RFC 7143 6.1, 13.22).
fn is_key_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-+@_#".contains(byte)
}

/// Appends one pair and its NUL.
pub fn push(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A number in decimal or `0x` hexadecimal (RFC 7143 6.1).
pub fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u32::from_str_radix(hex, 16).ok(),
        None if !value.starts_with('+') => value.parse().ok(),
        _ => None,
    }
}

/// `Yes` or `No`.
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// Whether `name` is an iSCSI name by form: `iqn.`, `eui.` or `naa.`, up to 223 bytes (RFC 7143 4.2.7.1).
pub fn is_iscsi_name(name: &str) -> bool {
    let form = ["iqn.", "eui.", "naa."].iter().any(|prefix| name.starts_with(prefix));
    form && name.len() > 4
        && name.len() <= 223
        && name.bytes().all(|byte| byte > 0x20 && byte != 0x7f && byte != b',' && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_end_in_pairs_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            for pair in pairs(&bytes) {
                let _ = pair.map(|(_, value)| (number(value), boolean(value), is_iscsi_name(value)));
            }
        }

        #[test]
        fn pushed_pairs_come_back(key in "[A-Za-z][A-Za-z0-9]{0,30}", value in "[ -~]{0,100}") {
            let mut text = Vec::new();
            push(&mut text, &key, &value);
            prop_assert_eq!(pairs(&text).collect::<Vec<_>>(), vec![Ok((key.as_str(), value.as_str()))]);
        }
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("8192"), Some(8192));
        assert_eq!(number("0x2000"), Some(8192));
        for bad in ["", "-1", "+5", "0x", "0x+1", "4294967296", "8k"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
