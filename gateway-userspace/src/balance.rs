//! The slot tables of shared ports: which backend gets which share of the new flows.
//!
//! Resilient hashing: from one table to the next a slot keeps its backend unless that is gone or has
//! more slots than its share. So a backend that goes moves the slots it had, and one that comes moves
//! as many as it gets.

use std::collections::BTreeMap;

use gateway_common::records::{BACKEND_SLOTS, Slots};

/// The table for backends given as ids of rules with their weights, after the table `before`.
///
/// `None` without backends. There are at most [`BACKEND_SLOTS`] of them, each with a weight of at
/// least 1.
#[must_use]
pub fn assign(before: Option<&Slots>, backends: &[(u32, u16)]) -> Option<Slots> {
    let mut shares = shares(backends)?;
    let mut slots = [None; BACKEND_SLOTS];
    let mut free = Vec::new();
    for (index, slot) in slots.iter_mut().enumerate() {
        let holder = before.map(|slots| slots.rules[index]);
        match holder.and_then(|rule| Some((rule, shares.get_mut(&rule).filter(|left| **left > 0)?)))
        {
            Some((rule, left)) => {
                *left -= 1;
                *slot = Some(rule);
            }
            None => free.push(index),
        }
    }
    // In turn, so that the slots of a backend do not lie in one row: a later change takes some of
    // each row.
    let mut left: Vec<_> = shares.into_iter().filter(|(_, left)| *left > 0).collect();
    let mut turn = 0;
    for index in free {
        turn %= left.len().max(1);
        let (rule, share) = left.get_mut(turn)?;
        slots[index] = Some(*rule);
        *share -= 1;
        if *share == 0 {
            left.remove(turn);
        } else {
            turn += 1;
        }
    }
    let mut rules = [0; BACKEND_SLOTS];
    for (rule, slot) in rules.iter_mut().zip(slots) {
        *rule = slot?;
    }
    Some(Slots { rules })
}

/// How many slots each backend gets: in proportion to its weight by the largest remainder, and at
/// least one.
fn shares(backends: &[(u32, u16)]) -> Option<BTreeMap<u32, usize>> {
    if backends.is_empty() || backends.len() > BACKEND_SLOTS {
        return None;
    }
    let weights: usize = backends.iter().map(|(_, weight)| usize::from(*weight)).sum();
    // One slot each comes first; the rest is what the weights are about.
    let ideal = |weight: u16| usize::from(weight) * BACKEND_SLOTS;
    let mut shares: BTreeMap<u32, usize> =
        backends.iter().map(|(rule, weight)| (*rule, (ideal(*weight) / weights).max(1))).collect();
    // Who is furthest below its ideal share gains first, who is furthest above it gives first.
    let excess =
        |share: usize, weight: u16| (share * weights).cast_signed() - ideal(weight).cast_signed();
    let mut given: usize = shares.values().sum();
    while given != BACKEND_SLOTS {
        let ranked = backends.iter().map(|(rule, weight)| (excess(shares[rule], *weight), *rule));
        if given < BACKEND_SLOTS {
            let (_, rule) = ranked.min()?;
            *shares.get_mut(&rule)? += 1;
            given += 1;
        } else {
            let (_, rule) = ranked.filter(|(_, rule)| shares[rule] > 1).max()?;
            *shares.get_mut(&rule)? -= 1;
            given -= 1;
        }
    }
    Some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(slots: &Slots, rule: u32) -> usize {
        slots.rules.iter().filter(|holder| **holder == rule).count()
    }

    fn moved(before: &Slots, after: &Slots) -> Vec<(u32, u32)> {
        let pairs = before.rules.iter().zip(&after.rules);
        pairs.filter(|(old, new)| old != new).map(|(old, new)| (*old, *new)).collect()
    }

    #[test]
    fn equal_weights_get_equal_shares() {
        for backends in [1, 2, 3, 7, 100, BACKEND_SLOTS] {
            let all: Vec<_> = (1..=backends as u32).map(|rule| (rule, 1)).collect();
            let slots = assign(None, &all).expect("backends");
            for (rule, _) in &all {
                let exact = BACKEND_SLOTS / backends;
                assert!((exact..=exact + 1).contains(&count(&slots, *rule)), "{backends}: {rule}");
            }
        }
        assert_eq!(assign(None, &[]), None);
    }

    #[test]
    fn weights_are_kept_as_well_as_the_grain_allows() {
        let weights = [(1, 1), (2, 2), (3, 5), (4, 256), (5, 40)];
        let slots = assign(None, &weights).expect("backends");
        for (rule, weight) in weights {
            let ideal = f64::from(weight) * BACKEND_SLOTS as f64 / 304.0;
            let share = count(&slots, rule) as f64;
            assert!((share - ideal).abs() <= 1.0, "rule {rule}: {share} of {ideal:.2}");
        }
    }

    #[test]
    fn nobody_is_left_without_a_slot() {
        let mut all: Vec<_> = (1..=300).map(|rule| (rule, 1)).collect();
        all.push((999, 256));
        let slots = assign(None, &all).expect("backends");
        for (rule, _) in &all {
            assert!(count(&slots, *rule) >= 1, "rule {rule}");
        }
        assert_eq!(all.iter().map(|(rule, _)| count(&slots, *rule)).sum::<usize>(), BACKEND_SLOTS);
    }

    #[test]
    fn a_backend_that_goes_moves_only_its_own_slots() {
        let before = assign(None, &[(1, 1), (2, 3), (3, 2), (4, 1)]).expect("backends");
        let after = assign(Some(&before), &[(1, 1), (3, 2), (4, 1)]).expect("backends");
        let moved = moved(&before, &after);
        assert_eq!(moved.len(), count(&before, 2));
        assert!(moved.iter().all(|(old, _)| *old == 2));
        assert_eq!(count(&after, 3), BACKEND_SLOTS / 2);
    }

    #[test]
    fn a_backend_that_comes_moves_only_what_it_gets() {
        let mut before = assign(None, &[(1, 1), (2, 1), (3, 1)]).expect("backends");
        let mut all = vec![(1, 1), (2, 1), (3, 1)];
        for rule in 4..60 {
            all.push((rule, 1));
            let after = assign(Some(&before), &all).expect("backends");
            let moved = moved(&before, &after);
            assert_eq!(moved.len(), count(&after, rule));
            assert!(moved.iter().all(|(_, new)| *new == rule));
            before = after;
        }
    }

    #[test]
    fn nothing_moves_without_a_change() {
        let all = [(7, 2), (9, 1), (11, 1)];
        let slots = assign(None, &all).expect("backends");
        assert_eq!(assign(Some(&slots), &all), Some(slots));
    }
}
