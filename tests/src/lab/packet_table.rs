//! The packet table of the Kube-OVN gateway as connections: who asks whom, and whom the server sees.
//!
//! The numbers are the rows of the table in the contract that this project keeps with Kube-OVN.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};

use super::addresses::{A, B, C, D, LAN, WAN, X, Y, v6};
use super::checks::Observation;
use super::echo::ECHO_PORT;
use super::manifests::{
    DNAT_ECHO, DNAT_ECHO_D, EIP_DNAT, EIP_FIP, EIP_SNAT, EIP_SNAT_WIDE, EIP_UNUSED,
};
use super::netns::Netns;
use super::probe::{self, Exchange, Refusal};
use super::topology::Topology;

/// A machine of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the machines are drawn in `topology`")]
pub enum Who {
    A,
    B,
    C,
    D,
    X,
    Y,
    Gateway,
}

impl Who {
    /// Its namespace.
    pub fn ns(self, net: &Topology) -> &Netns {
        match self {
            Self::A => &net.a.ns,
            Self::B => &net.b.ns,
            Self::C => &net.c.ns,
            Self::D => &net.d.ns,
            Self::X => &net.x.ns,
            Self::Y => &net.y.ns,
            Self::Gateway => &net.gateway,
        }
    }

    /// Its interface towards the gateway.
    pub fn interface(self) -> &'static str {
        match self {
            Self::X => "ext",
            Self::A | Self::B | Self::C | Self::D | Self::Y | Self::Gateway => "eth0",
        }
    }
}

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// One UDP datagram each way.
    Udp,
    /// A UDP datagram of 4000 bytes each way: three fragments.
    UdpFragments,
    /// A TCP connection with one line each way.
    Tcp,
}

/// The family that a row of the table is tried in. The rows are written in IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as everybody does")]
pub enum Ip {
    V4,
    V6,
}

impl Ip {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The address that stands for an IPv4 address of the lab.
    pub fn address(self, v4_address: Ipv4Addr) -> IpAddr {
        match self {
            Self::V4 => v4_address.into(),
            Self::V6 => v6(v4_address).into(),
        }
    }

    /// The same for an endpoint.
    pub fn endpoint(self, at: SocketAddrV4) -> SocketAddr {
        SocketAddr::new(self.address(*at.ip()), at.port())
    }
}

/// What becomes of the client's source port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// The server sees the very same.
    Kept,
    /// The server sees one of these.
    Within(RangeInclusive<u16>),
}

const HIGH: Port = Port::Within(1024..=65535);

/// A connection of the table that works.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Row of the table.
    pub row: u8,
    /// What it shows.
    pub name: &'static str,
    /// The client.
    pub from: Who,
    /// Its source port.
    pub port: u16,
    /// Where it connects to.
    pub to: SocketAddrV4,
    /// The source address that the server sees.
    pub seen: Ipv4Addr,
    /// The source port that the server sees.
    pub seen_port: Port,
    /// The protocols to try.
    pub over: &'static [Over],
}

impl Flow {
    /// Makes the connection over one protocol and compares what the server saw.
    ///
    /// # Errors
    /// It does not work, or the server saw someone else.
    pub fn run(&self, net: &Topology, over: Over, ip: Ip) -> Result<Observation> {
        let (ns, to) = (self.from.ns(net), ip.endpoint(self.to));
        let Exchange { local, seen, .. } = match over {
            Over::Udp => probe::udp(ns, self.port, to, b"datagram"),
            Over::UdpFragments => probe::udp(ns, self.port, to, &[0x5a; 4000]),
            Over::Tcp => probe::tcp(ns, self.port, to),
        }?;
        let want = ip.address(self.seen);
        ensure!(seen.ip() == want, "the server saw {seen}, not {want} (client {local})");
        match &self.seen_port {
            Port::Kept => ensure!(seen.port() == local.port(), "{local} became {seen}"),
            Port::Within(range) => {
                ensure!(range.contains(&seen.port()), "{local} became {seen}, not in {range:?}");
            }
        }
        Ok(Observation::new(format_args!("{over:?} {local} to {to}"), seen))
    }

    /// A name for one protocol of it.
    pub fn title(&self, over: Over, ip: Ip) -> String {
        format!("row {} {} ({over:?} over {ip:?})", self.row, self.name)
    }
}

const ALL: &[Over] = &[Over::Udp, Over::Tcp, Over::UdpFragments];
const BOTH: &[Over] = &[Over::Udp, Over::Tcp];
const TCP: &[Over] = &[Over::Tcp];

