//! The first file system of the virtual machine: busybox, the gateway, what it needs, an init script.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::modules::Module;
use crate::process;
use crate::workspace::Workspace;

/// Runs as the first process.
const INIT: &str = include_str!("init.sh");

/// Folders that file systems are mounted on, and those that programs expect.
const FOLDERS: [&str; 7] = ["dev", "proc", "sys", "run", "tmp", "sbin", "var"];

/// The files that are the same for every kernel.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// Programs by the name they get in `/sbin`.
    programs: Vec<(&'static str, PathBuf)>,
    busybox: PathBuf,
    libraries: Vec<PathBuf>,
    manifests: Vec<PathBuf>,
    object: PathBuf,
    /// Whether the gateway loads the object from its file and not the one in its binary.
    pub(super) overrides: bool,
}

/// What was built for the machine to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    /// The gateway's binary.
    pub(super) gateway: &'a Path,
    /// The test binary with the packet cases.
    pub(super) cases: &'a Path,
    /// The object that the cases load.
    pub(super) object: &'a Path,
}

impl Image {
    /// Finds all files.
    ///
    /// # Errors
    ///
    /// A program is missing, or its libraries are.
    pub(super) fn collect(
        workspace: &Workspace,
        parts: &Parts<'_>,
        busybox: PathBuf,
    ) -> Result<Self> {
        let tool = |name| process::find(name).with_context(|| format!("failed to find {name}"));
        let own = std::env::current_exe().context("failed to find this program")?;
        let programs = vec![
            ("vpc-gateway", parts.gateway.to_owned()),
            ("packet-cases", parts.cases.to_owned()),
            ("xtask", own),
            ("ip", tool("ip")?),
            ("bpftool", tool("bpftool")?),
        ];
        let mut libraries = Vec::new();
        for (_, program) in &programs {
            libraries.extend(libraries_of(program)?);
        }
        libraries.sort();
        libraries.dedup();
        let examples = workspace.root().join("examples/nat-gateway");
        let mut manifests: Vec<_> = std::fs::read_dir(&examples)
            .with_context(|| format!("failed to list {}", examples.display()))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        manifests.sort();
        let object = parts.object.to_owned();
        Ok(Self { programs, busybox, libraries, manifests, object, overrides: false })
    }

    /// The archive for a kernel with these modules.
    ///
    /// # Errors
    ///
    /// A file cannot be read.
    pub(super) fn build(&self, modules: &[Module]) -> Result<Vec<u8>> {
        let read = |file: &Path| {
            std::fs::read(file).with_context(|| format!("failed to read {}", file.display()))
        };
        let mut archive = Archive::default();
        for folder in FOLDERS {
            archive.folder(folder);
        }
        archive.executable("init", INIT.as_bytes());
        archive.executable("bin/busybox", &read(&self.busybox)?);
        for (name, file) in &self.programs {
            // Not in /bin, where busybox puts its own `ip`.
            archive.executable(&format!("sbin/{name}"), &read(file)?);
        }
        for library in &self.libraries {
            archive.executable(library.to_string_lossy().trim_start_matches('/'), &read(library)?);
        }
        for manifest in &self.manifests {
            let name = manifest.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("manifests/{name}"), &read(manifest)?);
        }
        archive.file("vpc-gateway.o", &read(&self.object)?);
        if self.overrides {
            archive.file("override", b"");
        }
        for (order, module) in modules.iter().enumerate() {
            let name = format!("modules/{order:02}-{}.ko", module.name);
            archive.file(&name, &module.content);
        }
        Ok(archive.finish())
    }
}

/// What `ldd` lists: the libraries and the loader, under the paths the program looks for them.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let text = process::read(Command::new("ldd").arg(program))?;
    Ok(paths_in(&text))
}

/// `libc.so.6 => /lib/libc.so.6 (0x1)` and `/lib64/ld-linux-x86-64.so.2 (0x1)`.
fn paths_in(ldd: &str) -> Vec<PathBuf> {
    let paths = ldd.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(paths_in(ldd), expected);
    }
}
