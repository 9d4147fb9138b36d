//! The directory of one gateway outside bpffs: lock, status, and what must not be forgotten.
//!
//! | file | what |
//! |---|---|
//! | `lock` | held by the daemon, contains its process id |
//! | `status.json` | [`crate::status::Status`] |
//! | `allocations.json` | [`crate::desired::Allocations`] |
//! | `owned.json` | the addresses and routes that we added: [`crate::host::HostState`] |
//! | `sysctls.json` | the settings as they were before: [`crate::host::sysctl::Found`] |
//! | `pod.json` | whose it is, if an agent made it: [`crate::agent`] |

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where the directories of all gateways are, unless `--state-dir` says otherwise.
pub const DEFAULT: &str = "/run/vpc-gateway";

/// How often and how long a lock is asked for: whoever asks for the status holds it for a moment.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A file of the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
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
    /// The file is not what was written.
    #[error("failed to parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// Another daemon runs.
    #[error("gateway {gateway} is already run by process {pid} (it holds {})", lock.display())]
    Locked {
        /// The gateway.
        gateway: String,
        /// The process, as far as it is known.
        pid: String,
        /// The lock.
        lock: PathBuf,
    },
    /// The name cannot be part of a path.
    #[error("{0} is not the name of a gateway, expected letters, digits, - and .")]
    Name(String),
}

/// The directory of one gateway.
#[derive(Clone, Debug)]
pub struct StateDir {
    gateway: String,
    path: PathBuf,
}

/// The lock, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _held: File,
}

impl StateDir {
    /// The directory for the gateway of that name, which need not exist.
    ///
    /// # Errors
    ///
    /// [`StateError::Name`] if the name cannot be part of a path.
    pub fn new(root: &Path, gateway: &str) -> Result<Self, StateError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if gateway.is_empty() || gateway.starts_with('.') || !gateway.bytes().all(plain) {
            return Err(StateError::Name(gateway.to_owned()));
        }
        Ok(Self { gateway: gateway.to_owned(), path: root.join(gateway) })
    }

    /// The directory of the agent of a node, which no gateway can have.
    #[must_use]
    pub fn of_agent(root: &Path) -> Self {
        Self { gateway: "agent".to_owned(), path: root.join("_agent") }
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the directory.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn make(&self) -> Result<(), StateError> {
        fs::create_dir_all(&self.path).map_err(failed("make", &self.path))
    }

    /// Makes the directory and takes the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::Locked`] if another process has it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        self.make()?;
        let path = self.file("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open", &path))?;
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => {
                    write_pid(&mut file).map_err(failed("write", &path))?;
                    return Ok(Lock { _held: file });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            }
        }
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        let pid = pid.trim().to_owned();
        Err(StateError::Locked { gateway: self.gateway.clone(), pid, lock: path })
    }

    /// The process that holds the lock, if any does.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        let mut file = File::open(self.file("lock")).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).ok()?;
                pid.trim().parse().ok()
            }
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    /// Reads a file; `None` if it is not there.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let path = self.file(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| StateError::Parse { path, source })
    }

    /// Writes a file: a new one beside it, then renamed, so that nobody reads half of it.
    ///
    /// # Errors
    ///
    /// When the directory is not writable or the disk is full.
    pub fn save<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let (path, fresh) = (self.file(name), self.file(&format!(".{name}.new")));
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|source| StateError::Parse { path: path.clone(), source })?;
        text.push(b'\n');
        fs::write(&fresh, text).map_err(failed("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(failed("replace", &path))
    }

    /// Removes the directory and everything in it. Nothing happens if it is not there.
    ///
    /// # Errors
    ///
    /// When something cannot be removed.
    pub fn remove(&self) -> Result<(), StateError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &self.path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_holder() {
        let root = std::env::temp_dir().join(format!("vpc-gateway-lock-{}", std::process::id()));
        let directory = StateDir::new(&root, "gw-1").unwrap();
        assert_eq!(directory.holder(), None);
        let lock = directory.lock().unwrap();
        let error = directory.lock().unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("gw-1 is already run by process {pid}")), "{error}");
        assert_eq!(directory.holder(), Some(pid));
        drop(lock);
        assert_eq!(directory.holder(), None);
        directory.lock().unwrap();
        directory.remove().unwrap();
        directory.remove().unwrap();
    }

    #[test]
    fn a_name_is_no_path() {
        for bad in ["", "..", ".hidden", "a/b", "a b"] {
            assert!(StateDir::new(Path::new("/tmp"), bad).is_err(), "{bad:?}");
        }
        assert!(StateDir::new(Path::new("/tmp"), "vpc.gw-1").is_ok());
    }
}
