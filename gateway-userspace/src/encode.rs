//! [`DesiredState`] to [`MapImage`]: what the maps shall hold.
//!
//! A rule that is in the live image with the same content keeps its id there, so its sessions and
//! its counters stay; every other rule gets the lowest id that nobody has or had a moment ago. A
//! backend that goes while its port is still shared stays in the image without a slot: it drains.
//! Encoding the same state again gives the same image, generation included.

pub mod part;
mod share;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_common::family::{V4, V6};
use gateway_common::records::{
    ABI_VERSION, BACKEND_SLOTS, Balance, Config, Dnat, DnatKey, Fip, FipKey, HostLimits,
    KEEP_ADDRESS, MAP_INDEPENDENT, POOL_MEMBERS, Pool, PoolMember, Rule, RuleState, SnatKey,
    Timeouts, Unmatched,
};
use gateway_common::tuple::Direction;
use gateway_common::wire::transport::{TCP, UDP};
use ipnet::IpNet;

use crate::desired::{self, DesiredState, Owner, Protocol, Sharing, SnatEip};
use crate::image::{
    Addressing, Content, Identity, MapImage, is_draining, members, rule_name, rule_record,
};

/// Rule ids are below this, because `RULE_COUNTERS` has this many slots.
pub const RULE_IDS: u32 = 1 << 17;

/// Most entries of `DNATS_V4`, and of each of the maps of its kind.
pub const RULE_ENTRIES: usize = 1 << 17;

/// Most entries of `SLOTS_V4` and `SLOTS_V6`.
pub const SHARED_ENTRIES: usize = 1 << 14;

/// Most entries of `SNATS_V4` and `SNATS_V6`.
pub const PREFIX_ENTRIES: usize = 1 << 14;

/// What the configuration of the data path depends on, apart from rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The interface towards the VPC.
    pub internal: Port,
    /// The interface towards the outside.
    pub external: Port,
    /// Counts the changes of routes and addresses.
    pub routing: u16,
    /// Lowest and highest external port for sources from port 1024 on.
    pub port_range: (u16, u16),
    /// What becomes of packets that no rule covers.
    pub unmatched: Unmatched,
    /// When sessions end.
    pub timeouts: Timeouts,
    /// What one inside host may have.
    pub host_limits: HostLimits,
    /// What the segments of new TCP connections are made to fit.
    pub mss_clamp: MssClamp,
    /// Whether there is a next-hop group.
    pub next_hops: bool,
}

/// What the segments of TCP connections are made to fit (`--mss-clamp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// What their ends announce.
    #[default]
    Off,
    /// The smaller MTU of both interfaces.
    Auto,
    /// This many bytes over IPv4; 20 fewer over IPv6.
    Bytes(u16),
}

impl MssClamp {
    /// The MTU in bytes that segments are made to fit; 0 for none.
    #[must_use]
    pub fn mtu(self, internal: u32, external: u32) -> u32 {
        match self {
            Self::Off => 0,
            Self::Auto => internal.min(external),
            Self::Bytes(bytes) => u32::from(bytes) + 40,
        }
    }
}

/// An interface as the data path knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Surroundings {
    fn config(&self, generation: u32) -> Config {
        Config {
            generation,
            abi_version: ABI_VERSION,
            internal_ifindex: self.internal.ifindex,
            external_ifindex: self.external.ifindex,
            internal_mtu: self.internal.mtu,
            external_mtu: self.external.mtu,
            clamp_mtu: self.mss_clamp.mtu(self.internal.mtu, self.external.mtu),
            routing: self.routing,
            port_low: self.port_range.0,
            port_high: self.port_range.1,
            unmatched: self.unmatched as u8,
            mappings: 0,
            next_hops: u8::from(self.next_hops),
            zero: [0; 3],
            timeouts: self.timeouts,
            host_limits: self.host_limits,
        }
    }
}

/// A rule that does not fit into the maps. The others are not affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// Too many EIPs for one source prefix.
    #[error("{owner}: {source_prefix} already has {POOL_MEMBERS} EIPs, the most there can be")]
    Pool {
        /// The object.
        owner: String,
        /// The source prefix.
        source_prefix: IpNet,
    },
    /// Too many backends of one port.
    #[error("{owner}: {port} already has {BACKEND_SLOTS} backends, the most there can be")]
    Backends {
        /// The object.
        owner: String,
        /// The port.
        port: String,
    },
    /// A map is full.
    #[error("{owner}: no room for it, {map} takes {limit}")]
    Map {
        /// The object.
        owner: String,
        /// What is full.
        map: &'static str,
        /// How much it takes.
        limit: usize,
    },
    /// An address of the other family where both must be of one.
    #[error("{owner}: {external} and {internal} are of different families")]
    Family {
        /// The object.
        owner: String,
        /// The external address.
        external: IpAddr,
        /// The internal address.
        internal: IpAddr,
    },
}

