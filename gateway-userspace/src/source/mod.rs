//! Where objects come from: raw objects and where each one stands, no decisions.

mod decode;
mod deserialize;
mod node;
pub mod yaml;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

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
