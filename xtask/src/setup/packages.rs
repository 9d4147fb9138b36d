//! The programs that tests and the demo run.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{STEPS, apt};
use crate::privilege::Privilege;
use crate::process;

/// A program, what for, and where Debian keeps it.
#[derive(Debug)]
pub(crate) struct Program {
    /// The command.
    pub(crate) command: &'static str,
    /// The Debian packages that have it; the first one known to apt is taken.
    pub(crate) packages: &'static [&'static str],
    /// What would not work without it.
    pub(crate) purpose: &'static str,
    /// Whether tests and the demo do without it.
    pub(crate) optional: bool,
}

pub(crate) const fn program(
    command: &'static str,
    packages: &'static [&'static str],
    purpose: &'static str,
) -> Program {
    Program { command, packages, purpose, optional: false }
}

const fn optional(program: Program) -> Program {
    Program { optional: true, ..program }
}

/// Everything that tests and the demo start.
pub(crate) const PROGRAMS: [Program; 10] = [
    program("ip", &["iproute2"], "network namespaces and links of the lab"),
    program("ping", &["iputils-ping"], "ICMP through the gateway"),
    program("sysctl", &["procps"], "forwarding in the lab's routers"),
    program("ethtool", &["ethtool"], "offloads of the lab's links"),
    program("curl", &["curl"], "HTTP through the gateway"),
    program("nginx", &["nginx-light", "nginx"], "the HTTP server behind the gateway"),
    program("iperf3", &["iperf3"], "TCP streams through the gateway"),
    program("/usr/lib/frr/bfdd", &["frr"], "the other end of BFD sessions"),
    optional(program("tcpdump", &["tcpdump"], "looking at the lab's packets")),
    program("bpftool", &["bpftool"], "reading the maps"),
];

/// What the bench measures beside the gateway.
pub(crate) const COMPETITORS: [Program; 3] = [
    program("iptables-legacy-restore", &["iptables"], "the rules that Kube-OVN programs"),
    program("nft", &["nftables"], "the same rules as an nftables map"),
    program("conntrack", &["conntrack"], "ending the sessions of both"),
];

/// The programs that are not there.
pub(crate) fn missing() -> Vec<&'static Program> {
    absent(&PROGRAMS)
}

/// Those of a list that are not there.
pub(crate) fn absent(programs: &'static [Program]) -> Vec<&'static Program> {
    programs.iter().filter(|program| process::find(program.command).is_none()).collect()
}

/// Installs Debian's packages of the missing programs, or says what to install.
///
/// # Errors
///
/// A required program cannot be installed.
pub(crate) fn install(missing: &[&Program]) -> Result<()> {
    let Some(privilege) = Privilege::find().filter(|_| apt::is_here()) else {
        return advise(missing, "there is no apt, or neither root nor sudo");
    };
    let choose = || -> Vec<&str> { missing.iter().filter_map(|p| known_package(p)).collect() };
    let mut packages = choose();
    let mut updated = false;
    if packages.len() < missing.len() {
        update(privilege)?;
        updated = true;
        packages = choose();
    }
    STEPS.say(format_args!("programs: installing {} with apt ...", packages.join(" ")));
    let policy = NoServices::declare(privilege)?;
    let mut result = install_packages(privilege, &packages);
    if result.is_err() && !updated {
        // The lists may name versions that the mirror has replaced.
        update(privilege)?;
        result = install_packages(privilege, &packages);
    }
    drop(policy);
    for (package, service) in
        [("nginx", "nginx"), ("etcd-server", "etcd"), ("containerd", "containerd")]
    {
        if packages.iter().any(|installed| installed.starts_with(package)) {
            disable(privilege, service);
        }
    }
    let gone = |program: &&&Program| process::find(program.command).is_none();
    let missing: Vec<&Program> = missing.iter().filter(gone).copied().collect();
    match result {
        Ok(()) => advise(&missing, "apt did not bring them"),
        Err(error) => advise(&missing, &format!("{error:#}")),
    }
}

/// Names what is still missing; an error if it is required.
fn advise(missing: &[&Program], cause: &str) -> Result<()> {
    let mut text = String::new();
    for program in missing {
        let need = if program.optional { "optional" } else { "required" };
        let _ = write!(text, "\n  {} ({need}): {}", program.command, program.purpose);
    }
    if missing.iter().any(|program| !program.optional) {
        bail!("failed to install programs: {cause}; install these and try again:{text}");
    }
    if !missing.is_empty() {
        STEPS.say(format_args!("programs: not there ({cause}):{text}"));
    }
    Ok(())
}

/// The first package of a program that apt knows.
fn known_package(program: &Program) -> Option<&'static str> {
    program.packages.iter().copied().find(|package| {
        let mut command = Command::new("apt-cache");
        command.args(["-q=2", "show", "--no-all-versions", package]);
        process::read(&mut command).is_ok_and(|text| text.contains("Package: "))
    })
}

fn update(privilege: Privilege) -> Result<()> {
    STEPS.say("programs: reading the package lists with apt-get update ...");
    process::read(apt_get(privilege).arg("update"))
        .map(drop)
        .context("failed to read package lists")
}

fn install_packages(privilege: Privilege, packages: &[&str]) -> Result<()> {
    process::read(apt_get(privilege).args(["install", "--no-install-recommends"]).args(packages))
        .map(drop)
        .context("failed to install packages")
}

fn apt_get(privilege: Privilege) -> Command {
    let mut command = privilege.command("apt-get", &[("DEBIAN_FRONTEND", "noninteractive".into())]);
    command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]).stdin(Stdio::null());
    command
}

/// Tests start servers of their own inside namespaces: none of this machine must come with them, not
/// even at its next start.
fn disable(privilege: Privilege, service: &str) {
    if process::find("systemctl").is_none() {
        return;
    }
    for verb in ["disable", "stop"] {
        // Where no such unit is known, or no systemd runs, there is nothing to do.
        let mut command = privilege.command("systemctl", &[]);
        let _ = process::read(command.args(["--quiet", verb, service]));
    }
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// While it lives, packages do not start their services (`policy-rc.d`, as Debian's images have it).
struct NoServices {
    privilege: Option<Privilege>,
}

impl NoServices {
    fn declare(privilege: Privilege) -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { privilege: None });
        }
        let script = format!(
            "printf '#!/bin/sh\\n# Temporary, by cargo xtask setup: services stay off.\\nexit 101\\n' \
             > {POLICY} && chmod 755 {POLICY}"
        );
        process::run(privilege.command("sh", &[]).args(["-c", &script]))
            .with_context(|| format!("failed to write {POLICY}"))?;
        Ok(Self { privilege: Some(privilege) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let Some(privilege) = self.privilege else { return };
        if let Err(error) = process::run(privilege.command("rm", &[]).args(["-f", POLICY])) {
            STEPS.say(format_args!("programs: remove {POLICY} by hand: {error:#}"));
        }
    }
}
