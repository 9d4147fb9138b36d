//! How a plan reads: one line per change, and the same as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use gateway_common::records::{
    Backend, Balance, Config, Dnat, DnatKey, FILTER_ADDRESS, FILTER_INDEPENDENT, Fip, FipKey,
    HostLimits, KEEP_ADDRESS, MAP_INDEPENDENT, Pool, Rule, Slots, SnatKey,
};
use gateway_common::wire::transport::{TCP, UDP};
use serde::{Serialize, Serializer};

use super::{Action, Change, Edit, Entry, Plan};
use crate::image::{
    Addressing, MapImage, is_draining, is_exclusive, is_inbound, kind_of, members, name_of, prefix,
};

/// A change as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// `insert`, `update`, `delete` or `cut`.
    pub action: &'static str,
    /// The name of the map.
    pub map: String,
    /// The key, such as `203.0.113.10:8080/tcp`.
    pub key: String,
    /// The value after the change, or the one that goes.
    pub value: String,
    /// The value before an update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// The names of the rules that it belongs to.
    pub rules: Vec<String>,
    #[serde(skip)]
    sign: char,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:<9} {}", self.sign, self.map, self.key)?;
        if !self.value.is_empty() {
            write!(f, " -> {}", self.value)?;
        }
        if let Some(old) = &self.old {
            write!(f, " (was {old})")?;
        }
        if !self.rules.is_empty() {
            write!(f, " [{}]", self.rules.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.lines())
    }
}

impl Plan {
    /// The changes as they are shown.
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        self.changes.iter().map(|change| self.describe(change))
    }

    /// One change as it is shown.
    #[must_use]
    pub fn describe(&self, change: &Change) -> Line {
        let action = change.action();
        let (map, key, value, old) = match change {
            Change::Rule(edit) => show(edit, |id| format!("#{id}"), show_rule).named("RULES"),
            Change::V4(entry) => show_entry(entry),
            Change::V6(entry) => show_entry(entry),
            Change::Config(edit) => show(edit, |()| "config".into(), show_config).named("CONFIG"),
            Change::Cut(cut) => {
                let ids: Vec<_> = cut.rules.iter().map(|id| format!("#{id}")).collect();
                ("SESSIONS".into(), format!("sessions of {}", ids.join(", ")), String::new(), None)
            }
        };
        let rules = rules_of(change).into_iter().map(|id| self.name(id)).collect();
        Line { action: action.as_str(), map, key, value, old, rules, sign: action.sign() }
    }

    fn name(&self, id: u32) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| format!("#{id}"))
    }
}

/// Key, value after, value before.
struct Shown(String, String, Option<String>);

impl Shown {
    fn named(self, map: impl Into<String>) -> (String, String, String, Option<String>) {
        (map.into(), self.0, self.1, self.2)
    }
}

fn show<K, V>(
    edit: &Edit<K, V>,
    key: impl Fn(&K) -> String,
    value: impl Fn(&V) -> String,
) -> Shown {
    let shown = edit.new.as_ref().or(edit.old.as_ref()).map(&value).unwrap_or_default();
    let old = if edit.action() == Action::Update { edit.old.as_ref().map(&value) } else { None };
    Shown(key(&edit.key), shown, old)
}

fn show_entry<F: Addressing>(entry: &Entry<F>) -> (String, String, String, Option<String>) {
    let (shown, map) = match entry {
        Entry::Fip(edit) => (show(edit, show_fip_key::<F>, show_fip::<F>), "FIPS"),
        Entry::Backend(edit) => (show(edit, |id| format!("#{id}"), show_backend::<F>), "BACKENDS"),
        Entry::Slots(edit) => (show(edit, show_dnat_key::<F>, show_slots), "SLOTS"),
        Entry::Dnat(edit) => (show(edit, show_dnat_key::<F>, show_dnat::<F>), "DNATS"),
        Entry::Snat(edit) => (show(edit, show_snat_key::<F>, show_pool::<F>), "SNATS"),
        Entry::Eip(edit) => {
            (show(edit, |eip| F::decode(*eip).to_string(), |()| String::new()), "EIPS")
        }
    };
    shown.named(format!("{map}_{}", F::SUFFIX))
}

fn show_rule(rule: &Rule) -> String {
    let state = if is_draining(rule) { ", draining" } else { "" };
    format!("{} {}{state}", kind_of(rule), name_of(rule))
}

fn show_fip_key<F: Addressing>(key: &FipKey<F>) -> String {
    let direction = if is_inbound(key) { "in" } else { "out" };
    format!("{direction} {}", F::decode(key.address))
}

fn show_fip<F: Addressing>(fip: &Fip<F>) -> String {
    F::decode(fip.peer).to_string()
}

fn show_dnat_key<F: Addressing>(key: &DnatKey<F>) -> String {
    format!("{}/{}", SocketAddr::new(F::decode(key.eip), key.port), protocol(key.protocol))
}

