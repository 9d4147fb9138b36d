//! The maps from which XDP knows neighbours and interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use gateway_common::family::{Family, V4, V6};
use gateway_common::records::{Neighbor, Ticks, XdpFacts};
use gateway_common::verdict::NextHop;

use super::pins::Pins;
use super::raw::Raw;

/// Ethernet addresses as a frame to a neighbour begins: its own, then that of our interface.
pub type Addresses = ([u8; 6], [u8; 6]);

/// A next hop of either family.
pub type Hop = (u32, IpAddr);

/// `NEIGHBORS_V4`, `NEIGHBORS_V6`, `DEVICES` and `XDP_FACTS`.
pub struct NeighborMaps {
    v4: Neighbors<V4>,
    v6: Neighbors<V6>,
    devices: DevMapHash<MapData>,
    facts: Array<MapData, Raw<XdpFacts>>,
}

type Neighbors<F> = HashMap<MapData, Raw<NextHop<F>>, Raw<Neighbor>>;

impl NeighborMaps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// When one is missing or is not what it should be.
    pub fn open(pins: &Pins) -> Result<Self, MapError> {
        Ok(Self {
            v4: open(pins, "NEIGHBORS_V4")?,
            v6: open(pins, "NEIGHBORS_V6")?,
            devices: open(pins, "DEVICES")?,
            facts: open(pins, "XDP_FACTS")?,
        })
    }

    /// Vouches for everything until then.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn vouch(
        &mut self,
        until: Ticks,
        internal_mac: [u8; 6],
        external_mac: [u8; 6],
    ) -> Result<(), MapError> {
        let last = self.facts.get(&0, 0)?.0.until;
        let until = if until == last { until.wrapping_add(1) } else { until };
        self.facts.set(0, Raw(XdpFacts { until, internal_mac, external_mac }), 0)
    }

    /// Tells every CPU that what it remembers of neighbours may be wrong, by vouching for one tick longer.
    /// For maps that nobody vouches for that means nothing.
    fn forget(&mut self) -> Result<(), MapError> {
        let facts = self.facts.get(&0, 0)?.0;
        self.vouch(facts.until, facts.internal_mac, facts.external_mac)
    }

    /// Makes `devices` the interfaces that packets are redirected to.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one.
    pub fn set_devices(&mut self, devices: &BTreeSet<u32>) -> Result<(), MapError> {
        let there: BTreeSet<u32> = self.devices.keys().collect::<Result<_, _>>()?;
        for gone in there.difference(devices) {
            ignore_missing(self.devices.remove(*gone))?;
        }
        for device in devices {
            self.devices.insert(*device, *device, None, 0).map_err(|error| match error {
                aya::maps::xdp::XdpMapError::MapError(error) => error,
                other => MapError::IoError(std::io::Error::other(other)),
            })?;
        }
        Ok(())
    }

    /// What is known, with the time of the last use.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn read(&self) -> Result<BTreeMap<Hop, (Addresses, Ticks)>, MapError> {
        let known = |neighbor: Neighbor| ((neighbor.destination, neighbor.source), neighbor.used);
        let mut all = BTreeMap::new();
        for entry in &self.v4 {
            let (hop, neighbor) = entry?;
            let address = std::net::Ipv4Addr::from(hop.0.address);
            all.insert((hop.0.ifindex, address.into()), known(neighbor.0));
        }
        for entry in &self.v6 {
            let (hop, neighbor) = entry?;
            let address = std::net::Ipv6Addr::from(hop.0.address);
            all.insert((hop.0.ifindex, address.into()), known(neighbor.0));
        }
        Ok(all)
    }

    /// Writes a neighbour, or removes it, and has every CPU forget what it knew of it. One that was there
    /// keeps the time of its last use, a new one was never used: it gets `unused`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; a full map is one reason.
    pub fn set(
        &mut self,
        hop: Hop,
        addresses: Option<Addresses>,
        unused: Ticks,
    ) -> Result<(), MapError> {
        let neighbor =
            addresses.map(|(destination, source)| Neighbor { destination, source, used: unused });
        let ifindex = hop.0;
        match hop.1 {
            IpAddr::V4(ip) => {
                write(&mut self.v4, NextHop { ifindex, address: ip.into() }, neighbor)?;
            }
            IpAddr::V6(ip) => {
                write(&mut self.v6, NextHop { ifindex, address: ip.into() }, neighbor)?;
            }
        }
        self.forget()
    }
}

fn open<M: TryFrom<Map, Error = MapError>>(pins: &Pins, name: &str) -> Result<M, MapError> {
    MapData::from_pin(pins.map(name)).and_then(Map::from_map_data).and_then(M::try_from)
}

fn write<F: Family>(
    map: &mut Neighbors<F>,
    hop: NextHop<F>,
    neighbor: Option<Neighbor>,
) -> Result<(), MapError> {
    match neighbor {
        Some(mut neighbor) => {
            if let Ok(there) = map.get(&Raw(hop), 0) {
                neighbor.used = there.0.used;
            }
            map.insert(Raw(hop), Raw(neighbor), 0)
        }
        None => ignore_missing(map.remove(&Raw(hop))),
    }
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}
