//! The time as the data path counts it.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use gateway_common::records::{Ticks, ticks_from_ns};

/// Nanoseconds of a jiffy, from the loader; 0 if it does not say.
#[unsafe(no_mangle)]
static JIFFY_NS: u64 = 0;

/// What `CLOCK_MONOTONIC` was when jiffies were 0, from the loader: a wrapping difference.
#[unsafe(no_mangle)]
static JIFFIES_AT: u64 = 0;

/// Now. Both clocks advance with the kernel's tick.
///
/// The verifier turns the helper that reads jiffies into a load, and knows what the loader says: what is
/// left is a load, a multiplication and a sum in place of three calls (kernel 5.6).
#[inline(always)]
pub(crate) fn now() -> Ticks {
    // SAFETY: plain reads of constants, which the compiler must not take for what they are here; and
    // helpers without arguments. Kernel 5.11 has both.
    unsafe {
        let jiffy = (&raw const JIFFY_NS).read_volatile();
        if jiffy == 0 {
            return ticks_from_ns(bpf_ktime_get_coarse_ns());
        }
        let since = bpf_jiffies64().wrapping_mul(jiffy);
        ticks_from_ns(since.wrapping_add((&raw const JIFFIES_AT).read_volatile()))
    }
}
