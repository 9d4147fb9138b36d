//! Address families: everything that differs between IPv4 and IPv6, and nothing else.

use core::{fmt::Debug, net};

use crate::{
    checksum::Difference,
    fragment::Piece,
    packet::{Packet, Truncated},
    parse::{Fragment, Parsed},
    verdict::{DropReason, Exit, PassReason},
    wire::{ethernet, ipv4, ipv6, transport},
};

/// IPv4 address: octets in network order.
// Aligned, so that BPF copies and compares it by words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Ipv4 {
    /// Octets in network order.
    pub octets: [u8; 4],
}

/// IPv6 address: octets in network order.
// Aligned, so that BPF copies and compares it by words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Ipv6 {
    /// Octets in network order.
    pub octets: [u8; 16],
}

impl From<net::Ipv4Addr> for Ipv4 {
    fn from(address: net::Ipv4Addr) -> Self {
        Self { octets: address.octets() }
    }
}

impl From<Ipv4> for net::Ipv4Addr {
    fn from(address: Ipv4) -> Self {
        address.octets.into()
    }
}

impl From<net::Ipv6Addr> for Ipv6 {
    fn from(address: net::Ipv6Addr) -> Self {
        Self { octets: address.octets() }
    }
}

impl From<Ipv6> for net::Ipv6Addr {
    fn from(address: Ipv6) -> Self {
        address.octets.into()
    }
}

/// An address of one family.
pub trait Address: Copy + Debug + Default + Ord {
    /// Becomes `other`, word by word: BPF makes a call of `memmove` of an assignment, which the
    /// verifier follows byte by byte, and whose frame counts on the stack.
    fn set(&mut self, other: &Self);

    /// Whether both are the same, compared word by word: of `==` BPF may make a call.
    fn same(&self, other: &Self) -> bool;

    /// The checksum difference of replacing this address by `new`.
    fn difference(&self, new: &Self) -> Difference;

    /// A number that spreads addresses: same address, same number.
    fn spread(&self) -> u32;

    /// Its last four octets, as a number of the host.
    fn last_octets(&self) -> u32;

    /// Whether it names a group or nobody: multicast, broadcast, unspecified, loopback.
    fn is_special(&self) -> bool;

    /// Whether it is only valid on one link.
    fn is_link_local(&self) -> bool;
}

/// A well-mixed number from `word` (the finaliser of MurmurHash3).
#[inline(always)]
pub(crate) const fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x85eb_ca6b);
    word ^= word >> 13;
    word = word.wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

impl Address for Ipv4 {
    #[inline(always)]
    fn set(&mut self, other: &Self) {
        *self = *other;
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        u32::from_ne_bytes(self.octets) == u32::from_ne_bytes(other.octets)
    }

    #[inline(always)]
    fn difference(&self, new: &Self) -> Difference {
        Difference::NONE
            .replace_u32(u32::from_ne_bytes(self.octets), u32::from_ne_bytes(new.octets))
    }

    #[inline(always)]
    fn spread(&self) -> u32 {
        mix(self.last_octets())
    }

    #[inline(always)]
    fn last_octets(&self) -> u32 {
        u32::from_be_bytes(self.octets)
    }

    #[inline(always)]
    fn is_special(&self) -> bool {
        // 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4, 255.255.255.255
        matches!(self.octets[0], 0 | 127 | 224..=239) || self.octets == [255; 4]
    }

    #[inline(always)]
    fn is_link_local(&self) -> bool {
        self.octets[0] == 169 && self.octets[1] == 254
    }
}

impl Ipv6 {
    /// The address as four words, as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub fn words(&self) -> [u32; 4] {
        // Put together from bytes, the compiler takes them apart again.
        zerocopy::transmute!(self.octets)
    }
}

