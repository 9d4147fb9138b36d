//! The maps of the selector and its program.

use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use gateway_common::family::{Family, Ipv4, Ipv6, V4, V6};
use gateway_common::nexthop::{ChoiceKey, Group, Member};
use gateway_common::records::Counter;
use ipnet::IpNet;

use super::choices::Choices;
use super::plan::{GroupImage, Image, MemberImage};
use crate::dataplane::attach::{self, AttachKind};
use crate::dataplane::jiffies::Jiffies;
use crate::dataplane::kernel::{KernelError, load_program, program};
use crate::dataplane::maps::{MapsError, failed, gone, open, sum};
use crate::dataplane::pins::Pins;
use crate::dataplane::probe;
use crate::dataplane::raw::{Octets, Raw};

/// The maps that outlive the process.
const PINNED: [&str; 10] = [
    "SOURCES_V4",
    "SOURCES_V6",
    "DESTINATIONS_V4",
    "DESTINATIONS_V6",
    "CHOICES",
    "GROUPS",
    "MEMBERS_V4",
    "MEMBERS_V6",
    "MEMBER_COUNTERS",
    "COUNTERS",
];

/// Maps of the gateway that the object has too, and that take memory when they are made.
const UNUSED: [&str; 3] = ["SESSIONS_V4", "SESSIONS_V6", "RULE_COUNTERS"];

const PROGRAM: &str = "select";

type Prefixes<F> = LpmTrie<MapData, Octets<<F as Family>::Addr>, u32>;

/// The maps, opened from their pins.
pub struct Maps {
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
    choices: HashMap<MapData, Raw<ChoiceKey>, u32>,
    groups: HashMap<MapData, u32, Raw<Group>>,
    counters: PerCpuArray<MapData, Raw<Counter>>,
    reasons: PerCpuArray<MapData, Raw<Counter>>,
}

struct FamilyMaps<F: Family> {
    sources: Prefixes<F>,
    destinations: Prefixes<F>,
    members: HashMap<MapData, u32, Raw<Member<F>>>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// When one is missing or the privilege is.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Ok(Self {
            v4: FamilyMaps {
                sources: open(pins, "SOURCES_V4")?,
                destinations: open(pins, "DESTINATIONS_V4")?,
                members: open(pins, "MEMBERS_V4")?,
            },
            v6: FamilyMaps {
                sources: open(pins, "SOURCES_V6")?,
                destinations: open(pins, "DESTINATIONS_V6")?,
                members: open(pins, "MEMBERS_V6")?,
            },
            choices: open(pins, "CHOICES")?,
            groups: open(pins, "GROUPS")?,
            counters: open(pins, "MEMBER_COUNTERS")?,
            reasons: open(pins, "COUNTERS")?,
        })
    }

    /// The counter of a member, summed over all CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn member_counter(&self, id: u16) -> Result<Counter, MapsError> {
        sum(&self.counters, id.into()).map_err(failed("read", "MEMBER_COUNTERS".into()))
    }

    /// A counter of the program, summed over all CPUs.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn counter(&self, index: u32) -> Result<Counter, MapsError> {
        sum(&self.reasons, index).map_err(failed("read", "COUNTERS".into()))
    }

    /// Changes what differs between two images: members first, then what leads to them; what goes, in
    /// the opposite order.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a change.
    pub fn apply(&mut self, before: &Image, after: &Image) -> Result<(), MapsError> {
        for (id, member) in
            after.members.iter().filter(|(id, new)| before.members.get(id) != Some(*new))
        {
            self.set_member(*id, member)?;
        }
        for (id, group) in
            after.groups.iter().filter(|(id, new)| before.groups.get(id) != Some(*new))
        {
            self.set_group(*id, Some(group))?;
        }
        for (key, choice) in changed(&before.choices, &after.choices) {
            self.set_choice(key, Some(choice))?;
        }
        for (list, before, after) in [
            (List::Sources, &before.sources, &after.sources),
            (List::Destinations, &before.destinations, &after.destinations),
        ] {
            for (cidr, id) in after.iter().filter(|(cidr, id)| before.get(cidr) != Some(*id)) {
                self.prefix(list, *cidr, Some(*id))?;
            }
            for cidr in before.keys().filter(|cidr| !after.contains_key(cidr)) {
                self.prefix(list, *cidr, None)?;
            }
        }
        for (key, _) in
            flat(&before.choices).filter(|(key, _)| find(&after.choices, *key).is_none())
        {
            self.set_choice(key, None)?;
        }
        for id in before.groups.keys().filter(|id| !after.groups.contains_key(id)) {
            self.set_group(*id, None)?;
        }
        for (id, member) in before.members.iter().filter(|(id, _)| !after.members.contains_key(id))
        {
            self.remove_member(*id, member)?;
        }
        Ok(())
    }

    fn set_member(&mut self, id: u16, member: &MemberImage) -> Result<(), MapsError> {
        let (id, ifindex, mtu) = (u32::from(id), member.ifindex, member.mtu);
        match member.address {
            IpAddr::V4(address) => {
                let address = Ipv4 { octets: address.octets() };
                self.v4.members.insert(id, Raw(Member { address, ifindex, mtu }), 0)
            }
            IpAddr::V6(address) => {
                let address = Ipv6 { octets: address.octets() };
                self.v6.members.insert(id, Raw(Member { address, ifindex, mtu }), 0)
            }
        }
        .map_err(failed("write", "MEMBERS".into()))
    }

    fn remove_member(&mut self, id: u16, member: &MemberImage) -> Result<(), MapsError> {
        let id = u32::from(id);
        let removed = match member.address {
            IpAddr::V4(_) => self.v4.members.remove(&id),
            IpAddr::V6(_) => self.v6.members.remove(&id),
        };
        removed.or_else(gone).map_err(failed("write", "MEMBERS".into()))
    }

    fn set_group(&mut self, id: u32, group: Option<&GroupImage>) -> Result<(), MapsError> {
        match group {
            Some(group) => {
                // Any fixed number will do, as long as groups differ.
                let seed = id.wrapping_mul(0x9e37_79b9);
                let hash = group.fields() as u8;
                let group = Group { seed, hash, zero: [0; 3], slots: group.table() };
                self.groups.insert(id, Raw(group), 0)
            }
            None => self.groups.remove(&id).or_else(gone),
        }
        .map_err(failed("write", "GROUPS".into()))
    }

    fn set_choice(&mut self, key: ChoiceKey, choice: Option<u32>) -> Result<(), MapsError> {
        match choice {
            Some(choice) => self.choices.insert(Raw(key), choice, 0),
            None => self.choices.remove(&Raw(key)).or_else(gone),
        }
        .map_err(failed("write", "CHOICES".into()))
    }

    fn prefix(&mut self, list: List, cidr: IpNet, value: Option<u32>) -> Result<(), MapsError> {
        let length = u32::from(cidr.prefix_len());
        match cidr {
            IpNet::V4(cidr) => {
                let key = Key::new(length, Octets(Ipv4 { octets: cidr.network().octets() }));
                let map = self.v4.list(list);
                match value {
                    Some(value) => map.insert(&key, value, 0),
                    None => map.remove(&key).or_else(gone),
                }
            }
            IpNet::V6(cidr) => {
                let key = Key::new(length, Octets(Ipv6 { octets: cidr.network().octets() }));
                let map = self.v6.list(list);
                match value {
                    Some(value) => map.insert(&key, value, 0),
                    None => map.remove(&key).or_else(gone),
                }
            }
        }
        .map_err(failed("write", format!("{list:?}")))
    }
}

