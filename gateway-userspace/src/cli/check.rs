//! `vpc-gateway check PATH...`: every problem of a set of manifests, then what they resolve to.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::desired::{
    Affinity, DesiredState, Dnat, Network, Owner, Previous, Resolutions, Sharing, resolve_all,
};
use crate::rejection::{Note, Rejection};
use crate::source::yaml;

/// Options of `vpc-gateway check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 clean, 1 something was rejected, 2 unreadable input.")]
pub struct Options {
    /// Manifest files, or directories of them.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Shows only this gateway.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// Prints one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// Exit code 0: clean, 1: something was rejected, 2: the input could not be read.
pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let snapshot = yaml::read(&options.paths)?;
    let mut all = resolve_all(&snapshot, &Previous::default());
    if let Some(name) = &options.gateway {
        only(name, &mut all)?;
    }
    let mut out = std::io::stdout().lock();
    let written =
        if options.json { write_json(&mut out, &all) } else { write_text(&mut out, &all) };
    match written {
        // The reader had enough, as `head` has.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.context("failed to write the report")?,
    }
    Ok(if all.rejections.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Removes what concerns other gateways.
fn only(name: &str, all: &mut Resolutions) -> anyhow::Result<()> {
    let Some(state) = all.states.remove(name) else {
        let known = all.states.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        bail!("no VpcNatGateway/{name} in the input, which has: {known}");
    };
    all.states = BTreeMap::from([(name.to_owned(), state)]);
    let concerns = |of: &Option<String>| of.as_ref().is_none_or(|of| of == name);
    all.rejections.retain(|rejection| concerns(&rejection.gateway));
    all.notes.retain(|note| concerns(&note.gateway));
    Ok(())
}

#[derive(Serialize)]
struct Report<'r> {
    rejections: Vec<Line<'r>>,
    notes: Vec<Line<'r>>,
    gateways: &'r BTreeMap<String, DesiredState>,
}

/// A rejection or a note.
#[derive(Serialize)]
struct Line<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    source: &'r str,
    document: u32,
    line: u32,
    object: Option<String>,
    field: Option<&'r str>,
    message: String,
}

impl<'r> From<&'r Rejection> for Line<'r> {
    fn from(rejection: &'r Rejection) -> Self {
        Self {
            kind: Some(rejection.kind().as_str()),
            source: &rejection.origin.source,
            document: rejection.origin.document,
            line: rejection.origin.line,
            object: rejection.object.as_ref().map(ToString::to_string),
            field: rejection.field.as_deref(),
            message: rejection.problem.to_string(),
        }
    }
}

impl<'r> From<&'r Note> for Line<'r> {
    fn from(note: &'r Note) -> Self {
        Self {
            kind: None,
            source: &note.origin.source,
            document: note.origin.document,
            line: note.origin.line,
            object: note.object.as_ref().map(ToString::to_string),
            field: note.field.as_deref(),
            message: note.remark.to_string(),
        }
    }
}

fn write_json(out: &mut impl Write, all: &Resolutions) -> std::io::Result<()> {
    let report = Report {
        rejections: all.rejections.iter().map(Line::from).collect(),
        notes: all.notes.iter().map(Line::from).collect(),
        gateways: &all.states,
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn write_text(out: &mut impl Write, all: &Resolutions) -> std::io::Result<()> {
    for rejection in &all.rejections {
        writeln!(out, "error: {rejection}")?;
    }
    for note in &all.notes {
        writeln!(out, "note: {note}")?;
    }
    for state in all.states.values() {
        write_state(out, state)?;
    }
    let count = |number: usize, word: &str| {
        format!("{number} {word}{}", if number == 1 { "" } else { "s" })
    };
    writeln!(
        out,
        "\n{}: {}, {}",
        count(all.states.len(), "gateway"),
        count(all.rejections.len(), "error"),
        count(all.notes.len(), "note"),
    )
}

fn write_state(out: &mut impl Write, state: &DesiredState) -> std::io::Result<()> {
    let gateway = &state.gateway;
    // The name behind the address, which is what the user wrote.
    let rule = |owner: &Owner, address: IpAddr| match state.eips.get(&address) {
        Some(eip) => format!("{} on {}", owner.object, eip.owner.object),
        None => owner.object.to_string(),
    };
    writeln!(out, "\nVpcNatGateway/{} of VPC {}", gateway.name, gateway.vpc)?;
    let mut rows = vec![["internal".into(), list(&gateway.lan_ips), of(gateway.subnet.as_ref())]];
    for network in &gateway.external_subnets {
        rows.push(["external".into(), String::new(), of(Some(network))]);
    }
    for (cidr, next_hop) in &gateway.routes {
        rows.push(["route".into(), cidr.to_string(), format!("via {next_hop}")]);
    }
    for eip in state.eips.values() {
        let via = eip.gateway.map_or_else(String::new, |gateway| format!("gateway {gateway}, "));
        rows.push(["eip".into(), eip.address.to_string(), format!("{via}{}", eip.owner.object)]);
    }
    for (eip, fip) in &state.fips {
        let to = format!("{eip} <-> {}", fip.internal);
        rows.push(["fip".into(), to, rule(&fip.owner, *eip)]);
    }
    for (key, dnat) in &state.dnats {
        for backend in &dnat.backends {
            let share = match dnat.sharing {
                Sharing::Exclusive => String::new(),
                Sharing::Share => format!(" (weight {}{})", backend.weight, by_client(dnat)),
            };
            let to = format!("{key} -> {}{share}", backend.endpoint);
            rows.push(["dnat".into(), to, rule(&backend.owner, key.eip)]);
        }
    }
    for (cidr, snat) in &state.snats {
        for snat in &snat.eips {
            let to = format!("{cidr} -> {}", snat.eip);
            rows.push(["snat".into(), to, rule(&snat.owner, snat.eip)]);
        }
    }
    let width = rows.iter().map(|row| row[1].len()).max().unwrap_or_default();
    for [what, value, object] in rows {
        writeln!(out, "  {what:<8}  {value:<width$}  {object}")?;
    }
    Ok(())
}

const fn by_client(dnat: &Dnat) -> &'static str {
    match dnat.affinity {
        Affinity::None => "",
        Affinity::ClientIp => ", by client address",
    }
}

fn of(network: Option<&Network>) -> String {
    network.map_or_else(String::new, |network| {
        let name = &network.name;
        if network.cidrs.is_empty() {
            return format!("Subnet/{name} (not in the input)");
        }
        let (cidrs, gateways) = (list(&network.cidrs), list(&network.gateways));
        format!("Subnet/{name} {cidrs}, gateway {gateways}")
    })
}

fn list(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
