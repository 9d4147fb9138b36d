//! Egress gateways, routes of VPCs, links and liveness -> what the maps of the selector hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::nexthop::{HashFields, MEMBER_IDS, SLOTS};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::choices::{self, Choices, MOST, Rules, Source};
use super::slots::{self, Share, Slots};
use crate::bfd::engine::{Ends, Wanted as Wants};
use crate::bfd::session::{Parameters, Role};
use crate::desired::{Action, Bfd, EgressGateway, Router};
use crate::encode::PREFIX_ENTRIES;

/// Neighbours on the link only (RFC 5881 section 5).
const MIN_TTL: u8 = 255;

/// Most groups.
const GROUP_ENTRIES: u32 = 256;

/// Whether a replica is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// BFD says so, or nobody asks.
    Alive,
    /// BFD says no.
    Dead,
    /// BFD has not said anything yet: as it was before.
    Unknown,
    /// Not in a network of this host.
    NotOnLink,
}

/// A network that begins at an interface of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Our address with the prefix length of the network.
    pub address: IpNet,
    /// The interface.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The link to a neighbour: the longest prefix that covers it.
fn link_to(links: &[Link], address: IpAddr) -> Option<&Link> {
    let covering = links.iter().filter(|link| link.address.contains(&address));
    covering.max_by_key(|link| link.address.prefix_len())
}

/// A group in the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupImage {
    /// Whether only the source address counts.
    pub by_source: bool,
    /// The slots.
    pub slots: Vec<u16>,
}

impl GroupImage {
    /// What is hashed.
    #[must_use]
    pub const fn fields(&self) -> HashFields {
        if self.by_source { HashFields::Source } else { HashFields::FiveTuple }
    }

    /// The slots, as an array.
    #[must_use]
    pub fn table(&self) -> Slots {
        let mut table = [0; SLOTS];
        table.iter_mut().zip(&self.slots).for_each(|(slot, id)| *slot = *id);
        table
    }
}

/// A member in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberImage {
    /// Address of the next hop.
    pub address: IpAddr,
    /// Index of the interface.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What the maps of the selector hold. It is kept on disk too, so that a restart moves no flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The networks that sources are told apart by, with their ids.
    pub sources: BTreeMap<IpNet, u32>,
    /// The same ids, by what they stand for.
    #[serde(default)]
    pub source_ids: BTreeMap<String, u32>,
    /// The networks that destinations are told apart by, with their ids.
    pub destinations: BTreeMap<IpNet, u32>,
    /// The group of each pair of them.
    pub choices: Choices,
    /// The groups.
    pub groups: BTreeMap<u32, GroupImage>,
    /// The members.
    pub members: BTreeMap<u16, MemberImage>,
    /// The id of each group by its name.
    pub group_ids: BTreeMap<String, u32>,
    /// The id of each member by the names of its group and itself.
    pub member_ids: BTreeMap<String, u16>,
}

/// A group and its members, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The `VpcEgressGateway`, or the route of a VPC.
    pub gateway: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `5-tuple` or `source`.
    pub hash: String,
    /// The members in the order of the replicas.
    pub members: Vec<MemberStatus>,
}

/// A member, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: u16,
    /// Address of the next hop.
    pub address: IpAddr,
    /// The node it runs on, if that is known.
    pub node: Option<String>,
    /// Whether it is alive.
    pub liveness: Liveness,
    /// Its weight.
    pub weight: u32,
    /// How many of the slots it has.
    pub slots: usize,
}

/// A plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// What the maps shall hold.
    pub image: Image,
    /// The groups, for people.
    pub groups: Vec<GroupStatus>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

/// What the selector knows of its surroundings.
pub struct Surroundings<'s> {
    /// The networks of this host.
    pub links: &'s [Link],
    /// The node, if it has a name.
    pub node: Option<&'s str>,
    /// What BFD says of a session; `None`: nothing yet.
    pub alive: &'s dyn Fn(&Ends) -> Option<bool>,
}

/// Plans the maps. `before` is what they hold: what can stay, stays.
#[must_use]
pub fn plan(
    gateways: &BTreeMap<String, EgressGateway>,
    routers: &BTreeMap<String, Router>,
    around: &Surroundings<'_>,
    before: &Image,
) -> Planned {
    let mut planned = Planned::default();
    let mut out = BTreeSet::new();
    for wanted in wanted(gateways, routers) {
        let served = group(&mut planned, &wanted, around, before);
        if !served && wanted.gives_way {
            out.insert(wanted.name.clone());
        } else if !served {
            let name = &wanted.name;
            planned.problems.push(format!("{name}: no next hop is alive, its traffic is dropped"));
        }
    }
    let groups = planned.image.group_ids.clone();
    choose(&mut planned, &Rules { gateways, routers, groups: &groups, out: &out }, before);
    planned
}

