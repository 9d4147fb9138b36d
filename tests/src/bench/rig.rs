//! Three namespaces in a row: VPC, gateway, outside; and the traffic through them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::flow::{Flows, Target};
use super::plan::{
    A, B, B_6, EIP_DNAT, EIP_FIP, EIP_SNAT, EIP_SNAT_6, Kind, LAN, LAN_6, MACS, WAN, WAN_6, X, X_6,
};
use super::traffic::{Burst, Table, Traffic};
use crate::lab::cleanup;
use crate::lab::netns::Netns;
use crate::lab::scratch::Scratch;
use crate::lab::topology::External;

/// First part of every namespace name.
pub const PREFIX: &str = "vgwbench";

/// Interfaces by index.
#[derive(Clone, Copy, Debug)]
struct Links {
    vpc: u32,
    net1: u32,
    outside: u32,
}

/// The namespaces and what sends through them; dropped, they are gone.
pub struct Rig {
    /// Common part of all names.
    pub name: String,
    /// The VPC: every host of it.
    pub vpc: Netns,
    /// The gateway pod.
    pub gateway: Netns,
    /// Everything outside.
    pub outside: Netns,
    /// The node that owns the parent of a macvlan.
    _node: Option<Netns>,
    /// Configurations and logs.
    pub scratch: Scratch,
    /// Generator and sinks.
    pub traffic: Traffic,
    links: Links,
}

impl Rig {
    /// Builds the namespaces; `word` is part of their names.
    ///
    /// # Errors
    /// Missing privilege or kernel feature.
    pub fn build(word: &str, external: External, table: Option<Table>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        cleanup::on_signals()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{count}-{word}", std::process::id());
        let make = |role: &str| Netns::create(&format!("{name}-{role}"));
        let node = match external {
            External::Veth => None,
            External::Macvlan => Some(make("node")?),
        };
        let (vpc, gateway, outside) = (make("vpc")?, make("gw")?, make("out")?);
        wire(&vpc, &gateway, &outside, node.as_ref())?;
        let index = |ns: &Netns, link: &'static str| -> Result<u32> {
            ns.enter(|| if_nametoindex(link))?.with_context(|| format!("no interface {link}"))
        };
        let links = Links {
            vpc: index(&vpc, "eth0")?,
            net1: index(&gateway, "net1")?,
            outside: index(&outside, "ext")?,
        };
        let scratch = Scratch::create(&name)?;
        Ok(Self {
            vpc,
            gateway,
            outside,
            _node: node,
            scratch,
            traffic: Traffic::load(table)?,
            links,
            name,
        })
    }

    /// Makes both ends ready for generated frames: the gateway takes them, the hosts count them.
    ///
    /// # Errors
    /// The kernel refuses a program or an offload.
    pub fn instrument(&mut self) -> Result<()> {
        // A veth takes redirected frames only if its peer polls, as it does with GRO.
        for link in ["eth0", "net1"] {
            self.gateway.output(Command::new("ethtool").args(["-K", link, "gro", "on"]))?;
        }
        let traffic = &mut self.traffic;
        for (ns, link) in [(&self.vpc, "eth0"), (&self.outside, "ext")] {
            ns.enter(|| traffic.attach_xdp("sink_xdp", link))??;
        }
        Ok(())
    }

    /// Attaches a bare redirect from the VPC to the outside in place of a gateway.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn redirect(&mut self, program: &str, is_xdp: bool) -> Result<()> {
        let macs = pair(MACS[3], MACS[2]);
        let target = Target { ifindex: self.links.net1, neighbor: X.octets(), macs };
        let traffic = &mut self.traffic;
        traffic.aim(target)?;
        self.gateway.enter(|| {
            if is_xdp {
                traffic.attach_xdp(program, "eth0")
            } else {
                traffic.attach_tc(program, "eth0")
            }
        })?
    }

    /// Fills in what these namespaces decide.
    fn place(&self, kind: Kind, mut flows: Flows) -> Flows {
        (flows.ifindex, flows.macs) = if kind.is_inbound() {
            (self.links.outside, pair(MACS[2], MACS[3]))
        } else {
            (self.links.vpc, pair(MACS[1], MACS[0]))
        };
        flows
    }

    /// Sends frames from the CPU that the bench has chosen for the whole path.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn send(&mut self, kind: Kind, flows: &Flows, count: u32) -> Result<Burst> {
        let flows = self.place(kind, *flows);
        let ns = if kind.is_inbound() { &self.outside } else { &self.vpc };
        let traffic = &mut self.traffic;
        ns.enter(|| {
            pin(path_cpu())?;
            traffic.send(&flows, count)
        })?
    }
}

