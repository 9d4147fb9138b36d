//! `bpf-linker`, built against the LLVM that the Rust toolchain itself brings along.
//!
//! The linker must read the bitcode that `rustc` writes, so both use one LLVM. Rustup's toolchains
//! carry it as a shared library under a name of their own; a folder with one symbolic link gives it
//! the name that the build of `bpf-linker` looks for. No LLVM package of the system is needed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::STEPS;
use crate::process;
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// The release line whose options this workspace uses.
const VERSION: &str = "0.13";

/// The LLVM majors that release line can be built against.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;

/// Finds a linker that runs: the one that `setup` built, else one on `PATH`.
pub(crate) fn find(toolchain: &Toolchain) -> Option<PathBuf> {
    let own = folder(toolchain).map(|folder| folder.join("bin/bpf-linker"));
    let on_path = process::find("bpf-linker");
    own.into_iter().chain(on_path).find(|linker| is_usable(linker))
}

/// Whether the linker starts (its LLVM library is found) and is of the right release line or newer.
fn is_usable(linker: &Path) -> bool {
    let output = Command::new(linker).arg("--version").stdin(Stdio::null()).output();
    let Ok(output) = output else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success() && release(&text) >= release(VERSION)
}

/// Major and minor version in a text like `bpf-linker 0.13.0`.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().last()?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Where `setup` installs tools: outside the target directory, so that a second clone finds them, and
/// apart per compiler, because the linker uses that compiler's LLVM.
fn folder(toolchain: &Toolchain) -> Option<PathBuf> {
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => return None,
    };
    Some(cache.join("vpc-gateway/tools").join(format!("rustc-{}", toolchain.release)))
}

/// The cargo feature that selects an LLVM major version.
fn feature(llvm_major: u32) -> Option<String> {
    LLVM_MAJORS.contains(&llvm_major).then(|| format!("llvm-{llvm_major}"))
}

/// Builds and installs the linker.
///
/// # Errors
///
/// The toolchain has no LLVM library, one that `bpf-linker` does not know, or the build fails.
pub(crate) fn install(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let Some(feature) = feature(toolchain.llvm_major) else {
        bail!(
            "failed to choose an LLVM for bpf-linker {VERSION}: rustc {} uses LLVM {}, it knows {} to {}; \
             use rustc 1.95, or put a fitting bpf-linker on PATH",
            toolchain.release,
            toolchain.llvm_major,
            LLVM_MAJORS.start(),
            LLVM_MAJORS.end()
        );
    };
    let library = toolchain.shared_llvm()?;
    let prefix = llvm_prefix(workspace, &library)?;
    let root = folder(toolchain).context("failed to choose a folder for tools: HOME is not set")?;
    let build = workspace.scratch("bpf-linker");
    STEPS.say(format_args!(
        "bpf-linker: building {VERSION} with {} into {} (about a minute) ...",
        library.display(),
        root.display()
    ));
    let mut rpath = std::ffi::OsString::from("-Clink-arg=-Wl,-rpath,");
    rpath.push(library.parent().unwrap_or(&library));
    process::run(
        workspace
            .cargo()
            .args(["install", "bpf-linker", "--version", &format!("^{VERSION}"), "--locked"])
            .args(["--no-default-features", "--features", &feature, "--force", "--quiet", "--root"])
            .arg(&root)
            .arg("--target-dir")
            .arg(&build)
            .env("LLVM_PREFIX", &prefix)
            .env("CARGO_ENCODED_RUSTFLAGS", rpath)
            .env_remove("RUSTFLAGS"),
    )
    .context("failed to install bpf-linker; it needs a C compiler and the crates registry")?;
    // Only the binary is of use; a folder that stays costs disk, nothing else.
    let _ = std::fs::remove_dir_all(&build);
    Ok(())
}

/// Makes the folder whose `lib/libLLVM.so` is the toolchain's library.
fn llvm_prefix(workspace: &Workspace, library: &Path) -> Result<PathBuf> {
    let prefix = workspace.scratch("llvm");
    let link = prefix.join("lib/libLLVM.so");
    let make = || {
        std::fs::create_dir_all(prefix.join("lib"))?;
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        std::os::unix::fs::symlink(library, &link)
    };
    make()
        .with_context(|| format!("failed to link {} to {}", link.display(), library.display()))?;
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feature_follows_the_llvm_of_the_compiler() {
        assert_eq!(feature(22).as_deref(), Some("llvm-22"));
        assert_eq!(feature(19), None);
        assert_eq!(feature(24), None);
    }

    #[test]
    fn releases_compare_as_numbers() {
        assert_eq!(release("bpf-linker 0.13.0\n"), Some((0, 13)));
        assert!(release("bpf-linker 0.9.15") < release(VERSION));
        assert!(release("bpf-linker 1.0.0") > release(VERSION));
        assert_eq!(release(""), None);
    }
}
