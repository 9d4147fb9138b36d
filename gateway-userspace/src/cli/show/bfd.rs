//! `vpc-gateway bfd`.

use std::process::ExitCode;

use anyhow::Result;

use super::{Nothing, ShowOptions};
use crate::bfd::packet::State;
use crate::bfd::report::{FILE, Report, Sessions};
use crate::cli::bfdd::directory;
use crate::cli::table::Table;
use crate::cli::{print, print_json};

/// Options of `vpc-gateway bfd`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Intervals are those in effect after negotiation, in milliseconds; `-` while nothing is sent. \
DETECT is the time of silence after which the session goes down.

Exit codes: 0 all sessions are up, 1 one is not, or nothing runs here, 2 error.")]
pub struct Options {
    #[command(flatten)]
    show: ShowOptions,
}

/// Exit code 0: all sessions are up.
pub(in crate::cli) fn run(options: &Options) -> Result<ExitCode> {
    let name = options.show.gateway.clone().unwrap_or_else(|| "bfdd".to_owned());
    let state = directory(&options.show.state.state_dir, &name)?;
    let (Some(_), Some(sessions)) = (state.holder(), state.load::<Sessions>(FILE)?) else {
        return Err(Nothing::NotThere(name).into());
    };
    if options.show.json {
        print_json(&sessions)?;
    } else {
        print(table(&sessions.sessions))?;
    }
    let all_up = sessions.sessions.iter().all(|session| session.state == State::Up);
    Ok(ExitCode::from(u8::from(!all_up)))
}

fn table(sessions: &[Report]) -> Table {
    let mut table = Table::new(&[
        "LOCAL",
        "REMOTE",
        "STATE",
        "REMOTE STATE",
        ">FOR",
        ">SEND",
        ">DETECT",
        ">FLAPS",
        ">SENT",
        ">RECEIVED",
        ">DISCARDED",
        "LAST DOWN",
    ]);
    for session in sessions {
        let interval = session.transmit_interval_ms.map_or_else(|| "-".into(), |ms| ms.to_string());
        let last_down = session.last_down.map_or("never", |diagnostic| diagnostic.as_str());
        table.row([
            session.ends.local.to_string(),
            session.ends.remote.to_string(),
            session.state.to_string(),
            session.remote_state.to_string(),
            format!("{} s", session.since_seconds),
            interval,
            session.detection_time_ms.to_string(),
            session.flaps.to_string(),
            session.sent.to_string(),
            session.received.to_string(),
            session.discarded.to_string(),
            session.error.clone().unwrap_or_else(|| last_down.to_owned()),
        ]);
    }
    table
}
