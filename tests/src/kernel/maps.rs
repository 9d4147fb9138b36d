//! The maps of a loaded object.
#![allow(unsafe_code, reason = "values of maps as bytes")]

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, IterableMap as _, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use aya::{Ebpf, Pod};
use gateway_common::family::{Family, V4, V6};
use gateway_common::known_route::{KnownRoute, PLACES};
use gateway_common::nexthop::NextHopGroup;
use gateway_common::records::{
    Backend, Config, Counter, Datagram, DatagramKey, Dnat, DnatKey, Draining, Eip, Fip, FipKey,
    HeldKey, Host, Mapping, MappingKey, Neighbor, Pool, Record, Rule, Session, Slots, SnatKey,
    Ticks, XdpFacts,
};
use gateway_common::tuple::Tuple;
use gateway_common::verdict::NextHop;

use super::take;
use crate::harness::Store;
use crate::harness::notation::Notation;

/// A record as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

/// Declares that records may be read and written as bytes.
macro_rules! pods {
    ($($single:ty),+; $($family:ident),+) => {
        $(
            // SAFETY: a `Record` is `repr(C)`, without padding, valid for every bit pattern.
            unsafe impl Pod for Raw<$single> {}
            const _: () = is_record::<$single>();
        )+
        $(
            // SAFETY: `V4` and `V6` are the only families, and for both this is a `Record`.
            unsafe impl<F: Family> Pod for Raw<$family<F>> {}
            const _: () = is_record::<$family<V4>>();
            const _: () = is_record::<$family<V6>>();
        )+
    };
}

const fn is_record<T: Record>() {}

pods!(Config, Counter, Datagram, Draining, Eip, Host, Neighbor, Rule, Slots, XdpFacts; Backend, DatagramKey, Dnat, DnatKey, Fip, FipKey, HeldKey, KnownRoute, Mapping, MappingKey, NextHop, NextHopGroup, Pool, Session, Tuple);

/// The session map of a family.
pub(crate) type SessionMap<F> = HashMap<MapData, Raw<Tuple<F>>, Raw<Session<F>>>;

/// The maps of one family.
pub(super) struct FamilyMaps<F: Notation> {
    sessions: SessionMap<F>,
    fips: HashMap<MapData, Raw<FipKey<F>>, Raw<Fip<F>>>,
    dnats: HashMap<MapData, Raw<DnatKey<F>>, Raw<Dnat<F>>>,
    slots: HashMap<MapData, Raw<DnatKey<F>>, Raw<Slots>>,
    backends: HashMap<MapData, u32, Raw<Backend<F>>>,
    snats: LpmTrie<MapData, F::Octets, Raw<Pool<F>>>,
    eips: HashMap<MapData, F::Octets, Raw<Eip>>,
    hosts: HashMap<MapData, F::Octets, Raw<Host>>,
    mappings: HashMap<MapData, Raw<MappingKey<F>>, Raw<Mapping<F>>>,
    exhausted: HashMap<MapData, Raw<Tuple<F>>, Ticks>,
    fragments: HashMap<MapData, Raw<DatagramKey<F>>, Raw<Datagram>>,
    held: HashMap<MapData, Raw<HeldKey<F>>, [u8; 2048]>,
    next_hops: HashMap<MapData, u32, Raw<NextHopGroup<F>>>,
    routes: PerCpuArray<MapData, Raw<KnownRoute<F>>>,
}

impl<F: Notation> FamilyMaps<F> {
    /// Takes them out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let named = |map: &str| format!("{map}_{}", F::SUFFIX);
        Ok(Self {
            sessions: take(ebpf, &named("SESSIONS"))?,
            fips: take(ebpf, &named("FIPS"))?,
            dnats: take(ebpf, &named("DNATS"))?,
            slots: take(ebpf, &named("SLOTS"))?,
            backends: take(ebpf, &named("BACKENDS"))?,
            snats: take(ebpf, &named("SNATS"))?,
            eips: take(ebpf, &named("EIPS"))?,
            hosts: take(ebpf, &named("HOSTS"))?,
            mappings: take(ebpf, &named("MAPPINGS"))?,
            exhausted: take(ebpf, &named("EXHAUSTED"))?,
            fragments: take(ebpf, &named("FRAGMENTS"))?,
            held: take(ebpf, &named("HELD"))?,
            next_hops: take(ebpf, &named("NEXT_HOPS"))?,
            routes: take(ebpf, &named("ROUTES"))?,
        })
    }

    /// Another handle on the session map.
    pub(super) fn another_handle(&self) -> Result<SessionMap<F>> {
        let fd = self.sessions.map().fd().as_fd().try_clone_to_owned()?;
        Ok(HashMap::try_from(aya::maps::Map::HashMap(MapData::from_fd(fd)?))?)
    }

    /// Whether a later fragment waits for its first one.
    pub(super) fn holds(&self) -> bool {
        self.held.keys().next().is_some()
    }

    /// Changes every route that a CPU remembers. Returns how many there were.
    pub(super) fn change_routes(&mut self, change: impl Fn(&mut KnownRoute<F>)) -> usize {
        let mut count = 0;
        for place in 0..PLACES {
            let cpus = self.routes.get(&place, 0).expect("ROUTES");
            if cpus.iter().all(|known| known.0 == KnownRoute::default()) {
                continue;
            }
            let mut changed: Vec<Raw<KnownRoute<F>>> = cpus.iter().copied().collect();
            for known in changed.iter_mut().filter(|known| known.0 != KnownRoute::default()) {
                change(&mut known.0);
                count += 1;
            }
            let values = PerCpuValues::try_from(changed).expect("a value for each CPU");
            self.routes.set(place, values, 0).expect("ROUTES");
        }
        count
    }

    /// Empties them.
    pub(super) fn clear(&mut self) {
        empty(&mut self.sessions);
        empty(&mut self.fips);
        empty(&mut self.dnats);
        empty(&mut self.eips);
        empty(&mut self.hosts);
        empty(&mut self.slots);
        empty(&mut self.backends);
        empty(&mut self.mappings);
        empty(&mut self.exhausted);
        empty(&mut self.next_hops);
        self.forget_routes();
        self.forget_fragments();
        let keys: Vec<_> = self.snats.keys().collect::<Result<_, _>>().expect("keys");
        for key in keys {
            self.snats.remove(&key).expect("a key that is there");
        }
    }
}

