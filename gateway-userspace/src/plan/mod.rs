//! The difference of two images as a list of changes, ordered make before break.
//!
//! ```text
//! EIPs and rules appear -> entries appear or change -> entries go -> rules and EIPs go -> CONFIG
//! -> sessions are cut
//! ```
//!
//! At every moment in between an entry names a rule that is there, and a rule that moves to another
//! entry is never gone. Invariants: `diff(a, a)` is empty, and `diff(a, b)` applied to `a` is `b`.

mod describe;

use std::collections::{BTreeMap, BTreeSet};

use gateway_common::family::{Family, V4, V6};
use gateway_common::records::{
    Backend, Config, Dnat, DnatKey, Fip, FipKey, Pool, Rule, Slots, SnatKey,
};

use crate::image::{Addressing, MapImage, members};

pub use self::describe::{Line, protocol, show_snat};

/// What to do, in this order, and the names of the rules for whoever reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes.
    pub changes: Vec<Change>,
    /// The rules that the changes name, by id.
    names: BTreeMap<u32, String>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An entry of `RULES`.
    Rule(Edit<u32, Rule>),
    /// An entry of a map of IPv4 rules.
    V4(Entry<V4>),
    /// An entry of a map of IPv6 rules.
    V6(Entry<V6>),
    /// The configuration.
    Config(Edit<(), Config>),
    /// End the sessions of rules that are gone.
    Cut(Cut),
}

/// Whose sessions end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The rules that are gone.
    pub rules: BTreeSet<u32>,
    /// Where their sessions are.
    pub families: Families,
}

/// One or both address families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Both.
    pub const ALL: Self = Self { v4: true, v6: true };
}

/// An entry of one of the maps of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<F: Family> {
    /// `FIPS_*`.
    Fip(Edit<FipKey<F>, Fip<F>>),
    /// `BACKENDS_*`.
    Backend(Edit<u32, Backend<F>>),
    /// `SLOTS_*`. Boxed, because a table is a hundred times as large as the others.
    Slots(Box<Edit<DnatKey<F>, Slots>>),
    /// `DNATS_*`.
    Dnat(Edit<DnatKey<F>, Dnat<F>>),
    /// `SNATS_*`. Boxed, because a pool is ten times as large as the others.
    Snat(Box<Edit<SnatKey<F>, Pool<F>>>),
    /// `EIPS_*`.
    Eip(Edit<F::Addr, ()>),
}

/// What happens to one key of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit<K, V> {
    /// The key.
    pub key: K,
    /// The value before, `None` if the key is not there.
    pub old: Option<V>,
    /// The value after, `None` if the key goes.
    pub new: Option<V>,
}

/// What an [`Edit`] does to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// A new key.
    Insert,
    /// Another value.
    Update,
    /// The key goes.
    Delete,
    /// Sessions end.
    Cut,
}

impl Action {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Cut => "cut",
        }
    }

    /// The sign in front of the line.
    #[must_use]
    pub const fn sign(self) -> char {
        match self {
            Self::Insert => '+',
            Self::Update => '~',
            Self::Delete => '-',
            Self::Cut => '!',
        }
    }
}

impl<K, V> Edit<K, V> {
    /// What it does.
    #[must_use]
    pub const fn action(&self) -> Action {
        match (&self.old, &self.new) {
            (None, _) => Action::Insert,
            (Some(_), Some(_)) => Action::Update,
            (Some(_), None) => Action::Delete,
        }
    }
}

impl Change {
    /// What it does.
    #[must_use]
    pub const fn action(&self) -> Action {
        match self {
            Self::Rule(edit) => edit.action(),
            Self::V4(entry) => entry.action(),
            Self::V6(entry) => entry.action(),
            Self::Config(edit) => edit.action(),
            Self::Cut(_) => Action::Cut,
        }
    }

    const fn is_eip(&self) -> bool {
        matches!(self, Self::V4(Entry::Eip(_)) | Self::V6(Entry::Eip(_)))
    }
}

impl<F: Family> Entry<F> {
    /// What it does.
    #[must_use]
    pub const fn action(&self) -> Action {
        match self {
            Self::Fip(edit) => edit.action(),
            Self::Backend(edit) => edit.action(),
            Self::Slots(edit) => edit.action(),
            Self::Dnat(edit) => edit.action(),
            Self::Snat(edit) => edit.action(),
            Self::Eip(edit) => edit.action(),
        }
    }

    /// The rules that the entry names before the change.
    fn rules_before(&self) -> Vec<u32> {
        match self {
            Self::Fip(edit) => edit.old.iter().map(|fip| fip.rule).collect(),
            Self::Backend(edit) => edit.old.iter().map(|_| edit.key).collect(),
            Self::Slots(_) => Vec::new(),
            Self::Dnat(edit) => edit.old.iter().map(|dnat| dnat.rule).collect(),
            Self::Snat(edit) => {
                edit.old.iter().flat_map(members).map(|member| member.rule).collect()
            }
            Self::Eip(_) => Vec::new(),
        }
    }
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whose sessions end, if any do.
    #[must_use]
    pub fn cut(&self) -> Option<&Cut> {
        self.changes.iter().find_map(|change| match change {
            Change::Cut(cut) => Some(cut),
            _ => None,
        })
    }

    /// How many changes of entries there are, cuts not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.iter().filter(|change| change.action() != Action::Cut).count()
    }
}

