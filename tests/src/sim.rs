//! The maps, the routing table and the random numbers of a gateway, in host memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use gateway_common::accounting;
use gateway_common::fragment::HELD_FOR;
use gateway_common::known_route::KnownRoute;
use gateway_common::nexthop::NextHopGroup;
use gateway_common::records::{
    Backend, Counter, Datagram, DatagramKey, Dnat, DnatKey, Eip, Fip, FipKey, HeldKey, Host,
    Mapping, MappingKey, MappingKind, Pool, PoolMember, Session, Slots, SnatKey, Ticks,
};
use gateway_common::session::elapsed;
use gateway_common::tables::{ClaimError, EipEvent, Route, RouteQuery, Tables};
use gateway_common::tuple::Tuple;
use gateway_common::verdict::NextHop;

use crate::harness::notation::Notation;
use crate::harness::routes::{Routes, Target};

/// Where the random numbers of [`SimTables`] come from.
#[derive(Clone, Debug)]
pub enum Random<F: Notation> {
    /// A xorshift generator in this state, which is not 0.
    Xorshift(u32),
    /// The choice that was made elsewhere: see [`Choice`].
    Follow(Choice<F>),
}

/// An external endpoint that another run of the same packet has chosen.
///
/// The first candidate for a port is the chosen one, and every other external endpoint counts as
/// taken, so that this run ends like the other. How often that was a lie is counted.
#[derive(Clone, Debug)]
pub struct Choice<F: Notation> {
    /// A seed whose first candidate is the chosen port.
    pub seed: u32,
    /// The chosen address and port; `None` if no port was found.
    pub external: Option<(F::Addr, u16)>,
    /// The chosen identification.
    pub identification: u32,
    /// The address and port that the packet was sent to; `None` if it was not.
    pub destination: Option<(F::Addr, u16)>,
    /// External endpoints refused because they are taken.
    pub taken: u32,
    /// External endpoints refused although they are free.
    pub free: u32,
    /// Whether a range of ports was remembered to be exhausted.
    pub remembered: bool,
}

/// What a gateway knows, in ordered maps.
#[derive(Clone, Debug)]
pub struct SimTables<F: Notation> {
    /// Both entries of every session.
    pub sessions: BTreeMap<Tuple<F>, Session<F>>,
    /// How many entries [`SimTables::sessions`] takes.
    pub capacity: usize,
    /// FIP rules.
    pub fips: BTreeMap<FipKey<F>, Fip<F>>,
    /// DNAT rules.
    pub dnats: BTreeMap<DnatKey<F>, Dnat<F>>,
    /// Slot tables of shared ports.
    pub slots: BTreeMap<DnatKey<F>, Slots>,
    /// Backends of shared ports.
    pub backends: BTreeMap<u32, Backend<F>>,
    /// SNAT rules.
    pub snats: BTreeMap<SnatKey<F>, Pool<F>>,
    /// What EIPs carry.
    pub eips: BTreeMap<F::Addr, Eip>,
    /// What inside hosts have opened.
    pub hosts: BTreeMap<F::Addr, Host>,
    /// Mappings of inside endpoints.
    pub mappings: BTreeMap<MappingKey<F>, Mapping<F>>,
    /// Ranges of ports that were walked in vain, and until when that is believed.
    pub exhausted: BTreeMap<Tuple<F>, Ticks>,
    /// Datagrams whose first fragment has come.
    pub datagrams: BTreeMap<DatagramKey<F>, Datagram>,
    /// Later fragments that wait for their first one. Whoever replays them sends them himself.
    pub held: BTreeMap<HeldKey<F>, Ticks>,
    /// The counters of identifications.
    pub identifications: BTreeMap<u32, u32>,
    /// Next-hop groups by the direction of their sides.
    pub next_hops: BTreeMap<u32, NextHopGroup<F>>,
    /// The routing table.
    pub routes: Rc<Routes>,
    /// What is remembered of it, by place.
    pub known_routes: BTreeMap<u32, KnownRoute<F>>,
    /// The source of random numbers.
    pub random: Random<F>,
    /// Packets and bytes by rule.
    pub rule_counters: BTreeMap<u32, Counter>,
    /// Events by counter.
    pub events: BTreeMap<u32, u64>,
    /// Keys of the session entries that were asked for since this was last emptied.
    pub touched: Vec<Tuple<F>>,
    /// Whether the next claims are for an external port.
    choosing: bool,
}

impl<F: Notation> SimTables<F> {
    /// Empty tables over a routing table.
    #[must_use]
    pub fn new(routes: Rc<Routes>, capacity: usize) -> Self {
        Self {
            sessions: BTreeMap::new(),
            capacity,
            fips: BTreeMap::new(),
            dnats: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            snats: BTreeMap::new(),
            eips: BTreeMap::new(),
            hosts: BTreeMap::new(),
            mappings: BTreeMap::new(),
            exhausted: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            held: BTreeMap::new(),
            identifications: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            routes,
            known_routes: BTreeMap::new(),
            random: Random::Xorshift(0x2545_f491),
            rule_counters: BTreeMap::new(),
            events: BTreeMap::new(),
            touched: Vec::new(),
            choosing: false,
        }
    }