fn show_dnat<F: Addressing>(dnat: &Dnat<F>) -> String {
    let endpoint = SocketAddr::new(F::decode(dnat.address), dnat.port);
    match Balance::from_u16(dnat.balance) {
        Some(Balance::Random) => format!("its slots, else {endpoint}"),
        Some(Balance::ClientAddress) => format!("its slots by client address, else {endpoint}"),
        Some(Balance::Exclusive) | None => endpoint.to_string(),
    }
}

fn show_backend<F: Addressing>(backend: &Backend<F>) -> String {
    let endpoint = SocketAddr::new(F::decode(backend.address), backend.port);
    format!("{endpoint} of {}, weight {}", show_dnat_key(&backend.key), backend.weight)
}

/// How many slots each rule has.
fn show_slots(slots: &Slots) -> String {
    let shares: Vec<_> =
        shares(slots).into_iter().map(|(rule, share)| format!("{share} #{rule}")).collect();
    format!("slots {}", shares.join(", "))
}

fn shares(slots: &Slots) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    for rule in slots.rules {
        *shares.entry(rule).or_default() += 1;
    }
    shares
}

fn show_snat_key<F: Addressing>(key: &SnatKey<F>) -> String {
    prefix::<F>(key).map_or_else(|| "invalid prefix".to_owned(), |prefix| prefix.to_string())
}

fn show_pool<F: Addressing>(pool: &Pool<F>) -> String {
    let eips: Vec<_> = members(pool)
        .iter()
        .map(|member| show_snat(F::decode(member.eip), member.options))
        .collect();
    eips.join(", ")
}

/// An EIP with how it maps and filters, where that is not as usual.
#[must_use]
pub fn show_snat(eip: IpAddr, options: u32) -> String {
    if options & KEEP_ADDRESS != 0 {
        return "unchanged".to_owned();
    }
    if options & MAP_INDEPENDENT == 0 {
        return eip.to_string();
    }
    let filtering = if options & FILTER_INDEPENDENT != 0 {
        "endpoint-independent"
    } else if options & FILTER_ADDRESS != 0 {
        "address-dependent"
    } else {
        "address-and-port-dependent"
    };
    format!("{eip} (mapping endpoint-independent, filtering {filtering})")
}

fn show_config(config: &Config) -> String {
    format!(
        "generation {}, internal #{} mtu {}, external #{} mtu {}, routing {}, ports {}-{}, \
         unmatched {}, host limits {}, mss clamp {}",
        config.generation,
        config.internal_ifindex,
        config.internal_mtu,
        config.external_ifindex,
        config.external_mtu,
        config.routing,
        config.port_low,
        config.port_high,
        config.unmatched,
        show_limits(&config.host_limits),
        if config.clamp_mtu == 0 { "off".to_owned() } else { format!("mtu {}", config.clamp_mtu) },
    )
}

fn show_limits(limits: &HostLimits) -> String {
    if !limits.any() {
        return "off".to_owned();
    }
    let HostLimits { sessions, interval_ns, burst } = limits;
    format!("{sessions} sessions, one per {interval_ns} ns after {burst}")
}

/// The word for a protocol number; the number itself where there is no common word.
#[must_use]
pub fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        TCP => "tcp".into(),
        UDP => "udp".into(),
        58 => "icmpv6".into(),
        other => other.to_string(),
    }
}

/// The rules that a change names in its new value, or in the one that goes.
fn rules_of(change: &Change) -> BTreeSet<u32> {
    match change {
        // The line says the rule's name already.
        Change::Rule(_) | Change::Config(_) => BTreeSet::new(),
        Change::V4(entry) => entry_rules(entry),
        Change::V6(entry) => entry_rules(entry),
        Change::Cut(cut) => cut.rules.clone(),
    }
}

fn entry_rules<F: Addressing>(entry: &Entry<F>) -> BTreeSet<u32> {
    match entry {
        Entry::Fip(edit) => edit.new.or(edit.old).map(|fip| fip.rule).into_iter().collect(),
        Entry::Backend(edit) => [edit.key].into(),
        Entry::Slots(edit) => edit
            .new
            .or(edit.old)
            .map(|slots| shares(&slots).into_keys().collect())
            .unwrap_or_default(),
        // The rules of a shared port are those of its slots.
        Entry::Dnat(edit) => {
            edit.new.or(edit.old).filter(is_exclusive).map(|dnat| dnat.rule).into_iter().collect()
        }
        Entry::Snat(edit) => edit
            .new
            .or(edit.old)
            .map(|pool| members(&pool).iter().map(|member| member.rule).collect())
            .unwrap_or_default(),
        Entry::Eip(_) => BTreeSet::new(),
    }
}

/// The names of all rules that `changes` name.
pub(super) fn names(
    changes: &[Change],
    live: &MapImage,
    desired: &MapImage,
) -> BTreeMap<u32, String> {
    changes
        .iter()
        .flat_map(rules_of)
        .filter_map(|id| {
            let rule = desired.rules.get(&id).or_else(|| live.rules.get(&id))?;
            Some((id, name_of(rule)))
        })
        .collect()
}
