//! A socket buffer or an XDP buffer as a [`Packet`]: the only pointer arithmetic of the project.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
        xdp_md,
    },
    helpers::generated::{bpf_check_mtu, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_pull_data},
};
use gateway_common::{
    checksum::{ChecksumDelta, Difference, L4Checksum},
    family::Family,
    packet::{Header, Packet, Truncated},
    parse::Parsed,
    records::{Neighbor, Ticks, XdpFacts},
    translate,
    tuple::Direction,
    verdict::{NextHop, PassReason},
    wire::ethernet,
};

use crate::maps;

/// Bytes that must be in the linear part: Ethernet, IPv4 with all options, TCP without.
const HEADERS: u32 = 14 + 60 + 20;

/// Offsets of headers stay below this: Ethernet, IPv6 and six extension headers at their longest.
/// The mask tells the verifier, which does not know what bounds an offset that was in memory.
const MAX_OFFSET: usize = 0x3fff;

/// `PACKET_HOST` of linux/if_packet.h.
const PACKET_HOST: u32 = 0;

/// A frame behind a TC context.
pub(crate) struct SkbPacket {
    skb: *mut __sk_buff,
}

impl SkbPacket {
    /// The frame of `skb`, whose headers an earlier step has pulled into the linear part.
    #[inline(always)]
    pub(crate) fn unchecked(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// The frame of `skb`, with its headers pulled into the linear part.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: `skb` is the program's context; reads of its fields are checked by the verifier.
        unsafe {
            let wanted = (*skb).len.min(HEADERS);
            if (*skb).data as usize + wanted as usize > (*skb).data_end as usize {
                bpf_skb_pull_data(skb, wanted);
            }
        }
        Self { skb }
    }

    /// Index of the interface that the frame came in by.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: as in `new`.
        unsafe { (*self.skb).ifindex }
    }

    /// The context, as helpers take it.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut c_void {
        self.skb.cast()
    }

    /// Whether it is a GSO packet.
    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: as in `new`.
        unsafe { (*self.skb).gso_size != 0 }
    }
}

/// What [`patch_finished`] returns if the checksum may be one that is to be finished.
const UNFINISHED: i64 = -1;
/// What [`patch_finished`] returns if the frame ends before the checksum.
const TRUNCATED: i64 = -2;

/// Brings a checksum up to date that is finished. Returns by how much the sum of the frame has changed by
/// that and by the ports, or [`UNFINISHED`] or [`TRUNCATED`].
#[inline(always)]
fn patch_finished<F: Family>(
    skb: *mut __sk_buff,
    parsed: &Parsed<F>,
    addresses: Difference,
    ports: Difference,
) -> i64 {
    let mut packet = SkbPacket::unchecked(skb);
    let Ok(unfinished) = translate::unfinished_checksum(&mut packet, parsed) else {
        return TRUNCATED;
    };
    let Ok(field) = packet.at::<[u8; 2]>(parsed.checksum_offset()) else {
        return TRUNCATED;
    };
    let old = *field;
    // By chance a finished checksum looks unfinished; the helpers know.
    if old == unfinished {
        return UNFINISHED;
    }
    let new = parsed.checksum.patched(old, ChecksumDelta { addresses, ports });
    *field = new;
    let [old, new] = [old, new].map(u16::from_ne_bytes);
    i64::from(ports.replace_u16(old, new).to_wsum())
}

/// Brings the checksum at `offset` up to date, whatever its state. A function of its own for its stack
/// frame. Here come GSO packets, unfinished checksums, which are those of senders on this machine, and
/// ICMPv4.
#[inline(never)]
fn replace_all(
    skb: *mut __sk_buff,
    offset: u32,
    kind: L4Checksum,
    addresses: Difference,
    ports: Difference,
) -> bool {
    // Two calls, because an unfinished sum (CHECKSUM_PARTIAL) takes only the addresses and a
    // finished one that hardware reported (CHECKSUM_COMPLETE) is only changed by them.
    let optional = match kind {
        L4Checksum::None => return true,
        L4Checksum::Plain if ports.is_none() => return true,
        L4Checksum::Plain => return replace(skb, offset, ports, 0),
        L4Checksum::Pseudo => 0,
        L4Checksum::PseudoOptional => BPF_F_MARK_MANGLED_0,
    };
    replace(skb, offset, addresses, BPF_F_PSEUDO_HDR | optional)
        && (ports.is_none() || replace(skb, offset, ports, optional))
}

