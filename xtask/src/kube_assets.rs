//! `kube-assets`: a real API server for the tests, `etcd` and `kube-apiserver`, and a real `helm`.
//!
//! etcd is Debian's. The others are built from their Go modules, once, into the cache of the user.
//! Where `KUBEBUILDER_ASSETS` names a directory that has both (as `setup-envtest` makes it), that is taken, and
//! so is a `helm` in `PATH`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::console::{self, Steps};
use crate::setup::packages;
use crate::{process, setup};

const STEPS: Steps = Steps::of("kube-assets");

/// The variable by which tests find them, the same as that of envtest.
pub(crate) const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The variable by which tests find Helm.
pub(crate) const HELM_VARIABLE: &str = "VPC_GATEWAY_HELM";

/// The release of Kubernetes.
const VERSION: &str = "1.34.2";

/// The release of Helm, one that is made of the same modules of Kubernetes.
const HELM_VERSION: &str = "3.19.5";

/// Finds etcd, kube-apiserver and Helm for the tests, or installs the first and builds the others
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {}

/// Runs the verb.
///
/// # Errors
///
/// One of them is neither there nor to be had.
pub(crate) fn run(_: Options) -> Result<()> {
    let folder = ensure()?;
    println!("{VARIABLE}={}", folder.display());
    println!("{HELM_VARIABLE}={}", helm()?.display());
    Ok(())
}

/// The directory that has `etcd` and `kube-apiserver`.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        for program in ["etcd", "kube-apiserver"] {
            if !folder.join(program).is_file() {
                bail!("{VARIABLE} is {}, where there is no {program}", folder.display());
            }
        }
        return Ok(folder);
    }
    setup::ensure("API server", &PROGRAMS)?;
    let folder = cache()?.join(format!("vpc-gateway/kube-assets-{VERSION}"));
    fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    link_etcd(&folder)?;
    let server = folder.join("kube-apiserver");
    if !server.is_file() {
        build(&folder, &server)?;
    }
    Ok(folder)
}

/// Where Helm is: in `PATH`, else in the cache.
///
/// # Errors
///
/// It is not there and cannot be built.
pub(crate) fn helm() -> Result<PathBuf> {
    if let Some(helm) = process::find("helm") {
        return Ok(helm);
    }
    let helm = cache()?.join(format!("vpc-gateway/helm-{HELM_VERSION}"));
    if !helm.is_file() {
        build_helm(&helm)?;
    }
    Ok(helm)
}

/// Builds Helm from its module.
fn build_helm(helm: &Path) -> Result<()> {
    let (go, started) = (go()?, Instant::now());
    STEPS.say(format_args!(
        "helm {HELM_VERSION}: building it with {} (some minutes, once) ...",
        go.display()
    ));
    let folder = helm.with_extension("draft");
    process::run(
        command(&go, &env::temp_dir())
            .args(["install", "-trimpath", "-ldflags", "-s -w"])
            .arg(format!("helm.sh/helm/v3/cmd/helm@v{HELM_VERSION}"))
            .env("GOBIN", &folder),
    )
    .context("failed to build helm; one in PATH will do")?;
    fs::rename(folder.join("helm"), helm).and_then(|()| fs::remove_dir(&folder)).with_context(
        || format!("failed to move helm from {} to {}", folder.display(), helm.display()),
    )?;
    let elapsed = console::seconds(started.elapsed());
    STEPS.say(format_args!("helm: {} in {elapsed}", helm.display()));
    Ok(())
}

fn link_etcd(folder: &Path) -> Result<()> {
    let etcd = process::find("etcd").context("etcd was installed but is not in PATH")?;
    let link = folder.join("etcd");
    if fs::read_link(&link).is_ok_and(|target| target == etcd) {
        return Ok(());
    }
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&etcd, &link)
        .with_context(|| format!("failed to make {}", link.display()))
}

