//! The pipeline against [`ReferenceNat`], step by step.
//!
//! | variable | default | |
//! |---|---|---|
//! | `MODEL_STEPS` | 20000 | how many steps, in each family |
//! | `MODEL_SEED` | 1 | which steps; a failure prints it |

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use gateway_common::records::{ORIGINAL, Timeouts, ticks_from_secs};
use gateway_common::share::Balance;
use gateway_common::tuple::Direction;
use gateway_tests::build_packet::{
    ACK, Draft, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, end, ping, tcp, udp,
};
use gateway_tests::cases::{Gateway, Sent};
use gateway_tests::harness::Outcome;
use gateway_tests::harness::host::Host;
use gateway_tests::harness::invariants::leak;
use gateway_tests::harness::notation::Entry;
use gateway_tests::harness::routes::{Links, prefix};
use gateway_tests::harness::traffic::Dice;
use gateway_tests::model::{Became, Ends, Packet, ReferenceNat, Rule, Side};

/// Most sessions: less than the packets below would open.
const SESSIONS: u32 = 20;
/// Ports of an EIP for each remote: less than the hosts below would use.
const PORTS: (u16, u16) = (30_001, 30_003);

const INSIDE: [&str; 4] = ["10.0.1.5", "10.0.1.10", "10.0.1.20", "10.0.2.30"];
const REMOTES: [&str; 3] = ["198.51.100.7:443", "198.51.100.7:53", "198.51.100.8:443"];
const SOURCES: [u16; 8] = [4000, 4001, 4002, 4003, 8080, 53, 700, 100];
const EXTERNALS: [&str; 8] = [
    SHARED,
    SHARED,
    "203.0.113.11:80",
    "203.0.113.12:80",
    "203.0.113.11:53",
    "203.0.113.10:30003",
    "203.0.113.14:8080",
    "203.0.113.10:30001",
];
/// Whose way may be lost.
const LOSABLE: [&str; 3] = ["198.51.100.8", "10.0.1.20", "10.0.1.10"];

/// The rules that come and go.
const RULES: [Line; 10] = [
    Line::Fip("203.0.113.14", "10.0.1.5"),
    Line::Dnat(TCP, "203.0.113.11:80", "10.0.1.10:8080"),
    Line::Dnat(TCP, "203.0.113.12:80", "10.0.1.10:8080"),
    Line::Dnat(UDP, "203.0.113.11:53", "10.0.1.10:53"),
    // In the middle of the range that SNAT rules take their ports from.
    Line::Dnat(UDP, "203.0.113.10:30003", "10.0.1.20:4001"),
    Line::Snat("10.0.1.0/24", &["203.0.113.10"]),
    Line::Snat("10.0.1.20/32", &["203.0.113.13"]),
    Line::Snat("10.0.2.0/24", &["203.0.113.10"]),
    Line::Share(TCP, SHARED, &["10.0.1.5:80", "10.0.1.20:80", "10.0.2.30:80"]),
    Line::Snat("10.0.1.5/32", &["203.0.113.15", "203.0.113.16"]),
];

/// A port that several backends share.
const SHARED: &str = "203.0.113.12:443";
const SHARE: usize = 8;
/// Who may come into it.
const JOINS: [&str; 2] = ["10.0.1.10:80", "10.0.2.30:8081"];

