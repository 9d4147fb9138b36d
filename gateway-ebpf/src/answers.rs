//! Packets that the daemon answers: see [`gateway_common::answer`].

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{PerCpuArray, RingBuf},
    helpers::generated::bpf_skb_load_bytes,
    macros::btf_map,
};
use gateway_common::{
    answer::{self, AnswerRate, KEPT, Unanswered},
    family::{Family, V4, V6},
    verdict::DropReason,
    wire::ethernet,
};

use crate::maps::{self, Maps};

/// Room for some two hundred packets. Not pinned: each load of the programs has its own reader.
const RING_BYTES: usize = 1 << 18;

#[btf_map]
static ANSWERS: RingBuf<(), RING_BYTES> = RingBuf::new();
#[btf_map]
static ANSWER_RATE: PerCpuArray<AnswerRate, 1> = PerCpuArray::new();

/// Leaves a packet that was dropped for `reason` to the daemon, if its sender is to be told.
#[inline(always)]
pub(crate) fn ask<F: Maps>(skb: *mut __sk_buff, reason: DropReason) {
    let Some(work) = maps::work::<F>() else {
        return;
    };
    if let Some(answer) = answer::due(reason, &work.parsed) {
        let _ = if F::BITS == V4::BITS {
            report_v4(skb, answer as u32)
        } else {
            report_v6(skb, answer as u32)
        };
    }
}

// SAFETY: no other symbol of the object has the name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_v4(skb: *mut __sk_buff, answer: u32) -> u32 {
    u32::from(report::<V4>(skb, answer))
}

// SAFETY: as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_v6(skb: *mut __sk_buff, answer: u32) -> u32 {
    u32::from(report::<V6>(skb, answer))
}

/// Copies the packet into the ring buffer; `false` if that is full, or too much has been copied.
#[inline(always)]
fn report<F: Maps>(skb: *mut __sk_buff, answer: u32) -> bool {
    let (Some(config), Some(work)) = (maps::config(), maps::work::<F>()) else {
        return false;
    };
    // SAFETY: the slot belongs to this CPU.
    let permitted =
        ANSWER_RATE.get_ptr_mut(0).is_some_and(|rate| unsafe { (*rate).permits(work.arrival.now) });
    if !permitted {
        return false;
    }
    let header = ethernet::BYTES as u32;
    let last = work.arrival.frame_bytes.saturating_sub(header + 1);
    let Some(mut entry) = ANSWERS.reserve_untyped::<Unanswered>(0) else {
        return false;
    };
    let record: *mut Unanswered = entry.as_mut_ptr();
    // SAFETY: the fields of a record that is ours until it is submitted. The helper writes `bytes` of
    // them, which are no more than there are.
    let copied = unsafe {
        // Read back, so that LLVM knows no more of it than the verifier does, who must see that it is
        // neither zero nor too much.
        (&raw mut (*record).mtu).write_volatile(last);
        let bytes = (&raw const (*record).mtu).read_volatile().min(KEPT as u32 - 1) + 1;
        (*record).mtu = config.mtu(work.rewrite.next_hop.ifindex);
        (*record).bytes = bytes as u16;
        (*record).answer = answer as u8;
        (*record).direction = work.arrival.direction as u8;
        let packet = (&raw mut (*record).packet).cast();
        bpf_skb_load_bytes(skb.cast_const().cast(), header, packet, bytes) == 0
    };
    if copied {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
    copied
}
