//! Later fragments that came before the first one: see [`gateway_common::fragment`].

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST},
    btf_maps::PerCpuArray,
    helpers::generated::{
        bpf_clone_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    macros::btf_map,
};
use gateway_common::{
    fragment::{HELD_BYTES, HELD_FOR, HELD_FRAGMENTS},
    records::{HeldKey, Ticks},
    session::elapsed,
    tables::ClaimError,
};

use crate::maps::{EXISTS, Maps};

/// Value of `HELD_V4` and `HELD_V6`.
#[repr(C)]
pub(crate) struct Held {
    /// When it came.
    since: Ticks,
    /// How many bytes of `frame` are there, less one.
    last: u32,
    /// The frame as it came, from its Ethernet header on.
    frame: [u8; HELD_BYTES as usize],
}

// Where a frame is put together: it does not fit on the stack.
#[btf_map]
static HOLDING: PerCpuArray<Held, 1> = PerCpuArray::new();

/// How long the frame is; `None` if that is more than there can be. Read from memory, so that LLVM
/// knows no more of it than the verifier, who must see the bounds.
#[inline(always)]
fn length(held: *const Held) -> Option<u32> {
    // SAFETY: an entry of a map, which is there until the program ends.
    let last = unsafe { (&raw const (*held).last).read_volatile() };
    if last < HELD_BYTES { Some(last + 1) } else { None }
}

/// Keeps a copy of the frame under `key`.
// A function of its own: with two ways back to the beginning of the loop around it, LLVM lets one of them
// run into that, which the verifier of kernel 6.1 takes for a loop without end.
#[inline(never)]
pub(crate) fn hold<F: Maps>(
    skb: *mut __sk_buff,
    key: &HeldKey<F>,
    now: Ticks,
) -> Result<(), ClaimError> {
    // SAFETY: read at once.
    let flags = match unsafe { F::HELD.get(key) } {
        Some(there) if elapsed(now, there.since) <= HELD_FOR => return Err(ClaimError::Occupied),
        Some(_) => BPF_ANY,
        None => BPF_NOEXIST,
    };
    let held = HOLDING.get_ptr_mut(0).ok_or(ClaimError::Full)?;
    // SAFETY: the slot belongs to this CPU. The helper writes no more bytes than there are.
    unsafe {
        (*held).since = now;
        (&raw mut (*held).last).write_volatile((*skb).len.wrapping_sub(1));
        let bytes = length(held).ok_or(ClaimError::Full)?;
        let frame = (&raw mut (*held).frame).cast();
        if bpf_skb_load_bytes(skb.cast_const().cast(), 0, frame, bytes) != 0 {
            return Err(ClaimError::Full);
        }
        F::HELD.insert(key, &*held, u64::from(flags)).map_err(|error| match error {
            EXISTS => ClaimError::Occupied,
            _ => ClaimError::Full,
        })
    }
}

/// Lets the frame, if `own`, and then those that are held of its datagram come in again.
#[inline(always)]
pub(crate) fn replay<F: Maps>(skb: *mut __sk_buff, key: &mut HeldKey<F>, own: bool, now: Ticks) {
    if own {
        come_in(skb);
    }
    for slot in 0..HELD_FRAGMENTS {
        key.slot = slot;
        let key: &HeldKey<F> = key;
        let Some(held) = F::HELD.get_ptr(key) else {
            continue;
        };
        // SAFETY: as above.
        let late = elapsed(now, unsafe { (*held).since }) > HELD_FOR;
        let copied = !late && copy(skb, held);
        // What another CPU has taken or replaced meanwhile is not ours to send.
        if F::HELD.remove(key).is_ok() && copied {
            come_in(skb);
        }
    }
}

/// Makes the frame the one that is held.
#[inline(always)]
fn copy(skb: *mut __sk_buff, held: *const Held) -> bool {
    let Some(bytes) = length(held) else {
        return false;
    };
    // SAFETY: the helpers take the context, and read `bytes` of an entry that is there until the program
    // ends.
    unsafe {
        let frame = (&raw const (*held).frame).cast();
        bpf_skb_change_tail(skb, bytes, 0) == 0
            && bpf_skb_store_bytes(skb, 0, frame, bytes, u64::from(BPF_F_RECOMPUTE_CSUM)) == 0
    }
}

/// Puts a copy of the frame into the queue of the interface that it came in by.
#[inline(always)]
fn come_in(skb: *mut __sk_buff) {
    // SAFETY: the helper takes the context. If it fails, a fragment is lost.
    unsafe { bpf_clone_redirect(skb, (*skb).ifindex, u64::from(BPF_F_INGRESS)) };
}
