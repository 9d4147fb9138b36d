//! The lab itself, with plain kernel forwarding in the place of the gateway.

use std::net::SocketAddrV4;
use std::process::Command;

use gateway_tests::lab::addresses::{B, X, Y, v6};
use gateway_tests::lab::capture::{Capture, Filter};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::http::{HTTP_PORT, random_file};
use gateway_tests::lab::topology::{External, Host, Options};
use gateway_tests::lab::world::World;
use gateway_tests::lab::{http, probe, tier};

fn ping(from: &Host, to: &Host) {
    for target in [to.v4.to_string(), v6(to.v4).to_string()] {
        let output = from.ns.output(Command::new("ping").args(["-c1", "-W2", "-q", &target]));
        output.unwrap_or_else(|error| panic!("{} to {}: {error:#}", from.label, to.label));
    }
}

fn everyone_reaches_everyone(external: External) {
    if !tier::namespaces() {
        return;
    }
    let world = World::build(&Options { external, ..Options::default() }).expect("a world");
    world.net.route_plainly().expect("routes");
    for from in world.net.hosts() {
        for to in world.net.hosts() {
            ping(from, to);
        }
    }
}

#[test]
fn everyone_reaches_everyone_over_veth() {
    everyone_reaches_everyone(External::Veth);
}

#[test]
fn everyone_reaches_everyone_over_macvlan() {
    everyone_reaches_everyone(External::Macvlan);
}

#[test]
fn probes_report_what_the_other_side_saw() {
    if !tier::namespaces() {
        return;
    }
    let world = World::build(&Options::default()).expect("a world");
    let net = &world.net;
    let capture = Capture::start(&net.x.ns, "ext", Filter::Ipv4).expect("a capture");
    let private = Capture::start(&net.x.ns, "ext", Filter::PrivateSource).expect("a capture");
    let echo_y = SocketAddrV4::new(Y, ECHO_PORT);

    let udp = probe::udp(&net.b.ns, 4242, echo_y, b"payload").expect("UDP");
    assert_eq!((udp.local.port(), udp.seen), (4242, SocketAddrV4::new(B, 4242).into()));
    probe::udp(&net.b.ns, 0, echo_y, &[7; 4000]).expect("UDP in fragments");
    let tcp = probe::tcp(&net.b.ns, 0, echo_y).expect("TCP");
    assert_eq!(tcp.seen, SocketAddrV4::new(B, tcp.local.port()).into());
    assert_eq!(probe::icmp_echo(&net.b.ns, Y, 77, 56).expect("ping"), Y);
    let web = http::whoami(&net.b.ns, SocketAddrV4::new(X, HTTP_PORT)).expect("HTTP");
    assert_eq!(web.ip(), B);

    let closed = SocketAddrV4::new(X, 9);
    assert_eq!(probe::udp_refused(&net.b.ns, closed).expect("UDP"), probe::Refusal::Refused);
    assert_eq!(probe::tcp_refused(&net.b.ns, closed).expect("TCP"), probe::Refusal::Refused);

    probe::raw(&net.b.ns, 99, Y, 64, b"raw").expect("raw");
    let raw = capture.wait_for("protocol 99", |packet| packet.protocol == 99).expect("raw");
    assert_eq!((raw.source, raw.ttl, &raw.transport[..3]), (B, 62, b"raw".as_slice()));
    let ping = capture.wait_for("the ping", |packet| packet.icmp_id() == 77).expect("ping");
    assert!(ping.is_echo_request());
    assert!(capture.packets().iter().any(|packet| packet.fragment), "no fragment captured");
    assert!(!private.packets().is_empty(), "the filter for private sources matches nothing");
    assert!(private.packets().iter().all(|packet| packet.source == B));
}

#[test]
fn transfers_compare_content() {
    if !tier::namespaces() {
        return;
    }
    let world = World::build(&Options::default()).expect("a world");
    let original = world.net.scratch.join("original");
    random_file(&original, 16).expect("a file");
    let served = world.nginx_x.files().join("served");
    std::fs::copy(&original, &served).expect("a copy");
    let server = SocketAddrV4::new(X, HTTP_PORT);
    let b = &world.net.b.ns;

    let copy = world.net.scratch.join("copy");
    http::download(b, server, "served", &original, &copy).expect("a download");
    let uploaded = world.nginx_x.files().join("uploaded");
    http::upload(b, server, "uploaded", &original, &uploaded).expect("an upload");
    std::fs::write(&served, b"something else").expect("a change");
    let changed = http::download(b, server, "served", &original, &copy);
    assert!(format!("{:#}", changed.expect_err("a difference")).contains("content changed"));
}
