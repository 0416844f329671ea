//! Header and data digests: CRC32C, least significant byte first on the wire (RFC 7143 13.1, RFC 3720 appendix B.4).

use super::bhs::{Frame, DIGEST_LEN};

/// The digest of `bytes` as sent.
pub fn of(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    crc32c::crc32c(bytes).to_le_bytes()
}

/// Whether the header digest of the PDU at the start of `pdu` is right. False if it is not all there.
pub fn header_matches(pdu: &[u8], frame: &Frame) -> bool {
    let Some(header) = pdu.get(..frame.header_end) else {
        return false;
    };
    pdu.get(frame.header_end..frame.header_end + DIGEST_LEN) == Some(&of(header))
}

/// Whether the data digest of the whole PDU `pdu` is right. False if it is not all there.
pub fn data_matches(pdu: &[u8], frame: &Frame) -> bool {
    let padded = frame.padded_data();
    let Some(data) = pdu.get(padded.clone()) else {
        return false;
    };
    pdu.get(padded.end..padded.end + DIGEST_LEN) == Some(&of(data))
}

#[cfg(test)]
mod tests {
    #[test]
    fn matches_the_examples_of_rfc_3720_b4() {
        assert_eq!(super::of(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(super::of(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(super::of(&rising), [0x4e, 0x79, 0xdd, 0x46]);
    }
}
