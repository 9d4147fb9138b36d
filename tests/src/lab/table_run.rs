//! Runs the packet table in a world with a gateway.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};

use super::addresses::{A, B, X, Y};
use super::capture::{Capture, Filter, Packet, summary};
use super::checks::{Checks, Observation};
use super::echo::{ECHO_PORT, EchoServers};
use super::manifests::{DNAT_ECHO, DNAT_HTTP, EIP_FIP, EIP_SNAT, EIP_UNUSED};
use super::packet_table::{CLOSED, Ip, Over, PINGS, Ping, UNMATCHED, Who, flows, unmatched_flows};
use super::topology::Topology;
use super::{http, probe};

const LOCAL_PORT: u16 = 7777;
const UDP_HEADER: usize = 8;

/// What the gateway was told to do with packets that no rule covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// Drop them: the default.
    Drop,
    /// Forward them as they are: what Kube-OVN's gateway does.
    Forward,
}

/// All rows, and that nothing with a private source is ever seen outside.
pub fn run(net: &Topology, unmatched: Unmatched, checks: &mut Checks) {
    let leaks = Capture::start(&net.x.ns, "ext", Filter::PrivateSource);
    for ip in Ip::ALL {
        for flow in flows() {
            for over in flow.over {
                checks.check(&flow.title(*over, ip), || flow.run(net, *over, ip));
            }
        }
    }
    for ping in PINGS {
        checks.check(&format!("row {} {}", ping.row, ping.name), || run_ping(net, ping));
        checks.check(&format!("row {} {} (IPv6)", ping.row, ping.name), || ping6(net, ping));
    }
    let mut closed = CLOSED.to_vec();
    if unmatched == Unmatched::Drop {
        closed.extend(UNMATCHED);
    }
    for (case, ip) in closed.iter().flat_map(|case| Ip::ALL.map(|ip| (case, ip))) {
        for over in [Over::Udp, Over::Tcp] {
            let name = format!("row {} {} from {:?}", case.row, case.name, case.from);
            checks.check(&format!("{name} ({over:?} over {ip:?})"), || case.run(net, over, ip));
        }
    }
    single_cases(net, checks);
    if unmatched == Unmatched::Drop {
        checks.check("no packet with a private source was seen outside", || no_leak(leaks));
        return;
    }
    for (flow, ip) in unmatched_flows().iter().flat_map(|flow| Ip::ALL.map(|ip| (flow, ip))) {
        for over in flow.over {
            checks.check(&flow.title(*over, ip), || flow.run(net, *over, ip));
        }
    }
}

fn single_cases(net: &Topology, checks: &mut Checks) {
    checks.check("row 1 protocol 99 to the floating IP", || {
        raw(net, Who::X, EIP_FIP, Who::A, (X, A))
    });
    checks
        .check("row 3 protocol 99 from the FIP host", || raw(net, Who::A, Y, Who::Y, (EIP_FIP, Y)));
    for ip in Ip::ALL {
        let name = format!("row 8 HTTP through DNAT over {ip:?}");
        checks.check(&name, || http_through_dnat(net, ip));
    }
    checks.check("row 9 replies of a DNAT flow keep its EIP", || dnat_reply(net));
    checks.check("row 17 a socket of the gateway answers on an EIP", || local_socket(net));
    checks.check("row 18 unsolicited packets reach no host", || unsolicited(net));
    let echo_y = SocketAddrV4::new(Y, ECHO_PORT);
    for (name, from, to, at, ttl) in [
        ("TTL falls by one: SNAT", Who::B, echo_y, Who::X, 62),
        ("TTL falls by one: FIP outbound", Who::A, echo_y, Who::X, 62),
        ("TTL falls by one: DNAT", Who::X, DNAT_ECHO, Who::B, 63),
        (
            "TTL falls by one: FIP inbound",
            Who::X,
            SocketAddrV4::new(EIP_FIP, ECHO_PORT),
            Who::A,
            63,
        ),
        ("TTL falls by one: hairpin", Who::C, DNAT_ECHO, Who::B, 62),
    ] {
        checks.check(name, || ttl_falls_once(net, from, to, at, ttl));
    }
}

/// That a capture of packets with private sources is empty.
///
/// # Errors
/// It is not, or there is none.
pub fn no_leak(capture: Result<Capture>) -> Result<Observation> {
    let packets = capture.context("no capture")?.packets();
    ensure!(packets.is_empty(), "leaked: {}", summary(&packets));
    Ok(Observation::new("everything above", "no private source"))
}

fn run_ping(net: &Topology, ping: &Ping) -> Result<Observation> {
    let id = 7000 + u16::from(ping.row);
    let observer = ping.seen.map_or(Who::B, |(who, ..)| who);
    let capture = Capture::start(observer.ns(net), observer.interface(), Filter::Ipv4)?;
    let replier = probe::icmp_echo(ping.from.ns(net), ping.to, id, 56)?;
    ensure!(replier == ping.to, "{replier} replied");
    let sent = format!("ping {:?} to {}, id {id}", ping.from, ping.to);
    let Some((_, source, id_kept)) = ping.seen else {
        let arrived = |packet: &Packet| packet.is_echo_request() && packet.source != B;
        let reached = capture.packets().into_iter().filter(arrived).collect::<Vec<_>>();
        ensure!(reached.is_empty(), "reached B: {}", summary(&reached));
        return Ok(Observation::new(sent, "the gateway answered"));
    };
    let request = capture.wait_for("the request", |packet| {
        let same_id = !id_kept || packet.icmp_id() == id;
        packet.is_echo_request() && packet.source == source && same_id
    })?;
    Ok(Observation::new(sent, format_args!("{source}, id {}", request.icmp_id())))
}

