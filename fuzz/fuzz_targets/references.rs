//! See fuzz/src/references.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| transload_fuzz::references::run(data));
