//! `vpc-gateway sessions`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::Result;
use gateway_common::expire;
use gateway_common::family::{V4, V6};
use gateway_common::records::{HAIRPIN, ORIGINAL, Rule, Session, Ticks};
use gateway_common::tuple::{Direction, Endpoints, Tuple};
use serde::Serialize;

use super::ShowOptions;
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::clock;
use crate::dataplane::maps::{MapFamily, Maps};
use crate::image::name_of;
use crate::plan::protocol;

/// Options of `vpc-gateway sessions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 shown, 1 no such gateway, 2 error.")]
pub struct Options {
    /// Shows at most so many; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    show: ShowOptions,
}

/// A session: both of its entries together.
#[derive(Debug, Serialize)]
struct Shown {
    protocol: String,
    state: &'static str,
    /// `outbound`, `inbound` or `hairpin`, by where the first packet came from.
    kind: &'static str,
    rule: String,
    /// Both ends of the first packet before translation.
    original: Ends,
    /// Both ends of the first packet after translation.
    translated: Ends,
    idle_seconds: f64,
    packets: u64,
    bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
    /// The router, or the neighbour, that packets go to; none before the first one.
    next_hop: Option<IpAddr>,
    /// The one that replies go to.
    reply_next_hop: Option<IpAddr>,
}

#[derive(Debug, Serialize)]
struct Ends {
    source: SocketAddr,
    destination: SocketAddr,
}

/// Exit code 0: shown.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let (_, maps) = options.show.maps()?;
    let rules = maps.read()?.rules;
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut shown = sessions::<V4>(&maps, &rules, limit)?;
    shown.extend(sessions::<V6>(&maps, &rules, limit - shown.len())?);
    if options.show.json {
        print_json(&shown)?;
    } else {
        print(table(&shown))?;
        if shown.len() == limit {
            print(format_args!("(the first {limit}; see --limit)\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn sessions<F: MapFamily>(
    maps: &Maps,
    rules: &BTreeMap<u32, Rule>,
    limit: usize,
) -> Result<Vec<Shown>> {
    let now = clock::ticks();
    let mut seen = BTreeSet::new();
    let mut shown = Vec::new();
    for entry in maps.sessions::<F>() {
        if shown.len() >= limit {
            break;
        }
        let (key, original) = entry?;
        if original.flags & ORIGINAL == 0 || !seen.insert(key) {
            continue;
        }
        let reply = maps.session(&original.opposite(&key)).unwrap_or_default();
        shown.push(session::<F>(&key, &original, &reply, rules, now));
    }
    Ok(shown)
}

fn session<F: MapFamily>(
    key: &Tuple<F>,
    original: &Session<F>,
    reply: &Session<F>,
    rules: &BTreeMap<u32, Rule>,
    now: Ticks,
) -> Shown {
    let elapsed = |then: Ticks| {
        // Half the range ahead is a packet that came after the clock was read.
        Some(now.wrapping_sub(then)).filter(|idle| *idle < Ticks::MAX / 2).unwrap_or(0)
    };
    let idle = match reply.packets {
        0 => elapsed(original.last_seen),
        _ => elapsed(original.last_seen).min(elapsed(reply.last_seen)),
    };
    let kind = if original.flags & HAIRPIN != 0 {
        "hairpin"
    } else if key.direction == Direction::Outbound as u8 {
        "outbound"
    } else {
        "inbound"
    };
    Shown {
        protocol: protocol(key.protocol),
        state: expire::state(key.protocol, key.direction, original, reply).as_str(),
        kind,
        rule: rules.get(&original.rule).map_or_else(|| format!("#{}", original.rule), name_of),
        original: ends::<F>(&key.endpoints),
        translated: ends::<F>(&original.translated),
        idle_seconds: (clock::duration(idle).as_secs_f64() * 10.0).round() / 10.0,
        packets: original.packets,
        bytes: original.bytes,
        reply_packets: reply.packets,
        reply_bytes: reply.bytes,
        next_hop: next_hop(original),
        reply_next_hop: next_hop(reply),
    }
}

fn next_hop<F: MapFamily>(session: &Session<F>) -> Option<IpAddr> {
    (session.egress != 0).then(|| F::decode(session.next_hop))
}

fn ends<F: MapFamily>(ends: &Endpoints<F>) -> Ends {
    Ends {
        source: SocketAddr::new(F::decode(ends.source), ends.source_port),
        destination: SocketAddr::new(F::decode(ends.destination), ends.destination_port),
    }
}

fn table(shown: &[Shown]) -> Table {
    let mut table = Table::new(&[
        "PROTO",
        "STATE",
        "KIND",
        "ORIGINAL",
        "TRANSLATED",
        ">IDLE",
        ">PACKETS",
        ">BYTES",
        "RULE",
    ]);
    for one in shown {
        table.row([
            one.protocol.clone(),
            one.state.to_owned(),
            one.kind.to_owned(),
            format!("{} > {}", one.original.source, one.original.destination),
            format!("{} > {}", one.translated.source, one.translated.destination),
            format!("{:.0}s", one.idle_seconds),
            format!("{}/{}", one.packets, one.reply_packets),
            format!("{}/{}", one.bytes, one.reply_bytes),
            one.rule.clone(),
        ]);
    }
    table
}