const fn echo(host: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(host, ECHO_PORT)
}

/// The connections that work whatever `--unmatched` says.
pub fn flows() -> Vec<Flow> {
    use Port::{Kept, Within};
    use Who::{A as HostA, B as HostB, C as HostC, D as HostD, Gateway, X as OutX, Y as OutY};
    let flow = |row, name, from, port, to, seen, seen_port, over| Flow {
        row,
        name,
        from,
        port,
        to,
        seen,
        seen_port,
        over,
    };
    let (fip, dnat) = (echo(EIP_FIP), DNAT_ECHO);
    vec![
        flow(1, "X reaches the floating IP", OutX, 4001, fip, X, Kept, ALL),
        flow(1, "Y reaches the floating IP", OutY, 4001, fip, Y, Kept, ALL),
        flow(3, "A goes out as its floating IP", HostA, 4003, echo(Y), EIP_FIP, Kept, ALL),
        flow(3, "a low port of A is kept", HostA, 443, echo(X), EIP_FIP, Kept, BOTH),
        flow(4, "B goes out through SNAT", HostB, 4004, echo(Y), EIP_SNAT, HIGH, BOTH),
        flow(4, "B reaches X through SNAT", HostB, 4004, echo(X), EIP_SNAT, HIGH, BOTH),
        flow(4, "ports below 512 stay there", HostB, 300, echo(Y), EIP_SNAT, Within(1..=511), BOTH),
        flow(4, "512 to 1023 stay", HostB, 700, echo(Y), EIP_SNAT, Within(512..=1023), BOTH),
        flow(6, "the longest prefix wins", HostB, 4006, echo(Y), EIP_SNAT, HIGH, BOTH),
        flow(6, "C only fits the wide rule", HostC, 4006, echo(Y), EIP_SNAT_WIDE, HIGH, BOTH),
        flow(7, "FIP wins over SNAT", HostA, 4007, echo(Y), EIP_FIP, Kept, BOTH),
        flow(8, "X reaches B through DNAT", OutX, 4008, dnat, X, Kept, BOTH),
        flow(8, "Y reaches B through DNAT", OutY, 4008, dnat, Y, Kept, BOTH),
        flow(8, "DNAT into the second subnet", OutY, 4008, DNAT_ECHO_D, Y, Kept, TCP),
        flow(11, "hairpin from B to the FIP", HostB, 4011, fip, EIP_FIP, HIGH, BOTH),
        flow(11, "hairpin from D to the FIP", HostD, 4011, fip, EIP_FIP, HIGH, BOTH),
        flow(12, "hairpin from C to DNAT", HostC, 4012, dnat, EIP_DNAT, HIGH, BOTH),
        flow(12, "hairpin from B to its own DNAT", HostB, 4012, dnat, EIP_DNAT, HIGH, BOTH),
        flow(12, "hairpin from D to DNAT", HostD, 4012, dnat, EIP_DNAT, HIGH, BOTH),
        flow(13, "the FIP host uses DNAT as itself", HostA, 4013, dnat, EIP_FIP, Kept, BOTH),
        flow(14, "the FIP host reaches its own EIP", HostA, 4014, fip, EIP_FIP, Kept, BOTH),
        flow(21, "the gateway itself goes out", Gateway, 4021, echo(Y), WAN, Kept, BOTH),
        flow(21, "the gateway itself goes in", Gateway, 4021, echo(B), LAN, Kept, BOTH),
        flow(22, "between the VPC subnets", HostC, 4022, echo(D), C, Kept, BOTH),
    ]
}

/// The connections that only work with `--unmatched forward`.
pub fn unmatched_flows() -> Vec<Flow> {
    let flow = |row, name, from, port, to, seen| {
        let (seen_port, over) = (Port::Kept, BOTH);
        Flow { row, name, from, port, to, seen, seen_port, over }
    };
    vec![
        flow(19, "no SNAT rule: forwarded as it is", Who::D, 4019, echo(Y), D),
        flow(20, "X reaches B directly", Who::X, 4020, echo(B), X),
        flow(20, "Y reaches A directly", Who::Y, 4020, echo(A), Y),
    ]
}

/// A ping of the table.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Row of the table.
    pub row: u8,
    /// What it shows.
    pub name: &'static str,
    /// Who pings.
    pub from: Who,
    /// Whom.
    pub to: Ipv4Addr,
    /// Where the request shows up, with which source, and whether its identifier is kept; `None`
    /// if the gateway itself answers and no host sees it.
    pub seen: Option<(Who, Ipv4Addr, bool)>,
}

