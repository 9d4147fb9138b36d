//! What the maps hold, as typed values: the common language of [`crate::encode`],
//! [`crate::plan`] and [`crate::dataplane`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_common::family::{Family, V4, V6};
use gateway_common::records::{
    Backend, Balance, Config, Dnat, DnatKey, Fip, FipKey, KEEP_ADDRESS, POOL_MEMBERS, Pool,
    PoolMember, RULE_NAME_BYTES, Rule, RuleKind, RuleState, Slots, SnatKey,
};
use gateway_common::tuple::Direction;
use ipnet::IpNet;

/// The contents of every map that user space writes, sessions and counters left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapImage {
    /// `CONFIG`; `None` while its generation is 0.
    pub config: Option<Config>,
    /// `RULES`.
    pub rules: BTreeMap<u32, Rule>,
    /// The maps of IPv4 rules.
    pub v4: FamilyImage<V4>,
    /// The maps of IPv6 rules.
    pub v6: FamilyImage<V6>,
}

/// The maps of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyImage<F: Family> {
    /// `FIPS_V4` or `FIPS_V6`.
    pub fips: BTreeMap<FipKey<F>, Fip<F>>,
    /// `DNATS_V4` or `DNATS_V6`.
    pub dnats: BTreeMap<DnatKey<F>, Dnat<F>>,
    /// `SLOTS_V4` or `SLOTS_V6`.
    pub slots: BTreeMap<DnatKey<F>, Slots>,
    /// `BACKENDS_V4` or `BACKENDS_V6`.
    pub backends: BTreeMap<u32, Backend<F>>,
    /// `SNATS_V4` or `SNATS_V6`.
    pub snats: BTreeMap<SnatKey<F>, Pool<F>>,
    /// The keys of `EIPS_V4` or `EIPS_V6`: every address that a rule uses. What an entry says is
    /// the data path's, and stays as long as the key.
    pub eips: BTreeMap<F::Addr, ()>,
}

impl<F: Family> Default for FamilyImage<F> {
    fn default() -> Self {
        Self {
            fips: BTreeMap::new(),
            dnats: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            snats: BTreeMap::new(),
            eips: BTreeMap::new(),
        }
    }
}

/// What user space has to know about a family beyond [`Family`].
pub trait Addressing: Family {
    /// The last part of the family's map names.
    const SUFFIX: &'static str;

    /// The address in the form of the maps, if it is of this family.
    fn encode(address: IpAddr) -> Option<Self::Addr>;

    /// The address in the form of the standard library.
    fn decode(address: Self::Addr) -> IpAddr;

    /// The maps of this family.
    fn of(image: &MapImage) -> &FamilyImage<Self>;

    /// The maps of this family.
    fn of_mut(image: &mut MapImage) -> &mut FamilyImage<Self>;
}

impl Addressing for V4 {
    const SUFFIX: &'static str = "V4";

    fn encode(address: IpAddr) -> Option<Self::Addr> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn decode(address: Self::Addr) -> IpAddr {
        IpAddr::V4(address.into())
    }

    fn of(image: &MapImage) -> &FamilyImage<Self> {
        &image.v4
    }

    fn of_mut(image: &mut MapImage) -> &mut FamilyImage<Self> {
        &mut image.v4
    }
}

impl Addressing for V6 {
    const SUFFIX: &'static str = "V6";

    fn encode(address: IpAddr) -> Option<Self::Addr> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    fn decode(address: Self::Addr) -> IpAddr {
        IpAddr::V6(address.into())
    }

    fn of(image: &MapImage) -> &FamilyImage<Self> {
        &image.v6
    }

    fn of_mut(image: &mut MapImage) -> &mut FamilyImage<Self> {
        &mut image.v6
    }
}

/// What makes a rule the same rule: its object and everything the maps say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Name of the object as the maps keep it.
    pub name: [u8; RULE_NAME_BYTES],
    /// What the rule does.
    pub content: Content,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// One internal address for one external one.
    Fip {
        /// The external address.
        eip: IpAddr,
        /// The internal address.
        internal: IpAddr,
    },
    /// A port forward.
    Dnat {
        /// The external address.
        eip: IpAddr,
        /// Number of the layer-4 protocol.
        protocol: u8,
        /// The external port.
        port: u16,
        /// The internal address.
        internal: IpAddr,
        /// The internal port.
        internal_port: u16,
    },
    /// An external address for a source prefix.
    Snat {
        /// The external address.
        eip: IpAddr,
        /// The source prefix.
        source: IpNet,
        /// How it maps and filters, as in the maps.
        options: u32,
    },
    /// A prefix whose packets pass as they are.
    Forward {
        /// The prefix.
        source: IpNet,
    },
}

impl Content {
    /// Which kind of rule it is.
    #[must_use]
    pub const fn kind(&self) -> RuleKind {
        match self {
            Self::Fip { .. } => RuleKind::Fip,
            Self::Dnat { .. } => RuleKind::Dnat,
            Self::Snat { .. } => RuleKind::Snat,
            Self::Forward { .. } => RuleKind::Forward,
        }
    }
}

