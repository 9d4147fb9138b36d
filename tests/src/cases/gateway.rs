//! A gateway as a case talks to it: rules, packets, and what became of them.
//!
//! A case is written in IPv4 notation. The same case runs over IPv6 with every address embedded.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use gateway_common::records::{Config, Counter};
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use crate::build_packet::{Draft, embed, end, unembed};
use crate::decode::{Decoded, decode, describe};
use crate::harness::notation::{Entry, Flow};
use crate::harness::routes::{Links, Target, embed_prefix, ingress_mac, prefix};
use crate::harness::{Backend, Delivery, NatRule, Outcome};

/// How many packets the log of a failed case shows.
const LOG_LINES: usize = 12;

/// The gateway under test.
pub struct Gateway<'a> {
    backend: &'a mut dyn Backend,
    ipv6: bool,
    rules: BTreeMap<u32, NatRule>,
    log: Vec<String>,
}

impl<'a> Gateway<'a> {
    /// An empty gateway, for packets of one family.
    pub fn new(backend: &'a mut dyn Backend, ipv6: bool) -> Self {
        backend.clear();
        Self { backend, ipv6, rules: BTreeMap::new(), log: Vec::new() }
    }

    /// Whether the case runs over IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Indices of the interfaces.
    #[must_use]
    pub fn links(&self) -> Links {
        self.backend.links()
    }

    /// Length of the shortest frame that can be sent.
    #[must_use]
    pub fn shortest(&self) -> usize {
        self.backend.shortest(self.ipv6)
    }

    /// The packets so far, for a person.
    #[must_use]
    pub fn log(&self) -> String {
        let first = self.log.len().saturating_sub(LOG_LINES);
        self.log[first..].join("\n")
    }

    fn ip(&self, text: &str) -> IpAddr {
        match end(text).ip() {
            IpAddr::V4(v4) if self.ipv6 => embed(v4).into(),
            address => address,
        }
    }

    fn endpoint(&self, text: &str) -> SocketAddr {
        SocketAddr::new(self.ip(text), end(text).port())
    }

    fn add(&mut self, rule: NatRule, ids: &[u32]) {
        self.backend.add(&rule);
        self.rules.extend(ids.iter().map(|id| (*id, rule.clone())));
    }

    fn next_id(&self) -> u32 {
        self.rules.keys().next_back().map_or(1, |id| id + 1)
    }

    /// Adds a floating IP. Returns the id of the rule.
    pub fn fip(&mut self, eip: &str, inside: &str) -> u32 {
        let id = self.next_id();
        let rule = NatRule::Fip { eip: self.ip(eip), inside: self.ip(inside), id };
        self.add(rule, &[id]);
        id
    }

    /// Adds a port forward. Returns the id of the rule.
    pub fn dnat(&mut self, external: &str, protocol: u8, inside: &str) -> u32 {
        let id = self.next_id();
        let (external, inside) = (self.endpoint(external), self.endpoint(inside));
        self.add(NatRule::Dnat { external, protocol, inside, id }, &[id]);
        id
    }

    /// Adds the pool of a source prefix. Returns the ids of the rules, one for each EIP.
    pub fn snat(&mut self, source: &str, eips: &[&str]) -> Vec<u32> {
        let first = self.next_id();
        let ids: Vec<u32> = (first..).take(eips.len()).collect();
        let pool = eips.iter().zip(&ids).map(|(eip, id)| (self.ip(eip), *id)).collect();
        let prefix = if self.ipv6 { embed_prefix(prefix(source)) } else { prefix(source) };
        self.add(NatRule::Snat { prefix, pool }, &ids);
        ids
    }

    /// Removes the rule of this id, with its whole pool if it is a SNAT rule.
    ///
    /// # Panics
    /// There is none.
    pub fn remove(&mut self, id: u32) {
        let rule = self.rules.remove(&id).expect("a rule of this case");
        self.rules.retain(|_, other| *other != rule);
        self.backend.remove(&rule);
    }

