//! See fuzz/src/archive.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| transload_fuzz::archive::run(data));