    /// Whether a mapping has the port that a reply comes to.
    fn is_mapped(&self, key: &Tuple<F>) -> bool {
        let mut external = MappingKey::default();
        let ends = &key.endpoints;
        let (address, port) = (&ends.destination, ends.destination_port);
        external.set(MappingKind::External, address, port, key.protocol);
        self.mappings.contains_key(&external)
    }

    /// Lets fragments become older.
    pub fn age_fragments(&mut self, ticks: Ticks) {
        let datagrams = self.datagrams.values_mut().map(|datagram| &mut datagram.since);
        let all = datagrams.chain(self.held.values_mut());
        all.for_each(|since| *since = since.wrapping_sub(ticks));
    }

    /// Readies the tables for another packet.
    pub fn begin(&mut self) {
        self.touched.clear();
        self.choosing = false;
    }

    /// Whether a claim is refused because another run chose another external endpoint.
    fn chosen_otherwise(&mut self, external: (F::Addr, u16), taken: bool) -> bool {
        let Random::Follow(choice) = &mut self.random else {
            return false;
        };
        if !self.choosing || choice.external == Some(external) {
            return false;
        }
        match taken {
            true => choice.taken += 1,
            false => choice.free += 1,
        }
        true
    }
}

impl<F: Notation> Tables<F> for SimTables<F> {
    fn session(&mut self, key: &Tuple<F>) -> Option<&mut Session<F>> {
        // A walk through the ports asks for all of them.
        if !self.choosing {
            self.touched.push(*key);
        }
        self.sessions.get_mut(key)
    }

    fn claim(&mut self, key: &Tuple<F>, session: &Session<F>) -> Result<(), ClaimError> {
        let ends = &key.endpoints;
        let taken = self.sessions.contains_key(key) || self.is_mapped(key);
        if self.chosen_otherwise((ends.destination, ends.destination_port), taken) {
            return Err(ClaimError::Occupied);
        }
        if self.sessions.contains_key(key) {
            return Err(ClaimError::Occupied);
        }
        if self.sessions.len() >= self.capacity {
            return Err(ClaimError::Full);
        }
        // The port is ours; what is claimed next is the entry of the packet itself.
        self.choosing = false;
        self.touched.push(*key);
        self.sessions.insert(*key, *session);
        Ok(())
    }

    fn release(&mut self, key: &Tuple<F>) -> bool {
        self.touched.push(*key);
        self.sessions.remove(key).is_some()
    }

    fn mapping(&mut self, key: &MappingKey<F>) -> Option<&Mapping<F>> {
        self.mappings.get(key)
    }

    fn claim_mapping(
        &mut self,
        key: &MappingKey<F>,
        mapping: &Mapping<F>,
    ) -> Result<(), ClaimError> {
        let taken = self.mappings.contains_key(key);
        let external = key.kind == MappingKind::External as u8;
        if external && self.chosen_otherwise((key.address, key.port), taken) || taken {
            return Err(ClaimError::Occupied);
        }
        if external {
            self.choosing = false;
        }
        self.mappings.insert(*key, *mapping);
        Ok(())
    }

    fn release_mapping(&mut self, key: &MappingKey<F>) {
        self.mappings.remove(key);
    }

    fn join_mapping(&mut self, key: &MappingKey<F>) -> bool {
        let mapping = self.mappings.get_mut(key);
        mapping.map(|mapping| mapping.users += 1).is_some()
    }

    fn leave_mapping(&mut self, key: &MappingKey<F>, peer: &mut MappingKey<F>) -> bool {
        let Some(mapping) = self.mappings.get_mut(key) else {
            return false;
        };
        mapping.users -= 1;
        peer.set(MappingKind::External, &mapping.peer, mapping.port, key.protocol);
        mapping.users == 0
    }

    fn count_eip(&mut self, eip: &F::Addr, event: EipEvent) {
        let Some(record) = self.eips.get_mut(eip) else {
            return;
        };
        match event {
            EipEvent::Opened => {
                record.sessions += 1;
                record.opened += 1;
            }
            EipEvent::Closed => record.sessions -= 1,
            EipEvent::Refused => record.refused += 1,
        }
    }

    fn host(&mut self, address: &F::Addr) -> Option<Host> {
        self.hosts.get(address).copied()
    }

    fn enter_host(&mut self, address: &F::Addr, now_ns: u64, interval_ns: u32) {
        let host = self.hosts.entry(*address).or_insert(Host { due: now_ns, ..Host::default() });
        host.sessions += 1;
        if accounting::ahead(host.due, now_ns) == 0 {
            host.due = now_ns;
        }
        host.due += u64::from(interval_ns);
    }

