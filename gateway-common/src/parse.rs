//! Bytes to [`Parsed`]: whose packet it is, and where its fields lie.

use crate::{
    checksum::L4Checksum,
    family::{Address, Family},
    fragment,
    packet::Packet,
    tuple::{Direction, Endpoints, Tuple},
    verdict::{DropReason, Exit, PassReason},
    wire::{
        ethernet,
        transport::{self, IcmpStart, Ports, TcpStart, UdpHeader},
    },
};

/// Place of a packet in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment: the layer-4 header is there.
    First,
    /// A later one: no layer-4 header, so no ports.
    Later,
    /// A later one whose ports are known from the first: see [`crate::fragment`].
    Known,
}

impl Fragment {
    /// From the offset in units of 8 bytes and the "more fragments" bit.
    #[inline(always)]
    #[must_use]
    pub const fn from_parts(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// Where the port or id of an endpoint lies in the layer-4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortFields {
    /// Both ports at the start: TCP, UDP, UDP-Lite, DCCP.
    Both,
    /// The id of an ICMP query on its way there: it is the source's.
    SourceId,
    /// The id of an ICMP query on its way back: it is the destination's.
    DestinationId,
    /// An ICMP error: they are in the packet that it quotes.
    Quoted,
    /// An ICMP redirect: advice for the next hop, with a quote that nobody translates.
    Redirect,
    /// None: another protocol, a later fragment, an ICMP message that is neither query nor error.
    None,
}

/// What the data path needs to know of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Parsed<F: Family> {
    /// The flow, with the direction of arrival.
    pub tuple: Tuple<F>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// Place in a fragmented datagram.
    pub fragment: Fragment,
    /// Whether the identification means nothing (RFC 6864 section 4): it is not a fragment, and
    /// cannot become one.
    pub atomic: bool,
    /// Whether it is larger than what its next link takes, so that only fragments of it can leave.
    pub oversize: bool,
    /// Where the ports are.
    pub ports: PortFields,
    /// How the layer-4 checksum behaves.
    pub checksum: L4Checksum,
    /// Where it lies, in bytes from the start of the layer-4 header.
    pub checksum_at: u8,
    /// Offset of the layer-4 header in bytes from the start of the frame.
    pub l4: u16,
    /// Offset of the IPv6 fragment header; of no meaning in packets without one.
    pub fragment_at: u16,
}

impl<F: Family> Parsed<F> {
    /// Whether this packet can belong to a session: its ports are known, or it has none to know.
    #[inline(always)]
    #[must_use]
    pub fn is_trackable(&self) -> bool {
        if self.fragment == Fragment::Known {
            return true;
        }
        self.fragment != Fragment::Later
            && (self.tuple.protocol != F::ICMP
                || matches!(self.ports, PortFields::SourceId | PortFields::DestinationId))
    }

    /// Whether a session can be made for this packet. An answer to an ICMP query begins nothing:
    /// its only id is the one that the other side chose. A later fragment begins nothing either.
    #[inline(always)]
    #[must_use]
    pub fn can_open(&self) -> bool {
        self.fragment != Fragment::Known
            && self.is_trackable()
            && self.ports != PortFields::DestinationId
    }
}

impl<F: Family> Parsed<F> {
    /// Offset of the layer-4 checksum in bytes from the start of the frame.
    #[inline(always)]
    #[must_use]
    pub fn checksum_offset(&self) -> usize {
        usize::from(self.l4) + usize::from(self.checksum_at)
    }

    /// Nothing known yet but the direction.
    #[inline(always)]
    #[must_use]
    pub fn new(direction: Direction) -> Self {
        Self {
            tuple: Tuple::new(Endpoints::default(), 0, direction),
            ttl: 0,
            tcp_flags: 0,
            fragment: Fragment::Whole,
            atomic: true,
            oversize: false,
            ports: PortFields::None,
            checksum: L4Checksum::None,
            checksum_at: 0,
            l4: 0,
            fragment_at: 0,
        }
    }

    /// Forgets a former packet: everything that [`parse`] may leave as it is.
    #[inline(always)]
    pub fn clear(&mut self, direction: Direction) {
        self.tuple.endpoints.source_port = 0;
        self.tuple.endpoints.destination_port = 0;
        self.tuple.direction = direction as u8;
        self.tuple.zero = 0;
        self.tcp_flags = 0;
        self.fragment = Fragment::Whole;
        self.oversize = false;
        self.ports = PortFields::None;
        self.checksum = L4Checksum::None;
        self.checksum_at = 0;
    }
}

/// Reads a frame into `parsed`, which says by which interface it came in.
///
/// # Errors
///
/// An [`Exit`] for what is not ours to translate and for what is malformed.
#[inline(always)]
pub fn parse<F: Family, P: Packet>(packet: &mut P, parsed: &mut Parsed<F>) -> Result<(), Exit> {
    if !packet.is_for_this_host() {
        return Err(PassReason::NotForThisHost.into());
    }
    F::parse(packet, ethernet::BYTES, parsed)?;
    let ends = &parsed.tuple.endpoints;
    if ends.destination.is_special() || ends.source.is_special() {
        return Err(PassReason::Special.into());
    }
    if parsed.fragment != Fragment::Whole && !fragment::is_sound(packet, parsed) {
        return Err(DropReason::FragmentTiny.into());
    }
    if parsed.fragment == Fragment::Later {
        return header_ends(packet, parsed);
    }
    parse_transport(packet, parsed)
}