/// Networks and what becomes of packets between them.
fn choose(planned: &mut Planned, rules: &Rules<'_>, before: &Image) {
    let origins = rules.origins();
    let kinds: BTreeSet<Source<'_>> = origins.values().copied().collect();
    let kinds: BTreeMap<String, _> = kinds.iter().map(|kind| (kind.to_string(), kind)).collect();
    let source_ids = number(kinds.keys().cloned().collect(), &known_ids(before));
    let destinations = number(rules.destinations(), &before.destinations);
    if let Some(problem) = too_many(&origins, source_ids.len(), &destinations) {
        planned.problems.push(problem);
        planned.image.sources.clone_from(&before.sources);
        planned.image.source_ids.clone_from(&before.source_ids);
        planned.image.destinations.clone_from(&before.destinations);
        planned.image.choices.clone_from(&before.choices);
        return;
    }
    let mut choices = Choices::new();
    let sources = kinds.iter().map(|(name, source)| (**source, source_ids[name]));
    for (source, id) in sources.clone().chain([(Source::ANY, 0)]) {
        for (destination, other) in ends(&destinations) {
            let families = [source.is_ipv4(), destination.map(|cidr| cidr.addr().is_ipv4())];
            if matches!(families, [Some(one), Some(other)] if one != other) {
                continue;
            }
            if let Some(choice) = rules.decide(&source, destination) {
                choices.entry(id).or_default().insert(other, choice);
            }
        }
    }
    let ids: BTreeMap<Source<'_>, u32> = sources.collect();
    planned.image.sources = origins.iter().map(|(cidr, source)| (*cidr, ids[source])).collect();
    planned.image.source_ids = source_ids;
    planned.image.destinations = destinations;
    planned.image.choices = choices;
}

/// What stands in the way of taking all of them. A part would send packets where they do not belong.
fn too_many(
    origins: &BTreeMap<IpNet, Source<'_>>,
    kinds: usize,
    destinations: &BTreeMap<IpNet, u32>,
) -> Option<String> {
    let pairs = (kinds + 1) * (destinations.len() + 1);
    if pairs > MOST {
        return Some(format!(
            "policies and routes name {kinds} networks of sources and {} of destinations, {pairs} \
             pairs; the most there can be is {MOST}: they stay as they were",
            destinations.len()
        ));
    }
    for (family, ipv4) in [("IPv4", true), ("IPv6", false)] {
        let of_family = |cidr: &&IpNet| cidr.addr().is_ipv4() == ipv4;
        let sources = origins.keys().filter(of_family).count();
        let most = sources.max(destinations.keys().filter(of_family).count());
        if most > PREFIX_ENTRIES {
            return Some(format!(
                "policies, pods and routes name {most} {family} networks; the most there can be is \
                 {PREFIX_ENTRIES}: they stay as they were"
            ));
        }
    }
    None
}

/// The ids of sources by what they stand for. An image of an earlier release has networks alone.
fn known_ids(before: &Image) -> BTreeMap<String, u32> {
    if before.source_ids.is_empty() {
        return before.sources.iter().map(|(cidr, id)| (cidr.to_string(), *id)).collect();
    }
    before.source_ids.clone()
}

/// All networks, and after them whatever is in none.
fn ends(networks: &BTreeMap<IpNet, u32>) -> impl Iterator<Item = (Option<&IpNet>, u32)> {
    networks.iter().map(|(cidr, id)| (Some(cidr), *id)).chain([(None, 0)])
}

/// Gives each the id that it had, else the lowest that none has or had.
fn number<K: Ord>(all: BTreeSet<K>, before: &BTreeMap<K, u32>) -> BTreeMap<K, u32> {
    let taken: BTreeSet<u32> = before.values().copied().collect();
    let mut free = (1..).filter(|id| !taken.contains(id));
    let numbered = all.into_iter().map(|one| {
        let id = before.get(&one).copied().or_else(|| free.next());
        (one, id.unwrap_or(u32::MAX))
    });
    numbered.collect()
}

/// A group that rules ask for.
struct Wanted {
    /// What it is found by.
    name: String,
    /// What people call it.
    label: String,
    ipv4: bool,
    hash: HashFields,
    local: bool,
    /// Whether other rules take over while it has no member.
    gives_way: bool,
    members: Vec<WantedMember>,
}

struct WantedMember {
    address: IpAddr,
    weight: u32,
    node: Option<String>,
    watched: bool,
}

