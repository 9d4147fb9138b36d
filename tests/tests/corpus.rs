//! The corpus of the fuzzer, input by input: what it once found stays found.

use std::fs;
use std::path::Path;
use std::time::Instant;

use gateway_tests::fuzz::TARGETS;

/// Fewer inputs than this would show nothing.
const LEAST: usize = 20;

fn replay(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let started = Instant::now();
    for file in &files {
        let input = fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        // What the target says does not name the input.
        println!("{}", file.display());
        target(&input);
    }
    println!("{} inputs of {name} in {:.1?}", files.len(), started.elapsed());
    assert!(files.len() >= LEAST, "{} inputs in {}", files.len(), folder.display());
}

#[test]
fn frames_are_read() {
    replay("parse");
}

#[test]
fn gateways_stand_what_happens_to_them() {
    replay("pipeline");
}

#[test]
fn manifests_are_carried_out() {
    replay("yaml");
}
