//! See fuzz/src/whiteouts.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| transload_fuzz::whiteouts::run(data));
