//! See fuzz/src/codecs.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| transload_fuzz::codecs::run(data));
