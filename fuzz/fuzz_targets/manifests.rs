//! See fuzz/src/manifests.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| transload_fuzz::manifests::run(data));
