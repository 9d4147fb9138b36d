//! Verdicts as return codes.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, bpf_redir_neigh},
    helpers::generated::bpf_redirect_neigh,
};
use gateway_common::verdict::{DropReason, NextHop, PassReason, Verdict};

use crate::maps::{self, Maps};

/// `TC_ACT_REDIRECT`: what `bpf_redirect_neigh` returns when it will send the packet.
const REDIRECT: i32 = 7;

/// Carries `verdict` out and counts it. `next_hop` is the one of the verdict, in a map: addresses
/// that are copied from the stack may lie where the verifier refuses to read them by long words.
#[inline(always)]
pub(crate) fn apply<F: Maps>(
    verdict: &Verdict<F>,
    next_hop: &NextHop<F>,
    neighbor: &mut bpf_redir_neigh,
    frame_bytes: u32,
) -> i32 {
    let reason = match *verdict {
        Verdict::Forward(_) => {
            let code = redirect(next_hop, neighbor);
            if code == REDIRECT {
                return code;
            }
            DropReason::HelperFailed
        }
        Verdict::Pass(reason) => {
            maps::count(reason.counter(), frame_bytes);
            // Of these, copies go on.
            return match reason {
                PassReason::Replayed | PassReason::Fragmented => TC_ACT_SHOT,
                _ => TC_ACT_OK,
            };
        }
        Verdict::Drop(reason) => reason,
    };
    maps::count(reason.counter(), frame_bytes);
    TC_ACT_SHOT
}

/// Hands the packet to the neighbour.
#[inline(always)]
fn redirect<F: Maps>(next_hop: &NextHop<F>, neighbor: &mut bpf_redir_neigh) -> i32 {
    F::put_neighbor(&next_hop.address, neighbor);
    let size = size_of_val(neighbor) as i32;
    // SAFETY: the helper reads `size` bytes of a map's value.
    unsafe { bpf_redirect_neigh(next_hop.ifindex, neighbor, size, 0) as i32 }
}
