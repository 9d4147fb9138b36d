//! A topology with its servers running.

use anyhow::Result;

use super::echo::{ECHO_PORT, EchoServers};
use super::http::Nginx;
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
}
