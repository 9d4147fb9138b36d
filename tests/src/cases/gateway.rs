//! A gateway as a case talks to it: rules, packets, and what became of them.
//!
//! A case is written in IPv4 notation. The same case runs over IPv6 with every address embedded.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use gateway_common::nexthop::{GROUP_MEMBERS, GroupMember, HashFields, MemberState, NextHopGroup};
use gateway_common::records::{Balance, Config, Counter, Eip, Host, MAP_INDEPENDENT, MappingKind};
use gateway_common::tuple::Direction;
use gateway_userspace::balance::assign;

use super::Sent;
use crate::build_packet::{Draft, embed, end, unembed};
use crate::decode::describe;
use crate::harness::notation::{Entry, Flow, Notation};
use crate::harness::routes::{Links, Target, embed_prefix, ingress_mac, prefix};
use crate::harness::{Backend, NatRule, Outcome, accounts};

/// How many packets the log of a failed case shows.
const LOG_LINES: usize = 12;

/// A next-hop group as a case writes it.
#[derive(Clone, Debug)]
pub struct Routers<'a> {
    /// Addresses and states.
    pub members: &'a [(&'a str, MemberState)],
    /// The places that the slots have in turn, from 1; 0 for none.
    pub slots: &'a [u16],
    /// Whether open sessions go to the member that has their slot.
    pub moves: bool,
    /// What is hashed.
    pub hash: HashFields,
}

impl Routers<'_> {
    /// MAC address of the member at a place, from 1.
    #[must_use]
    pub fn mac(place: u8) -> [u8; 6] {
        [2, 0, 0, 9, 0, place]
    }

    /// The record of a family, whose members have these addresses.
    ///
    /// # Panics
    /// One is of another family.
    #[must_use]
    pub fn group<F: Notation>(&self, addresses: &[IpAddr]) -> NextHopGroup<F> {
        let mut members = [GroupMember::default(); GROUP_MEMBERS];
        for (place, (member, address)) in (1..).zip(members.iter_mut().zip(addresses)) {
            let state = self.members[usize::from(place) - 1].1 as u8;
            let address = F::from_ip(*address).expect("an address of the family");
            *member = GroupMember { address, mac: Self::mac(place), state, zero: 0 };
        }
        let slots = std::array::from_fn(|slot| self.slots[slot % self.slots.len()]);
        let (hash, moves) = (self.hash as u8, u8::from(self.moves));
        NextHopGroup { seed: 7, hash, moves, zero: 0, slots, members }
    }
}

/// The gateway under test.
pub struct Gateway<'a> {
    backend: &'a mut dyn Backend,
    ipv6: bool,
    rules: BTreeMap<u32, NatRule>,
    log: Vec<String>,
    /// Whether entries were removed by hand, so that counts of them are wrong.
    forgot: bool,
}

