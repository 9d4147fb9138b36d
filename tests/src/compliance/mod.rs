//! What the RFCs about NAT ask for, requirement by requirement, and the tests that show it.
//!
//! This table is the source of `docs/rfc-compliance.md`: `cargo xtask compliance` writes the page, and
//! `tests/tests/compliance.rs` fails if the page is another, if a test that is named here does not
//! exist, or if a MUST is called met and no test is named.

mod others;
mod render;
mod rfc4787;
mod rfc5382;
mod rfc5508;
mod rfc6888;
mod rfc7857;

use std::fs;
use std::path::Path;

pub use self::render::page;
use crate::cases::CASES;

/// An RFC, or the part of it that concerns this gateway.
#[derive(Clone, Copy, Debug)]
pub struct Document {
    /// Its number.
    pub rfc: u32,
    /// What it is about.
    pub title: &'static str,
    /// Its requirements in their order.
    pub requirements: &'static [Requirement],
}

/// All documents.
pub const DOCUMENTS: [&Document; 9] = [
    &rfc4787::DOCUMENT,
    &rfc5382::DOCUMENT,
    &rfc5508::DOCUMENT,
    &rfc7857::DOCUMENT,
    &rfc6888::DOCUMENT,
    &others::RFC6864,
    &others::RFC6146,
    &others::RFC4884,
    &others::RFC6056,
];

/// How much an RFC insists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// MUST, MUST NOT, SHALL.
    Must,
    /// SHOULD, SHOULD NOT, RECOMMENDED.
    Should,
    /// MAY.
    May,
}

/// Where we stand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// It is done.
    Met,
    /// Some of it is done, or not by default.
    Partly,
    /// It is not done.
    NotMet,
    /// It is about something that there is not.
    DoesNotApply,
}

/// One requirement.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// As the RFC numbers it; a section where it does not.
    pub id: &'static str,
    /// How much the RFC insists.
    pub level: Level,
    /// What it asks for, in our words.
    pub text: &'static str,
    /// Where we stand.
    pub state: State,
    /// How, or why not.
    pub remark: &'static str,
    /// The tests that show it: `module::case`, `file::test`, or `path/to/file.rs::test`.
    pub proofs: &'static [&'static str],
}

const fn must(id: &'static str, text: &'static str) -> Requirement {
    requirement(Level::Must, id, text)
}

const fn should(id: &'static str, text: &'static str) -> Requirement {
    requirement(Level::Should, id, text)
}

const fn may(id: &'static str, text: &'static str) -> Requirement {
    requirement(Level::May, id, text)
}

const fn requirement(level: Level, id: &'static str, text: &'static str) -> Requirement {
    Requirement { id, level, text, state: State::NotMet, remark: "", proofs: &[] }
}

impl Requirement {
    const fn met(self, proofs: &'static [&'static str]) -> Self {
        Self { state: State::Met, proofs, ..self }
    }

    const fn partly(self, proofs: &'static [&'static str]) -> Self {
        Self { state: State::Partly, proofs, ..self }
    }

    const fn not_met(self, remark: &'static str) -> Self {
        Self { state: State::NotMet, remark, ..self }
    }

    const fn does_not_apply(self, remark: &'static str) -> Self {
        Self { state: State::DoesNotApply, remark, ..self }
    }

    const fn because(self, remark: &'static str) -> Self {
        Self { remark, ..self }
    }
}

/// What is wrong with the table; `root` is the root of the repository.
#[must_use]
pub fn faults(root: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    for document in DOCUMENTS {
        for one in document.requirements {
            let name = format!("RFC {} {}", document.rfc, one.id);
            if one.state == State::Met && one.level == Level::Must && one.proofs.is_empty() {
                faults.push(format!("{name} is a MUST and met, and no test shows it"));
            }
            if one.state != State::Met && one.remark.is_empty() {
                faults.push(format!("{name} is not met, and does not say why"));
            }
            let missing = one.proofs.iter().filter(|proof| !exists(root, proof));
            faults.extend(missing.map(|proof| format!("{name} names {proof}: no such test")));
        }
    }
    faults
}

/// Whether there is a case or a test function of this name.
#[must_use]
pub fn exists(root: &Path, proof: &str) -> bool {
    if CASES.iter().any(|case| case.name == proof) {
        return true;
    }
    let Some((place, function)) = proof.rsplit_once("::") else { return false };
    let file = if place.ends_with(".rs") {
        root.join(place)
    } else {
        root.join("tests/tests").join(place).with_extension("rs")
    };
    let text = fs::read_to_string(file).unwrap_or_default();
    let head = format!("fn {function}(");
    text.split("#[test]").skip(1).any(|test| test.trim_start().starts_with(&head))
}