/// Adds `difference` to the checksum at `offset`.
#[inline(always)]
fn replace(skb: *mut __sk_buff, offset: u32, difference: Difference, flags: u32) -> bool {
    let wsum = u64::from(difference.to_wsum());
    // SAFETY: the helper checks the offset against the packet.
    unsafe { bpf_l4_csum_replace(skb, offset, 0, wsum, u64::from(flags)) == 0 }
}

/// Length of the frame in bytes, Ethernet header included.
#[inline(always)]
pub(crate) fn frame_bytes(skb: *mut __sk_buff) -> u32 {
    // SAFETY: `skb` is the program's context.
    unsafe { (*skb).len }
}

/// The header at `offset` of the frame between `data` and `data_end`.
///
/// # Safety
///
/// Both are the fields of a program's context, and nobody else has a view of the frame while the
/// returned one lives.
#[inline(always)]
unsafe fn view<'a, H: Header>(
    data: *const u32,
    data_end: *const u32,
    offset: usize,
) -> Result<&'a mut H, Truncated> {
    // SAFETY: the bounds are checked right here, `H` is valid for every bit pattern and unaligned.
    //
    // Read anew each time: kept in a register, the compiler moves the 32 bits that C declares and
    // not the pointer that the verifier knows.
    unsafe {
        let start = data.read_volatile() as usize;
        let end = data_end.read_volatile() as usize;
        let start = start + (offset & MAX_OFFSET);
        if start + size_of::<H>() > end {
            return Err(Truncated);
        }
        Ok(&mut *(start as *mut H))
    }
}

impl Packet for SkbPacket {
    #[inline(always)]
    fn at<H: Header>(&mut self, offset: usize) -> Result<&mut H, Truncated> {
        // SAFETY: the fields are those of the context, and `&mut self` keeps a second view from
        // existing.
        unsafe { view(&raw const (*self.skb).data, &raw const (*self.skb).data_end, offset) }
    }

