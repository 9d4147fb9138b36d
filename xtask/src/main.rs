//! `cargo xtask VERB`: everything a developer does, one file per verb.
//!
//! | verb | what it does |
//! |---|---|
//! | `setup` | installs what builds and tests need, or says what is missing |
//! | `build-ebpf` | builds the eBPF object and lists its programs |
//! | `build` | builds the object and the `vpc-gateway` binary that embeds it |
//! | `check` | formatting, lints, documentation, licences, file sizes |
//! | `test` | all tests, by tier, with a summary |
//! | `demo` | real traffic through a gateway in network namespaces |
//! | `bench` | how fast the gateway is, beside what users run today |
//! | `verify` | other kernels in QEMU: programs loaded, packet cases run, instructions counted |
//! | `fuzz` | libFuzzer on one of the targets |
//! | `compliance` | the page about the RFCs, from its table |
//! | `kube-assets` | etcd and kube-apiserver for the tests |
//! | `image` | the drop-in image as an archive |
//! | `ci` | what CI runs |
//!
//! The verbs print plain steps, inherit the output of what they run, and end with an exit code that
//! a script can rely on.

mod bench;
mod build;
mod build_ebpf;
mod check;
mod ci;
mod compliance;
mod console;
mod demo;
mod fuzz;
mod image;
mod interrupt;
mod kube_assets;
mod libtest;
mod privilege;
mod process;
mod programs;
mod setup;
mod test;
mod toolchain;
mod verify;
mod workspace;

use std::process::{ExitCode, ExitStatus};

use clap::{Parser, Subcommand};

/// Builds, checks, tests and demonstrates vpc-gateway.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Setup(setup::Options),
    BuildEbpf(build_ebpf::Options),
    Build(build::Options),
    Check(check::Options),
    Test(test::Options),
    Demo(demo::Options),
    Bench(bench::Options),
    Fuzz(fuzz::Options),
    Compliance(compliance::Options),
    Ci(ci::Options),
    Image(image::Options),
    KubeAssets(kube_assets::Options),
    Verify(verify::Options),
    /// The two ends of the round trip that `verify` makes inside a virtual machine
    #[command(hide = true)]
    VerifyUdp(verify::guest::Options),
}

/// An exit code, after everything about it has been said.
#[derive(Clone, Copy, Debug)]
struct Exit(u8);

impl Exit {
    /// Something failed.
    const FAILURE: Self = Self(1);

    /// Turns the end of a child into the end of this process, as a shell does it.
    fn from_status(status: ExitStatus) -> anyhow::Result<()> {
        use std::os::unix::process::ExitStatusExt as _;
        if status.success() {
            return Ok(());
        }
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Err(Self(code.and_then(|code| code.try_into().ok()).unwrap_or(1)).into())
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ended with exit code {}", self.0)
    }
}

impl std::error::Error for Exit {}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(options) => setup::run(options),
        Verb::BuildEbpf(options) => build_ebpf::run(options),
        Verb::Build(options) => build::run(options),
        Verb::Check(options) => check::run(options),
        Verb::Test(options) => test::run(options),
        Verb::Demo(options) => demo::run(options),
        Verb::Bench(options) => bench::run(options),
        Verb::Fuzz(options) => fuzz::run(options),
        Verb::Compliance(options) => compliance::run(options),
        Verb::Image(options) => image::run(options),
        Verb::KubeAssets(options) => kube_assets::run(options),
        Verb::Ci(options) => ci::run(options),
        Verb::Verify(options) => verify::run(options),
        Verb::VerifyUdp(options) => verify::guest::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Exit>() => {
            error.downcast_ref().map_or(ExitCode::FAILURE, |Exit(code)| ExitCode::from(*code))
        }
        Err(error) => {
            console::error(&error);
            ExitCode::FAILURE
        }
    }
}
