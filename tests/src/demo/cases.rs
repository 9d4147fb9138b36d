//! The connections of the demo, derived from the rules that are in force.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::rules::Forward;
use super::stage::Stage;
use crate::lab::addresses::v6;
use crate::lab::capture::{Capture, Filter};
use crate::lab::checks::Observation;
use crate::lab::echo::ECHO_PORT;
use crate::lab::http::{self, HTTP_PORT};
use crate::lab::probe::{self, Exchange, Refusal, TcpProbe};
use crate::lab::topology::Host;
use crate::lab::wait::wait_until;

/// Runs one check and shows it.
pub type Check<'a> = dyn FnMut(&str, &mut dyn FnMut() -> Result<Observation>) + 'a;

const BULK: u32 = 64;
const FRAGMENTED: usize = 4000;

/// Everything that gets through: SNAT, DNAT, floating IPs, hairpins.
pub fn traffic(stage: &Stage, check: &mut Check<'_>) {
    chosen_addresses(stage, check);
    snat(stage, check);
    for forward in &stage.rules.forwards {
        dnat(stage, forward, check);
    }
    for (eip, inside) in &stage.rules.fips {
        if let Some(host) = stage.host(*inside) {
            floating_ip(stage, *eip, host, check);
        }
    }
    hairpins(stage, check);
    ipv6(stage, check);
}

/// The same in IPv6, where the manifests have it.
fn ipv6(stage: &Stage, check: &mut Check<'_>) {
    let net = &stage.net;
    for (eip, inside) in &stage.rules.fips_v6 {
        let to = SocketAddr::new((*eip).into(), ECHO_PORT);
        check("floating IP over IPv6", &mut || {
            let exchange = probe::tcp(&net.y.ns, 0, to)?;
            ensure!(exchange.seen == exchange.local, "{inside} saw {}", exchange.seen);
            ensure!(probe::icmp_echo(&net.y.ns, *eip, 4713, 56)? == *eip, "another one replied");
            let sent = format!("TCP and ping {} to {eip}", exchange.local.ip());
            Ok(Observation::new(sent, format_args!("{inside}: client {}", exchange.seen)))
        });
    }
    if stage.rules.snats_v6.is_empty() {
        return;
    }
    check("SNAT over IPv6", &mut || {
        let to = SocketAddr::new(v6(net.y.v4).into(), ECHO_PORT);
        let Exchange { local, seen, .. } = probe::udp(&net.b.ns, 0, to, b"datagram")?;
        let known = stage.rules.snats_v6.iter().any(|eip| seen.ip() == *eip);
        ensure!(known, "Y saw {seen}, which is no EIP");
        Ok(Observation::new(format_args!("UDP {local} to {to}"), format_args!("client {seen}")))
    });
}

/// EIPs whose address is not in the manifests: the gateway chose one.
fn chosen_addresses(stage: &Stage, check: &mut Check<'_>) {
    let chosen = stage.rules.eips.iter().filter(|(_, address)| !stage.mentions(*address));
    for (name, address) in chosen {
        check(&format!("{name}, without an address"), &mut || {
            let replier = probe::icmp_echo(&stage.net.x.ns, *address, 4710, 56)?;
            ensure!(replier == *address, "{replier} answered");
            let sent = format!("ping {} to the address it got", stage.net.x.v4);
            Ok(Observation::new(sent, format_args!("{address}, chosen from its Subnet")))
        });
    }
}

const fn echo(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, ECHO_PORT)
}

/// The server must have seen this address; the port is free to change.
fn seen_as(seen: SocketAddr, eip: Ipv4Addr, sent: impl std::fmt::Display) -> Result<Observation> {
    ensure!(seen.ip() == eip, "{sent}: the server saw {seen}, not {eip}");
    Ok(Observation::new(sent, format_args!("client {seen}")))
}

