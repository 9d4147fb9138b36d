//! Interfaces, addresses and routes of the network namespace that this process is in.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol,
    RouteScope, RouteType,
};
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, Error, Handle, MulticastGroup, RouteMessageBuilder, new_connection,
    new_multicast_connection,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::dataplane::xdp::XdpOnInterface;

/// A question to the kernel or an order was refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("failed to open a netlink socket")]
    Socket(#[source] io::Error),
    /// There is no such interface.
    #[error("interface {0} does not exist in this network namespace")]
    NoInterface(String),
    /// The kernel refused.
    #[error("failed to {operation} {object}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The cause.
        source: io::Error,
    },
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// What kind of virtual interface it is; `None` for hardware.
    pub kind: Option<String>,
    /// Its link-layer address, if it is an Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Whether it is up.
    pub up: bool,
    /// Its XDP program, if it has one.
    pub xdp: Option<XdpOnInterface>,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Next hop, if there is one.
    pub via: Option<IpAddr>,
    /// Index of the interface.
    #[serde(skip)]
    pub ifindex: u32,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.destination.prefix_len() == 0 {
            write!(f, "default")?;
        } else {
            write!(f, "{}", self.destination)?;
        }
        self.via.map_or(Ok(()), |via| write!(f, " via {via}"))
    }
}

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Index of the interface that it is behind.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Option<[u8; 6]>,
    /// Whether it answers; `None` while that is being found out.
    pub answers: Option<bool>,
    /// Whether an administrator has made the entry.
    pub permanent: bool,
}

/// A netlink connection, served by a task of the current runtime.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// When there is no socket to be had.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The interface of that name.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NoInterface`] if there is none.
    pub async fn interface(&self, name: &str) -> Result<Interface, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(interface(name, &link)),
            Ok(None) => Err(NetlinkError::NoInterface(name.to_owned())),
            Err(error) if code(&error) == Some(Errno::ENODEV) => {
                Err(NetlinkError::NoInterface(name.to_owned()))
            }
            Err(error) => Err(refused("read interface", name.to_owned())(error)),
        }
    }

    /// All interfaces.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetlinkError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(refused("list", "the interfaces".into()))?;
        Ok(links.iter().map(|link| interface(&name_of(link), link)).collect())
    }

    /// The addresses of an interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn addresses(&self, ifindex: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let list = self.handle.address().get().set_link_index_filter(ifindex).execute();
        let messages: Vec<AddressMessage> = list
            .try_collect()
            .await
            .map_err(refused("list the addresses of interface", format!("#{ifindex}")))?;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Adds an address. Nothing happens if it is there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn add_address(&self, ifindex: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(ifindex, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            // It must work at once, and our own announcement tells whoever holds it.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
            // Deprecated (RFC 4862 section 5.5.4): the gateway's own connections must leave with its
            // own address, where the kernel would take the last one that was added.
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
            request.message_mut().attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
        accept(request.execute().await, Errno::EEXIST)
            .map_err(refused("add address", address.to_string()))
    }

    /// Removes an address. Nothing happens if it is gone.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_address(&self, ifindex: u32, address: IpNet) -> Result<(), NetlinkError> {
        let message = match address {
            IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(ifindex)
                .address(net.addr(), net.prefix_len())
                .build(),
            IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(ifindex)
                .address(net.addr(), net.prefix_len())
                .build(),
        };
        accept(self.handle.address().del(message).execute().await, Errno::EADDRNOTAVAIL)
            .map_err(refused("remove address", address.to_string()))
    }

    /// The unicast routes of the main table, of both families.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for query in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut list = self.handle.route().get(query).execute();
            while let Some(message) =
                list.try_next().await.map_err(refused("list", "the routes".into()))?
            {
                routes.extend(route(&message));
            }
        }
        Ok(routes)
    }

    /// The routers of all default routes of the main table, with the interfaces that lead to them; of one
    /// with several next hops, all.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn default_routers(&self) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let mut routers = Vec::new();
        for query in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let list = self.handle.route().get(query).execute();
            let list: Vec<RouteMessage> =
                list.try_collect().await.map_err(refused("list", "the routes".into()))?;
            let default = |message: &&RouteMessage| message.header.destination_prefix_length == 0;
            routers.extend(list.iter().filter(default).flat_map(routers_of));
        }
        Ok(routers)
    }

    /// The neighbours of an interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn neighbors(&self, ifindex: u32) -> Result<Vec<Neighbor>, NetlinkError> {
        let all = neighbors(&self.handle).await?;
        Ok(all.into_iter().filter(|one| one.ifindex == ifindex).collect())
    }

    /// As the function of that name.
    pub async fn look_for(&self, ifindex: u32, address: IpAddr) {
        look_for(&self.handle, ifindex, address).await;
    }

    /// Adds a route, on link if its next hop is not in a network of the interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; if the destination has a route already, too.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.handle
            .route()
            .add(route_message(route))
            .execute()
            .await
            .map_err(refused("add route", route.to_string()))
    }

    /// Adds a route as [`Netlink::add_route`] does, in place of the one that the destination has.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let add = self.handle.route().add(route_message(route)).replace();
        add.execute().await.map_err(refused("replace route", route.to_string()))
    }

    /// Removes a route. Nothing happens if it is gone.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_route(&self, route: &Route) -> Result<(), NetlinkError> {
        accept(self.handle.route().del(route_message(route)).execute().await, Errno::ESRCH)
            .map_err(refused("remove route", route.to_string()))
    }
}

