//! `verify`: other kernels, booted in QEMU. Each loads every program, translates a packet there and
//! back, ends sessions, is detached again, and runs all packet cases on the programs.
//!
//! ```text
//! Debian's packages ─► cache ─► image + modules ─┐
//! vpc-gateway, packet cases, ip, bpftool, ... ───┴─► initramfs ─► QEMU ─► report ─► table, ratchet
//! ```
//!
//! No KVM is needed: a kernel made for virtual machines boots in a few seconds without it.
//!
//! To add a kernel for good, name it in [`DEFAULT`] and accept its counts with `--accept`; if no
//! suite of `kernels::SUITES` has it, add one that does. Just to try one, name it on the command line.

mod cpio;
pub(crate) mod guest;
mod image;
mod kernels;
mod machine;
mod modules;
mod ratchet;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::console::{self, Colour, Steps};
use crate::programs::Contents;
use crate::setup::packages::{self, Program};
use crate::test::binaries;
use crate::workspace::Workspace;
use crate::{Exit, build, process, setup};
use image::{Image, Parts};
use kernels::Cache;
use ratchet::Ratchet;
use report::Report;

const STEPS: Steps = Steps::of("verify");

/// What is tried when nothing is named: the kernels of two stable releases and the newest one.
const DEFAULT: [&str; 3] = ["6.1", "6.12", kernels::NEWEST];

/// What only this verb needs.
const EMULATOR: Program = Program {
    command: machine::EMULATOR,
    packages: &["qemu-system-x86"],
    purpose: "booting other kernels",
    optional: false,
};

/// The test binary that holds the packet cases.
const CASES: &str = "datapath";

/// Boots other kernels in QEMU, loads all programs there and runs the packet cases on them.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Versions (`6.1`), `newest`, or Debian packages [default: 6.1, 6.12 and newest]
    #[arg(
        long = "kernels",
        alias = "kernel",
        value_name = "KERNEL",
        value_delimiter = ',',
        num_args = 0..
    )]
    kernels: Vec<String>,
    /// Writes the verifier's instruction counts to the ratchet file, whatever they are
    #[arg(long)]
    accept: bool,
    /// Lists the kernels that can be named, and boots none
    #[arg(long)]
    list: bool,
    /// Takes object and binary as they are
    #[arg(long)]
    no_build: bool,
    /// Loads this eBPF object, and not the one in the binary
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

/// Runs the verb.
///
/// # Errors
///
/// A kernel cannot be fetched or booted, or something is not as it should be there.
pub(crate) fn run(options: Options) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("only x86_64 machines are supported so far");
    }
    let mut cache = Cache::open()?;
    if options.list {
        for (suite, package, cached) in cache.list()? {
            println!("{suite:<20} {package}{}", if cached { " (here)" } else { "" });
        }
        return Ok(());
    }
    let workspace = Workspace::locate()?;
    ensure_tools()?;
    let (object, binary) = if options.no_build {
        (workspace.ebpf_object(), workspace.gateway_binary())
    } else {
        let products = build::products(&workspace)?;
        (products.object, products.binary)
    };
    let cases = binaries::compile(&workspace)?
        .into_iter()
        .find(|binary| binary.is_integration_test(CASES))
        .with_context(|| format!("failed to find the test {CASES}"))?
        .executable;
    let loaded = options.object.as_ref().unwrap_or(&object);
    let expected = program_names(loaded)?;
    let parts = Parts { gateway: &binary, cases: &cases, object: loaded };
    let mut image = Image::collect(&workspace, &parts, cache.busybox()?)?;
    image.overrides = options.object.is_some();
    let requests = if options.kernels.is_empty() {
        DEFAULT.map(str::to_owned).to_vec()
    } else {
        options.kernels
    };
    let mut ratchet = Ratchet::read(&workspace)?;
    let mut rows = Vec::new();
    for request in &requests {
        let mut result = verify(&workspace, &mut cache, &image, &expected, request);
        match &mut result {
            Err(error) => console::error(error),
            Ok(report) if options.accept => ratchet.accept(report),
            Ok(report) => hold(&ratchet, report),
        }
        rows.push((request, result));
    }
    if options.accept {
        STEPS.say(format_args!("accepted: {}", ratchet.write(&workspace)?.display()));
    }
    summarise(&rows)
}

