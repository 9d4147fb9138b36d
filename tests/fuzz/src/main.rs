//! libFuzzer on one of the targets of `gateway-tests`, which `FUZZ_TARGET` names.

#![no_main]

use std::sync::OnceLock;

use gateway_tests::fuzz::{self, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    let choose = || {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name}: no such target"))
    };
    CHOSEN.get_or_init(choose)(input);
});
