//! The process of one gateway pod.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{self, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::Settings;
use super::namespaces::{Identity, Namespace, Places};
use super::pods::GatewayPod;
use super::report::{PodState, PodStatus};
use crate::clock;
use crate::metrics::Address;
use crate::state_dir::{StateDir, StateError};

/// How long a process may take to end.
const PATIENCE: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest pause between two starts.
const LONGEST: Duration = Duration::from_secs(30);
/// A process that ran for so long has started well.
const STEADY: Duration = Duration::from_secs(60);
/// The file in the state directory that says whose it is.
const FILE: &str = "pod.json";

/// Whose a state directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) uid: String,
    pub(super) pod: String,
    namespace: Identity,
}

impl Record {
    /// Whether it is of this namespace.
    pub(super) fn is_of(&self, namespace: &Namespace) -> bool {
        self.namespace == namespace.identity
    }
}

/// What the agents of this node have left, by the name of the data plane.
pub(super) fn records(settings: &Settings) -> Vec<(String, Record)> {
    let Ok(entries) = fs::read_dir(&settings.state_dir) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let record = |name: String| {
        let state = StateDir::new(&settings.state_dir, &name).ok()?;
        let record = state.load(FILE).ok()??;
        Some((name, record))
    };
    names.filter_map(record).collect()
}

/// A line of the log.
pub(super) fn say(about: impl Display, text: impl Display) {
    eprintln!("agent: {about}: {text}");
}

/// Takes a data plane down: in its namespace, or what is left of it when that is gone.
///
/// # Errors
///
/// What went wrong, in one line.
pub(super) fn detach(
    settings: &Settings,
    name: &str,
    namespace: Option<&Namespace>,
) -> Result<(), String> {
    let mut command = Command::new(&settings.program);
    command.args(["detach", "--gateway", name, "--state-dir"]).arg(&settings.state_dir);
    match namespace {
        Some(namespace) => command.arg("--netns").arg(path_of(namespace)),
        None => command.arg("--namespace-gone"),
    };
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("vpc-gateway detach --gateway {name} ended with {status}")),
        Err(error) => Err(format!("failed to run vpc-gateway detach: {error}")),
    }
}

/// The namespace under a name that every process of this one's can open while it runs.
fn path_of(namespace: &Namespace) -> PathBuf {
    format!("/proc/{}/fd/{}", process::id(), namespace.file.as_raw_fd()).into()
}

/// A pod and the process that serves it.
pub(super) struct Child {
    pub(super) pod: GatewayPod,
    pub(super) namespace: Option<Namespace>,
    process: Option<process::Child>,
    started: Instant,
    /// Not before.
    next_start: Instant,
    pause: Duration,
    restarts: u32,
    state: PodState,
    reason: String,
    since: u64,
}

impl Child {
    pub(super) fn new(pod: GatewayPod) -> Self {
        let now = Instant::now();
        Self {
            pod,
            namespace: None,
            process: None,
            started: now,
            next_start: now,
            pause: SHORTEST,
            restarts: 0,
            state: PodState::Waits,
            reason: String::new(),
            since: clock::unix_seconds(),
        }
    }

    fn becomes(&mut self, state: PodState, reason: String) {
        if (self.state, &self.reason) != (state, &reason) {
            say(&self.pod, &reason);
            self.since = clock::unix_seconds();
            (self.state, self.reason) = (state, reason);
        }
    }

    /// For `vpc-gateway agent status`.
    pub(super) fn status(&self) -> PodStatus {
        PodStatus {
            pod: self.pod.clone(),
            data_plane: self.pod.data_plane(),
            state: self.state,
            reason: self.reason.clone(),
            since: self.since,
            process: self.process.as_ref().map(process::Child::id),
            restarts: self.restarts,
        }
    }

    /// Takes over what the API server says now. `true` if the process has to be started anew for it.
    pub(super) fn is_now(&mut self, pod: &GatewayPod) -> bool {
        let (old, new) = (&self.pod, pod);
        let same = (&old.serves, &old.internal, &old.external)
            == (&new.serves, &new.internal, &new.external);
        self.pod = pod.clone();
        !same && self.process.is_some()
    }

