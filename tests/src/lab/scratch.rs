//! A directory for configurations, logs and served files, removed on drop.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cleanup::{self, Undo};
use super::wait::wait_until;

/// A directory of this lab.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    undo: Undo,
}

impl Scratch {
    /// Makes the directory `name` under the system's directory for temporary files.
    ///
    /// # Errors
    /// It exists or cannot be made.
    pub fn create(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(name);
        let ((), undo) = cleanup::make(
            || fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display())),
            |()| {
                let path = path.clone();
                Box::new(move || remove(&path))
            },
        )?;
        Ok(Self { path, undo })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file and returns its path.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.join(name);
        fs::write(&path, contents)
            .with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// Leaves it in place for good.
    pub fn keep(self) {
        self.undo.forget();
    }
}

/// Removes a directory in which a process that is being killed may still write for a moment.
fn remove(path: &Path) {
    let gone = || Ok((fs::remove_dir_all(path).is_ok() || !path.exists()).then_some(()));
    let _ = wait_until("the directory to go", Duration::from_secs(1), gone);
}
