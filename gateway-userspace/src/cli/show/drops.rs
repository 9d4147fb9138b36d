//! `vpc-gateway drops`.

use std::process::ExitCode;

use anyhow::Result;
use gateway_common::verdict::{DropReason, PassReason};
use serde::Serialize;

use super::ShowOptions;
use crate::cli::table::Table;
use crate::cli::{print, print_json};
use crate::dataplane::maps::Maps;

/// Options of `vpc-gateway drops`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 shown, 1 no such gateway, 2 error.")]
pub struct Options {
    /// Shows the reasons that never occurred, too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    show: ShowOptions,
}

/// A reason with its counter.
#[derive(Debug, Serialize)]
struct Shown {
    /// `drop`, or `pass` for what is left to the kernel.
    verdict: &'static str,
    reason: &'static str,
    packets: u64,
    bytes: u64,
    help: &'static str,
}

/// Exit code 0: shown.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let (_, maps) = options.show.maps()?;
    let mut shown = Vec::new();
    for reason in DropReason::ALL {
        shown.push(counted(&maps, "drop", reason.as_str(), reason.help(), reason.counter())?);
    }
    for reason in PassReason::ALL.iter().filter(|reason| !reason.is_of_xdp()) {
        shown.push(counted(&maps, "pass", reason.as_str(), reason.help(), reason.counter())?);
    }
    if options.show.json {
        print_json(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["VERDICT", "REASON", ">PACKETS", ">BYTES", "MEANING"]);
    for one in shown.iter().filter(|one| options.all || one.packets > 0) {
        table.row([
            one.verdict.to_owned(),
            one.reason.to_owned(),
            one.packets.to_string(),
            one.bytes.to_string(),
            one.help.to_owned(),
        ]);
    }
    print(table)?;
    Ok(ExitCode::SUCCESS)
}

fn counted(
    maps: &Maps,
    verdict: &'static str,
    reason: &'static str,
    help: &'static str,
    index: u32,
) -> Result<Shown> {
    let counter = maps.counter(index)?;
    Ok(Shown { verdict, reason, packets: counter.packets, bytes: counter.bytes, help })
}