    #[inline(always)]
    fn frame_bytes(&self) -> u32 {
        frame_bytes(self.skb)
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: as in `new`.
        unsafe { (*self.skb).gso_segs }.max(1)
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        // SAFETY: as in `new`.
        unsafe { (*self.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn exceeds(&mut self, egress: u32, mtu: u32) -> bool {
        if self.frame_bytes() <= mtu.saturating_add(ethernet::BYTES as u32) {
            return false;
        }
        // Longer than a packet may be: only its segments tell (a GSO packet), if it has any.
        let mut mtu = 0;
        // SAFETY: the helper takes the context and a pointer to a local.
        let result = unsafe {
            bpf_check_mtu(self.context(), egress, &mut mtu, 0, u64::from(BPF_MTU_CHK_SEGS))
        };
        result != 0
    }

    #[inline(always)]
    fn add_to_sum(&mut self, difference: Difference) {
        if difference.is_none() {
            return;
        }
        // `bpf_l4_csum_replace` with BPF_F_PSEUDO_HDR takes the addresses off the sum again, as is
        // right for IPv4; BPF_F_IPV6, which tells it not to, is not in every kernel.
        // SAFETY: the helper takes the context. It fails if there is no sum, which is as well.
        unsafe { bpf_csum_update(self.skb, difference.to_wsum()) };
    }

    #[inline(always)]
    fn patch_l4<F: Family>(
        &mut self,
        parsed: &Parsed<F>,
        delta: ChecksumDelta,
    ) -> Result<Difference, Truncated> {
        let pseudo = matches!(parsed.checksum, L4Checksum::Pseudo | L4Checksum::PseudoOptional);
        // Helper calls cost more than all of this. Of a GSO packet nobody knows what its length in the
        // pseudo header is.
        if pseudo && !self.is_gso() {
            let change = patch_finished(self.skb, parsed, delta.addresses, delta.ports);
            match u32::try_from(change) {
                Ok(wsum) => return Ok(Difference::from_wsum(wsum)),
                Err(_) if change == TRUNCATED => return Err(Truncated),
                Err(_) => {}
            }
        }
        let at = parsed.checksum_offset();
        if replace_all(self.skb, at as u32, parsed.checksum, delta.addresses, delta.ports) {
            Ok(Difference::NONE)
        } else {
            Err(Truncated)
        }
    }
}

/// A frame behind an XDP context. All of it is linear: the program is attached without `frags`.
pub(crate) struct XdpPacket {
    context: *mut xdp_md,
    for_this_host: bool,
    now: Ticks,
    until: Ticks,
    neighbor: Option<&'static Neighbor>,
}

impl XdpPacket {
    /// The frame of `context`, of which nothing is known.
    #[inline(always)]
    pub(crate) fn unchecked(context: *mut xdp_md) -> Self {
        Self { context, for_this_host: false, now: 0, until: 0, neighbor: None }
    }

    /// The frame of `context`, which came in at `now` from the side of `direction`.
    #[inline(always)]
    pub(crate) fn new(
        context: *mut xdp_md,
        facts: &XdpFacts,
        direction: Direction,
        now: Ticks,
    ) -> Self {
        let mut packet = Self { now, until: facts.until, ..Self::unchecked(context) };
        let own = ethernet::words(facts.mac(direction));
        packet.for_this_host = packet.at::<[u8; 6]>(0).is_ok_and(|to| ethernet::words(to) == own);
        packet
    }

    /// Index of the interface that the frame came in by.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: `context` is the program's; reads of its fields are checked by the verifier.
        unsafe { (*self.context).ingress_ifindex }
    }

    /// The context, as helpers take it.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut c_void {
        self.context.cast()
    }

    /// Writes the addresses of the next hop that [`Packet::reach`] has found.
    #[inline(always)]
    pub(crate) fn address(&mut self) -> Result<(), Truncated> {
        let neighbor: *const Neighbor = self.neighbor.ok_or(Truncated)?;
        // By words: arrays of six bytes are copied by a call.
        // SAFETY: both addresses lie at the start of the record, which is aligned for words.
        let [a, b, c] = unsafe { neighbor.cast::<[u32; 3]>().read() };
        let header = self.at::<[[u8; 4]; 3]>(0)?;
        header[0] = a.to_ne_bytes();
        header[1] = b.to_ne_bytes();
        header[2] = c.to_ne_bytes();
        Ok(())
    }
}

/// Length of the frame in bytes.
#[inline(always)]
pub(crate) fn xdp_frame_bytes(context: *mut xdp_md) -> u32 {
    // SAFETY: `context` is the program's. As in `view`, both are read as they are.
    unsafe {
        let start = (&raw const (*context).data).read_volatile() as usize;
        let end = (&raw const (*context).data_end).read_volatile() as usize;
        (end - start) as u32
    }
}

impl Packet for XdpPacket {
    const ACCELERATES: bool = true;

    #[inline(always)]
    fn at<H: Header>(&mut self, offset: usize) -> Result<&mut H, Truncated> {
        // SAFETY: as for a socket buffer.
        unsafe {
            view(&raw const (*self.context).data, &raw const (*self.context).data_end, offset)
        }
    }

    #[inline(always)]
    fn frame_bytes(&self) -> u32 {
        xdp_frame_bytes(self.context)
    }

    #[inline(always)]
    fn is_for_this_host(&self) -> bool {
        self.for_this_host
    }

    #[inline(always)]
    fn exceeds(&mut self, _egress: u32, mtu: u32) -> bool {
        self.frame_bytes() > mtu.saturating_add(ethernet::BYTES as u32)
    }

    #[inline(always)]
    fn reach<F: Family>(&mut self, next_hop: &NextHop<F>) -> Result<(), PassReason> {
        self.neighbor = maps::neighbor(next_hop, self.until, self.now);
        if self.neighbor.is_some() { Ok(()) } else { Err(PassReason::NoNeighbor) }
    }

    #[inline(always)]
    fn add_to_sum(&mut self, _difference: Difference) {}
}
