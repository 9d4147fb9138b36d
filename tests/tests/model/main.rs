//! The pipeline against [`ReferenceNat`], step by step.
//!
//! | variable | default | |
//! |---|---|---|
//! | `MODEL_STEPS` | 20000 | how many steps, in each family |
//! | `MODEL_SEED` | 1 | which steps; a failure prints it |

mod broken;
mod rules;

use std::collections::BTreeSet;
use std::time::Instant;

use gateway_common::records::{HAIRPIN, MAPPED_TARGET, ORIGINAL};
use gateway_common::tuple::Direction;
use gateway_common::verdict::PassReason;
use gateway_tests::build_packet::{ACK, Draft, ICMP, ICMPV6, TCP, UDP, end, ping, tcp, udp};
use gateway_tests::cases::{Gateway, Sent};
use gateway_tests::decode::decode;
use gateway_tests::harness::Outcome;
use gateway_tests::harness::host::Host;
use gateway_tests::harness::invariants::leak;
use gateway_tests::harness::notation::Entry;
use gateway_tests::harness::routes::Links;
use gateway_tests::harness::traffic::Dice;
use gateway_tests::model::{Became, Ends, Packet, Piece, ReferenceNat, Side, Way};

use self::rules::{JOINS, LOSABLE, RULES, SHARE, SHARED, forward};

/// Most sessions: less than the packets below would open.
const SESSIONS: u32 = 20;
/// Ports of an EIP for each remote: less than the hosts below would use.
const PORTS: (u16, u16) = (30_001, 30_003);

/// How many fragments are remembered, so that others belong to them.
const RECENT: usize = 6;

/// The gateway, the model, and how often what was seen.
struct Run<'a> {
    gw: Gateway<'a>,
    model: ReferenceNat,
    dice: Dice,
    rules: [Vec<u32>; RULES.len()],
    lost: BTreeSet<&'static str>,
    /// The last fragments.
    recent: Vec<Packet>,
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
    held: u64,
    crowded: u64,
    replayed: u64,
    drained: u64,
    most_sessions: usize,
    most_hairpins: usize,
    /// By mappings, from inside or outside.
    most_entered: usize,
}

