//! One way to drive the data path, whatever runs it: host code or the programs in the kernel.

pub mod accounts;
pub mod host;
pub mod invariants;
pub mod notation;
pub mod pair;
pub mod routes;
pub mod surroundings;
pub mod traffic;

use std::net::{IpAddr, SocketAddr};

use gateway_common::accounting::nanoseconds;
use gateway_common::family::{V4, V6};
use gateway_common::nexthop::NextHopGroup;
use gateway_common::records::{
    self, ABI_VERSION, Balance, Config, Counter, Datagram, DatagramKey, Dnat, DnatKey, Eip, Fip,
    FipKey, Host, HostLimits, KEEP_ADDRESS, Mapping, MappingKey, Pool, PoolMember, RULE_NAME_BYTES,
    Rule, RuleKind, RuleState, Session, Slots, SnatKey, Timeouts, ticks_from_secs,
};
use gateway_common::tuple::{Direction, Tuple};
use gateway_common::verdict::{DropReason, PassReason};

use self::notation::{Entry, Flow, Notation, entry, tuple};
use self::routes::{Links, MTU, Prefix, Target};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Rewritten and sent on.
    Forward,
    /// Left to the kernel.
    Pass(PassReason),
    /// Gone.
    Drop(DropReason),
}

/// What became of a frame, and where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What became of it.
    pub outcome: Outcome,
    /// Interface and neighbour; the kernel tells neither.
    pub next_hop: Option<(u32, IpAddr)>,
}

/// A rule, without its family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatRule {
    /// A floating IP.
    Fip {
        /// The EIP.
        eip: IpAddr,
        /// The inside address.
        inside: IpAddr,
        /// Id of the rule.
        id: u32,
    },
    /// A port forward.
    Dnat {
        /// The EIP and the external port.
        external: SocketAddr,
        /// Protocol number.
        protocol: u8,
        /// The inside address and port.
        inside: SocketAddr,
        /// Id of the rule.
        id: u32,
    },
    /// A port forward with several backends.
    Share {
        /// The EIP and the external port.
        external: SocketAddr,
        /// Protocol number.
        protocol: u8,
        /// How a backend is chosen.
        balance: Balance,
        /// Inside addresses and ports, each with the id of its rule.
        backends: Vec<(SocketAddr, u32)>,
        /// Who gets which share.
        slots: Box<Slots>,
    },
    /// The EIPs of a source prefix, each with the id of its rule.
    Snat {
        /// The source prefix.
        prefix: Prefix,
        /// The pool.
        pool: Vec<(IpAddr, u32)>,
    },
    /// The same, with options of the rules.
    Mapped {
        /// The source prefix.
        prefix: Prefix,
        /// The pool.
        pool: Vec<(IpAddr, u32)>,
        /// As in the records of the pool.
        options: u32,
    },
    /// A prefix whose packets pass as they are.
    Forward {
        /// The prefix.
        prefix: Prefix,
        /// Id of the rule.
        id: u32,
    },
}

/// The maps of a family.
pub trait Store<F: Notation> {
    /// Writes or removes one entry of the FIP map.
    fn set_fip(&mut self, key: &FipKey<F>, fip: Option<Fip<F>>);

    /// Writes or removes one entry of the DNAT map.
    fn set_dnat(&mut self, key: &DnatKey<F>, dnat: Option<Dnat<F>>);

    /// Writes or removes one entry of the map of backends.
    fn set_backend(&mut self, rule: u32, backend: Option<records::Backend<F>>);

    /// Writes or removes one slot table.
    fn set_slots(&mut self, key: &DnatKey<F>, slots: Option<Slots>);

    /// Writes or removes one entry of the SNAT map.
    fn set_snat(&mut self, key: &SnatKey<F>, pool: Option<Pool<F>>);

    /// Writes or removes the next-hop group of a side, by the direction of the packets that come in by it.
    fn set_next_hops(&mut self, side: u32, group: Option<NextHopGroup<F>>);

    /// Writes or removes one session entry.
    fn set_session(&mut self, key: &Tuple<F>, session: Option<Session<F>>);

