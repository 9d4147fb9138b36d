//! `vpc-gateway nexthops` of a NAT gateway or a replica: its routers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use gateway_common::family::{V4, V6};
use gateway_common::records::Config;
use gateway_common::verdict::DropReason;
use serde::Serialize;

use super::{Nothing, ShowOptions};
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::dataplane::kernel::Side;
use crate::dataplane::maps::{MapFamily, Maps};
use crate::routers::report::{FILE, GroupStatus, MemberStatus, Report};

#[derive(Debug, Serialize)]
struct Shown {
    gateway: String,
    groups: Vec<Group>,
    /// Packets without a living next hop, dropped.
    dropped: u64,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Group {
    side: Side,
    family: String,
    hash: String,
    on_return: String,
    members: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    #[serde(flatten)]
    status: MemberStatus,
    #[serde(flatten)]
    sessions: Sessions,
}

/// The directions of open sessions that leave by a router.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sessions {
    flows: u64,
    packets: u64,
    bytes: u64,
}

type Carried = BTreeMap<(u32, IpAddr), Sessions>;

/// Exit code 0: every group has a living next hop.
pub(super) fn run(options: &ShowOptions) -> Result<ExitCode> {
    let (name, maps) = options.maps()?;
    let state = options.state.directory(&name)?;
    let Some(report) = state.load::<Report>(FILE)?.filter(|report| !report.groups.is_empty())
    else {
        return Err(Nothing::NoNextHops(name).into());
    };
    let config = maps.config()?;
    let mut carried = Carried::new();
    carry::<V4>(&maps, &mut carried)?;
    carry::<V6>(&maps, &mut carried)?;
    let groups = report.groups.into_iter().map(|status| group(status, &config, &carried));
    let shown = Shown {
        gateway: name,
        groups: groups.collect(),
        dropped: maps.counter(DropReason::NoNextHop.counter())?.packets,
        problems: report.problems,
    };
    if options.json {
        print_json(&shown)?;
    } else {
        print(text(&shown))?;
    }
    let served = |group: &Group| group.members.iter().any(|member| member.status.slots > 0);
    Ok(ExitCode::from(u8::from(!shown.groups.iter().all(served))))
}

/// What leaves by each router.
fn carry<F: MapFamily>(maps: &Maps, carried: &mut Carried) -> Result<()> {
    for entry in maps.sessions::<F>() {
        let (_, session) = entry?;
        let sum = carried.entry((session.egress, F::decode(session.next_hop))).or_default();
        sum.flows += 1;
        sum.packets += session.packets;
        sum.bytes += session.bytes;
    }
    Ok(())
}

fn group(status: GroupStatus, config: &Config, carried: &Carried) -> Group {
    let GroupStatus { side, family, hash, on_return, members } = status;
    let ifindex = match side {
        Side::Internal => config.internal_ifindex,
        Side::External => config.external_ifindex,
    };
    let member = |status: MemberStatus| {
        let sessions = carried.get(&(ifindex, status.address)).copied().unwrap_or_default();
        Member { status, sessions }
    };
    let members = members.into_iter().map(member).collect();
    Group { side, family, hash, on_return, members }
}

fn text(shown: &Shown) -> String {
    let mut table = Table::new(&[
        "SIDE", "FAMILY", "HASH", "RETURN", "NEXT HOP", "MAC", "STATE", ">WEIGHT", ">SLOTS",
        ">SHARE", ">FLOWS", ">PACKETS", ">BYTES",
    ]);
    for group in &shown.groups {
        let all: usize = group.members.iter().map(|member| member.status.slots).sum();
        for Member { status, sessions } in &group.members {
            let share = status.slots as f64 * 100.0 / all.max(1) as f64;
            table.row([
                group.side.as_str().to_owned(),
                group.family.clone(),
                group.hash.clone(),
                group.on_return.clone(),
                status.address.to_string(),
                status.mac.clone().unwrap_or_else(|| "-".to_owned()),
                status.state.as_str().to_owned(),
                status.weight.to_string(),
                status.slots.to_string(),
                format!("{share:.1} %"),
                sessions.flows.to_string(),
                sessions.packets.to_string(),
                sessions.bytes.to_string(),
            ]);
        }
    }
    let problems = shown.problems.iter().map(|problem| format!("problem: {problem}\n"));
    let dropped = shown.dropped;
    let problems = problems.collect::<String>();
    format!("{table}\ndropped for want of a next hop: {dropped} packets\n{problems}")
}