/// Result of [`encode`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// What the maps shall hold.
    pub image: MapImage,
    /// What does not fit.
    pub overflows: Vec<Overflow>,
}

/// Makes the image of `desired`, with the rule ids of `live` where a rule is there already.
///
/// `retired` are ids that must not be given away yet: sessions may still name them.
///
/// Without `surroundings` the configuration stays as it is.
#[must_use]
pub fn encode(
    desired: &DesiredState,
    surroundings: Option<&Surroundings>,
    live: &MapImage,
    retired: &BTreeSet<u32>,
) -> Encoded {
    let mut encoder = Encoder {
        ids: Ids { live, retired, next: 1 },
        shared: share::backends_by_port(live),
        image: MapImage::default(),
        overflows: Vec::new(),
    };
    encoder.fips(desired);
    encoder.dnats(desired);
    encoder.snats(desired);
    encoder.forwards(desired);
    let Encoder { mut image, overflows, .. } = encoder;
    image.config = configure(&image, surroundings, live);
    Encoded { image, overflows }
}

/// The configuration with the next generation, or the live one if nothing changes.
fn configure(
    image: &MapImage,
    surroundings: Option<&Surroundings>,
    live: &MapImage,
) -> Option<Config> {
    let generation = live.config.map_or(0, |config| config.generation);
    let wanted = match surroundings {
        Some(surroundings) => surroundings.config(generation),
        None => live.config?,
    };
    let wanted = Config { mappings: u8::from(has_mappings(image)), ..wanted };
    let unchanged = live.config == Some(wanted)
        && image.rules == live.rules
        && image.v4 == live.v4
        && image.v6 == live.v6;
    let generation = if unchanged { generation } else { generation.wrapping_add(1).max(1) };
    Some(Config { generation, ..wanted })
}

/// Whether any rule of the image maps endpoint-independently.
fn has_mappings(image: &MapImage) -> bool {
    fn any<F: Addressing>(image: &MapImage) -> bool {
        let mut members = F::of(image).snats.values().flat_map(members);
        members.any(|member| member.options & MAP_INDEPENDENT != 0)
    }
    any::<V4>(image) || any::<V6>(image)
}

/// Gives ids to rules that are new.
struct Ids<'a> {
    live: &'a MapImage,
    retired: &'a BTreeSet<u32>,
    next: u32,
}

impl Ids<'_> {
    /// The id of a rule whose entry in the live image, if it has one, names rule `found`.
    fn id_of(&mut self, identity: &Identity, found: Option<u32>) -> Option<u32> {
        let active = |rule: &Rule| Rule { state: RuleState::Active as u8, ..*rule };
        let same = |id: &u32| self.live.rules.get(id).map(active) == Some(rule_record(identity));
        if let Some(id) = found.filter(same) {
            return Some(id);
        }
        while self.live.rules.contains_key(&self.next) || self.retired.contains(&self.next) {
            self.next += 1;
        }
        let id = self.next;
        if id >= RULE_IDS {
            return None;
        }
        self.next += 1;
        Some(id)
    }
}

struct Encoder<'a> {
    ids: Ids<'a>,
    /// The rules of each shared port in the live image.
    shared: BTreeMap<desired::DnatKey, Vec<u32>>,
    image: MapImage,
    overflows: Vec<Overflow>,
}