/// Builds kube-apiserver from its module.
///
/// The module's own `go.mod` takes its siblings from directories that a module does not contain; a
/// copy that names their releases takes its place.
fn build(folder: &Path, server: &Path) -> Result<()> {
    let go = go()?;
    let started = Instant::now();
    STEPS.say(format_args!(
        "kube-apiserver {VERSION}: building it with {} (some minutes, once) ...",
        go.display()
    ));
    let downloaded = process::read(
        command(&go, &env::temp_dir()).args(["mod", "download", "-json"]).arg(module()),
    )?;
    let downloaded: Value =
        serde_json::from_str(&downloaded).context("failed to read go's JSON")?;
    let source = downloaded["Dir"].as_str().context("go does not say where the module is")?;
    let source = Path::new(source);
    let manifest = folder.join("go.mod");
    let text = fs::read_to_string(source.join("go.mod")).context("the module has no go.mod")?;
    fs::write(&manifest, with_siblings(&text))?;
    // Files of the module cache cannot be written to, and neither can a plain copy of them.
    fs::write(folder.join("go.sum"), fs::read(source.join("go.sum"))?)?;
    let draft = folder.join("kube-apiserver.draft");
    let (major, minor) = VERSION.split_once('.').context("a version without a dot")?;
    let minor = minor.split('.').next().unwrap_or_default();
    let variable = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {variable}.gitVersion=v{VERSION} -X {variable}.gitMajor={major} \
         -X {variable}.gitMinor={minor}"
    );
    process::run(
        command(&go, source)
            .args(["build", "-mod=mod", "-trimpath", "-buildvcs=false", "-ldflags", &flags])
            .arg(format!("-modfile={}", manifest.display()))
            .arg("-o")
            .arg(&draft)
            .arg("./cmd/kube-apiserver"),
    )
    .with_context(|| {
        format!("failed to build kube-apiserver; {VARIABLE} may name a directory that has one")
    })?;
    fs::rename(&draft, server).with_context(|| format!("failed to make {}", server.display()))?;
    let elapsed = console::seconds(started.elapsed());
    STEPS.say(format_args!("kube-apiserver: {} in {elapsed}", server.display()));
    Ok(())
}

fn module() -> String {
    format!("k8s.io/kubernetes@v{VERSION}")
}

/// The text of a `go.mod` whose replacements by directories are replacements by releases.
fn with_siblings(text: &str) -> String {
    let sibling = |line: &str| {
        let (name, path) = line.split_once(" => ./staging/src/")?;
        let (_, minor) = VERSION.split_once('.')?;
        Some(format!("{name} => {path} v0.{minor}"))
    };
    text.lines().map(|line| sibling(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

fn command(go: &Path, folder: &Path) -> Command {
    let mut command = Command::new(go);
    command.current_dir(folder).env("GOWORK", "off").env("CGO_ENABLED", "0").env("GOFLAGS", "");
    command
}

fn go() -> Result<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    process::find("go").or_else(|| usual.is_file().then_some(usual)).with_context(|| {
        format!(
            "kube-apiserver and helm are built with Go 1.24 or later, and there is no go; install it, or let \
             {VARIABLE} name a directory with etcd and kube-apiserver, and have a helm in PATH"
        )
    })
}

/// Where the user keeps what can be made again.
///
/// # Errors
///
/// There is no home.
pub(crate) fn cache() -> Result<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(variable("HOME")?.join(".cache"));
    variable("XDG_CACHE_HOME").or_else(home).context("HOME is not set")
}

/// What the tests against an API server need beside it.
const PROGRAMS: [packages::Program; 5] = [
    packages::program("etcd", &["etcd-server"], "the storage of the API server"),
    packages::program("containerd", &["containerd"], "sandboxes of pods, by CRI"),
    packages::program("runc", &["runc"], "the processes of those sandboxes"),
    packages::program("iptables-legacy", &["iptables"], "the rules that Kube-OVN has in a pod"),
    packages::program("openssl", &["openssl"], "the key of the API server"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_are_taken_from_their_releases() {
        let text = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        assert_eq!(with_siblings(text), "replace (\n\tk8s.io/api => k8s.io/api v0.34.2\n)\n");
    }
}