/// A host that goes out by SNAT and not by a floating IP.
fn snat_host(stage: &Stage) -> Option<&Host> {
    let rules = &stage.rules;
    let by_snat =
        |host: &&Host| rules.snat_of(host.v4).is_some() && rules.fip_of(host.v4).is_none();
    stage.net.vpc_hosts().into_iter().find(by_snat)
}

fn snat(stage: &Stage, check: &mut Check<'_>) {
    let net = &stage.net;
    let rules = &stage.rules;
    for host in net.vpc_hosts() {
        let (Some(eip), None) = (rules.snat_of(host.v4), rules.fip_of(host.v4)) else { continue };
        let label = host.label;
        check(&format!("SNAT of {label}: HTTP"), &mut || {
            let server = SocketAddrV4::new(net.x.v4, HTTP_PORT);
            let seen = http::whoami(&host.ns, server)?;
            seen_as(seen, eip, format_args!("{} GET {server}", host.v4))
        });
        check(&format!("SNAT of {label}: UDP"), &mut || {
            let exchange = probe::udp(&host.ns, 0, echo(net.y.v4), b"datagram")?;
            seen_as(
                exchange.seen,
                eip,
                format_args!("UDP {} to {}", exchange.local, echo(net.y.v4)),
            )
        });
        check(&format!("SNAT of {label}: ping"), &mut || {
            ping(host, net.y.v4, (&net.y, "eth0"), eip)
        });
    }
    if let Some(host) = snat_host(stage) {
        check(&format!("SNAT of {}: {BULK} MiB", host.label), &mut || {
            let server = SocketAddrV4::new(net.x.v4, HTTP_PORT);
            bulk(stage, host, server, net.x.v4)
        });
    }
}

fn dnat(stage: &Stage, forward: &Forward, check: &mut Check<'_>) {
    let net = &stage.net;
    let Forward { tcp, at, to } = *forward;
    let client = &net.y;
    let protocol = if tcp { "TCP" } else { "UDP" };
    check(&format!("DNAT {at}/{}", protocol.to_lowercase()), &mut || {
        let seen = match (tcp, to.port()) {
            (true, HTTP_PORT) => http::whoami(&client.ns, at)?,
            (true, _) => probe::tcp(&client.ns, 0, at)?.seen,
            (false, _) => probe::udp(&client.ns, 0, at, b"datagram")?.seen,
        };
        ensure!(seen.ip() == client.v4, "{to} saw {seen}, not the client {}", client.v4);
        let sent = format!("{protocol} {} to {at}", client.v4);
        Ok(Observation::new(sent, format_args!("{to}: client {seen}")))
    });
    if tcp && to.port() == HTTP_PORT {
        check(&format!("DNAT {at}/tcp: {BULK} MiB"), &mut || bulk(stage, &net.x, at, *to.ip()));
    }
}

fn floating_ip(stage: &Stage, eip: Ipv4Addr, host: &Host, check: &mut Check<'_>) {
    let net = &stage.net;
    let inside = (host, "eth0");
    check("floating IP inbound: TCP", &mut || {
        let exchange = probe::tcp(&net.y.ns, 0, echo(eip))?;
        ensure!(exchange.seen == exchange.local, "{} saw {}", host.v4, exchange.seen);
        let sent = format!("TCP {} to {}", exchange.local, echo(eip));
        Ok(Observation::new(sent, format_args!("{}: client {}", host.v4, exchange.seen)))
    });
    check("floating IP inbound: ping", &mut || ping(&net.x, eip, inside, net.x.v4));
    check("floating IP inbound: fragments", &mut || {
        let exchange = probe::udp(&net.x.ns, 0, echo(eip), &[0x5a; FRAGMENTED])?;
        ensure!(exchange.seen == exchange.local, "{} saw {}", host.v4, exchange.seen);
        let sent = format!("{FRAGMENTED} bytes {} to {eip}", exchange.local);
        Ok(Observation::new(sent, format_args!("{}: all of it, and back", host.v4)))
    });
    check("floating IP inbound: protocol 99", &mut || {
        let capture = Capture::start(&host.ns, "eth0", Filter::Ipv4)?;
        probe::raw(&net.x.ns, 99, eip, 64, b"any protocol")?;
        let (from, to) = (net.x.v4, host.v4);
        capture.wait_for("protocol 99", |packet| {
            packet.protocol == 99 && (packet.source, packet.destination) == (from, to)
        })?;
        Ok(Observation::new(
            format_args!("protocol 99 {from} to {eip}"),
            format_args!("{from} to {to}"),
        ))
    });
    check("floating IP outbound: TCP", &mut || {
        let exchange = probe::tcp(&host.ns, 0, echo(net.y.v4))?;
        ensure!(exchange.seen.port() == exchange.local.port(), "the port became {}", exchange.seen);
        let sent = format!("TCP {} to {}", exchange.local, echo(net.y.v4));
        seen_as(exchange.seen, eip, sent)
    });
}

