//! Kube-OVN's objects on an API server, watched.
//!
//! ```text
//! thread `kube`:  list + watch of each resource ─► decoded objects ─┐ channel ┌─► cache ─► Snapshot
//!                 Events about rejections       ◄───────────────────┘         └── the daemon
//! ```
//!
//! The client lives on a thread of its own, which stays in the network namespace that the process was
//! started in: the gateway may have been given another one, from which there may be no way to
//! the API server. Nothing is read from, and nothing written to, objects but this: `list` and
//! `watch` on the [`RESOURCES`], on the metadata of [`PODS`] and [`NAMESPACES`] while the gateway has selectors,
//! and Events.

mod cache;
mod definitions;
mod events;
mod object;
mod pods;
mod resources;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::watch as watch_channel;

use self::cache::{Cache, Change, Effect};
pub use self::definitions::definitions;
pub use self::events::Grievance;
use self::object::ClusterObject;
use self::pods::{OneNamespace, OnePod};
pub use self::resources::{NAMESPACES, PODS, RESOURCES, Resource};
pub(crate) use self::watch::because;
use super::pods::Pods;
use super::{Changes, Snapshot};
use crate::clock;
use crate::crd::Kind;
use crate::metrics::gateway::Heard;
use crate::privilege::{self, PrivilegeError};
use crate::rejection::Rejection;
use crate::status::SourceStatus;

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The kubeconfig, or what a pod has instead.
    #[error(
        "failed to find out where the API server is, from {}; give --kubeconfig FILE, or run in a \
         pod with a ServiceAccount",
        place(path.as_deref())
    )]
    Config {
        /// The kubeconfig that was given.
        path: Option<PathBuf>,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The client.
    #[error("failed to set up a client for {server}")]
    Client {
        /// The API server.
        server: String,
        /// The cause.
        #[source]
        source: Box<kube::Error>,
    },
    /// The privileges of the thread.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// The thread.
    #[error("failed to start the thread that watches the API server")]
    Thread(#[source] std::io::Error),
}

fn place(path: Option<&Path>) -> String {
    path.map_or_else(
        || "KUBECONFIG, ~/.kube/config and the ServiceAccount".to_owned(),
        |path| path.display().to_string(),
    )
}

/// What the thread tells.
#[derive(Debug)]
enum Message {
    /// The objects of a kind changed, as we heard at that moment.
    Change(&'static str, Change, Instant),
    /// Pods did.
    Pods(Change<OnePod>, Instant),
    /// Namespaces did.
    Namespaces(Change<OneNamespace>, Instant),
    /// A kind cannot be watched at the moment, and why.
    Trouble(&'static str, String),
    /// A kind is being watched.
    Fine(&'static str),
    /// The server has forgotten how far a watch was; a new list is on its way.
    Expired,
    /// Events cannot be written, and why; `None`: they can.
    Events(Option<String>),
}

/// The objects of a cluster, as far as they are known.
#[derive(Debug)]
pub struct Cluster {
    server: String,
    messages: UnboundedReceiver<Message>,
    grievances: mpsc::UnboundedSender<Vec<Grievance>>,
    cache: Cache,
    /// The gateway that this is for.
    gateway: String,
    /// Whether pods are watched.
    wants_pods: watch_channel::Sender<bool>,
    /// Whether all kinds had been listed at some time.
    synced: bool,
    changed: bool,
    changes: Changes,
    pods_changed: bool,
    health_changed: bool,
    trouble: BTreeMap<&'static str, String>,
    since: Option<u64>,
    expired: u64,
    heard: Heard,
    /// When the first change was heard of that was not asked for yet.
    arrival: Option<Instant>,
}

/// Who may write Events, for `source.component` in them.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// The gateway.
    pub gateway: String,
    /// The node or host.
    pub host: String,
}

impl Cluster {
    /// Starts watching. `path` is a kubeconfig; without one, it is looked for in the usual places.
    ///
    /// Call it before the process enters a network namespace.
    ///
    /// # Errors
    ///
    /// When it cannot be told where the API server is. That it does not answer is no error.
    pub fn start(path: Option<&Path>, reporter: Reporter) -> Result<Self, KubeError> {
        let (sender, messages) = mpsc::unbounded_channel();
        let (grievances, complaints) = mpsc::unbounded_channel();
        let (ready, started) = std::sync::mpsc::channel();
        let path = path.map(Path::to_owned);
        let heard = Heard::default();
        let (hears, gateway) = (heard.clone(), reporter.gateway.clone());
        let (wants_pods, wanted) = watch_channel::channel(false);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(KubeError::Thread(error)))),
            };
            runtime.block_on(async move {
                let (client, server) = match connect(path).await {
                    Ok(connected) => connected,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                // What it reads from here on it reads as any other user.
                if let Err(error) = privilege::keep(&[]) {
                    return drop(ready.send(Err(error.into())));
                }
                let _ = ready.send(Ok(server));
                for resource in RESOURCES {
                    let ends = (client.clone(), sender.clone(), hears.clone());
                    tokio::spawn(watch::Watcher::<ClusterObject>::new(resource, ends).run());
                }
                let on_demand =
                    pods::watch_on_demand(client.clone(), sender.clone(), hears, wanted);
                tokio::spawn(on_demand);
                events::run(client, reporter, complaints, sender).await;
            });
        };
        thread::Builder::new().name("kube".into()).spawn(work).map_err(KubeError::Thread)?;
        let gone = || KubeError::Thread(std::io::Error::other("it ended at once"));
        let server = started.recv().map_err(|_| gone())??;
        Ok(Self {
            server,
            messages,
            grievances,
            cache: Cache::default(),
            gateway,
            wants_pods,
            synced: false,
            changed: false,
            changes: Changes::default(),
            pods_changed: false,
            health_changed: false,
            trouble: BTreeMap::new(),
            since: None,
            expired: 0,
            heard,
            arrival: None,
        })
    }

    /// Waits for news and takes them over.
    pub async fn woken(&mut self) {
        match self.messages.recv().await {
            Some(message) => self.take(message),
            None => std::future::pending().await,
        }
    }

    /// Takes over what is there already.
    pub fn drain(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Change(kind, change, at) => {
                // That an initial list is complete is worth a line in the status.
                self.health_changed |= matches!(change, Change::Listed(_));
                if let Some(effect) = self.cache.apply(kind, change) {
                    self.note(at);
                    match effect {
                        Effect::One(changed) => self.changes.push(changed),
                        Effect::Any => self.changes = Changes::Any,
                    }
                }
                if kind == Kind::VpcEgressGateway.as_str() {
                    self.ask_for_pods();
                }
            }
            Message::Pods(change, at) => {
                self.health_changed |= matches!(change, Change::Listed(_));
                let news = self.cache.pods.apply(change);
                self.note_pods(news, at);
            }
            Message::Namespaces(change, at) => {
                self.health_changed |= matches!(change, Change::Listed(_));
                let news = self.cache.pods.apply_namespace(change);
                self.note_pods(news, at);
            }
            Message::Trouble(kind, text) => {
                self.since.get_or_insert_with(clock::unix_seconds);
                self.health_changed |= self.trouble.get(kind) != Some(&text);
                self.trouble.insert(kind, text);
            }
            Message::Fine(kind) => self.fine(kind),
            Message::Expired => self.expired += 1,
            Message::Events(Some(text)) => {
                self.health_changed |= self.trouble.get(EVENTS) != Some(&text);
                self.trouble.insert(EVENTS, text);
            }
            Message::Events(None) => self.fine(EVENTS),
        }
        self.synced |= self.cache.missing().is_empty();
    }

    fn note(&mut self, at: Instant) {
        self.changed = true;
        self.arrival.get_or_insert(at);
    }

    fn note_pods(&mut self, news: bool, at: Instant) {
        if news {
            self.pods_changed = true;
            self.note(at);
        }
    }

    /// Watches pods if the gateway has selectors, and only then.
    fn ask_for_pods(&mut self) {
        let wanted = self.cache.selects(&self.gateway);
        if self.cache.pods.want(wanted) {
            self.pods_changed = true;
            let _ = self.wants_pods.send(wanted);
        }
        if !wanted {
            [PODS, NAMESPACES].iter().for_each(|resource| self.fine(resource.kind));
        }
    }

    fn fine(&mut self, kind: &'static str) {
        self.health_changed |= self.trouble.remove(kind).is_some();
        if self.trouble.keys().all(|kind| *kind == EVENTS) {
            self.since = None;
        }
    }

    /// Whether the objects changed since this was last asked, all kinds having been listed.
    pub fn changed(&mut self) -> bool {
        self.synced() && std::mem::take(&mut self.changed)
    }

    /// What changed since this was last asked.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The pods, if some have changed since this was last asked.
    pub fn take_pods(&mut self) -> Option<Arc<Pods>> {
        let changed = std::mem::take(&mut self.pods_changed);
        changed.then(|| Arc::clone(self.cache.pods.pods()))
    }

    /// When the first of the changes since this was last asked was heard of.
    pub fn take_arrival(&mut self) -> Option<Instant> {
        self.arrival.take()
    }

    /// Whether something else is worth knowing since this was last asked.
    pub fn health_changed(&mut self) -> bool {
        std::mem::take(&mut self.health_changed)
    }

    /// Whether every kind has been listed, pods being one of them if the gateway has selectors. If it gets some
    /// later, everything else goes on meanwhile.
    #[must_use]
    pub const fn synced(&self) -> bool {
        self.synced
    }

    /// The address of the API server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// When it was last heard of.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// All objects.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.cache.snapshot()
    }

    /// Lets the authors of objects know, by Events on them.
    pub fn complain(&self, rejections: &[Rejection]) {
        let about = |rejection: &Rejection| {
            let object = rejection.object.as_ref()?;
            Some(Grievance::new(rejection, object, self.cache.identity(object)?))
        };
        let _ = self.grievances.send(rejections.iter().filter_map(about).collect());
    }

    /// For `vpc-gateway status`.
    #[must_use]
    pub fn status(&self) -> SourceStatus {
        let missing = self.cache.missing();
        SourceStatus {
            server: Some(self.server.clone()),
            synced: missing.is_empty(),
            waits_for: missing.into_iter().map(str::to_owned).collect(),
            objects: self.cache.counts(),
            trouble: self.trouble.values().cloned().collect(),
            trouble_since: self.since,
            expired: self.expired,
        }
    }

    /// What is wrong, one line each; resources that fail for the same reason share one.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, text) in &self.trouble {
            let reason = text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason);
            by_reason.entry(reason).or_default().push(kind);
        }
        let line = |(reason, kinds): (&str, Vec<&str>)| match kinds.as_slice() {
            [kind] => format!("API server {}: {}", self.server, self.trouble[kind]),
            kinds => {
                format!("API server {}: cannot watch {}: {reason}", self.server, kinds.join(", "))
            }
        };
        by_reason.into_iter().map(line).collect()
    }
}

/// Stands for the Events among the kinds in trouble.
const EVENTS: &str = "Event";

/// A client for the API server that a kubeconfig names, or the usual places, and its address.
pub(crate) async fn connect(path: Option<PathBuf>) -> Result<(kube::Client, String), KubeError> {
    let config = match &path {
        Some(file) => match Kubeconfig::read_from(file) {
            Ok(kubeconfig) => {
                let options = KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
                config.map_err(|error| Box::new(error).into())
            }
            Err(error) => Err(Box::new(error).into()),
        },
        None => kube::Config::infer().await.map_err(|error| Box::new(error).into()),
    };
    let config = config.map_err(|source| KubeError::Config { path, source })?;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    match kube::Client::try_from(config) {
        Ok(client) => Ok((client, server)),
        Err(source) => Err(KubeError::Client { server, source: Box::new(source) }),
    }
}
