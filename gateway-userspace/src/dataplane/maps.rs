//! The maps of a gateway, typed, opened from their pins: with or without a daemon.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::sys::SyscallError;
use aya::util::nr_cpus;
use gateway_common::family::{Family, V4, V6};
use gateway_common::records::{
    Backend, Config, Counter, Dnat, DnatKey, Draining, Eip, Fip, FipKey, Host, Pool, Rule, Session,
    Slots, SnatKey,
};
use gateway_common::tuple::Tuple;
use gateway_common::verdict::{
    DropReason, PassReason, SESSIONS_CLOSED, SESSIONS_OPENED, XDP_FORWARDED,
};

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use super::pins::{Pins, PinsError, is_full};
use super::raw::{Octets, Raw, lookup_batch};
use crate::image::{Addressing, FamilyImage, MapImage, is_draining};
use crate::plan::{Change, Edit, Entry};

/// A map could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// A pin cannot be opened.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A map is full.
    #[error("failed to {operation} map {map}: it is full")]
    Full {
        /// What was tried.
        operation: &'static str,
        /// The name of the map.
        map: String,
    },
    /// A system call failed.
    #[error("failed to {operation} map {map}")]
    Access {
        /// What was tried.
        operation: &'static str,
        /// The name of the map.
        map: String,
        /// The cause.
        source: MapError,
    },
    /// The number of CPUs is not known.
    #[error("failed to read {path}")]
    Cpus {
        /// The file that tells.
        path: &'static str,
        /// The cause.
        source: std::io::Error,
    },
}

/// The maps of a gateway.
pub struct Maps {
    config: Array<MapData, Raw<Config>>,
    rules: HashMap<MapData, u32, Raw<Rule>>,
    draining: HashMap<MapData, u32, Raw<Draining>>,
    rule_counters: PerCpuArray<MapData, Raw<Counter>>,
    counters: PerCpuArray<MapData, Raw<Counter>>,
    xdp_counters: PerCpuArray<MapData, Raw<Counter>>,
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
}

