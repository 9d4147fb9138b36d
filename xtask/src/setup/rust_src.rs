//! `rust-src`: the source of `core`, which is compiled for the BPF target.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::{Origin, STEPS, apt};
use crate::process;
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// How long rustup may take before Debian is tried.
const RUSTUP_LIMIT: Duration = Duration::from_secs(180);

/// The suites that may hold the package of a compiler version, newest stable first.
const SUITES: [&str; 3] = ["trixie-backports", "trixie", "sid"];

/// Installs the source of the standard library.
///
/// # Errors
///
/// Neither rustup nor Debian can provide it.
pub(crate) fn install(workspace: &Workspace, toolchain: &Toolchain, origin: Origin) -> Result<()> {
    let by_rustup = || from_rustup(toolchain);
    let by_debian = || from_debian(workspace, toolchain);
    match origin {
        Origin::Rustup => by_rustup(),
        Origin::Debian => by_debian(),
        Origin::Auto => by_rustup().or_else(|rustup| {
            STEPS.say(format_args!("rust-src: rustup cannot provide it ({rustup:#})"));
            by_debian().map_err(|debian| {
                anyhow!(
                    "failed to install rust-src {}: rustup: {rustup:#}; Debian: {debian:#}; \
                     get a toolchain from https://rustup.rs or unpack the standard library's source at {}",
                    toolchain.release,
                    toolchain.library().display()
                )
            })
        }),
    }
}

fn from_rustup(toolchain: &Toolchain) -> Result<()> {
    if process::find("rustup").is_none() {
        bail!("there is no rustup");
    }
    // A sysroot of rustup is named by its toolchain; a compiler from elsewhere is not rustup's to extend.
    let name = toolchain.sysroot.file_name().and_then(|name| name.to_str());
    let is_rustups =
        toolchain.sysroot.parent().is_some_and(|parent| parent.ends_with("toolchains"));
    let Some(name) = name.filter(|_| is_rustups) else {
        bail!("{} is not a toolchain of rustup", toolchain.sysroot.display());
    };
    STEPS.say(format_args!("rust-src: installing {} with rustup ...", toolchain.release));
    if toolchain.placed_release().exists() {
        // A library of ours for an older compiler would be in rustup's way.
        process::run(Command::new("rm").arg("-rf").arg(toolchain.library()))?;
    }
    process::run_within(
        RUSTUP_LIMIT,
        Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", name]),
    )?;
    expect_installed(toolchain)
}

/// Both origins may report success and leave no source, for example after somebody deleted it by hand.
fn expect_installed(toolchain: &Toolchain) -> Result<()> {
    if toolchain.has_rust_src() {
        return Ok(());
    }
    bail!("it is said to be installed, but {} is not complete", toolchain.library().display())
}

fn from_debian(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    if !apt::is_here() {
        bail!("this machine has no apt");
    }
    for suite in SUITES {
        STEPS.say(format_args!("rust-src: looking for {} in {suite} ...", toolchain.release));
        if !apt::download(workspace, suite, "rust-src", &toolchain.release)? {
            continue;
        }
        STEPS.say(format_args!("rust-src: installing {} from Debian ...", toolchain.release));
        let folder = workspace.scratch("apt");
        let unpacked = folder.join("rust-src");
        apt::unpack(&folder, "rust-src", &unpacked)?;
        let library = library_in(&unpacked)?;
        place(&library, &toolchain.library())?;
        let placed = toolchain.placed_release();
        std::fs::write(&placed, &toolchain.release)
            .with_context(|| format!("failed to write {}", placed.display()))?;
        // The copy is in place; what apt needed is not any more.
        let _ = std::fs::remove_dir_all(folder);
        return expect_installed(toolchain);
    }
    bail!("no suite of {} has rust-src {}", SUITES.join(", "), toolchain.release)
}

/// Finds the folder `library` in an unpacked package; its parent's name carries the version.
fn library_in(unpacked: &Path) -> Result<PathBuf> {
    let sources = unpacked.join("usr/src");
    let entries = std::fs::read_dir(&sources)
        .with_context(|| format!("failed to list {}", sources.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path().join("library"))
        .find(|path| path.join("core/src/lib.rs").is_file())
        .with_context(|| format!("failed to find library/core in {}", sources.display()))
}

/// Copies the library beside its final place and renames it, so that a half copy is never used.
fn place(library: &Path, destination: &Path) -> Result<()> {
    let partial = destination.with_extension("partial");
    let parent = destination.parent().unwrap_or(destination);
    std::fs::create_dir_all(parent).with_context(|| {
        format!(
            "failed to create {}; is the toolchain installed by another user?",
            parent.display()
        )
    })?;
    process::run(Command::new("rm").arg("-rf").arg(&partial).arg(destination))?;
    process::run(Command::new("cp").arg("-rL").arg(library).arg(&partial))?;
    std::fs::rename(&partial, destination)
        .with_context(|| format!("failed to move the library to {}", destination.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_under_a_versioned_folder() {
        let root = std::env::temp_dir().join(format!("xtask-rust-src-{}", std::process::id()));
        let core = root.join("usr/src/rustc-1.95.0/library/core/src");
        std::fs::create_dir_all(&core).unwrap();
        std::fs::write(core.join("lib.rs"), "").unwrap();
        let found = library_in(&root).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(found.ends_with("usr/src/rustc-1.95.0/library"), "{}", found.display());
    }
}