impl<'a> Gateway<'a> {
    /// An empty gateway, for packets of one family.
    pub fn new(backend: &'a mut dyn Backend, ipv6: bool) -> Self {
        backend.clear();
        Self { backend, ipv6, rules: BTreeMap::new(), log: Vec::new(), forgot: false }
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

    /// Adds a port that several backends share, given with their weights. Returns the ids of their
    /// rules.
    pub fn share(
        &mut self,
        external: &str,
        protocol: u8,
        balance: Balance,
        insides: &[(&str, u16)],
    ) -> Vec<u32> {
        let ids: Vec<u32> = (self.next_id()..).take(insides.len()).collect();
        let weights: Vec<_> =
            ids.iter().zip(insides).map(|(id, (_, weight))| (*id, *weight)).collect();
        let insides = insides.iter().map(|(inside, _)| self.endpoint(inside));
        let rule = NatRule::Share {
            external: self.endpoint(external),
            protocol,
            balance,
            backends: insides.zip(ids.iter().copied()).collect(),
            slots: Box::new(assign(None, &weights).expect("backends")),
        };
        self.add(rule, &ids);
        ids
    }

    /// Replaces the backends of the shared port that rule `id` is for: keeps those in `stay`, drains
    /// the others, adds `joins`. Returns the ids of those. All have the same weight.
    ///
    /// # Panics
    /// There is no such rule.
    pub fn rebalance(&mut self, id: u32, stay: &[u32], joins: &[&str]) -> Vec<u32> {
        let fresh: Vec<u32> = (self.next_id()..).take(joins.len()).collect();
        let joins: Vec<_> = joins.iter().map(|inside| self.endpoint(inside)).collect();
        let mut rule = self.rules.get(&id).expect("a rule of this case").clone();
        let NatRule::Share { backends, slots, .. } = &mut rule else {
            panic!("rule {id} is no shared port");
        };
        let gone: Vec<_> =
            backends.extract_if(.., |(_, id)| !stay.contains(id)).map(|(_, id)| id).collect();
        backends.extend(joins.into_iter().zip(fresh.iter().copied()));
        let weights: Vec<_> = backends.iter().map(|(_, id)| (*id, 1)).collect();
        **slots = assign(Some(slots), &weights).expect("backends");
        let ids = rule.ids();
        gone.iter().for_each(|id| self.backend.drain(*id));
        self.add(rule, &ids);
        fresh
    }

    /// Removes the slot table of the shared port that rule `id` is for, and nothing else.
    ///
    /// # Panics
    /// There is no such rule.
    pub fn lose_slots(&mut self, id: u32) {
        let rule = self.rules.get(&id).expect("a rule of this case");
        self.backend.lose_slots(rule);
    }

    /// Removes the rule of this id from the map of rules, and nothing else.
    pub fn end(&mut self, id: u32) {
        self.backend.set_rule(id, None);
    }

    /// How many sessions of a draining rule the last sweep has met.
    pub fn left(&mut self, id: u32) -> u32 {
        self.backend.left(id)
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

    /// As [`Gateway::snat`], with endpoint-independent mapping and this filter.
    pub fn snat_mapped(&mut self, source: &str, eips: &[&str], filter: u32) -> Vec<u32> {
        let first = self.next_id();
        let ids: Vec<u32> = (first..).take(eips.len()).collect();
        let pool = eips.iter().zip(&ids).map(|(eip, id)| (self.ip(eip), *id)).collect();
        let prefix = if self.ipv6 { embed_prefix(prefix(source)) } else { prefix(source) };
        let options = MAP_INDEPENDENT | filter;
        self.add(NatRule::Mapped { prefix, pool, options }, &ids);
        self.configure(|config| config.mappings = 1);
        ids
    }

    /// Adds a prefix whose packets pass as they are. Returns the id of the rule.
    pub fn forward(&mut self, source: &str) -> u32 {
        let id = self.next_id();
        let prefix = if self.ipv6 { embed_prefix(prefix(source)) } else { prefix(source) };
        self.add(NatRule::Forward { prefix, id }, &[id]);
        id
    }

    /// How many mappings there are.
    pub fn mappings(&mut self) -> usize {
        let inside = MappingKind::Inside as u8;
        let v4 = self.backend.v4().mappings().iter().filter(|(key, _)| key.kind == inside).count();
        let v6 = self.backend.v6().mappings().iter().filter(|(key, _)| key.kind == inside).count();
        v4 + v6
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

    /// Makes the group of a side, and has sessions look at their routes again.
    pub fn next_hops(&mut self, side: Direction, routers: &Routers<'_>) {
        let addresses: Vec<_> = routers.members.iter().map(|(text, _)| self.ip(text)).collect();
        let side = side as u32;
        if self.ipv6 {
            self.backend.v6().set_next_hops(side, Some(routers.group(&addresses)));
        } else {
            self.backend.v4().set_next_hops(side, Some(routers.group(&addresses)));
        }
        self.configure(|config| (config.next_hops, config.routing) = (1, config.routing + 1));
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
        Sent::new(before, after, delivery)
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
        self.forgot = true;
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

    /// The record of an EIP.
    ///
    /// # Panics
    /// No rule ever named it.
    pub fn eip(&mut self, eip: &str) -> Eip {
        let address = self.ip(eip);
        self.backend.eip(address).expect("an EIP of a rule")
    }

    /// The record of an inside host, if it has open sessions.
    pub fn host(&mut self, address: &str) -> Option<Host> {
        let address = self.ip(address);
        let hosts = self.backend.hosts();
        hosts.into_iter().find_map(|(other, host)| (other == address).then_some(host))
    }

    /// Asserts that what is counted agrees with the sessions that are there, then ends all of them
    /// and asserts that nothing is left. Every case ends with this.
    ///
    /// # Panics
    /// Something does not.
    pub fn settle(&mut self) {
        if self.forgot {
            return;
        }
        accounts::check(self.backend).unwrap_or_else(|why| panic!("{why}"));
        // Longer than any patience, and shorter than half a turn of the clock.
        self.advance(1 << 20);
        self.sweep();
        accounts::check(self.backend).unwrap_or_else(|why| panic!("after the end: {why}"));
        assert_eq!(self.backend.hosts(), [], "hosts without sessions");
    }

    /// How often an event has been counted.
    pub fn event(&mut self, index: u32) -> u64 {
        self.backend.event(index)
    }
}

pub(super) fn plain(address: SocketAddr) -> SocketAddr {
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
