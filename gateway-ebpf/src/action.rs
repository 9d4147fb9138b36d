//! Verdicts as return codes.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::generated::bpf_redirect_neigh,
};
use gateway_common::verdict::{DropReason, NextHop, Verdict};

use crate::maps::{self, Maps};

/// `TC_ACT_REDIRECT`: what `bpf_redirect_neigh` returns when it will send the packet.
const REDIRECT: i32 = 7;

/// Carries `verdict` out and counts it. `next_hop` is the one of the verdict, in a map: addresses
/// that are copied from the stack may lie where the verifier refuses to read them by long words.
#[inline(always)]
pub(crate) fn apply<F: Maps>(verdict: &Verdict<F>, next_hop: &NextHop<F>, frame_bytes: u32) -> i32 {
    let reason = match *verdict {
        Verdict::Forward(_) => {
            let code = redirect(next_hop);
            if code == REDIRECT {
                return code;
            }
            DropReason::HelperFailed
        }
        Verdict::Pass(reason) => {
            maps::count(reason.counter(), frame_bytes);
            return TC_ACT_OK;
        }
        Verdict::Drop(reason) => reason,
    };
    maps::count(reason.counter(), frame_bytes);
    TC_ACT_SHOT
}

/// Hands the packet to the neighbour. A function of its own for its stack frame.
#[inline(never)]
fn redirect<F: Maps>(next_hop: &NextHop<F>) -> i32 {
    let mut neighbor = F::neighbor(next_hop.address);
    let size = size_of_val(&neighbor) as i32;
    // SAFETY: the helper reads `size` bytes of a local.
    unsafe { bpf_redirect_neigh(next_hop.ifindex, &mut neighbor, size, 0) as i32 }
}