/// The maps of one family.
struct FamilyMaps<F: Family> {
    sessions: HashMap<MapData, Raw<Tuple<F>>, Raw<Session<F>>>,
    fips: HashMap<MapData, Raw<FipKey<F>>, Raw<Fip<F>>>,
    dnats: HashMap<MapData, Raw<DnatKey<F>>, Raw<Dnat<F>>>,
    slots: HashMap<MapData, Raw<DnatKey<F>>, Raw<Slots>>,
    backends: HashMap<MapData, u32, Raw<Backend<F>>>,
    snats: LpmTrie<MapData, Octets<F::Addr>, Raw<Pool<F>>>,
    eips: HashMap<MapData, Octets<F::Addr>, Raw<Eip>>,
    hosts: HashMap<MapData, Octets<F::Addr>, Raw<Host>>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// When one is missing, is not what it should be, or the privilege is missing.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Ok(Self {
            config: open(pins, "CONFIG")?,
            rules: open(pins, "RULES")?,
            draining: open(pins, "DRAINING")?,
            rule_counters: open(pins, "RULE_COUNTERS")?,
            counters: open(pins, "COUNTERS")?,
            xdp_counters: open(pins, "XDP_COUNTERS")?,
            v4: FamilyMaps::open(pins)?,
            v6: FamilyMaps::open(pins)?,
        })
    }

    /// Reads everything but sessions and counters.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn read(&self) -> Result<MapImage, MapsError> {
        let config = self.config()?;
        let rules = entries(&self.rules)
            .map(|entry| entry.map(|(id, rule)| (id, rule.0)))
            .collect::<Result<_, _>>()
            .map_err(failed("read", "RULES".into()))?;
        Ok(MapImage {
            config: (config.generation != 0).then_some(config),
            rules,
            v4: self.v4.read()?,
            v6: self.v6.read()?,
        })
    }

    /// The configuration; all zero if there is none.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn config(&self) -> Result<Config, MapsError> {
        let config = self.config.get(&0, 0).map_err(failed("read", "CONFIG".into()))?;
        Ok(config.0)
    }

    /// Writes one change. A cut is not an entry: it does nothing here.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn write(&mut self, change: &Change) -> Result<(), MapsError> {
        match change {
            Change::Rule(edit) => {
                if edit.old.is_none() {
                    self.zero(edit.key)?;
                }
                self.write_draining(edit)?;
                write_hash(&mut self.rules, edit, |key| *key, Raw)
                    .map_err(failed("write", "RULES".into()))
            }
            Change::V4(entry) => self.v4.write(entry),
            Change::V6(entry) => self.v6.write(entry),
            Change::Config(edit) => {
                let none = Config { generation: 0, ..self.config()? };
                self.config
                    .set(0, Raw(edit.new.unwrap_or(none)), 0)
                    .map_err(failed("write", "CONFIG".into()))
            }
            Change::Cut(_) => Ok(()),
        }
    }

    /// Has the sweep count the sessions of a rule from when it drains until it no longer does.
    fn write_draining(&mut self, edit: &Edit<u32, Rule>) -> Result<(), MapsError> {
        let drains = |rule: &Option<Rule>| rule.as_ref().is_some_and(is_draining);
        let unknown = Raw(Draining { met: 0, sessions: u32::MAX });
        match (drains(&edit.old), drains(&edit.new)) {
            (false, true) => self.draining.insert(edit.key, unknown, 0),
            (true, false) => self.draining.remove(&edit.key).or_else(gone),
            (false, false) | (true, true) => Ok(()),
        }
        .map_err(failed("write", "DRAINING".into()))
    }

    /// How many sessions each draining rule had when the last sweep met them; none before one did.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn draining(&self) -> Result<BTreeMap<u32, Option<u32>>, MapsError> {
        let known =
            |draining: Draining| (draining.sessions != u32::MAX).then_some(draining.sessions);
        entries(&self.draining)
            .map(|entry| entry.map(|(rule, draining)| (rule, known(draining.0))))
            .collect::<Result<_, _>>()
            .map_err(failed("read", "DRAINING".into()))
    }

    /// Ends the count of a sweep and begins that of the next one. What a sweep of one family has met
    /// is not all there is: without `whole` it is forgotten, and nothing is returned.
    ///
    /// # Errors
    ///
    /// When the map cannot be changed.
    pub fn settle_draining(&mut self, whole: bool) -> Result<BTreeMap<u32, u32>, MapsError> {
        let failed = || failed("write", "DRAINING".into());
        let counted: Vec<_> = entries(&self.draining).collect::<Result<_, _>>().map_err(failed())?;
        let mut left = BTreeMap::new();
        for (rule, Raw(Draining { met, sessions })) in counted {
            let sessions = if whole { met } else { sessions };
            self.draining.insert(rule, Raw(Draining { met: 0, sessions }), 0).map_err(failed())?;
            if whole {
                left.insert(rule, met);
            }
        }
        Ok(left)
    }

    /// Sets the counter of a rule to zero.
    fn zero(&mut self, rule: u32) -> Result<(), MapsError> {
        let cpus = nr_cpus().map_err(|(path, source)| MapsError::Cpus { path, source })?;
        let zeros = PerCpuValues::try_from(vec![Raw(Counter::default()); cpus])
            .map_err(|source| MapsError::Cpus { path: "the counters", source })?;
        self.rule_counters.set(rule, zeros, 0).map_err(failed("write", "RULE_COUNTERS".into()))
    }

    /// The counter of a rule, summed over all CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn rule_counter(&self, rule: u32) -> Result<Counter, MapsError> {
        sum(&self.rule_counters, rule).map_err(failed("read", "RULE_COUNTERS".into()))
    }

    /// A counter of the data path, summed over all CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counter(&self, index: u32) -> Result<Counter, MapsError> {
        sum(&self.counters, index).map_err(failed("read", "COUNTERS".into()))
    }

    /// A counter of the XDP programs, summed over all CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn xdp_counter(&self, index: u32) -> Result<Counter, MapsError> {
        sum(&self.xdp_counters, index).map_err(failed("read", "XDP_COUNTERS".into()))
    }

    /// How many packets XDP has finished, and how many it has seen.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn xdp_share(&self) -> Result<(u64, u64), MapsError> {
        let reasons = PassReason::ALL.iter().map(|reason| reason.counter());
        let reasons = reasons.chain(DropReason::ALL.iter().map(|reason| reason.counter()));
        let finished = self.xdp_counter(XDP_FORWARDED)?.packets;
        let left: u64 = reasons
            .map(|index| self.xdp_counter(index).map(|counter| counter.packets))
            .sum::<Result<_, _>>()?;
        Ok((finished, finished + left))
    }

    /// How many sessions there are, by their counters: counting the entries would take long.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn open_sessions(&self) -> Result<u64, MapsError> {
        let opened = self.counter(SESSIONS_OPENED)?.packets;
        Ok(opened.saturating_sub(self.counter(SESSIONS_CLOSED)?.packets))
    }

    /// The session entries of a family, in the order of the map. Entries may come and go meanwhile.
    pub fn sessions<F: MapFamily>(
        &self,
    ) -> impl Iterator<Item = Result<(Tuple<F>, Session<F>), MapsError>> {
        let map = &F::maps(self).sessions;
        // A walk that meets a key that is just being deleted begins anew; this bounds it.
        let limit = map_entries(map).saturating_mul(2);
        map.iter().take(limit).map(|entry| {
            entry
                .map(|(key, session)| (key.0, session.0))
                .map_err(failed("read", format!("SESSIONS_{}", F::SUFFIX)))
        })
    }

    /// Session entries of a family from `position` on, from the beginning without one. Returns how many
    /// were read, and the position of the rest unless that was all.
    ///
    /// Entries that come, or move as others go, may be missed; none is read twice.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub(crate) fn session_batch<F: MapFamily>(
        &self,
        position: Option<u32>,
        keys: &mut [Raw<Tuple<F>>],
        sessions: &mut [Raw<Session<F>>],
    ) -> Result<(usize, Option<u32>), MapsError> {
        let map = F::maps(self).sessions.map().fd().as_fd();
        lookup_batch(map, position, keys, sessions).map_err(|io_error| {
            let call = "bpf_map_lookup_batch";
            let source = MapError::SyscallError(SyscallError { call, io_error });
            failed("read", format!("SESSIONS_{}", F::SUFFIX))(source)
        })
    }

    /// The session entry of a key.
    pub fn session<F: MapFamily>(&self, key: &Tuple<F>) -> Option<Session<F>> {
        F::maps(self).sessions.get(&Raw(*key), 0).ok().map(|session| session.0)
    }

    /// What every EIP of a family carries.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn eips<F: MapFamily>(&self) -> Result<Vec<(F::Addr, Eip)>, MapsError> {
        entries(&F::maps(self).eips)
            .map(|entry| entry.map(|(key, eip)| (key.0, eip.0)))
            .collect::<Result<_, _>>()
            .map_err(failed("read", format!("EIPS_{}", F::SUFFIX)))
    }

    /// What every inside host of a family has opened.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn hosts<F: MapFamily>(&self) -> Result<Vec<(F::Addr, Host)>, MapsError> {
        entries(&F::maps(self).hosts)
            .map(|entry| entry.map(|(key, host)| (key.0, host.0)))
            .collect::<Result<_, _>>()
            .map_err(failed("read", format!("HOSTS_{}", F::SUFFIX)))
    }

    /// Replaces what an EIP carries.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn set_eip<F: MapFamily>(&mut self, address: F::Addr, eip: Eip) -> Result<(), MapsError> {
        F::maps_mut(self)
            .eips
            .insert(Octets(address), Raw(eip), 0)
            .map_err(failed("write", format!("EIPS_{}", F::SUFFIX)))
    }

    /// Replaces what an inside host has opened; `None` if it has nothing.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn set_host<F: MapFamily>(
        &mut self,
        address: F::Addr,
        host: Option<Host>,
    ) -> Result<(), MapsError> {
        let edit = Edit { key: address, old: None, new: host };
        write_hash(&mut F::maps_mut(self).hosts, &edit, |address| Octets(*address), Raw)
            .map_err(failed("write", format!("HOSTS_{}", F::SUFFIX)))
    }

    /// How many entries the maps take that only user space fills.
    pub fn capacities(&self) -> Vec<(String, usize)> {
        let mut all = vec![("RULES".to_owned(), map_entries(&self.rules))];
        self.v4.capacities(&mut all);
        self.v6.capacities(&mut all);
        all
    }

    /// How many entries the session maps take.
    #[must_use]
    pub fn session_capacity(&self) -> usize {
        map_entries(&self.v4.sessions)
    }

    /// Whether the session maps have taken the memory of all entries at the start.
    #[must_use]
    pub fn is_preallocated(&self) -> bool {
        let info = self.v4.sessions.map().info();
        info.is_ok_and(|info| info.map_flags() & BPF_F_NO_PREALLOC == 0)
    }
}

