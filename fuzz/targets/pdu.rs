//! See `playhead_fuzz::pdu`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| playhead_fuzz::pdu::run(data));
