//! `vpc-gateway drops`.

use std::process::ExitCode;

use anyhow::Result;
use gateway_common::records::Counter;
use gateway_common::verdict::{DropReason, PassReason, XDP_FORWARDED};
use serde::Serialize;

use super::ShowOptions;
use crate::cli::table::Table;
use crate::cli::{print, print_json};

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
    /// `drop`; `pass` for what is left to the kernel; for XDP `xdp` for what it has finished and
    /// `xdp-pass` for what it left to TC, which counts again what it does not forward either.
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
    let drops = DropReason::ALL.iter().map(|one| (one.as_str(), one.help(), one.counter()));
    let passes = PassReason::ALL.iter().map(|one| (one.as_str(), one.help(), one.counter()));
    let of_tc = PassReason::ALL.iter().filter(|reason| !reason.is_of_xdp());
    let of_tc = of_tc.map(|one| (one.as_str(), one.help(), one.counter()));
    for (verdict, list) in [("drop", drops.clone().collect::<Vec<_>>()), ("pass", of_tc.collect())]
    {
        for (reason, help, index) in list {
            shown.push(Shown::new(verdict, reason, help, maps.counter(index)?));
        }
    }
    let finished = ("forwarded", "Finished by XDP, which TC never saw.", XDP_FORWARDED);
    for (reason, help, index) in std::iter::once(finished).chain(passes).chain(drops) {
        let verdict = if index == XDP_FORWARDED { "xdp" } else { "xdp-pass" };
        shown.push(Shown::new(verdict, reason, help, maps.xdp_counter(index)?));
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

impl Shown {
    const fn new(
        verdict: &'static str,
        reason: &'static str,
        help: &'static str,
        counter: Counter,
    ) -> Self {
        Self { verdict, reason, packets: counter.packets, bytes: counter.bytes, help }
    }
}
