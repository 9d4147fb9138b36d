//! Counts of users of a map entry that goes with the last one, whatever several CPUs do at once.
//!
//! ```text
//!  insert with 1 ──► n ──join──► n + 1
//!                    │
//!                    └─leave──► 0 ──► LEAVING ──► removed
//! ```
//!
//! Only one CPU turns 0 into [`LEAVING`], and that one removes the entry by its key. While it is
//! there nobody joins, and nobody inserts another one under this key: so it removes what it means to.

// Relaxed additions are `lock +=`, which gives no result, and LLVM 22 uses one all the same if it is asked
// for: so whatever result is looked at comes from a stronger order.
use core::intrinsics::{
    AtomicOrdering::{AcqRel, Relaxed},
    atomic_cxchg, atomic_xadd,
};

use gateway_common::records::LEAVING;

/// Counts one user in; `false` if the entry is just being removed.
///
/// # Safety
///
/// `users` points to an aligned field of a map entry.
#[inline(always)]
pub(crate) unsafe fn join(users: *mut u32) -> bool {
    // SAFETY: as the caller says, and every access to the field from the kernel is atomic.
    let before = unsafe { atomic_xadd::<u32, u32, { AcqRel }>(users, 1) };
    before & LEAVING == 0
}

/// Counts one user out; `true` if he was the last one, and the caller must remove the entry.
///
/// # Safety
///
/// As [`join`].
#[inline(always)]
pub(crate) unsafe fn leave(users: *mut u32) -> bool {
    // SAFETY: as in `join`.
    unsafe {
        let before = atomic_xadd::<u32, u32, { AcqRel }>(users, u32::MAX);
        if before == 0 || before & LEAVING != 0 {
            // He was never counted in.
            atomic_xadd::<u32, u32, { Relaxed }>(users, 1);
            return false;
        }
        before == 1 && atomic_cxchg::<u32, { AcqRel }, { Relaxed }>(users, 0, LEAVING).1
    }
}

/// Adds to a number that other CPUs add to.
///
/// # Safety
///
/// `number` points to an aligned field of a map entry.
#[inline(always)]
pub(crate) unsafe fn add(number: *mut u64, step: u64) {
    // SAFETY: as the caller says. Without its result this is one instruction.
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(number, step) };
}

/// Moves a point in time on by `step`: from `now` if it has passed.
///
/// # Safety
///
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn move_on(due: *mut u64, passed: impl Fn(u64) -> bool, now: u64, step: u64) {
    // SAFETY: as the caller says.
    unsafe {
        // Eight aligned bytes are read at once.
        let before = due.read_volatile();
        let next = now.wrapping_add(step);
        let moved =
            passed(before) && atomic_cxchg::<u64, { AcqRel }, { Relaxed }>(due, before, next).1;
        if !moved {
            // It lies ahead, or another CPU has just moved it there.
            atomic_xadd::<u64, u64, { Relaxed }>(due, step);
        }
    }
}
