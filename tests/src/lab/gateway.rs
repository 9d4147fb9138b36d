//! The binary under test: `vpc-gateway run` beside a topology, and its other verbs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::cleanup::{self, Undo};
use super::netns::{self, Netns};
use super::process::Process;
use super::scratch::Scratch;
use super::topology::Topology;
use super::wait::wait_until;

/// Where the maps and programs of all gateways are pinned.
pub const PINS: &str = "/sys/fs/bpf/vpc-gateway";

const READY: Duration = Duration::from_secs(20);

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The `vpc-gateway` binary.
    pub binary: PathBuf,
    /// Name of the `VpcNatGateway` object, or of the replica.
    pub name: String,
    /// Name of the `VpcEgressGateway` object, for a replica.
    pub object: Option<String>,
    /// Manifest file or directory; empty if the arguments name another source.
    pub config: PathBuf,
    /// More arguments of `run`.
    pub arguments: Vec<String>,
}

/// A gateway of the lab; dropped, it is stopped and detached.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    netns: PathBuf,
    state: PathBuf,
    log: PathBuf,
    daemon: Option<Process>,
    detach: Option<Undo>,
}

impl Gateway {
    /// Starts the daemon in the gateway namespace and waits until it has applied its manifests.
    ///
    /// # Errors
    /// It ends early or is not ready in time; the error carries its log.
    pub fn start(lab: &Topology, settings: Settings) -> Result<Self> {
        let mut gateway = Self::prepare(lab, settings)?;
        gateway.restart()?;
        Ok(gateway)
    }

    /// As [`Gateway::start`], in any namespace with interfaces `eth0` and `net1`.
    ///
    /// # Errors
    /// It ends early or is not ready in time; the error carries its log.
    pub fn start_in(netns: &Netns, scratch: &Scratch, settings: Settings) -> Result<Self> {
        let mut gateway = Self::prepare_in(netns, scratch, settings)?;
        gateway.restart()?;
        Ok(gateway)
    }

    /// A gateway that is not started.
    ///
    /// # Errors
    /// The clean-up cannot be registered.
    pub fn prepare(lab: &Topology, settings: Settings) -> Result<Self> {
        Self::prepare_in(&lab.gateway, &lab.scratch, settings)
    }

    /// As [`Gateway::prepare`], in any namespace.
    ///
    /// # Errors
    /// The clean-up cannot be registered.
    pub fn prepare_in(netns: &Netns, scratch: &Scratch, settings: Settings) -> Result<Self> {
        let (binary, name) = (settings.binary.clone(), settings.name.clone());
        let state = scratch.join(&format!("state-{name}"));
        let (path, directory) = (netns.path(), state.clone());
        let ((), detach) = cleanup::make(
            || Ok(()),
            |()| Box::new(move || detach_quietly(&binary, &name, &path, &directory)),
        )?;
        Ok(Self {
            netns: netns.path(),
            state,
            log: scratch.join(&format!("{}.log", settings.name)),
            settings,
            daemon: None,
            detach: Some(detach),
        })
    }

    /// Name of the gateway.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// How it is started.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Directory of its pins.
    pub fn pins(&self) -> PathBuf {
        Path::new(PINS).join(&self.settings.name)
    }

    /// Everything the daemon printed, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The command line of `run`, for a daemon or for a second one that should be refused.
    pub fn run_command(&self, external: &str) -> Command {
        let mut command = Command::new(&self.settings.binary);
        let object = self.settings.object.as_deref().unwrap_or(self.name());
        command.arg("run").args(["--gateway", object]);
        if !self.settings.config.as_os_str().is_empty() {
            command.arg("--config").arg(&self.settings.config);
        }
        command.args(["--internal", "eth0", "--external", external]);
        command.arg("--netns").arg(&self.netns).arg("--state-dir").arg(&self.state);
        command.args(&self.settings.arguments);
        command
    }

    /// Starts the daemon, again if it ran before, and waits until it is ready.
    ///
    /// # Errors
    /// It ends early or is not ready in time; the error carries its log.
    pub fn restart(&mut self) -> Result<Duration> {
        let started = Instant::now();
        self.launch()?;
        self.await_ready()?;
        Ok(started.elapsed())
    }

    /// Starts the daemon without waiting for anything.
    ///
    /// # Errors
    /// There is no such program.
    pub fn launch(&mut self) -> Result<()> {
        self.daemon = Some(Process::start(&mut self.run_command("net1"), &self.log)?);
        Ok(())
    }

