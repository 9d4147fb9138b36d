//! What a demo leaves behind on purpose (`--keep`) or because it was killed, and its removal.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::stage::PREFIX;
use crate::lab::gateway::{self, Settings};
use crate::lab::netns;
use crate::lab::topology::Topology;

const FILE: &str = "demo.json";

/// A demo, as written beside its logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    directory: PathBuf,
    owner: u32,
    /// Whether it was left running on purpose.
    pub kept: bool,
    namespaces: Vec<String>,
    gateway_namespace: PathBuf,
    binary: PathBuf,
    gateway: String,
    /// Leaders of the process groups that still run.
    pub processes: Vec<u32>,
}

impl Record {
    /// The record of a demo of this process.
    pub fn of(net: &Topology, settings: &Settings) -> Self {
        Self {
            directory: net.scratch.path().to_owned(),
            owner: std::process::id(),
            kept: false,
            namespaces: net.namespaces().map(|ns| ns.name().to_owned()).collect(),
            gateway_namespace: net.gateway.path(),
            binary: settings.binary.clone(),
            gateway: settings.name.clone(),
            processes: Vec::new(),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn write(&self) -> Result<()> {
        let record = json!({
            "owner": self.owner, "kept": self.kept, "namespaces": self.namespaces,
            "gateway_namespace": self.gateway_namespace, "binary": self.binary,
            "gateway": self.gateway, "processes": self.processes,
        });
        Ok(fs::write(self.directory.join(FILE), format!("{record:#}\n"))?)
    }

    fn read(directory: &Path) -> Option<Self> {
        let record: Value = serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()?;
        let text = |name: &str| record[name].as_str().map(str::to_owned);
        let number = |value: &Value| value.as_u64().and_then(|value| u32::try_from(value).ok());
        let list = |name: &str| record[name].as_array().cloned().unwrap_or_default();
        let names = list("namespaces");
        Some(Self {
            directory: directory.to_owned(),
            owner: number(&record["owner"])?,
            kept: record["kept"].as_bool()?,
            namespaces: names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            gateway_namespace: text("gateway_namespace")?.into(),
            binary: text("binary")?.into(),
            gateway: text("gateway")?,
            processes: list("processes").iter().filter_map(number).collect(),
        })
    }

    /// Commands for a person to look around.
    pub fn directions(&self) -> String {
        let mut out = String::from("Left running. To enter a namespace:\n");
        for name in &self.namespaces {
            out += &format!("  nsenter --net=/run/netns/{name} bash\n");
        }
        let (binary, config) = (self.binary.display(), self.directory.join("config"));
        out += &format!("The gateway: {binary} status --gateway {}\n", self.gateway);
        out += &format!("Its manifests, watched while it runs: {}\n", config.display());
        let demo = std::env::current_exe().unwrap_or_else(|_| "gateway-demo".into());
        out += &format!("To remove everything: {} clean\n", demo.display());
        out
    }

    fn remove(&self) {
        for process in &self.processes {
            if runs_in_one_of(*process, &self.namespaces) || names(*process, &self.directory) {
                let _ = killpg(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
            }
        }
        let state = self.directory.join(format!("state-{}", self.gateway));
        gateway::detach_quietly(&self.binary, &self.gateway, &self.gateway_namespace, &state);
        self.namespaces.iter().for_each(|name| netns::remove(name));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Whether a process lives in one of these namespaces.
fn runs_in_one_of(process: u32, namespaces: &[String]) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: PathBuf| fs::metadata(path).ok().map(|metadata| metadata.ino());
    let Some(own) = inode(format!("/proc/{process}/ns/net").into()) else { return false };
    namespaces.iter().any(|name| inode(Path::new("/run/netns").join(name)) == Some(own))
}

/// Whether a process has a path of this demo on its command line, as its daemon has.
fn names(process: u32, directory: &Path) -> bool {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(&directory.display().to_string())
}

/// Removes demos: those whose process is gone, and with `kept` those left running on purpose too;
/// with `only` just the one that had this process id.
///
/// # Errors
/// The directory of temporary files cannot be read.
pub fn remove(kept: bool, only: Option<u32>) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let directory = std::env::temp_dir();
    let entries = fs::read_dir(&directory)
        .with_context(|| format!("failed to read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with(&format!("{PREFIX}-")) {
            continue;
        }
        let wanted = |record: &Record| only.is_none_or(|owner| owner == record.owner);
        let Some(record) = Record::read(&path).filter(wanted) else { continue };
        let abandoned = !record.kept && !Path::new(&format!("/proc/{}", record.owner)).exists();
        if abandoned || (kept && record.kept) {
            record.remove();
            removed.push(name);
        }
    }
    Ok(removed)
}
