//! What this machine's apt is configured with, read and never changed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::Workspace;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long one transfer of apt may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Whether packages can be installed with apt.
pub(crate) fn is_here() -> bool {
    process::find("apt-get").is_some() && process::find("dpkg-deb").is_some()
}

/// Returns the mirror that this machine takes Debian itself from.
///
/// # Errors
///
/// No source names one, for example on a derivative of Debian.
pub(crate) fn mirror() -> Result<String> {
    let mut texts = Vec::new();
    texts.extend(std::fs::read_to_string("/etc/apt/sources.list"));
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        texts.extend(files.iter().filter_map(|file| std::fs::read_to_string(file).ok()));
    }
    texts.iter().find_map(|text| mirror_in(text)).context(
        "failed to find a Debian mirror in /etc/apt/sources.list and /etc/apt/sources.list.d",
    )
}

/// Finds the first archive of Debian itself in a list of sources, of either syntax.
fn mirror_in(text: &str) -> Option<String> {
    one_line_sources(text).chain(stanza_sources(text)).find(|uri| is_debian(uri))
}

/// The URIs of lines like `deb [signed-by=...] http://mirror/debian bookworm main`.
fn one_line_sources(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        rest.split_whitespace().next().map(str::to_owned)
    })
}

/// The URIs of stanzas with `Types: deb` and `URIs: http://mirror/debian`.
fn stanza_sources(text: &str) -> impl Iterator<Item = String> {
    text.split("\n\n").flat_map(|stanza| {
        let field = |name: &'static str| {
            stanza.lines().find_map(move |line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        let active = field("Types")
            .is_some_and(|types| types.split_whitespace().any(|t| t == "deb"))
            && field("Enabled").is_none_or(|enabled| enabled.trim() != "no");
        let uris = field("URIs").filter(|_| active).unwrap_or_default();
        uris.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    })
}

/// An archive of Debian ends in `/debian`; `/debian-security` and others hold no backports.
fn is_debian(uri: &str) -> bool {
    uri.contains("://") && uri.trim_end_matches('/').ends_with("/debian")
}

/// A suite of the mirror, read through lists of our own.
#[derive(Clone, Debug)]
pub(crate) struct Suite {
    name: String,
    folder: PathBuf,
}

impl Suite {
    /// Fetches the lists of the suite `name` into `folder`, which packages are downloaded to as well.
    ///
    /// # Errors
    ///
    /// The lists cannot be fetched.
    pub(crate) fn open(folder: &Path, name: &str) -> Result<Self> {
        for path in [folder.join("lists/partial"), folder.join("archives/partial")] {
            std::fs::create_dir_all(&path)
                .with_context(|| format!("failed to create {}", path.display()))?;
        }
        let source = folder.join("sources.list");
        let line = format!("deb [signed-by={KEYRING}] {} {name} main\n", mirror()?);
        std::fs::write(&source, line)
            .with_context(|| format!("failed to write {}", source.display()))?;
        process::run_within(LIMIT, private("apt-get", folder).args(["-qq", "update"]))
            .with_context(|| format!("failed to read the package lists of {name}"))?;
        Ok(Self { name: name.to_owned(), folder: folder.to_owned() })
    }

    /// Where packages are downloaded to.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of all packages that begin with `prefix`.
    ///
    /// # Errors
    ///
    /// The lists cannot be read.
    pub(crate) fn packages(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::read(private("apt-cache", &self.folder).args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Downloads `NAME` or `NAME=VERSION`.
    ///
    /// # Errors
    ///
    /// The package cannot be fetched.
    pub(crate) fn download(&self, package: &str) -> Result<()> {
        process::run_within(
            LIMIT,
            private("apt-get", &self.folder).args(["-qq", "download", package]),
        )
        .with_context(|| format!("failed to download {package} from {}", self.name))
    }
}

/// Downloads a package of an upstream version from `suite`, to be unpacked with [`unpack`].
///
/// Returns `false` if the suite has no such version.
///
/// # Errors
///
/// The lists or the package cannot be fetched.
pub(crate) fn download(
    workspace: &Workspace,
    suite: &str,
    package: &str,
    version: &str,
) -> Result<bool> {
    let suite = Suite::open(&workspace.scratch("apt"), suite)?;
    let known = process::read(private("apt-cache", &suite.folder).args(["madison", package]))?;
    let Some(exact) = matching_version(&known, version) else { return Ok(false) };
    suite.download(&format!("{package}={exact}"))?;
    Ok(true)
}

/// A program of apt that uses `folder` in place of the machine's lists, sources and caches.
fn private(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(std::process::Stdio::null());
    for (option, value) in [
        ("Dir::Etc::sourcelist", folder.join("sources.list")),
        ("Dir::Etc::sourceparts", "-".into()),
        ("Dir::State::lists", folder.join("lists")),
        ("Dir::Cache", folder.to_path_buf()),
        ("Acquire::Languages", "none".into()),
        ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".into()),
        ("Acquire::Retries", "3".into()),
        // The default user of transfers cannot write into a folder of ours.
        ("APT::Sandbox::User", "root".into()),
    ] {
        command.arg("-o").arg(format!("{option}={}", value.display()));
    }
    command
}

/// Finds the package version of an upstream version in the output of `apt-cache madison`.
fn matching_version<'a>(madison: &'a str, upstream: &str) -> Option<&'a str> {
    madison.lines().find_map(|line| {
        let version = line.split('|').nth(1)?.trim();
        let rest = version.strip_prefix(upstream)?;
        matches!(rest.chars().next(), None | Some('+' | '-' | '~')).then_some(version)
    })
}

/// Unpacks a package that was downloaded into `folder`, on top of what is in `destination`.
///
/// # Errors
///
/// The package is not there or is damaged.
pub(crate) fn unpack(folder: &Path, package: &str, destination: &Path) -> Result<()> {
    let prefix = format!("{package}_");
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("failed to list {}", folder.display()))?;
    let archive = entries.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&prefix) && name.ends_with(".deb")
    });
    let Some(archive) = archive else {
        bail!("failed to find the package {package} in {}", folder.display());
    };
    process::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(destination))
        .with_context(|| format!("failed to unpack {}", archive.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_found_in_stanzas() {
        let text = "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n\n\
            Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm\n";
        assert_eq!(mirror_in(text).as_deref(), Some("http://mirror.example/debian/"));
    }

    #[test]
    fn a_stanza_that_is_off_does_not_count() {
        let text = "Types: deb\nEnabled: no\nURIs: http://off.example/debian\n\nTypes: deb-src\n\
            URIs: http://source.example/debian\n";
        assert_eq!(mirror_in(text), None);
    }

    #[test]
    fn a_mirror_is_found_in_lines() {
        let text = "# deb http://old.example/debian bookworm main\n\
            deb https://packages.example/apt stable main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n";
        assert_eq!(mirror_in(text).as_deref(), Some("http://mirror.example/debian"));
    }

    #[test]
    fn only_the_very_same_upstream_version_matches() {
        let madison = " rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://m/debian trixie-backports/main\n \
            rust-src | 1.90.0+dfsg1-1~bpo13+1 | http://m/debian trixie-backports/main\n";
        assert_eq!(matching_version(madison, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching_version(madison, "1.90.0"), Some("1.90.0+dfsg1-1~bpo13+1"));
        assert_eq!(matching_version(madison, "1.9"), None);
    }
}
