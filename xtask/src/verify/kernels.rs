//! Kernels out of Debian's packages, kept unpacked in the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::STEPS;
use crate::process;
use crate::setup::apt::{self, Suite};

/// Where kernels are looked for, in this order: the kernel of each stable release before newer ones.
const SUITES: [&str; 4] = ["bookworm", "trixie", "bookworm-backports", "trixie-backports"];

/// The request for the highest version there is, and the suite that has it.
pub(super) const NEWEST: &str = "newest";
const NEWEST_SUITE: &str = "trixie-backports";

const PREFIX: &str = "linux-image-";

/// The flavour for virtual machines: small, and it boots in seconds without KVM.
const FLAVOUR: &str = "-cloud-amd64";

/// A kernel that is unpacked on this machine.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// The package.
    pub(super) package: String,
    /// The image to boot.
    pub(super) image: PathBuf,
    /// Its modules: `lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
}

/// The cache of packages.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    opened: Vec<(&'static str, Suite)>,
}

impl Cache {
    /// The cache of this user.
    ///
    /// # Errors
    ///
    /// There is no home directory, or no apt.
    pub(super) fn open() -> Result<Self> {
        if !apt::is_here() {
            bail!("kernels come from Debian's packages, and this machine has no apt");
        }
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
        let folder = base.context("HOME is not set")?.join("vpc-gateway/kernels");
        Ok(Self { folder, opened: Vec::new() })
    }

    /// Finds the kernel that `request` names and fetches it unless it is here.
    ///
    /// # Errors
    ///
    /// No suite has it, or it cannot be fetched.
    pub(super) fn kernel(&mut self, request: &str) -> Result<Kernel> {
        let here = self.unpacked();
        if request != NEWEST
            && let Some(package) = choose(&here, request)
        {
            return self.unpacked_kernel(package);
        }
        let suites = if request == NEWEST { &[NEWEST_SUITE][..] } else { &SUITES };
        for name in suites {
            let suite = self.suite(name)?;
            let Some(package) = choose(&suite.packages(PREFIX)?, request) else { continue };
            if !here.contains(&package) {
                self.fetch(&suite, &package, &parts(&suite, &package)?)?;
            }
            return self.unpacked_kernel(package);
        }
        bail!("failed to find a kernel {request} in {}", suites.join(", "))
    }

    /// A statically linked `busybox`, fetched unless it is here.
    ///
    /// # Errors
    ///
    /// It cannot be fetched.
    pub(super) fn busybox(&mut self) -> Result<PathBuf> {
        const PACKAGE: &str = "busybox-static";
        let folder = self.folder.join(PACKAGE);
        if !folder.is_dir() {
            let suite = self.suite(SUITES[0])?;
            self.fetch(&suite, PACKAGE, &[PACKAGE.to_owned()])?;
        }
        let places = ["bin/busybox", "usr/bin/busybox"].map(|place| folder.join(place));
        let found = places.into_iter().find(|place| place.is_file());
        found.with_context(|| format!("failed to find busybox in {}", folder.display()))
    }

    /// The kernels that can be asked for: suite, package, and whether it is here.
    ///
    /// # Errors
    ///
    /// The lists cannot be fetched.
    pub(super) fn list(&mut self) -> Result<Vec<(&'static str, String, bool)>> {
        let here = self.unpacked();
        let mut rows = Vec::new();
        for name in SUITES {
            let mut found = self.suite(name)?.packages(PREFIX)?;
            found.retain(|package| version(package).is_some());
            found.sort_by_key(|package| numbers(package));
            rows.extend(found.into_iter().map(|package| {
                let cached = here.contains(&package);
                (name, package, cached)
            }));
        }
        Ok(rows)
    }

    fn suite(&mut self, name: &'static str) -> Result<Suite> {
        if let Some((_, suite)) = self.opened.iter().find(|(opened, _)| *opened == name) {
            return Ok(suite.clone());
        }
        let suite = Suite::open(&self.folder.join("suites").join(name), name)?;
        self.opened.push((name, suite.clone()));
        Ok(suite)
    }

