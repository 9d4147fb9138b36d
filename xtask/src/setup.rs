//! `setup`: everything that builds and tests need, installed once.
//!
//! Steps, each of which first looks whether it is done: the source of the standard library,
//! `bpf-linker`, the programs that tests and the demo run, and the compiler's own checkers. The other verbs call the step they
//! need, so nobody has to type `setup`.

pub(crate) mod apt;
mod components;
mod linker;
pub(crate) mod packages;
mod rust_src;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::console::{self, Colour, Steps};
use crate::process;
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

const STEPS: Steps = Steps::of("setup");

/// Installs what builds and tests need; prints each step and does nothing twice.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Only report; exit code 1 if something is missing
    #[arg(long)]
    check: bool,
    /// Where the source of the standard library comes from
    #[arg(long, value_enum, default_value_t = Origin::Auto)]
    rust_src: Origin,
}

/// Where `rust-src` comes from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Origin {
    /// rustup, and where that fails Debian
    #[default]
    Auto,
    /// `rustup component add rust-src`
    Rustup,
    /// Debian's package of the same version
    Debian,
}

/// What a build of the eBPF crate needs.
#[derive(Clone, Debug)]
pub(crate) struct Toolset {
    /// The compiler, with `rust-src` in place.
    pub(crate) toolchain: Toolchain,
    /// A `bpf-linker` that runs and reads this compiler's bitcode.
    pub(crate) linker: PathBuf,
}

/// Runs the verb.
///
/// # Errors
///
/// Something is missing and `--check` was given, or it cannot be installed.
pub(crate) fn run(options: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    let toolchain = Toolchain::detect()?;
    STEPS.say(format_args!(
        "rustc {} for {}, LLVM {}",
        toolchain.release, toolchain.host, toolchain.llvm_major
    ));
    if options.check {
        return report(&workspace, &toolchain);
    }
    step("rust-src", toolchain.has_rust_src(), || {
        rust_src::install(&workspace, &toolchain, options.rust_src)
    })?;
    step("bpf-linker", linker::find(&toolchain).is_some(), || {
        linker::install(&workspace, &toolchain)
    })?;
    if let Some(linker) = linker::find(&toolchain) {
        STEPS.say(format_args!("bpf-linker: {}", linker.display()));
    }
    let missing = packages::missing();
    step("programs", missing.is_empty(), || packages::install(&missing))?;
    // Last: only `check` needs them.
    let missing = components::missing(&workspace);
    step("rustfmt, clippy", missing.is_empty(), || components::install(&missing))
}

/// Returns compiler and linker, and installs what is missing.
///
/// # Errors
///
/// Something is missing and cannot be installed.
pub(crate) fn ensure_compilers(workspace: &Workspace) -> Result<Toolset> {
    let toolchain = Toolchain::detect()?;
    if !toolchain.has_rust_src() {
        step("rust-src", false, || rust_src::install(workspace, &toolchain, Origin::Auto))?;
    }
    if let Some(linker) = linker::find(&toolchain) {
        return Ok(Toolset { toolchain, linker });
    }
    step("bpf-linker", false, || linker::install(workspace, &toolchain))?;
    match linker::find(&toolchain) {
        Some(linker) => Ok(Toolset { toolchain, linker }),
        None => bail!("bpf-linker was installed but does not run; try `cargo xtask setup`"),
    }
}

/// Installs `rustfmt` and `clippy` where they are missing.
///
/// # Errors
///
/// They cannot be installed.
pub(crate) fn ensure_components(workspace: &Workspace) -> Result<()> {
    let missing = components::missing(workspace);
    if missing.is_empty() {
        return Ok(());
    }
    step("rustfmt, clippy", false, || components::install(&missing))
}

/// Installs the programs that tests and the demo run, where they are missing.
///
/// # Errors
///
/// A required program is missing and cannot be installed.
pub(crate) fn ensure_programs() -> Result<()> {
    ensure("programs", &packages::PROGRAMS)
}

/// Installs more programs, where they are missing.
///
/// # Errors
///
/// A required program is missing and cannot be installed.
pub(crate) fn ensure(what: &str, programs: &'static [packages::Program]) -> Result<()> {
    let missing = packages::absent(programs);
    if missing.is_empty() {
        return Ok(());
    }
    step(what, false, || packages::install(&missing))
}

/// Runs one step unless it is done, and says which and how long.
fn step(name: &str, done: bool, install: impl FnOnce() -> Result<()>) -> Result<()> {
    if done {
        STEPS.say(format_args!("{name}: {}", console::paint(Colour::Green, "ok")));
        return Ok(());
    }
    let started = Instant::now();
    install()?;
    let elapsed = console::seconds(started.elapsed());
    STEPS.say(format_args!("{name}: {} in {elapsed}", console::paint(Colour::Green, "installed")));
    Ok(())
}

/// `--check`: one line per part.
fn report(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let mut required = 0;
    let mut say = |name: &str, present: Option<String>, absent: &str, optional: bool| {
        let state = match (present, optional) {
            (Some(detail), _) => format!("{} {detail}", console::paint(Colour::Green, "ok")),
            (None, true) => format!("{}: {absent}", console::paint(Colour::Yellow, "not there")),
            (None, false) => {
                required += 1;
                format!("{}: {absent}", console::paint(Colour::Red, "missing"))
            }
        };
        STEPS.say(format_args!("{name}: {}", state.trim_end()));
    };
    let library = toolchain.has_rust_src().then(|| toolchain.library().display().to_string());
    say("rust-src", library, "the source of core, which the eBPF crate compiles", false);
    let linker = linker::find(toolchain).map(|path| path.display().to_string());
    say("bpf-linker", linker, "links the eBPF object", false);
    for program in packages::PROGRAMS {
        let path = process::find(program.command).map(|path| path.display().to_string());
        say(program.command, path, program.purpose, program.optional);
    }
    let components = components::missing(workspace);
    let complete = components.is_empty().then(String::new);
    say("rustfmt, clippy", complete, &format!("{} for `check`", components.join(" ")), true);
    if required > 0 {
        bail!("missing and required: {required}; `cargo xtask setup` installs what it can");
    }
    Ok(())
}
