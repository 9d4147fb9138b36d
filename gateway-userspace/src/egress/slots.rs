//! Which member has which slot of a next-hop group.
//!
//! A resilient table: what changes is what must. A member that goes leaves its slots to the others,
//! whose own stay; one that comes takes only its share. Pure, and the same for the same history.

use gateway_common::nexthop::SLOTS;

/// The slots of a group: the id of a member each, or 0.
pub type Slots = [u16; SLOTS];

/// A member that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its id, not 0.
    pub id: u16,
    /// Its weight, not 0.
    pub weight: u32,
}

/// Gives every slot to one of `shares`, in proportion to their weights and with as few changes as
/// that allows.
#[must_use]
pub fn assign(before: &Slots, shares: &[Share]) -> Slots {
    let mut table = Table::of(shares);
    table.grant(|at| before[at]);
    table.deal()
}

/// The homes of all slots: the member that shall have each, alive or not, in proportion to the weights.
/// `held` says who has it now. Nothing changes unless members or weights do; then a slot's home is whoever
/// holds it, as far as that allows, so that only those move that must.
#[must_use]
pub fn home(homes: &Slots, held: &Slots, members: &[Share]) -> Slots {
    if assign(homes, members) == *homes {
        return *homes;
    }
    let mut table = Table::of(members);
    table.grant(|at| if homes[at] == held[at] { held[at] } else { 0 });
    table.grant(|at| held[at]);
    table.grant(|at| homes[at]);
    table.deal()
}

/// Gives every slot to one of `shares`, with as few changes as their weights allow. What a member must give
/// up is first what others are at home in, and what is free goes home first: so a member that comes back
/// finds the slots that it had, unless others are still away.
#[must_use]
pub fn stand_in(homes: &Slots, before: &Slots, shares: &[Share]) -> Slots {
    let is_there = |id: u16| shares.iter().any(|share| share.id == id);
    let mut table = Table::of(shares);
    table.grant(|at| if homes[at] == before[at] { before[at] } else { 0 });
    table.grant(|at| if is_there(homes[at]) { 0 } else { before[at] });
    table.grant(|at| before[at]);
    table.grant(|at| homes[at]);
    table.deal()
}

/// Slots that are being given away.
struct Table<'s> {
    shares: &'s [Share],
    /// How many slots each still gets.
    left: Vec<usize>,
    slots: Slots,
}

impl<'s> Table<'s> {
    fn of(shares: &'s [Share]) -> Self {
        Self { shares, left: quotas(shares), slots: [0; SLOTS] }
    }

    /// Gives each free slot to the member that is wished for, if that still gets one.
    fn grant(&mut self, wish: impl Fn(usize) -> u16) {
        for (at, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| **slot == 0) {
            let id = wish(at);
            let place = self.shares.iter().position(|share| share.id == id);
            if let Some(place) = place.filter(|place| self.left[*place] > 0) {
                self.left[place] -= 1;
                *slot = id;
            }
        }
    }

    /// Gives the free slots away in turn, so that neighbours get different members.
    fn deal(mut self) -> Slots {
        let (shares, mut turn) = (self.shares, 0);
        for slot in self.slots.iter_mut().filter(|slot| **slot == 0) {
            let mut places = (0..shares.len()).map(|step| (turn + step) % shares.len());
            let Some(place) = places.find(|place| self.left[*place] > 0) else { break };
            self.left[place] -= 1;
            *slot = shares[place].id;
            turn = place + 1;
        }
        self.slots
    }
}

/// How many slots each gets: the largest remainders round up (Hamilton's method).
fn quotas(shares: &[Share]) -> Vec<usize> {
    let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
    if total == 0 {
        return vec![0; shares.len()];
    }
    let part = |share: &Share| u64::from(share.weight) * SLOTS as u64;
    let mut quotas: Vec<_> = shares.iter().map(|share| part(share) / total).collect();
    let mut order: Vec<_> = (0..shares.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(part(&shares[*index]) % total));
    let missing = SLOTS as u64 - quotas.iter().sum::<u64>();
    for index in order.into_iter().take(usize::try_from(missing).unwrap_or(0)) {
        quotas[index] += 1;
    }
    quotas.into_iter().map(|quota| usize::try_from(quota).unwrap_or(SLOTS)).collect()
}

/// How many slots `id` has.
#[must_use]
pub fn count(slots: &Slots, id: u16) -> usize {
    slots.iter().filter(|slot| **slot == id).count()
}

#[cfg(test)]
mod tests {
    use gateway_common::family::{Family, Ipv4, Ipv6, V4, V6};
    use gateway_common::nexthop::HashFields;
    use gateway_common::select::{hash, slot};
    use gateway_common::tuple::{Direction, Endpoints, Tuple};

    use super::*;

    const NONE: Slots = [0; SLOTS];

    fn shares(weights: &[(u16, u32)]) -> Vec<Share> {
        weights.iter().map(|&(id, weight)| Share { id, weight }).collect()
    }

    fn changed(before: &Slots, after: &Slots) -> Vec<(u16, u16)> {
        before.iter().zip(after).filter(|(b, a)| b != a).map(|(b, a)| (*b, *a)).collect()
    }