fn wanted(
    gateways: &BTreeMap<String, EgressGateway>,
    routers: &BTreeMap<String, Router>,
) -> Vec<Wanted> {
    let mut all = Vec::new();
    for gateway in gateways.values() {
        for ipv4 in [true, false] {
            let by_policy = gateway.sources.keys().any(|cidr| cidr.addr().is_ipv4() == ipv4);
            if by_policy || gateway.pods.keys().any(|address| address.is_ipv4() == ipv4) {
                all.push(of_gateway(gateway, ipv4));
            }
        }
    }
    for router in routers.values() {
        for (key, hops) in &router.routes {
            let members = hops.iter().map(|hop| member(hop.address, hop.guarded)).collect();
            let name = choices::of_route(&router.name, key);
            let gives_way = hops.iter().all(|hop| hop.guarded);
            all.push(Wanted { gives_way, ..of_rule(name, key.cidr.addr().is_ipv4(), members) });
        }
        for policy in &router.policies {
            let Action::Reroute(hops) = &policy.action else { continue };
            let members = hops.iter().map(|address| member(*address, false)).collect();
            let name = choices::of_policy(&router.name, policy.priority, &policy.matches);
            all.push(of_rule(name, policy.matches.is_ipv4(), members));
        }
    }
    all
}

fn of_gateway(gateway: &EgressGateway, ipv4: bool) -> Wanted {
    let members = gateway.replicas.iter().filter_map(|replica| {
        let mut addresses = replica.addresses.iter().copied();
        let address = addresses.find(|address| address.is_ipv4() == ipv4)?;
        let (node, watched) = (replica.node.clone(), gateway.bfd.is_some());
        Some(WantedMember { address, weight: replica.weight, node, watched })
    });
    Wanted {
        name: choices::of_gateway(&gateway.name, ipv4),
        label: gateway.name.clone(),
        ipv4,
        hash: gateway.hash,
        local: gateway.local,
        gives_way: false,
        members: members.collect(),
    }
}

fn of_rule(name: String, ipv4: bool, members: Vec<WantedMember>) -> Wanted {
    let (label, hash) = (name.clone(), HashFields::FiveTuple);
    Wanted { name, label, ipv4, hash, local: false, gives_way: false, members }
}

const fn member(address: IpAddr, watched: bool) -> WantedMember {
    WantedMember { address, weight: 1, node: None, watched }
}

/// Whether the group has a member that is alive.
fn group(
    planned: &mut Planned,
    wanted: &Wanted,
    around: &Surroundings<'_>,
    before: &Image,
) -> bool {
    let Wanted { name, .. } = wanted;
    let (given, most) = (&planned.image.group_ids, GROUP_ENTRIES);
    if given.contains_key(name) {
        // Two rules that say the same.
        return true;
    }
    let Some(id) = free_id(name, &before.group_ids, given, most) else {
        planned.problems.push(format!("{name}: more than {most} groups, its traffic is dropped"));
        return true;
    };
    planned.image.group_ids.insert(name.clone(), id);
    let old = before.groups.get(&id).map_or([0; SLOTS], GroupImage::table);
    let mut members = Vec::new();
    for one in &wanted.members {
        let address = one.address;
        let member = format!("{name}/{address}");
        let ids = (&before.member_ids, &planned.image.member_ids);
        let most = u16::try_from(MEMBER_IDS - 1).unwrap_or(u16::MAX);
        let Some(id) = free_id(&member, ids.0, ids.1, most) else {
            planned.problems.push(format!("{member}: more than {most} next hops"));
            continue;
        };
        planned.image.member_ids.insert(member, id);
        members.push(member_of(planned, name, one, id, around));
    }
    let shares = shares(&members, wanted.local, around.node, &old);
    let slots = slots::assign(&old, &shares);
    members.iter_mut().for_each(|member| member.slots = slots::count(&slots, member.id));
    let by_source = wanted.hash == HashFields::Source;
    planned.image.groups.insert(id, GroupImage { by_source, slots: slots.to_vec() });
    planned.groups.push(GroupStatus {
        gateway: wanted.label.clone(),
        family: if wanted.ipv4 { "IPv4" } else { "IPv6" }.to_owned(),
        hash: if by_source { "source" } else { "5-tuple" }.to_owned(),
        members,
    });
    !shares.is_empty()
}

