//! The source of a running gateway: manifests or a cluster, each telling when it changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::files::Files;
use super::kube::Cluster;
use super::pods::Pods;
use super::{Changes, Snapshot, SourceError};
use crate::metrics::gateway::Heard;
use crate::rejection::Rejection;
use crate::status::SourceStatus;
use crate::watch::Watch;

/// How long files must be quiet before they are read.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often that is waited for at most.
const DEBOUNCE_ROUNDS: u32 = 10;
/// Changes of a cluster that come while the last ones are worked on, and this many times as long afterwards,
/// are taken together: a single one is acted upon at once, and many take a quarter of a CPU.
const REST: u32 = 3;
/// But at most so long afterwards.
const BURST: Duration = Duration::from_millis(50);

/// Where a running gateway gets its objects from.
#[derive(Debug)]
pub struct Feed {
    origin: Origin,
    /// When changes of a cluster may be handed on again at once.
    free: Option<Instant>,
}

#[derive(Debug)]
enum Origin {
    Files { files: Box<Files>, watch: Watch, pending: Changes },
    Cluster(Box<Cluster>),
}

impl Feed {
    /// Manifest files, and directories of them.
    #[must_use]
    pub fn files(paths: Vec<PathBuf>) -> Self {
        let (watch, files) = (Watch::new(&paths), Box::new(Files::new(paths)));
        let origin = Origin::Files { files, watch, pending: Changes::default() };
        Self { origin, free: None }
    }

    /// The objects of a cluster.
    #[must_use]
    pub fn cluster(cluster: Cluster) -> Self {
        Self { origin: Origin::Cluster(Box::new(cluster)), free: None }
    }

    /// Waits until something happens, which need not be a change.
    pub async fn woken(&mut self) {
        match &mut self.origin {
            Origin::Files { watch, .. } => watch.woken().await,
            Origin::Cluster(cluster) => cluster.woken().await,
        }
    }

    /// After [`Self::woken`]: waits for what belongs together. A single change in a cluster waits for
    /// nothing, and neither do rules that are new or changed in a file: whatever else is still being written,
    /// it takes nothing away.
    pub async fn settle(&mut self) {
        match &mut self.origin {
            Origin::Files { files, watch, pending } => {
                pending.extend(files.changes());
                if pending.are_new_rules() {
                    return;
                }
                for _ in 0..DEBOUNCE_ROUNDS {
                    if timeout(DEBOUNCE, watch.woken()).await.is_err() {
                        return;
                    }
                }
            }
            Origin::Cluster(cluster) => {
                if let Some(free) = self.free {
                    sleep_until(free).await;
                }
                cluster.drain();
            }
        }
    }

    /// Whether the objects changed since this was last asked.
    pub fn changed(&mut self) -> bool {
        match &mut self.origin {
            Origin::Files { watch, pending, .. } => {
                let pending = matches!(pending, Changes::Few(few) if !few.is_empty());
                watch.changed() || pending
            }
            Origin::Cluster(cluster) => cluster.changed(),
        }
    }

    /// When the first of the changes since this was last asked was heard of, if there is an API server.
    pub fn take_arrival(&mut self) -> Option<std::time::Instant> {
        match &mut self.origin {
            Origin::Files { .. } => None,
            Origin::Cluster(cluster) => cluster.take_arrival(),
        }
    }

    /// What changed since this was last asked.
    pub fn take_changes(&mut self) -> Changes {
        match &mut self.origin {
            Origin::Files { files, pending, .. } => {
                pending.extend(files.changes());
                std::mem::take(pending)
            }
            Origin::Cluster(cluster) => cluster.take_changes(),
        }
    }

    /// The pods, if they alone may have changed since this was last asked. In files everything has then.
    pub fn take_pods(&mut self) -> Option<Arc<Pods>> {
        match &mut self.origin {
            Origin::Files { .. } => None,
            Origin::Cluster(cluster) => cluster.take_pods(),
        }
    }

    /// Notes that what had changed has been acted upon, and how long that took.
    pub fn acted(&mut self, took: Duration) {
        self.free = Some(Instant::now() + (REST * took).min(BURST));
    }

    /// Whether the status of the source changed since this was last asked.
    pub fn health_changed(&mut self) -> bool {
        match &mut self.origin {
            Origin::Files { .. } => false,
            Origin::Cluster(cluster) => cluster.health_changed(),
        }
    }

    /// Whether the gateway may still come: in files it is there or it is not.
    #[must_use]
    pub const fn may_bring_the_gateway(&self) -> bool {
        matches!(self.origin, Origin::Cluster(_))
    }

    /// Whether there is anything that could be acted upon.
    #[must_use]
    pub fn synced(&self) -> bool {
        match &self.origin {
            Origin::Files { .. } => true,
            Origin::Cluster(cluster) => cluster.synced(),
        }
    }

    /// All objects as they are now.
    ///
    /// # Errors
    ///
    /// When files cannot be read.
    pub fn snapshot(&mut self) -> Result<Snapshot, SourceError> {
        match &mut self.origin {
            Origin::Files { files, .. } => files.snapshot(),
            Origin::Cluster(cluster) => Ok(cluster.snapshot()),
        }
    }

    /// Where the objects are, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.origin {
            Origin::Files { files, .. } => {
                let paths: Vec<_> =
                    files.paths().iter().map(|path| path.display().to_string()).collect();
                paths.join(", ")
            }
            Origin::Cluster(cluster) => cluster.server().to_owned(),
        }
    }

    /// Tells the authors of objects what is not acted upon.
    pub fn complain(&self, rejections: &[Rejection]) {
        if let Origin::Cluster(cluster) = &self.origin {
            cluster.complain(rejections);
        }
    }

    /// What is wrong with the source itself.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        match &self.origin {
            Origin::Files { .. } => Vec::new(),
            Origin::Cluster(cluster) => cluster.problems(),
        }
    }

    /// When the API server was last heard of, if there is one.
    #[must_use]
    pub fn heard(&self) -> Option<Heard> {
        match &self.origin {
            Origin::Files { .. } => None,
            Origin::Cluster(cluster) => Some(cluster.heard()),
        }
    }

    /// For `vpc-gateway status`.
    #[must_use]
    pub fn status(&self) -> SourceStatus {
        match &self.origin {
            Origin::Files { .. } => SourceStatus { synced: true, ..SourceStatus::default() },
            Origin::Cluster(cluster) => cluster.status(),
        }
    }
}
