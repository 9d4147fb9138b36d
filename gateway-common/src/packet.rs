//! The medium: a frame in host memory, an XDP buffer or a socket buffer behind one trait.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{
    checksum::{ChecksumDelta, Difference},
    family::Family,
    parse::Parsed,
    verdict::{NextHop, PassReason},
    wire::ethernet,
};

/// A wire header: any bit pattern is a value of it, it has no padding and no alignment.
pub trait Header: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned> Header for T {}

/// The frame ends before the header that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// An Ethernet frame that can be read and rewritten in place.
///
/// Offsets count bytes from the start of the Ethernet header.
pub trait Packet {
    /// Whether another path comes behind this one, which takes what this one leaves: rare kinds of
    /// packets go there untouched.
    const ACCELERATES: bool = false;

    /// The header at `offset`, for reading and writing.
    ///
    /// # Errors
    ///
    /// [`Truncated`] if the frame ends before `offset + size_of::<H>()`.
    fn at<H: Header>(&mut self, offset: usize) -> Result<&mut H, Truncated>;

    /// Length of the frame in bytes, Ethernet header included. A GSO packet counts whole.
    fn frame_bytes(&self) -> u32;

    /// How many packets the frame is once segmentation offload has cut it up: 1 for all but GSO.
    fn segments(&self) -> u32 {
        1
    }

    /// Whether the frame is addressed to this interface and nobody else: neither broadcast nor
    /// multicast nor seen in passing. The kernel routes no other frame, and neither do we.
    fn is_for_this_host(&self) -> bool;

    /// Whether the packet, or a segment of it, is larger than what leaves by interface `egress`.
    ///
    /// `mtu` is that interface's MTU in bytes, without the Ethernet header.
    fn exceeds(&mut self, egress: u32, mtu: u32) -> bool;

    /// Whether the packet can be sent to `next_hop` from here. Asked before anything of it is changed
    /// or counted.
    ///
    /// # Errors
    ///
    /// Why another path must send it.
    #[inline(always)]
    fn reach<F: Family>(&mut self, _next_hop: &NextHop<F>) -> Result<(), PassReason> {
        Ok(())
    }

    /// Takes note that the bytes of the frame have changed by `difference`, and that no checksum in
    /// it makes up for that: IPv6 has none in its header.
    ///
    /// A medium whose hardware has summed up the frame (`CHECKSUM_COMPLETE`) keeps that sum right.
    fn add_to_sum(&mut self, difference: Difference);

    /// Brings the layer-4 checksum that `parsed` tells of up to date after addresses or ports were
    /// rewritten. Returns what of that is still to be told to [`Packet::add_to_sum`].
    ///
    /// A medium whose packets may carry a checksum that hardware or a receiver finishes
    /// (`CHECKSUM_PARTIAL`, `CHECKSUM_COMPLETE`) keeps that state right. This may invalidate
    /// everything [`Packet::at`] has returned, so it comes last.
    ///
    /// # Errors
    ///
    /// [`Truncated`] if the checksum field lies outside the frame.
    #[inline(always)]
    fn patch_l4<F: Family>(
        &mut self,
        parsed: &Parsed<F>,
        delta: ChecksumDelta,
    ) -> Result<Difference, Truncated>
    where
        Self: Sized,
    {
        let field = self.at::<[u8; 2]>(parsed.checksum_offset())?;
        *field = parsed.checksum.patched(*field, delta);
        Ok(Difference::NONE)
    }
}

/// A frame in host memory, as tests and the fuzzer use it.
#[derive(Debug)]
pub struct HostPacket<'a> {
    /// The frame, from the Ethernet header on.
    pub bytes: &'a mut [u8],
    /// What [`Packet::is_for_this_host`] answers.
    pub for_this_host: bool,
}

impl<'a> HostPacket<'a> {
    /// A frame addressed to this host.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, for_this_host: true }
    }
}

impl Packet for HostPacket<'_> {
    fn at<H: Header>(&mut self, offset: usize) -> Result<&mut H, Truncated> {
        let end = offset.checked_add(size_of::<H>()).ok_or(Truncated)?;
        let bytes = self.bytes.get_mut(offset..end).ok_or(Truncated)?;
        H::mut_from_bytes(bytes).map_err(|_| Truncated)
    }

    fn frame_bytes(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn is_for_this_host(&self) -> bool {
        self.for_this_host
    }

    fn exceeds(&mut self, _egress: u32, mtu: u32) -> bool {
        self.frame_bytes() > mtu.saturating_add(ethernet::BYTES as u32)
    }

    fn add_to_sum(&mut self, _difference: Difference) {}
}
