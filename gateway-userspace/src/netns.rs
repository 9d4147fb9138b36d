//! Entering a network namespace, and nothing but that: the mount namespace stays, so that bpffs
//! and its pins are those of the caller.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// The namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} network namespace {}", path.display())]
pub struct NetnsError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The file of a namespace that is given as a path or as a name of `ip netns`.
#[must_use]
pub fn path(name: &Path) -> PathBuf {
    if name.components().count() == 1 { Path::new("/run/netns").join(name) } else { name.into() }
}

/// Moves the calling thread into the namespace. Threads that it starts later are there too.
///
/// # Errors
///
/// When there is no such namespace or the privilege is missing.
pub fn enter(path: &Path) -> Result<(), NetnsError> {
    let failed = |operation| move |source| NetnsError { operation, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed("open"))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| failed("enter")(error.into()))
}
