//! New sessions per second, beside more and more port forwards, and how fast they end.
//!
//! Every frame opens a flow to outside. It matches none of the port forwards, so a list of them is
//! walked to its end, and a look-up in a map is one look-up.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Bench, REPEATS, Subjects, spaced};
use crate::bench::plan::Kind;
use crate::bench::report::Unit;
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Subject, Way};
use crate::lab::topology::External;
use crate::lab::wait::wait_until;

/// Its name.
pub const NAME: &str = "new sessions";

/// Of the row about their end.
pub const TEARDOWN: &str = "teardown";

/// As many sessions as the gateway takes unless told otherwise, and conntrack too.
const DEFAULT_SESSIONS: u32 = 262_144;

/// The name of a row.
pub fn name(dnats: u32) -> String {
    format!("{} DNAT rules", spaced(dnats.into()))
}

/// Measures.
///
/// # Errors
/// The kernel refuses something.
pub fn run(bench: &mut Bench) -> Result<()> {
    let counts: &[u32] = bench.pick(&[0, 5000, 100_000], &[0, 1000, 5000, 10_000, 100_000]);
    for (index, dnats) in counts.iter().enumerate() {
        progress(&format!("{NAME}: {}", name(*dnats)));
        let setup = Setup {
            rules: Rules { dnats: *dnats },
            sessions: DEFAULT_SESSIONS,
            external: External::Veth,
            generated: true,
        };
        // Tables without rules are the same beside any number of them.
        let ways = Way::STATEFUL.into_iter().filter(|way| match way.table() {
            None => true,
            Some(preallocated) => index == 0 && !(preallocated && bench.quick),
        });
        let mut subjects = bench.subjects(&ways.collect::<Vec<_>>(), &setup);
        measure(bench, &mut subjects, &name(*dnats))?;
        if index == 0 {
            progress(&format!("{NAME}: {TEARDOWN}"));
            teardown(bench, &mut subjects)?;
        }
    }
    Ok(())
}

fn measure(bench: &mut Bench, subjects: &mut Subjects, row: &str) -> Result<()> {
    subjects.note_absent(&mut bench.report, NAME, row, Unit::Kilo);
    let mut first = 0;
    for _ in 0..REPEATS {
        for subject in &mut subjects.ready {
            subject.forget_connections()?;
            let (opened, next) = open_for(subject, first, bench.burst())?;
            bench.report.add(NAME, row, subject.way.name(), Unit::Kilo, opened);
            first = next;
        }
    }
    Ok(())
}

/// Opens flows for about `time`. Returns thousands per second, and the number of the next new flow.
fn open_for(subject: &mut Subject, first: u32, time: Duration) -> Result<(f64, u32)> {
    let mut flows = Kind::Snat.flows(u32::MAX, 60);
    flows.stride = 1;
    flows.first = first;
    // A long list is slow enough to be measured by few flows.
    let probe = subject.rig.send(Kind::Snat, &flows, 256)?;
    flows.first += 256;
    let rate = probe.sent as f64 / probe.elapsed.as_secs_f64();
    // Conntrack has room for as many, and the first look at the clock comes after 32.
    let count = (rate * time.as_secs_f64()).clamp(256.0, 200_000.0) as u32;
    let burst = subject.rig.send(Kind::Snat, &flows, count)?;
    Ok((burst.mpps() * 1e3, flows.first + count))
}

/// How long it takes to end the sessions of a rule, or all of conntrack's.
fn teardown(bench: &mut Bench, subjects: &mut Subjects) -> Result<()> {
    const SESSIONS: u32 = 100_000;
    subjects.note_absent(&mut bench.report, NAME, TEARDOWN, Unit::Kilo);
    for subject in subjects.ready.iter_mut().filter(|subject| subject.way.table().is_none()) {
        subject.forget_connections()?;
        let mut flows = Kind::Snat.flows(SESSIONS, 60);
        flows.first = 0x8000_0000;
        let opened = subject.rig.send(Kind::Snat, &flows, SESSIONS)?;
        let started = Instant::now();
        let ended = match &subject.gateway {
            None => {
                subject.forget_connections()?;
                f64::from(SESSIONS)
            }
            Some(gateway) => {
                let without = Rules { dnats: 0 }
                    .yaml(gateway.name())
                    .replace("internalCIDR: 10.", "internalCIDR: 172.");
                subject.rig.scratch.write("config/rules.yaml", without)?;
                wait_until("the sessions to end", Duration::from_secs(20), || {
                    Ok(subject.has_no_sessions()?.then_some(()))
                })?;
                opened.received as f64
            }
        };
        let rate = ended / started.elapsed().as_secs_f64() / 1e3;
        bench.report.add(NAME, TEARDOWN, subject.way.name(), Unit::Kilo, rate);
    }
    Ok(())
}
