//! Tells when manifests changed: in place, renamed over, or by a swapped symlink.
//!
//! inotify on the directories wakes; whether something really changed is decided by comparing
//! what `stat` says of every file. Where inotify sees nothing (a symlink into another directory, a
//! network file system) the comparison alone finds it a few seconds later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;

use crate::privilege;

/// Device, inode, size, and time of the last change of a file.
pub(crate) type Stamp = (u64, u64, u64, i64, i64);

/// Watches files, and directories without those inside them.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    events: Option<mpsc::Receiver<()>>,
    seen: BTreeMap<PathBuf, Stamp>,
}

impl Watch {
    /// Starts watching. What is there at this moment counts as seen.
    pub fn new(paths: &[PathBuf]) -> Self {
        let events = events(paths).map_err(|error| {
            eprintln!("watch: no inotify ({error}), looking at the files every few seconds");
        });
        Self { paths: paths.to_vec(), events: events.ok(), seen: stamps(paths) }
    }

    /// Waits until something happens in one of the directories, which need not be a change.
    pub async fn woken(&mut self) {
        if let Some(events) = &mut self.events
            && events.recv().await.is_some()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// Whether a file came, went or changed since this was last asked.
    pub fn changed(&mut self) -> bool {
        let now = stamps(&self.paths);
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

/// A thread of its own waits for inotify, so that nothing here has to be non-blocking.
fn events(paths: &[PathBuf]) -> io::Result<mpsc::Receiver<()>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB;
    for directory in directories(paths) {
        inotify.add_watch(&directory, flags)?;
    }
    // One slot: an event that waits covers those that come after it.
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new().name("watch".into()).spawn(move || {
        // What it watches is chosen already. A thread that keeps more than it needs is still a good one.
        let _ = privilege::keep(&[]);
        while let Ok(_) | Err(Errno::EINTR) = inotify.read_events() {
            if let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Every directory in which a name or its target can change.
fn directories(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    for path in paths {
        if path.is_dir() {
            directories.insert(path.clone());
            continue;
        }
        let target = fs::canonicalize(path).ok();
        for file in [Some(path.clone()), target].into_iter().flatten() {
            let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            directories.insert(parent.unwrap_or(Path::new(".")).to_owned());
        }
    }
    directories
}

fn stamps(paths: &[PathBuf]) -> BTreeMap<PathBuf, Stamp> {
    let mut stamps = BTreeMap::new();
    for path in paths {
        stamp(path, &mut stamps);
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            stamp(&entry.path(), &mut stamps);
        }
    }
    stamps
}

fn stamp(path: &Path, stamps: &mut BTreeMap<PathBuf, Stamp>) {
    if let Some(stamp) = stamp_of(path) {
        stamps.insert(path.to_owned(), stamp);
    }
}

/// What `stat` says of a file.
pub(crate) fn stamp_of(path: &Path) -> Option<Stamp> {
    // Follows symlinks: the target is what is read.
    let file = fs::metadata(path).ok().filter(|file| !file.is_dir())?;
    Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_seen_in_place_by_rename_and_by_symlink() {
        let root = std::env::temp_dir().join(format!("vpc-gateway-watch-{}", std::process::id()));
        for version in ["..v1", "..v2"] {
            fs::create_dir_all(root.join(version)).unwrap();
            fs::write(root.join(version).join("gw.yaml"), version).unwrap();
        }
        let link = |version: &str| {
            let fresh = root.join("..data.new");
            std::os::unix::fs::symlink(version, &fresh).unwrap();
            fs::rename(fresh, root.join("..data")).unwrap();
        };
        link("..v1");
        std::os::unix::fs::symlink("..data/gw.yaml", root.join("gw.yaml")).unwrap();
        fs::write(root.join("more.yaml"), "a").unwrap();

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut watch = Watch::new(std::slice::from_ref(&root));
        assert!(!watch.changed());
        link("..v2");
        runtime.block_on(watch.woken());
        assert!(watch.changed());
        fs::write(root.join("more.yaml"), "longer").unwrap();
        assert!(watch.changed());
        fs::write(root.join("new"), "longer").unwrap();
        fs::rename(root.join("new"), root.join("more.yaml")).unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
        fs::remove_dir_all(&root).unwrap();
    }
}