fn hairpins(stage: &Stage, check: &mut Check<'_>) {
    let (net, rules) = (&stage.net, &stage.rules);
    let forward =
        rules.forwards.iter().find(|forward| forward.tcp && forward.to.port() != HTTP_PORT);
    let forward = forward.or_else(|| rules.forwards.iter().find(|forward| forward.tcp));
    let mut hairpin = |name: &str, client: &Host, to: SocketAddrV4, web: bool, eip: Ipv4Addr| {
        check(name, &mut || {
            let seen = if web {
                http::whoami(&client.ns, to)?
            } else {
                probe::tcp(&client.ns, 0, to)?.seen
            };
            seen_as(seen, eip, format_args!("TCP {} to {to}", client.v4))
        });
    };
    if let Some(Forward { at, to, .. }) = forward {
        let web = to.port() == HTTP_PORT;
        hairpin("hairpin to another host's DNAT", &net.c, *at, web, *at.ip());
        if let Some(own) = stage.host(*to.ip()) {
            hairpin("hairpin to its own DNAT", own, *at, web, *at.ip());
        }
    }
    if let Some((eip, _)) = rules.fips.first() {
        hairpin("hairpin to a floating IP", &net.b, echo(*eip), false, *eip);
    }
}

/// What the gateway answers itself, and what it drops.
pub fn refusals(stage: &Stage, check: &mut Check<'_>) {
    let net = &stage.net;
    if let Some(eip) = stage.rules.eip_without_fip() {
        check("ping of an EIP without floating IP", &mut || {
            let replier = probe::icmp_echo(&net.x.ns, eip, 4711, 56)?;
            ensure!(replier == eip, "{replier} answered");
            Ok(Observation::new(format_args!("ping {} to {eip}", net.x.v4), "the gateway answered"))
        });
        check("EIP port without a rule", &mut || {
            let to = SocketAddrV4::new(eip, 9);
            let refusal = probe::tcp_refused(&net.x.ns, to)?;
            Ok(Observation::new(format_args!("TCP {} to {to}", net.x.v4), refusal))
        });
    }
    check("from outside to an inside address", &mut || {
        let to = echo(net.b.v4);
        let refusal = probe::udp_refused(&net.x.ns, to)?;
        ensure!(refusal != Refusal::Refused, "{} answered", net.b.v4);
        Ok(Observation::new(format_args!("UDP {} to {to}", net.x.v4), refusal))
    });
    let rules = &stage.rules;
    let uncovered = net
        .vpc_hosts()
        .into_iter()
        .find(|host| rules.snat_of(host.v4).is_none() && rules.fip_of(host.v4).is_none());
    if let Some(host) = uncovered {
        check("a source without a rule", &mut || {
            let refusal = probe::udp_refused(&host.ns, echo(net.y.v4))?;
            let sent = format!("UDP {} to {}", host.v4, echo(net.y.v4));
            Ok(Observation::new(sent, refusal))
        });
    }
}

