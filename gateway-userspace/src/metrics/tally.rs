//! Sums that only rise, though what they are made of comes and goes, for a bounded number of keys.

use std::collections::{BTreeMap, BTreeSet};

/// What a rule or an EIP has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Sessions opened.
    pub opened: u64,
    /// Flows refused.
    pub refused: u64,
}

impl Amount {
    /// What came since `before`. A number that has fallen began anew.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let grown = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            packets: grown(self.packets, before.packets),
            bytes: grown(self.bytes, before.bytes),
            opened: grown(self.opened, before.opened),
            refused: grown(self.refused, before.refused),
        }
    }

    fn add(&mut self, more: Self) {
        self.packets += more.packets;
        self.bytes += more.bytes;
        self.opened += more.opened;
        self.refused += more.refused;
    }
}

/// The keys that have a name of their own: those that came first, up to a limit. A key keeps its name while
/// it is there, so that no series ends because another one got more traffic.
#[derive(Debug)]
pub struct Tally<K> {
    limit: usize,
    named: BTreeMap<K, Amount>,
    other: Amount,
}

impl<K: Ord + Copy> Tally<K> {
    /// For at most `limit` names.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            named: BTreeMap::new(),
            other: Amount { packets: 0, bytes: 0, opened: 0, refused: 0 },
        }
    }

    /// Forgets the keys that are gone and gives free names to others.
    pub fn keep(&mut self, there: &BTreeSet<K>) {
        self.named.retain(|key, _| there.contains(key));
        for key in there {
            if self.named.len() >= self.limit {
                break;
            }
            self.named.entry(*key).or_default();
        }
    }

    /// Whether a key has a name.
    #[must_use]
    pub fn is_named(&self, key: &K) -> bool {
        self.named.contains_key(key)
    }

    /// Adds to a key, or to all others.
    pub fn add(&mut self, key: &K, more: Amount) {
        self.named.get_mut(key).unwrap_or(&mut self.other).add(more);
    }

    /// The named keys with their sums.
    pub fn named(&self) -> impl Iterator<Item = (&K, &Amount)> {
        self.named.iter()
    }

    /// The sum of all others.
    #[must_use]
    pub const fn other(&self) -> Amount {
        self.other
    }
}

/// What keys had when they were last looked at.
#[derive(Debug)]
pub struct Last<K>(BTreeMap<K, Amount>);

impl<K> Default for Last<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> Last<K> {
    /// Forgets the keys that are gone.
    pub fn keep(&mut self, there: &BTreeSet<K>) {
        self.0.retain(|key, _| there.contains(key));
    }

    /// What a key has got since it was last looked at. One that is new has got all of it.
    pub fn grown(&mut self, key: K, now: Amount) -> Amount {
        now.since(self.0.insert(key, now).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(packets: u64) -> Amount {
        Amount { packets, ..Amount::default() }
    }

    #[test]
    fn a_name_stays_and_the_rest_only_rises() {
        let mut tally = Tally::new(2);
        tally.keep(&BTreeSet::from([5, 6, 7]));
        for key in [5, 6, 7] {
            tally.add(&key, packets(key));
        }
        assert_eq!(tally.other(), packets(7));
        // A lower key takes no name away; one that is free is given on, beginning at zero.
        tally.keep(&BTreeSet::from([1, 6, 7]));
        assert!(tally.is_named(&1) && tally.is_named(&6) && !tally.is_named(&7));
        assert_eq!(tally.named().map(|(_, amount)| amount.packets).collect::<Vec<_>>(), [0, 6]);
        tally.keep(&BTreeSet::from([6, 7]));
        assert!(tally.is_named(&7));
        assert_eq!(tally.other(), packets(7));
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        let mut last = Last::default();
        assert_eq!(last.grown(1, packets(10)), packets(10));
        assert_eq!(last.grown(1, packets(15)), packets(5));
        assert_eq!(last.grown(1, packets(3)), packets(3));
        last.keep(&BTreeSet::new());
        assert_eq!(last.grown(1, packets(4)), packets(4));
    }
}
