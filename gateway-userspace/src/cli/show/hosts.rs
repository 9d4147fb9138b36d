//! `vpc-gateway hosts`.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use gateway_common::family::{V4, V6};
use gateway_common::records::LEAVING;
use serde::Serialize;

use super::ShowOptions;
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::dataplane::maps::{MapFamily, Maps};

/// Options of `vpc-gateway hosts`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Only sessions that the host itself opened count. REFUSED counts new flows over --host-sessions or \
--host-rate, for as long as the host has an open session.

Exit codes: 0 shown, 1 no such gateway, 2 error.")]
pub struct Options {
    /// Shows at most so many; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    show: ShowOptions,
}

/// A host with its record.
#[derive(Debug, Serialize)]
struct Shown {
    host: IpAddr,
    sessions: u32,
    refused: u32,
}

/// Exit code 0: shown.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let (_, maps) = options.show.maps()?;
    let mut shown = family::<V4>(&maps)?;
    shown.extend(family::<V6>(&maps)?);
    shown.sort_by_key(|one| (Reverse(one.sessions), one.host));
    let hosts = shown.len();
    shown.truncate(if options.limit == 0 { usize::MAX } else { options.limit });
    if options.show.json {
        print_json(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["HOST", ">SESSIONS", ">REFUSED"]);
    for one in &shown {
        table.row([one.host.to_string(), one.sessions.to_string(), one.refused.to_string()]);
    }
    print(table)?;
    if shown.len() < hosts {
        print(format_args!("({} of {hosts}; see --limit)\n", shown.len()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn family<F: MapFamily>(maps: &Maps) -> Result<Vec<Shown>> {
    let hosts = maps.hosts::<F>()?.into_iter();
    Ok(hosts
        .filter(|(_, host)| host.sessions & LEAVING == 0)
        .map(|(address, host)| Shown {
            host: F::decode(address),
            sessions: host.sessions,
            refused: host.refused,
        })
        .collect())
}
