//! A gateway pod as kube-ovn-controller finds it: a namespace with `eth0` and `net1`, the environment
//! of the container, and the script in the image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gateway_userspace::state_dir::StateDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::addresses::{X, v6};
use super::cleanup::{self, Undo};
use super::gateway::{PINS, detach_quietly};
use super::netns;
use super::topology::Topology;
use super::wait::wait_until;

/// The scripts of the image.
pub const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/image");

/// How kube-ovn-controller runs a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Since v1.17: `bash SCRIPT VERB RULE...`.
    Words,
    /// Before: `/bin/bash -c "bash SCRIPT VERB RULE..."`.
    Line,
}

/// A gateway pod; dropped, its daemon is killed and its data plane removed.
#[derive(Debug)]
pub struct Pod {
    name: String,
    netns: PathBuf,
    binary: PathBuf,
    path: PathBuf,
    state: PathBuf,
    /// More options of `run` for the daemon.
    pub options: String,
    _undo: Undo,
}

impl Pod {
    /// A pod in the gateway namespace of a topology, whose name it has. Nothing runs in it yet.
    ///
    /// # Errors
    /// The file system refuses the directories.
    pub fn new(net: &Topology, binary: &Path) -> Result<Self> {
        let (name, netns) = (net.name.clone(), net.gateway.path());
        let (path, state) = (net.scratch.join("bin"), net.scratch.join("pod"));
        fs::create_dir_all(&path)?;
        let program = path.join("vpc-gateway");
        if !program.exists() {
            symlink(binary, program)?;
        }
        let undo = {
            let (binary, name, netns, state) =
                (binary.to_owned(), name.clone(), netns.clone(), state.clone());
            let remove = move || remove(&binary, &name, &netns, &state);
            cleanup::make(|| Ok(()), |()| Box::new(remove))?.1
        };
        let (binary, options) = (binary.to_owned(), String::new());
        Ok(Self { name, netns, binary, path, state, options, _undo: undo })
    }

    /// A command with the environment of the container, to be run in its namespace.
    pub fn command(&self, program: &str) -> Command {
        let paths = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .env("PATH", format!("{}:{paths}", self.path.display()))
            .env("GATEWAY_V4", X.to_string())
            .env("GATEWAY_V6", v6(X).to_string())
            .env("VPC_GATEWAY_NAME", &self.name)
            .env("VPC_GATEWAY_STATE_DIR", &self.state)
            .env("VPC_GATEWAY_OPTIONS", &self.options)
            .stdin(Stdio::null());
        command
    }

    /// The command of a verb.
    pub fn verb(&self, form: Form, verb: &str, rules: &[String]) -> Command {
        let script = format!("{IMAGE}/nat-gateway.sh");
        match form {
            Form::Words => {
                let mut command = self.command("bash");
                command.arg(script).arg(verb).args(rules);
                command
            }
            Form::Line => {
                let mut command = self.command("/bin/bash");
                command.arg("-c").arg(format!("bash {script} {verb} {}", rules.join(" ")));
                command
            }
        }
    }

    /// Runs a command in the namespace of the pod.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, command: &mut Command) -> Result<Output> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                netns::enter_this_thread(&self.netns)?;
                command.output().with_context(|| format!("failed to run {command:?}"))
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a verb and returns what it printed and how it ended.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn exec(&self, verb: &str, rules: &[&str]) -> Result<Output> {
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        self.run(&mut self.verb(Form::Words, verb, &rules))
    }

    /// Runs a verb that must succeed, in the sense of the controller: exit code 0, and nothing on
    /// standard error. Returns its standard output.
    ///
    /// # Errors
    /// It does not.
    pub fn must(&self, verb: &str, rules: &[&str]) -> Result<String> {
        succeeded(&self.exec(verb, rules)?).with_context(|| format!("{verb} {rules:?}"))
    }

    /// Runs a verb that must fail with this exit code. Returns its standard error.
    ///
    /// # Errors
    /// It ends otherwise, or without a word.
    pub fn must_not(&self, code: i32, verb: &str, rules: &[&str]) -> Result<String> {
        let output = self.exec(verb, rules)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let ended = output.status.code();
        ensure!(ended == Some(code), "{verb} {rules:?} ended with {ended:?}: {said}");
        ensure!(!said.is_empty(), "{verb} {rules:?} failed without a word");
        Ok(said)
    }

    /// The JSON of a verb that shows something.
    ///
    /// # Errors
    /// It prints something else.
    pub fn json(&self, verb: &str) -> Result<Value> {
        let mut command = self.command(&self.binary.display().to_string());
        command.args([verb, "--gateway", &self.name, "--json"]);
        command.arg("--state-dir").arg(&self.state);
        let output = self.run(&mut command)?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{verb} printed {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Process id of the daemon, if it runs.
    pub fn daemon(&self) -> Option<Pid> {
        daemon(&self.name, &self.state)
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn kill_daemon(&self) -> Result<()> {
        let pid = self.daemon().context("the daemon does not run")?;
        kill(pid, Signal::SIGKILL)?;
        let ended = || Ok(gone(&self.name, &self.state));
        wait_until("the daemon to end", Duration::from_secs(5), ended)
    }

    /// Ends the pod: the daemon, the data plane, and everything in the container's file system.
    pub fn recreate(&self) {
        remove(&self.binary, &self.name, &self.netns, &self.state);
    }

    /// Removes the container's file system and the pins, which the daemon must not use any more.
    pub fn forget(&self) {
        let _ = fs::remove_dir_all(self.state.join(&self.name));
        let _ = fs::remove_dir_all(Path::new(PINS).join(&self.name));
    }

    /// The ledger on the disk.
    pub fn ledger(&self) -> PathBuf {
        self.state.join(&self.name).join("ledger")
    }

    /// What helps to understand a failure.
    pub fn diagnostics(&self) -> String {
        let directory = self.state.join(&self.name);
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        let status = self.json("status").map_or_else(|e| format!("{e:#}"), |json| json.to_string());
        format!("--- log\n{}--- ledger\n{}--- status\n{status}", read("daemon.log"), read("ledger"))
    }
}

/// Whether a verb has succeeded as kube-ovn-controller sees it. Returns its standard output.
///
/// # Errors
/// It has not.
pub fn succeeded(output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !said.is_empty() {
        bail!("{}, standard error: {said:?}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn daemon(name: &str, state: &Path) -> Option<Pid> {
    let pid = fs::read_to_string(state.join(name).join("lock")).ok()?;
    let pid: i32 = pid.trim().parse().ok()?;
    // The number may be somebody else's by now. A process that is dead and not waited for has no words.
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = String::from_utf8_lossy(&words).split('\0').any(|word| word == name);
    ours.then(|| Pid::from_raw(pid))
}

/// A process that is being killed has no words any more before it lets go of its files.
fn gone(name: &str, state: &Path) -> Option<()> {
    let directory = StateDir::new(state, name).ok()?;
    directory.holder().is_none().then_some(())
}

fn remove(binary: &Path, name: &str, netns: &Path, state: &Path) {
    if let Some(pid) = daemon(name, state) {
        let _ = kill(pid, Signal::SIGKILL);
        let _ = wait_until("the end", Duration::from_secs(5), || Ok(gone(name, state)));
    }
    detach_quietly(binary, name, netns, state);
}