impl Ipv6 {
    /// Writes the address into a header, word by word: the compiler would do it byte by byte.
    #[inline(always)]
    fn write(&self, header: &mut [u8; 16]) {
        let [a, b, c, d] = self.words().map(u32::to_ne_bytes);
        header[..4].copy_from_slice(&a);
        header[4..8].copy_from_slice(&b);
        header[8..12].copy_from_slice(&c);
        header[12..].copy_from_slice(&d);
    }

    /// The address of four words as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub fn from_words(words: [u32; 4]) -> Self {
        Self { octets: zerocopy::transmute!(words) }
    }
}

impl Address for Ipv6 {
    #[inline(always)]
    fn set(&mut self, other: &Self) {
        other.write(&mut self.octets);
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        let (one, other) = (self.words(), other.words());
        let unlike = (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]);
        unlike | (one[3] ^ other[3]) == 0
    }

    #[inline(always)]
    fn difference(&self, new: &Self) -> Difference {
        let (old, new) = (self.words(), new.words());
        Difference::NONE
            .replace_u32(old[0], new[0])
            .replace_u32(old[1], new[1])
            .replace_u32(old[2], new[2])
            .replace_u32(old[3], new[3])
            .evaluated()
    }

    #[inline(always)]
    fn spread(&self) -> u32 {
        let words = self.words();
        mix(mix(mix(mix(words[0]) ^ words[1]) ^ words[2]) ^ words[3])
    }

    #[inline(always)]
    fn last_octets(&self) -> u32 {
        u32::from_be(self.words()[3])
    }

    #[inline(always)]
    fn is_special(&self) -> bool {
        // ::/128 and ::1/128, ff00::/8
        let words = self.words();
        let low = u32::from_be(words[3]);
        self.octets[0] == 0xff || (words[0] | words[1] | words[2] == 0 && low <= 1)
    }

    #[inline(always)]
    fn is_link_local(&self) -> bool {
        // fe80::/10
        self.octets[0] == 0xfe && self.octets[1] & 0xc0 == 0x80
    }
}

/// An address family. [`V4`] and [`V6`] are its only members.
pub trait Family: Copy + Debug + Default + Eq + Ord + 'static {
    /// Addresses of the family.
    type Addr: Address;

    /// What fills [`crate::records::Session`] up to a multiple of eight bytes.
    type Padding: Copy + Debug + Default + Eq + Ord;

    /// Ether type of the family.
    const ETHER_TYPE: u16;

    /// Protocol number of the family's ICMP.
    const ICMP: u8;

    /// Bits of an address.
    const BITS: u32;

    /// Reads the network header at offset `at`: addresses, protocol, TTL, place in a fragmented
    /// datagram and offset of the layer-4 header.
    ///
    /// # Errors
    ///
    /// An [`Exit`] if the header is cut off, malformed, or not for us to route.
    fn parse<P: Packet>(packet: &mut P, at: usize, parsed: &mut Parsed<Self>) -> Result<(), Exit>;

    /// Writes both addresses into the network header at offset `at`, takes `hops` off its TTL and
    /// keeps its checksum right, if it has one.
    ///
    /// `addresses` is the difference of both addresses. Returns by how much the sum of the header's
    /// bytes changes: by nothing if a checksum in it makes up for the rest.
    ///
    /// # Errors
    ///
    /// [`Truncated`] if the header is not there.
    fn rewrite<P: Packet>(
        packet: &mut P,
        at: usize,
        hops: u8,
        source: &Self::Addr,
        destination: &Self::Addr,
        addresses: Difference,
    ) -> Result<Difference, Truncated>;

    /// Length of layer 4 in bytes, as the network header says it. A GSO packet may say less than the truth.
    ///
    /// # Errors
    ///
    /// [`Truncated`] if the header is not there.
    fn l4_bytes<P: Packet>(packet: &mut P, parsed: &Parsed<Self>) -> Result<u16, Truncated>;

    /// What a packet that is not atomic says of its place among fragments. Its headers are those
    /// that `parsed` says.
    ///
    /// # Errors
    ///
    /// [`Truncated`] if the headers are not there.
    fn piece<P: Packet>(packet: &mut P, parsed: &Parsed<Self>) -> Result<Piece, Truncated>;

    /// Whether a router may make fragments of the packet: without "don't fragment" (RFC 791), never in
    /// IPv6 (RFC 8200 section 4.5).
    fn may_be_fragmented<P: Packet>(packet: &mut P) -> bool;

    /// Writes another identification into a packet that is not atomic, and keeps the header
    /// checksum right, if there is one. Returns as [`Family::rewrite`] does.
    ///
    /// # Errors
    ///
    /// As [`Family::piece`].
    fn renumber<P: Packet>(
        packet: &mut P,
        parsed: &Parsed<Self>,
        identification: u32,
    ) -> Result<Difference, Truncated>;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct V6;

