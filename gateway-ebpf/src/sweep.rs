//! Ends sessions inside the kernel, where no packet can slip between the decision and the act.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_for_each_map_elem, bpf_skb_load_bytes},
};
use gateway_common::{
    accounting,
    endpoint_independent::KeySlot,
    records::{ORIGINAL, RuleState, Session},
    sweep::{self, Fate, HEADER_BYTES},
    tuple::Tuple,
    verdict::SESSIONS_CLOSED,
};

use crate::{
    clock,
    maps::{self, KernelTables, Maps},
    stages::Tc,
};

/// A frame of keys, and what became of them.
struct Walk {
    skb: *mut __sk_buff,
    ended: u32,
}

/// Looks at the session entries whose keys are in the frame. Returns how many sessions ended.
#[inline(always)]
pub(crate) fn sweep<F: Maps>(skb: *mut __sk_buff) -> i32 {
    let mut walk = Walk { skb, ended: 0 };
    // SAFETY: the callback has the signature that the kernel calls it with.
    unsafe {
        bpf_for_each_map_elem(maps::ports(), visit::<F> as *mut c_void, (&raw mut walk).cast(), 0);
    }
    walk.ended as i32
}

/// Looks at the `index`-th key; returns 1 behind the last one.
extern "C" fn visit<F: Maps>(
    _map: *mut c_void,
    index: *const u32,
    _value: *const u8,
    walk: *mut Walk,
) -> i64 {
    let mut key = Tuple::<F>::default();
    // SAFETY: the kernel passes the index and the pointer to the local of `sweep`; the helper writes as
    // many bytes as a key has.
    let missing = unsafe {
        let offset = HEADER_BYTES as u32 + *index * size_of::<Tuple<F>>() as u32;
        let skb: *const c_void = (*walk).skb.cast();
        bpf_skb_load_bytes(skb, offset, (&raw mut key).cast(), size_of::<Tuple<F>>() as u32)
    };
    if missing != 0 {
        return 1;
    }
    // SAFETY: the entry stays readable until the program ends (RCU).
    let Some(session) = F::SESSIONS.get_ptr(key).map(|session| unsafe { &*session }) else {
        return 0;
    };
    match fate(&key, session) {
        Fate::Stays => {}
        Fate::Drains => maps::count_draining(session.rule),
        Fate::Ends => {
            if end(&key, session) {
                // SAFETY: as above.
                unsafe { (*walk).ended += 1 };
            }
        }
    }
    0
}

#[inline(always)]
fn fate<F: Maps>(key: &Tuple<F>, session: &Session<F>) -> Fate {
    let now = clock::now();
    let Some(config) = maps::config() else {
        return Fate::Stays;
    };
    let opposite = session.opposite(key);
    let target = state_of_target(&opposite, session.flags);
    let rule = sweep::state_of_both(state(session.rule), target);
    // SAFETY: as in `visit`.
    let opposite = F::SESSIONS.get_ptr(opposite).map(|reply| unsafe { &*reply });
    sweep::fate(key, session, opposite, rule, &config.timeouts, now)
}

#[inline(always)]
fn state(rule: u32) -> u8 {
    match rule {
        0 => RuleState::Active as u8,
        rule => maps::rule_state(rule),
    }
}

// A function of its own for its stack frame.
#[inline(never)]
fn state_of_target<F: Maps>(reply: &Tuple<F>, flags: u8) -> u8 {
    let mut tables = KernelTables::<F, Tc>::new(core::ptr::null_mut());
    state(sweep::rule_of_target(reply, flags, &mut KeySlot::default(), &mut tables))
}

/// Removes both entries; `true` if that was a session.
#[inline(always)]
fn end<F: Maps>(key: &Tuple<F>, session: &Session<F>) -> bool {
    let original = session.flags & ORIGINAL != 0;
    let (opposite, flags) = (session.opposite(key), session.flags);
    let _ = F::SESSIONS.remove(opposite);
    // Another CPU may have needed its tuple and removed it meanwhile.
    if F::SESSIONS.remove(*key).is_err() || !original {
        return false;
    }
    maps::count(SESSIONS_CLOSED, 0);
    let mut tables = KernelTables::<F, Tc>::new(core::ptr::null_mut());
    let mut keys = [KeySlot::default(); 2];
    accounting::closed(key, &opposite, flags, &mut keys, &mut tables);
    true
}