impl Encoder<'_> {
    fn fips(&mut self, desired: &DesiredState) {
        for (eip, fip) in &desired.fips {
            let done = match (eip, fip.internal) {
                (IpAddr::V4(eip), IpAddr::V4(internal)) => {
                    self.fip::<V4>((*eip).into(), internal.into(), &fip.owner)
                }
                (IpAddr::V6(eip), IpAddr::V6(internal)) => {
                    self.fip::<V6>((*eip).into(), internal.into(), &fip.owner)
                }
                (eip, internal) => Err(mixed(&fip.owner, *eip, internal)),
            };
            self.overflows.extend(done.err());
        }
    }

    fn fip<F: Addressing>(
        &mut self,
        eip: F::Addr,
        internal: F::Addr,
        owner: &Owner,
    ) -> Result<(), Overflow> {
        room(F::of(&self.image).fips.len() + 1, RULE_ENTRIES, "the FIP map", owner)?;
        let content = Content::Fip { eip: F::decode(eip), internal: F::decode(internal) };
        let (key, value) = (FipKey::new(&eip, Direction::Inbound), internal);
        let there = F::of(self.ids.live).fips.get(&key).filter(|fip| fip.peer == value);
        let rule = self.rule(owner, content, there.map(|fip| fip.rule))?;
        self.eip::<F>(eip, owner)?;
        let fips = &mut F::of_mut(&mut self.image).fips;
        fips.insert(key, Fip { peer: internal, rule });
        fips.insert(FipKey::new(&internal, Direction::Outbound), Fip { peer: eip, rule });
        Ok(())
    }

    fn dnats(&mut self, desired: &DesiredState) {
        for (key, dnat) in &desired.dnats {
            let done = match (dnat.sharing, key.eip) {
                (Sharing::Exclusive, IpAddr::V4(_)) => self.exclusive::<V4>(key, &dnat.backends),
                (Sharing::Exclusive, IpAddr::V6(_)) => self.exclusive::<V6>(key, &dnat.backends),
                (Sharing::Share, IpAddr::V4(_)) => self.share::<V4>(key, dnat),
                (Sharing::Share, IpAddr::V6(_)) => self.share::<V6>(key, dnat),
            };
            self.overflows.extend(done.err());
        }
    }

    /// A port with one backend.
    fn exclusive<F: Addressing>(
        &mut self,
        port: &desired::DnatKey,
        backends: &[desired::Backend],
    ) -> Result<(), Overflow> {
        let Some(backend) = backends.first() else { return Ok(()) };
        let owner = &backend.owner;
        let (key, address) = addresses::<F>(port, backend)?;
        room(F::of(&self.image).dnats.len(), RULE_ENTRIES, "the DNAT map", owner)?;
        let internal_port = backend.endpoint.port();
        let value =
            |rule| Dnat { address, port: internal_port, balance: Balance::Exclusive as u16, rule };
        let there = F::of(self.ids.live).dnats.get(&key);
        let same = there.filter(|dnat| **dnat == value(dnat.rule)).map(|dnat| dnat.rule);
        let same = same.or_else(|| self.live_backend::<F>(port, backend));
        let rule = self.rule(owner, dnat_content(port, backend), same)?;
        self.eip::<F>(key.eip, owner)?;
        F::of_mut(&mut self.image).dnats.insert(key, value(rule));
        Ok(())
    }

    fn snats(&mut self, desired: &DesiredState) {
        for (source, snat) in &desired.snats {
            for member in &snat.eips {
                let done = match source {
                    IpNet::V4(_) => self.snat::<V4>(*source, member),
                    IpNet::V6(_) => self.snat::<V6>(*source, member),
                };
                self.overflows.extend(done.err());
            }
        }
    }

    fn snat<F: Addressing>(&mut self, source: IpNet, snat: &SnatEip) -> Result<(), Overflow> {
        let SnatEip { eip, behavior, owner } = snat;
        let (eip, options) = (*eip, behavior.options());
        let (Some(network), Some(external)) = (F::encode(source.network()), F::encode(eip)) else {
            return Err(mixed(owner, eip, source.network()));
        };
        let key = SnatKey { prefix_len: u32::from(source.prefix_len()), network };
        let snats = &F::of(&self.image).snats;
        let slot = match snats.get(&key) {
            Some(pool) => pool.length as usize,
            None => {
                room(snats.len(), PREFIX_ENTRIES, "the SNAT map", owner)?;
                0
            }
        };
        if slot >= POOL_MEMBERS {
            return Err(Overflow::Pool { owner: owner.object.to_string(), source_prefix: source });
        }
        let there = F::of(self.ids.live).snats.get(&key);
        let is_same = |one: &&PoolMember<F>| one.eip == external && one.options == options;
        let same = there.and_then(|pool| members(pool).iter().find(is_same));
        let same = same.map(|member| member.rule);
        let rule = self.rule(owner, Content::Snat { eip, source, options }, same)?;
        self.eip::<F>(external, owner)?;
        let pool = F::of_mut(&mut self.image).snats.entry(key).or_default();
        pool.members[slot] = PoolMember { eip: external, rule, options };
        pool.length += 1;
        Ok(())
    }

    fn forwards(&mut self, desired: &DesiredState) {
        for (source, owner) in &desired.forwards {
            let done = match source {
                IpNet::V4(_) => self.forward::<V4>(*source, owner),
                IpNet::V6(_) => self.forward::<V6>(*source, owner),
            };
            self.overflows.extend(done.err());
        }
    }

    fn forward<F: Addressing>(&mut self, source: IpNet, owner: &Owner) -> Result<(), Overflow> {
        let Some(network) = F::encode(source.network()) else { return Ok(()) };
        let key = SnatKey { prefix_len: u32::from(source.prefix_len()), network };
        room(F::of(&self.image).snats.len(), PREFIX_ENTRIES, "the SNAT map", owner)?;
        let there = F::of(self.ids.live).snats.get(&key);
        let keeps = |one: &&PoolMember<F>| one.options & KEEP_ADDRESS != 0;
        let same = there.and_then(|pool| members(pool).iter().find(keeps));
        let same = same.map(|member| member.rule);
        let rule = self.rule(owner, Content::Forward { source }, same)?;
        let mut pool = Pool::<F> { length: 1, ..Pool::default() };
        pool.members[0].rule = rule;
        pool.members[0].options = KEEP_ADDRESS;
        F::of_mut(&mut self.image).snats.insert(key, pool);
        Ok(())
    }

    /// Gives an address that a rule uses its record.
    fn eip<F: Addressing>(&mut self, eip: F::Addr, owner: &Owner) -> Result<(), Overflow> {
        let eips = &mut F::of_mut(&mut self.image).eips;
        if !eips.contains_key(&eip) {
            room(eips.len(), RULE_ENTRIES, "the EIP map", owner)?;
            eips.insert(eip, ());
        }
        Ok(())
    }

    /// The id of a rule. `live` is the rule that has the same entry in the live image.
    fn rule(
        &mut self,
        owner: &Owner,
        content: Content,
        live: Option<u32>,
    ) -> Result<u32, Overflow> {
        let identity = Identity { name: rule_name(&owner.object.name), content };
        let id = self.ids.id_of(&identity, live).ok_or_else(|| Overflow::Map {
            owner: owner.object.to_string(),
            map: "the rule map",
            limit: RULE_IDS as usize - 1,
        })?;
        self.image.rules.insert(id, rule_record(&identity));
        Ok(id)
    }
}

