//! `vpc-gateway check PATH...`: every problem of a set of manifests, then what they resolve to.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::desired::{
    Action, Affinity, Bfd, DesiredState, Dnat, EgressGateway, Network, NextHop, NextHops, Owner,
    Previous, Resolutions, Router, Sharing, egress_name, hash_word, resolve_all,
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
    let egress = egress_name(name);
    if !all.states.contains_key(name) && !all.egress.contains_key(egress) {
        let known = all.states.keys().chain(all.egress.keys());
        let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
        bail!(
            "no VpcNatGateway/{name} and no VpcEgressGateway/{name} in the input, which has: {known}"
        );
    }
    all.states.retain(|gateway, _| gateway == name);
    all.egress.retain(|gateway, _| gateway == egress);
    let concerns = |of: &Option<String>| of.as_ref().is_none_or(|of| of == name || of == egress);
    all.rejections.retain(|rejection| concerns(&rejection.gateway));
    all.notes.retain(|note| concerns(&note.gateway));
    Ok(())
}

#[derive(Serialize)]
struct Report<'r> {
    rejections: Vec<Line<'r>>,
    notes: Vec<Line<'r>>,
    gateways: &'r BTreeMap<String, DesiredState>,
    egress: &'r BTreeMap<String, EgressGateway>,
    routers: Vec<RouterReport<'r>>,
}

/// The routes of a VPC, as they are followed.
#[derive(Serialize)]
struct RouterReport<'r> {
    vpc: &'r str,
    routes: Vec<[String; 2]>,
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
        egress: &all.egress,
        routers: all
            .routers
            .values()
            .map(|router| RouterReport { vpc: &router.name, routes: routes(router) })
            .collect(),
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
    for gateway in all.egress.values() {
        write_egress(out, gateway)?;
    }
    for router in all.routers.values() {
        let rows = routes(router).into_iter().map(|[what, to]| ["route".to_owned(), what, to]);
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            writeln!(out, "\nVpc/{}", router.name)?;
            write_rows(out, &rows)?;
        }
    }
    let count = |number: usize, word: &str| {
        format!("{number} {word}{}", if number == 1 { "" } else { "s" })
    };
    writeln!(
        out,
        "\n{}: {}, {}",
        count(all.states.len() + all.egress.len(), "gateway"),
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
    rows.extend(next_hops(&gateway.next_hops));
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
    write_rows(out, &rows)
}

fn write_egress(out: &mut impl Write, gateway: &EgressGateway) -> std::io::Result<()> {
    writeln!(out, "\nVpcEgressGateway/{} of VPC {}", gateway.name, gateway.vpc)?;
    let none = String::new;
    let mut rows = vec![
        ["internal".into(), none(), of(gateway.internal.as_ref())],
        ["external".into(), none(), of(gateway.external.as_ref())],
    ];
    for replica in &gateway.replicas {
        let node = replica.node.as_ref().map_or_else(none, |node| format!(", on {node}"));
        let weight = format!("weight {}{node}", replica.weight);
        rows.push(["replica".into(), replica.to_string(), weight]);
    }
    for (cidr, snat) in &gateway.sources {
        let how = if *snat { "snat" } else { "forward" };
        rows.push([how.into(), cidr.to_string(), gateway.owner.object.to_string()]);
    }
    for (address, snat) in &gateway.pods {
        let how = if *snat { "snat" } else { "forward" };
        rows.push([how.into(), address.to_string(), "a selected pod".into()]);
    }
    rows.extend(next_hops(&gateway.next_hops));
    write_rows(out, &rows)
}

/// The routers among which a gateway chooses.
fn next_hops(all: &NextHops) -> Vec<[String; 3]> {
    let bfd = all.bfd.map_or_else(String::new, |bfd| format!(", {}", timers(bfd)));
    let back = if all.moves { "move" } else { "stay" };
    let sides = [
        ("external", &all.external, all.hash.external),
        ("internal", &all.internal, all.hash.internal),
    ];
    let rows = sides.into_iter().flat_map(|(side, routers, hash)| {
        routers.iter().map(move |router| (side, router.address, router.weight, hash))
    });
    rows.map(|(side, address, weight, hash)| {
        let by = hash_word(hash);
        let how = format!("{side}, weight {weight}, by {by}, {back}{bfd}");
        ["next hop".into(), address.to_string(), how]
    })
    .collect()
}

/// As the annotation has them.
fn timers(bfd: Bfd) -> String {
    let millis = |time: Duration| time.as_millis();
    format!("bfd {}/{}/{}", millis(bfd.min_rx), millis(bfd.min_tx), bfd.multiplier)
}

/// What each route matches and what it does: policy routes in their order, then static ones.
fn routes(router: &Router) -> Vec<[String; 2]> {
    let policies = router.policies.iter().map(|policy| {
        let action = match &policy.action {
            Action::Allow => "allow".to_owned(),
            Action::Drop => "drop".to_owned(),
            Action::Reroute(hops) => format!("reroute {}", list(&hops[..])),
        };
        [format!("{} {}", policy.priority, policy.matches), action]
    });
    let guard = format!(" ({})", timers(router.bfd));
    let routes = router.routes.iter().map(|(key, hops)| {
        let hop =
            |hop: &NextHop| format!("{}{}", hop.address, if hop.guarded { &guard } else { "" });
        [key.to_string(), format!("via {}", hops.iter().map(hop).collect::<Vec<_>>().join(", "))]
    });
    policies.chain(routes).collect()
}

fn write_rows(out: &mut impl Write, rows: &[[String; 3]]) -> std::io::Result<()> {
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
