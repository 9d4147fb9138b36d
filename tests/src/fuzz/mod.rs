//! What a fuzzer drives: targets that take any bytes and panic if something does not hold.
//!
//! | target | input | what must hold |
//! |---|---|---|
//! | `parse` | one frame | no panic, no byte changed, the same reading as the test's own decoder |
//! | `pipeline` | decisions: packets, rules, time, routes | nothing leaks, checksums stay right, answers find their way |
//! | `yaml` | two sets of manifests | every plan leads where it says, and nothing is planned twice |
//!
//! The corpus is in `tests/fuzz/corpus/TARGET`. `tests/tests/corpus.rs` replays it in every test run;
//! `cargo xtask fuzz TARGET` makes it grow.

mod parse;
mod pipeline;
mod yaml;

/// A target: it takes any bytes, and panics if something is not as it should be.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 3] =
    [("parse", parse::run), ("pipeline", pipeline::run), ("yaml", yaml::run)];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
