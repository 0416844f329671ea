//! See `playhead_fuzz::cdb`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| playhead_fuzz::cdb::run(data));