/// The port and the internal address of a backend in the form of the maps.
fn addresses<F: Addressing>(
    port: &desired::DnatKey,
    backend: &desired::Backend,
) -> Result<(DnatKey<F>, F::Addr), Overflow> {
    let internal = backend.endpoint.ip();
    let (Some(eip), Some(address)) = (F::encode(port.eip), F::encode(internal)) else {
        return Err(mixed(&backend.owner, port.eip, internal));
    };
    let protocol = number(port.protocol);
    Ok((DnatKey { eip, port: port.port.get(), protocol, zero: 0 }, address))
}

fn dnat_content(port: &desired::DnatKey, backend: &desired::Backend) -> Content {
    Content::Dnat {
        eip: port.eip,
        protocol: number(port.protocol),
        port: port.port.get(),
        internal: backend.endpoint.ip(),
        internal_port: backend.endpoint.port(),
    }
}

const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

fn room(used: usize, limit: usize, map: &'static str, owner: &Owner) -> Result<(), Overflow> {
    if used < limit {
        return Ok(());
    }
    Err(Overflow::Map { owner: owner.object.to_string(), map, limit })
}

fn mixed(owner: &Owner, external: IpAddr, internal: IpAddr) -> Overflow {
    Overflow::Family { owner: owner.object.to_string(), external, internal }
}

/// The ids of `live` that `image` no longer has.
#[must_use]
pub fn retired_ids(live: &MapImage, image: &MapImage) -> BTreeSet<u32> {
    live.rules.keys().filter(|id| !image.rules.contains_key(id)).copied().collect()
}

/// How many rules of each kind an image has, those that are draining left out.
#[must_use]
pub fn rule_counts(image: &MapImage) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::from([("fip", 0), ("dnat", 0), ("snat", 0), ("forward", 0)]);
    for rule in image.rules.values().filter(|rule| !is_draining(rule)) {
        *counts.entry(crate::image::kind_of(rule)).or_default() += 1;
    }
    counts
}