impl Family for V4 {
    type Addr = Ipv4;
    type Padding = [u8; 0];
    const ETHER_TYPE: u16 = ethernet::IPV4;
    const ICMP: u8 = transport::ICMP;
    const BITS: u32 = 32;

    #[inline(always)]
    fn parse<P: Packet>(packet: &mut P, at: usize, parsed: &mut Parsed<Self>) -> Result<(), Exit> {
        let header = packet.at::<ipv4::Ipv4Header>(at)?;
        let header_bytes = u16::from(header.version_ihl & 0x0f) * 4;
        if header.version_ihl >> 4 != 4 || usize::from(header_bytes) < ipv4::BYTES {
            return Err(DropReason::BadHeader.into());
        }
        let total = header.total_length.get();
        let field = header.fragment.get();
        parsed.fragment =
            Fragment::from_parts(field & ipv4::FRAGMENT_OFFSET, field & ipv4::MORE_FRAGMENTS != 0);
        parsed.atomic = field & !ipv4::RESERVED == ipv4::DONT_FRAGMENT;
        parsed.tuple.endpoints.source = Ipv4 { octets: header.source };
        parsed.tuple.endpoints.destination = Ipv4 { octets: header.destination };
        parsed.tuple.protocol = header.protocol;
        parsed.ttl = header.ttl;
        parsed.l4 = at as u16 + header_bytes;
        // RFC 1812 section 5.2.2. Zero is what a GSO packet of more than 64 kB says.
        let jumbo = || packet.frame_bytes() > u32::from(u16::MAX);
        if total < header_bytes && !(total == 0 && jumbo()) {
            return Err(DropReason::BadHeader.into());
        }
        Ok(())
    }

    #[inline(always)]
    fn rewrite<P: Packet>(
        packet: &mut P,
        at: usize,
        hops: u8,
        source: &Ipv4,
        destination: &Ipv4,
        addresses: Difference,
    ) -> Result<Difference, Truncated> {
        let header = packet.at::<ipv4::Ipv4Header>(at)?;
        let (old_ttl, protocol) = (header.ttl, header.protocol);
        let new_ttl = old_ttl.saturating_sub(hops);
        let whole = addresses.replace_u16(
            u16::from_ne_bytes([old_ttl, protocol]),
            u16::from_ne_bytes([new_ttl, protocol]),
        );
        header.ttl = new_ttl;
        header.checksum = whole.apply(header.checksum);
        header.source = source.octets;
        header.destination = destination.octets;
        Ok(Difference::NONE)
    }

    #[inline(always)]
    fn l4_bytes<P: Packet>(packet: &mut P, parsed: &Parsed<Self>) -> Result<u16, Truncated> {
        let whole = packet.at::<ipv4::Ipv4Header>(ethernet::BYTES)?.total_length.get();
        Ok(whole.wrapping_add(ethernet::BYTES as u16).wrapping_sub(parsed.l4))
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &mut P, _parsed: &Parsed<Self>) -> Result<Piece, Truncated> {
        let header = packet.at::<ipv4::Ipv4Header>(ethernet::BYTES)?;
        Ok(Piece {
            identification: u32::from(header.identification.get()),
            offset: header.fragment.get() & ipv4::FRAGMENT_OFFSET,
            end: ethernet::BYTES as u32 + u32::from(header.total_length.get()),
        })
    }