/// Receives `()` whenever a link, address, route or routing rule changed.
///
/// # Errors
///
/// When there is no socket to be had.
pub fn changes() -> Result<mpsc::Receiver<()>, NetlinkError> {
    let (connection, _handle, mut messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ])
    .map_err(NetlinkError::Socket)?;
    tokio::spawn(connection);
    // One slot: a change that waits covers those that come after it.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while messages.next().await.is_some() {
            if let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                return;
            }
        }
    });
    Ok(receiver)
}

fn name_of(link: &LinkMessage) -> String {
    let names = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    names.unwrap_or_else(|| format!("#{}", link.header.index))
}

fn interface(name: &str, link: &LinkMessage) -> Interface {
    let mut found = Interface {
        name: name.to_owned(),
        index: link.header.index,
        mtu: 0,
        kind: None,
        mac: None,
        up: link.header.flags.contains(LinkFlags::Up),
        xdp: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(octets) => found.mac = octets.as_slice().try_into().ok(),
            LinkAttribute::Xdp(about) => found.xdp = xdp(about),
            LinkAttribute::LinkInfo(about) => {
                found.kind = about.iter().find_map(|one| match one {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    found
}

fn xdp(attributes: &[LinkXdp]) -> Option<XdpOnInterface> {
    let generic = |one: &LinkXdp| matches!(one, LinkXdp::Attached(XdpAttached::SocketBuffer));
    let program_id = attributes.iter().find_map(|one| match one {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    })?;
    Some(XdpOnInterface { program_id, generic: attributes.iter().any(generic) })
}

fn address(message: &AddressMessage) -> Option<IpNet> {
    // On a point-to-point link `Address` is the peer; `Local` is ours wherever it is there.
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let v4 = header.address_family == netlink_packet_route::AddressFamily::Inet;
    let any = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (mut to, mut via, mut ifindex): (IpAddr, _, _) = (any, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => ifindex = *index,
            _ => {}
        }
    }
    Some(Route {
        destination: IpNet::new(to, header.destination_prefix_length).ok()?,
        via,
        ifindex,
    })
}

fn routers_of(message: &RouteMessage) -> Vec<(u32, IpAddr)> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let via = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })
    };
    let oif = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let mut routers: Vec<_> = oif.zip(via(&message.attributes)).into_iter().collect();
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            let hop = |hop: &RouteNextHop| Some((hop.interface_index, via(&hop.attributes)?));
            routers.extend(hops.iter().filter_map(hop));
        }
    }
    routers
}

/// All neighbours.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) async fn neighbors(handle: &Handle) -> Result<Vec<Neighbor>, NetlinkError> {
    let list = handle.neighbours().get().execute();
    let list: Vec<NeighbourMessage> =
        list.try_collect().await.map_err(refused("list", "the neighbours".into()))?;
    Ok(list.iter().filter_map(neighbor).collect())
}

/// Has the kernel look for a neighbour, or see whether it is still there. Not for a permanent one: it
/// would become an ordinary one.
pub(crate) async fn look_for(handle: &Handle, ifindex: u32, address: IpAddr) {
    let add = handle.neighbours().add(ifindex, address).state(NeighbourState::None);
    let request = add.flags(NeighbourFlags::Use).kind(RouteType::Unspec).replace();
    // What comes out is among the neighbours, and a message of its own.
    let _ = request.execute().await;
}

/// What a message says of a neighbour; `None` of what is no IP neighbour.
pub(crate) fn neighbor(message: &NeighbourMessage) -> Option<Neighbor> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(octets) => mac = octets.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let answers = match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Stale
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent => Some(true),
        NeighbourState::Failed => Some(false),
        _ => None,
    };
    let permanent = message.header.state == NeighbourState::Permanent;
    let ifindex = message.header.ifindex;
    Some(Neighbor { ifindex, address: address?, mac, answers, permanent })
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let (to, length) = (route.destination.addr(), route.destination.prefix_len());
    let mut message = match (to, route.via) {
        (IpAddr::V4(to), via) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, length);
            match via {
                Some(IpAddr::V4(via)) => builder.gateway(via).onlink(),
                Some(IpAddr::V6(via)) => builder.via(via).onlink(),
                None => builder.scope(RouteScope::Link),
            }
            .output_interface(route.ifindex)
            .build()
        }
        (IpAddr::V6(to), via) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, length);
            match via {
                Some(IpAddr::V6(via)) => builder.gateway(via).onlink(),
                Some(IpAddr::V4(_)) | None => builder,
            }
            .output_interface(route.ifindex)
            .build()
        }
    };
    message.header.protocol = RouteProtocol::Static;
    message
}

fn code(error: &Error) -> Option<Errno> {
    match error {
        Error::NetlinkError(message) => message.to_io().raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

fn accept(result: Result<(), Error>, harmless: Errno) -> Result<(), Error> {
    match result {
        Err(error) if code(&error) == Some(harmless) => Ok(()),
        other => other,
    }
}

fn refused(operation: &'static str, object: String) -> impl FnOnce(Error) -> NetlinkError {
    move |error| {
        let source = match &error {
            Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        NetlinkError::Refused { operation, object, source }
    }
}
