//! The lab network: a VPC with a router, a gateway pod, and an outside with two hosts.
//!
//! ```text
//!   A .5  B .10  C .20                                        Y 198.51.100.7
//!    |     |      |     10.0.1.0/24                                |
//!   =+=====+======+====+====== br-net1 (router .1)                 |
//!   D 10.0.2.30 ---- br-net2   |                                   |
//!                              | eth0 .254                         |
//!                          [gateway] net1 203.0.113.2 --- .1 X ----+
//!                                    (veth, or macvlan on a veth)
//! ```
//!
//! The router plays OVN: the hosts' default route is the router, and the router's is the gateway.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use super::addresses::{A, B, C, D, LAN, ROUTER, ROUTER_2, VPC_NET_2, WAN, X, X_FAR, Y, v6};
use super::cleanup;
use super::netns::Netns;
use super::scratch::Scratch;

/// What the gateway's `net1` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum External {
    /// One end of a veth pair whose other end is X's.
    Veth,
    /// A macvlan, as Kube-OVN makes it, on a veth of the node whose other end is X's.
    Macvlan,
}

/// Who computes transport checksums. A veth accepts packets without one (`CHECKSUM_PARTIAL`), and
/// its peer trusts them: only a device that cannot do that brings a wrong one to light.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Nobody, as veth has it by default; segmentation is put off too.
    Deferred,
    /// The devices of the gateway, from the partial sums that hosts send.
    AtGateway,
    /// The senders.
    AtSender,
}

/// Choices for a topology.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What `net1` is.
    pub external: External,
    /// Who computes transport checksums.
    pub checksums: Checksums,
    /// First part of every namespace name.
    pub prefix: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { external: External::Veth, checksums: Checksums::Deferred, prefix: "vgw" }
    }
}

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    /// One word for messages: `A`, `X`.
    pub label: &'static str,
    /// Its namespace.
    pub ns: Netns,
    /// Its address.
    pub v4: Ipv4Addr,
}

/// The namespaces and links of one lab network; dropped, they are gone.
#[derive(Debug)]
pub struct Topology {
    /// Common part of all names of this lab.
    pub name: String,
    /// The floating-IP host.
    pub a: Host,
    /// A host with SNAT and DNAT.
    pub b: Host,
    /// Another host of the same subnet.
    pub c: Host,
    /// A host of the second subnet.
    pub d: Host,
    /// The VPC router.
    pub router: Netns,
    /// The gateway pod.
    pub gateway: Netns,
    /// The external gateway.
    pub x: Host,
    /// A host behind the external gateway.
    pub y: Host,
    /// The node that owns the parent of a macvlan.
    pub node: Option<Netns>,
    /// Configurations, logs, served files.
    pub scratch: Scratch,
}

impl Topology {
    /// Builds the network.
    ///
    /// # Errors
    /// Missing privilege or kernel feature.
    pub fn build(options: &Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        cleanup::on_signals()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{count}", options.prefix, std::process::id());
        let scratch = Scratch::create(&name)?;
        let make = |role: &str| Netns::create(&format!("{name}-{role}"));
        let host = |label, v4| -> Result<Host> {
            Ok(Host { label, ns: make(&str::to_lowercase(label))?, v4 })
        };
        let node = match options.external {
            External::Veth => None,
            External::Macvlan => Some(make("node")?),
        };
        let topology = Self {
            a: host("A", A)?,
            b: host("B", B)?,
            c: host("C", C)?,
            d: host("D", D)?,
            router: make("router")?,
            gateway: make("gateway")?,
            x: host("X", X)?,
            y: host("Y", Y)?,
            node,
            scratch,
            name,
        };
        topology.wire_vpc()?;
        topology.wire_outside()?;
        topology.place_checksums(options.checksums)?;
        Ok(topology)
    }

    /// The four VPC hosts.
    pub fn vpc_hosts(&self) -> [&Host; 4] {
        [&self.a, &self.b, &self.c, &self.d]
    }

    /// All hosts, inside and outside.
    pub fn hosts(&self) -> [&Host; 6] {
        [&self.a, &self.b, &self.c, &self.d, &self.x, &self.y]
    }

    /// Gives the gateway the routes it needs to forward without any NAT, as a kernel router.
    ///
    /// # Errors
    /// `ip` refuses a route.
    pub fn route_plainly(&self) -> Result<()> {
        self.gateway.ip_batch(&[
            format!("route replace {VPC_NET_2} via {ROUTER}"),
            format!("route replace fd00:10:2::/64 via {}", v6(ROUTER)),
        ])
    }

    /// A new namespace in place of the gateway's, with new interfaces where the old ones were: what a
    /// container runtime does when a pod is made anew. What runs in the old one keeps it.
    ///
    /// # Errors
    /// Missing privilege or kernel feature.
    pub fn replace_gateway(&mut self) -> Result<()> {
        let fresh = Netns::create(&format!("{}-anew", self.gateway.name()))?;
        self.unplug_gateway()?;
        self.plug_in(fresh)
    }

    /// Takes the gateway's interfaces away, as CNI plugins do when a pod ends.
    ///
    /// # Errors
    /// Missing privilege.
    pub fn unplug_gateway(&self) -> Result<()> {
        self.gateway.ip_batch(&["link delete eth0".into(), "link delete net1".into()])
    }

