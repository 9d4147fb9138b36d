use gateway_common::family::{Ipv4, V4};
use gateway_common::nexthop::NextHopGroup;
use gateway_common::select::{hash, slot};
use gateway_common::tuple::{Direction, Endpoints, Tuple};

use super::*;

const KEY: GroupKey = GroupKey { side: Side::External, ipv4: true };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn router(last: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, last])
}

fn wanted(routers: &[(u8, u32)]) -> NextHops {
    let one = |&(last, weight): &(u8, u32)| NextHopRouter { address: router(last), weight };
    NextHops { external: routers.iter().map(one).collect(), ..NextHops::default() }
}

struct World {
    links: Vec<IpNet>,
    represented: BTreeSet<IpAddr>,
    macs: BTreeMap<IpAddr, [u8; 6]>,
    dead: BTreeSet<IpAddr>,
    unknown: BTreeSet<IpAddr>,
}

impl World {
    fn new() -> Self {
        Self {
            links: vec!["203.0.113.250/24".parse().unwrap()],
            represented: [router(254)].into(),
            macs: BTreeMap::new(),
            dead: BTreeSet::new(),
            unknown: BTreeSet::new(),
        }
    }

    fn plan(&self, wanted: &NextHops, before: Option<&Group>) -> Planned {
        let alive = |router| match () {
            () if self.unknown.contains(&router) => None,
            () => Some(!self.dead.contains(&router)),
        };
        let around = Around {
            links: &self.links,
            represented: &self.represented,
            macs: &self.macs,
            alive: &alive,
        };
        plan(KEY, wanted, &around, before).expect("routers")
    }

    fn group(&self, wanted: &NextHops, before: Option<&Group>) -> Group {
        self.plan(wanted, before).group.expect("a router that can be used")
    }
}

/// Where 100 000 flows go.
fn flows(group: &Group) -> Vec<Option<IpAddr>> {
    let one = |index: u32| {
        let ends = Endpoints {
            source: Ipv4 { octets: [10, 0, 1, 5] },
            destination: Ipv4 { octets: [198, 51, 100, (index / 50_000) as u8] },
            source_port: 1024 + (index % 50_000) as u16,
            destination_port: 443,
        };
        let tuple = Tuple::<V4>::new(ends, 6, Direction::Outbound);
        let place = group.slots[slot(hash(&tuple, true, group.hash, 5))];
        Some(group.places[usize::from(place).checked_sub(1)?]?.address)
    };
    (0..100_000).map(one).collect()
}

#[test]
fn shares_are_within_five_percent_of_the_weights() {
    for weights in [vec![(1, 1), (2, 1)], vec![(1, 1), (2, 2), (3, 5)]] {
        let chosen = flows(&World::new().group(&wanted(&weights), None));
        let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
        for (last, weight) in weights {
            let got = chosen.iter().filter(|one| **one == Some(router(last))).count() as f64;
            let ideal = 100_000.0 * f64::from(weight) / f64::from(total);
            assert!((got / ideal - 1.0).abs() < 0.05, "router {last}: {got}, not {ideal}");
        }
    }
}

/// Random histories of members that come, go, die and come back.
#[test]
fn only_the_flows_of_a_router_that_is_lost_move_and_only_a_share_comes_back() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..40 {
        let mut world = World::new();
        let mut list: Vec<(u8, u32)> = (1..=4).map(|last| (last, random.u32(1..4))).collect();
        let mut group = world.group(&wanted(&list), None);
        for _ in 0..8 {
            let before = flows(&group);
            let usable = |world: &World, list: &[(u8, u32)]| {
                let alive = |one: &&(u8, u32)| !world.dead.contains(&router(one.0));
                list.iter().filter(alive).map(|one| router(one.0)).collect::<BTreeSet<_>>()
            };
            let had = usable(&world, &list);
            match random.u8(0..4) {
                0 if list.len() > 1 => drop(list.remove(random.usize(0..list.len()))),
                1 => {
                    let last = random.u8(1..=9);
                    if list.iter().all(|one| one.0 != last) {
                        list.push((last, random.u32(1..4)));
                    }
                }
                2 => drop(world.dead.insert(router(list[random.usize(0..list.len())].0))),
                _ => world.dead.clear(),
            }
            let has = usable(&world, &list);
            group = world.group(&wanted(&list), Some(&group));
            let after = flows(&group);
            for (before, after) in before.iter().zip(&after) {
                let stays = before == after;
                let lost = before.is_none_or(|one| !has.contains(&one));
                let gained = after.is_none_or(|one| !had.contains(&one));
                assert!(
                    stays || lost || gained,
                    "{before:?} went to {after:?}: {had:?} to {has:?}"
                );
                assert_eq!(after.is_none(), has.is_empty());
            }
        }
    }
}

#[test]
fn a_router_that_comes_back_gets_the_flows_that_it_had() {
    let list = wanted(&[(1, 1), (2, 2), (3, 1)]);
    let all = World::new().group(&list, None);
    let one = World { dead: [router(2)].into(), ..World::new() };
    let two = World { dead: [router(2), router(1)].into(), ..World::new() };
    let mut group = all.clone();
    for world in [&one, &two, &one, &World::new()] {
        group = world.group(&list, Some(&group));
    }
    assert_eq!(group, all);
}

