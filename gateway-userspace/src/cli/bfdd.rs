//! `vpc-gateway bfdd`: BFD alone, for a pod whose traffic something else steers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::bfd::engine::{Ends, Engine, Event, Wanted};
use crate::bfd::report::{FILE, Sessions};
use crate::bfd::session::{Parameters, Role};
use crate::netns;
use crate::privilege;
use crate::state_dir::{self, StateDir};

/// How often the sessions are written down while nothing changes.
const WRITE: Duration = Duration::from_secs(1);

/// Options of `vpc-gateway bfdd`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One session for each pair of a local and a peer address of the same family: RFC 5880 in asynchronous \
mode without authentication, RFC 5881 ports and TTL. The environment variables are those of \
Kube-OVN's bfdd container. `vpc-gateway bfd` shows the sessions.

SIGTERM and SIGINT tell the peers that the sessions are administratively down, and end.

Exit codes: 0 ended by a signal, 2 could not start.")]
pub struct Options {
    /// Name under which `vpc-gateway bfd` finds the sessions.
    #[arg(long, value_name = "NAME", default_value = "bfdd")]
    gateway: String,
    /// Our addresses.
    #[arg(long, env = "POD_IPS", value_name = "IP,..", value_delimiter = ',', required = true)]
    local: Vec<IpAddr>,
    /// The peers' addresses.
    #[arg(
        long,
        env = "BFD_PEER_IPS",
        value_name = "IP,..",
        value_delimiter = ',',
        required = true
    )]
    peer: Vec<IpAddr>,
    /// Shortest interval to send at, in milliseconds.
    #[arg(long, env = "BFD_MIN_TX", value_name = "MS", default_value = "1000", value_parser = millis())]
    min_tx: u64,
    /// Shortest interval to receive at, in milliseconds.
    #[arg(long, env = "BFD_MIN_RX", value_name = "MS", default_value = "1000", value_parser = millis())]
    min_rx: u64,
    /// How many packets may be lost in a row.
    #[arg(long, env = "BFD_MULTI", value_name = "N", default_value = "3", value_parser = clap::value_parser!(u8).range(1..))]
    multiplier: u8,
    /// Speaks first. Without it the peers do, as OVN does.
    #[arg(long)]
    active: bool,
    /// Lowest TTL that is taken: 255 for peers on the link, 254 for OVN's BFD port, one hop away.
    #[arg(long, value_name = "TTL", default_value = "254", value_parser = clap::value_parser!(u8).range(1..))]
    min_ttl: u8,
    /// Network namespace of the addresses: a path, or a name as in `ip netns`.
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<PathBuf>,
    /// Directory for the state, with one directory for each gateway in it.
    #[arg(long, value_name = "DIR", default_value = state_dir::DEFAULT)]
    state_dir: PathBuf,
}

fn millis() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=3_600_000)
}

impl Options {
    /// The sessions: every pair of one family.
    fn sessions(&self) -> Result<BTreeMap<Ends, Wanted>> {
        let role = if self.active { Role::Active } else { Role::Passive };
        let parameters = Parameters {
            min_tx: Duration::from_millis(self.min_tx),
            min_rx: Duration::from_millis(self.min_rx),
            multiplier: self.multiplier,
            role,
        };
        let wanted = Wanted { parameters, min_ttl: self.min_ttl, admin_down: false };
        let mut sessions = BTreeMap::new();
        for &remote in &self.peer {
            let local = self.local.iter().filter(|local| local.is_ipv4() == remote.is_ipv4());
            let before = sessions.len();
            sessions.extend(local.map(|&local| (Ends { local, remote }, wanted)));
            if sessions.len() == before {
                let family = if remote.is_ipv4() { "IPv4" } else { "IPv6" };
                bail!("failed to plan a session with {remote}: no {family} address in --local");
            }
        }
        Ok(sessions)
    }
}

/// Exit code 0: ended by a signal.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let sessions = options.sessions()?;
    let state = directory(&options.state_dir, &options.gateway)?;
    let _lock = state.lock()?;
    if let Some(namespace) = &options.netns {
        netns::enter(&netns::path(namespace))?;
    }
    privilege::keep(&[])?;
    super::runtime()?.block_on(serve(sessions, &state))?;
    Ok(ExitCode::SUCCESS)
}

/// Where the sessions of a gateway are written down.
pub(super) fn directory(root: &std::path::Path, gateway: &str) -> Result<StateDir> {
    let gateway_directory = StateDir::new(root, gateway)?.file("");
    Ok(StateDir::new(&gateway_directory, "bfd")?)
}

async fn serve(sessions: BTreeMap<Ends, Wanted>, state: &StateDir) -> Result<()> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let engine = Engine::start(sender)?;
    engine.want(sessions);
    let mut terminate = signal(SignalKind::terminate()).context("failed to wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to wait for signals")?;
    let mut tick = interval(WRITE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            Some(event) = events.recv() => log(&event),
            _ = tick.tick() => {}
        }
        // A disk that is full must not stop the sessions.
        if let Err(error) = state.save(FILE, &Sessions { sessions: engine.report().await }) {
            eprintln!("{error}");
        }
    }
}

fn log(event: &Event) {
    let Event { ends, change } = event;
    eprintln!(
        "bfd {} -> {}: {} -> {} ({})",
        ends.local, ends.remote, change.from, change.to, change.diagnostic
    );
}
