//! A topology with its servers running.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::echo::{ECHO_PORT, EchoServers};
use super::gateway::{Gateway, Settings};
use super::http::Nginx;
use super::manifests::Manifests;
use super::topology::{Options, Topology};

/// Everything around the gateway: namespaces and the servers in them.
#[derive(Debug)]
pub struct World {
    /// nginx on B.
    pub nginx_b: Nginx,
    /// nginx on X.
    pub nginx_x: Nginx,
    _echo: Vec<EchoServers>,
    /// The namespaces; last, so that the servers end first.
    pub net: Topology,
}

impl World {
    /// Builds the topology and starts echo servers on every host, nginx on B and X.
    ///
    /// # Errors
    /// Missing privilege or program.
    pub fn build(options: &Options) -> Result<Self> {
        let net = Topology::build(options)?;
        let start = |host: &super::topology::Host| EchoServers::start(&host.ns, ECHO_PORT);
        let echo = net.hosts().into_iter().map(start).collect::<Result<Vec<_>>>()?;
        let nginx_b = Nginx::start(&net.b.ns, &net.scratch)?;
        let nginx_x = Nginx::start(&net.x.ns, &net.scratch)?;
        Ok(Self { nginx_b, nginx_x, _echo: echo, net })
    }

    /// The file that [`Self::configure`] writes.
    pub fn config(&self) -> PathBuf {
        self.net.scratch.join("config").join("gateway.yaml")
    }

    /// Writes the manifests in one step, as an editor does: a new file takes the old one's name.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn configure(&self, yaml: &str) -> Result<()> {
        let path = self.config();
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let draft = self.net.scratch.write("draft.yaml", yaml)?;
        Ok(fs::rename(draft, path)?)
    }

    /// The settings of a gateway with these manifests, which are written.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn settings(
        &self,
        binary: &Path,
        manifests: &Manifests,
        arguments: &[&str],
    ) -> Result<Settings> {
        self.configure(&manifests.yaml())?;
        Ok(Settings {
            binary: binary.to_owned(),
            name: manifests.gateway.clone(),
            object: None,
            config: self.net.scratch.join("config"),
            arguments: arguments.iter().map(ToString::to_string).collect(),
        })
    }

    /// Starts a gateway with the rules of the packet table; it has the name of the topology.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn start_gateway(&self, binary: &Path, arguments: &[&str]) -> Result<Gateway> {
        self.start_gateway_with(binary, &Manifests::standard(&self.net.name), arguments)
    }

    /// Starts a gateway with other rules.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn start_gateway_with(
        &self,
        binary: &Path,
        manifests: &Manifests,
        arguments: &[&str],
    ) -> Result<Gateway> {
        Gateway::start(&self.net, self.settings(binary, manifests, arguments)?)
    }
}