fn empty<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<_> = map.keys().collect::<Result<_, _>>().expect("keys");
    for key in keys {
        map.remove(&key).expect("a key that is there");
    }
}

fn set<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value, 0).expect("room in the map"),
        None => gone(map.remove(&key)),
    }
}

/// Removing what is not there is no error.
fn gone(result: Result<(), MapError>) {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => {}
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => panic!("failed to remove an entry: {error}"),
    }
}

impl<F: Notation> Store<F> for FamilyMaps<F> {
    fn set_fip(&mut self, key: &FipKey<F>, fip: Option<Fip<F>>) {
        set(&mut self.fips, Raw(*key), fip.map(Raw));
    }

    fn set_dnat(&mut self, key: &DnatKey<F>, dnat: Option<Dnat<F>>) {
        set(&mut self.dnats, Raw(*key), dnat.map(Raw));
    }

    fn set_backend(&mut self, rule: u32, backend: Option<Backend<F>>) {
        set(&mut self.backends, rule, backend.map(Raw));
    }

    fn set_slots(&mut self, key: &DnatKey<F>, slots: Option<Slots>) {
        set(&mut self.slots, Raw(*key), slots.map(Raw));
    }

    fn set_snat(&mut self, key: &SnatKey<F>, pool: Option<Pool<F>>) {
        let key = Key::new(key.prefix_len, F::octets(key.network));
        match pool {
            Some(pool) => self.snats.insert(&key, Raw(pool), 0).expect("room in the map"),
            None => gone(self.snats.remove(&key)),
        }
    }

    fn forget_routes(&mut self) {
        self.change_routes(|known| *known = KnownRoute::default());
    }

    fn set_next_hops(&mut self, side: u32, group: Option<NextHopGroup<F>>) {
        set(&mut self.next_hops, side, group.map(Raw));
    }

    fn set_session(&mut self, key: &Tuple<F>, session: Option<Session<F>>) {
        set(&mut self.sessions, Raw(*key), session.map(Raw));
    }

    fn forget_fragments(&mut self) {
        empty(&mut self.fragments);
        empty(&mut self.held);
    }

    fn datagrams(&mut self) -> Vec<(DatagramKey<F>, Datagram)> {
        let entries = self.fragments.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0)));
        entries.collect::<Result<_, _>>().expect("entries")
    }

    fn session(&mut self, key: &Tuple<F>) -> Option<Session<F>> {
        self.sessions.get(&Raw(*key), 0).ok().map(|session| session.0)
    }

    fn sessions(&mut self) -> Vec<(Tuple<F>, Session<F>)> {
        let entries = self.sessions.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0)));
        entries.collect::<Result<_, _>>().expect("entries")
    }

    fn add_eip(&mut self, eip: &F::Addr) {
        let octets = F::octets(*eip);
        if self.eips.get(&octets, 0).is_err() {
            self.eips.insert(octets, Raw(Eip::default()), 0).expect("room in the map");
        }
    }

    fn eips(&mut self) -> Vec<(F::Addr, Eip)> {
        let entries =
            self.eips.iter().map(|entry| entry.map(|(key, value)| (F::address(key), value.0)));
        entries.collect::<Result<_, _>>().expect("entries")
    }

    fn mappings(&mut self) -> Vec<(MappingKey<F>, Mapping<F>)> {
        let entries = self.mappings.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0)));
        entries.collect::<Result<_, _>>().expect("entries")
    }

    fn set_host(&mut self, address: &F::Addr, host: Host) {
        self.hosts.insert(F::octets(*address), Raw(host), 0).expect("room in the map");
    }

    fn hosts(&mut self) -> Vec<(F::Addr, Host)> {
        let entries =
            self.hosts.iter().map(|entry| entry.map(|(key, value)| (F::address(key), value.0)));
        entries.collect::<Result<_, _>>().expect("entries")
    }
}

/// A counter over all CPUs.
pub(super) fn sum(map: &PerCpuArray<MapData, Raw<Counter>>, index: u32) -> Result<Counter> {
    let values = map.get(&index, 0).with_context(|| format!("counter {index}"))?;
    Ok(values.iter().fold(Counter::default(), |sum, value| Counter {
        packets: sum.packets + value.0.packets,
        bytes: sum.bytes + value.0.bytes,
    }))
}

/// Sets a counter to zero on all CPUs.
pub(super) fn zero(map: &mut PerCpuArray<MapData, Raw<Counter>>, index: u32) -> Result<()> {
    let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    let zeros = PerCpuValues::try_from(vec![Raw(Counter::default()); cpus])?;
    map.set(index, zeros, 0).context("failed to write a counter")
}
