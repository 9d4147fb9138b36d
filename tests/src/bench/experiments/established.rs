//! Packets per second of open flows.
//!
//! Generator, gateway and sink share one core, so nothing is lost between them and the time of a packet
//! is the sum of the three: what a faster gateway gains shows less than it is.

use anyhow::Result;

use super::{Bench, REPEATS, Subjects, burst, open_all, spaced};
use crate::bench::plan::Kind;
use crate::bench::report::Unit;
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Subject, Way};
use crate::lab::topology::External;

/// Its name.
pub const NAME: &str = "established";

/// One row of the table.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    flows: u32,
    frame_bytes: u32,
}

impl Case {
    fn name(self) -> String {
        name(self.kind, self.flows, self.frame_bytes)
    }
}

/// The name of a row.
pub fn name(kind: Kind, flows: u32, frame_bytes: u32) -> String {
    format!("{}, {} flows, {frame_bytes} bytes", kind.name(), spaced(flows.into()))
}

/// One thing at a time differs from 1 000 SNAT flows of 60 bytes; long frames, and IPv6 and DNAT with many flows,
/// are for a full run.
fn cases(quick: bool) -> Vec<Case> {
    let case = |kind, flows, frame_bytes| Case { kind, flows, frame_bytes };
    let mut cases = vec![
        case(Kind::Snat, 1, 60),
        case(Kind::Snat, 1000, 60),
        case(Kind::Dnat(1), 1000, 60),
        case(Kind::Fip, 1000, 60),
        case(Kind::Hairpin, 1000, 60),
        case(Kind::Snat6, 1000, 60),
        case(Kind::Snat, 100_000, 60),
    ];
    if !quick {
        cases.extend([
            case(Kind::Snat, 1000, 1400),
            case(Kind::Snat6, 100_000, 60),
            case(Kind::Dnat(1), 100_000, 60),
            case(Kind::Snat6, 1_000_000, 60),
        ]);
    }
    cases.push(case(Kind::Snat, 1_000_000, 60));
    cases
}

/// Measures.
///
/// # Errors
/// The kernel refuses something.
pub fn run(bench: &mut Bench) -> Result<()> {
    // A table as large as it is unless told otherwise, and one that holds the largest case.
    for (sessions, fits) in [(262_144, 0..=262_144), (1 << 20, 262_145..=u32::MAX)] {
        let setup = Setup {
            rules: Rules { dnats: 1 },
            sessions,
            external: External::Veth,
            generated: true,
        };
        let mut subjects = bench.subjects(&Way::ALL, &setup);
        for case in cases(bench.quick).into_iter().filter(|case| fits.contains(&case.flows)) {
            progress(&format!("{NAME}: {}", case.name()));
            measure(bench, &mut subjects, case)?;
        }
    }
    Ok(())
}

fn measure(bench: &mut Bench, subjects: &mut Subjects, case: Case) -> Result<()> {
    let row = case.name();
    subjects.note_absent(&mut bench.report, NAME, &row, Unit::Mpps);
    let mut taking_part = Vec::new();
    for subject in &mut subjects.ready {
        match obstacle(subject, case)? {
            None => taking_part.push(subject),
            Some(why) => {
                bench.report.miss(NAME, &row, subject.way.name(), Unit::Mpps, &why);
            }
        }
    }
    for _ in 0..REPEATS {
        for subject in &mut taking_part {
            let burst = burst(subject, case.kind, case.flows, case.frame_bytes, bench.burst())?;
            bench.report.add(NAME, &row, subject.way.name(), Unit::Mpps, burst.mpps());
        }
    }
    Ok(())
}

/// Opens the flows, or says why this way takes no part.
fn obstacle(subject: &mut Subject, case: Case) -> Result<Option<String>> {
    if let Some(why) = unfit(subject.way, case) {
        return Ok(Some(why));
    }
    subject.forget_connections()?;
    let opened = open_all(subject, case.kind, case.flows, case.frame_bytes)?;
    if opened.lost() > 0.01 {
        let lost = opened.lost() * 100.0;
        return Ok(Some(format!("{lost:.0} % of the flows do not get through")));
    }
    Ok(None)
}

fn unfit(way: Way, case: Case) -> Option<String> {
    let one_way = !matches!(case.kind, Kind::Snat | Kind::Snat6);
    let why = match way {
        Way::Iptables | Way::Nftables if case.kind == Kind::Snat6 => {
            "Kube-OVN's NAT gateway has no IPv6"
        }
        Way::Iptables | Way::Nftables if case.flows > conntrack_max() => {
            "more flows than nf_conntrack_max takes on this machine"
        }
        Way::Tc | Way::Xdp | Way::Iptables | Way::Nftables => return None,
        _ if one_way => "no NAT: the row of SNAT with as many flows is its equal",
        Way::BareNeighbor | Way::TableTc | Way::TableXdp if case.kind == Kind::Snat6 => {
            "the bench has it for IPv4 only"
        }
        _ => return None,
    };
    Some(why.to_owned())
}

/// How many flows conntrack takes on this machine.
pub fn conntrack_max() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(262_144)
}
