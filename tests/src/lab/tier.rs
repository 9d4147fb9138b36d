//! What the kernel tier needs, and the honest skip when it is not there.

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::netns;

/// With this set to 1, a missing precondition is a failure.
pub const REQUIRE: &str = "GATEWAY_REQUIRE_KERNEL";
/// Where the binary under test is.
pub const BINARY: &str = "VPC_GATEWAY_BIN";

/// Where the archive of the image is.
const IMAGE: &str = "VPC_GATEWAY_IMAGE";

/// Where Helm is, if not in `PATH`.
const HELM: &str = "VPC_GATEWAY_HELM";

const BPFFS: &str = "/sys/fs/bpf";

/// Whether network namespaces can be made. Otherwise prints why the test is skipped.
///
/// # Panics
/// A precondition is missing and [`REQUIRE`] is 1.
pub fn namespaces() -> bool {
    granted(namespaces_possible()).is_some()
}

/// The binary under test, if it and the privilege to run it are there. Otherwise prints why the
/// test is skipped.
///
/// # Panics
/// A precondition is missing and [`REQUIRE`] is 1.
pub fn gateway() -> Option<PathBuf> {
    granted(namespaces_possible().and_then(|()| bpffs()).and_then(|()| binary()))
}

/// Whether bpftool is there. Otherwise prints why the test is skipped.
///
/// # Panics
/// It is not, and [`REQUIRE`] is 1.
pub fn bpftool() -> bool {
    let found = netns::run(Command::new("bpftool").arg("version")).context("bpftool is missing");
    granted(found).is_some()
}

/// Whether FRR is there. Otherwise prints why the test is skipped.
///
/// # Panics
/// It is not, and [`REQUIRE`] is 1.
pub fn frr() -> bool {
    granted(super::frr::available()).is_some()
}

/// Whether containerd is there. Otherwise prints why the test is skipped.
///
/// # Panics
/// It is not, and [`REQUIRE`] is 1.
pub fn containerd() -> bool {
    granted(super::containerd::available()).is_some()
}

/// The archive of the image, if there is a container runtime to run it with. Otherwise prints why the test
/// is skipped.
///
/// # Panics
/// A precondition is missing and [`REQUIRE`] is 1.
pub fn image() -> Option<PathBuf> {
    granted(super::containerd::available())?;
    let archive = std::env::var_os(IMAGE).map(PathBuf::from).filter(|path| path.is_file());
    granted(archive.with_context(|| format!("{IMAGE} names no file: run `cargo xtask image`")))
}

/// The command for Helm. Otherwise prints why the test is skipped.
///
/// # Panics
/// It is not there, and [`REQUIRE`] is 1.
pub fn helm() -> Option<PathBuf> {
    let helm = std::env::var_os(HELM).map_or_else(|| PathBuf::from("helm"), PathBuf::from);
    let found = netns::run(Command::new(&helm).arg("version"));
    granted(
        found.with_context(|| format!("{HELM} names no helm: `cargo xtask kube-assets` does")),
    )?;
    Some(helm)
}

/// The binary under test, if there is an API server to run it with. Otherwise prints why the test is
/// skipped.
///
/// # Panics
/// A precondition is missing and [`REQUIRE`] is 1.
pub fn cluster() -> Option<PathBuf> {
    granted(super::kube::assets())?;
    gateway()
}

fn granted<T>(outcome: Result<T>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(error) if std::env::var(REQUIRE).is_ok_and(|value| value == "1") => {
            panic!("{REQUIRE}=1, but {error:#}")
        }
        Err(error) => {
            println!("skipped: {error:#}");
            None
        }
    }
}

/// Checks the privilege and the tools for namespaces.
///
/// # Errors
/// One line that says what is missing.
pub fn namespaces_possible() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let unshared = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    match unshared {
        Ok(Ok(())) => {}
        Ok(Err(error)) => bail!("network namespaces are not allowed here: {error}"),
        Err(_) => bail!("no thread to try a network namespace"),
    }
    netns::run(Command::new("ip").args(["netns", "list"])).context("iproute2 is missing").map(drop)
}

/// Mounts the BPF file system if it is not.
///
/// # Errors
/// The kernel has none, or the privilege is missing.
pub fn bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounted = |line: &str| line.split(' ').nth(1) == Some(BPFFS) && line.contains(" bpf ");
    if mounts.lines().any(mounted) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("no BPF file system at {BPFFS}, and it cannot be mounted"))
}

/// The `vpc-gateway` binary: [`BINARY`], else the one beside this program, else the release build.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY) {
        let path = PathBuf::from(path);
        let path = path.canonicalize();
        return path.with_context(|| format!("{BINARY} names no file"));
    }
    let beside =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("vpc-gateway")));
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let release = workspace.join("target/release/vpc-gateway");
    beside.into_iter().chain([release]).find_map(|path| path.canonicalize().ok()).with_context(
        || format!("vpc-gateway is not built: run `cargo xtask build`, or set {BINARY}"),
    )
}