    /// Reads one session entry.
    fn session(&mut self, key: &Tuple<F>) -> Option<Session<F>>;

    /// Forgets the datagrams whose first fragment has come, and later ones that wait for it.
    fn forget_fragments(&mut self);

    /// Forgets the routes that were asked for.
    fn forget_routes(&mut self);

    /// Reads what is known of datagrams whose first fragment has come, in any order.
    fn datagrams(&mut self) -> Vec<(DatagramKey<F>, Datagram)>;

    /// Reads all session entries, in any order.
    fn sessions(&mut self) -> Vec<(Tuple<F>, Session<F>)>;

    /// Makes the record of an EIP, unless it is there.
    fn add_eip(&mut self, eip: &F::Addr);

    /// Reads the records of all EIPs, in any order.
    fn eips(&mut self) -> Vec<(F::Addr, Eip)>;

    /// Reads the entries of all mappings, in any order.
    fn mappings(&mut self) -> Vec<(MappingKey<F>, Mapping<F>)>;

    /// Replaces the record of an inside host.
    fn set_host(&mut self, address: &F::Addr, host: Host);

    /// Reads the records of all inside hosts, in any order.
    fn hosts(&mut self) -> Vec<(F::Addr, Host)>;
}

/// A data path with its maps and routes.
pub trait Backend {
    /// What a person calls it.
    fn name(&self) -> &'static str;

    /// Indices of its interfaces.
    fn links(&self) -> Links;

    /// The configuration in force.
    fn config(&self) -> Config;

    /// Replaces the configuration.
    fn configure(&mut self, config: Config);

    /// The maps of IPv4.
    fn v4(&mut self) -> &mut dyn Store<V4>;

    /// The maps of IPv6.
    fn v6(&mut self) -> &mut dyn Store<V6>;

    /// Adds or removes an id in the map of rules.
    fn set_rule(&mut self, id: u32, rule: Option<Rule>);

    /// Adds or replaces a route until the next [`Backend::clear`]. Nobody tells the data path of it.
    fn set_route(&mut self, prefix: Prefix, target: Target);

    /// Sends a frame through, which is rewritten in place.
    ///
    /// # Panics
    /// The data path misbehaves: an unknown return code, a verdict that is not counted.
    fn send(&mut self, direction: Direction, frame: &mut Vec<u8>) -> Delivery;

    /// Length of the shortest IP frame that can be sent.
    fn shortest(&self, ipv6: bool) -> usize;

    /// Ends the sessions that are over. Returns how many.
    fn sweep(&mut self) -> u32;

    /// How many sessions of a draining rule sweeps have met since this was last asked.
    fn left(&mut self, id: u32) -> u32;

    /// What a rule has counted since it was added.
    fn rule_counter(&mut self, id: u32) -> Counter;

    /// How often an event has been counted since the last [`Backend::clear`].
    fn event(&mut self, index: u32) -> u64;

    /// Forgets everything, so that another case can begin.
    fn clear(&mut self);

    /// Adds a rule.
    fn add(&mut self, rule: &NatRule) {
        for id in rule.ids() {
            self.set_rule(id, Some(record(rule.kind(), RuleState::Active)));
        }
        self.write(rule, true);
    }

    /// Removes a rule.
    fn remove(&mut self, rule: &NatRule) {
        self.write(rule, false);
        for id in rule.ids() {
            self.set_rule(id, None);
        }
    }

    /// Takes the slots of a backend away; its sessions stay.
    fn drain(&mut self, id: u32) {
        self.set_rule(id, Some(record(RuleKind::Dnat, RuleState::Draining)));
    }

    /// Removes the slot table of a shared port.
    fn lose_slots(&mut self, rule: &NatRule) {
        let NatRule::Share { external, protocol, .. } = rule else { return };
        if rule.is_ipv4() {
            self.v4().set_slots(&dnat_key(*external, *protocol), None);
        } else {
            self.v6().set_slots(&dnat_key(*external, *protocol), None);
        }
    }

    /// Writes a rule into the maps of its family or removes it.
    fn write(&mut self, rule: &NatRule, present: bool) {
        if rule.is_ipv4() {
            write_rule(self.v4(), rule, present);
        } else {
            write_rule(self.v6(), rule, present);
        }
    }

