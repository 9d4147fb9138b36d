//! What a demo leaves behind on purpose (`--keep`) or because it was killed, and its removal.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::stage::{PREFIX, SERVE_ECHO};
use crate::lab::egress::{EgressLab, SELECTOR_PINS};
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
    /// The gateways and their namespaces.
    gateways: BTreeMap<String, PathBuf>,
    /// The selector, if there is one.
    selector: Option<String>,
    binary: PathBuf,
}

impl Record {
    /// The record of a demo of this process.
    pub fn of(net: &Topology, settings: &Settings) -> Self {
        Self {
            directory: net.scratch.path().to_owned(),
            owner: std::process::id(),
            kept: false,
            namespaces: net.namespaces().map(|ns| ns.name().to_owned()).collect(),
            gateways: BTreeMap::from([(settings.name.clone(), net.gateway.path())]),
            selector: None,
            binary: settings.binary.clone(),
        }
    }

    /// The record of a demo of an egress gateway of this process.
    pub fn of_egress(lab: &EgressLab) -> Self {
        let replicas = lab.replicas.iter();
        let gateways = replicas.map(|one| (one.gateway.name().to_owned(), one.ns.path())).collect();
        Self {
            directory: lab.scratch.path().to_owned(),
            owner: std::process::id(),
            kept: false,
            namespaces: lab.namespaces().map(|ns| ns.name().to_owned()).collect(),
            gateways,
            selector: Some(lab.name.clone()),
            binary: lab.binary.clone(),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn write(&self) -> Result<()> {
        let record = json!({
            "owner": self.owner, "kept": self.kept, "namespaces": self.namespaces,
            "gateways": self.gateways, "selector": self.selector, "binary": self.binary,
        });
        Ok(fs::write(self.directory.join(FILE), format!("{record:#}\n"))?)
    }

    fn read(directory: &Path) -> Option<Self> {
        let record: Value = serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()?;
        let text = |name: &str| record[name].as_str().map(str::to_owned);
        let names = record["namespaces"].as_array().cloned().unwrap_or_default();
        let gateways = record["gateways"].as_object().cloned().unwrap_or_default();
        let gateways = gateways.into_iter();
        Some(Self {
            directory: directory.to_owned(),
            owner: record["owner"].as_u64().and_then(|owner| u32::try_from(owner).ok())?,
            kept: record["kept"].as_bool()?,
            namespaces: names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            gateways: gateways
                .filter_map(|(name, path)| Some((name, path.as_str()?.into())))
                .collect(),
            selector: text("selector"),
            binary: text("binary")?.into(),
        })
    }

    /// Commands for a person to look around.
    pub fn directions(&self) -> String {
        let mut out = String::from("Left running. To enter a namespace:\n");
        for name in &self.namespaces {
            out += &format!("  nsenter --net=/run/netns/{name} bash\n");
        }
        let (binary, config) = (self.binary.display(), self.directory.join("config"));
        for gateway in self.gateways.keys() {
            out += &format!("The gateway: {binary} status --gateway {gateway}\n");
        }
        out += &format!("Its manifests, watched while it runs: {}\n", config.display());
        let demo = std::env::current_exe().unwrap_or_else(|_| "gateway-demo".into());
        out +=
            &format!("To remove everything: cargo xtask demo clean, or {} clean\n", demo.display());
        out
    }

    fn remove(&self) {
        for process in processes(&self.namespaces, &self.directory) {
            let _ = killpg(process, Signal::SIGKILL);
        }
        for (name, namespace) in &self.gateways {
            let state = self.directory.join(format!("state-{name}"));
            gateway::detach_quietly(&self.binary, name, namespace, &state);
        }
        if let Some(name) = &self.selector {
            let _ = fs::remove_dir_all(Path::new(SELECTOR_PINS).join(name));
        }
        self.namespaces.iter().for_each(|name| netns::remove(name));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The processes of a demo: they live in its namespaces, and are its servers or name its directory.
fn processes(namespaces: &[String], directory: &Path) -> Vec<Pid> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: PathBuf| fs::metadata(path).ok().map(|metadata| metadata.ino());
    let own: Vec<u64> =
        namespaces.iter().filter_map(|name| inode(Path::new("/run/netns").join(name))).collect();
    let directory = directory.display().to_string();
    let belongs = |process: &Path| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let inside = inode(process.join("ns/net")).is_some_and(|inode| own.contains(&inode));
        inside && (line.contains(&directory) || line.contains(SERVE_ECHO))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    numbered.filter(|(_, path)| belongs(path)).map(|(number, _)| Pid::from_raw(number)).collect()
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
