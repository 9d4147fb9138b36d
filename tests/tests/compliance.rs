//! `docs/rfc-compliance.md` says what the table in `tests/src/compliance` says, and the table names
//! tests that exist.
//!
//! Whoever changes the table writes the page anew: `cargo xtask compliance`.

use std::path::{Path, PathBuf};

use gateway_tests::compliance::{DOCUMENTS, exists, faults, page};

const ACCEPT: &str = "COMPLIANCE_ACCEPT";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_test_that_the_table_names_exists() {
    let faults = faults(&root());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_page_is_what_the_table_says() {
    let file = root().join("docs/rfc-compliance.md");
    if std::env::var(ACCEPT).is_ok_and(|value| value == "1") {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, page()).expect("the page");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page(), "{} is out of date: `cargo xtask compliance`", file.display());
}

#[test]
fn a_requirement_stands_once() {
    for document in DOCUMENTS {
        let mut ids: Vec<_> = document.requirements.iter().map(|one| one.id).collect();
        ids.sort_unstable();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count, "RFC {}", document.rfc);
    }
}

#[test]
fn a_test_that_is_not_there_is_missed() {
    let root = root();
    assert!(exists(&root, "snat::the_longest_prefix_wins"));
    assert!(exists(&root, "compliance::a_test_that_is_not_there_is_missed"));
    assert!(exists(&root, "gateway-common/src/verdict.rs::counters_and_texts_are_unique"));
    for none in ["snat::no_such_case", "compliance::root", "nowhere::x", "compliance", ""] {
        assert!(!exists(&root, none), "{none}");
    }
}
