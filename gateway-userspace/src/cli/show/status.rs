//! `vpc-gateway status`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use gateway_common::verdict::Tries;
use serde::Serialize;

use super::{Nothing, ShowOptions};
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::clock;
use crate::dataplane::maps::Maps;
use crate::dataplane::pins::Pins;
use crate::dataplane::probe;
use crate::status::{FILE, SourceStatus, Status};
use crate::timeouts::by_name;

/// Options of `vpc-gateway status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 ready and running, 1 not running or not ready, 2 error.")]
pub struct Options {
    #[command(flatten)]
    show: ShowOptions,
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    /// Whether the process runs. The data plane works without it.
    running: bool,
    /// Open sessions.
    sessions: u64,
    /// How many there can be.
    max_sessions: usize,
    /// After how many seconds without a packet sessions end.
    timeouts: BTreeMap<&'static str, u32>,
    /// How many packets XDP has finished, and how many it has seen.
    xdp: (u64, u64),
    /// How many candidates new sessions took to find their port, since the maps were made.
    port_tries: Vec<PortTries>,
}

/// One class of the histogram of tries.
#[derive(Debug, Serialize)]
struct PortTries {
    /// `1`, `2`, `3-4`, `5-8`, `walk` through the whole range, `exhausted`.
    tries: &'static str,
    sessions: u64,
}

fn port_tries(maps: &Maps) -> Result<Vec<PortTries>> {
    let counted = |tries: &Tries| {
        let sessions = maps.counter(tries.counter())?.packets;
        Ok(PortTries { tries: tries.as_str(), sessions })
    };
    Tries::ALL.iter().map(counted).collect()
}

fn timeouts(maps: &Maps) -> Result<BTreeMap<&'static str, u32>> {
    let config = maps.config()?;
    let applied = config.generation > 0;
    Ok(if applied { by_name(config.timeouts) } else { BTreeMap::new() })
}

/// Exit code 0: ready and running.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let name = options.show.gateway()?;
    let state = options.show.state.directory(&name)?;
    let status: Option<Status> = state.load(FILE)?;
    let pins = Pins::new(&name);
    let maps = if pins.exist() {
        probe::check()?;
        Some(Maps::open(&pins)?)
    } else {
        None
    };
    if status.is_none() && maps.is_none() {
        return Err(Nothing::NotThere(name).into());
    }
    let holder = state.holder();
    let mut status = status.unwrap_or_else(|| Status { gateway: name, ..Status::default() });
    // A process that has written nothing yet is still starting.
    status.ready &= maps.is_some() && holder.is_none_or(|pid| pid == status.pid);
    let shown = Shown {
        running: holder.is_some(),
        sessions: maps.as_ref().map_or(Ok(0), Maps::open_sessions)?,
        max_sessions: maps.as_ref().map_or(0, |maps| maps.session_capacity() / 2),
        timeouts: maps.as_ref().map_or(Ok(BTreeMap::new()), timeouts)?,
        xdp: maps.as_ref().map_or(Ok((0, 0)), Maps::xdp_share)?,
        port_tries: maps.as_ref().map_or(Ok(Vec::new()), port_tries)?,
        status,
    };
    if options.show.json {
        print_json(&shown)?;
    } else {
        print(text(&shown))?;
    }
    Ok(ExitCode::from(u8::from(!(shown.running && shown.status.ready))))
}

fn source(source: &SourceStatus) -> String {
    let objects: usize = source.objects.values().sum();
    match (source.synced, source.trouble_since) {
        (false, _) => format!("waits for the first list of {}", source.waits_for.join(", ")),
        (true, Some(since)) => {
            let seconds = clock::unix_seconds().saturating_sub(since);
            format!("{objects} objects; cannot be watched for {seconds} s, the last state stays")
        }
        (true, None) => format!("watched, {objects} objects"),
    }
}

fn text(shown: &Shown) -> String {
    let status = &shown.status;
    let daemon = if shown.running {
        format!("running, process {}", status.pid)
    } else {
        "not running; the data plane works without it".to_owned()
    };
    let ready = if status.ready { "ready" } else { "not ready" };
    let rules: Vec<_> =
        status.rules.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let mut text = format!(
        "gateway     {} ({ready}, generation {})\ndaemon      {daemon}\nrules       {}\n\
         sessions    {} of {}\npins        {}\n",
        status.gateway,
        status.generation,
        rules.join(", "),
        shown.sessions,
        shown.max_sessions,
        status.pins.display(),
    );
    if shown.running && !status.capabilities.is_empty() {
        text.push_str(&format!("privilege   {}\n", status.capabilities.join(", ")));
    }
    if let Some(server) = &status.source.server {
        text.push_str(&format!("source      {server} ({})\n", source(&status.source)));
    }
    if !shown.timeouts.is_empty() {
        let list: Vec<_> =
            shown.timeouts.iter().map(|(name, seconds)| format!("{name} {seconds}")).collect();
        text.push_str(&format!("timeouts    {} s\n", list.join(", ")));
    }
    if let Some(sweep) = &status.last_sweep {
        text.push_str(&format!(
            "last sweep  {:.1} ms: {} sessions ended, longest run of a program {} us\n",
            sweep.duration_us as f64 / 1e3,
            sweep.ended,
            sweep.longest_run_us,
        ));
    }
    if let (finished, seen @ 1..) = shown.xdp {
        let percent = finished as f64 * 100.0 / seen as f64;
        text.push_str(&format!(
            "xdp         finished {finished} of {seen} packets ({percent:.1} %)\n"
        ));
    }
    let tries: Vec<_> = shown
        .port_tries
        .iter()
        .filter(|class| class.sessions > 0)
        .map(|class| format!("{}: {}", class.tries, class.sessions))
        .collect();
    if !tries.is_empty() {
        text.push_str(&format!("port tries  {}\n", tries.join(", ")));
    }
    if let Some(apply) = &status.last_apply {
        text.push_str(&format!(
            "last apply  {:.1} ms: {} inserted, {} updated, {} deleted, {} sessions ended\n",
            apply.duration_us as f64 / 1e3,
            apply.inserted,
            apply.updated,
            apply.deleted,
            apply.sessions_cut,
        ));
    }
    text.push_str(&format!("\n{}", interfaces(status)));
    if !status.eips.is_empty() {
        text.push_str(&format!("\n{}", eips(status)));
    }
    for problem in &status.problems {
        text.push_str(&format!("\nproblem: {problem}"));
    }
    if !status.problems.is_empty() {
        text.push('\n');
    }
    text
}

fn interfaces(status: &Status) -> Table {
    let mut table = Table::new(&[
        "SIDE",
        "INTERFACE",
        ">INDEX",
        ">MTU",
        "MODE",
        "ATTACH",
        ">PROGRAM",
        "REASON",
    ]);
    for interface in &status.interfaces {
        table.row([
            interface.side.as_str().to_owned(),
            interface.name.clone(),
            interface.ifindex.to_string(),
            interface.mtu.to_string(),
            interface.mode.to_string(),
            interface.attach.to_string(),
            interface.program_id.to_string(),
            interface.reason.clone(),
        ]);
    }
    table
}

fn eips(status: &Status) -> Table {
    let mut table = Table::new(&["EIP", "NAME", "SUBNET"]);
    for eip in &status.eips {
        let subnet = eip.subnet.clone().unwrap_or_else(|| "-".to_owned());
        table.row([eip.address.to_string(), eip.name.clone(), subnet]);
    }
    table
}
