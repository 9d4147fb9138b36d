//! A directory for configurations, logs and served files, removed on drop.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cleanup::{self, Undo};

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
                Box::new(move || drop(fs::remove_dir_all(path)))
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