impl MapImage {
    /// What every rule of the image does, by its id.
    ///
    /// Entries without a rule in `RULES` are left out, and rules without entries too.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<u32, Content> {
        let mut contents = BTreeMap::new();
        family_contents(&self.v4, &mut contents);
        family_contents(&self.v6, &mut contents);
        contents.retain(|id, _| self.rules.contains_key(id));
        contents
    }

    /// The image without these rules, which have nothing but a backend without a slot.
    #[must_use]
    pub fn without(&self, rules: &BTreeSet<u32>) -> Self {
        let mut image = self.clone();
        image.rules.retain(|id, _| !rules.contains(id));
        image.v4.backends.retain(|id, _| !rules.contains(id));
        image.v6.backends.retain(|id, _| !rules.contains(id));
        image
    }
}

fn family_contents<F: Addressing>(image: &FamilyImage<F>, contents: &mut BTreeMap<u32, Content>) {
    for (key, fip) in &image.fips {
        if is_inbound(key) {
            let (eip, internal) = (F::decode(key.address), F::decode(fip.peer));
            contents.insert(fip.rule, Content::Fip { eip, internal });
        }
    }
    for (key, dnat) in image.dnats.iter().filter(|(_, dnat)| is_exclusive(dnat)) {
        contents.insert(dnat.rule, dnat_content(key, dnat.address, dnat.port));
    }
    for (rule, backend) in &image.backends {
        contents.insert(*rule, dnat_content(&backend.key, backend.address, backend.port));
    }
    for (key, pool) in &image.snats {
        let Some(source) = prefix::<F>(key) else { continue };
        for member in members(pool) {
            let (eip, options) = (F::decode(member.eip), member.options);
            let content = if options & KEEP_ADDRESS == 0 {
                Content::Snat { eip, source, options }
            } else {
                Content::Forward { source }
            };
            contents.insert(member.rule, content);
        }
    }
}

fn dnat_content<F: Addressing>(key: &DnatKey<F>, internal: F::Addr, internal_port: u16) -> Content {
    Content::Dnat {
        eip: F::decode(key.eip),
        protocol: key.protocol,
        port: key.port,
        internal: F::decode(internal),
        internal_port,
    }
}

/// Whether a port has one backend, in its own record.
#[must_use]
pub fn is_exclusive<F: Family>(dnat: &Dnat<F>) -> bool {
    matches!(Balance::from_u16(dnat.balance), None | Some(Balance::Exclusive))
}

/// Whether a rule only keeps the sessions that it has.
#[must_use]
pub const fn is_draining(rule: &Rule) -> bool {
    rule.state == RuleState::Draining as u8
}

/// Whether a key of the FIP maps is an external address.
#[must_use]
pub fn is_inbound<F: Family>(key: &FipKey<F>) -> bool {
    *key == FipKey::new(&key.address, Direction::Inbound)
}

/// The prefix that a key of the source maps stands for.
#[must_use]
pub fn prefix<F: Addressing>(key: &SnatKey<F>) -> Option<IpNet> {
    IpNet::new(F::decode(key.network), u8::try_from(key.prefix_len).ok()?).ok()
}

/// The members of a pool that are in use.
pub fn members<F: Family>(pool: &Pool<F>) -> &[PoolMember<F>] {
    let length = usize::try_from(pool.length).unwrap_or(usize::MAX).min(POOL_MEMBERS);
    &pool.members[..length]
}

/// The name of an object in the form of the maps: cut where it must be, filled up with zeros.
#[must_use]
pub fn rule_name(name: &str) -> [u8; RULE_NAME_BYTES] {
    let end = name.floor_char_boundary(RULE_NAME_BYTES);
    let mut bytes = [0; RULE_NAME_BYTES];
    bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
    bytes
}

/// The record of an active rule.
#[must_use]
pub fn rule_record(identity: &Identity) -> Rule {
    let length = identity.name.iter().position(|byte| *byte == 0).unwrap_or(RULE_NAME_BYTES);
    Rule {
        kind: identity.content.kind() as u8,
        // RULE_NAME_BYTES is far below 256.
        name_length: u8::try_from(length).unwrap_or(u8::MAX),
        state: RuleState::Active as u8,
        zero: 0,
        name: identity.name,
    }
}

/// The name of the object behind a rule.
#[must_use]
pub fn name_of(rule: &Rule) -> String {
    let end = usize::from(rule.name_length).min(RULE_NAME_BYTES);
    String::from_utf8_lossy(&rule.name[..end]).into_owned()
}

/// The word for the kind of a rule.
#[must_use]
pub const fn kind_of(rule: &Rule) -> &'static str {
    match RuleKind::from_u8(rule.kind) {
        Some(RuleKind::Fip) => "fip",
        Some(RuleKind::Dnat) => "dnat",
        Some(RuleKind::Snat) => "snat",
        Some(RuleKind::Forward) => "forward",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = format!("{}é", "a".repeat(RULE_NAME_BYTES - 1));
        let identity = Identity {
            name: rule_name(&name),
            content: Content::Fip {
                eip: "203.0.113.1".parse().unwrap(),
                internal: "10.0.0.1".parse().unwrap(),
            },
        };
        let rule = rule_record(&identity);
        assert_eq!(usize::from(rule.name_length), RULE_NAME_BYTES - 1);
        assert_eq!(name_of(&rule), "a".repeat(RULE_NAME_BYTES - 1));
        assert_eq!(kind_of(&rule), "fip");
    }
}
