//! See `playhead_fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| playhead_fuzz::session::run(data));