    #[inline(always)]
    fn may_be_fragmented<P: Packet>(packet: &mut P) -> bool {
        let header = packet.at::<ipv4::Ipv4Header>(ethernet::BYTES);
        header.is_ok_and(|header| header.fragment.get() & ipv4::DONT_FRAGMENT == 0)
    }

    #[inline(always)]
    fn renumber<P: Packet>(
        packet: &mut P,
        _parsed: &Parsed<Self>,
        identification: u32,
    ) -> Result<Difference, Truncated> {
        let header = packet.at::<ipv4::Ipv4Header>(ethernet::BYTES)?;
        let (old, new) = (header.identification.get(), identification as u16);
        header.identification.set(new);
        let change = Difference::NONE.replace_u16(old.to_be(), new.to_be());
        header.checksum = change.apply(header.checksum);
        Ok(Difference::NONE)
    }
}

/// How many extension headers are walked before a packet is refused (RFC 8200 names five kinds).
const MAX_EXTENSIONS: usize = 6;

impl Family for V6 {
    type Addr = Ipv6;
    type Padding = [u8; 4];
    const ETHER_TYPE: u16 = ethernet::IPV6;
    const ICMP: u8 = transport::ICMPV6;
    const BITS: u32 = 128;

    #[inline(always)]
    fn parse<P: Packet>(packet: &mut P, at: usize, parsed: &mut Parsed<Self>) -> Result<(), Exit> {
        let header = packet.at::<ipv6::Ipv6Header>(at)?;
        if header.version_class_flow[0] >> 4 != 6 {
            return Err(DropReason::BadHeader.into());
        }
        let ends = &mut parsed.tuple.endpoints;
        // By words, as `Address::set` does.
        let (source, destination): ([u32; 4], [u32; 4]) =
            (zerocopy::transmute!(header.source), zerocopy::transmute!(header.destination));
        ends.source.set(&Ipv6::from_words(source));
        ends.destination.set(&Ipv6::from_words(destination));
        parsed.tuple.protocol = header.next_header;
        parsed.ttl = header.hop_limit;
        parsed.atomic = true;
        parsed.l4 = (at + ipv6::BYTES) as u16;
        // Neighbour and router discovery lives on link-local addresses and in groups.
        if ends.destination.is_link_local() || ends.source.is_link_local() {
            return Err(PassReason::LinkLocal.into());
        }
        match skip_extensions(packet, parsed) {
            Extensions::Skipped => Ok(()),
            Extensions::Truncated => Err(Truncated.into()),
            Extensions::TooMany => Err(DropReason::TooManyExtensions.into()),
        }
    }

    #[inline(always)]
    fn rewrite<P: Packet>(
        packet: &mut P,
        at: usize,
        hops: u8,
        source: &Ipv6,
        destination: &Ipv6,
        addresses: Difference,
    ) -> Result<Difference, Truncated> {
        let header = packet.at::<ipv6::Ipv6Header>(at)?;
        let (old_limit, next) = (header.hop_limit, header.next_header);
        let new_limit = old_limit.saturating_sub(hops);
        let whole = addresses.replace_u16(
            u16::from_ne_bytes([next, old_limit]),
            u16::from_ne_bytes([next, new_limit]),
        );
        header.hop_limit = new_limit;
        source.write(&mut header.source);
        destination.write(&mut header.destination);
        Ok(whole)
    }

