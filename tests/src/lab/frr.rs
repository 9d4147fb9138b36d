//! FRR's bfdd with its zebra, as the other end of BFD sessions.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::User;
use serde_json::Value;

use super::netns::{self, Netns};
use super::process::Process;
use super::scratch::Scratch;
use super::wait::wait_until;

/// Where Debian puts the daemons.
const DAEMONS: &str = "/usr/lib/frr";

/// Whether FRR is there.
///
/// # Errors
/// One line that says what is missing.
pub fn available() -> Result<()> {
    let bfdd = format!("{DAEMONS}/bfdd");
    netns::run(Command::new(bfdd).arg("--version")).context("FRR is missing").map(drop)
}

/// A session on FRR's side.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// FRR's address.
    pub local: IpAddr,
    /// Ours.
    pub remote: IpAddr,
    /// Both intervals in milliseconds.
    pub interval: u32,
}

/// FRR in a namespace.
#[derive(Debug)]
pub struct Frr<'a> {
    ns: &'a Netns,
    scratch: &'a Scratch,
    sockets: PathBuf,
    config: PathBuf,
    _zebra: Process,
    bfdd: Process,
}

impl<'a> Frr<'a> {
    /// Starts zebra and bfdd with these sessions on `interface`.
    ///
    /// # Errors
    /// FRR is missing or does not start.
    pub fn start(
        ns: &'a Netns,
        scratch: &'a Scratch,
        interface: &str,
        peers: &[Peer],
    ) -> Result<Self> {
        let sockets = scratch.join("frr");
        fs::create_dir(&sockets)?;
        let user = User::from_name("frr")?.context("there is no user frr")?;
        for path in [scratch.path(), &sockets] {
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let session = |peer: &Peer| {
            let Peer { local, remote, interval } = peer;
            format!(
                " peer {remote} local-address {local} interface {interface}\n  receive-interval \
                 {interval}\n  transmit-interval {interval}\n !\n"
            )
        };
        let sessions: String = peers.iter().map(session).collect();
        let config = scratch.write("bfdd.conf", format!("bfd\n{sessions}!\n"))?;
        let empty = scratch.write("zebra.conf", "")?;
        let daemon = |name: &str, config: &PathBuf| {
            let mut command = Command::new(format!("{DAEMONS}/{name}"));
            command.args(["--vty_socket"]).arg(&sockets);
            command.arg("-z").arg(sockets.join("zebra.socket"));
            command.arg("-i").arg(sockets.join(format!("{name}.pid"))).arg("-f").arg(config);
            command
        };
        let log = scratch.join("frr.log");
        let zebra = ns.enter(|| Process::start(&mut daemon("zebra", &empty), &log))??;
        let up = || Ok(sockets.join("zebra.socket").exists().then_some(()));
        wait_until("zebra", Duration::from_secs(10), up)?;
        let bfdd = ns.enter(|| start_bfdd(&sockets, &config, &log))??;
        Ok(Self { ns, scratch, sockets, config, _zebra: zebra, bfdd })
    }

    /// Kills bfdd without a farewell.
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.bfdd.signal(Signal::SIGKILL)?;
        self.bfdd.wait(Duration::from_secs(5)).map(drop)
    }

    /// Starts bfdd again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        let log = self.scratch.join("frr.log");
        let (sockets, config) = (&self.sockets, &self.config);
        self.bfdd = self.ns.enter(|| start_bfdd(sockets, config, &log))??;
        Ok(())
    }

    /// Runs lines of configuration.
    ///
    /// # Errors
    /// bfdd refuses one.
    pub fn configure(&self, lines: &[&str]) -> Result<()> {
        let mut command = self.vtysh();
        for line in ["configure terminal"].iter().chain(lines) {
            command.args(["-c", line]);
        }
        self.ns.output(&mut command).map(drop)
    }

    /// What FRR says about its session with `remote`.
    ///
    /// # Errors
    /// It does not know it.
    pub fn peer(&self, remote: IpAddr) -> Result<Value> {
        let text = self.ns.output(self.vtysh().args(["-c", "show bfd peers json"]))?;
        let peers: Value = serde_json::from_str(&text).context("not JSON")?;
        let all = peers.as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|peer| peer["peer"] == remote.to_string());
        found.with_context(|| format!("FRR has no session with {remote}: {text}"))
    }

    fn vtysh(&self) -> Command {
        let mut command = Command::new("vtysh");
        command.arg("--vty_socket").arg(&self.sockets).args(["-d", "bfdd"]);
        command
    }
}

fn start_bfdd(sockets: &Path, config: &Path, log: &Path) -> Result<Process> {
    let mut command = Command::new(format!("{DAEMONS}/bfdd"));
    command.arg("--vty_socket").arg(sockets).arg("-z").arg(sockets.join("zebra.socket"));
    command.arg("--bfdctl").arg(sockets.join("bfdd.sock"));
    command.arg("-i").arg(sockets.join("bfdd.pid")).arg("-f").arg(config);
    Process::start(&mut command, log)
}
