//! One data plane for each gateway pod of a node: what the DaemonSet runs.
//!
//! ```text
//! API server ─► pods of this node ─► network namespace by uid ─► `vpc-gateway run --kube` in it
//! ```
//!
//! Each pod has a process of its own, so that two gateways with the same tenant networks share
//! nothing and what kills one leaves the others alone. Addresses and routes of the pods stay as
//! Kube-OVN's scripts make them, and what no rule covers is left to the pod's iptables.
//!
//! A state directory and pins belong to one uid in one network namespace: `pod.json` says which. What
//! is another's is removed and not adopted. When an agent ends, data planes stay for the next one.

mod child;
pub mod cri;
mod namespaces;
mod pods;
mod procfs;
pub mod report;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::child::{Child, detach, records, say};
pub use self::namespaces::Places;
pub use self::pods::{GatewayPod, Interfaces, Serves};
use self::report::AgentStatus;
use crate::clock;
use crate::metrics::Publisher;
use crate::metrics::agent::Published;
use crate::source::kube::{KubeError, connect};
use crate::state_dir::{StateDir, StateError};

/// How often pods that are not up are looked at.
const ROUND: Duration = Duration::from_secs(1);
/// How often it is checked that namespaces are still those of the pods, and what is left of others.
const CHECK: Duration = Duration::from_secs(10);
/// How often the status is written when nothing changes.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Everything that the command line decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node, as Kubernetes calls it.
    pub node: String,
    /// The kubeconfig, if one was given.
    pub kubeconfig: Option<PathBuf>,
    /// Who knows the network namespaces of the pods.
    pub places: Places,
    /// The interfaces of pods that do not say.
    pub interfaces: Interfaces,
    /// Where the state of gateways is kept.
    pub state_dir: PathBuf,
    /// Whether the data planes go with the agent.
    pub detach_on_exit: bool,
    /// How many rules and EIPs the metrics of a pod show one by one, if metrics are served.
    pub metrics_limit: Option<usize>,
    /// This program.
    pub program: PathBuf,
    /// More arguments of `run`.
    pub arguments: Vec<OsString>,
}

impl Settings {
    /// Where the process of a pod serves its metrics: a short path, as those of sockets have to be.
    fn socket(&self, uid: &str) -> PathBuf {
        StateDir::of_agent(&self.state_dir).file(&format!("{uid}.sock"))
    }
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The API server.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The state directory.
    #[error(transparent)]
    State(StateError),
    /// There is one already.
    #[error("an agent runs already, process {pid}; two would start everything twice")]
    Running {
        /// Its process.
        pid: String,
    },
    /// The signals.
    #[error("failed to wait for signals")]
    Signal(#[source] std::io::Error),
}

impl From<StateError> for AgentError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Locked { pid, .. } => Self::Running { pid },
            other => Self::State(other),
        }
    }
}

/// Runs until a signal ends it.
///
/// # Errors
///
/// When it cannot start. Nothing that runs already is changed then.
pub async fn run(
    settings: Settings,
    metrics: Option<Publisher<Published>>,
) -> Result<(), AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signal)?;
    let mut ended = signal(SignalKind::child()).map_err(AgentError::Signal)?;
    let state = StateDir::of_agent(&settings.state_dir);
    let _lock = state.lock()?;
    let (client, server) = connect(settings.kubeconfig.clone()).await?;
    say(&settings.node, format_args!("its gateway pods are told by {server}"));
    let (sender, mut told) = mpsc::unbounded_channel();
    tokio::spawn(pods::follow(client, settings.node.clone(), settings.interfaces.clone(), sender));
    let mut agent = Agent::new(settings, state, server);
    let mut ticks = interval(ROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = ended.recv() => {}
            Some(told) = told.recv() => agent.hear(told),
            _ = ticks.tick() => {}
        }
        agent.converge().await;
        agent.report();
        if let Some(metrics) = &metrics {
            agent.publish(metrics);
        }
    }
    agent.end().await;
    Ok(())
}

/// Takes down what the agents of this node have left, while none runs. Returns the pods.
///
/// # Errors
///
/// When one runs. What else went wrong is among what is returned.
pub async fn clean(settings: &Settings) -> Result<Vec<Result<String, String>>, AgentError> {
    let _lock = StateDir::of_agent(&settings.state_dir).lock()?;
    Ok(clean_but(settings, |_| false).await)
}

/// Takes down what is left of pods whose data planes are not `in_use`.
async fn clean_but(
    settings: &Settings,
    in_use: impl Fn(&str) -> bool,
) -> Vec<Result<String, String>> {
    let left: Vec<_> = records(settings).into_iter().filter(|(name, _)| !in_use(name)).collect();
    if left.is_empty() {
        return Vec::new();
    }
    let uids: Vec<_> = left.iter().map(|(_, record)| record.uid.as_str()).collect();
    let namespaces = match settings.places.namespaces(&uids).await {
        Ok(namespaces) => namespaces,
        Err(text) => return vec![Err(text)],
    };
    let clean = |(name, record): &(String, child::Record)| {
        let namespace = namespaces.get(record.uid.as_str());
        let namespace = namespace.filter(|found| record.is_of(found));
        detach(settings, name, namespace).map(|()| record.pod.clone())
    };
    left.iter().map(clean).collect()
}