/// Picks the maps of a family.
pub trait MapFamily: Addressing {
    #[doc(hidden)]
    #[expect(private_interfaces, reason = "only this module looks inside")]
    fn maps(maps: &Maps) -> &FamilyMaps<Self>;

    #[doc(hidden)]
    #[expect(private_interfaces, reason = "only this module looks inside")]
    fn maps_mut(maps: &mut Maps) -> &mut FamilyMaps<Self>;
}

impl MapFamily for V4 {
    #[expect(private_interfaces, reason = "only this module looks inside")]
    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v4
    }

    #[expect(private_interfaces, reason = "only this module looks inside")]
    fn maps_mut(maps: &mut Maps) -> &mut FamilyMaps<Self> {
        &mut maps.v4
    }
}

impl MapFamily for V6 {
    #[expect(private_interfaces, reason = "only this module looks inside")]
    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v6
    }

    #[expect(private_interfaces, reason = "only this module looks inside")]
    fn maps_mut(maps: &mut Maps) -> &mut FamilyMaps<Self> {
        &mut maps.v6
    }
}

impl<F: Addressing> FamilyMaps<F> {
    fn open(pins: &Pins) -> Result<Self, MapsError> {
        let named = |map: &str| format!("{map}_{}", F::SUFFIX);
        Ok(Self {
            sessions: open(pins, &named("SESSIONS"))?,
            fips: open(pins, &named("FIPS"))?,
            dnats: open(pins, &named("DNATS"))?,
            slots: open(pins, &named("SLOTS"))?,
            backends: open(pins, &named("BACKENDS"))?,
            snats: open(pins, &named("SNATS"))?,
            eips: open(pins, &named("EIPS"))?,
            hosts: open(pins, &named("HOSTS"))?,
        })
    }