    /// Every slot is taken, and each member has its share to within one slot.
    fn check(slots: &Slots, shares: &[Share]) {
        let total: u32 = shares.iter().map(|share| share.weight).sum();
        for share in shares {
            let ideal = f64::from(share.weight) * SLOTS as f64 / f64::from(total);
            let got = count(slots, share.id) as f64;
            assert!((got - ideal).abs() < 1.0, "member {} has {got} slots, not {ideal}", share.id);
        }
        assert_eq!(count(slots, 0), 0);
    }

    #[test]
    fn nobody_alive_leaves_all_slots_empty() {
        let slots = assign(&NONE, &shares(&[(1, 1), (2, 1)]));
        assert_eq!(assign(&slots, &[]), NONE);
    }

    /// Random histories: members come, go and change weight.
    #[test]
    fn changes_are_as_few_as_shares_allow() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut slots = NONE;
            let mut members: Vec<Share> = Vec::new();
            for _ in 0..20 {
                let before = members.clone();
                match random.u8(0..3) {
                    0 if !members.is_empty() => {
                        members.remove(random.usize(0..members.len()));
                    }
                    1 if !members.is_empty() => {
                        let index = random.usize(0..members.len());
                        members[index].weight = random.u32(1..10);
                    }
                    _ => {
                        let id = random.u16(1..=12);
                        if members.iter().all(|member| member.id != id) {
                            members.push(Share { id, weight: random.u32(1..10) });
                        }
                    }
                }
                let after = assign(&slots, &members);
                if !members.is_empty() {
                    check(&after, &members);
                }
                // Nobody loses a slot who is not over his quota, and nobody loses more than that.
                let moved = changed(&slots, &after);
                for member in &before {
                    let lost = moved.iter().filter(|(from, _)| *from == member.id).count();
                    let had = count(&slots, member.id);
                    let has = if members.iter().any(|other| other.id == member.id) {
                        count(&after, member.id)
                    } else {
                        0
                    };
                    assert_eq!(lost, had.saturating_sub(has), "member {}", member.id);
                }
                assert_eq!(assign(&after, &members), after, "again changes nothing");
                slots = after;
            }
        }
    }

    fn flow<F: Family>(source: F::Addr, destination: F::Addr, ports: (u16, u16)) -> Tuple<F> {
        let endpoints =
            Endpoints { source, destination, source_port: ports.0, destination_port: ports.1 };
        Tuple::new(endpoints, 6, Direction::Outbound)
    }

    /// 100 000 connections of one host to one server, as IPv4 and as IPv6.
    fn choices(slots: &Slots) -> Vec<u16> {
        let v4 = |last| Ipv4 { octets: [10, 0, 1, last] };
        let v6 = |last: u8| {
            let mut octets = [0; 16];
            (octets[0], octets[15]) = (0xfd, last);
            Ipv6 { octets }
        };
        let one = |index: u32| {
            let ports = (1024 + (index % 50_000) as u16, 443);
            let hash = if index < 50_000 {
                hash::<V4>(&flow(v4(5), v4(9), ports), true, HashFields::FiveTuple, 1)
            } else {
                hash::<V6>(&flow(v6(5), v6(9), ports), true, HashFields::FiveTuple, 1)
            };
            slots[slot(hash)]
        };
        (0..100_000).map(one).collect()
    }

    #[test]
    fn shares_of_flows_are_within_five_percent_of_the_weights() {
        for weights in [vec![(1, 1), (2, 1), (3, 1)], vec![(4, 1), (5, 2), (6, 5)]] {
            let shares = shares(&weights);
            let chosen = choices(&assign(&NONE, &shares));
            let total: u32 = shares.iter().map(|share| share.weight).sum();
            for share in &shares {
                let got = chosen.iter().filter(|id| **id == share.id).count() as f64;
                let ideal = 100_000.0 * f64::from(share.weight) / f64::from(total);
                assert!((got / ideal - 1.0).abs() < 0.05, "member {}: {got}, {ideal}", share.id);
            }
        }
    }

    #[test]
    fn only_the_flows_of_a_lost_member_move_and_only_its_share_comes_back() {
        let three = shares(&[(1, 1), (2, 1), (3, 1)]);
        let all = assign(&NONE, &three);
        let before = choices(&all);
        let two = assign(&all, &[three[0], three[2]]);
        let without = choices(&two);
        for (before, without) in before.iter().zip(&without) {
            assert!(*before == 2 || before == without);
            assert_ne!(*without, 2);
        }
        let back = choices(&assign(&two, &three));
        let moved = without.iter().zip(&back).filter(|(without, back)| without != back).count();
        assert!(without.iter().zip(&back).all(|(without, back)| without == back || *back == 2));
        assert!((31_000..36_000).contains(&moved), "{moved}");
    }

    #[test]
    fn by_source_all_that_a_host_does_goes_one_way() {
        let slots = assign(&NONE, &shares(&[(1, 1), (2, 1), (3, 1)]));
        let source = Ipv4 { octets: [10, 0, 1, 5] };
        let way = |last, port| {
            let flow = flow::<V4>(source, Ipv4 { octets: [198, 51, 100, last] }, (port, 80));
            slots[slot(hash(&flow, true, HashFields::Source, 9))]
        };
        let first = way(1, 1);
        assert!((0..1000).all(|index| way((index % 250) as u8, index) == first));
    }
}