/// Makes a fault of each count that rose, and says which ones fell.
fn hold(ratchet: &Ratchet, report: &mut Report) {
    let comparison = ratchet.compare(report);
    for risen in comparison.risen {
        STEPS.say(console::paint(Colour::Red, &risen));
        report.faults.push(risen);
    }
    for offer in comparison.offers {
        STEPS.say(format_args!("{offer}; `--accept` keeps that"));
    }
}

fn ensure_tools() -> Result<()> {
    setup::ensure_programs()?;
    if process::find(machine::EMULATOR).is_none() {
        packages::install(&[&EMULATOR])?;
    }
    for command in [machine::EMULATOR, "bpftool", "xz", "ldd"] {
        if process::find(command).is_none() {
            bail!("failed to find {command}: install it and try again");
        }
    }
    Ok(())
}

fn program_names(object: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(object)
        .with_context(|| format!("failed to read the object {}", object.display()))?;
    let contents = Contents::parse(&bytes)
        .with_context(|| format!("failed to read the object {}", object.display()))?;
    // The XDP programs are loaded by the packet cases on this machine, `select` by another verb.
    let loaded = contents
        .programs
        .into_iter()
        .filter(|program| program.section != "xdp" && program.name != "select");
    Ok(loaded.map(|program| program.name).collect())
}

/// One kernel, from its package to its report.
fn verify(
    workspace: &Workspace,
    cache: &mut Cache,
    image: &Image,
    expected: &[String],
    request: &str,
) -> Result<Report> {
    let kernel = cache.kernel(request)?;
    let initrd = image.build(&modules::read(&kernel.modules)?)?;
    STEPS.say(format_args!("{request}: booting {} ...", kernel.package));
    let started = Instant::now();
    let folder = workspace.scratch("verify").join(&kernel.package);
    let text = machine::boot(&kernel, &initrd, &folder)
        .with_context(|| format!("failed to boot {}", kernel.package))?;
    let mut report = Report::parse(&text, expected);
    if report.release.is_empty() {
        report.release.clone_from(&kernel.package);
    }
    STEPS.say(format_args!("{request}: {}", console::seconds(started.elapsed())));
    for fault in &report.faults {
        STEPS.say(format_args!("{request}: {}", console::paint(Colour::Red, fault)));
    }
    if !report.faults.is_empty() {
        STEPS.say(format_args!("{request}: console and report are in {}", folder.display()));
    }
    Ok(report)
}

fn summarise(rows: &[(&String, Result<Report>)]) -> Result<()> {
    println!();
    println!(
        "{:<30} {:<7} {:<7} {:<26} {:<10} {:<7} verifier instructions",
        "kernel", "result", "loaded", "packet check", "cases", "attach"
    );
    let mut failures = 0;
    for (request, result) in rows {
        let good = result.as_ref().is_ok_and(|report| report.faults.is_empty());
        failures += usize::from(!good);
        // Padded before it is painted: a terminal's colours count as characters.
        let (colour, word) = if good { (Colour::Green, "ok") } else { (Colour::Red, "FAILED") };
        let state = console::paint(colour, &format!("{word:<7}"));
        match result {
            Ok(report) => println!("{}", line(report, &state)),
            Err(_) => println!("{request:<30} {state} not run"),
        }
    }
    println!("\nverify: {} kernels, {failures} failed", rows.len());
    if failures > 0 {
        return Err(Exit::FAILURE.into());
    }
    Ok(())
}

fn line(report: &Report, state: &str) -> String {
    let loaded = format!("{}/{}", report.loaded(), report.programs.len());
    let counts: Vec<_> = report
        .programs
        .iter()
        .filter_map(|(name, count)| Some(format!("{name} {}", (*count)?)))
        .collect();
    format!(
        "{:<30} {state} {loaded:<7} {:<26} {:<10} {:<7} {}",
        report.release,
        report.packet,
        report.cases,
        report.attach,
        counts.join(", ")
    )
}
