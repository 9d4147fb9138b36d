//! The table as a page.

use std::fmt::Write as _;

use super::{DOCUMENTS, Document, Level, Requirement, State};

const HEAD: &str = "\
<!-- Written by `cargo xtask compliance` from tests/src/compliance. Do not edit. -->

# RFC compliance

What the IETF asks of a NAT, requirement by requirement, and the tests that show where we stand. `cargo
xtask test` fails if a test that is named here does not exist, or if a MUST is called met without one.

Names like `snat::...` are packet cases (`tests/src/cases`): each runs on the host and on the programs
in the kernel, over IPv4 and IPv6 unless it is about something that one of them does not have. Names
that begin with a file of `tests/tests` are tests of their own: `netns_...` between network namespaces
with real hosts, `packet_...` and `differential` on the programs in the kernel.

";

/// The page.
#[must_use]
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    summary(&mut out);
    for document in DOCUMENTS {
        section(&mut out, document);
    }
    missing(&mut out);
    out
}

fn summary(out: &mut String) {
    out.push_str("| | | MUST met | partly | not met | SHOULD met | partly | not met |\n");
    out.push_str("|---|---|---|---|---|---|---|---|\n");
    for document in DOCUMENTS {
        let count = |level, state| {
            let fits = |one: &&Requirement| one.level == level && one.state == state;
            document.requirements.iter().filter(fits).count()
        };
        let _ = write!(out, "| [RFC {0}](#rfc-{0}) | {1} |", document.rfc, document.title);
        for level in [Level::Must, Level::Should] {
            for state in [State::Met, State::Partly, State::NotMet] {
                let _ = write!(out, " {} |", count(level, state));
            }
        }
        out.push('\n');
    }
    out.push_str("\nWhat does not apply is in no column.\n");
}

fn section(out: &mut String, document: &Document) {
    let Document { rfc, title, requirements } = document;
    let _ = write!(
        out,
        "\n## RFC {rfc}\n\n{title}. <https://www.rfc-editor.org/rfc/rfc{rfc}>\n\n\
         | | | what it asks for | state | how, or why not; shown by |\n|---|---|---|---|---|\n"
    );
    for one in *requirements {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            one.id,
            level(one.level),
            one.text,
            state(one.state),
            reason(one)
        );
    }
}

fn reason(one: &Requirement) -> String {
    let names: Vec<_> = one.proofs.iter().map(|proof| format!("`{proof}`")).collect();
    let names = names.join(", ");
    match (one.remark.is_empty(), names.is_empty()) {
        (false, false) => format!("{}<br>{names}", one.remark),
        _ => format!("{}{names}", one.remark),
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Must => "MUST",
        Level::Should => "SHOULD",
        Level::May => "MAY",
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Met => "met",
        State::Partly => "**partly**",
        State::NotMet => "**not met**",
        State::DoesNotApply => "does not apply",
    }
}

/// The end of the page: what is not done, in one place.
fn missing(out: &mut String) {
    out.push_str("\n## What is not met\n");
    for (wanted, title) in
        [(Level::Must, "MUST"), (Level::Should, "SHOULD"), (Level::May, "MAY (nobody has to)")]
    {
        let _ = write!(out, "\n### {title}\n\n");
        let mut none = true;
        for document in DOCUMENTS {
            for one in document.requirements.iter().filter(|one| one.level == wanted) {
                let word = match one.state {
                    State::Partly => "partly",
                    State::NotMet => "not met",
                    State::Met | State::DoesNotApply => continue,
                };
                none = false;
                let (id, remark) = (one.id, one.remark);
                let _ =
                    writeln!(out, "- RFC {} {id} ({word}): {}. {remark}", document.rfc, one.text);
            }
        }
        if none {
            out.push_str("Nothing.\n");
        }
    }
}