    /// Changes the configuration.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = self.backend.config();
        change(&mut config);
        self.backend.configure(config);
    }

    /// Adds or replaces a route: `via 10.0.1.1` of an interface, on link if `via` is `None`.
    pub fn route(&mut self, network: &str, ifindex: u32, via: Option<&str>) {
        let via = via.map(|gateway| self.ip(gateway));
        self.set_route(network, Target::Forward { ifindex, via });
    }

    /// Adds or replaces a route by a blackhole.
    pub fn blackhole(&mut self, network: &str) {
        self.set_route(network, Target::Refused);
    }

    fn set_route(&mut self, network: &str, target: Target) {
        let network = if self.ipv6 { embed_prefix(prefix(network)) } else { prefix(network) };
        self.backend.set_route(network, target);
    }

    /// Sends a packet from the VPC.
    pub fn outbound(&mut self, draft: Draft) -> Sent {
        let frame = self.frame(Direction::Outbound, draft);
        self.send(Direction::Outbound, frame)
    }

    /// Sends a packet from outside.
    pub fn inbound(&mut self, draft: Draft) -> Sent {
        let frame = self.frame(Direction::Inbound, draft);
        self.send(Direction::Inbound, frame)
    }

    /// The frame of a draft, addressed to the interface that it comes in by.
    #[must_use]
    pub fn frame(&self, direction: Direction, draft: Draft) -> Vec<u8> {
        let draft = if self.ipv6 { draft.over_ipv6() } else { draft };
        draft.frame(ingress_mac(direction))
    }

    /// Sends a frame as it is.
    pub fn send(&mut self, direction: Direction, before: Vec<u8>) -> Sent {
        let mut after = before.clone();
        let delivery = self.backend.send(direction, &mut after);
        let outcome = delivery.outcome;
        self.log.push(format!("{direction:?} {}", describe(&before)));
        self.log.push(match outcome {
            Outcome::Forward => format!("    Forward {}", describe(&after)),
            Outcome::Pass(_) | Outcome::Drop(_) => format!("    {outcome:?}"),
        });
        Sent { before, after, delivery }
    }

    /// All session entries, sorted, in the notation of the case.
    pub fn sessions(&mut self) -> Vec<Entry> {
        self.backend.sessions().into_iter().map(plain_entry).collect()
    }

    /// The one session entry whose packets go from `source` to `destination`.
    ///
    /// # Panics
    /// There is none, or more than one.
    pub fn session(&mut self, source: &str, destination: &str) -> Entry {
        let ends = (end(source), end(destination));
        let matching = |entry: &Entry| (entry.flow.source, entry.flow.destination) == ends;
        let found: Vec<Entry> = self.sessions().into_iter().filter(matching).collect();
        assert_eq!(found.len(), 1, "from {source} to {destination}: {found:?}");
        found[0]
    }

    /// Removes one session entry.
    pub fn forget(&mut self, entry: &Entry) {
        let raw = |address: SocketAddr| self.endpoint(&address.to_string());
        let flow = entry.flow;
        let flow = Flow { source: raw(flow.source), destination: raw(flow.destination), ..flow };
        self.backend.forget(&flow);
    }

    /// Lets time pass.
    pub fn advance(&mut self, seconds: u32) {
        self.backend.advance(seconds);
    }

    /// Runs the sweep. Returns how many sessions ended.
    pub fn sweep(&mut self) -> u32 {
        self.backend.sweep()
    }

    /// What a rule has counted.
    pub fn rule_counter(&mut self, id: u32) -> Counter {
        self.backend.rule_counter(id)
    }

    /// How often an event has been counted.
    pub fn event(&mut self, index: u32) -> u64 {
        self.backend.event(index)
    }
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(unembed(address.ip()), address.port())
}

fn plain_entry(entry: Entry) -> Entry {
    let flow = Flow {
        source: plain(entry.flow.source),
        destination: plain(entry.flow.destination),
        ..entry.flow
    };
    let translated = (plain(entry.translated.0), plain(entry.translated.1));
    let next_hop = (entry.next_hop.0, unembed(entry.next_hop.1));
    Entry { flow, translated, next_hop, ..entry }
}

/// A packet that went in, and what became of it.
#[derive(Debug)]
pub struct Sent {
    before: Vec<u8>,
    after: Vec<u8>,
    delivery: Delivery,
}

