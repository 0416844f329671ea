//! See `playhead_fuzz::login`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| playhead_fuzz::login::run(data));
