//! The kernel's routing table.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup as FibParameters},
    helpers::generated::bpf_fib_lookup,
};
use gateway_common::{tables::RouteQuery, verdict::NextHop};

use super::Maps;

/// The structure by words, as which it is cleared.
#[repr(C)]
union Question {
    words: [u64; size_of::<FibParameters>() / size_of::<u64>()],
    parameters: FibParameters,
}

/// Asks the kernel's routing table.
#[inline(always)]
pub(super) fn lookup<F: Maps>(
    context: *mut c_void,
    query: &RouteQuery,
    source: &F::Addr,
    destination: &F::Addr,
    next_hop: &mut NextHop<F>,
) -> u32 {
    let mut question = MaybeUninit::<Question>::uninit();
    // SAFETY: the words lie in it, and all-zero is a valid value of the C structure. Volatile, so that
    // no call of `memset` comes of it, which would have a stack frame.
    let parameters = unsafe {
        for word in &mut (*question.as_mut_ptr()).words {
            core::ptr::from_mut(word).write_volatile(0);
        }
        &mut (*question.as_mut_ptr()).parameters
    };
    parameters.family = F::AF;
    parameters.l4_protocol = query.protocol;
    parameters.ifindex = query.ifindex;
    F::ask(parameters, source, destination);
    let size = size_of::<FibParameters>() as i32;
    // SAFETY: the helper reads and writes `size` bytes of a local.
    let code = unsafe { bpf_fib_lookup(context, parameters, size, 0) };
    // An IPv4 route by an IPv6 gateway (RFC 5549) is not supported.
    if parameters.family != F::AF {
        return BPF_FIB_LKUP_RET_UNSUPP_LWT;
    }
    next_hop.ifindex = parameters.ifindex;
    next_hop.address = F::answer(parameters);
    code as u32
}