    #[inline(always)]
    fn l4_bytes<P: Packet>(packet: &mut P, parsed: &Parsed<Self>) -> Result<u16, Truncated> {
        let payload = packet.at::<ipv6::Ipv6Header>(ethernet::BYTES)?.payload_length.get();
        let begin = (ethernet::BYTES + ipv6::BYTES) as u16;
        Ok(payload.wrapping_add(begin).wrapping_sub(parsed.l4))
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &mut P, parsed: &Parsed<Self>) -> Result<Piece, Truncated> {
        let payload = packet.at::<ipv6::Ipv6Header>(ethernet::BYTES)?.payload_length.get();
        let header = packet.at::<ipv6::FragmentHeader>(usize::from(parsed.fragment_at))?;
        Ok(Piece {
            identification: u32::from_be_bytes(header.identification),
            offset: header.offset_more.get() >> 3,
            end: (ethernet::BYTES + ipv6::BYTES) as u32 + u32::from(payload),
        })
    }

    #[inline(always)]
    fn may_be_fragmented<P: Packet>(_packet: &mut P) -> bool {
        false
    }

    #[inline(always)]
    fn renumber<P: Packet>(
        packet: &mut P,
        parsed: &Parsed<Self>,
        identification: u32,
    ) -> Result<Difference, Truncated> {
        let header = packet.at::<ipv6::FragmentHeader>(usize::from(parsed.fragment_at))?;
        let (old, new) = (header.identification, identification.to_be_bytes());
        header.identification = new;
        Ok(Difference::NONE.replace_u32(u32::from_ne_bytes(old), u32::from_ne_bytes(new)))
    }
}

/// How [`skip_extensions`] ended.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Extensions {
    Skipped,
    Truncated,
    TooMany,
}

/// Steps over all extension headers.
///
/// A function of its own, so that the verifier forgets how many there were: it looks at the rest
/// of the path once, and not once for every number of headers.
#[inline(never)]
fn skip_extensions<P: Packet>(packet: &mut P, parsed: &mut Parsed<V6>) -> Extensions {
    for _ in 0..MAX_EXTENSIONS {
        match next_extension(packet, parsed) {
            Ok(true) => {}
            Ok(false) => return Extensions::Skipped,
            Err(failed) => return failed,
        }
    }
    Extensions::TooMany
}

impl From<Truncated> for Extensions {
    #[inline(always)]
    fn from(Truncated: Truncated) -> Self {
        Self::Truncated
    }
}

/// Steps over one extension header; `false` if there is none.
#[inline(always)]
fn next_extension<P: Packet>(packet: &mut P, parsed: &mut Parsed<V6>) -> Result<bool, Extensions> {
    let counts_words = match parsed.tuple.protocol {
        // A fragment of a fragment: nobody makes those (RFC 8200 section 4.1: each kind once).
        ipv6::FRAGMENT if parsed.fragment != Fragment::Whole => return Err(Extensions::TooMany),
        ipv6::FRAGMENT => {
            let header = packet.at::<ipv6::FragmentHeader>(usize::from(parsed.l4))?;
            let field = header.offset_more.get();
            parsed.fragment = Fragment::from_parts(field >> 3, field & 1 != 0);
            // RFC 6946: alone in its datagram, whatever its identification.
            parsed.atomic = parsed.fragment == Fragment::Whole;
            parsed.fragment_at = parsed.l4;
            parsed.tuple.protocol = header.next_header;
            parsed.l4 += size_of::<ipv6::FragmentHeader>() as u16;
            // What follows in a later fragment is payload, whatever its bytes look like.
            return Ok(parsed.fragment != Fragment::Later);
        }
        ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION_OPTIONS => false,
        ipv6::AUTHENTICATION => true,
        _ => return Ok(false),
    };
    let header = packet.at::<ipv6::Extension>(usize::from(parsed.l4))?;
    let units = u16::from(header.length);
    parsed.l4 += if counts_words { (units + 2) * 4 } else { (units + 1) * 8 };
    parsed.tuple.protocol = header.next_header;
    Ok(true)
}