/// The changes that make `desired` of `live`.
#[must_use]
pub fn diff(live: &MapImage, desired: &MapImage) -> Plan {
    let mut rules = edits(&live.rules, &desired.rules);
    let rules_gone = split_deletes(&mut rules);
    let mut entries = family_edits(live, desired, Change::V4);
    entries.extend(family_edits(live, desired, Change::V6));
    let cut = cut(&rules_gone, &entries);
    let (eips, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(Change::is_eip);
    let (eips_gone, eips_made): (Vec<_>, Vec<_>) =
        eips.into_iter().partition(|change| change.action() == Action::Delete);
    let (mut entries_gone, entries_made): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|change| change.action() == Action::Delete);
    // What leads somewhere goes before that to which it leads.
    entries_gone.reverse();
    let mut changes = eips_made;
    changes.extend(rules.into_iter().map(Change::Rule));
    changes.extend(entries_made);
    changes.extend(entries_gone);
    changes.extend(rules_gone.into_iter().map(Change::Rule));
    changes.extend(eips_gone);
    if live.config != desired.config {
        changes.push(Change::Config(Edit { key: (), old: live.config, new: desired.config }));
    }
    if !cut.rules.is_empty() {
        changes.push(Change::Cut(cut));
    }
    let names = describe::names(&changes, live, desired);
    Plan { changes, names }
}

/// The rules that go, and the families of the entries that they had.
fn cut(rules_gone: &[Edit<u32, Rule>], entries: &[Change]) -> Cut {
    let rules: BTreeSet<_> = rules_gone.iter().map(|edit| edit.key).collect();
    let mut untold = rules.clone();
    let mut families = Families::default();
    for entry in entries {
        let before = match entry {
            Change::V4(entry) => entry.rules_before(),
            Change::V6(entry) => entry.rules_before(),
            Change::Rule(_) | Change::Config(_) | Change::Cut(_) => continue,
        };
        if before.iter().any(|rule| rules.contains(rule)) {
            families.v4 |= matches!(entry, Change::V4(_));
            families.v6 |= matches!(entry, Change::V6(_));
        }
        untold.retain(|rule| !before.contains(rule));
    }
    // A rule whose entries went earlier, by somebody who was then killed.
    Cut { families: if untold.is_empty() { families } else { Families::ALL }, rules }
}

fn family_edits<F: Addressing>(
    live: &MapImage,
    desired: &MapImage,
    change: fn(Entry<F>) -> Change,
) -> Vec<Change> {
    let (live, desired) = (F::of(live), F::of(desired));
    let fips = edits(&live.fips, &desired.fips).into_iter().map(Entry::Fip);
    let backends = edits(&live.backends, &desired.backends).into_iter().map(Entry::Backend);
    let slots =
        edits(&live.slots, &desired.slots).into_iter().map(|edit| Entry::Slots(Box::new(edit)));
    let dnats = edits(&live.dnats, &desired.dnats).into_iter().map(Entry::Dnat);
    let snats =
        edits(&live.snats, &desired.snats).into_iter().map(|edit| Entry::Snat(Box::new(edit)));
    let eips = edits(&live.eips, &desired.eips).into_iter().map(Entry::Eip);
    // A slot leads to a backend and a port to its slots, so they come in this order.
    let chain = fips.chain(backends).chain(slots).chain(dnats).chain(snats).chain(eips);
    chain.map(change).collect()
}

fn split_deletes<K, V>(edits: &mut Vec<Edit<K, V>>) -> Vec<Edit<K, V>> {
    edits.extract_if(.., |edit| edit.new.is_none()).collect()
}

/// The edits that make `new` of `old`, in the order of the keys.
fn edits<K: Ord + Copy, V: PartialEq + Copy>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Vec<Edit<K, V>> {
    let mut edits = Vec::new();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let key = match (old.peek(), new.peek()) {
            (Some((before, _)), Some((after, _))) => **before.min(after),
            (Some((key, _)), None) | (None, Some((key, _))) => **key,
            (None, None) => return edits,
        };
        let before = old.next_if(|(other, _)| **other == key).map(|(_, value)| *value);
        let after = new.next_if(|(other, _)| **other == key).map(|(_, value)| *value);
        if before != after {
            edits.push(Edit { key, old: before, new: after });
        }
    }
}

impl MapImage {
    /// Does to the image what a data plane does to the maps.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Rule(edit) => put(&mut self.rules, edit),
            Change::V4(entry) => self.apply_entry(entry),
            Change::V6(entry) => self.apply_entry(entry),
            Change::Config(edit) => self.config = edit.new,
            Change::Cut(_) => {}
        }
    }

    fn apply_entry<F: Addressing>(&mut self, entry: &Entry<F>) {
        let family = F::of_mut(self);
        match entry {
            Entry::Fip(edit) => put(&mut family.fips, edit),
            Entry::Backend(edit) => put(&mut family.backends, edit),
            Entry::Slots(edit) => put(&mut family.slots, edit),
            Entry::Dnat(edit) => put(&mut family.dnats, edit),
            Entry::Snat(edit) => put(&mut family.snats, edit),
            Entry::Eip(edit) => put(&mut family.eips, edit),
        }
    }
}

fn put<K: Ord + Copy, V: Copy>(map: &mut BTreeMap<K, V>, edit: &Edit<K, V>) {
    match edit.new {
        Some(value) => map.insert(edit.key, value),
        None => map.remove(&edit.key),
    };
}