    /// Waits until the daemon has applied a complete state.
    ///
    /// # Errors
    /// It ends early or is not ready in time; the error carries its log.
    pub fn await_ready(&mut self) -> Result<()> {
        self.wait_until_ready()
            .map_err(|error| anyhow!("{error:#}; its log:\n{}", self.log().trim_end()))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let pid = self.pid();
        let mut ended = None;
        wait_until("the daemon to be ready", READY, || {
            ended = self.daemon.as_mut().and_then(Process::exited);
            if ended.is_some() {
                return Ok(Some(()));
            }
            let status = self.json("status")?;
            let current =
                status["pid"].as_u64().is_none_or(|said| Some(said) == pid.map(u64::from));
            ensure!(current && status["ready"] == Value::Bool(true), "status says {status}");
            Ok(Some(()))
        })?;
        match ended {
            Some(status) => bail!("the daemon ended: {status}"),
            None => Ok(()),
        }
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.as_ref().context("the daemon does not run")?.signal(signal)
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.stop(Signal::SIGKILL).map(drop)
    }

    /// Ends the daemon with SIGTERM and returns how it ended.
    ///
    /// # Errors
    /// It does not run, or does not end within five seconds.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.stop(Signal::SIGTERM)
    }

    fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        daemon.signal(signal)?;
        daemon.wait(Duration::from_secs(5))
    }

    /// Removes programs, pins and EIP addresses with `vpc-gateway detach`.
    ///
    /// # Errors
    /// The verb fails; the error carries what it printed.
    pub fn detach(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            self.terminate()?;
        }
        let (settings, netns, state) = (&self.settings, &self.netns, &self.state);
        netns::run(&mut detach_command(&settings.binary, &settings.name, netns, state)).map(drop)
    }

    /// Leaves the daemon running for good.
    pub fn keep(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.keep();
        }
        if let Some(detach) = self.detach.take() {
            detach.forget();
        }
    }

    /// Runs a verb with `--gateway` and more arguments, and returns its standard output.
    ///
    /// # Errors
    /// The verb fails; the error carries what it printed.
    pub fn verb(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        netns::run(&mut self.verb_command(verb, arguments))
    }

    /// Runs a verb and returns its JSON.
    ///
    /// # Errors
    /// The verb fails or prints something else.
    pub fn json(&self, verb: &str) -> Result<Value> {
        let text = self.verb(verb, &["--json"])?;
        serde_json::from_str(&text).with_context(|| format!("`{verb} --json` printed {text}"))
    }

    /// The command line of another verb.
    pub fn verb_command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.settings.binary);
        command.args([verb, "--gateway", self.name()]);
        command.arg("--state-dir").arg(&self.state).args(arguments);
        command
    }

    /// The status as the daemon wrote it, ready or not.
    ///
    /// # Errors
    /// It has not written any.
    pub fn status(&self) -> Result<Value> {
        let path = self.state.join(self.name()).join("status.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What helps to understand a failure: log, status, drops, sessions.
    pub fn diagnostics(&self) -> String {
        let mut out = format!("--- log of {}\n{}", self.name(), self.log());
        for verb in ["status", "drops", "sessions", "rules"] {
            let text = self.verb(verb, &[]).unwrap_or_else(|error| format!("{error:#}\n"));
            let _ = write!(out, "--- {verb}\n{}", first_lines(&text, 60));
        }
        out
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let _ = self.terminate();
        }
    }
}

/// Runs a command that should fail, with a limit of ten seconds, and returns what it printed.
///
/// # Errors
/// It cannot be started or does not end.
pub fn run_to_end(command: &mut Command) -> Result<Output> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let ended = wait_until("the command to end", Duration::from_secs(10), || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
    }
    let output = child.wait_with_output()?;
    ended.map(|_| output)
}

/// The first lines of a text, with a note of how many were left out.
pub fn first_lines(text: &str, count: usize) -> String {
    let total = text.lines().count();
    let mut out: String = text.lines().take(count).map(|line| format!("{line}\n")).collect();
    if total > count {
        let _ = writeln!(out, "... {} lines more", total - count);
    }
    out
}

fn detach_command(binary: &Path, name: &str, netns: &Path, state: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["detach", "--gateway", name]);
    command.arg("--netns").arg(netns).arg("--state-dir").arg(state);
    command
}

/// Removes a gateway without a word; nothing happens if there is none.
pub fn detach_quietly(binary: &Path, name: &str, netns: &Path, state: &Path) {
    let mut command = detach_command(binary, name, netns, state);
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    // The names are this lab's own, so what is left there is left by this gateway.
    let _ = std::fs::remove_dir_all(Path::new(PINS).join(name));
}