    fn capacities(&self, all: &mut Vec<(String, usize)>) {
        let snats = self.snats.map().info().map_or(usize::MAX, |info| info.max_entries() as usize);
        let counts = [
            ("FIPS", map_entries(&self.fips)),
            ("DNATS", map_entries(&self.dnats)),
            ("SLOTS", map_entries(&self.slots)),
            ("BACKENDS", map_entries(&self.backends)),
            ("SNATS", snats),
            ("EIPS", map_entries(&self.eips)),
        ];
        all.extend(counts.map(|(map, count)| (format!("{map}_{}", F::SUFFIX), count)));
    }

    fn read(&self) -> Result<FamilyImage<F>, MapsError> {
        let failed = |map: &str| failed("read", format!("{map}_{}", F::SUFFIX));
        Ok(FamilyImage {
            fips: entries(&self.fips)
                .map(|entry| entry.map(|(key, fip)| (key.0, fip.0)))
                .collect::<Result<_, _>>()
                .map_err(failed("FIPS"))?,
            dnats: entries(&self.dnats)
                .map(|entry| entry.map(|(key, dnat)| (key.0, dnat.0)))
                .collect::<Result<_, _>>()
                .map_err(failed("DNATS"))?,
            slots: entries(&self.slots)
                .map(|entry| entry.map(|(key, slots)| (key.0, slots.0)))
                .collect::<Result<_, _>>()
                .map_err(failed("SLOTS"))?,
            backends: entries(&self.backends)
                .map(|entry| entry.map(|(rule, backend)| (rule, backend.0)))
                .collect::<Result<_, _>>()
                .map_err(failed("BACKENDS"))?,
            snats: self
                .snats
                .iter()
                .map(|entry| entry.map(|(key, pool)| (snat_key(&key), pool.0)))
                .collect::<Result<_, _>>()
                .map_err(failed("SNATS"))?,
            eips: self
                .eips
                .keys()
                .map(|key| key.map(|key| (key.0, ())))
                .collect::<Result<_, _>>()
                .map_err(failed("EIPS"))?,
        })
    }

