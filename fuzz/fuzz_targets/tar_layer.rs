//! See fuzz/src/tar_layer.rs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| transload_fuzz::tar_layer::run(data));
