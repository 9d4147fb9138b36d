//! Fragments between real hosts: in any order, and made on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_tests::build_packet::udp;
use gateway_tests::lab::addresses::{B, X, v6};
use gateway_tests::lab::gateway::Gateway;
use gateway_tests::lab::manifests::Manifests;
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::world::World;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// `IPPROTO_RAW`: what is sent begins with its own IP header.
const WHOLE_PACKETS: i32 = 255;
/// Longer than any of these paths takes.
const PATIENCE: Duration = Duration::from_secs(3);
const PORT: u16 = 7007;

fn content(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 256 + salt) as u8).collect()
}

fn bound(ns: &Netns, address: IpAddr) -> Result<UdpSocket> {
    let socket = ns.enter(|| UdpSocket::bind((address, PORT)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends the fragments of a datagram, the last one first.
fn send_backwards(
    ns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    content: &[u8],
    identification: u16,
) -> Result<()> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let raw = || Socket::new(domain, Type::RAW, Some(Protocol::from(WHOLE_PACKETS)));
    let socket = ns.enter(raw)??;
    let whole = udp(&from.to_string(), &to.to_string()).with_payload(content);
    let pieces = whole.with_identification(identification).pieces(1000);
    ensure!(pieces.len() > 3, "{} fragments", pieces.len());
    for piece in pieces.iter().rev() {
        socket.send_to(&piece.frame([0; 6])[14..], &SocketAddr::new(to.ip(), 0).into())?;
    }
    Ok(())
}

/// What arrives at a socket: it must be `expected`.
fn receive(socket: &UdpSocket, expected: &[u8]) -> Result<SocketAddr> {
    let mut buffer = vec![0; 1 << 16];
    let (bytes, from) = socket.recv_from(&mut buffer).context("nothing arrived")?;
    ensure!(buffer[..bytes] == *expected, "{bytes} bytes from {from} are others");
    Ok(from)
}

/// How many packets were counted for a reason.
fn counted(gateway: &Gateway, reason: &str) -> Result<u64> {
    let list = gateway.json("drops")?;
    let found = list.as_array().context("a list")?.iter().find(|one| one["reason"] == reason);
    found.and_then(|one| one["packets"].as_u64()).with_context(|| format!("no reason {reason}"))
}

fn both(v4: Ipv4Addr) -> [IpAddr; 2] {
    [v4.into(), v6(v4).into()]
}

#[test]
fn fragments_arrive_in_any_order() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let net = &world.net;
    let manifests = Manifests { ipv6: true, ..Manifests::standard(&net.name) };
    let gateway =
        world.start_gateway_with(&binary, &manifests, &[]).unwrap_or_else(|e| panic!("{e:#}"));
    for (host, remote) in both(B).into_iter().zip(both(X)) {
        let inside = bound(&net.b.ns, host).expect("a socket in the VPC");
        let outside = bound(&net.x.ns, remote).expect("a socket outside");
        let ends = [host, remote].map(|address| SocketAddr::new(address, PORT));
        for round in 1..=50_u16 {
            let exchange = || -> Result<()> {
                let sent = content(3300, usize::from(round));
                send_backwards(&net.b.ns, ends[0], ends[1], &sent, round)?;
                let eip = receive(&outside, &sent).context("on the way out")?;
                ensure!(eip.ip() != host, "untranslated");
                let answer = content(3100, usize::from(round) + 1);
                send_backwards(&net.x.ns, ends[1], eip, &answer, round)?;
                let from = receive(&inside, &answer).context("on the way back")?;
                ensure!(from == ends[1], "the answer is from {from}");
                Ok(())
            };
            exchange().unwrap_or_else(|e| panic!("{round}: {e:#}\n{}", gateway.diagnostics()));
        }
    }
    let held = counted(&gateway, "fragment_held").expect("drops");
    let replayed = counted(&gateway, "replayed").expect("drops");
    assert!(held >= 300 && replayed >= 200, "{held} held, {replayed} replayed");
}

#[test]
fn a_datagram_that_is_too_large_arrives_in_fragments() {
    let Some(binary) = tier::gateway() else { return };
    for (interface, mtu) in [("net1", 1300), ("eth0", 1000)] {
        let world = World::build(&Options::default()).expect("a world");
        let net = &world.net;
        net.gateway.ip(&format!("link set {interface} mtu {mtu}")).expect("an MTU");
        let gateway = world.start_gateway(&binary, &[]).unwrap_or_else(|e| panic!("{e:#}"));
        // Their sockets send without "don't fragment".
        for host in [&net.b.ns, &net.x.ns] {
            host.sysctl("ipv4/ip_no_pmtu_disc", "1").expect("a sysctl");
        }
        let inside = bound(&net.b.ns, B.into()).expect("a socket in the VPC");
        let outside = bound(&net.x.ns, X.into()).expect("a socket outside");
        let exchange = |round: usize| -> Result<()> {
            // The one way is too small for large ones, the other one for large answers.
            let large = content(1300 + round % 173, round);
            let small = content(20, round);
            let outwards = interface == "net1";
            let (there, back) = if outwards { (&large, &small) } else { (&small, &large) };
            inside.send_to(there, (X, PORT))?;
            let eip = receive(&outside, there).context("on the way out")?;
            outside.send_to(back, eip)?;
            receive(&inside, back).context("on the way back").map(drop)
        };
        for round in 0..200 {
            exchange(round).unwrap_or_else(|e| panic!("{round}: {e:#}\n{}", gateway.diagnostics()));
        }
        let fragmented = counted(&gateway, "fragmented").expect("drops");
        assert!(fragmented >= 200, "{interface}: {fragmented}");
    }
}

#[test]
fn tcp_learns_what_fits_from_a_clamped_syn() {
    let Some(binary) = tier::gateway() else { return };
    for (arguments, fits) in [(&["--mss-clamp", "auto"][..], true), (&[], false)] {
        let world = World::build(&Options::default()).expect("a world");
        let net = &world.net;
        net.gateway.ip("link set net1 mtu 1400").expect("an MTU");
        let manifests = Manifests { ipv6: true, ..Manifests::standard(&net.name) };
        let gateway = world
            .start_gateway_with(&binary, &manifests, arguments)
            .unwrap_or_else(|e| panic!("{e:#}"));
        for (remote, headers) in both(X).into_iter().zip([40, 60]) {
            let segment = || -> Result<u32> {
                let to = SocketAddr::new(remote, gateway_tests::lab::echo::ECHO_PORT);
                let connect = || std::net::TcpStream::connect_timeout(&to, PATIENCE);
                let connection = net.b.ns.enter(connect)??;
                Ok(SockRef::from(&connection).tcp_mss()?)
            };
            let mss = segment().unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
            assert_eq!(mss <= 1400 - headers, fits, "{mss} bytes with {arguments:?}");
        }
    }
}