impl Sent {
    /// The packet as the other side sees it. Everything but addresses, ports, TTL and checksums is
    /// as it was, and all checksums are right.
    ///
    /// # Panics
    /// It was not forwarded, or something else has changed.
    #[track_caller]
    pub fn forwarded(&self) -> Seen {
        self.expect(Outcome::Forward);
        let [before, after] = [&self.before, &self.after].map(|frame| match decode(frame) {
            Ok(decoded) => decoded,
            Err(why) => panic!("{why}\n{}", self.both()),
        });
        assert_eq!(self.before.len(), self.after.len(), "length\n{}", self.both());
        assert_eq!(self.before[..14], self.after[..14], "Ethernet header\n{}", self.both());
        assert_eq!(after.faults, Vec::<String>::new(), "{}", self.both());
        assert_eq!(after.ttl, before.ttl - 1, "TTL\n{}", self.both());
        assert_eq!(kept(&before), kept(&after), "{}", self.both());
        Seen { decoded: after, next_hop: self.delivery.next_hop }
    }

    /// Asserts that the packet was dropped for this reason.
    ///
    /// # Panics
    /// It was not.
    #[track_caller]
    pub fn dropped(&self, reason: DropReason) {
        self.expect(Outcome::Drop(reason));
    }

    /// Asserts that the packet was left to the kernel for this reason, as it was.
    ///
    /// # Panics
    /// It was not.
    #[track_caller]
    pub fn passed(&self, reason: PassReason) {
        self.expect(Outcome::Pass(reason));
        assert!(self.before == self.after, "changed on the way to the kernel\n{}", self.both());
    }

    /// What became of the packet.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.delivery.outcome
    }

    /// The frame as it left.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.after
    }

    #[track_caller]
    fn expect(&self, outcome: Outcome) {
        assert_eq!(self.delivery.outcome, outcome, "\n{}", self.both());
    }

    fn both(&self) -> String {
        format!("in:  {}\nout: {}", describe(&self.before), describe(&self.after))
    }
}

/// The parts of a packet that no translation touches.
fn kept(packet: &Decoded) -> Decoded {
    let icmp = packet.icmp.map(|(kind, code, _)| (kind, code, 0));
    let segment = packet.payload().to_vec();
    let nowhere = IpAddr::from([0, 0, 0, 0]);
    let packet = packet.clone();
    Decoded {
        source: nowhere,
        destination: nowhere,
        ttl: 0,
        ports: None,
        checksum: None,
        faults: Vec::new(),
        icmp,
        segment,
        ..packet
    }
}

/// A packet as the other side sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The packet.
    pub decoded: Decoded,
    /// Interface and neighbour, where the backend tells.
    pub next_hop: Option<(u32, IpAddr)>,
}

impl Seen {
    /// Source address and port, in the notation of the case.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        plain(self.decoded.from())
    }

    /// Destination address and port, in the notation of the case.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        plain(self.decoded.to())
    }

    /// Asserts both ends, ports included.
    ///
    /// # Panics
    /// They are others.
    #[track_caller]
    pub fn is(&self, source: &str, destination: &str) {
        let expected = (end(source), end(destination));
        assert_eq!((self.source(), self.destination()), expected, "{}", self.decoded);
    }

    /// Asserts the source address and both parts of the destination. Returns the source port.
    ///
    /// # Panics
    /// They are others.
    #[track_caller]
    pub fn is_from(&self, address: &str, destination: &str) -> u16 {
        let expected = (end(address).ip(), end(destination));
        assert_eq!((self.source().ip(), self.destination()), expected, "{}", self.decoded);
        self.source().port()
    }

    /// Asserts where the packet goes next, if the backend tells.
    ///
    /// # Panics
    /// It goes elsewhere.
    #[track_caller]
    pub fn leaves_by(&self, ifindex: u32, neighbor: &str) {
        if let Some((egress, address)) = self.next_hop {
            assert_eq!((egress, unembed(address)), (ifindex, end(neighbor).ip()));
        }
    }

    /// What the receiver answers.
    #[must_use]
    pub fn answer(&self) -> Draft {
        let answer = self.decoded.answer();
        Draft { source: unembed(answer.source), destination: unembed(answer.destination), ..answer }
    }
}
