//! Nanoseconds for each packet in the programs alone, by `BPF_PROG_TEST_RUN`.
//!
//! A repeated run gets what the last one left of the frame. On the hit path each session has a twin that
//! translates back, and a floating IP a second entry that does; on the open path the SNAT rule covers its
//! own EIP, so that every run opens a session.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use gateway_common::records::{Fip, FipKey};
use gateway_common::tuple::{Direction, Tuple};

use super::Bench;
use crate::bench::report::Unit;
use crate::bench::screen::progress;
use crate::build_packet::{Transport, udp};
use crate::decode::decode;
use crate::harness::notation::Notation;
use crate::harness::routes::{embed_prefix, ingress_mac, prefix};
use crate::harness::{Backend as _, NatRule, Outcome, Store};
use crate::kernel::{self, FORWARDED, Options, Tc};

/// Its name.
pub const NAME: &str = "programs";

/// Rows of the two paths.
pub const HIT: &str = "hit path";
/// See [`HIT`].
pub const OPEN: &str = "open path";
/// See [`HIT`].
pub const FIP: &str = "floating IP";

/// A frame starts with a TTL of 255.
const RUNS: u32 = 200;
const CAPACITY: u32 = 1 << 17;
const INSIDE: &str = "10.0.1.10:40000";
const FAR: &str = "198.51.100.7:53";
const EIP: &str = "203.0.113.10";

/// Measures.
///
/// # Errors
/// The kernel refuses something, or a packet takes another path than it should.
pub fn run(bench: &mut Bench) -> Result<()> {
    progress(&format!("{NAME}: hit path and open path, test runs"));
    let mut outcome = Ok(());
    let calls = bench.pick(50, 200);
    let ran = kernel::run(Options::xdp(CAPACITY), |tc| outcome = measure(bench, tc, calls));
    ensure!(ran, "the programs cannot be loaded");
    let why = if std::path::Path::new("/sys/bus/event_source/devices/cpu").exists() {
        "the bench does not read hardware performance counters"
    } else {
        "this machine has no hardware performance counters"
    };
    bench.report.miss(NAME, "instructions", "TC", Unit::Packets, why);
    outcome
}

fn measure(bench: &mut Bench, tc: &mut Tc, calls: usize) -> Result<()> {
    for ipv6 in [false, true] {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        for direction in [Direction::Outbound, Direction::Inbound] {
            hit(bench, tc, ipv6, direction, calls)?;
        }
        stateless(bench, tc, ipv6, calls).with_context(|| format!("{FIP}, {family}"))?;
        let row = format!("{OPEN}, {family}");
        for xdp in [false, true] {
            open(bench, tc, ipv6, calls, xdp).with_context(|| row.clone())?;
        }
    }
    Ok(())
}

/// Meets the same session with each run.
fn hit(
    bench: &mut Bench,
    tc: &mut Tc,
    ipv6: bool,
    direction: Direction,
    calls: usize,
) -> Result<()> {
    let side = if direction == Direction::Outbound { "from inside" } else { "from outside" };
    let row = format!("{HIT}, {}, {side}", if ipv6 { "IPv6" } else { "IPv4" });
    let mut frame = prepare_hit(tc, ipv6, direction)?;
    let mut left_out = 0;
    for _ in 0..calls {
        for xdp in [false, true] {
            let (forwarded, nanos) = run_once(tc, direction, &frame, xdp)?;
            if forwarded {
                bench.report.add(NAME, &row, way(xdp), Unit::Nanos, nanos.into());
                continue;
            }
            // Every 2.1 s routes are looked up again, and a twin has none.
            left_out += 1;
            frame = prepare_hit(tc, ipv6, direction)?;
        }
    }
    ensure!(left_out <= calls / 4, "{row}: {left_out} times a packet was not forwarded");
    ensure!(tc.sessions().len() == 4, "{row}: other sessions than the ones prepared");
    Ok(())
}

/// Translates the source by a floating IP and back.
fn stateless(bench: &mut Bench, tc: &mut Tc, ipv6: bool, calls: usize) -> Result<()> {
    let row = format!("{FIP}, {}", if ipv6 { "IPv6" } else { "IPv4" });
    tc.clear();
    let ips = [EIP, "10.0.1.10"].map(prefix);
    let [(eip, _), (inside, _)] = if ipv6 { ips.map(embed_prefix) } else { ips };
    tc.add(&NatRule::Fip { eip, inside, id: 1 });
    if ipv6 {
        translate_back(tc.v6(), eip, inside)?;
    } else {
        translate_back(tc.v4(), eip, inside)?;
    }
    let frame = packet(ipv6, INSIDE);
    for _ in 0..calls {
        for xdp in [false, true] {
            let (forwarded, nanos) = run_once(tc, Direction::Outbound, &frame, xdp)?;
            ensure!(forwarded, "a packet was not forwarded");
            bench.report.add(NAME, &row, way(xdp), Unit::Nanos, nanos.into());
        }
    }
    ensure!(tc.sessions().is_empty(), "a session was opened");
    Ok(())
}