/// Nothing of layer 4 is read, but the network header that says where it begins must be whole.
#[inline(always)]
fn header_ends<F: Family, P: Packet>(packet: &mut P, parsed: &Parsed<F>) -> Result<(), Exit> {
    packet.at::<[u8; 0]>(usize::from(parsed.l4))?;
    Ok(())
}

/// Reads ports or query id and TCP flags, and finds the checksum.
///
/// Everything that is to be rewritten must be there: a packet that ends before its checksum opens no
/// session and counts in none.
#[inline(always)]
fn parse_transport<F: Family, P: Packet>(
    packet: &mut P,
    parsed: &mut Parsed<F>,
) -> Result<(), Exit> {
    parse_ports(packet, parsed)?;
    let l4 = usize::from(parsed.l4);
    if parsed.tuple.protocol == transport::TCP {
        parsed.tcp_flags = packet.at::<TcpStart>(l4)?.flags;
    } else if parsed.ports == PortFields::Both {
        packet.at::<UdpHeader>(l4)?;
    }
    Ok(())
}

/// Reads ports or query id, and finds the checksum, from the first eight bytes of layer 4.
///
/// # Errors
///
/// An [`Exit`] if they are not there, or if the message never leaves its link.
#[inline(always)]
pub(crate) fn parse_ports<F: Family, P: Packet>(
    packet: &mut P,
    parsed: &mut Parsed<F>,
) -> Result<(), Exit> {
    let l4 = usize::from(parsed.l4);
    let (checksum, checksum_at) = match parsed.tuple.protocol {
        transport::TCP => (L4Checksum::Pseudo, transport::TCP_CHECKSUM),
        // RFC 8200 section 8.1, RFC 3828: a computed zero is sent as all ones over IPv6 too, and by
        // UDP-Lite. RFC 6935: zero is "none" over IPv6 as well, for tunnels.
        transport::UDP | transport::UDP_LITE => {
            (L4Checksum::PseudoOptional, transport::UDP_CHECKSUM)
        }
        transport::DCCP => (L4Checksum::Pseudo, transport::UDP_CHECKSUM),
        protocol if protocol == F::ICMP => {
            let icmp = *packet.at::<IcmpStart>(l4)?;
            return parse_icmp(parsed, &icmp);
        }
        _ => return header_ends(packet, parsed),
    };
    let ports = packet.at::<Ports>(l4)?;
    parsed.tuple.endpoints.source_port = ports.source.get();
    parsed.tuple.endpoints.destination_port = ports.destination.get();
    parsed.ports = PortFields::Both;
    parsed.checksum = checksum;
    parsed.checksum_at = checksum_at;
    Ok(())
}

/// Tells queries and their replies from everything else.
#[inline(always)]
fn parse_icmp<F: Family>(parsed: &mut Parsed<F>, icmp: &IcmpStart) -> Result<(), Exit> {
    let id = icmp.id.get();
    let v4 = F::BITS == 32;
    // RFC 792, RFC 950: echo 8/0, timestamp 13/14, information 15/16, mask 17/18.
    // RFC 4443: echo 128/129. RFC 4861: 133 to 137 never leave the link.
    match icmp.kind {
        8 | 13 | 15 | 17 if v4 => parsed.ports = PortFields::SourceId,
        0 | 14 | 16 | 18 if v4 => parsed.ports = PortFields::DestinationId,
        128 if !v4 => parsed.ports = PortFields::SourceId,
        129 if !v4 => parsed.ports = PortFields::DestinationId,
        5 if v4 => parsed.ports = PortFields::Redirect,
        // Unreachable, quench, exceeded, problem; RFC 4443: 1 to 4. Not redirects: they are for
        // the next hop on the same link, which the gateway is.
        3 | 4 | 11 | 12 if v4 => parsed.ports = PortFields::Quoted,
        1..=4 if !v4 => parsed.ports = PortFields::Quoted,
        133..=137 if !v4 => return Err(PassReason::LinkLocal.into()),
        _ => {}
    }
    match parsed.ports {
        PortFields::SourceId => parsed.tuple.endpoints.source_port = id,
        PortFields::DestinationId => parsed.tuple.endpoints.destination_port = id,
        PortFields::Both | PortFields::Quoted | PortFields::Redirect | PortFields::None => {}
    }
    parsed.checksum = if v4 { L4Checksum::Plain } else { L4Checksum::Pseudo };
    parsed.checksum_at = transport::ICMP_CHECKSUM;
    Ok(())
}

/// The reason for which a packet without a session may not open one.
#[inline(always)]
#[must_use]
pub fn untrackable_reason<F: Family>(parsed: &Parsed<F>) -> DropReason {
    match parsed.fragment {
        Fragment::Whole | Fragment::First => DropReason::IcmpUntracked,
        Fragment::Later | Fragment::Known => DropReason::Fragment,
    }
}
