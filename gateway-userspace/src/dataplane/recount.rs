//! Session counts of EIPs and hosts against the sessions that are there.
//!
//! The data path keeps them right by itself, daemon or not. What it cannot follow is an EIP that goes and
//! comes back while sessions of it still end. Traffic goes on meanwhile, so a count is only corrected if
//! nothing was counted in or out while the sessions were walked.

use std::collections::BTreeMap;

use gateway_common::family::{Family, V4, V6};
use gateway_common::records::{Eip, Host, ORIGINAL, Session};
use gateway_common::tuple::{Direction, Tuple};

use super::maps::{MapFamily, Maps, MapsError};

/// How many sessions there are of each EIP and of each host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts<F: Family> {
    /// By EIP; other addresses may be among them.
    pub eips: BTreeMap<F::Addr, u64>,
    /// By inside host.
    pub hosts: BTreeMap<F::Addr, u32>,
}

impl<F: Family> Counts<F> {
    /// Counts session entries.
    pub fn of<E>(
        mut entries: impl Iterator<Item = Result<(Tuple<F>, Session<F>), E>>,
    ) -> Result<Self, E> {
        let mut counts = Self { eips: BTreeMap::new(), hosts: BTreeMap::new() };
        entries.try_for_each(|entry| {
            let (key, session) = entry?;
            if session.flags & ORIGINAL != 0 {
                *counts.eips.entry(*session.eip(&key)).or_default() += 1;
                if key.direction == Direction::Outbound as u8 {
                    *counts.hosts.entry(key.endpoints.source).or_default() += 1;
                }
            }
            Ok(())
        })?;
        Ok(counts)
    }
}

/// Corrects what is wrong. Returns how many counts that were.
///
/// # Errors
///
/// When a map cannot be read or written.
pub fn recount(maps: &mut Maps) -> Result<usize, MapsError> {
    Ok(family::<V4>(maps)? + family::<V6>(maps)?)
}

fn family<F: MapFamily>(maps: &mut Maps) -> Result<usize, MapsError> {
    let (eips, hosts) = (maps.eips::<F>()?, maps.hosts::<F>()?);
    let counts = Counts::of(maps.sessions::<F>())?;
    let wrong_eips = wrong_eips::<F>(&eips, &maps.eips::<F>()?, &counts);
    let wrong_hosts = wrong_hosts::<F>(&hosts, &maps.hosts::<F>()?, &counts);
    let corrected = wrong_eips.len() + wrong_hosts.len();
    for (address, eip) in wrong_eips {
        maps.set_eip::<F>(address, eip)?;
    }
    for (address, host) in wrong_hosts {
        maps.set_host::<F>(address, host)?;
    }
    Ok(corrected)
}

/// The records that were the same before and after, and wrong, as they should be.
fn wrong_eips<F: Family>(
    before: &[(F::Addr, Eip)],
    after: &[(F::Addr, Eip)],
    counts: &Counts<F>,
) -> Vec<(F::Addr, Eip)> {
    let before: BTreeMap<_, _> = before.iter().copied().collect();
    let still = after.iter().filter(|(address, eip)| before.get(address) == Some(eip));
    still
        .map(|(address, eip)| {
            let sessions = counts.eips.get(address).copied().unwrap_or(0);
            (*address, *eip, Eip { sessions, ..*eip })
        })
        .filter(|(_, eip, right)| eip != right)
        .map(|(address, _, right)| (address, right))
        .collect()
}

/// As [`wrong_eips`]; a host that nobody counted has none.
fn wrong_hosts<F: Family>(
    before: &[(F::Addr, Host)],
    after: &[(F::Addr, Host)],
    counts: &Counts<F>,
) -> Vec<(F::Addr, Option<Host>)> {
    let [before, after] =
        [before, after].map(|hosts| hosts.iter().copied().collect::<BTreeMap<_, _>>());
    let mut wrong = Vec::new();
    for (address, host) in &after {
        let sessions = counts.hosts.get(address).copied().unwrap_or(0);
        if before.get(address) == Some(host) && host.sessions != sessions {
            wrong.push((*address, (sessions > 0).then_some(Host { sessions, ..*host })));
        }
    }
    for (address, sessions) in &counts.hosts {
        if !before.contains_key(address) && !after.contains_key(address) {
            wrong.push((*address, Some(Host { sessions: *sessions, ..Host::default() })));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::family::Ipv4;

    fn ipv4(last: u8) -> Ipv4 {
        Ipv4 { octets: [10, 0, 1, last] }
    }

    fn counts(eips: &[(u8, u64)], hosts: &[(u8, u32)]) -> Counts<V4> {
        Counts {
            eips: eips.iter().map(|(last, count)| (ipv4(*last), *count)).collect(),
            hosts: hosts.iter().map(|(last, count)| (ipv4(*last), *count)).collect(),
        }
    }

    #[test]
    fn a_count_that_is_right_or_moving_is_left_alone() {
        let eip = |sessions| Eip { sessions, opened: 9, ..Eip::default() };
        let before = [(ipv4(1), eip(2)), (ipv4(2), eip(5)), (ipv4(3), eip(7))];
        let after = [(ipv4(1), eip(2)), (ipv4(2), eip(4)), (ipv4(3), eip(7))];
        let wrong = wrong_eips::<V4>(&before, &after, &counts(&[(1, 2), (2, 1)], &[]));
        assert_eq!(wrong, [(ipv4(3), eip(0))]);
    }

    #[test]
    fn hosts_come_and_go() {
        let host = |sessions| Host { sessions, ..Host::default() };
        let there = [(ipv4(1), host(2)), (ipv4(2), host(1)), (ipv4(3), host(4))];
        let wrong = wrong_hosts::<V4>(&there, &there, &counts(&[], &[(1, 2), (3, 3), (4, 6)]));
        let expected = [(ipv4(2), None), (ipv4(3), Some(host(3))), (ipv4(4), Some(host(6)))];
        assert_eq!(wrong, expected);
    }
}
