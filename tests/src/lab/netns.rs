//! Network namespaces, entered with `setns`: the mount namespace stays, so pins under `/sys/fs/bpf` do too.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

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
            || add(name),
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

    /// A namespace that somebody else has made at an absolute path, which is its name, and removes.
    pub fn adopt(path: &str) -> Self {
        Self { name: path.to_owned(), undo: Undo::nothing() }
    }

    /// The name, as `ip` takes it.
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
        self.enter(|| {
            finish(Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()), &script)
        })?
        .map(drop)
        .with_context(|| format!("in namespace {}:\n{script}", self.name))
    }

    /// Makes every neighbour whose address is known fail, so that the next packet asks for it again.
    ///
    /// They are not flushed: `ip neigh flush` comes round again and deletes those that are being asked for,
    /// with the packets that wait for the answer (drop reason `NEIGH_FAILED`).
    ///
    /// # Errors
    /// Missing privilege, or a neighbour went meanwhile.
    pub fn fail_neighbours(&self) -> Result<()> {
        let list: Vec<Value> = serde_json::from_str(&self.ip("-json neighbour show")?)?;
        let known = list.iter().filter(|entry| entry["lladdr"].is_string());
        let line = |entry: &Value| {
            let (address, device) = (entry["dst"].as_str()?, entry["dev"].as_str()?);
            Some(format!("neighbour change {address} dev {device} nud failed"))
        };
        let lines: Option<Vec<_>> = known.map(line).collect();
        let lines = lines.context("a neighbour without an address or a device")?;
        ensure!(!lines.is_empty(), "{} has no neighbours", self.name);
        self.ip_batch(&lines)
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

fn add(name: &str) -> Result<()> {
    let output = Command::new("ip").args(["netns", "add", name]).output();
    let output = output.context("failed to run `ip`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed to add the namespace {name}: {}", said.trim());
    Ok(())
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
    let output = finish(command.stdin(Stdio::null()), "")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command in a process group of its own, which does not outlive this process.
fn finish(command: &mut Command, input: &str) -> Result<Output> {
    let shown = format!("{command:?}");
    let (mut child, undo) = cleanup::make(
        || {
            let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let spawned = command.process_group(0).spawn();
            spawned.with_context(|| format!("failed to run {shown}"))
        },
        |child| {
            let group = Pid::from_raw(child.id().cast_signed());
            Box::new(move || {
                let _ = killpg(group, Signal::SIGKILL);
            })
        },
    )?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    undo.forget();
    if !output.status.success() {
        let (said, errors) = (&output.stdout, &output.stderr);
        let text = format!("{}{}", String::from_utf8_lossy(said), String::from_utf8_lossy(errors));
        bail!("{shown}: {}\n{}", output.status, text.trim());
    }
    Ok(output)
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
