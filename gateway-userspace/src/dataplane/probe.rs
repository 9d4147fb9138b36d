//! What this process may do and what this kernel can, asked before anything is touched.

use std::fs;

use nix::sys::utsname::uname;

/// The oldest kernel that is supported.
const OLDEST: (u32, u32) = (5, 15);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Something that must be there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No privilege.
    #[error(
        "{0} is missing; run as root, or give the process CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW"
    )]
    Capability(&'static str),
    /// The kernel is too old.
    #[error("kernel {release} is too old, {}.{} or newer is needed", OLDEST.0, OLDEST.1)]
    Kernel {
        /// What `uname -r` says.
        release: String,
    },
}

/// Checks privileges and kernel version.
///
/// # Errors
///
/// When something is missing: what, and how to get it, in one line.
pub fn check() -> Result<(), ProbeError> {
    if let Ok(release) = uname().map(|name| name.release().to_string_lossy().into_owned())
        && version(&release).is_some_and(|version| version < OLDEST)
    {
        return Err(ProbeError::Kernel { release });
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(effective) = effective(&status) else { return Ok(()) };
    let has = |capability: u32| effective & (1 << capability) != 0;
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        return Err(ProbeError::Capability("CAP_BPF"));
    }
    if !has(CAP_NET_ADMIN) {
        return Err(ProbeError::Capability("CAP_NET_ADMIN"));
    }
    Ok(())
}

/// The two first numbers of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The effective capabilities in `/proc/self/status`.
fn effective(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert!(version("5.4.0").is_some_and(|version| version < OLDEST));
        assert!(version("6.1.0-13-amd64").is_some_and(|version| version > OLDEST));
    }

    #[test]
    fn capabilities_are_hexadecimal() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    }
}