    /// All session entries, sorted.
    fn sessions(&mut self) -> Vec<Entry> {
        let v4 = self.v4().sessions().into_iter().map(|(key, value)| entry(&key, &value));
        let mut entries: Vec<Entry> = v4.collect();
        entries.extend(self.v6().sessions().iter().map(|(key, value)| entry(key, value)));
        entries.sort_unstable();
        entries
    }

    /// The session entry of a flow.
    fn session(&mut self, flow: &Flow) -> Option<Entry> {
        if let Some(key) = tuple::<V4>(flow) {
            return self.v4().session(&key).map(|session| entry(&key, &session));
        }
        let key = tuple::<V6>(flow)?;
        self.v6().session(&key).map(|session| entry(&key, &session))
    }

    /// Removes the session entry of a flow, if it is there.
    fn forget(&mut self, flow: &Flow) {
        if let Some(key) = tuple::<V4>(flow) {
            self.v4().set_session(&key, None);
        } else if let Some(key) = tuple::<V6>(flow) {
            self.v6().set_session(&key, None);
        }
    }

    /// Forgets the datagrams whose first fragment has come.
    fn forget_fragments(&mut self) {
        self.v4().forget_fragments();
        self.v6().forget_fragments();
    }

    /// The record of an EIP; `None` if no rule ever named it.
    fn eip(&mut self, eip: IpAddr) -> Option<Eip> {
        let v4 = self.v4().eips().into_iter().map(|(address, eip)| (V4::to_ip(address), eip));
        let mut all: Vec<_> = v4.collect();
        all.extend(self.v6().eips().into_iter().map(|(address, eip)| (V6::to_ip(address), eip)));
        all.into_iter().find_map(|(address, record)| (address == eip).then_some(record))
    }

    /// The records of all inside hosts, sorted.
    fn hosts(&mut self) -> Vec<(IpAddr, Host)> {
        let v4 = self.v4().hosts().into_iter().map(|(address, host)| (V4::to_ip(address), host));
        let mut all: Vec<_> = v4.collect();
        all.extend(self.v6().hosts().into_iter().map(|(address, host)| (V6::to_ip(address), host)));
        all.sort_unstable_by_key(|(address, _)| *address);
        all
    }

    /// Lets time pass: makes every session older, and whatever is remembered of routes too old.
    fn advance(&mut self, seconds: u32) {
        age(self.v4(), seconds);
        age(self.v6(), seconds);
    }
}

impl NatRule {
    /// The ids of the rule: one, or one for each member of a pool.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        match self {
            Self::Fip { id, .. } | Self::Dnat { id, .. } | Self::Forward { id, .. } => vec![*id],
            Self::Share { backends, .. } => backends.iter().map(|(_, id)| *id).collect(),
            Self::Snat { pool, .. } | Self::Mapped { pool, .. } => {
                pool.iter().map(|(_, id)| *id).collect()
            }
        }
    }

    fn kind(&self) -> RuleKind {
        match self {
            Self::Fip { .. } => RuleKind::Fip,
            Self::Dnat { .. } | Self::Share { .. } => RuleKind::Dnat,
            Self::Snat { .. } | Self::Mapped { .. } => RuleKind::Snat,
            Self::Forward { .. } => RuleKind::Forward,
        }
    }

    fn is_ipv4(&self) -> bool {
        match self {
            Self::Fip { eip, .. } => eip.is_ipv4(),
            Self::Dnat { external, .. } | Self::Share { external, .. } => external.is_ipv4(),
            Self::Snat { prefix, .. }
            | Self::Mapped { prefix, .. }
            | Self::Forward { prefix, .. } => prefix.0.is_ipv4(),
        }
    }
}

fn record(kind: RuleKind, state: RuleState) -> Rule {
    let (kind, state) = (kind as u8, state as u8);
    Rule { kind, name_length: 0, state, zero: 0, name: [0; RULE_NAME_BYTES] }
}

fn address<F: Notation>(ip: IpAddr) -> F::Addr {
    F::from_ip(ip).unwrap_or_else(|| panic!("{ip} is of another family than its rule"))
}