    fn write(&mut self, entry: &Entry<F>) -> Result<(), MapsError> {
        let failed = |map: &str| failed("write", format!("{map}_{}", F::SUFFIX));
        match entry {
            Entry::Fip(edit) => {
                write_hash(&mut self.fips, edit, |key| Raw(*key), Raw).map_err(failed("FIPS"))
            }
            Entry::Backend(edit) => {
                write_hash(&mut self.backends, edit, |rule| *rule, Raw).map_err(failed("BACKENDS"))
            }
            Entry::Slots(edit) => {
                write_hash(&mut self.slots, edit, |key| Raw(*key), Raw).map_err(failed("SLOTS"))
            }
            Entry::Dnat(edit) => {
                write_hash(&mut self.dnats, edit, |key| Raw(*key), Raw).map_err(failed("DNATS"))
            }
            Entry::Snat(edit) => {
                let key = Key::new(edit.key.prefix_len, Octets(edit.key.network));
                match edit.new {
                    Some(pool) => self.snats.insert(&key, Raw(pool), 0),
                    None => self.snats.remove(&key).or_else(gone),
                }
                .map_err(failed("SNATS"))
            }
            Entry::Eip(edit) => {
                write_hash(&mut self.eips, edit, |eip| Octets(*eip), |()| Raw(Eip::default()))
                    .map_err(failed("EIPS"))
            }
        }
    }
}

fn snat_key<F: Family>(key: &Key<Octets<F::Addr>>) -> SnatKey<F> {
    SnatKey { prefix_len: key.prefix_len(), network: key.data().0 }
}

pub(crate) fn open<M: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &str,
) -> Result<M, MapsError> {
    MapData::from_pin(pins.map(name))
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(failed("open", name.to_owned()))
}

fn entries<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
) -> impl Iterator<Item = Result<(K, V), MapError>> {
    map.iter()
}

fn write_hash<K, V, RK: aya::Pod, RV: aya::Pod>(
    map: &mut HashMap<MapData, RK, RV>,
    edit: &Edit<K, V>,
    key: impl Fn(&K) -> RK,
    value: impl Fn(V) -> RV,
) -> Result<(), MapError>
where
    V: Copy,
{
    match edit.new {
        Some(new) => map.insert(key(&edit.key), value(new), 0),
        None => map.remove(&key(&edit.key)).or_else(gone),
    }
}

/// Deleting what is not there is no error.
pub(crate) fn gone(error: MapError) -> Result<(), MapError> {
    let missing = match &error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    };
    if missing { Ok(()) } else { Err(error) }
}

pub(crate) fn sum(
    map: &PerCpuArray<MapData, Raw<Counter>>,
    index: u32,
) -> Result<Counter, MapError> {
    let values = map.get(&index, 0)?;
    Ok(values.iter().fold(Counter::default(), |sum, value| Counter {
        packets: sum.packets + value.0.packets,
        bytes: sum.bytes + value.0.bytes,
    }))
}

/// Bit of a map's flags: entries are allocated one by one (linux/bpf.h).
const BPF_F_NO_PREALLOC: u32 = 1;

fn map_entries<K: aya::Pod, V: aya::Pod>(map: &HashMap<MapData, K, V>) -> usize {
    map.map().info().map_or(usize::MAX, |info| info.max_entries() as usize)
}

pub(crate) fn failed(operation: &'static str, map: String) -> impl FnOnce(MapError) -> MapsError {
    move |source| {
        if is_full(&source) {
            MapsError::Full { operation, map }
        } else {
            MapsError::Access { operation, map, source }
        }
    }
}