/// The pings of the table.
pub const PINGS: &[Ping] = &[
    ping(1, "X pings the floating IP", Who::X, EIP_FIP, Some((Who::A, X, true))),
    ping(3, "A pings out as its floating IP", Who::A, Y, Some((Who::Y, EIP_FIP, true))),
    ping(15, "Y pings the floating IP", Who::Y, EIP_FIP, Some((Who::A, Y, true))),
    ping(15, "B pings the floating IP", Who::B, EIP_FIP, Some((Who::A, EIP_FIP, false))),
    ping(15, "A pings its own floating IP", Who::A, EIP_FIP, Some((Who::A, EIP_FIP, true))),
    ping(16, "X pings a DNAT EIP", Who::X, EIP_DNAT, None),
    ping(16, "Y pings a SNAT EIP", Who::Y, EIP_SNAT, None),
    ping(16, "X pings an unused EIP", Who::X, EIP_UNUSED, None),
    ping(16, "B pings an unused EIP", Who::B, EIP_UNUSED, None),
    ping(16, "B pings its own SNAT EIP", Who::B, EIP_SNAT, None),
    ping(16, "C pings a DNAT EIP", Who::C, EIP_DNAT, None),
    ping(21, "the gateway pings Y", Who::Gateway, Y, Some((Who::Y, WAN, true))),
    ping(23, "B pings through SNAT", Who::B, Y, Some((Who::Y, EIP_SNAT, false))),
    ping(23, "C pings through SNAT", Who::C, X, Some((Who::X, EIP_SNAT_WIDE, false))),
];

const fn ping(
    row: u8,
    name: &'static str,
    from: Who,
    to: Ipv4Addr,
    seen: Option<(Who, Ipv4Addr, bool)>,
) -> Ping {
    Ping { row, name, from, to, seen }
}

/// A connection that must not be made.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    /// Row of the table.
    pub row: u8,
    /// What it shows.
    pub name: &'static str,
    /// Who tries.
    pub from: Who,
    /// Where to.
    pub to: SocketAddrV4,
    /// Whether the gateway itself answers with a RST or port unreachable; otherwise the packet is
    /// dropped, with or without an ICMP error.
    pub refused: bool,
}

impl Closed {
    /// Tries over one protocol.
    ///
    /// # Errors
    /// It was accepted, or ended in another way.
    pub fn run(&self, net: &Topology, over: Over, ip: Ip) -> Result<Observation> {
        let (ns, to) = (self.from.ns(net), ip.endpoint(self.to));
        let refusal = match over {
            Over::Tcp => probe::tcp_refused(ns, to)?,
            Over::Udp | Over::UdpFragments => probe::udp_refused(ns, to)?,
        };
        let fits = (refusal == Refusal::Refused) == self.refused;
        ensure!(fits, "{over:?} from {:?} to {to} ended as {refusal:?}", self.from);
        Ok(Observation::new(format_args!("{over:?} {:?} to {to}", self.from), "nothing"))
    }
}

const CLOSED_PORT: u16 = 9;

/// The connections that are refused whatever `--unmatched` says.
pub const CLOSED: &[Closed] = &[
    closed(17, "an EIP port without a rule", Who::X, EIP_DNAT, CLOSED_PORT, true),
    closed(17, "an EIP without any rule", Who::Y, EIP_UNUSED, CLOSED_PORT, true),
    closed(17, "an EIP port without a rule", Who::B, EIP_DNAT, CLOSED_PORT, true),
    closed(18, "unsolicited to a SNAT EIP", Who::Y, EIP_SNAT, 40000, true),
    closed(18, "unsolicited to a SNAT EIP's echo port", Who::X, EIP_SNAT, ECHO_PORT, true),
];

/// The connections that are dropped without `--unmatched forward`.
pub const UNMATCHED: &[Closed] = &[
    closed(19, "no SNAT rule for the source", Who::D, Y, ECHO_PORT, false),
    closed(20, "X to an inside address", Who::X, B, ECHO_PORT, false),
    closed(20, "Y to the FIP host's inside address", Who::Y, A, ECHO_PORT, false),
];

const fn closed(
    row: u8,
    name: &'static str,
    from: Who,
    to: Ipv4Addr,
    port: u16,
    refused: bool,
) -> Closed {
    Closed { row, name, from, to: SocketAddrV4::new(to, port), refused }
}