fn dnat_key<F: Notation>(external: SocketAddr, protocol: u8) -> DnatKey<F> {
    DnatKey { eip: address::<F>(external.ip()), port: external.port(), protocol, zero: 0 }
}

fn dnat<F: Notation>(inside: SocketAddr, balance: Balance, rule: u32) -> Dnat<F> {
    let (address, port) = (address::<F>(inside.ip()), inside.port());
    Dnat { address, port, balance: balance as u16, rule }
}

fn write_rule<F: Notation>(store: &mut dyn Store<F>, rule: &NatRule, present: bool) {
    match rule {
        NatRule::Fip { eip, inside, id } => {
            store.add_eip(&address::<F>(*eip));
            let ends = [(*eip, *inside, Direction::Inbound), (*inside, *eip, Direction::Outbound)];
            for (from, to, direction) in ends {
                let key = FipKey { address: address::<F>(from), direction: direction as u32 };
                let fip = Fip { peer: address::<F>(to), rule: *id };
                store.set_fip(&key, present.then_some(fip));
            }
        }
        NatRule::Dnat { external, protocol, inside, id } => {
            store.add_eip(&address::<F>(external.ip()));
            let dnat = dnat(*inside, Balance::Exclusive, *id);
            store.set_dnat(&dnat_key(*external, *protocol), present.then_some(dnat));
        }
        NatRule::Share { external, protocol, balance, backends, slots } => {
            let key = dnat_key(*external, *protocol);
            store.add_eip(&key.eip);
            for (inside, id) in backends {
                let (address, port) = (address::<F>(inside.ip()), inside.port());
                let backend = records::Backend { key, address, port, weight: 1 };
                store.set_backend(*id, present.then_some(backend));
            }
            store.set_slots(&key, present.then_some(**slots));
            let (inside, id) = backends[0];
            store.set_dnat(&key, present.then(|| dnat(inside, *balance, id)));
        }
        NatRule::Snat { prefix, pool } => {
            let rule = NatRule::Mapped { prefix: *prefix, pool: pool.clone(), options: 0 };
            write_rule(store, &rule, present);
        }
        NatRule::Mapped { prefix, pool, options } => {
            let key = SnatKey { prefix_len: prefix.1, network: address::<F>(prefix.0) };
            let mut value = Pool { length: pool.len() as u32, ..Pool::default() };
            for (member, (eip, id)) in value.members.iter_mut().zip(pool) {
                store.add_eip(&address::<F>(*eip));
                *member = PoolMember { eip: address::<F>(*eip), rule: *id, options: *options };
            }
            store.set_snat(&key, present.then_some(value));
        }
        NatRule::Forward { prefix, id } => {
            let key = SnatKey { prefix_len: prefix.1, network: address::<F>(prefix.0) };
            let mut value = Pool { length: 1, ..Pool::default() };
            value.members[0] = PoolMember { rule: *id, options: KEEP_ADDRESS, ..value.members[0] };
            store.set_snat(&key, present.then_some(value));
        }
    }
}

fn age<F: Notation>(store: &mut dyn Store<F>, seconds: u32) {
    for (key, session) in store.sessions() {
        let last_seen = session.last_seen.wrapping_sub(ticks_from_secs(seconds));
        store.set_session(&key, Some(Session { last_seen, ..session }));
    }
    for (address, host) in store.hosts() {
        let due = host.due.wrapping_sub(nanoseconds(ticks_from_secs(seconds)));
        store.set_host(&address, Host { due, ..host });
    }
    store.forget_routes();
}

/// The configuration that every case begins with.
#[must_use]
pub fn config(links: &Links) -> Config {
    Config {
        generation: 1,
        abi_version: ABI_VERSION,
        internal_ifindex: links.internal,
        external_ifindex: links.external,
        internal_mtu: MTU,
        external_mtu: MTU,
        clamp_mtu: 0,
        routing: 1,
        port_low: 1024,
        port_high: u16::MAX,
        unmatched: 0,
        mappings: 0,
        next_hops: 0,
        zero: [0; 3],
        timeouts: Timeouts::default(),
        host_limits: HostLimits::default(),
    }
}