/// Makes the EIP an inside address too, whose own floating IP is the inside one.
fn translate_back<F: Notation>(
    store: &mut dyn Store<F>,
    eip: IpAddr,
    inside: IpAddr,
) -> Result<()> {
    let (eip, peer) = F::from_ip(eip).zip(F::from_ip(inside)).context("addresses of the family")?;
    store.set_fip(&FipKey::new(&eip, Direction::Outbound), Some(Fip { peer, rule: 1 }));
    Ok(())
}

const fn way(xdp: bool) -> &'static str {
    if xdp { "XDP" } else { "TC" }
}

/// Runs a program on a frame [`RUNS`] times. Returns whether it has forwarded the last one, and how long each
/// run took in nanoseconds.
fn run_once(tc: &mut Tc, direction: Direction, frame: &[u8], xdp: bool) -> Result<(bool, u32)> {
    if xdp {
        return tc.repeat_xdp(direction, frame, RUNS);
    }
    let (answer, nanos) = tc.repeat(direction, frame, RUNS)?;
    Ok((answer == FORWARDED, nanos))
}

/// Opens a session, gives its entries their twins, and returns a frame that meets them.
fn prepare_hit(tc: &mut Tc, ipv6: bool, direction: Direction) -> Result<Vec<u8>> {
    let frame = prepare(tc, ipv6, "10.0.1.0/24", direction)?;
    if ipv6 {
        add_twins(tc.v6());
    } else {
        add_twins(tc.v4());
    }
    Ok(frame)
}

/// Opens a session with each run.
fn open(bench: &mut Bench, tc: &mut Tc, ipv6: bool, calls: usize, xdp: bool) -> Result<()> {
    let row = format!("{OPEN}, {}", if ipv6 { "IPv6" } else { "IPv4" });
    prepare(tc, ipv6, "0.0.0.0/0", Direction::Outbound)?;
    let before = tc.sessions().len();
    for call in 0..calls {
        let frame = packet(ipv6, &format!("10.0.1.10:{}", 41_000 + call));
        let (forwarded, nanos) = run_once(tc, Direction::Outbound, &frame, xdp)?;
        ensure!(forwarded, "a packet was not forwarded");
        bench.report.add(NAME, &row, way(xdp), Unit::Nanos, nanos.into());
    }
    let opened = (tc.sessions().len() - before) / 2;
    let runs = calls * RUNS as usize;
    // By chance a chain of them meets an earlier one's.
    ensure!(opened + runs / 100 >= runs, "{opened} sessions of {runs} packets");
    Ok(())
}

/// Adds the SNAT rule, opens one session, and returns the frame that meets it next.
fn prepare(tc: &mut Tc, ipv6: bool, sources: &str, direction: Direction) -> Result<Vec<u8>> {
    tc.clear();
    let (mut sources, mut eip) = (prefix(sources), prefix(EIP));
    if ipv6 {
        (sources, eip) = (embed_prefix(sources), embed_prefix(eip));
    }
    tc.add(&NatRule::Snat { prefix: sources, pool: vec![(eip.0, 1)] });
    let frame = packet(ipv6, INSIDE);
    let mut sent = frame.clone();
    let outcome = tc.send(Direction::Outbound, &mut sent).outcome;
    ensure!(outcome == Outcome::Forward, "no session was opened: {outcome:?}");
    if direction == Direction::Outbound {
        return Ok(frame);
    }
    let answer = answer(&sent)?;
    let mut first = answer.clone();
    let outcome = tc.send(direction, &mut first).outcome;
    ensure!(outcome == Outcome::Forward, "the answer is not forwarded: {outcome:?}");
    Ok(answer)
}

/// A frame from inside.
fn packet(ipv6: bool, from: &str) -> Vec<u8> {
    let mut draft = udp(from, FAR).with_ttl(255).with_payload(&[0; 18]);
    draft.dont_fragment = true;
    let draft = if ipv6 { draft.over_ipv6() } else { draft };
    draft.frame(ingress_mac(Direction::Outbound))
}

/// The answer to a frame, addressed to the gateway, its TTL as at first.
fn answer(sent: &[u8]) -> Result<Vec<u8>> {
    let decoded = decode(sent).map_err(anyhow::Error::msg)?;
    let mut draft = udp(FAR, INSIDE).with_ttl(255).with_payload(&[0; 18]);
    draft.dont_fragment = true;
    (draft.source, draft.destination) = (decoded.destination, decoded.source);
    if let (Transport::Datagram { ports, .. }, Some((source, destination))) =
        (&mut draft.transport, decoded.ports)
    {
        *ports = (destination, source);
    }
    Ok(draft.frame(ingress_mac(Direction::Inbound)))
}

/// Gives every session entry a twin that translates back.
fn add_twins<F: Notation>(store: &mut dyn Store<F>) {
    for (key, session) in store.sessions() {
        let direction = if key.direction == Direction::Outbound as u8 {
            Direction::Outbound
        } else {
            Direction::Inbound
        };
        let twin = Tuple::new(session.translated, key.protocol, direction);
        let mut back = session;
        back.translated = key.endpoints;
        store.set_session(&twin, Some(back));
    }
}
