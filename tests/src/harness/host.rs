//! The pipeline of `gateway-common` in host memory, with what the programs do around it.

use std::collections::BTreeMap;
use std::rc::Rc;

use gateway_common::accounting;
use gateway_common::endpoint_independent::KeySlot;
use gateway_common::family::{V4, V6};
use gateway_common::nexthop::NextHopGroup;
use gateway_common::packet::HostPacket;
use gateway_common::pipeline::{Arrival, process};
use gateway_common::records::{
    self, Config, Counter, Datagram, DatagramKey, Dnat, DnatKey, Eip, Fip, FipKey,
    Host as HostRecord, Mapping, MappingKey, ORIGINAL, Pool, Rule, RuleState, Session, Slots,
    SnatKey, ticks_from_secs,
};
use gateway_common::sweep::{self, Fate, NO_RULE};
use gateway_common::tables::Tables as _;
use gateway_common::tuple::{Direction, Tuple};
use gateway_common::verdict::{PassReason, SESSIONS_CLOSED, Verdict};

use super::notation::Notation;
use super::routes::{Links, Prefix, Routes, Target, ingress_mac};
use super::{Backend, Delivery, Outcome, Store, age, config};
use crate::sim::SimTables;

/// Any time will do.
const NOW: u32 = 0x0100_0000;

/// The data path on the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Maps of IPv4.
    pub v4: SimTables<V4>,
    /// Maps of IPv6.
    pub v6: SimTables<V6>,
    config: Config,
    links: Links,
    capacity: usize,
    rules: BTreeMap<u32, Rule>,
    /// Sessions of draining rules that sweeps have met.
    left: BTreeMap<u32, u32>,
}

impl Host {
    /// A gateway with these interfaces, whose session maps take `capacity` entries each.
    #[must_use]
    pub fn new(links: Links, capacity: u32) -> Self {
        let capacity = capacity as usize;
        let routes = Rc::new(Routes::of(&links));
        Self {
            v4: SimTables::new(Rc::clone(&routes), capacity),
            v6: SimTables::new(routes, capacity),
            config: config(&links),
            links,
            capacity,
            rules: BTreeMap::new(),
            left: BTreeMap::new(),
        }
    }
}

fn deliver<F: Notation>(
    tables: &mut SimTables<F>,
    config: &Config,
    arrival: &Arrival,
    frame: &mut [u8],
) -> Delivery {
    tables.begin();
    let for_this_host = frame[..6] == ingress_mac(arrival.direction);
    let mut packet = HostPacket { bytes: frame, for_this_host };
    match process(&mut packet, tables, config, arrival) {
        Verdict::Forward(hop) => Delivery {
            outcome: Outcome::Forward,
            next_hop: Some((hop.ifindex, F::to_ip(hop.address))),
        },
        Verdict::Pass(reason) => Delivery { outcome: Outcome::Pass(reason), next_hop: None },
        Verdict::Drop(reason) => Delivery { outcome: Outcome::Drop(reason), next_hop: None },
    }
}

impl Backend for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn links(&self) -> Links {
        self.links
    }

    fn config(&self) -> Config {
        self.config
    }

    fn configure(&mut self, config: Config) {
        self.config = config;
    }

    fn v4(&mut self) -> &mut dyn Store<V4> {
        &mut self.v4
    }

    fn v6(&mut self) -> &mut dyn Store<V6> {
        &mut self.v6
    }

    fn set_rule(&mut self, id: u32, rule: Option<Rule>) {
        set(&mut self.rules, id, rule);
        if rule.is_some() {
            self.v4.rule_counters.remove(&id);
            self.v6.rule_counters.remove(&id);
        }
    }

    fn set_route(&mut self, prefix: Prefix, target: Target) {
        let mut routes = Routes::clone(&self.v4.routes);
        routes.set(prefix, target);
        let routes = Rc::new(routes);
        self.v4.routes = Rc::clone(&routes);
        self.v6.routes = routes;
    }

    fn send(&mut self, direction: Direction, frame: &mut Vec<u8>) -> Delivery {
        let arrival = Arrival {
            now: NOW,
            ifindex: self.links.ingress(direction),
            direction,
            frame_bytes: frame.len() as u32,
        };
        // As the kernel's `eth_type_trans` sets `skb->protocol`; a tag is still in the frame.
        match u16::from_be_bytes([frame[12], frame[13]]) {
            0x0800 => deliver(&mut self.v4, &self.config, &arrival, frame),
            0x86dd => deliver(&mut self.v6, &self.config, &arrival, frame),
            _ => Delivery { outcome: Outcome::Pass(PassReason::NotIp), next_hop: None },
        }
    }

    fn shortest(&self, _ipv6: bool) -> usize {
        14
    }

    fn advance(&mut self, seconds: u32) {
        age(&mut self.v4, seconds);
        age(&mut self.v6, seconds);
        self.v4.age_fragments(ticks_from_secs(seconds));
        self.v6.age_fragments(ticks_from_secs(seconds));
        // Remembered for a tenth of a second.
        self.v4.exhausted.clear();
        self.v6.exhausted.clear();
    }

    fn sweep(&mut self) -> u32 {
        let (rules, left) = (&self.rules, &mut self.left);
        sweep_all(&mut self.v4, &self.config, rules, left)
            + sweep_all(&mut self.v6, &self.config, rules, left)
    }

    fn left(&mut self, id: u32) -> u32 {
        self.left.remove(&id).unwrap_or_default()
    }

    fn rule_counter(&mut self, id: u32) -> Counter {
        let [v4, v6] = [&self.v4.rule_counters, &self.v6.rule_counters]
            .map(|counters| counters.get(&id).copied().unwrap_or_default());
        Counter { packets: v4.packets + v6.packets, bytes: v4.bytes + v6.bytes }
    }

    fn event(&mut self, index: u32) -> u64 {
        [&self.v4.events, &self.v6.events].iter().filter_map(|events| events.get(&index)).sum()
    }

    fn clear(&mut self) {
        *self = Self::new(self.links, self.capacity as u32);
    }
}