    fn unpacked(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Downloads and unpacks; the final name appears only when all of it is there.
    fn fetch(&self, suite: &Suite, package: &str, parts: &[String]) -> Result<()> {
        let unpacked = suite.folder().join("unpacked");
        process::run(Command::new("rm").arg("-rf").arg(&unpacked))?;
        for part in parts {
            STEPS.say(format_args!("fetching {part} ..."));
            suite.download(part)?;
            apt::unpack(suite.folder(), part, &unpacked)?;
        }
        let place = self.folder.join(package);
        std::fs::rename(&unpacked, &place)
            .with_context(|| format!("failed to move {package} to {}", place.display()))?;
        process::run(Command::new("find").arg(suite.folder()).args(["-name", "*.deb", "-delete"]))
    }

    fn unpacked_kernel(&self, package: String) -> Result<Kernel> {
        let folder = self.folder.join(&package);
        let places = ["lib/modules", "usr/lib/modules"].map(|place| folder.join(place));
        let modules = places.iter().find(|place| place.is_dir());
        let modules = only_entry(modules.context("the package has no modules")?, "")?;
        let beside = modules.join("vmlinuz");
        let image =
            if beside.is_file() { beside } else { only_entry(&folder.join("boot"), "vmlinuz-")? };
        Ok(Kernel { package, image, modules })
    }
}

/// The packages that a kernel consists of: from 7.x on the image is an empty one that needs two.
fn parts(suite: &Suite, package: &str) -> Result<Vec<String>> {
    let version = package.trim_start_matches(PREFIX);
    let split = ["linux-binary-", "linux-modules-"].map(|part| format!("{part}{version}"));
    for part in &split {
        if !suite.packages(part)?.contains(part) {
            return Ok(vec![package.to_owned()]);
        }
    }
    Ok(split.to_vec())
}

/// The one entry of a folder that begins with `prefix`.
fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("failed to list {}", folder.display()))?;
    let found = entries.flatten().find(|e| e.file_name().to_string_lossy().starts_with(prefix));
    let found = found.with_context(|| format!("nothing in {}", folder.display()))?;
    Ok(found.path())
}

/// The highest version among `packages` that `request` names: a package, a version like `6.1`, or
/// `newest`.
fn choose(packages: &[String], request: &str) -> Option<String> {
    if request.starts_with(PREFIX) {
        return packages.iter().find(|package| *package == request).cloned();
    }
    let fits = |package: &&String| {
        version(package).is_some_and(|version| {
            let rest = version.strip_prefix(request);
            request == NEWEST || rest.is_some_and(|rest| !rest.starts_with(char::is_numeric))
        })
    };
    packages.iter().filter(fits).max_by_key(|package| numbers(package)).cloned()
}

/// `linux-image-6.12.107+deb13-cloud-amd64` is `6.12.107+deb13`; other flavours have none.
fn version(package: &str) -> Option<&str> {
    let version = package.strip_prefix(PREFIX)?.strip_suffix(FLAVOUR)?;
    version.starts_with(char::is_numeric).then_some(version)
}

fn numbers(package: &str) -> Vec<u64> {
    let runs = package.split(|c: char| !c.is_ascii_digit());
    runs.filter_map(|run| run.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-41-cloud-amd64",
            "linux-image-6.1.0-42-amd64",
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.10+deb13-cloud-amd64",
            "linux-image-6.12.11+deb13-cloud-amd64-unsigned",
            "linux-image-cloud-amd64",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn a_version_names_its_highest_package() {
        let chosen = |request: &str| choose(&names(), request);
        assert_eq!(chosen("6.1").as_deref(), Some("linux-image-6.1.0-41-cloud-amd64"));
        assert_eq!(chosen("6.12").as_deref(), Some("linux-image-6.12.10+deb13-cloud-amd64"));
        assert_eq!(chosen("newest").as_deref(), Some("linux-image-6.12.10+deb13-cloud-amd64"));
        assert_eq!(chosen("5.15"), None);
    }

    #[test]
    fn a_package_names_itself() {
        let request = "linux-image-6.1.0-42-amd64";
        assert_eq!(choose(&names(), request).as_deref(), Some(request));
    }
}