#[derive(Clone, Copy)]
enum Line {
    Fip(&'static str, &'static str),
    Dnat(u8, &'static str, &'static str),
    Snat(&'static str, &'static [&'static str]),
    Share(u8, &'static str, &'static [&'static str]),
}

impl Line {
    /// What it is in the model, a rule for each id.
    fn rules(self) -> Vec<Rule> {
        match self {
            Self::Fip(eip, inside) => vec![Rule::Fip(end(eip).ip(), end(inside).ip())],
            Self::Dnat(protocol, external, inside) => vec![forward(protocol, external, inside)],
            Self::Snat(sources, eips) => {
                let rule = |eip: &&str| Rule::Snat(prefix(sources), end(eip).ip());
                eips.iter().map(rule).collect()
            }
            Self::Share(protocol, external, insides) => {
                insides.iter().map(|inside| forward(protocol, external, inside)).collect()
            }
        }
    }

    fn add(self, gw: &mut Gateway<'_>) -> Vec<u32> {
        match self {
            Self::Fip(eip, inside) => vec![gw.fip(eip, inside)],
            Self::Dnat(protocol, external, inside) => vec![gw.dnat(external, protocol, inside)],
            Self::Snat(sources, eips) => gw.snat(sources, eips),
            Self::Share(protocol, external, insides) => {
                let insides: Vec<_> = insides.iter().map(|inside| (*inside, 1)).collect();
                gw.share(external, protocol, Balance::Random, &insides)
            }
        }
    }
}

fn forward(protocol: u8, external: &str, inside: &str) -> Rule {
    Rule::Dnat(protocol, end(external), end(inside))
}

/// The gateway, the model, and how often what was seen.
struct Run<'a> {
    gw: Gateway<'a>,
    model: ReferenceNat,
    dice: Dice,
    rules: [Vec<u32>; RULES.len()],
    lost: BTreeSet<&'static str>,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    passed: u64,
    no_rule: u64,
    no_way: u64,
    full: u64,
    exhausted: u64,
    taken: u64,
    swept: u64,
    drained: u64,
    most_sessions: usize,
}

impl<'a> Run<'a> {
    fn new(host: &'a mut Host, ipv6: bool, seed: u64) -> Self {
        let mut gw = Gateway::new(host, ipv6);
        gw.configure(|config| (config.port_low, config.port_high) = PORTS);
        let model = ReferenceNat::new(PORTS, SESSIONS as usize);
        let (rules, lost, tally) = (Default::default(), BTreeSet::new(), Tally::default());
        let mut run = Self { gw, model, dice: Dice::new(seed), rules, lost, tally };
        (0..RULES.len()).for_each(|index| run.toggle(index));
        run
    }

    /// A rule comes or goes.
    fn toggle(&mut self, index: usize) {
        let gone = std::mem::take(&mut self.rules[index]);
        if let Some(first) = gone.first() {
            self.gw.remove(*first);
            gone.iter().for_each(|id| self.model.remove(*id));
        } else {
            let ids = RULES[index].add(&mut self.gw);
            let rules = ids.iter().zip(RULES[index].rules());
            rules.for_each(|(id, rule)| self.model.add(*id, rule));
            self.rules[index] = ids;
        }
    }

    /// A backend leaves the shared port, and another comes in its place.
    fn rebalance(&mut self) {
        let ids = self.rules[SHARE].clone();
        if ids.is_empty() {
            return;
        }
        let leaves = self.dice.pick(&ids);
        let stay: Vec<_> = ids.iter().copied().filter(|id| *id != leaves).collect();
        let joins = self.dice.pick(&JOINS);
        if self.model.forwards(&forward(TCP, SHARED, joins)) {
            return;
        }
        let fresh = self.gw.rebalance(leaves, &stay, &[joins]);
        self.model.drain(leaves);
        fresh.iter().for_each(|id| self.model.add(*id, forward(TCP, SHARED, joins)));
        self.rules[SHARE] = stay.into_iter().chain(fresh).collect();
        self.tally.drained += 1;
    }

    fn step(&mut self) -> Result<(), String> {
        match self.dice.below(100) {
            0..3 => {
                let index = self.dice.below(RULES.len());
                let goes = !self.rules[index].is_empty();
                self.toggle(index);
                // As the daemon does, before an id is used again.
                if goes {
                    self.sweep()?;
                }
            }
            3 => self.lose_or_find(),
            4 => self.rebalance(),
            5..12 => {
                let seconds = self.dice.pick(&[1, 20, 40, 70, 130, 250, 310, 7000]);
                self.gw.advance(seconds);
                self.model.advance(seconds);
            }
            12..16 => self.sweep()?,
            16..58 => self.outbound()?,
            _ => self.inbound()?,
        }
        self.compare()
    }

    fn lose_or_find(&mut self) {
        let address = self.dice.pick(&LOSABLE);
        let links = self.gw.links();
        let lost = self.lost.insert(address) || !self.lost.remove(address);
        if lost {
            self.gw.blackhole(address);
        } else if address.starts_with("10.") {
            self.gw.route(address, links.internal, None);
        } else {
            self.gw.route(address, links.external, Some("203.0.113.1"));
        }
        self.model.lose(end(address).ip(), lost);
        // The daemon does that when the kernel tells it.
        self.gw.configure(|config| config.routing = config.routing.wrapping_add(1));
    }

    fn sweep(&mut self) -> Result<(), String> {
        let (swept, expected) = (self.gw.sweep() as usize, self.model.sweep());
        self.tally.swept += swept as u64;
        match swept == expected {
            true => Ok(()),
            false => Err(format!("the sweep ended {swept} sessions, not {expected}")),
        }
    }

    fn flags(&mut self) -> u8 {
        let all = [SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK];
        self.dice.pick(&all)
    }

    fn outbound(&mut self) -> Result<(), String> {
        let known: Vec<_> = self.model.sessions().collect();
        let (protocol, from, to) = if !known.is_empty() && self.dice.chance(55) {
            let ends = self.dice.pick(&known);
            (ends.protocol, ends.inside, ends.remote)
        } else {
            let protocol = self.dice.pick(&[TCP, TCP, UDP, UDP, UDP, ICMP]);
            let from = SocketAddr::new(end(self.dice.pick(&INSIDE)).ip(), self.dice.pick(&SOURCES));
            let to = end(self.dice.pick(&REMOTES));
            (protocol, from, if protocol == ICMP { SocketAddr::new(to.ip(), 0) } else { to })
        };
        let flags = if protocol == TCP { self.flags() } else { 0 };
        self.send(Packet { side: Side::Inside, protocol, from, to, flags })
    }

    fn inbound(&mut self) -> Result<(), String> {
        let known: Vec<_> = self.model.sessions().collect();
        let (protocol, from, to) = if !known.is_empty() && self.dice.chance(65) {
            let ends = self.dice.pick(&known);
            (ends.protocol, ends.remote, ends.external)
        } else {
            let protocol = self.dice.pick(&[TCP, UDP]);
            (protocol, end(self.dice.pick(&REMOTES)), end(self.dice.pick(&EXTERNALS)))
        };
        let flags = if protocol == TCP { self.flags() } else { 0 };
        self.send(Packet { side: Side::Outside, protocol, from, to, flags })
    }

    fn send(&mut self, packet: Packet) -> Result<(), String> {
        let sent = match packet.side {
            Side::Inside => self.gw.outbound(draft(&packet)),
            Side::Outside => self.gw.inbound(draft(&packet)),
        };
        let became = became(&sent, &packet);
        self.tally.count(became);
        if matches!(became, Became::Sent(..)) {
            let egress = sent.forwarded().next_hop.map_or(0, |(ifindex, _)| ifindex);
            if let Some(why) = leak(sent.bytes(), egress, &self.gw.links()) {
                return Err(why.to_owned());
            }
        }
        let told = self.model.packet(&packet, became);
        told.map_err(|why| format!("{packet:?}\n{became:?}, but {why}"))
    }

    /// Every session has both halves and is one that the model knows.
    fn compare(&mut self) -> Result<(), String> {
        let entries = self.gw.sessions();
        let there: BTreeSet<Ends> = entries.iter().filter_map(ends).collect();
        if entries.len() != 2 * there.len() {
            return Err(format!("{} entries for {} sessions", entries.len(), there.len()));
        }
        let mut external = BTreeSet::new();
        let unique = |it: &Ends| external.insert((it.protocol, it.external, it.remote));
        if !there.iter().all(unique) {
            return Err("two sessions share an external tuple".into());
        }
        self.tally.most_sessions = self.tally.most_sessions.max(there.len());
        self.model.compare(&there)
    }
}

impl Tally {
    fn count(&mut self, became: Became) {
        use gateway_common::verdict::DropReason::{
            NoRoute, NoRule, PortsExhausted, SessionsFull, TupleTaken,
        };
        match became {
            Became::Sent(..) => self.sent += 1,
            Became::Passed => self.passed += 1,
            Became::Dropped(NoRule) => self.no_rule += 1,
            Became::Dropped(NoRoute) => self.no_way += 1,
            Became::Dropped(SessionsFull) => self.full += 1,
            Became::Dropped(PortsExhausted) => self.exhausted += 1,
            Became::Dropped(TupleTaken) => self.taken += 1,
            Became::Dropped(_) => {}
        }
    }
}

fn draft(packet: &Packet) -> Draft {
    let (from, to) = (packet.from.to_string(), packet.to.to_string());
    match (packet.protocol, packet.side) {
        (TCP, _) => tcp(&from, &to, packet.flags),
        (UDP, _) => udp(&from, &to),
        (_, Side::Inside) => {
            ping(&packet.from.ip().to_string(), &packet.to.ip().to_string(), packet.from.port())
        }
        (_, Side::Outside) => {
            ping(&packet.to.ip().to_string(), &packet.from.ip().to_string(), packet.to.port())
                .reversed()
        }
    }
}

/// Of a query the id belongs to the end inside.
fn became(sent: &Sent, packet: &Packet) -> Became {
    match sent.outcome() {
        Outcome::Pass(_) => Became::Passed,
        Outcome::Drop(reason) => Became::Dropped(reason),
        Outcome::Forward => {
            let seen = sent.forwarded();
            let bare = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
            match (packet.protocol, packet.side) {
                (ICMP, Side::Inside) => Became::Sent(seen.source(), bare(seen.destination())),
                (ICMP, Side::Outside) => Became::Sent(bare(seen.source()), seen.destination()),
                _ => Became::Sent(seen.source(), seen.destination()),
            }
        }
    }
}

/// The ends of a session, from its original entry.
fn ends(entry: &Entry) -> Option<Ends> {
    let (from, to) = (entry.flow.source, entry.flow.destination);
    let protocol = if entry.flow.protocol == ICMPV6 { ICMP } else { entry.flow.protocol };
    let (inside, external, remote) = match entry.flow.direction {
        direction if direction == Direction::Outbound as u8 => (from, entry.translated.0, to),
        _ => (entry.translated.1, to, from),
    };
    let remote = if protocol == ICMP { SocketAddr::new(remote.ip(), 0) } else { remote };
    (entry.flags & ORIGINAL != 0).then_some(Ends { protocol, inside, external, remote })
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// Goes so many steps. Returns what was seen.
fn go(ipv6: bool, seed: u64, steps: u64) -> Tally {
    let mut host = Host::new(Links::IMAGINED, 2 * SESSIONS);
    let mut run = Run::new(&mut host, ipv6, seed);
    for step in 0..steps {
        if let Err(why) = run.step() {
            panic!("MODEL_SEED={seed}, step {step}: {why}\nafter\n{}", run.gw.log());
        }
    }
    // Nothing is left in the end, and all that was counted is counted out.
    run.gw.settle();
    run.tally
}

#[test]
fn the_pipeline_does_what_the_model_allows() {
    let (seed, steps) = (number("MODEL_SEED", 1), number("MODEL_STEPS", 20_000));
    for (seed, ipv6) in [(seed, false), (seed + 1, true)] {
        let started = Instant::now();
        let tally = go(ipv6, seed, steps);
        println!("seed {seed}, {steps} steps in {:.1?}: {tally:?}", started.elapsed());
        // Every corner was met.
        let Tally { sent, passed, no_rule, no_way, full, exhausted, taken, swept, drained, .. } =
            tally;
        let most_sessions = tally.most_sessions;
        let often = [sent, passed, no_rule, no_way, full, exhausted, taken, swept, drained];
        assert!(steps < 20_000 || often.iter().all(|count| *count >= 5), "{often:?}");
        assert!(steps < 20_000 || most_sessions == SESSIONS as usize, "{most_sessions}");
    }
}

/// Runs until the model objects to what a broken gateway does; `None` if it never does.
fn objection(break_it: impl Fn(&mut Run<'_>, u64)) -> Option<String> {
    let mut host = Host::new(Links::IMAGINED, 2 * SESSIONS);
    let mut run = Run::new(&mut host, false, 7);
    (0..20_000).find_map(|step| {
        break_it(&mut run, step);
        run.step().err()
    })
}

#[test]
fn a_gateway_that_loses_a_session_is_caught() {
    let why = objection(|run, step| {
        if step == 1000 {
            let entries = run.gw.sessions();
            let flow = entries[0].flow;
            let both = entries.iter().filter(|entry| {
                entry.flow == flow || entry.translated == (flow.destination, flow.source)
            });
            both.for_each(|entry| run.gw.forget(entry));
        }
    });
    assert!(why.is_some_and(|why| why.contains("disappeared") || why.contains("entries")));
}

#[test]
fn a_gateway_that_is_impatient_is_caught() {
    let impatient = Timeouts { tcp_opening: ticks_from_secs(200), ..Timeouts::default() };
    let why = objection(|run, _| run.gw.configure(|config| config.timeouts = impatient));
    assert!(why.is_some_and(|why| why.contains("sweep") || why.contains("disappeared")));
}

#[test]
fn a_gateway_with_another_range_of_ports_is_caught() {
    let why = objection(|run, _| run.gw.configure(|config| config.port_high = PORTS.1 + 1));
    assert!(why.is_some_and(|why| why.contains("a port from 30001 to 30003")));
}

#[test]
fn a_rule_that_stays_behind_is_caught() {
    let why = objection(|run, step| {
        if step > 500
            && let Some(id) = run.rules[5].first()
        {
            run.model.remove(*id);
        }
    });
    assert!(why.is_some());
}

#[test]
fn a_new_flow_to_a_backend_that_left_is_caught() {
    let why = objection(|run, step| {
        if step > 500
            && let Some(id) = run.rules[SHARE].first()
        {
            run.model.drain(*id);
        }
    });
    assert!(why.is_some_and(|why| why.contains("expected to one of")));
}

#[test]
fn a_host_with_two_addresses_of_a_pool_is_caught() {
    let mut model = ReferenceNat::new(PORTS, SESSIONS as usize);
    let eips = ["203.0.113.15:30001", "203.0.113.16:30002"].map(end);
    for (id, eip) in (1..).zip(eips) {
        model.add(id, Rule::Snat(prefix("10.0.1.0/24"), eip.ip()));
    }
    let packet = |port: u16, to: &str| {
        let from = SocketAddr::new(end(INSIDE[0]).ip(), port);
        Packet { side: Side::Inside, protocol: UDP, from, to: end(to), flags: 0 }
    };
    let (one, two) = (packet(4000, REMOTES[0]), packet(4001, REMOTES[1]));
    model.packet(&one, Became::Sent(eips[0], one.to)).expect("a free port");
    let why = model.packet(&two, Became::Sent(eips[1], two.to)).expect_err("another EIP");
    assert!(why.contains("is paired with 203.0.113.15"), "{why}");
}