/// The manifests change and the daemon dies while a connection is open.
pub fn changes(stage: &mut Stage, check: &mut Check<'_>) {
    let target = stage.net.y.v4;
    let mut open = snat_host(stage).map(|host| TcpProbe::connect(&host.ns, 0, echo(target)));
    let mut still_open = move || -> Result<SocketAddr> {
        let probe = open.as_mut().context("no host has SNAT")?.as_mut();
        let probe = probe.map_err(|error| anyhow::anyhow!("{error:#}"))?;
        probe.echo("still here?")?;
        Ok(probe.exchange.seen)
    };
    check("a rule added to the manifests", &mut || add_rule(stage));
    check("daemon killed with -9", &mut || {
        stage.gateway.kill9()?;
        let seen = still_open()?;
        let new = probe::tcp(&stage.net.y.ns, 0, echo(fip(stage)?))?;
        let seen = format!("the same {seen}; new: {}", new.seen.ip());
        Ok(Observation::new("an open TCP connection, and a new one", seen))
    });
    check("daemon started again", &mut || {
        let took = stage.gateway.restart()?;
        let seen = still_open()?;
        let seen = format!("the same {seen}; ready in {} ms", took.as_millis());
        Ok(Observation::new("the same open TCP connection", seen))
    });
}

fn fip(stage: &Stage) -> Result<Ipv4Addr> {
    Ok(stage.rules.fips.first().context("no floating IP")?.0)
}

fn add_rule(stage: &Stage) -> Result<Observation> {
    let port = 4444;
    let known = stage.rules.forwards.first().context("no DNAT rule to copy")?;
    let at = SocketAddrV4::new(*known.at.ip(), port);
    let eip = stage.rules.eip_name(*at.ip()).context("an EIP without a name")?;
    let document = format!(
        "apiVersion: kubeovn.io/v1\nkind: IptablesDnatRule\nmetadata: {{name: added-live}}\n\
         spec: {{eip: {eip}, externalPort: \"{port}\", internalPort: \"{ECHO_PORT}\", \
         internalIp: {}, protocol: tcp}}\n",
        stage.net.b.v4
    );
    fs::write(stage.gateway.settings().config.join("added-live.yaml"), document)?;
    let saved = Instant::now();
    let exchange = wait_until("the new rule", Duration::from_secs(5), || {
        probe::tcp(&stage.net.x.ns, 0, at).map(Some)
    })?;
    let took = saved.elapsed().as_millis();
    let seen = format!("client {} after {took} ms", exchange.seen);
    Ok(Observation::new(format_args!("TCP {} to {at}", stage.net.x.v4), seen))
}

fn ping(from: &Host, to: Ipv4Addr, at: (&Host, &str), source: Ipv4Addr) -> Result<Observation> {
    let (host, interface) = at;
    let capture = Capture::start(&host.ns, interface, Filter::Ipv4)?;
    let replier = probe::icmp_echo(&from.ns, to, 4712, 56)?;
    ensure!(replier == to, "{replier} answered");
    let request = capture
        .wait_for("the request", |packet| packet.is_echo_request() && packet.source == source)?;
    let sent = format!("ping {} to {to}, id 4712", from.v4);
    Ok(Observation::new(sent, format_args!("{source}, id {}", request.icmp_id())))
}

/// Downloads a file of random bytes from the nginx of a host and compares the content.
fn bulk(stage: &Stage, client: &Host, server: SocketAddrV4, host: Ipv4Addr) -> Result<Observation> {
    let scratch = &stage.net.scratch;
    let original = stage.files(host).context("no nginx there")?.join("random");
    http::random_file(&original, BULK)?;
    let transfer =
        http::download(&client.ns, server, "random", &original, &scratch.join("random"))?;
    let sent = format!("{} GET {server}, {BULK} MiB", client.v4);
    Ok(Observation::new(sent, format_args!("same sha256, {:.1} Gbit/s", transfer.gigabits())))
}
