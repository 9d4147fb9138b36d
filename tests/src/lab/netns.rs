//! Network namespaces, entered with `setns`: the mount namespace stays, so pins under `/sys/fs/bpf` do too.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::cleanup::{self, Undo};

/// A named network namespace of this lab, removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    undo: Undo,
}

impl Netns {
    /// Creates the namespace with loopback up, no reverse-path filter and no ICMP redirects.
    ///
    /// # Errors
    /// No privilege, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        let ((), undo) = cleanup::make(
            || run(Command::new("ip").args(["netns", "add", name])).map(drop),
            |()| {
                let name = name.to_owned();
                Box::new(move || remove(&name))
            },
        )?;
        let ns = Self { name: name.to_owned(), undo };
        ns.enter(|| -> Result<()> {
            for family in ["ipv4", "ipv6"] {
                for scope in ["all", "default"] {
                    quiet_neighbourhood(family, scope)?;
                }
            }
            Ok(())
        })??;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// The name, as in `ip netns list`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Leaves the namespace in place for good.
    pub fn keep(self) {
        self.undo.forget();
    }

    /// Runs `work` on a thread of its own inside the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// Passes on a panic of `work`.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter_this_thread(&path)?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside and returns its standard output.
    ///
    /// # Errors
    /// The command is missing or fails; the error carries what it printed.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.enter(|| run(command))?
    }

    /// Runs `ip` with one line of arguments.
    ///
    /// # Errors
    /// `ip` refuses it.
    pub fn ip(&self, line: &str) -> Result<String> {
        self.output(Command::new("ip").args(line.split_whitespace()))
    }

    /// Runs several `ip` lines in one process.
    ///
    /// # Errors
    /// `ip` refuses one of them.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        let script = lines.join("\n") + "\n";
        self.enter(|| feed(Command::new("ip").args(["-batch", "-"]), &script))?
            .with_context(|| format!("in namespace {}:\n{script}", self.name))
    }

    /// Sets a `net.` sysctl, given as `ipv4/ip_forward`.
    ///
    /// # Errors
    /// The kernel has no such setting or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| write_sysctl(key, value))?
    }
}

/// Moves the calling thread into a namespace, for threads that stay there until they end.
///
/// # Errors
/// The namespace is gone or the privilege is missing.
pub fn enter_this_thread(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    setns(&file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("failed to enter {}", path.display()))
}

/// Removes a namespace by name; nothing happens if it is gone.
pub fn remove(name: &str) {
    let _ = Command::new("ip")
        .args(["netns", "delete", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// The command is missing or fails; the error carries what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("failed to run {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{text}{errors}", output.status);
    }
    Ok(text)
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Loose reverse-path checks, no redirects, and addresses that are usable at once.
fn quiet_neighbourhood(family: &str, scope: &str) -> Result<()> {
    let settings: &[(&str, &str)] = if family == "ipv4" {
        &[("rp_filter", "0"), ("send_redirects", "0"), ("accept_redirects", "0")]
    } else {
        &[("accept_dad", "0"), ("accept_ra", "0"), ("accept_redirects", "0")]
    };
    if !Path::new("/proc/sys/net").join(family).exists() {
        return Ok(());
    }
    for (name, value) in settings {
        write_sysctl(&format!("{family}/conf/{scope}/{name}"), value)?;
    }
    Ok(())
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    fs::write(&path, value).with_context(|| format!("failed to set {} to {value}", path.display()))
}
