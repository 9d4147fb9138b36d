//! A few rules of a desired state, encoded without looking at the others.
//!
//! The result is what [`super::encode`] would change in the maps if nothing but these rules had
//! changed: the tests compare both.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_common::family::{V4, V6};
use gateway_common::records::{DnatKey, FipKey, SnatKey};
use gateway_common::tuple::Direction;
use ipnet::IpNet;

use super::{
    Encoder, Ids, Overflow, PREFIX_ENTRIES, RULE_ENTRIES, RULE_IDS, SHARED_ENTRIES, Surroundings,
    has_mappings, number, share,
};
use crate::desired::{self, DesiredState};
use crate::image::{Addressing, MapImage, members};

/// The rules that may differ from what the maps hold, by what makes them unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Floating IPs, by external address.
    pub fips: BTreeSet<IpAddr>,
    /// Port forwards.
    pub dnats: BTreeSet<desired::DnatKey>,
    /// Sources, those of [`DesiredState::forwards`] too.
    pub snats: BTreeSet<IpNet>,
}

impl Touched {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rules that differ between two states.
    #[must_use]
    pub fn between(before: &DesiredState, after: &DesiredState) -> Self {
        let mut snats = differing(&before.snats, &after.snats);
        snats.append(&mut differing(&before.forwards, &after.forwards));
        let fips = differing(&before.fips, &after.fips);
        Self { fips, dnats: differing(&before.dnats, &after.dnats), snats }
    }

    /// Adds those of another change.
    pub fn extend(&mut self, more: Self) {
        self.fips.extend(more.fips);
        self.dnats.extend(more.dnats);
        self.snats.extend(more.snats);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fips.len() + self.dnats.len() + self.snats.len()
    }

    fn has_fip(&self, eip: IpAddr) -> bool {
        self.fips.contains(&eip)
    }
}

/// The keys with different values, in one pass over both.
pub(crate) fn differing<K: Ord + Copy, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> BTreeSet<K> {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let mut keys = BTreeSet::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return keys,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let gone = if order.is_le() { old.next() } else { None };
        let come = if order.is_ge() { new.next() } else { None };
        if let Some((key, _)) = gone.or(come)
            && gone.map(|(_, value)| value) != come.map(|(_, value)| value)
        {
            keys.insert(*key);
        }
    }
}

/// The entries of the touched rules, those that hold now and those that shall.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// What the maps hold.
    pub before: MapImage,
    /// What they shall hold.
    pub after: MapImage,
    /// What does not fit.
    pub overflows: Vec<Overflow>,
}

/// Encodes the touched rules of `desired`, where everything else is in `live` as it shall be.
///
/// `None` if a map is nearly full: then all rules must be looked at to tell which do not fit.
#[must_use]
pub fn encode_part(
    desired: &DesiredState,
    touched: &Touched,
    surroundings: &Surroundings,
    live: &MapImage,
    retired: &BTreeSet<u32>,
) -> Option<Part> {
    let excerpt = excerpt(desired, touched);
    if crowded(live, &excerpt, touched) {
        return None;
    }
    let mut encoder = Encoder {
        ids: Ids { live, retired, next: 1 },
        shared: share::backends_by_port(live),
        image: MapImage::default(),
        overflows: Vec::new(),
    };
    encoder.fips(&excerpt);
    encoder.dnats(&excerpt);
    encoder.snats(&excerpt);
    encoder.forwards(&excerpt);
    let Encoder { image: after, overflows, .. } = encoder;
    let mut part = Part { before: MapImage::default(), after, overflows };
    let mut eips = BTreeSet::new();
    collect::<V4>(live, touched, &mut part, &mut eips);
    collect::<V6>(live, touched, &mut part, &mut eips);
    for eip in eips {
        match eip {
            IpAddr::V4(_) => settle_eip::<V4>(live, touched, &mut part, eip),
            IpAddr::V6(_) => settle_eip::<V6>(live, touched, &mut part, eip),
        }
    }
    configure(&mut part, touched, surroundings, live);
    Some(part)
}