    fn leave_host(&mut self, address: &F::Addr) {
        let Some(host) = self.hosts.get_mut(address) else {
            return;
        };
        host.sessions -= 1;
        if host.sessions == 0 {
            self.hosts.remove(address);
        }
    }

    fn refuse_host(&mut self, address: &F::Addr) {
        if let Some(host) = self.hosts.get_mut(address) {
            host.refused += 1;
        }
    }

    fn exhausted(&mut self, key: &Tuple<F>) -> Option<Ticks> {
        let until = self.exhausted.get(key).copied();
        if let Random::Follow(choice) = &mut self.random {
            choice.remembered |= until.is_some();
        }
        until
    }

    fn set_exhausted(&mut self, key: &Tuple<F>, until: Ticks) {
        self.exhausted.insert(*key, until);
    }

    fn fip(&mut self, key: &FipKey<F>) -> Option<&Fip<F>> {
        self.fips.get(key)
    }

    fn dnat(&mut self, key: &DnatKey<F>) -> Option<&Dnat<F>> {
        self.dnats.get(key)
    }

    fn backend(&mut self, key: &DnatKey<F>, hash: u32) -> Option<(u32, &Backend<F>)> {
        let rule = self.slots.get(key)?.rule(hash);
        Some((rule, self.backends.get(&rule)?))
    }

    fn draw(&mut self, key: &DnatKey<F>) -> u32 {
        let Random::Follow(choice) = &mut self.random else {
            let number = self.random();
            self.choosing = false;
            return number;
        };
        let Some(destination) = choice.destination else {
            // Another backend may have had no free port where this one has some.
            choice.remembered = true;
            return 0;
        };
        let leads_there = |rule: &u32| {
            let backend = self.backends.get(rule);
            backend.is_some_and(|backend| (backend.address, backend.port) == destination)
        };
        let slots = self.slots.get(key).map_or(&[][..], |slots| &slots.rules);
        slots.iter().position(leads_there).unwrap_or_default() as u32
    }

    fn snat(&mut self, source: &F::Addr, turn: u32) -> Option<PoolMember<F>> {
        let covers = |key: &&SnatKey<F>| F::covers(&key.network, key.prefix_len, source);
        let longest = self.snats.keys().filter(covers).max_by_key(|key| key.prefix_len)?;
        self.snats[longest].member(source, turn)
    }

    fn known_route(&mut self, place: u32) -> Option<&mut KnownRoute<F>> {
        Some(self.known_routes.entry(place).or_default())
    }

    fn next_hops(&mut self, side: u32) -> Option<&NextHopGroup<F>> {
        self.next_hops.get(&side)
    }

    fn datagram(&mut self, key: &DatagramKey<F>) -> Option<&Datagram> {
        self.datagrams.get(key)
    }

    fn set_datagram(&mut self, key: &DatagramKey<F>, datagram: &Datagram) {
        self.datagrams.insert(*key, *datagram);
    }

    fn hold(&mut self, key: &HeldKey<F>, now: Ticks) -> Result<(), ClaimError> {
        if self.held.get(key).is_some_and(|since| elapsed(now, *since) <= HELD_FOR) {
            return Err(ClaimError::Occupied);
        }
        self.held.insert(*key, now);
        Ok(())
    }

    fn is_held(&mut self, key: &HeldKey<F>) -> bool {
        self.held.contains_key(key)
    }

    fn replay(&mut self, key: &mut HeldKey<F>, _own: bool, _now: Ticks) {
        self.held.retain(|held, _| held.datagram != key.datagram);
    }

    fn identification(&mut self, index: u32, count: u32, _now: Ticks) -> u32 {
        if let Random::Follow(choice) = &self.random {
            return choice.identification;
        }
        // Not the number that a packet is likely to have already.
        let next = self.identifications.entry(index).or_insert(0x8000 + index);
        *next += count;
        *next - count
    }

    fn route(
        &mut self,
        _query: &RouteQuery,
        _source: &F::Addr,
        destination: &F::Addr,
        next_hop: &mut NextHop<F>,
    ) -> Route {
        let destination = F::to_ip(*destination);
        match self.routes.lookup(destination) {
            Target::Forward { ifindex, via } => {
                let via: IpAddr = via.unwrap_or(destination);
                next_hop.ifindex = ifindex;
                next_hop.address = F::from_ip(via).expect("a next hop of the same family");
                Route::Forward
            }
            Target::Local => Route::Local,
            Target::Refused => Route::Refused,
        }
    }

    fn random(&mut self) -> u32 {
        self.choosing = true;
        match &mut self.random {
            Random::Xorshift(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 17;
                *state ^= *state << 5;
                *state
            }
            Random::Follow(choice) => choice.seed,
        }
    }

    fn count_rule(&mut self, rule: u32, bytes: u32) {
        let counter = self.rule_counters.entry(rule).or_default();
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }

    fn count_event(&mut self, index: u32) {
        *self.events.entry(index).or_default() += 1;
    }
}
