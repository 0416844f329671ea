//! See `playhead_fuzz::initiator`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| playhead_fuzz::initiator::run(data));
