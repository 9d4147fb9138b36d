//! Egress gateways, links and liveness -> what the maps of the selector hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use gateway_common::nexthop::{HashFields, MEMBER_IDS, SLOTS};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::slots::{self, Share, Slots};
use crate::bfd::engine::{Ends, Wanted};
use crate::bfd::session::{Parameters, Role};
use crate::desired::{EgressGateway, Replica};

/// Neighbours on the link only (RFC 5881 section 5).
const MIN_TTL: u8 = 255;

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
    /// Who leaves by which group.
    pub sources: BTreeMap<IpNet, u32>,
    /// What is inside the VPCs.
    pub inside: BTreeSet<IpNet>,
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
    /// The `VpcEgressGateway`.
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
    around: &Surroundings<'_>,
    before: &Image,
) -> Planned {
    let mut planned = Planned::default();
    for gateway in gateways.values() {
        planned.image.inside.extend(&gateway.inside);
        for ipv4 in [true, false] {
            if gateway.sources.keys().any(|cidr| cidr.addr().is_ipv4() == ipv4) {
                group(&mut planned, gateway, ipv4, around, before);
            }
        }
    }
    planned
}

fn group(
    planned: &mut Planned,
    gateway: &EgressGateway,
    ipv4: bool,
    around: &Surroundings<'_>,
    before: &Image,
) {
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let name = format!("{}/{family}", gateway.name);
    let id = free_id(&name, &before.group_ids, &planned.image.group_ids, u32::MAX);
    let Some(id) = id else { return };
    planned.image.group_ids.insert(name.clone(), id);
    let old = before.groups.get(&id).map_or([0; SLOTS], GroupImage::table);
    let mut members = Vec::new();
    for replica in &gateway.replicas {
        let address = replica.addresses.iter().find(|address| address.is_ipv4() == ipv4);
        let Some(&address) = address else { continue };
        let member = format!("{name}/{address}");
        let ids = (&before.member_ids, &planned.image.member_ids);
        let most = u16::try_from(MEMBER_IDS - 1).unwrap_or(u16::MAX);
        let Some(id) = free_id(&member, ids.0, ids.1, most) else {
            planned.problems.push(format!("{member}: more than {most} next hops"));
            continue;
        };
        planned.image.member_ids.insert(member, id);
        members.push(member_of(planned, gateway, replica, (id, address), around));
    }
    let shares = shares(&members, gateway, around.node, &old);
    if shares.is_empty() {
        planned.problems.push(format!("{name}: no replica is alive, its traffic is dropped"));
    }
    let slots = slots::assign(&old, &shares);
    members.iter_mut().for_each(|member| member.slots = slots::count(&slots, member.id));
    let by_source = gateway.hash == HashFields::Source;
    planned.image.groups.insert(id, GroupImage { by_source, slots: slots.to_vec() });
    let sources = gateway.sources.keys().filter(|cidr| cidr.addr().is_ipv4() == ipv4);
    planned.image.sources.extend(sources.map(|cidr| (*cidr, id)));
    planned.groups.push(GroupStatus {
        gateway: gateway.name.clone(),
        family: family.to_owned(),
        hash: if by_source { "source" } else { "5-tuple" }.to_owned(),
        members,
    });
}

fn member_of(
    planned: &mut Planned,
    gateway: &EgressGateway,
    replica: &Replica,
    (id, address): (u16, IpAddr),
    around: &Surroundings<'_>,
) -> MemberStatus {
    let link = link_to(around.links, address);
    let liveness = match (link, gateway.bfd) {
        (None, _) => {
            let name = &gateway.name;
            planned.problems.push(format!(
                "{name}: next hop {address} is not on link: no interface has an address in its network"
            ));
            Liveness::NotOnLink
        }
        (Some(_), None) => Liveness::Alive,
        (Some(link), Some(_)) => {
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
    let (node, weight) = (replica.node.clone(), replica.weight);
    MemberStatus { id, address, node, liveness, weight, slots: 0 }
}

/// The members that get slots. Those on the own node alone, if the gateway wants that and one is alive.
fn shares(
    members: &[MemberStatus],
    gateway: &EgressGateway,
    node: Option<&str>,
    old: &Slots,
) -> Vec<Share> {
    let usable = |member: &&MemberStatus| match member.liveness {
        Liveness::Alive => true,
        Liveness::Unknown => slots::count(old, member.id) > 0,
        Liveness::Dead | Liveness::NotOnLink => false,
    };
    let alive: Vec<_> = members.iter().filter(usable).collect();
    let here = |member: &&&MemberStatus| node.is_some() && member.node.as_deref() == node;
    let local: Vec<_> = alive.iter().filter(here).copied().collect();
    let chosen = if gateway.local && !local.is_empty() { local } else { alive };
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

/// The BFD sessions that the gateways ask for. We speak first, as OVN does: what a replica sends is
/// what we receive.
#[must_use]
pub fn bfd_sessions(
    gateways: &BTreeMap<String, EgressGateway>,
    links: &[Link],
) -> BTreeMap<Ends, Wanted> {
    let mut sessions = BTreeMap::new();
    for gateway in gateways.values() {
        let Some(bfd) = gateway.bfd else { continue };
        let parameters = Parameters {
            min_tx: bfd.min_rx,
            min_rx: bfd.min_tx,
            multiplier: bfd.multiplier,
            role: Role::Active,
        };
        for &remote in gateway.replicas.iter().flat_map(|replica| &replica.addresses) {
            if let Some(link) = link_to(links, remote) {
                let ends = Ends { local: link.address.addr(), remote };
                let wanted = Wanted { parameters, min_ttl: MIN_TTL, admin_down: false };
                sessions.insert(ends, wanted);
            }
        }
    }
    sessions
}

/// For how long after its start the selector leaves flows where they were, until BFD has something to
/// say: the longest detection time and the slow start of a session.
#[must_use]
pub fn patience(gateways: &BTreeMap<String, EgressGateway>) -> Duration {
    let detection = gateways.values().filter_map(|gateway| gateway.bfd);
    let longest = detection.map(|bfd| bfd.min_tx.max(bfd.min_rx) * u32::from(bfd.multiplier)).max();
    longest.unwrap_or_default() + Duration::from_secs(3)
}