/// That a ping over IPv6 is answered, by the one that was asked.
fn ping6(net: &Topology, ping: &Ping) -> Result<Observation> {
    let (id, to) = (8000 + u16::from(ping.row), Ip::V6.address(ping.to));
    let replier = probe::icmp_echo(ping.from.ns(net), to, id, 56)?;
    ensure!(replier == to, "{replier} replied");
    Ok(Observation::new(format_args!("ping {:?} to {to}, id {id}", ping.from), "a reply"))
}

fn raw(
    net: &Topology,
    from: Who,
    to: Ipv4Addr,
    at: Who,
    (source, destination): (Ipv4Addr, Ipv4Addr),
) -> Result<Observation> {
    let capture = Capture::start(at.ns(net), at.interface(), Filter::Ipv4)?;
    probe::raw(from.ns(net), 99, to, 64, b"protocol ninety-nine")?;
    capture.wait_for("protocol 99", |packet| {
        let addresses = (packet.source, packet.destination) == (source, destination);
        packet.protocol == 99 && addresses && packet.transport.starts_with(b"protocol ninety-nine")
    })?;
    let seen = format!("{source} to {destination}");
    Ok(Observation::new(format_args!("protocol 99 {from:?} to {to}"), seen))
}

fn http_through_dnat(net: &Topology, ip: Ip) -> Result<Observation> {
    let server = ip.endpoint(DNAT_HTTP);
    let seen = http::whoami(&net.y.ns, server)?;
    ensure!(seen.ip() == ip.address(Y), "nginx saw {seen}");
    Ok(Observation::new(format_args!("GET http://{server}/ from Y"), seen))
}

fn dnat_reply(net: &Topology) -> Result<Observation> {
    let capture = Capture::start(&net.x.ns, "ext", Filter::Ipv4)?;
    let exchange = probe::tcp(&net.x.ns, 0, DNAT_ECHO)?;
    let is_reply = |packet: &Packet| packet.destination_port() == exchange.local.port();
    capture.wait_for("a reply", is_reply)?;
    let replies: Vec<_> = capture.packets().into_iter().filter(is_reply).collect();
    let right = |packet: &Packet| {
        SocketAddrV4::new(packet.source, packet.source_port()) == DNAT_ECHO
            && packet.source != EIP_SNAT
    };
    ensure!(replies.iter().all(right), "{}", summary(&replies));
    Ok(Observation::new(format_args!("TCP X to {DNAT_ECHO}"), "replies from the same EIP only"))
}

fn local_socket(net: &Topology) -> Result<Observation> {
    let _server = EchoServers::start(&net.gateway, LOCAL_PORT)?;
    let to = SocketAddrV4::new(EIP_UNUSED, LOCAL_PORT);
    let exchange = probe::tcp(&net.x.ns, 0, to)?;
    ensure!(exchange.seen == exchange.local, "the socket saw {}", exchange.seen);
    Ok(Observation::new(format_args!("TCP X to {to}"), exchange.seen))
}

fn unsolicited(net: &Topology) -> Result<Observation> {
    let capture = Capture::start(&net.router, "br-net1", Filter::Ipv4)?;
    let inside = Capture::start(&net.b.ns, "eth0", Filter::Ipv4)?;
    let to = SocketAddrV4::new(EIP_SNAT, 40000);
    for from in [Who::X, Who::Y] {
        probe::udp_refused(from.ns(net), to)?;
    }
    for packets in [capture.packets(), inside.packets()] {
        let ours = |packet: &&Packet| packet.payload_after(UDP_HEADER).starts_with(b"anyone?");
        let seen: Vec<_> = packets.iter().filter(ours).cloned().collect();
        ensure!(seen.is_empty(), "seen inside: {}", summary(&seen));
    }
    Ok(Observation::new(format_args!("UDP X and Y to {to}"), "nothing inside"))
}

fn ttl_falls_once(
    net: &Topology,
    from: Who,
    to: SocketAddrV4,
    at: Who,
    ttl: u8,
) -> Result<Observation> {
    let marker = format!("ttl {from:?} {to}");
    let capture = Capture::start(at.ns(net), at.interface(), Filter::Ipv4)?;
    probe::udp_send(from.ns(net), 0, to, 64, marker.as_bytes())?;
    let packet = capture.wait_for("the datagram", |packet| {
        packet.payload_after(UDP_HEADER).starts_with(marker.as_bytes())
    })?;
    ensure!(packet.ttl == ttl, "TTL {} instead of {ttl}", packet.ttl);
    Ok(Observation::new(format_args!("UDP {from:?} to {to}, TTL 64"), format_args!("TTL {ttl}")))
}
