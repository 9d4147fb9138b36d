//! `vpc-gateway nexthops`.

use std::process::ExitCode;

use anyhow::Result;
use gateway_common::verdict::DropReason;
use serde::Serialize;

use super::ShowOptions;
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::dataplane::pins::Pins;
use crate::egress::maps::Maps;
use crate::egress::plan::{GroupStatus, Liveness, MemberStatus};
use crate::egress::report::{FILE, Report};

/// Options of `vpc-gateway nexthops`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SHARE is the part of all flows that a next hop gets while it has these slots.

With a selector here (`vpc-gateway select`), its groups; else those of a gateway: FLOWS, PACKETS and BYTES are \
those of open sessions, each direction by the router that it leaves by. A gateway has groups by annotations of \
its object: vpc-gateway.io/external-next-hops and internal-next-hops (addresses, `weight N` after each), \
next-hop-hash (5-tuple, source), next-hop-bfd (off, on, minRX/minTX/multiplier in ms), next-hop-return (stay, move).

Exit codes: 0 every group has a living next hop, 1 one has none, or there are no groups here, 2 error.")]
pub struct Options {
    #[command(flatten)]
    show: ShowOptions,
}

#[derive(Debug, Serialize)]
struct Shown {
    interfaces: Vec<String>,
    groups: Vec<Group>,
    /// Packets without a living next hop, dropped.
    dropped: u64,
    /// Packets that a policy route drops.
    denied: u64,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Group {
    gateway: String,
    family: String,
    hash: String,
    members: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    #[serde(flatten)]
    status: MemberStatus,
    packets: u64,
    bytes: u64,
}

/// Exit code 0: every group has a living next hop.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let name = options.show.gateway.clone().unwrap_or_else(|| "select".to_owned());
    let state = options.show.state.directory(&name)?;
    let pins = Pins::of_selector(&name);
    let Some(report) = state.load::<Report>(FILE)? else {
        return super::routers::run(&options.show);
    };
    let maps = Maps::open(&pins)?;
    let group = |group: GroupStatus| -> Result<Group> {
        let members = group.members.into_iter().map(|status| {
            let counter = maps.member_counter(status.id)?;
            Ok(Member { status, packets: counter.packets, bytes: counter.bytes })
        });
        let GroupStatus { gateway, family, hash, .. } = group;
        Ok(Group { gateway, family, hash, members: members.collect::<Result<_>>()? })
    };
    let shown = Shown {
        interfaces: report.interfaces,
        groups: report.groups.into_iter().map(group).collect::<Result<_>>()?,
        dropped: maps.counter(DropReason::NoNextHop.counter())?.packets,
        denied: maps.counter(DropReason::Denied.counter())?.packets,
        problems: report.problems,
    };
    if options.show.json {
        print_json(&shown)?;
    } else {
        print(text(&shown))?;
    }
    let served = |group: &Group| group.members.iter().any(|member| member.status.slots > 0);
    Ok(ExitCode::from(u8::from(!shown.groups.iter().all(served))))
}

fn text(shown: &Shown) -> String {
    let mut table = Table::new(&[
        "GATEWAY", "FAMILY", "HASH", "NEXT HOP", "NODE", "STATE", ">WEIGHT", ">SLOTS", ">SHARE",
        ">PACKETS", ">BYTES",
    ]);
    for group in &shown.groups {
        let all: usize = group.members.iter().map(|member| member.status.slots).sum();
        for member in &group.members {
            let status = &member.status;
            let share = status.slots as f64 * 100.0 / all.max(1) as f64;
            table.row([
                group.gateway.clone(),
                group.family.clone(),
                group.hash.clone(),
                status.address.to_string(),
                status.node.clone().unwrap_or_else(|| "-".to_owned()),
                state(status.liveness).to_owned(),
                status.weight.to_string(),
                status.slots.to_string(),
                format!("{share:.1} %"),
                member.packets.to_string(),
                member.bytes.to_string(),
            ]);
        }
    }
    let problems = shown.problems.iter().map(|problem| format!("problem: {problem}\n"));
    format!(
        "{table}\ndropped for want of a next hop: {} packets, by policy routes: {}\n{}",
        shown.dropped,
        shown.denied,
        problems.collect::<String>()
    )
}

const fn state(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Dead => "dead",
        Liveness::Unknown => "unknown",
        Liveness::NotOnLink => "not on link",
    }
}