/// The touched rules alone.
fn excerpt(desired: &DesiredState, touched: &Touched) -> DesiredState {
    let fips = touched.fips.iter().filter_map(|key| Some((*key, desired.fips.get(key)?.clone())));
    let dnats = touched.dnats.iter();
    let dnats = dnats.filter_map(|key| Some((*key, desired.dnats.get(key)?.clone())));
    let snats = touched.snats.iter();
    let snats = snats.filter_map(|key| Some((*key, desired.snats.get(key)?.clone())));
    let forwards = touched.snats.iter();
    let forwards = forwards.filter_map(|key| Some((*key, desired.forwards.get(key)?.clone())));
    DesiredState {
        gateway: desired.gateway.clone(),
        eips: [].into(),
        fips: fips.collect(),
        dnats: dnats.collect(),
        snats: snats.collect(),
        forwards: forwards.collect(),
    }
}

/// Whether a map could overflow by what is to come.
fn crowded(live: &MapImage, excerpt: &DesiredState, touched: &Touched) -> bool {
    fn family<F: Addressing>(live: &MapImage, more: usize) -> bool {
        let maps = F::of(live);
        let rules = maps.fips.len().max(maps.dnats.len()).max(maps.backends.len());
        let rules = rules.max(maps.eips.len());
        rules + 2 * more > RULE_ENTRIES
            || maps.slots.len() + more > SHARED_ENTRIES
            || maps.snats.len() + more > PREFIX_ENTRIES
    }
    let backends: usize = excerpt.dnats.values().map(|dnat| dnat.backends.len()).sum();
    let members: usize = excerpt.snats.values().map(|snat| snat.eips.len()).sum();
    let more = touched.len() + backends + members;
    family::<V4>(live, more)
        || family::<V6>(live, more)
        || live.rules.len() + more >= RULE_IDS as usize
}

/// Puts the live entries of the touched rules into `part.before`, and their addresses, old and new,
/// into `eips`.
fn collect<F: Addressing>(
    live: &MapImage,
    touched: &Touched,
    part: &mut Part,
    eips: &mut BTreeSet<IpAddr>,
) {
    let maps = F::of(live);
    let mut rules = BTreeSet::new();
    let before = F::of_mut(&mut part.before);
    for eip in &touched.fips {
        let Some(address) = F::encode(*eip) else { continue };
        eips.insert(*eip);
        let key = FipKey::new(&address, Direction::Inbound);
        let Some(fip) = maps.fips.get(&key) else { continue };
        before.fips.insert(key, *fip);
        rules.insert(fip.rule);
        let back = FipKey::new(&fip.peer, Direction::Outbound);
        if let Some(outbound) = maps.fips.get(&back).filter(|there| there.peer == address) {
            before.fips.insert(back, *outbound);
        }
    }
    for port in &touched.dnats {
        let Some(key) = dnat_key::<F>(port) else { continue };
        eips.insert(port.eip);
        if let Some(dnat) = maps.dnats.get(&key) {
            before.dnats.insert(key, *dnat);
            rules.insert(dnat.rule);
        }
        if let Some(slots) = maps.slots.get(&key) {
            before.slots.insert(key, *slots);
        }
        for (rule, backend) in maps.backends.iter().filter(|(_, backend)| backend.key == key) {
            before.backends.insert(*rule, *backend);
            rules.insert(*rule);
        }
    }
    for source in &touched.snats {
        let Some(key) = snat_key::<F>(source) else { continue };
        let new = F::of(&part.after).snats.get(&key);
        let old = maps.snats.get(&key);
        for member in old.into_iter().chain(new).flat_map(members) {
            eips.insert(F::decode(member.eip));
        }
        if let Some(pool) = old {
            before.snats.insert(key, *pool);
            rules.extend(members(pool).iter().map(|member| member.rule));
        }
    }
    let records = rules.iter().filter_map(|id| Some((*id, *live.rules.get(id)?)));
    part.before.rules.extend(records);
}

fn dnat_key<F: Addressing>(port: &desired::DnatKey) -> Option<DnatKey<F>> {
    let (eip, protocol) = (F::encode(port.eip)?, number(port.protocol));
    Some(DnatKey { eip, port: port.port.get(), protocol, zero: 0 })
}

