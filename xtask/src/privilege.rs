//! Root: whether we are it, how to become it, and what the kernel needs before programs load.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::console::Steps;
use crate::process;

/// The oldest kernel the programs are written for.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

const BPFFS: &str = "/sys/fs/bpf";

/// The capabilities that the lab uses, by bit.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")];

/// A way to run a command as root.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Privilege {
    /// We are root.
    Root,
    /// Through `sudo`.
    Sudo,
}

impl Privilege {
    /// Finds a way, `None` if there is none.
    pub(crate) fn find() -> Option<Self> {
        if is_root() {
            return Some(Self::Root);
        }
        process::find("sudo")?;
        if std::io::stdin().is_terminal() {
            return Some(Self::Sudo);
        }
        // Nobody could type a password.
        let mut probe = Command::new("sudo");
        probe.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success()).then_some(Self::Sudo)
    }

    /// A command that runs `program` as root, with the variables and `PATH` of this process.
    pub(crate) fn command(
        self,
        program: impl AsRef<OsStr>,
        variables: &[(&str, OsString)],
    ) -> Command {
        match self {
            Self::Root => {
                let mut command = Command::new(program);
                command.envs(variables.iter().map(|(name, value)| (name, value)));
                command
            }
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg("env");
                let path = ("PATH", std::env::var_os("PATH").unwrap_or_default());
                for (name, value) in variables.iter().chain(std::iter::once(&path)) {
                    let mut assignment = OsString::from(*name);
                    assignment.push("=");
                    assignment.push(value);
                    command.arg(assignment);
                }
                command.arg(program);
                command
            }
        }
    }
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|meta| meta.uid() == 0)
}

/// Checks what loading programs needs, and mounts the BPF file system if it is not mounted.
///
/// # Errors
///
/// Something is missing: one line for each thing, with what to do about it.
pub(crate) fn require_kernel(steps: Steps) -> Result<Privilege> {
    let mut missing = Vec::new();
    missing.extend(old_kernel(&read("/proc/sys/kernel/osrelease")));
    let privilege = Privilege::find();
    match privilege {
        None => missing.push(
            "not root, and no sudo that works without a password: run this as root".to_owned(),
        ),
        Some(privilege) => {
            if privilege == Privilege::Root {
                missing.extend(lacking_capabilities(&read("/proc/self/status")));
            }
            missing.extend(mount_bpffs(privilege, steps));
        }
    }
    match privilege {
        Some(privilege) if missing.is_empty() => Ok(privilege),
        _ => bail!("this machine cannot load the programs yet:\n  {}", missing.join("\n  ")),
    }
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// What is wrong with a kernel release like `6.1.0-13-amd64`; an unreadable one passes.
fn old_kernel(release: &str) -> Option<String> {
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let (major, minor) = OLDEST_KERNEL;
    (version < OLDEST_KERNEL).then(|| {
        format!("kernel {release} is older than {major}.{minor}: boot a newer one, or use a virtual machine")
    })
}

/// What is wrong with the effective capabilities in a text like `/proc/self/status`.
fn lacking_capabilities(status: &str) -> Option<String> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| mask & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    (!lacking.is_empty()).then(|| {
        let names = lacking.join(", ");
        format!("root without {names}: start the container with --privileged, or grant them")
    })
}

/// Mounts the BPF file system where maps are pinned; says what is wrong if that fails.
fn mount_bpffs(privilege: Privilege, steps: Steps) -> Option<String> {
    if is_bpffs_mounted(&read("/proc/mounts")) {
        return None;
    }
    let mut mount = privilege.command("mount", &[]);
    mount.args(["-t", "bpf", "bpf", BPFFS]);
    match process::read(&mut mount) {
        Ok(_) => {
            steps
                .say(format_args!("mounted the BPF file system at {BPFFS}, where maps are pinned"));
            None
        }
        Err(error) => Some(format!(
            "no BPF file system at {BPFFS}: run `mount -t bpf bpf {BPFFS}` as root ({error:#})"
        )),
    }
}

fn is_bpffs_mounted(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_15_are_named() {
        let text = old_kernel("5.10.0-28-amd64\n").unwrap();
        assert!(text.starts_with("kernel 5.10.0-28-amd64 is older than 5.15"), "{text}");
        assert_eq!(old_kernel("5.15.0"), None);
        assert_eq!(old_kernel("6.1.0-13-amd64"), None);
    }

    #[test]
    fn root_of_a_container_lacks_capabilities() {
        let text = lacking_capabilities("Name:\tx\nCapEff:\t00000000a80425fb\n").unwrap();
        assert!(text.contains("CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF"), "{text}");
        assert_eq!(lacking_capabilities("CapEff:\t000001fffeffffff\n"), None);
    }

    #[test]
    fn the_bpf_file_system_is_found_among_mounts() {
        let mounts = "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid 0 0\n";
        assert!(is_bpffs_mounted(mounts));
        assert!(!is_bpffs_mounted("tmpfs /sys/fs/bpf tmpfs rw 0 0\nbpf /run/bpf bpf rw 0 0\n"));
    }

    #[test]
    fn sudo_keeps_variables_and_path() {
        let command = Privilege::Sudo.command("tests", &[("A", "1".into())]);
        let line = process::line(&command);
        assert!(line.starts_with("sudo env A=1 PATH="), "{line}");
        assert!(line.ends_with(" tests"), "{line}");
    }
}