    /// Notices that the process has ended.
    pub(super) fn look_after(&mut self) {
        let Some(process) = &mut self.process else { return };
        let ended = match process.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.process = None;
        if self.started.elapsed() > STEADY {
            self.pause = SHORTEST;
        }
        self.next_start = Instant::now() + self.pause;
        let pause = self.pause.as_secs();
        self.pause = (self.pause * 2).min(LONGEST);
        self.restarts += 1;
        let text = format!(
            "its process ended ({ended}) and is started again in {pause} s; the data plane is as it was"
        );
        self.becomes(PodState::Failed, text);
    }

    /// Whether it is to be started, and only that is missing.
    pub(super) fn is_due(&self) -> bool {
        self.process.is_none() && Instant::now() >= self.next_start
    }

    /// Takes over what was found of its namespace. `true` if the one that is served is another.
    pub(super) fn found(&mut self, namespace: Option<Namespace>, places: &Places) -> bool {
        match (namespace, &self.namespace) {
            (Some(found), Some(served)) if found.identity == served.identity => false,
            (Some(found), served) => {
                let other = served.is_some();
                self.namespace = Some(found);
                other
            }
            (None, _) => {
                if self.process.is_none() {
                    self.namespace = None;
                    let text = format!(
                        "waits for its containers: {} (phase {})",
                        places.nothing_of(&self.pod.uid),
                        self.pod.phase
                    );
                    self.becomes(PodState::Waits, text);
                }
                false
            }
        }
    }

    /// Whether its process runs.
    pub(super) const fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the process.
    pub(super) fn start(&mut self, settings: &Settings) {
        let Some(namespace) = &self.namespace else { return };
        let record = Record {
            uid: self.pod.uid.clone(),
            pod: self.pod.to_string(),
            namespace: namespace.identity,
        };
        match self.prepare(settings, &record).and_then(|()| {
            let spawned = self.command(settings, namespace).spawn();
            spawned
                .map_err(|error| format!("failed to start {}: {error}", settings.program.display()))
        }) {
            Ok(process) => {
                let text = format!("served by process {} for {}", process.id(), self.pod.serves);
                self.process = Some(process);
                self.started = Instant::now();
                self.becomes(PodState::Runs, text);
            }
            Err(text) => {
                self.next_start = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(LONGEST);
                self.becomes(PodState::Failed, text);
            }
        }
    }

    /// Makes sure that no state of another pod, or of another sandbox of this one, is adopted.
    fn prepare(&self, settings: &Settings, record: &Record) -> Result<(), String> {
        let name = self.pod.data_plane();
        let failed = |error: StateError| error.to_string();
        let state = StateDir::new(&settings.state_dir, &name).map_err(failed)?;
        let before: Option<Record> = state.load(FILE).map_err(failed)?;
        if before.is_some_and(|before| before != *record) {
            say(&self.pod, "what the pod before it has left is removed");
            detach(settings, &name, None)?;
        }
        state.make().and_then(|()| state.save(FILE, record)).map_err(failed)
    }

    fn command(&self, settings: &Settings, namespace: &Namespace) -> Command {
        let mut command = Command::new(&settings.program);
        command.args(["run", "--kube", "--leave-host"]);
        command.arg("--end-with-parent").arg(process::id().to_string());
        command.arg("--gateway").arg(self.pod.serves.gateway());
        command.arg("--name").arg(self.pod.data_plane());
        command.arg("--internal").arg(&self.pod.internal);
        command.arg("--external").arg(&self.pod.external);
        command.arg("--netns").arg(path_of(namespace));
        command.arg("--state-dir").arg(&settings.state_dir);
        if let Some(kubeconfig) = &settings.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command.args(&settings.arguments);
        let own = |argument: &OsString| argument.to_string_lossy().starts_with("--metrics");
        if let Some(limit) = settings.metrics_limit
            && !settings.arguments.iter().any(own)
        {
            let address = Address::Unix(settings.socket(&self.pod.uid));
            command.arg("--metrics").arg(address.to_string());
            command.arg("--metrics-limit").arg(limit.to_string());
        }
        command
    }

    /// Ends the process; the data plane stays.
    pub(super) async fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let _ = kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while let Ok(None) = process.try_wait() {
            if Instant::now() > deadline {
                let _ = process.kill();
                let _ = process.wait();
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the process and takes the data plane down, so that the pod is as it was.
    pub(super) async fn remove(mut self, settings: &Settings) {
        self.stop().await;
        let _ = fs::remove_file(settings.socket(&self.pod.uid));
        match detach(settings, &self.pod.data_plane(), self.namespace.as_ref()) {
            Ok(()) => say(&self.pod, "its data plane is removed"),
            Err(text) => say(&self.pod, text),
        }
    }
}
