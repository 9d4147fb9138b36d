//! `image`: the drop-in image as an archive, without a registry.
//!
//! The last stage of `deploy/image/Dockerfile` is built by buildah around the binary of `build`. Where this
//! is Debian, the base is made of Debian's packages, once, into the cache of the user; elsewhere it is
//! pulled from where the Dockerfile says.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::console::{self, Steps};
use crate::privilege::Privilege;
use crate::setup::packages::{self, Program};
use crate::workspace::Workspace;
use crate::{build, kube_assets, process, setup};

const STEPS: Steps = Steps::of("image");

/// The variable by which tests find the archive.
pub(crate) const VARIABLE: &str = "VPC_GATEWAY_IMAGE";

/// What the last stage of the Dockerfile begins with.
const BASE: &str = "docker.io/library/debian:bookworm-slim";
const RELEASE: &str = "bookworm";

const PROGRAMS: [Program; 1] = [packages::program("buildah", &["buildah"], "building the image")];
const BOOTSTRAP: [Program; 1] =
    [packages::program("mmdebstrap", &["mmdebstrap"], "the base of the image")];

/// Builds the image of `deploy/image` as an archive that docker, podman and ctr load
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The name of the image in the archive
    #[arg(long, value_name = "NAME:TAG", default_value = "vpc-gateway:dev")]
    tag: String,
}

/// Runs the verb.
///
/// # Errors
///
/// A tool is missing and cannot be installed, or something cannot be built.
pub(crate) fn run(options: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    let binary = build::products(&workspace)?.binary;
    let archive = archive(&workspace, &binary, &options.tag)?;
    println!("{VARIABLE}={}", archive.display());
    Ok(())
}

/// Builds the image around a binary.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn archive(workspace: &Workspace, binary: &Path, tag: &str) -> Result<PathBuf> {
    let privilege = Privilege::find().context("building the image takes root or sudo")?;
    setup::ensure("image", &PROGRAMS)?;
    let started = Instant::now();
    let folder = workspace.target().join("image");
    let built = folder.join("build/src/target/release");
    fs::create_dir_all(&built).with_context(|| format!("failed to make {}", built.display()))?;
    let stripped = built.join("vpc-gateway");
    fs::copy(binary, &stripped).with_context(|| format!("failed to copy {}", binary.display()))?;
    process::run(Command::new("strip").arg(&stripped))?;

    let builder = Builder { privilege, storage: kube_assets::cache()?.join("vpc-gateway/image") };
    let pull = match Bootstrap::here() {
        Some(bootstrap) => {
            builder.base(&bootstrap, &folder)?;
            "--pull-never"
        }
        None => "--pull",
    };
    STEPS.say(format_args!("building {tag} ..."));
    let mut context = OsString::from("build=");
    context.push(folder.join("build"));
    let mut build = builder.command(&["bud", "--quiet", "--isolation", "chroot", pull]);
    build.arg("--build-context").arg(context).args(["--tag", tag, "--file"]);
    build.arg(workspace.root().join("deploy/image/Dockerfile")).arg(workspace.root());
    process::read(&mut build).context("failed to build the image")?;

    let archive = folder.join("vpc-gateway.tar");
    if archive.exists() {
        process::read(privilege.command("rm", &[]).arg(&archive))?;
    }
    let mut to = OsString::from("docker-archive:");
    to.push(&archive);
    to.push(format!(":{tag}"));
    process::read(builder.command(&["push", "--quiet", tag]).arg(to))?;
    // Each build would leave its layers behind.
    process::read(&mut builder.command(&["rmi", tag]))?;
    let (shown, elapsed) = (archive.display(), console::seconds(started.elapsed()));
    STEPS.say(format_args!("{shown}: {tag}, {elapsed}"));
    Ok(archive)
}

/// buildah with a storage of its own.
struct Builder {
    privilege: Privilege,
    storage: PathBuf,
}

impl Builder {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.privilege.command("buildah", &[]);
        command.args(["--storage-driver", "vfs", "--root"]).arg(self.storage.join("images"));
        command.arg("--runroot").arg(self.storage.join("run")).args(arguments);
        command
    }

    /// Makes the base, unless it is there.
    fn base(&self, bootstrap: &Bootstrap, folder: &Path) -> Result<()> {
        let mut look = self.command(&["inspect", "--type", "image", BASE]);
        if process::read(&mut look).is_ok() {
            return Ok(());
        }
        setup::ensure("image", &BOOTSTRAP)?;
        STEPS.say(format_args!("making {BASE} of Debian's packages with mmdebstrap ..."));
        let base = folder.join("base");
        fs::create_dir_all(&base)?;
        let mut make = self.privilege.command("mmdebstrap", &[]);
        make.args(["--quiet", "--variant=minbase", RELEASE]).arg(base.join("base.tar"));
        process::read(make.args(&bootstrap.sources)).context("failed to make the base")?;
        let file = base.join("Dockerfile");
        fs::write(&file, "FROM scratch\nADD base.tar /\n")?;
        let mut add = self.command(&["bud", "--quiet", "--tag", BASE, "--file"]);
        process::read(add.arg(&file).arg(&base)).context("failed to add the base")?;
        process::read(self.privilege.command("rm", &[]).arg("-r").arg(&base)).map(drop)
    }
}

/// How the base is made on this machine.
struct Bootstrap {
    /// Where the packages come from: what apt reads here, if this is the same release.
    sources: Vec<PathBuf>,
}

impl Bootstrap {
    /// `None` where this is not Debian: its keys are not there.
    fn here() -> Option<Self> {
        let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let has = |line: String| text.lines().any(|other| other == line);
        if !has("ID=debian".to_owned()) {
            return None;
        }
        let mut sources = Vec::new();
        if has(format!("VERSION_CODENAME={RELEASE}")) {
            let usual = ["/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources"];
            sources.extend(usual.map(PathBuf::from).into_iter().filter(|path| path.is_file()));
        }
        Some(Self { sources })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_has_the_stages_that_are_replaced() {
        let dockerfile = include_str!("../../deploy/image/Dockerfile");
        assert!(dockerfile.contains(&format!("\nFROM {BASE}\n")));
        let (_, last) = dockerfile.rsplit_once("\nFROM ").unwrap();
        let copied = "COPY --from=build /src/target/release/vpc-gateway ";
        assert!(last.contains(copied), "{last}");
        assert!(dockerfile.contains(" AS build\n"));
    }
}
