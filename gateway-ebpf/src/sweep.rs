//! Ends sessions inside the kernel, where no packet can slip between the decision and the act.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_for_each_map_elem, bpf_ktime_get_coarse_ns};
use gateway_common::{
    accounting,
    endpoint_independent::KeySlot,
    expire,
    records::{ORIGINAL, RuleState, Session, ticks_from_ns, ticks_from_secs},
    session::elapsed,
    tuple::Tuple,
    verdict::SESSIONS_CLOSED,
};

use crate::maps::{self, KernelTables, Maps};

/// How long an entry without its other half is left alone: the half may be on its way.
const ORPHAN_TICKS: u32 = ticks_from_secs(10);

/// Walks the session map of a family. Returns how many sessions ended.
#[inline(always)]
pub(crate) fn sweep<F: Maps>() -> i32 {
    let mut ended: u32 = 0;
    let map: *const _ = F::SESSIONS;
    // SAFETY: the callback has the signature that the kernel calls it with.
    unsafe {
        bpf_for_each_map_elem(
            map.cast_mut().cast(),
            visit::<F> as *mut c_void,
            (&raw mut ended).cast(),
            0,
        );
    }
    ended as i32
}

/// Looks at one entry; returns 0, so that the walk goes on.
extern "C" fn visit<F: Maps>(
    _map: *mut c_void,
    key: *const Tuple<F>,
    session: *const Session<F>,
    ended: *mut u32,
) -> i64 {
    // SAFETY: the kernel passes pointers to a live entry and to the local of `sweep`.
    let (key, session) = unsafe { (*key, &*session) };
    if is_over(&key, session) {
        let original = session.flags & ORIGINAL != 0;
        let (opposite, flags) = (session.opposite(&key), session.flags);
        let _ = F::SESSIONS.remove(opposite);
        // Another CPU may have needed its tuple and removed it meanwhile.
        if F::SESSIONS.remove(key).is_ok() && original {
            // SAFETY: as above.
            unsafe { *ended += 1 };
            maps::count(SESSIONS_CLOSED, 0);
            let mut tables = KernelTables::new(core::ptr::null_mut());
            let mut keys = [KeySlot::default(); 2];
            accounting::closed(&key, &opposite, flags, &mut keys, &mut tables);
        }
    }
    0
}

/// Whether the session with this entry ends. The original entry decides for both.
#[inline(always)]
fn is_over<F: Maps>(key: &Tuple<F>, session: &Session<F>) -> bool {
    // SAFETY: a helper without arguments.
    let now = ticks_from_ns(unsafe { bpf_ktime_get_coarse_ns() });
    let opposite = F::SESSIONS.get_ptr(session.opposite(key));
    if session.flags & ORIGINAL == 0 {
        let idle = elapsed(now, session.last_seen);
        return opposite.is_none() && idle > ORPHAN_TICKS && idle < u32::MAX / 2;
    }
    let state = match session.rule {
        0 => RuleState::Active as u8,
        rule => match maps::rule_state(rule) {
            Some(state) => state,
            None => return true,
        },
    };
    let Some(config) = maps::config() else {
        return false;
    };
    let reply = match opposite {
        // SAFETY: the entry stays readable until the program ends (RCU).
        Some(reply) => unsafe { &*reply },
        None => session,
    };
    let (protocol, direction) = (key.protocol, key.direction);
    if expire::is_expired(protocol, direction, session, reply, &config.timeouts, now) {
        return true;
    }
    if state == RuleState::Draining as u8 {
        maps::count_draining(session.rule);
    }
    false
}
