//! The settings under `/proc/sys/net` that the data path depends on.
//!
//! These files show the network namespace of the process that opens them, wherever procfs was
//! mounted.

use std::fs;
use std::io;
use std::path::PathBuf;

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

/// Makes the settings that are not there yet.
///
/// Returns what was changed, as `name = value`, and what was refused. A family that the kernel
/// does not have is left out.
pub fn ensure(internal: &str, external: &str) -> (Vec<String>, Vec<SysctlError>) {
    let (mut changed, mut errors) = (Vec::new(), Vec::new());
    for (parts, value) in needed(internal, external) {
        let path: PathBuf =
            ["/proc/sys/net"].into_iter().chain(parts.iter().map(String::as_str)).collect();
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
