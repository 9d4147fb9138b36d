//! `vpc-gateway eips`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use gateway_common::family::{V4, V6};
use gateway_common::records::ORIGINAL;
use gateway_common::tuple::Direction;
use serde::Serialize;

use super::ShowOptions;
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::dataplane::maps::{MapFamily, Maps};
use crate::image::{Content, MapImage, name_of};

/// Options of `vpc-gateway eips`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
REFUSED counts new flows that found no free port on the EIP; another EIP of its pool may have taken \
them over. PORTS counts each external port and protocol once, however many remotes it serves.

Exit codes: 0 shown, 1 no such gateway, 2 error.")]
pub struct Options {
    /// Counts the external ports in use, too. That reads all sessions.
    #[arg(long)]
    ports: bool,
    #[command(flatten)]
    show: ShowOptions,
}

/// An EIP with its record.
#[derive(Debug, Serialize)]
struct Shown {
    eip: IpAddr,
    sessions: u64,
    opened: u64,
    refused: u64,
    /// External ports in use, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<usize>,
    /// The names of the rules that use it.
    rules: BTreeSet<String>,
}

/// Exit code 0: shown.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let (_, maps) = options.show.maps()?;
    let names = names(&maps.read()?);
    let mut shown = family::<V4>(&maps, &names, options.ports)?;
    shown.extend(family::<V6>(&maps, &names, options.ports)?);
    shown.sort_by_key(|one| one.eip);
    if options.show.json {
        print_json(&shown)?;
    } else {
        print(table(&shown, options.ports))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of the rules of each EIP.
fn names(image: &MapImage) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let mut names: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (id, content) in image.contents() {
        let (Content::Fip { eip, .. } | Content::Dnat { eip, .. } | Content::Snat { eip, .. }) =
            content
        else {
            continue;
        };
        names.entry(eip).or_default().extend(image.rules.get(&id).map(name_of));
    }
    names
}

fn family<F: MapFamily>(
    maps: &Maps,
    names: &BTreeMap<IpAddr, BTreeSet<String>>,
    with_ports: bool,
) -> Result<Vec<Shown>> {
    let ports = if with_ports { Some(ports::<F>(maps)?) } else { None };
    let eips = maps.eips::<F>()?.into_iter().map(|(address, record)| {
        let eip = F::decode(address);
        Shown {
            eip,
            sessions: record.sessions,
            opened: record.opened,
            refused: record.refused,
            ports: ports.as_ref().map(|ports| ports.get(&eip).map_or(0, BTreeSet::len)),
            rules: names.get(&eip).cloned().unwrap_or_default(),
        }
    });
    Ok(eips.collect())
}

/// The external ports of each EIP that sessions from inside use, with their protocols.
fn ports<F: MapFamily>(maps: &Maps) -> Result<BTreeMap<IpAddr, BTreeSet<(u8, u16)>>> {
    let mut ports: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for entry in maps.sessions::<F>() {
        let (key, session) = entry?;
        if session.flags & ORIGINAL != 0 && key.direction == Direction::Outbound as u8 {
            let port = (key.protocol, session.translated.source_port);
            ports.entry(F::decode(session.translated.source)).or_default().insert(port);
        }
    }
    Ok(ports)
}

fn table(shown: &[Shown], with_ports: bool) -> Table {
    let ports: &[&str] = if with_ports { &[">PORTS"] } else { &[] };
    let headings = [&["EIP", ">SESSIONS", ">OPENED", ">REFUSED"], ports, &["RULES"]].concat();
    let mut table = Table::new(&headings);
    for one in shown {
        let mut row = vec![
            one.eip.to_string(),
            one.sessions.to_string(),
            one.opened.to_string(),
            one.refused.to_string(),
        ];
        row.extend(one.ports.map(|ports| ports.to_string()));
        row.push(rules(&one.rules));
        table.row(row);
    }
    table
}

/// The first few names.
fn rules(names: &BTreeSet<String>) -> String {
    const SOME: usize = 3;
    let first: Vec<_> = names.iter().take(SOME).map(String::as_str).collect();
    match names.len().checked_sub(SOME) {
        None | Some(0) => first.join(", "),
        Some(more) => format!("{} and {more} more", first.join(", ")),
    }
}