/// A list of networks.
#[derive(Clone, Copy, Debug)]
enum List {
    Sources,
    Destinations,
}

impl<F: Family> FamilyMaps<F> {
    const fn list(&mut self, list: List) -> &mut Prefixes<F> {
        match list {
            List::Sources => &mut self.sources,
            List::Destinations => &mut self.destinations,
        }
    }
}

fn flat(choices: &Choices) -> impl Iterator<Item = (ChoiceKey, u32)> {
    choices.iter().flat_map(|(source, row)| {
        let key = |destination| ChoiceKey { source: *source, destination };
        row.iter().map(move |(destination, choice)| (key(*destination), *choice))
    })
}

fn find(choices: &Choices, key: ChoiceKey) -> Option<u32> {
    choices.get(&key.source)?.get(&key.destination).copied()
}

/// The choices that are new or different.
fn changed<'c>(
    before: &'c Choices,
    after: &'c Choices,
) -> impl Iterator<Item = (ChoiceKey, u32)> + 'c {
    flat(after).filter(|(key, choice)| find(before, *key) != Some(*choice))
}

/// The program and its maps.
pub struct Selector {
    pins: Pins,
    ebpf: Ebpf,
    /// The maps.
    pub maps: Maps,
}

impl Selector {
    /// Adopts the pinned maps or makes them, and loads the program. Attaches nothing.
    ///
    /// # Errors
    ///
    /// When something is missing or the kernel refuses; nothing that runs is changed then.
    pub fn open(name: &str, object: &[u8]) -> Result<Self, KernelError> {
        probe::check()?;
        let pins = Pins::of_selector(name);
        pins.create()?;
        let jiffies = Jiffies::measure().unwrap_or_default();
        let mut loader = EbpfLoader::new();
        jiffies.tell(&mut loader);
        loader.btf(None);
        for map in PINNED {
            loader.map_pin_path(map, pins.map(map));
        }
        for map in UNUSED {
            loader.map_max_entries(map, 1);
        }
        let object = loader.load(object);
        let mut ebpf = object.map_err(|error| KernelError::Object(Box::new(error)))?;
        load_program(program(&mut ebpf, PROGRAM)?, PROGRAM)?;
        let maps = Maps::open(&pins)?;
        Ok(Self { pins, ebpf, maps })
    }

    /// Puts the program on an interface, in place of the one that is there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(&mut self, interface: &str) -> Result<AttachKind, KernelError> {
        // bpffs refuses dots in names.
        let pin = self.pins.link(&interface.replace('.', "_"));
        let program: &mut SchedClassifier = program(&mut self.ebpf, PROGRAM)?;
        Ok(attach::attach(program, interface, &pin, true)?)
    }
}
