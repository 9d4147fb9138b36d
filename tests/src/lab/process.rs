//! Child processes in their own process groups, with their output in a file, killed on drop.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::cleanup::{self, Undo};
use super::wait::wait_until;

/// A running child of the lab.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    undo: Option<Undo>,
}

impl Process {
    /// Starts `command` as the leader of a new process group; both output streams go to `log`.
    ///
    /// Called inside [`super::netns::Netns::enter`], the child lives in that namespace.
    ///
    /// # Errors
    /// The program is missing or the log cannot be written.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        let errors = output.try_clone()?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let (child, undo) = cleanup::make(
            || command.spawn().with_context(|| format!("failed to start {command:?}")),
            |child| {
                let group = group_of(child);
                Box::new(move || {
                    let _ = killpg(group, Signal::SIGKILL);
                })
            },
        )?;
        Ok(Self { child, log: log.to_owned(), undo: Some(undo) })
    }

    /// The process id, which is also the id of the process group.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to the whole group.
    ///
    /// # Errors
    /// The group is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        killpg(group_of(&self.child), signal)
            .with_context(|| format!("failed to send {signal} to {}", self.child.id()))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// It still runs after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        wait_until("the process to end", patience, || Ok(self.exited()))
    }

    /// Leaves it running for good.
    pub fn keep(mut self) {
        if let Some(undo) = self.undo.take() {
            undo.forget();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take() {
            drop(undo);
            let _ = self.child.wait();
        }
    }
}

fn group_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}