#[test]
fn a_router_that_is_taken_out_drains_and_one_that_comes_takes_no_other_ones_place() {
    let world = World::new();
    let two = world.group(&wanted(&[(1, 1), (2, 1)]), None);
    let after = world.group(&wanted(&[(2, 1), (3, 1)]), Some(&two));
    let state = |last| after.at(router(last)).map(|(_, place)| place.state);
    assert_eq!(state(1), Some(MemberState::Draining));
    assert_eq!(two.at(router(2)).unwrap().0, after.at(router(2)).unwrap().0);
    assert!(flows(&after).iter().all(|one| *one != Some(router(1))));
    let gone = World { dead: [router(1)].into(), ..World::new() };
    assert_eq!(gone.group(&wanted(&[(2, 1), (3, 1)]), Some(&after)).at(router(1)), None);
}

#[test]
fn sixteen_members_leave_no_room_for_one_that_drains() {
    let world = World::new();
    let mut list: Vec<_> = (1..=15).map(|last| (last, 1)).collect();
    let before = world.group(&wanted(&list), None);
    list.rotate_left(1);
    list.truncate(14);
    list.extend([(16, 1), (17, 1)]);
    let after = world.group(&wanted(&list), Some(&before));
    assert_eq!(after.draining().count(), 0);
    assert!(list.iter().all(|(last, _)| after.at(router(*last)).is_some()));
}

#[test]
fn a_weight_of_zero_drains_too() {
    let world = World::new();
    let before = world.group(&wanted(&[(1, 1), (2, 1)]), None);
    let planned = world.plan(&wanted(&[(1, 0), (2, 1)]), Some(&before));
    let group = planned.group.unwrap();
    assert_eq!(group.at(router(1)).unwrap().1.state, MemberState::Draining);
    assert_eq!(planned.status.members[0].slots, 0);
    assert_eq!(planned.status.members[1].slots, SLOTS);
}

#[test]
fn the_group_stands_for_the_router_of_the_default_route() {
    let group = World::new().group(&wanted(&[(1, 1)]), None);
    assert_eq!(group.at(router(254)).unwrap().1.state, MemberState::Represented);
    assert!(flows(&group).iter().all(|one| *one == Some(router(1))));
}

#[test]
fn what_is_not_on_link_is_left_out_and_said_so() {
    let far = NextHopRouter { address: ip("192.0.2.1"), weight: 1 };
    let mut list = wanted(&[(1, 1)]);
    list.external.push(far);
    let planned = World::new().plan(&list, None);
    assert_eq!(planned.status.members[1].state, State::NotOnLink);
    assert_eq!(
        planned.problems,
        ["external next hop 192.0.2.1 is left out: it is in no network of the interface"]
    );
    assert!(flows(&planned.group.unwrap()).iter().all(|one| *one == Some(router(1))));
    let nowhere = World { links: vec!["2001:db8::2/64".parse().unwrap()], ..World::new() };
    let planned = nowhere.plan(&wanted(&[(1, 1)]), None);
    assert_eq!(planned.group, None);
    assert_eq!(
        planned.problems,
        ["external next hop 203.0.113.1 is left out: the interface has no IPv4 address"]
    );
}

#[test]
fn nobody_alive_has_no_slot_and_is_a_problem() {
    let world = World { dead: [router(1), router(2)].into(), ..World::new() };
    let planned = world.plan(&wanted(&[(1, 1), (2, 1)]), None);
    assert_eq!(planned.group.unwrap().slots, [0; SLOTS]);
    assert_eq!(
        planned.problems,
        ["external next hops, IPv4: none is alive, what should go by them is dropped"]
    );
}

#[test]
fn one_of_whom_nothing_is_known_stays_as_it_was_and_serves_if_nobody_else_does() {
    let both = World { unknown: [router(1), router(2)].into(), ..World::new() };
    let first = both.group(&wanted(&[(1, 1), (2, 1)]), None);
    assert_eq!(first.at(router(1)).unwrap().1.state, MemberState::Alive);
    let one = World { unknown: [router(2)].into(), ..World::new() };
    let second = one.group(&wanted(&[(1, 1), (2, 1)]), Some(&first));
    assert_eq!(second.at(router(2)).unwrap().1.state, MemberState::Alive);
    let fresh = one.group(&wanted(&[(1, 1), (2, 1)]), None);
    assert!(flows(&fresh).iter().all(|flow| *flow == Some(router(1))));
}

#[test]
fn a_mac_address_alone_leads_nowhere_else() {
    let mut world = World::new();
    let before = world.group(&wanted(&[(1, 1)]), None);
    world.macs.insert(router(1), [2, 0, 0, 0, 0, 1]);
    let after = world.group(&wanted(&[(1, 1)]), Some(&before));
    assert_ne!(before, after);
    assert!(!before.leads_elsewhere(&after));
    world.dead.insert(router(1));
    assert!(after.leads_elsewhere(&world.group(&wanted(&[(1, 1)]), Some(&after))));
}

#[test]
fn a_group_is_one_record_of_two_kilobytes() {
    assert_eq!(size_of::<NextHopGroup<V4>>(), 2248);
}
