//! The Rust toolchain in use: its version, its sysroot, its LLVM.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;

/// The facts of the active `rustc`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Toolchain {
    /// The version, for example `1.95.0`.
    pub(crate) release: String,
    /// The host triple.
    pub(crate) host: String,
    /// The major version of the LLVM that rustc uses and whose bitcode the linker must read.
    pub(crate) llvm_major: u32,
    /// The root of the toolchain's own files.
    pub(crate) sysroot: PathBuf,
}

impl Toolchain {
    /// Asks the active `rustc`.
    ///
    /// # Errors
    ///
    /// `rustc` does not run, or prints something unexpected.
    pub(crate) fn detect() -> Result<Self> {
        let text = process::read(rustc().arg("-vV"))?;
        let sysroot = process::read(rustc().args(["--print", "sysroot"]))?;
        Self::parse(&text, sysroot.trim())
            .with_context(|| format!("failed to understand the output of `rustc -vV`: {text}"))
    }

    fn parse(text: &str, sysroot: &str) -> Option<Self> {
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Some(Self {
            release: field("release")?.to_owned(),
            host: field("host")?.to_owned(),
            llvm_major: field("LLVM version")?.split('.').next()?.parse().ok()?,
            sysroot: sysroot.into(),
        })
    }

    /// Where the source of the standard library belongs.
    pub(crate) fn library(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Whether the source of `core` is there, of this very version, which `-Zbuild-std=core` compiles.
    pub(crate) fn has_rust_src(&self) -> bool {
        let library = self.library();
        let placed = std::fs::read_to_string(self.placed_release()).ok();
        library.join("core/src/lib.rs").is_file()
            && library.join("Cargo.lock").is_file()
            && placed.is_none_or(|release| release == self.release)
    }

    /// The file that names the version of a library that `setup` put there itself. A toolchain that is
    /// updated in place keeps such a library, which then no longer fits.
    pub(crate) fn placed_release(&self) -> PathBuf {
        self.library().join(".placed-by-vpc-gateway")
    }

    /// The shared LLVM library that the toolchain brings along.
    ///
    /// # Errors
    ///
    /// There is none: the toolchain is not one of rustup's, or another LLVM is in its place.
    pub(crate) fn shared_llvm(&self) -> Result<PathBuf> {
        let folder = self.sysroot.join("lib");
        let entries = std::fs::read_dir(&folder).with_context(|| {
            format!("failed to list the toolchain's libraries in {}", folder.display())
        })?;
        let found = entries.flatten().map(|entry| entry.path()).find(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            shared_llvm_major(name) == Some(self.llvm_major)
        });
        let Some(found) = found else {
            bail!(
                "failed to find libLLVM.so.{}.* in {}: rustc {} does not bring its LLVM as a library; \
                 use a toolchain of rustup, or put a bpf-linker built with LLVM {} or newer on PATH",
                self.llvm_major,
                folder.display(),
                self.release,
                self.llvm_major
            );
        };
        Ok(found)
    }
}

/// The LLVM major version in a file name like `libLLVM.so.22.1-rust-1.95.0-stable`.
fn shared_llvm_major(file_name: &str) -> Option<u32> {
    let version = file_name.strip_prefix("libLLVM.so.")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The `rustc` that cargo would use.
pub(crate) fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBOSE: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
        commit-hash: 59807616e1fa2540724bfbac14d7976d7e4a3860\ncommit-date: 2026-04-14\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn facts_come_from_the_verbose_version() {
        let toolchain = Toolchain::parse(VERBOSE, "/sysroot").unwrap();
        assert_eq!(toolchain.release, "1.95.0");
        assert_eq!(toolchain.host, "x86_64-unknown-linux-gnu");
        assert_eq!(toolchain.llvm_major, 22);
        assert!(toolchain.library().ends_with("lib/rustlib/src/rust/library"));
    }

    #[test]
    fn an_unknown_version_text_is_refused() {
        assert_eq!(Toolchain::parse("gcc 12\n", "/sysroot"), None);
    }

    #[test]
    fn a_library_of_another_version_does_not_count() {
        let root = std::env::temp_dir().join(format!("xtask-toolchain-{}", std::process::id()));
        let toolchain = Toolchain::parse(VERBOSE, root.to_str().unwrap()).unwrap();
        std::fs::create_dir_all(toolchain.library().join("core/src")).unwrap();
        let write = |file: PathBuf, text: &str| std::fs::write(file, text).unwrap();
        let empty = toolchain.has_rust_src();
        write(toolchain.library().join("core/src/lib.rs"), "");
        write(toolchain.library().join("Cargo.lock"), "");
        let from_rustup = toolchain.has_rust_src();
        write(toolchain.placed_release(), "1.95.0");
        let placed = toolchain.has_rust_src();
        write(toolchain.placed_release(), "1.94.0");
        let stale = toolchain.has_rust_src();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!([empty, from_rustup, placed, stale], [false, true, true, false]);
    }

    #[test]
    fn the_shared_llvm_is_known_by_its_name() {
        assert_eq!(shared_llvm_major("libLLVM.so.22.1-rust-1.95.0-stable"), Some(22));
        assert_eq!(shared_llvm_major("libLLVM-22-rust-1.95.0-stable.so"), None);
        assert_eq!(shared_llvm_major("librustc_driver-6108105cd7e839cf.so"), None);
    }
}
