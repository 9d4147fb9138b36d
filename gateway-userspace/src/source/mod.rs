//! Where objects come from: raw objects and where each one stands, no decisions.

mod decode;
mod deserialize;
pub mod feed;
pub mod files;
pub mod kube;
mod node;
pub mod pods;
pub mod yaml;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use self::pods::Pods;
use crate::crd::{Object, ObjectRef};
use crate::rejection::{Note, Origin, Rejection};

/// Everything a source holds at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The objects, in the order of the input.
    pub objects: Vec<Arc<SourceObject>>,
    /// The documents that are not objects of a kind we know, or have fields that do not exist.
    pub rejections: Vec<Rejection>,
    /// The documents that were left alone.
    pub notes: Vec<Note>,
    /// Who gives addresses to the EIPs.
    pub addressing: Addressing,
    /// The pods and namespaces.
    pub pods: Arc<Pods>,
}

/// Who gives addresses to EIPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// The user, and where `spec` has none we choose one.
    #[default]
    Ours,
    /// kube-ovn-controller, which writes them into `status`.
    Cluster,
}

/// An object and where it stands.
#[derive(Clone, Debug)]
pub struct SourceObject {
    /// Where the object begins.
    pub origin: Origin,
    /// The object.
    pub object: Object,
    /// The line of each field of `spec` and of each annotation, for messages.
    pub(crate) lines: Box<[(Box<str>, u32)]>,
    /// Of two objects that want the same and are not active, the lower rank has it: when it was made in a
    /// cluster, the place in the input among files.
    pub rank: i64,
}

/// What happened to the objects of a source since it was last asked.
#[derive(Clone, Debug)]
pub enum Changes {
    /// Anything may have.
    Any,
    /// These came, changed or went, in this order; everything else is as it was.
    Few(Vec<Changed>),
}

impl Default for Changes {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Changes {
    /// Adds what came afterwards.
    pub fn extend(&mut self, later: Self) {
        match (&mut *self, later) {
            (Self::Few(few), Self::Few(more)) => few.extend(more),
            (_, Self::Any) => *self = Self::Any,
            (Self::Any, _) => {}
        }
    }

    /// Whether some rules came or changed and nothing else did.
    #[must_use]
    pub fn are_new_rules(&self) -> bool {
        let is_new = |it: &Changed| it.object.kind.is_rule() && it.now.is_some();
        matches!(self, Self::Few(few) if !few.is_empty() && few.iter().all(is_new))
    }

    /// Adds one more.
    pub fn push(&mut self, changed: Changed) {
        if let Self::Few(few) = self {
            few.push(changed);
        }
    }
}

/// An object that came, changed or went.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Which one.
    pub object: ObjectRef,
    /// What it is now, if it is there.
    pub now: Option<Arc<SourceObject>>,
}

impl SourceObject {
    /// The reference to the object.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        self.object.object_ref()
    }

    /// Where the field of that path stands; where the object begins if the field is absent.
    #[must_use]
    pub fn origin_of(&self, field: &str) -> Origin {
        self.lines
            .iter()
            .find(|(path, _)| **path == *field)
            .map_or_else(|| self.origin.clone(), |(_, line)| self.origin.at(*line))
    }
}

/// The input as a whole cannot be used. Whatever ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// An I/O error.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file beyond [`yaml::MAX_FILE_BYTES`].
    #[error("failed to read {}: {bytes} bytes, expected at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A directory without manifests.
    #[error("failed to find manifests in {}, expected *.yaml, *.yml or *.json", path.display())]
    NoFiles {
        /// The directory.
        path: PathBuf,
    },
}