fn pair(destination: [u8; 6], source: [u8; 6]) -> [u8; 12] {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&destination);
    macs[6..].copy_from_slice(&source);
    macs
}

/// The CPU that frames are made, translated and counted on: the last one.
pub fn path_cpu() -> usize {
    std::thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

/// Binds the calling thread to a CPU.
///
/// # Errors
/// There is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("failed to bind a thread to a CPU")
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

fn veth(ends: [(&str, &Netns, [u8; 6]); 2]) -> String {
    let [(one, ns, address), (two, peer, peer_address)] = ends;
    format!(
        "link add {one} netns {} address {} type veth peer name {two} netns {} address {}",
        ns.name(),
        mac(address),
        peer.name(),
        mac(peer_address)
    )
}

fn wire(vpc: &Netns, gateway: &Netns, outside: &Netns, node: Option<&Netns>) -> Result<()> {
    for (key, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        gateway.sysctl(key, value)?;
    }
    let [inside, lan, wan, far] = MACS;
    gateway.ip_batch(&[veth([("eth0", vpc, inside), ("eth0", gateway, lan)])])?;
    match node {
        None => gateway.ip_batch(&[veth([("net1", gateway, wan), ("ext", outside, far)])])?,
        Some(node) => node.ip_batch(&[
            veth([("uplink", node, [2, 0, 0, 0, 0, 5]), ("ext", outside, far)]),
            "link set uplink up".into(),
            format!("link add net1 link uplink address {} type macvlan mode bridge", mac(wan)),
            format!("link set net1 netns {}", gateway.name()),
        ])?,
    }
    let up = |link: &str| format!("link set {link} up");
    let known = |address: String, octets: [u8; 6], link: &str| {
        format!("neigh add {address} lladdr {} dev {link} nud permanent", mac(octets))
    };
    vpc.ip_batch(&[
        up("eth0"),
        format!("address add {B}/14 dev eth0"),
        format!("address add {A}/14 dev eth0"),
        format!("address add {B_6}/64 dev eth0 nodad"),
        format!("route add default via {LAN}"),
        format!("route add default via {LAN_6}"),
    ])?;
    outside.ip_batch(&[
        up("ext"),
        format!("address add {X}/24 dev ext"),
        format!("address add {X_6}/64 dev ext nodad"),
        format!("route add 10.0.0.0/14 via {WAN}"),
        format!("route add fd00:10::/64 via {WAN_6}"),
    ])?;
    gateway.ip_batch(&[
        up("eth0"),
        up("net1"),
        format!("address add {LAN}/14 dev eth0"),
        format!("address add {LAN_6}/64 dev eth0 nodad"),
        format!("address add {WAN}/24 dev net1"),
        format!("address add {WAN_6}/64 dev net1 nodad"),
        known(A.to_string(), inside, "eth0"),
        known(B.to_string(), inside, "eth0"),
        known(X.to_string(), far, "net1"),
        known(X_6.to_string(), far, "net1"),
        format!("route add default via {X}"),
        format!("route add default via {X_6}"),
    ])?;
    // As `eip-add` does it; the gateway under test finds them there.
    let eips = [EIP_FIP, EIP_SNAT, EIP_DNAT].map(|eip| format!("address add {eip}/24 dev net1"));
    gateway.ip_batch(&eips)?;
    gateway.ip_batch(&[format!("address add {EIP_SNAT_6}/64 dev net1 nodad")])
}