fn member_of(
    planned: &mut Planned,
    group: &str,
    wanted: &WantedMember,
    id: u16,
    around: &Surroundings<'_>,
) -> MemberStatus {
    let address = wanted.address;
    let link = link_to(around.links, address);
    let liveness = match (link, wanted.watched) {
        (None, _) => {
            planned.problems.push(format!(
                "{group}: next hop {address} is not on link: no interface has an address in its network"
            ));
            Liveness::NotOnLink
        }
        (Some(_), false) => Liveness::Alive,
        (Some(link), true) => {
            let ends = Ends { local: link.address.addr(), remote: address };
            match (around.alive)(&ends) {
                Some(true) => Liveness::Alive,
                Some(false) => Liveness::Dead,
                None => Liveness::Unknown,
            }
        }
    };
    if let Some(link) = link {
        let member = MemberImage { address, ifindex: link.ifindex, mtu: link.mtu };
        planned.image.members.insert(id, member);
    }
    let (node, weight) = (wanted.node.clone(), wanted.weight);
    MemberStatus { id, address, node, liveness, weight, slots: 0 }
}

/// The members that get slots. Those on the own node alone, if the gateway wants that and one is alive.
fn shares(
    members: &[MemberStatus],
    prefers_local: bool,
    node: Option<&str>,
    old: &Slots,
) -> Vec<Share> {
    let alive = |member: &MemberStatus| match member.liveness {
        Liveness::Alive => true,
        Liveness::Unknown => slots::count(old, member.id) > 0,
        Liveness::Dead | Liveness::NotOnLink => false,
    };
    let usable = |member: &&MemberStatus| member.weight > 0 && alive(member);
    let alive: Vec<_> = members.iter().filter(usable).collect();
    let here = |member: &&&MemberStatus| node.is_some() && member.node.as_deref() == node;
    let local: Vec<_> = alive.iter().filter(here).copied().collect();
    let chosen = if prefers_local && !local.is_empty() { local } else { alive };
    chosen.iter().map(|member| Share { id: member.id, weight: member.weight }).collect()
}

/// The id that a name had, else the lowest that nobody has or had.
fn free_id<T>(
    name: &str,
    before: &BTreeMap<String, T>,
    now: &BTreeMap<String, T>,
    most: T,
) -> Option<T>
where
    T: Copy + Ord + TryFrom<u32>,
{
    if let Some(id) = before.get(name) {
        return Some(*id);
    }
    let taken: BTreeSet<T> = before.values().chain(now.values()).copied().collect();
    let candidates = (1..=u32::MAX).map_while(|id| T::try_from(id).ok());
    candidates.take_while(|id| *id <= most).find(|id| !taken.contains(id))
}

/// The BFD sessions that gateways and routes ask for. We speak first, as OVN does: what a replica sends
/// is what we receive. If several ask for one, an egress gateway decides, else the last VPC.
#[must_use]
pub fn bfd_sessions(
    gateways: &BTreeMap<String, EgressGateway>,
    routers: &BTreeMap<String, Router>,
    links: &[Link],
) -> BTreeMap<Ends, Wants> {
    let mut sessions = BTreeMap::new();
    let mut want = |ours: Bfd, remote: IpAddr| {
        let Bfd { min_rx, min_tx, multiplier } = ours;
        let parameters = Parameters { min_tx, min_rx, multiplier, role: Role::Active };
        if let Some(link) = link_to(links, remote) {
            let ends = Ends { local: link.address.addr(), remote };
            sessions.insert(ends, Wants { parameters, min_ttl: MIN_TTL, admin_down: false });
        }
    };
    for router in routers.values() {
        guarded(router).for_each(|address| want(router.bfd, address));
    }
    for gateway in gateways.values() {
        let Some(bfd) = gateway.bfd else { continue };
        let ours = Bfd { min_tx: bfd.min_rx, min_rx: bfd.min_tx, ..bfd };
        let addresses = gateway.replicas.iter().flat_map(|replica| &replica.addresses);
        addresses.for_each(|address| want(ours, *address));
    }
    sessions
}

/// The next hops of a router that BFD sessions guard.
fn guarded(router: &Router) -> impl Iterator<Item = IpAddr> {
    let hops = router.routes.values().flatten();
    hops.filter(|hop| hop.guarded).map(|hop| hop.address)
}

/// For how long after its start the selector leaves flows where they were, until BFD has something to
/// say: the longest detection time and the slow start of a session.
#[must_use]
pub fn patience(
    gateways: &BTreeMap<String, EgressGateway>,
    routers: &BTreeMap<String, Router>,
) -> Duration {
    let watching = routers.values().filter(|router| guarded(router).next().is_some());
    let of_routes = watching.map(|router| router.bfd);
    let of_gateways = gateways.values().filter_map(|gateway| gateway.bfd);
    let longest = of_gateways.chain(of_routes).map(|bfd| bfd.detection()).max();
    longest.unwrap_or_default() + Duration::from_secs(3)
}