/// What the sweep programs do to all entries, decided by [`sweep::fate`].
fn sweep_all<F: Notation>(
    tables: &mut SimTables<F>,
    config: &Config,
    rules: &BTreeMap<u32, Rule>,
    left: &mut BTreeMap<u32, u32>,
) -> u32 {
    let mut ended = 0;
    for (key, session) in tables.sessions.clone() {
        let opposite_key = session.opposite(&key);
        let mut slot = KeySlot::default();
        let target = sweep::rule_of_target(&opposite_key, session.flags, &mut slot, tables);
        let state = |rule| match rule {
            0 => RuleState::Active as u8,
            rule => rules.get(&rule).map_or(NO_RULE, |rule| rule.state),
        };
        let rule = sweep::state_of_both(state(session.rule), state(target));
        let opposite = tables.sessions.get(&opposite_key);
        let fate = sweep::fate(&key, &session, opposite, rule, &config.timeouts, NOW);
        if fate == Fate::Ends {
            tables.sessions.remove(&opposite_key);
            tables.sessions.remove(&key);
            if session.flags & ORIGINAL != 0 {
                tables.count_event(SESSIONS_CLOSED);
                let mut keys = [KeySlot::default(); 2];
                accounting::closed(&key, &opposite_key, session.flags, &mut keys, tables);
                ended += 1;
            }
        } else if fate == Fate::Drains {
            *left.entry(session.rule).or_default() += 1;
        }
    }
    ended
}

/// Writes or removes an entry of an ordered map.
fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl<F: Notation> Store<F> for SimTables<F> {
    fn set_fip(&mut self, key: &FipKey<F>, fip: Option<Fip<F>>) {
        set(&mut self.fips, *key, fip);
    }

    fn set_dnat(&mut self, key: &DnatKey<F>, dnat: Option<Dnat<F>>) {
        set(&mut self.dnats, *key, dnat);
    }

    fn set_backend(&mut self, rule: u32, backend: Option<records::Backend<F>>) {
        set(&mut self.backends, rule, backend);
    }

    fn set_slots(&mut self, key: &DnatKey<F>, slots: Option<Slots>) {
        set(&mut self.slots, *key, slots);
    }

    fn set_snat(&mut self, key: &SnatKey<F>, pool: Option<Pool<F>>) {
        set(&mut self.snats, *key, pool);
    }

    fn forget_routes(&mut self) {
        self.known_routes.clear();
    }

    fn set_next_hops(&mut self, side: u32, group: Option<NextHopGroup<F>>) {
        set(&mut self.next_hops, side, group);
    }

    fn set_session(&mut self, key: &Tuple<F>, session: Option<Session<F>>) {
        set(&mut self.sessions, *key, session);
    }

    fn forget_fragments(&mut self) {
        self.datagrams.clear();
        self.held.clear();
    }

    fn datagrams(&mut self) -> Vec<(DatagramKey<F>, Datagram)> {
        self.datagrams.iter().map(|(key, datagram)| (*key, *datagram)).collect()
    }

    fn session(&mut self, key: &Tuple<F>) -> Option<Session<F>> {
        self.sessions.get(key).copied()
    }

    fn sessions(&mut self) -> Vec<(Tuple<F>, Session<F>)> {
        self.sessions.iter().map(|(key, session)| (*key, *session)).collect()
    }

    fn add_eip(&mut self, eip: &F::Addr) {
        self.eips.entry(*eip).or_default();
    }

    fn eips(&mut self) -> Vec<(F::Addr, Eip)> {
        self.eips.iter().map(|(address, eip)| (*address, *eip)).collect()
    }

    fn mappings(&mut self) -> Vec<(MappingKey<F>, Mapping<F>)> {
        self.mappings.iter().map(|(key, mapping)| (*key, *mapping)).collect()
    }

    fn set_host(&mut self, address: &F::Addr, host: HostRecord) {
        self.hosts.insert(*address, host);
    }

    fn hosts(&mut self) -> Vec<(F::Addr, HostRecord)> {
        self.hosts.iter().map(|(address, host)| (*address, *host)).collect()
    }
}
