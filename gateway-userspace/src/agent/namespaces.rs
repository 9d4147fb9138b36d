//! The network namespaces of pods: what tells them apart, and who is asked for them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cri::{Runtime, Socket};
use super::procfs;

/// How long a container runtime may take for one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What tells a network namespace from the others that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// A network namespace, kept open, so that it stays what it is whatever becomes of the processes in it.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) file: File,
    pub(super) identity: Identity,
}

fn identity(metadata: &fs::Metadata) -> Identity {
    Identity { device: metadata.dev(), inode: metadata.ino() }
}

/// The namespaces of this process and of the node: there is nothing to attach to.
pub(super) struct Nobody {
    own: Option<Identity>,
    node: Option<Identity>,
}

impl Nobody {
    /// `proc` is the procfs of the node.
    pub(super) fn find(proc: &Path) -> Self {
        let of = |path: &Path| fs::metadata(path).ok().map(|metadata| identity(&metadata));
        Self { own: of(Path::new("/proc/self/ns/net")), node: of(&proc.join("1/ns/net")) }
    }
}

/// Opens a network namespace that is one of a pod.
pub(super) fn open(path: &Path, nobody: &Nobody) -> Option<Namespace> {
    let file = File::open(path).ok()?;
    let identity = identity(&file.metadata().ok()?);
    // A file that CNI made and nobody has bound a namespace to yet is on another device.
    let is_namespace = nobody.own.is_none_or(|own| own.device == identity.device);
    let of_a_pod = nobody.own != Some(identity) && nobody.node != Some(identity);
    (is_namespace && of_a_pod).then_some(Namespace { file, identity })
}

/// Who knows the namespaces of the pods of a node.
#[derive(Clone, Debug)]
pub struct Places {
    /// The procfs in which the processes of all pods are to be seen.
    pub proc: PathBuf,
    /// The container runtime, if it is to be asked.
    pub runtime: Option<Socket>,
}

impl Places {
    /// Finds the namespaces of the pods that have one.
    ///
    /// # Errors
    ///
    /// When nobody tells, in one line.
    pub(super) async fn namespaces<'u>(
        &self,
        uids: &[&'u str],
    ) -> Result<BTreeMap<&'u str, Namespace>, String> {
        let Some(socket) = &self.runtime else {
            let no_proc = |error: io::Error| {
                format!("failed to look for processes in {}: {error}", self.proc.display())
            };
            return procfs::namespaces(&self.proc, uids).map_err(no_proc);
        };
        let runtime = Runtime::new(socket, PATIENCE).map_err(|error| error.to_string())?;
        runtime.namespaces(&self.proc, uids).await.map_err(|error| error.to_string())
    }

    /// Why a pod has no namespace.
    pub(super) fn nothing_of(&self, uid: &str) -> String {
        match &self.runtime {
            Some(socket) => format!("{socket} has no sandbox of pod {uid} that is ready"),
            None => format!("no process in {} has a cgroup of pod {uid}", self.proc.display()),
        }
    }
}