    /// Makes a namespace that has no interfaces yet the gateway.
    ///
    /// # Errors
    /// Missing privilege or kernel feature.
    pub fn plug_in(&mut self, fresh: Netns) -> Result<()> {
        self.gateway = fresh;
        forward(&self.gateway)?;
        let (router, gateway) = (&self.router, &self.gateway);
        router.ip_batch(&[
            veth("eth0", gateway.name(), "to-gateway", router.name()),
            "link set to-gateway master br-net1 up".into(),
            "neigh flush dev br-net1".into(),
        ])?;
        // A bridge takes the lowest MAC address of its ports. OVN's router keeps its own.
        self.vpc_hosts()
            .into_iter()
            .try_for_each(|host| host.ns.ip("neigh flush dev eth0").map(drop))?;
        gateway.ip_batch(&address("eth0", LAN))?;
        let outside = &self.x.ns;
        let mut lines = vec![veth("net1", gateway.name(), "ext", outside.name())];
        lines.extend(address("ext", X));
        lines.push(format!("route add 10.0.0.0/16 via {WAN}"));
        lines.push(format!("route add fd00:10::/32 via {}", v6(WAN)));
        outside.ip_batch(&lines)?;
        gateway.ip_batch(&address_and_default("net1", WAN, X))
    }

    /// All namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        let hosts = self.hosts().into_iter().map(|host| &host.ns);
        hosts.chain([&self.router, &self.gateway]).chain(&self.node)
    }

    /// Leaves everything in place for good.
    pub fn keep(self) {
        let hosts = [self.a, self.b, self.c, self.d, self.x, self.y].map(|host| host.ns);
        let others = [self.router, self.gateway].into_iter().chain(self.node);
        hosts.into_iter().chain(others).for_each(Netns::keep);
        self.scratch.keep();
    }

    fn wire_vpc(&self) -> Result<()> {
        forward(&self.router)?;
        let mut router = bridge("br-net1", ROUTER);
        router.extend(bridge("br-net2", ROUTER_2));
        for host in self.vpc_hosts() {
            let port = format!("to-{}", host.ns.name().rsplit('-').next().unwrap_or_default());
            router.push(veth("eth0", host.ns.name(), &port, self.router.name()));
            let bridge = if host.v4 == D { "br-net2" } else { "br-net1" };
            router.push(format!("link set {port} master {bridge} up"));
        }
        router.push(veth("eth0", self.gateway.name(), "to-gateway", self.router.name()));
        router.push("link set to-gateway master br-net1 up".into());
        self.router.ip_batch(&router)?;
        for host in self.vpc_hosts() {
            let via = if host.v4 == D { ROUTER_2 } else { ROUTER };
            host.ns.ip_batch(&address_and_default("eth0", host.v4, via))?;
        }
        self.gateway.ip_batch(&address("eth0", LAN))?;
        self.router.ip_batch(&default_route(LAN))
    }

    fn wire_outside(&self) -> Result<()> {
        forward(&self.gateway)?;
        forward(&self.x.ns)?;
        let (outside, gateway) = (self.x.ns.name(), self.gateway.name());
        match &self.node {
            None => self.x.ns.ip_batch(&[veth("net1", gateway, "ext", outside)])?,
            Some(node) => node.ip_batch(&[
                veth("uplink", node.name(), "ext", outside),
                "link set uplink up".into(),
                "link add net1 link uplink type macvlan mode bridge".into(),
                format!("link set net1 netns {gateway}"),
            ])?,
        }
        let mut lines = address("ext", X);
        lines.push(veth("far", outside, "eth0", self.y.ns.name()));
        lines.extend(address("far", X_FAR));
        lines.push(format!("route add 10.0.0.0/16 via {WAN}"));
        lines.push(format!("route add fd00:10::/32 via {}", v6(WAN)));
        self.x.ns.ip_batch(&lines)?;
        self.gateway.ip_batch(&address_and_default("net1", WAN, X))?;
        self.y.ns.ip_batch(&address_and_default("eth0", Y, X_FAR))
    }

    fn place_checksums(&self, place: Checksums) -> Result<()> {
        let ports = self.hosts().map(|host| (&host.ns, if host.v4 == X { "ext" } else { "eth0" }));
        let gateway = [(&self.gateway, "eth0"), (&self.gateway, "net1")];
        let all = ports.iter().chain(&gateway);
        let without_offload: Vec<_> = match place {
            Checksums::Deferred => Vec::new(),
            Checksums::AtGateway => gateway.to_vec(),
            Checksums::AtSender => all.copied().collect(),
        };
        for (ns, interface) in without_offload {
            ns.output(Command::new("ethtool").args(["-K", interface, "tx", "off"]))?;
        }
        Ok(())
    }
}

fn forward(ns: &Netns) -> Result<()> {
    ns.sysctl("ipv4/ip_forward", "1")?;
    ns.sysctl("ipv6/conf/all/forwarding", "1")
}

fn bridge(name: &str, v4: Ipv4Addr) -> Vec<String> {
    let mut lines = vec![format!("link add {name} type bridge")];
    lines.extend(address(name, v4));
    lines
}

fn veth(name: &str, ns: &str, peer: &str, peer_ns: &str) -> String {
    format!("link add {name} netns {ns} type veth peer name {peer} netns {peer_ns}")
}

fn address(interface: &str, v4: Ipv4Addr) -> Vec<String> {
    vec![
        format!("link set {interface} up"),
        format!("address add {v4}/24 dev {interface}"),
        format!("address add {}/64 dev {interface} nodad", v6(v4)),
    ]
}

fn default_route(via: Ipv4Addr) -> Vec<String> {
    vec![format!("route add default via {via}"), format!("route add default via {}", v6(via))]
}

fn address_and_default(interface: &str, v4: Ipv4Addr, via: Ipv4Addr) -> Vec<String> {
    let mut lines = address(interface, v4);
    lines.extend(default_route(via));
    lines
}
