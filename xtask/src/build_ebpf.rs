//! `build-ebpf`: the eBPF object with BTF, and what it holds.
//!
//! The object is built by the stable compiler: `RUSTC_BOOTSTRAP=1` opens `-Zbuild-std=core`, which
//! compiles `core` for a target that rustup does not ship. `bpf-linker` turns the bitcode of all
//! crates into one relocatable object.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::console::{self, Steps};
use crate::process;
use crate::programs::Contents;
use crate::setup::{self, Toolset};
use crate::workspace::{EBPF_PACKAGE, Workspace};

const STEPS: Steps = Steps::of("build-ebpf");

/// Builds the eBPF object and lists its programs with their instruction counts.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Accepted for symmetry: the verifier takes only optimised programs, so every build is one
    #[arg(long)]
    release: bool,
}

/// Runs the verb.
///
/// # Errors
///
/// A tool cannot be installed, or the programs do not compile or link.
pub(crate) fn run(options: Options) -> Result<()> {
    if !options.release {
        STEPS.say("profile ebpf (optimised; the only one the verifier accepts)");
    }
    object(&Workspace::locate()?).map(drop)
}

/// Builds the object and returns its path.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn object(workspace: &Workspace) -> Result<PathBuf> {
    one(workspace, EBPF_PACKAGE, workspace.ebpf_object())
}

/// Builds the object of the bench, which is no part of the product, and returns its path.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn bench_object(workspace: &Workspace) -> Result<PathBuf> {
    one(workspace, "bench-ebpf", workspace.ebpf_target().join("bench.o"))
}

/// Builds one binary of the eBPF crate and keeps it at `stable`.
fn one(workspace: &Workspace, binary: &str, stable: PathBuf) -> Result<PathBuf> {
    let tools = setup::ensure_compilers(workspace)?;
    let started = Instant::now();
    process::run(cargo(workspace, &tools, "build").args(["--bin", binary]))
        .with_context(|| format!("failed to build the eBPF object {binary}"))?;
    let built = workspace.ebpf_target().join(target()).join("ebpf").join(binary);
    let bytes = std::fs::read(&built)
        .with_context(|| format!("failed to read the built object {}", built.display()))?;
    replace_if_changed(&stable, &bytes)?;
    report(&stable, &bytes, started)?;
    Ok(stable)
}

/// A cargo command (`build`, `clippy`) for the eBPF crate with everything its target needs.
pub(crate) fn cargo(workspace: &Workspace, tools: &Toolset, subcommand: &str) -> Command {
    let mut command = workspace.cargo();
    command
        .arg(subcommand)
        .args(["--package", EBPF_PACKAGE, "--target", target(), "-Zbuild-std=core"])
        .args(["--profile", "ebpf", "--target-dir"])
        .arg(workspace.ebpf_target())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(tools))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    command
}

/// The flags that `aya-build` passes, plus the linker by its path.
fn rustflags(tools: &Toolset) -> OsString {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&tools.linker);
    let arch = bpf_target_arch(&tools.toolchain.host);
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\"").into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // 32-bit arithmetic and compares: every kernel from 5.1 on has them.
        "-Ctarget-cpu=v3".into(),
        // Without this every address in a frame is read and written byte by byte, and each byte has a
        // place of its own on the stack. The verifier allows it where the machine does (x86-64, arm64).
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into(),
        linker,
    ];
    flags.join(&OsString::from("\x1f"))
}

/// The BPF target of this machine's byte order.
fn target() -> &'static str {
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

/// The name by which aya's bindings know the architecture of a host triple.
fn bpf_target_arch(host: &str) -> &str {
    match host.split('-').next().unwrap_or(host) {
        arch if arch.starts_with("riscv64") => "riscv64",
        arch => arch,
    }
}

/// Keeps the time stamp of an unchanged object, so that the crate that embeds it stays fresh.
fn replace_if_changed(file: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(file).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let partial = file.with_extension("o.partial");
    std::fs::write(&partial, bytes)
        .and_then(|()| std::fs::rename(&partial, file))
        .with_context(|| format!("failed to write the object {}", file.display()))
}

fn report(file: &Path, bytes: &[u8], started: Instant) -> Result<()> {
    let contents = Contents::parse(bytes)
        .with_context(|| format!("failed to read the object {}", file.display()))?;
    for program in &contents.programs {
        STEPS.say(format_args!(
            "{:<12} {:<28} {:>6} instructions, {:>3} subprograms",
            program.section, program.name, program.instructions, program.subprograms
        ));
    }
    STEPS.say(format_args!(
        "{}: {} programs, {} bytes, BTF {} bytes, {}",
        file.display(),
        contents.programs.len(),
        bytes.len(),
        contents.btf_bytes,
        console::seconds(started.elapsed())
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_architecture_is_the_one_of_the_bindings() {
        assert_eq!(bpf_target_arch("x86_64-unknown-linux-gnu"), "x86_64");
        assert_eq!(bpf_target_arch("riscv64gc-unknown-linux-gnu"), "riscv64");
    }
}
