//! `vpc-gateway rules`.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::ShowOptions;
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::image::{Content, is_draining, kind_of, name_of};
use crate::plan::{protocol, show_snat};

/// Options of `vpc-gateway rules`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 shown, 1 no such gateway, 2 error.")]
pub struct Options {
    #[command(flatten)]
    show: ShowOptions,
}

/// A rule with its counter.
#[derive(Debug, Serialize)]
struct Shown {
    id: u32,
    kind: &'static str,
    name: String,
    from: String,
    to: String,
    state: &'static str,
    /// Of a draining rule, when they have been counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions_left: Option<u32>,
    packets: u64,
    bytes: u64,
}

/// Exit code 0: shown.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let (_, maps) = options.show.maps()?;
    let image = maps.read()?;
    let contents = image.contents();
    let draining = maps.draining()?;
    let mut shown = Vec::new();
    for (id, rule) in &image.rules {
        let (from, to) = contents.get(id).map_or_else(Default::default, ends);
        let counter = maps.rule_counter(*id)?;
        shown.push(Shown {
            id: *id,
            kind: kind_of(rule),
            name: name_of(rule),
            from,
            to,
            state: if is_draining(rule) { "draining" } else { "active" },
            sessions_left: draining.get(id).copied().flatten(),
            packets: counter.packets,
            bytes: counter.bytes,
        });
    }
    shown.sort_by(|one, other| {
        (one.kind, &one.name, one.id).cmp(&(other.kind, &other.name, other.id))
    });
    if options.show.json {
        print_json(&shown)?;
    } else {
        print(table(&shown))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a packet of the rule comes to and where it goes.
fn ends(content: &Content) -> (String, String) {
    match content {
        Content::Fip { eip, internal } => (eip.to_string(), internal.to_string()),
        Content::Dnat { eip, protocol: number, port, internal, internal_port } => (
            format!("{}/{}", SocketAddr::new(*eip, *port), protocol(*number)),
            SocketAddr::new(*internal, *internal_port).to_string(),
        ),
        Content::Snat { eip, source, options } => (source.to_string(), show_snat(*eip, *options)),
        Content::Forward { source } => (source.to_string(), "unchanged".to_owned()),
    }
}

fn table(shown: &[Shown]) -> Table {
    let mut table = Table::new(&["KIND", "NAME", "FROM", "TO", "STATE", ">PACKETS", ">BYTES"]);
    for rule in shown {
        table.row([
            rule.kind.to_owned(),
            rule.name.clone(),
            rule.from.clone(),
            rule.to.clone(),
            match (rule.state, rule.sessions_left) {
                (state, Some(left)) => format!("{state}, {left} sessions left"),
                (state, None) => state.to_owned(),
            },
            rule.packets.to_string(),
            rule.bytes.to_string(),
        ]);
    }
    table
}
