//! Packets of which the daemon sends fragments: see [`gateway_common::answer::Oversize`].
//!
//! A program cannot make two packets of one without spoiling their checksum state.

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{PerCpuArray, RingBuf},
    helpers::generated::bpf_skb_load_bytes,
    macros::btf_map,
};
use gateway_common::{
    answer::{OVERSIZE_BYTES, Oversize},
    family::V4,
    wire::ethernet,
};

use crate::maps;

/// Room for some three hundred packets of 1500 bytes. Not pinned, as `ANSWERS`.
const RING_BYTES: usize = 1 << 19;

#[btf_map]
static OVERSIZE: RingBuf<(), RING_BYTES> = RingBuf::new();

/// A record that is put together.
#[repr(C)]
struct Record {
    header: Oversize,
    packet: [u8; OVERSIZE_BYTES],
    /// How many bytes of `packet` are there, less one.
    last: u32,
}

// It does not fit on the stack.
#[btf_map]
static REPORTING: PerCpuArray<Record, 1> = PerCpuArray::new();

/// Copies a translated IPv4 packet into the ring buffer; 0 if that is full, or the packet too large.
// SAFETY: no other symbol of the object has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn report(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context of the program, and a slot that belongs to this CPU. The helper writes no more
    // bytes than there are: the number is read back, so that LLVM knows no more than the verifier, who
    // must see its bounds.
    unsafe {
        let length = (*skb).len;
        let (Some(config), Some(work)) = (maps::config(), maps::work::<V4>()) else {
            return 0;
        };
        let Some(record) = REPORTING.get_ptr_mut(0) else {
            return 0;
        };
        let header = ethernet::BYTES as u32;
        (&raw mut (*record).last).write_volatile(length.wrapping_sub(header + 1));
        let last = (&raw const (*record).last).read_volatile();
        if last >= OVERSIZE_BYTES as u32 {
            return 0;
        }
        let ifindex = work.rewrite.next_hop.ifindex;
        (*record).header = Oversize { ifindex, mtu: config.mtu(ifindex) };
        let packet = (&raw mut (*record).packet).cast();
        if bpf_skb_load_bytes(skb.cast_const().cast(), header, packet, last + 1) != 0 {
            return 0;
        }
        let bytes = size_of::<Oversize>() + last as usize + 1;
        let record = core::slice::from_raw_parts(record.cast::<u8>(), bytes);
        u32::from(OVERSIZE.output_untyped::<[u8]>(record, 0).is_ok())
    }
}