struct Agent {
    settings: Settings,
    state: StateDir,
    /// The pods by uid; `None` until they have been told once.
    wanted: Option<BTreeMap<String, GatewayPod>>,
    /// By the uid of the pod.
    children: BTreeMap<String, Child>,
    next_check: Instant,
    /// Why the pods cannot be watched.
    trouble: Option<String>,
    /// Why it is not known where the pods are.
    blind: Option<String>,
    /// What else is wrong.
    problems: Vec<String>,
    status: AgentStatus,
    /// What the metrics say.
    published: Published,
}

impl Agent {
    fn new(settings: Settings, state: StateDir, server: String) -> Self {
        let status = AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: settings.node.clone(),
            server,
            started_at: clock::unix_seconds(),
            ..AgentStatus::default()
        };
        Self {
            settings,
            state,
            wanted: None,
            children: BTreeMap::new(),
            next_check: Instant::now(),
            trouble: None,
            blind: None,
            problems: Vec::new(),
            status,
            published: Published::default(),
        }
    }

    fn hear(&mut self, told: pods::Told) {
        match told {
            Ok(pods) => {
                self.trouble = None;
                self.wanted = Some(pods);
            }
            Err(text) => {
                if self.trouble.as_ref() != Some(&text) {
                    say(&self.settings.node, format_args!("{text}; the pods that are known stay"));
                }
                self.trouble = Some(text);
            }
        }
    }

    /// Ends what has no pod any more and starts what is missing.
    async fn converge(&mut self) {
        let Some(wanted) = self.wanted.clone() else { return };
        let gone = |uid: &String| !wanted.contains_key(uid);
        let gone: Vec<_> = self.children.keys().filter(|uid| gone(uid)).cloned().collect();
        for uid in gone {
            if let Some(child) = self.children.remove(&uid) {
                child.remove(&self.settings).await;
            }
        }
        for (uid, pod) in wanted {
            let child = self.children.entry(uid).or_insert_with(|| Child::new(pod.clone()));
            if child.is_now(&pod) {
                child.stop().await;
            }
            child.look_after();
        }
        let check = Instant::now() >= self.next_check;
        if check || self.blind.is_some() || self.children.values().any(Child::is_due) {
            self.find_namespaces().await;
        }
        if check {
            self.next_check = Instant::now() + CHECK;
            self.clean_up().await;
        }
    }

    /// Looks where the pods are, and starts what can be started.
    async fn find_namespaces(&mut self) {
        let settings = &self.settings;
        let uids: Vec<_> = self.children.keys().map(String::as_str).collect();
        let mut found: BTreeMap<_, _> = match settings.places.namespaces(&uids).await {
            Ok(found) => found.into_iter().map(|(uid, it)| (uid.to_owned(), it)).collect(),
            Err(text) => {
                if self.blind.as_ref() != Some(&text) {
                    say(&settings.node, format_args!("{text}; what is served stays"));
                }
                self.blind = Some(text);
                return;
            }
        };
        self.blind = None;
        for (uid, child) in &mut self.children {
            if child.found(found.remove(uid), &settings.places) {
                say(&child.pod, "has another network namespace now");
                child.stop().await;
            }
            if child.is_due() {
                child.start(settings);
            }
        }
    }

    /// Takes down what is left of pods that went while nobody was looking.
    async fn clean_up(&mut self) {
        let used: Vec<_> = self.children.values().map(|child| child.pod.data_plane()).collect();
        let used = |name: &str| used.iter().any(|used| used == name);
        let cleaned = clean_but(&self.settings, used).await;
        self.problems.clear();
        for result in cleaned {
            match result {
                Ok(pod) => say(pod, "is gone; what was left of its data plane is removed"),
                Err(text) => {
                    say(&self.settings.node, &text);
                    self.problems.push(text);
                }
            }
        }
    }

    /// Writes the status if it has changed, or is old.
    fn report(&mut self) {
        let now = clock::unix_seconds();
        let status = AgentStatus {
            synced: self.wanted.is_some(),
            problems: self
                .trouble
                .iter()
                .chain(&self.blind)
                .chain(&self.problems)
                .cloned()
                .collect(),
            pods: self.children.values().map(Child::status).collect(),
            ..self.status.clone()
        };
        let fresh = now.saturating_sub(status.written_at) < HEARTBEAT.as_secs();
        if status == self.status && fresh {
            return;
        }
        self.status = AgentStatus { written_at: now, ..status };
        if let Err(error) = self.state.save(report::FILE, &self.status) {
            say(&self.settings.node, error);
        }
    }

    /// Says that the loop turns, and what there is now.
    fn publish(&mut self, metrics: &Publisher<Published>) {
        metrics.beat();
        let sockets = self.children.iter().filter(|(_, child)| child.is_running());
        let sockets = sockets.map(|(uid, _)| (uid.clone(), self.settings.socket(uid)));
        let fresh = Published {
            status: self.status.clone(),
            trouble: self.trouble.is_some(),
            sockets: sockets.collect(),
        };
        if self.published != fresh {
            self.published = fresh.clone();
            metrics.publish(fresh);
        }
    }

    /// Ends all processes; the data planes go only if that was asked for.
    async fn end(self) {
        for mut child in self.children.into_values() {
            if self.settings.detach_on_exit {
                child.remove(&self.settings).await;
            } else {
                child.stop().await;
            }
        }
        let rest = if self.settings.detach_on_exit {
            let cleaned = clean_but(&self.settings, |_| false).await;
            for text in cleaned.into_iter().filter_map(Result::err) {
                say(&self.settings.node, text);
            }
            "removed"
        } else {
            "left attached; the next agent takes them over"
        };
        say(&self.settings.node, format_args!("the agent ends; the data planes are {rest}"));
    }
}
