//! iSCSI PDUs: framing, digests, headers of both directions, text.
//!
//! Input: one byte of options (bit 0 header digest, bit 1 data digest, bits 2 and 3 the longest data segment), then what arrives on the
//! connection.

use playhead_wire::iscsi::bhs::{self, Bhs, Digests, Frame, BHS_LEN};
use playhead_wire::iscsi::negotiate::{Parameters, SessionType, Wishes};
use playhead_wire::iscsi::request::Request;
use playhead_wire::iscsi::response::Response;
use playhead_wire::iscsi::{binary, digest, lun_bytes, lun_number, text, SerialNumber};

const WISHES: Wishes = Wishes {
    max_recv_bytes: 1 << 20,
    max_burst_bytes: 4 << 20,
    first_burst_bytes: 1 << 20,
    max_outstanding_r2t: 4,
};

/// Takes PDUs off `data` as a connection would.
pub fn run(data: &[u8]) {
    let Some((&options, mut stream)) = data.split_first() else {
        return;
    };
    let digests = Digests { header: options & 1 != 0, data: options & 2 != 0 };
    let limit_bytes = [512, 8192, 1 << 16, 1 << 20][usize::from(options >> 2 & 3)];
    loop {
        match Frame::new_checked(stream, digests, limit_bytes) {
            Err(_) => return,
            Ok(None) => {
                assert!(stream.len() < BHS_LEN);
                return;
            }
            Ok(Some(frame)) => {
                assert!(frame.header_end >= BHS_LEN && frame.header_end <= frame.data_start);
                assert!(frame.data_len <= limit_bytes && frame.padded_data().end <= frame.total_len);
                assert!(frame.total_len <= BHS_LEN + 1020 + 8 + limit_bytes + 3);
                if stream.len() < frame.total_len {
                    // A digest of what is not all there is never right.
                    assert!(!digests.data || frame.data_len == 0 || !digest::data_matches(stream, &frame));
                    return;
                }
                pdu(stream, &frame, digests);
                stream = &stream[frame.total_len..];
            }
        }
    }
}

fn pdu(stream: &[u8], frame: &Frame, digests: Digests) {
    let header: &Bhs = stream.first_chunk().unwrap();
    let _ = (digests.header && digest::header_matches(stream, frame), digest::data_matches(stream, frame));
    if let Ok(request) = Request::parse(header) {
        let mut again = request.emit();
        assert_eq!(Request::parse(&again), Ok(request));
        bhs::set_data_length(&mut again, frame.data_len);
        whole(again, &stream[frame.data()], digests);
        serials(&request);
    }
    if let Ok((response, counters)) = Response::parse(header) {
        let (same, counted) = Response::parse(&response.emit(counters)).unwrap();
        assert_eq!(same, response);
        if !matches!(response, Response::DataIn(data_in) if data_in.status.is_none()) {
            assert_eq!(counted, counters);
        }
    }
    words(&stream[frame.data()]);
}

/// A PDU that is put together is taken apart into the same.
fn whole(header: Bhs, data: &[u8], digests: Digests) {
    let mut bytes = header.to_vec();
    if digests.header {
        bytes.extend_from_slice(&digest::of(&header));
    }
    let start = bytes.len();
    bytes.extend_from_slice(data);
    bytes.resize(start + bhs::padded(data.len()), 0);
    if digests.data && !data.is_empty() {
        let crc = digest::of(&bytes[start..]);
        bytes.extend_from_slice(&crc);
    }
    let frame = Frame::new_checked(&bytes, digests, data.len()).unwrap().unwrap();
    assert_eq!(frame.total_len, bytes.len());
    assert_eq!(&bytes[frame.data()], data);
    assert!(!digests.header || digest::header_matches(&bytes, &frame));
    assert!(!digests.data || data.is_empty() || digest::data_matches(&bytes, &frame));
}

/// Text as a login or a text request has it.
fn words(data: &[u8]) {
    let mut parameters = Parameters::default();
    let mut again = Vec::new();
    for pair in text::pairs(data) {
        let Ok((key, value)) = pair else {
            break;
        };
        assert!(!key.is_empty() && key.len() <= text::KEY_MAX_BYTES && value.len() <= text::VALUE_MAX_BYTES);
        let before = again.len();
        text::push(&mut again, key, value);
        assert_eq!(text::pairs(&again[before..]).collect::<Vec<_>>(), vec![Ok((key, value))]);
        let _ = (text::number(value), text::boolean(value), text::is_iscsi_name(value));
        if let Some(bytes) = binary::parse(value) {
            assert_eq!(binary::parse(&binary::emit_hex(&bytes)).as_ref(), Some(&bytes));
            assert_eq!(binary::parse(&binary::emit_base64(&bytes)).as_ref(), Some(&bytes));
        }
        parameters.offer(key, value, &WISHES, SessionType::Normal);
        Parameters::default().offer(key, value, &WISHES, SessionType::Discovery);
        Parameters::offer_early(key, value, &WISHES);
    }
    parameters.settle();
    assert!((512..=0xff_ffff).contains(&parameters.max_send_bytes));
    assert!((512..=WISHES.max_burst_bytes).contains(&parameters.max_burst_bytes));
    assert!((512..=parameters.max_burst_bytes).contains(&parameters.first_burst_bytes));
    assert!((1..=WISHES.max_outstanding_r2t).contains(&parameters.max_outstanding_r2t));
    assert!(parameters.time_to_wait_s <= 3600 && parameters.time_to_retain_s <= 3600);
}

/// LUNs and serial numbers of a command.
fn serials(request: &Request) {
    let Request::ScsiCommand(command) = request else {
        return;
    };
    if let Some(number) = lun_number(command.lun) {
        assert_eq!(lun_number(lun_bytes(number)), Some(number));
    }
    let (sn, expected) = (SerialNumber(command.cmd_sn), SerialNumber(command.exp_stat_sn));
    assert!(sn == expected || !(sn.is_before(expected) && expected.is_before(sn)));
    let _ = sn.is_within(expected, expected.plus(127));
}