fn snat_key<F: Addressing>(source: &IpNet) -> Option<SnatKey<F>> {
    let network = F::encode(source.network())?;
    Some(SnatKey { prefix_len: u32::from(source.prefix_len()), network })
}

/// An address keeps its record while a rule uses it, touched or not.
fn settle_eip<F: Addressing>(live: &MapImage, touched: &Touched, part: &mut Part, eip: IpAddr) {
    let Some(address) = F::encode(eip) else { return };
    if F::of(live).eips.contains_key(&address) {
        F::of_mut(&mut part.before).eips.insert(address, ());
        if used_elsewhere::<F>(live, touched, eip, address) {
            F::of_mut(&mut part.after).eips.insert(address, ());
        }
    }
}

/// Whether a rule that is not touched uses the address.
fn used_elsewhere<F: Addressing>(
    live: &MapImage,
    touched: &Touched,
    eip: IpAddr,
    address: F::Addr,
) -> bool {
    let maps = F::of(live);
    let key = FipKey::new(&address, Direction::Inbound);
    if !touched.has_fip(eip) && maps.fips.contains_key(&key) {
        return true;
    }
    let first = DnatKey { eip: address, port: 0, protocol: 0, zero: 0 };
    let last = DnatKey { eip: address, port: u16::MAX, protocol: u8::MAX, zero: u8::MAX };
    let here: BTreeSet<_> = touched.dnats.iter().filter_map(dnat_key::<F>).collect();
    if maps.dnats.range(first..=last).any(|(key, _)| !here.contains(key)) {
        return true;
    }
    let here: BTreeSet<_> = touched.snats.iter().filter_map(snat_key::<F>).collect();
    let pools = maps.snats.iter().filter(|(key, _)| !here.contains(key));
    pools.flat_map(|(_, pool)| members(pool)).any(|member| member.eip == address)
}

/// The configuration with the next generation, if anything changes.
fn configure(part: &mut Part, touched: &Touched, surroundings: &Surroundings, live: &MapImage) {
    part.before.config = live.config;
    let generation = live.config.map_or(0, |config| config.generation);
    let mappings = has_mappings(&part.after) || maps_elsewhere(live, touched);
    let mut wanted = surroundings.config(generation);
    wanted.mappings = u8::from(mappings);
    let (before, after) = (&part.before, &part.after);
    let unchanged = live.config == Some(wanted)
        && before.rules == after.rules
        && before.v4 == after.v4
        && before.v6 == after.v6;
    if !unchanged {
        wanted.generation = generation.wrapping_add(1).max(1);
    }
    part.after.config = Some(wanted);
}

/// Whether a rule that is not touched maps endpoint-independently.
fn maps_elsewhere(live: &MapImage, touched: &Touched) -> bool {
    fn any<F: Addressing>(live: &MapImage, touched: &Touched) -> bool {
        let here: BTreeSet<_> = touched.snats.iter().filter_map(snat_key::<F>).collect();
        let pools = F::of(live).snats.iter().filter(|(key, _)| !here.contains(key));
        let mut all = pools.flat_map(|(_, pool)| members(pool));
        all.any(|member| member.options & gateway_common::records::MAP_INDEPENDENT != 0)
    }
    live.config.is_some_and(|config| config.mappings != 0)
        && (any::<V4>(live, touched) || any::<V6>(live, touched))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_presence_and_by_value() {
        let map =
            |entries: &[(u8, &'static str)]| entries.iter().copied().collect::<BTreeMap<_, _>>();
        let before = map(&[(1, "stays"), (2, "goes"), (4, "changes"), (9, "goes too")]);
        let after = map(&[(0, "comes"), (1, "stays"), (4, "changed"), (5, "comes too")]);
        assert_eq!(differing(&before, &after), [0, 2, 4, 5, 9].into());
        assert_eq!(differing(&after, &before), [0, 2, 4, 5, 9].into());
        assert_eq!(differing(&before, &before), BTreeSet::new());
        assert_eq!(differing(&before, &BTreeMap::new()), [1, 2, 4, 9].into());
    }
}
