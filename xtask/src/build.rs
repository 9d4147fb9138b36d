//! `build`: the `vpc-gateway` binary with the eBPF object inside.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::console::{self, Steps};
use crate::workspace::Workspace;
use crate::{build_ebpf, process};

const STEPS: Steps = Steps::of("build");

/// The variable by which the loader's build script finds the object to embed.
pub(crate) const OBJECT_VARIABLE: &str = "VPC_GATEWAY_EBPF_OBJECT";

/// Builds the eBPF object and the `vpc-gateway` binary that embeds it.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Accepted for symmetry: the binary is always a release build
    #[arg(long)]
    release: bool,
}

/// What a build leaves behind.
#[derive(Clone, Debug)]
pub(crate) struct Products {
    /// The eBPF object.
    pub(crate) object: PathBuf,
    /// The release binary that embeds it.
    pub(crate) binary: PathBuf,
}

impl Products {
    /// The variables by which tests and the demo find them.
    pub(crate) fn variables(self) -> Vec<(&'static str, OsString)> {
        vec![(OBJECT_VARIABLE, self.object.into()), ("VPC_GATEWAY_BIN", self.binary.into())]
    }
}

/// Runs the verb.
///
/// # Errors
///
/// A tool is missing and cannot be installed, or something does not compile.
pub(crate) fn run(options: Options) -> Result<()> {
    if !options.release {
        STEPS.say("profile release (the only one that `build` makes)");
    }
    products(&Workspace::locate()?).map(drop)
}

/// Builds object and binary.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn products(workspace: &Workspace) -> Result<Products> {
    let object = build_ebpf::object(workspace)?;
    let started = Instant::now();
    STEPS.say("vpc-gateway: cargo build --release");
    process::run(
        workspace
            .cargo()
            .args(["build", "--release", "--package", "gateway-userspace"])
            .args(["--bin", "vpc-gateway", "--features", "embed-ebpf"])
            .env(OBJECT_VARIABLE, &object),
    )
    .context("failed to build the vpc-gateway binary")?;
    let binary = workspace.gateway_binary();
    STEPS.say(format_args!("{}: {}", binary.display(), console::seconds(started.elapsed())));
    Ok(Products { object, binary })
}