impl<'a> Run<'a> {
    fn new(host: &'a mut Host, ipv6: bool, seed: u64) -> Self {
        let mut gw = Gateway::new(host, ipv6);
        gw.configure(|config| (config.port_low, config.port_high) = PORTS);
        let model = ReferenceNat::new(PORTS, SESSIONS as usize);
        let (rules, lost, tally) = (Default::default(), BTreeSet::new(), Tally::default());
        let (dice, recent) = (Dice::new(seed), Vec::new());
        let mut run = Self { gw, model, dice, rules, lost, recent, tally };
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
            _ => {
                let known: Vec<_> = self.model.sessions().collect();
                let packet = rules::packet(&mut self.dice, &known);
                if self.dice.chance(15) { self.fragment(packet)? } else { self.send(packet)? }
            }
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

    /// Sends a fragment in place of a packet, or more of one datagram than may wait.
    fn fragment(&mut self, packet: Packet) -> Result<(), String> {
        let packet = rules::fragment(&mut self.dice, packet, &self.recent);
        self.recent.truncate(RECENT - 1);
        self.recent.insert(0, packet);
        let later = matches!(packet.piece, Piece::Later(_));
        let times = if later && self.dice.chance(1) { 50 } else { 1 };
        (0..times).try_for_each(|_| self.send(packet))
    }

    /// Sends a packet. Of a first fragment that others wait for, the model sees how it comes again.
    fn send(&mut self, packet: Packet) -> Result<(), String> {
        if self.pass(packet)? != Became::Replayed {
            return Ok(());
        }
        let behind = self.model.replays(&packet)?;
        self.tally.replayed += behind.len() as u64;
        std::iter::once(packet).chain(behind).try_for_each(|packet| match self.pass(packet)? {
            Became::Sent(..) => Ok(()),
            became => Err(format!("{packet:?}\n{became:?}, but it came again")),
        })
    }

    fn pass(&mut self, packet: Packet) -> Result<Became, String> {
        let sent = match packet.way.side {
            Side::Inside => self.gw.outbound(draft(&packet)),
            Side::Outside => self.gw.inbound(draft(&packet)),
        };
        let became = became(&sent);
        self.tally.count(became);
        if became == Became::Replayed {
            return Ok(became);
        }
        let wrong = |why: String| format!("{packet:?}\n{became:?}, but {why}");
        self.model.packet(&packet, became).map_err(wrong)?;
        if let Became::Sent(from, to) = became {
            let egress = sent.forwarded().next_hop.map_or(0, |(ifindex, _)| ifindex);
            if let Some(why) = leak(sent.bytes(), egress, &self.gw.links()) {
                return Err(why.to_owned());
            }
            let [before, after] = [sent.before(), sent.bytes()].map(identification);
            let told = self.model.identified(&packet, (from.ip(), to.ip()), before, after);
            told.map_err(wrong)?;
        }
        Ok(became)
    }

    /// Every session has both halves, shares neither with another, and is one that the model knows.
    fn compare(&mut self) -> Result<(), String> {
        let entries = self.gw.sessions();
        let there: BTreeSet<Ends> = entries.iter().filter_map(ends).collect();
        let ways = |ends: &Ends| ends.ways().map(|way| (ends.protocol, way));
        let expected: BTreeSet<_> = there.iter().flat_map(ways).collect();
        if expected != entries.iter().map(way).collect() || entries.len() != 2 * there.len() {
            return Err(format!("{entries:#?} are the entries for {there:#?}"));
        }
        self.tally.most_sessions = self.tally.most_sessions.max(there.len());
        self.tally.most_hairpins =
            self.tally.most_hairpins.max(there.iter().filter(|ends| ends.turns()).count());
        let by_mapping =
            |entry: &&Entry| entry.flags & ORIGINAL != 0 && entry.flags & MAPPED_TARGET != 0;
        let entered = entries.iter().filter(by_mapping).count();
        self.tally.most_entered = self.tally.most_entered.max(entered);
        self.model.compare(&there)?;
        match (self.gw.mappings(), self.model.mappings()) {
            (there, expected) if there != expected => {
                Err(format!("{there} mappings, not {expected}"))
            }
            _ => Ok(()),
        }
    }
}

impl Tally {
    fn count(&mut self, became: Became) {
        use gateway_common::verdict::DropReason::{
            Fragment, FragmentHeld, NoRoute, NoRule, PortsExhausted, SessionsFull, TupleTaken,
        };
        match became {
            Became::Sent(..) => self.sent += 1,
            Became::Passed => self.passed += 1,
            Became::Replayed => {}
            Became::Dropped(NoRule) => self.no_rule += 1,
            Became::Dropped(NoRoute) => self.no_way += 1,
            Became::Dropped(SessionsFull) => self.full += 1,
            Became::Dropped(PortsExhausted) => self.exhausted += 1,
            Became::Dropped(TupleTaken) => self.taken += 1,
            Became::Dropped(FragmentHeld) => self.held += 1,
            Became::Dropped(Fragment) => self.crowded += 1,
            Became::Dropped(_) => {}
        }
    }
}

fn draft(packet: &Packet) -> Draft {
    let Way { from, to, .. } = packet.way;
    let whole = match packet.protocol {
        TCP => tcp(&from.to_string(), &to.to_string(), packet.flags),
        UDP => udp(&from.to_string(), &to.to_string()),
        _ if packet.flags & ACK == 0 => {
            ping(&from.ip().to_string(), &to.ip().to_string(), from.port())
        }
        _ => ping(&to.ip().to_string(), &from.ip().to_string(), to.port()).reversed(),
    };
    let part = |id, which: usize| {
        whole.clone().with_payload(&[7; 64]).with_identification(id).pieces(48)[which].clone()
    };
    match packet.piece {
        Piece::Whole => whole,
        Piece::First(id) => part(id, 0),
        Piece::Later(id) => part(id, 1),
    }
}

fn identification(frame: &[u8]) -> u32 {
    decode(frame).map_or(0, |packet| packet.fragment.0)
}

fn became(sent: &Sent) -> Became {
    match sent.outcome() {
        Outcome::Pass(PassReason::Replayed) => Became::Replayed,
        Outcome::Pass(_) => Became::Passed,
        Outcome::Drop(reason) => Became::Dropped(reason),
        Outcome::Forward => {
            let seen = sent.forwarded();
            Became::Sent(seen.source(), seen.destination())
        }
    }
}

/// Protocol and way of an entry's packets.
fn way(entry: &Entry) -> (u8, Way) {
    let protocol = if entry.flow.protocol == ICMPV6 { ICMP } else { entry.flow.protocol };
    let outbound = entry.flow.direction == Direction::Outbound as u8;
    let side = if outbound { Side::Inside } else { Side::Outside };
    (protocol, Way { side, from: entry.flow.source, to: entry.flow.destination })
}

/// The ends of a session, from its original entry.
fn ends(entry: &Entry) -> Option<Ends> {
    let (protocol, came) = way(entry);
    let turns = entry.flags & HAIRPIN != 0 || came.side == Side::Outside;
    let side = if turns { Side::Inside } else { Side::Outside };
    let (from, to) = entry.translated;
    (entry.flags & ORIGINAL != 0).then_some(Ends { protocol, came, left: Way { side, from, to } })
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
        let Tally { sent, passed, no_rule, no_way, full, exhausted, taken, swept, .. } = tally;
        let Tally { drained, held, crowded, replayed, .. } = tally;
        let Tally { most_sessions, most_hairpins, most_entered, .. } = tally;
        let often = [
            sent, passed, no_rule, no_way, full, exhausted, taken, swept, drained, held, crowded,
            replayed,
        ];
        assert!(steps < 20_000 || often.iter().all(|count| *count >= 3), "{often:?}");
        assert!(steps < 20_000 || most_sessions == SESSIONS as usize, "{most_sessions}");
        assert!(steps < 20_000 || most_hairpins.min(most_entered) >= 3, "{tally:?}");
    }
}
