//! The demo's stage: the topology, its servers as processes, the manifests, the gateway.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::leftovers::Record;
use super::rules::Rules;
use super::screen::Screen;
use crate::lab::echo::ECHO_PORT;
use crate::lab::gateway::{Gateway, PINS, Settings};
use crate::lab::http::{HTTP_PORT, Nginx};
use crate::lab::process::Process;
use crate::lab::tier;
use crate::lab::topology::{Host, Options, Topology};
use crate::lab::wait::wait_until;

/// First part of the demo's namespace names.
pub const PREFIX: &str = "vgwdemo";
/// The verb of the demo's own program that serves echoes.
pub const SERVE_ECHO: &str = "serve-echo";

/// Where everything happens. The parts are dropped in this order.
#[derive(Debug)]
pub struct Stage {
    /// The gateway under demonstration.
    pub gateway: Gateway,
    /// The rules it has in force.
    pub rules: Rules,
    nginxes: BTreeMap<Ipv4Addr, Nginx>,
    echoes: BTreeMap<(Ipv4Addr, u16), Process>,
    /// The namespaces.
    pub net: Topology,
}

impl Stage {
    /// Builds everything and starts the gateway on a copy of `manifests`.
    ///
    /// # Errors
    /// Missing privilege, program or file; a gateway of this name exists; it does not get ready.
    pub fn build(manifests: &Path, gateway: &str, screen: &Screen) -> Result<Self> {
        tier::namespaces_possible()?;
        tier::bpffs()?;
        let binary = tier::binary()?;
        let pins = Path::new(PINS).join(gateway);
        let hint = "if a demo left it: cargo xtask demo clean";
        ensure!(!pins.exists(), "gateway {gateway} exists: {} ({hint})", pins.display());
        screen.step("building the namespaces: VPC hosts, VPC router, gateway, outside hosts");
        let net = Topology::build(&Options { prefix: PREFIX, ..Options::default() })?;
        let config = copy(manifests, &net.scratch.join("config"))?;
        let (name, arguments) = (gateway.to_owned(), Vec::new());
        let settings = Settings { binary, name, object: None, config, arguments };
        Record::of(&net, &settings).write()?;
        screen.step(&format!("starting vpc-gateway with {}", manifests.display()));
        let gateway = Gateway::start(&net, settings)?;
        let rules = Rules::parse(&gateway.json("rules")?, &gateway.json("status")?)?;
        let mut stage =
            Self { gateway, rules, nginxes: BTreeMap::new(), echoes: BTreeMap::new(), net };
        screen.step("starting servers: nginx, UDP and TCP echo");
        stage.start_servers()?;
        Ok(stage)
    }

    /// The directory behind `/files/` of a host's nginx.
    pub fn files(&self, host: Ipv4Addr) -> Option<PathBuf> {
        self.nginxes.get(&host).map(|nginx| nginx.files().to_owned())
    }

    /// Whether the manifests have this address as a value.
    pub fn mentions(&self, address: Ipv4Addr) -> bool {
        let value = address.to_string();
        let texts = fs::read_dir(&self.gateway.settings().config).into_iter().flatten();
        let texts = texts.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let uncommented = |line: &str| line.split('#').next().unwrap_or_default().to_owned();
        texts.flat_map(|text| text.lines().map(uncommented).collect::<Vec<_>>()).any(|line| {
            line.split_whitespace().any(|word| word.trim_matches(['"', ',', '}']) == value)
        })
    }

    /// The host with this address.
    pub fn host(&self, address: Ipv4Addr) -> Option<&Host> {
        self.net.hosts().into_iter().find(|host| host.v4 == address)
    }

    /// Starts an echo server for each port that a rule leads to; nginx where that is HTTP.
    fn start_servers(&mut self) -> Result<()> {
        let mut wanted: Vec<(Ipv4Addr, u16)> =
            self.net.hosts().map(|host| (host.v4, ECHO_PORT)).to_vec();
        wanted.push((self.net.x.v4, HTTP_PORT));
        wanted.extend(self.rules.forwards.iter().map(|rule| (*rule.to.ip(), rule.to.port())));
        for (address, port) in wanted {
            self.start_server(address, port)?;
        }
        Ok(())
    }

    /// Starts a server on a port of a host, unless one runs there.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_server(&mut self, address: Ipv4Addr, port: u16) -> Result<()> {
        let Some(host) = self.net.hosts().into_iter().find(|host| host.v4 == address) else {
            return Ok(());
        };
        if port == HTTP_PORT {
            if !self.nginxes.contains_key(&address) {
                let nginx = Nginx::start(&host.ns, &self.net.scratch)?;
                self.nginxes.insert(address, nginx);
            }
        } else if !self.echoes.contains_key(&(address, port)) {
            let log = self.net.scratch.join(&format!("echo-{address}-{port}.log"));
            let mut command = Command::new(std::env::current_exe()?);
            command.args([SERVE_ECHO, &port.to_string()]);
            let server = host.ns.enter(|| Process::start(&mut command, &log))??;
            wait_until("an echo server", Duration::from_secs(5), || {
                Ok(server.log().contains("listening").then_some(()))
            })?;
            self.echoes.insert((address, port), server);
        }
        Ok(())
    }

    /// Leaves everything running.
    ///
    /// # Errors
    /// The record for `clean` cannot be written.
    pub fn keep(self) -> Result<Record> {
        let mut record = Record::of(&self.net, self.gateway.settings());
        record.kept = true;
        record.write()?;
        self.gateway.keep();
        self.nginxes.into_values().for_each(Nginx::keep);
        self.echoes.into_values().for_each(Process::keep);
        self.net.keep();
        Ok(record)
    }
}

fn copy(manifests: &Path, to: &Path) -> Result<PathBuf> {
    fs::create_dir(to)?;
    let missing = || format!("failed to read {}", manifests.display());
    for entry in fs::read_dir(manifests).with_context(missing)? {
        let from = entry?.path();
        if let Some(name) = from.file_name().filter(|_| from.is_file()) {
            fs::copy(&from, to.join(name))?;
        }
    }
    Ok(to.to_owned())
}
