//! Where things are: the root of the repository, the target directory, the products.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

/// The crate of the eBPF programs.
pub(crate) const EBPF_PACKAGE: &str = "gateway-ebpf";

/// The directories of this workspace.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo, so that `CARGO_TARGET_DIR` and `build.target-dir` are honoured.
    ///
    /// # Errors
    ///
    /// `cargo metadata` fails, for example because a manifest is broken.
    pub(crate) fn locate() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let text = process::read(
            cargo()
                .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"])
                .arg(manifest),
        )?;
        let metadata: serde_json::Value =
            serde_json::from_str(&text).context("failed to read the output of `cargo metadata`")?;
        let path = |key: &str| {
            let value = metadata[key].as_str().map(PathBuf::from);
            value.with_context(|| format!("`cargo metadata` does not name `{key}`"))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")? })
    }

    /// The root of the repository.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The target directory of host builds.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The target directory of BPF builds, apart from the host's so that neither invalidates the other.
    pub(crate) fn ebpf_target(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    /// The eBPF object that everything else loads or embeds.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.ebpf_target().join("vpc-gateway.o")
    }

    /// The release binary of the loader.
    pub(crate) fn gateway_binary(&self) -> PathBuf {
        self.target.join("release/vpc-gateway")
    }

    /// Files that xtask itself needs while it works.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.target.join("xtask").join(name)
    }

    /// A cargo command that runs in the root of the repository.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root);
        command
    }
}

/// The cargo that started xtask, else the one on `PATH`.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
