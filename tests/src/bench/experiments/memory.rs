//! What open sessions cost in memory: how much the kernel's object caches grow, and the buckets that
//! are there from the start.

use anyhow::{Context as _, Result};

use super::{Bench, open_all, spaced};
use crate::bench::plan::Kind;
use crate::bench::report::Unit;
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Subject, Way};
use crate::lab::topology::External;

/// Its name.
pub const NAME: &str = "memory";

/// The row that the target is about.
pub const PER_SESSION: &str = "per session";

/// Entries of a session map that one session takes, and bytes of a bucket for each entry there could be.
const ENTRIES: f64 = 2.0;
const BUCKET_BYTES: f64 = 16.0;

/// Measures.
///
/// # Errors
/// The kernel refuses something.
pub fn run(bench: &mut Bench) -> Result<()> {
    // As many as there are places for, so that the share of the buckets is what it is when full.
    let sessions: u32 = bench.pick(1 << 17, 1 << 20);
    let total = format!("{} sessions", spaced(sessions.into()));
    progress(&format!("{NAME}: {total}"));
    let setup =
        Setup { rules: Rules { dnats: 0 }, sessions, external: External::Veth, generated: true };
    let mut subjects = bench.subjects(&[Way::Tc, Way::Iptables], &setup);
    for (row, unit) in [(PER_SESSION, Unit::Bytes), (total.as_str(), Unit::Megabytes)] {
        subjects.note_absent(&mut bench.report, NAME, row, unit);
    }
    for subject in &mut subjects.ready {
        let way = subject.way.name();
        if subject.way == Way::Iptables && sessions > super::established::conntrack_max() {
            let why = "more flows than nf_conntrack_max takes on this machine";
            bench.report.miss(NAME, PER_SESSION, way, Unit::Bytes, why);
            bench.report.miss(NAME, &total, way, Unit::Megabytes, why);
            continue;
        }
        let per_session = grown(subject, sessions)?;
        bench.report.add(NAME, PER_SESSION, way, Unit::Bytes, per_session);
        let megabytes = per_session * f64::from(sessions) / 1e6;
        bench.report.add(NAME, &total, way, Unit::Megabytes, megabytes);
    }
    Ok(())
}

/// Bytes for each session.
fn grown(subject: &mut Subject, sessions: u32) -> Result<f64> {
    // What packets themselves need is there before.
    open_all(subject, Kind::Snat, 1, 60)?;
    let before = slab_bytes()?;
    let burst = open_all(subject, Kind::Snat, sessions - 1, 60)?;
    let grown = slab_bytes()? - before;
    let buckets = if subject.way == Way::Tc { ENTRIES * BUCKET_BYTES } else { 0.0 };
    Ok(grown / burst.received.max(1) as f64 + buckets)
}

/// Memory of all object caches.
fn slab_bytes() -> Result<f64> {
    let text =
        std::fs::read_to_string("/proc/slabinfo").context("failed to read /proc/slabinfo")?;
    let bytes = |line: &str| -> Option<f64> {
        let words: Vec<&str> = line.split_whitespace().collect();
        // name active objects size per-slab pages : tunables ... : slabdata active slabs shared
        let at = words.iter().position(|word| *word == "slabdata")?;
        let pages: f64 = words.get(5)?.parse().ok()?;
        let slabs: f64 = words.get(at + 2)?.parse().ok()?;
        Some(pages * slabs * 4096.0)
    };
    Ok(text.lines().skip(2).filter_map(bytes).sum())
}
