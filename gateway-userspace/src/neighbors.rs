//! Keeps what XDP knows of neighbours as the kernel has it.
//!
//! ```text
//!  kernel ──RTM_NEWNEIGH, RTM_DELNEIGH──► NEIGHBORS_V4/V6 ──► XDP sends to the MAC address
//!    ▲                                          │ used
//!    └────────── NTF_USE: is it still there? ◄──┘        every 2 s; all of it again every 10 s
//! ```
//!
//! The kernel does not see the packets that XDP sends, so it would not notice when a neighbour that
//! only XDP uses is gone or has another MAC address. For each neighbour in use it is therefore asked,
//! every two seconds, to treat it as used: it probes what it has not heard of for a while, as it does
//! for its own traffic, and says what comes out. A neighbour that fails is taken from XDP at once.
//!
//! XDP believes all of this for [`PATIENCE`] after the last round. If the process dies, or hangs, XDP
//! leaves everything to TC from then on, which asks the kernel for each packet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aya::maps::MapError;
use futures_util::stream::StreamExt as _;
use gateway_common::records::{Ticks, USED_TICKS, ticks_from_secs};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::clock;
use crate::dataplane::neighbors::{Addresses, Hop, NeighborMaps};
use crate::netlink::{self, Neighbor, NetlinkError};

/// How often neighbours in use are looked at, and everything is vouched for.
const ROUND: Duration = Duration::from_secs(2);
/// After how many rounds everything is read again, whatever was heard.
const FULL: u32 = 5;
/// For how many seconds XDP goes on with what it knows when nobody vouches for it any more.
pub const PATIENCE: u32 = 15;

/// The interfaces as XDP must know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// MAC address of the internal interface.
    pub internal_mac: [u8; 6],
    /// MAC address of the external interface.
    pub external_mac: [u8; 6],
    /// Those that packets may be sent by, with their MAC addresses.
    pub egress: BTreeMap<u32, [u8; 6]>,
}

/// Starts a task that keeps the maps up to date until the process ends. Whenever `interfaces`
/// changes, it begins anew.
///
/// # Errors
///
/// When there is no socket to be had.
pub fn keep(
    maps: NeighborMaps,
    interfaces: watch::Receiver<Interfaces>,
) -> Result<(), NetlinkError> {
    let (connection, handle, messages) =
        new_multicast_connection(&[MulticastGroup::Neigh]).map_err(NetlinkError::Socket)?;
    tokio::spawn(connection);
    let mut keeper =
        Keeper { maps, handle, interfaces, permanent: BTreeSet::new(), complained: false };
    tokio::spawn(async move {
        let mut messages = messages.map(|(message, _)| message.payload);
        let mut ticks = interval(ROUND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for round in 0_u32.. {
            let mut full = round.is_multiple_of(FULL);
            loop {
                tokio::select! {
                    biased;
                    changed = keeper.interfaces.changed() => match changed {
                        Ok(()) => keeper.all().await,
                        Err(_) => return,
                    },
                    Some(message) = messages.next() => full |= !keeper.hear(message),
                    _ = ticks.tick() => break,
                }
            }
            if full {
                keeper.all().await;
            }
            keeper.round().await;
        }
    });
    Ok(())
}

struct Keeper {
    maps: NeighborMaps,
    handle: Handle,
    interfaces: watch::Receiver<Interfaces>,
    /// Entries that an administrator made: the kernel never probes them, and asking it to would make
    /// ordinary ones of them.
    permanent: BTreeSet<Hop>,
    complained: bool,
}

impl Keeper {
    /// Takes over one message; `false` if some were lost.
    fn hear(&mut self, message: NetlinkPayload<RouteNetlinkMessage>) -> bool {
        let (message, is_there) = match &message {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                (message, true)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => {
                (message, false)
            }
            NetlinkPayload::Overrun(_) => return false,
            _ => return true,
        };
        let Some(neighbor) = netlink::neighbor(message) else { return true };
        let hop = hop(&neighbor);
        if is_there && neighbor.permanent {
            self.permanent.insert(hop);
        } else {
            self.permanent.remove(&hop);
        }
        let addresses = self.addresses(&neighbor).filter(|_| is_there);
        if addresses.is_some() || self.interfaces.borrow().egress.contains_key(&hop.0) {
            let result = self.maps.set(hop, addresses, long_ago());
            self.report(result);
        }
        true
    }

    /// Reads all neighbours and makes the maps say the same.
    async fn all(&mut self) {
        let Ok(list) = netlink::neighbors(&self.handle).await else { return };
        self.permanent = list.iter().filter(|one| one.permanent).map(hop).collect();
        let wanted: BTreeMap<Hop, Addresses> =
            list.iter().filter_map(|one| Some((hop(one), self.addresses(one)?))).collect();
        let result = self.write(&wanted);
        self.report(result);
    }

    fn write(&mut self, wanted: &BTreeMap<Hop, Addresses>) -> Result<(), MapError> {
        let devices: BTreeSet<u32> = self.interfaces.borrow().egress.keys().copied().collect();
        self.maps.set_devices(&devices)?;
        let known = self.maps.read()?;
        for hop in known.keys().filter(|hop| !wanted.contains_key(hop)) {
            self.maps.set(*hop, None, 0)?;
        }
        for (hop, addresses) in wanted {
            if known.get(hop).is_none_or(|(there, _)| there != addresses) {
                self.maps.set(*hop, Some(*addresses), long_ago())?;
            }
        }
        Ok(())
    }

    /// Has neighbours that are in use confirmed, and vouches for everything.
    async fn round(&mut self) {
        let known = match self.maps.read() {
            Ok(known) => known,
            Err(error) => return self.report(Err(error)),
        };
        let now = clock::ticks();
        let recent = 2 * USED_TICKS + ticks_from_secs(2);
        for ((ifindex, address), (_, used)) in known {
            if now.wrapping_sub(used) > recent || self.permanent.contains(&(ifindex, address)) {
                continue;
            }
            netlink::look_for(&self.handle, ifindex, address).await;
        }
        let (internal, external) = {
            let interfaces = self.interfaces.borrow();
            (interfaces.internal_mac, interfaces.external_mac)
        };
        let until = clock::ticks().wrapping_add(ticks_from_secs(PATIENCE));
        let result = self.maps.vouch(until, internal, external);
        self.report(result);
    }

    /// How a frame to this neighbour begins, if the kernel would send to it at once.
    fn addresses(&self, neighbor: &Neighbor) -> Option<Addresses> {
        let own = *self.interfaces.borrow().egress.get(&neighbor.ifindex)?;
        neighbor.mac.filter(|_| neighbor.answers == Some(true)).map(|mac| (mac, own))
    }

    /// A map that is full or gone means that TC does more; once is enough to say so.
    fn report(&mut self, result: Result<(), MapError>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.complained, true)
        {
            eprintln!("neighbours of XDP: {error}; what it does not know is left to TC");
        }
    }
}

/// A time of last use that says: not in use.
fn long_ago() -> Ticks {
    clock::ticks().wrapping_sub(Ticks::MAX / 2)
}

const fn hop(neighbor: &Neighbor) -> Hop {
    (neighbor.ifindex, neighbor.address)
}
