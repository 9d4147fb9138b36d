//! RFC 9693 style: how fast a table of many sessions fills, whether all of them find a place, and what
//! throughput is left then.

use anyhow::Result;

use super::{Bench, REPEATS, burst, open_all, spaced};
use crate::bench::plan::Kind;
use crate::bench::report::Unit;
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Way};
use crate::lab::topology::External;

/// Its name.
pub const NAME: &str = "capacity";

/// Measures.
///
/// # Errors
/// The kernel refuses something.
pub fn run(bench: &mut Bench) -> Result<()> {
    let counts: &[u32] = bench.pick(&[1 << 16, 1 << 18], &[1 << 16, 1 << 18, 1 << 20, 1 << 22]);
    for sessions in [1 << 16, 1 << 18, 1 << 20, 1 << 22] {
        let name = spaced(sessions.into());
        let rows = [
            (format!("{name} sessions: establishment"), Unit::Kilo),
            (format!("{name} sessions: second phase"), Unit::Mpps),
            (format!("{name} sessions: refused"), Unit::Packets),
        ];
        if !counts.contains(&sessions) {
            for (row, unit) in &rows {
                bench.report.miss(NAME, row, Way::Tc.name(), *unit, "not part of --quick");
            }
            continue;
        }
        progress(&format!("{NAME}: {name} sessions"));
        let setup = Setup {
            rules: Rules { dnats: 0 },
            sessions,
            external: External::Veth,
            generated: true,
        };
        let mut subjects = bench.subjects(&[Way::Tc, Way::Xdp], &setup);
        for (row, unit) in &rows {
            subjects.note_absent(&mut bench.report, NAME, row, *unit);
        }
        for subject in &mut subjects.ready {
            let way = subject.way.name();
            let opened = open_all(subject, Kind::Snat, sessions, 60)?;
            bench.report.add(NAME, &rows[0].0, way, rows[0].1, opened.mpps() * 1e3);
            let refused = (opened.sent - opened.received) as f64;
            bench.report.add(NAME, &rows[2].0, way, rows[2].1, refused);
        }
        for _ in 0..REPEATS {
            for subject in &mut subjects.ready {
                let burst = burst(subject, Kind::Snat, sessions, 60, bench.burst())?;
                bench.report.add(NAME, &rows[1].0, subject.way.name(), rows[1].1, burst.mpps());
            }
        }
    }
    Ok(())
}
