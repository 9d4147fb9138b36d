//! The settings under `/proc/sys/net` that the data path depends on.
//!
//! These files show the network namespace of the process that opens them, wherever procfs was
//! mounted.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state_dir::{StateDir, StateError};

/// A setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to set {name} to {value}")]
pub struct SysctlError {
    /// The setting as `sysctl` names it.
    pub name: String,
    /// The value.
    pub value: &'static str,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// The settings that a gateway with these interfaces needs, as parts of a path, and their values.
///
/// `bpf_fib_lookup` answers only where forwarding is on. Without `promote_secondaries`, deleting
/// the first address of a prefix would delete all EIPs.
#[must_use]
pub fn needed(internal: &str, external: &str) -> Vec<([String; 4], &'static str)> {
    let path = |family: &str, interface: &str, name: &str| {
        [family.to_owned(), "conf".to_owned(), interface.to_owned(), name.to_owned()]
    };
    let mut settings =
        vec![(path("ipv4", "all", "forwarding"), "1"), (path("ipv6", "all", "forwarding"), "1")];
    for interface in [internal, external] {
        settings.push((path("ipv4", interface, "forwarding"), "1"));
        settings.push((path("ipv6", interface, "forwarding"), "1"));
    }
    settings.push((path("ipv4", external, "promote_secondaries"), "1"));
    settings
}

/// The file of the state directory that remembers the settings as they were before.
pub const FILE: &str = "sysctls.json";

/// A setting as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its file.
    path: PathBuf,
    /// What was in it.
    value: String,
}

fn path_of(parts: &[String; 4]) -> PathBuf {
    ["/proc/sys/net"].into_iter().chain(parts.iter().map(String::as_str)).collect()
}

/// Keeps the settings as they are before the first start, those first that change others.
///
/// # Errors
///
/// When the state directory is not writable.
pub fn remember(state: &StateDir, internal: &str, external: &str) -> Result<(), StateError> {
    if state.file(FILE).exists() {
        return Ok(());
    }
    let read = |(parts, _): ([String; 4], _)| {
        let path = path_of(&parts);
        let value = fs::read_to_string(&path).ok()?.trim().to_owned();
        Some(Found { path, value })
    };
    let found: Vec<_> = needed(internal, external).into_iter().filter_map(read).collect();
    state.save(FILE, &found)
}

/// Makes the settings what they were. An interface that is gone has none.
///
/// Returns what was refused.
pub fn restore(settings: &[Found]) -> Vec<String> {
    let restore = |setting: &Found| {
        let now = fs::read_to_string(&setting.path).ok()?;
        if now.trim() == setting.value {
            return None;
        }
        let error = fs::write(&setting.path, &setting.value).err()?;
        Some(format!("failed to set {} to {}: {error}", setting.path.display(), setting.value))
    };
    settings.iter().filter_map(restore).collect()
}

/// Makes the settings that are not there yet.
///
/// Returns what was changed, as `name = value`, and what was refused. A family that the kernel
/// does not have is left out.
pub fn ensure(internal: &str, external: &str) -> (Vec<String>, Vec<SysctlError>) {
    let (mut changed, mut errors) = (Vec::new(), Vec::new());
    for (parts, value) in needed(internal, external) {
        let path = path_of(&parts);
        let Ok(current) = fs::read_to_string(&path) else { continue };
        if current.trim() == value {
            continue;
        }
        // An interface name may have dots, which `sysctl` writes as slashes.
        let name = format!("net.{}", parts.map(|part| part.replace('.', "/")).join("."));
        match fs::write(&path, value) {
            Ok(()) => changed.push(format!("{name} = {value}")),
            Err(source) => errors.push(SysctlError { name, value, source }),
        }
    }
    (changed, errors)
}
