//! A world with a gateway and one connection of each kind through it.

use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::Result;

use super::addresses::Y;
use super::echo::ECHO_PORT;
use super::gateway::Gateway;
use super::manifests::{DNAT_ECHO, EIP_FIP};
use super::probe::{self, TcpProbe};
use super::topology::Options;
use super::world::World;

/// The echo server of Y.
pub const ECHO_Y: SocketAddrV4 = SocketAddrV4::new(Y, ECHO_PORT);
/// The echo server behind the floating IP.
pub const ECHO_FIP: SocketAddrV4 = SocketAddrV4::new(EIP_FIP, ECHO_PORT);

/// Open connections with a word for each.
pub type Connections = Vec<(&'static str, TcpProbe)>;

/// A running gateway and its world, for tests: every failure panics with what helps.
#[derive(Debug)]
pub struct Running {
    /// The gateway; dropped first.
    pub gateway: Gateway,
    /// Everything around it.
    pub world: World,
}

impl Running {
    /// Starts a gateway with the rules of the packet table over veth.
    ///
    /// # Panics
    /// It is not ready in time.
    pub fn start(binary: &Path) -> Self {
        let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
        let gateway = world.start_gateway(binary, &[]).unwrap_or_else(|e| panic!("{e:#}"));
        Self { gateway, world }
    }

    /// Opens one connection of each kind: SNAT, DNAT, floating IP in and out, hairpin.
    ///
    /// # Panics
    /// One cannot be opened.
    pub fn connections(&self) -> Connections {
        let net = &self.world.net;
        [
            ("SNAT", &net.b, ECHO_Y),
            ("DNAT", &net.y, DNAT_ECHO),
            ("FIP in", &net.x, ECHO_FIP),
            ("FIP out", &net.a, ECHO_Y),
            ("hairpin", &net.c, DNAT_ECHO),
        ]
        .into_iter()
        .map(|(what, host, to)| (what, self.must(what, TcpProbe::connect(&host.ns, 0, to))))
        .collect()
    }

    /// The value, or a panic with the log, the sessions and the drops of the gateway.
    ///
    /// # Panics
    /// There is no value.
    pub fn must<T>(&self, what: &str, outcome: Result<T>) -> T {
        outcome.unwrap_or_else(|e| panic!("{what}: {e:#}\n{}", self.gateway.diagnostics()))
    }

    /// Echoes a line over each connection.
    ///
    /// # Panics
    /// One is dead.
    pub fn all_alive(&self, connections: &mut Connections, when: &str) {
        for (what, connection) in connections {
            self.must(&format!("{what} {when}"), connection.echo(when));
        }
    }

    /// Whether a new connection of X works.
    ///
    /// # Errors
    /// It does not.
    pub fn accepts(&self, to: SocketAddrV4) -> Result<Option<()>> {
        probe::tcp(&self.world.net.x.ns, 0, to).map(|_| Some(()))
    }

    /// The IPv4 addresses of the gateway's external interface, as `ip` shows them.
    ///
    /// # Panics
    /// There is no such interface.
    pub fn external_addresses(&self) -> String {
        self.must("addresses", self.world.net.gateway.ip("-4 address show dev net1"))
    }
}
