//! What a gateway pinned, as bpftool sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::netns::run;

/// The kind of a pinned object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A map.
    Map,
    /// A program.
    Program,
    /// An attachment of a program.
    Link,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Map, Self::Program, Self::Link];

    /// The object's word on bpftool's command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Program => "prog",
            Self::Link => "link",
        }
    }
}

/// A pinned object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// What it is.
    pub kind: Kind,
    /// Its id in the kernel.
    pub id: u64,
}

/// Every object pinned below a directory, by path.
///
/// # Errors
/// The directory cannot be read, or bpftool does not know an object in it.
pub fn pinned(directory: &Path) -> Result<BTreeMap<PathBuf, Pinned>> {
    let mut found = BTreeMap::new();
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("failed to read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(pinned(&path)?);
        } else {
            let object = identify(&path)?;
            found.insert(path, object);
        }
    }
    Ok(found)
}

fn identify(path: &Path) -> Result<Pinned> {
    let show = |kind: Kind| -> Option<Pinned> {
        let mut command = Command::new("bpftool");
        command.args(["--json", kind.word(), "show", "pinned"]).arg(path);
        let shown: Value = serde_json::from_str(&run(&mut command).ok()?).ok()?;
        Some(Pinned { kind, id: shown["id"].as_u64()? })
    };
    let found = Kind::ALL.into_iter().find_map(show);
    found.with_context(|| format!("bpftool cannot tell what {} is", path.display()))
}

/// Whether the kernel still has an object.
pub fn exists(object: &Pinned) -> bool {
    let id = object.id.to_string();
    run(Command::new("bpftool").args([object.kind.word(), "show", "id", &id])).is_ok()
}

/// Dumps a map as an operator does, and checks that it is JSON with named fields.
///
/// # Errors
/// bpftool prints something else, as it does for a map without type information.
pub fn dump(path: &Path) -> Result<String> {
    let text = run(Command::new("bpftool").args(["map", "dump", "pinned"]).arg(path))?;
    // An empty map prints `[]` with type information, and `Found 0 elements` without. The kernel's
    // device maps have none: their entries mean something to the kernel.
    if path.ends_with("DEVICES") && text.trim() == "Found 0 elements" {
        return Ok(text);
    }
    let entries: Vec<Value> = serde_json::from_str(&text)
        .with_context(|| format!("{} is not dumped as JSON:\n{text}", path.display()))?;
    for entry in &entries {
        let typed = entry.get("key").is_some() && !entry["key"].is_array();
        let value = entry.get("value").or_else(|| entry.get("values"));
        ensure!(typed && value.is_some(), "{}: no named fields in {entry}", path.display());
    }
    Ok(text)
}
