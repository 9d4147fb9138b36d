//! What sessions are counted in, on entries that several CPUs change at once.

use aya_ebpf::bindings::BPF_NOEXIST;
use gateway_common::{
    accounting,
    records::{Host, MappingKey, MappingKind},
    tables::EipEvent,
};

use crate::{
    maps::{EXISTS, Maps},
    users,
};

/// Counts something of an address, if it is an EIP.
#[inline(always)]
pub(crate) fn count_eip<F: Maps>(eip: &F::Addr, event: EipEvent) {
    let Some(record) = F::EIPS.get_ptr_mut(eip) else {
        return;
    };
    // SAFETY: fields of an entry that stays there until the program ends.
    unsafe {
        match event {
            EipEvent::Opened => {
                users::add(&raw mut (*record).sessions, 1);
                users::add(&raw mut (*record).opened, 1);
            }
            EipEvent::Closed => users::add(&raw mut (*record).sessions, u64::MAX),
            EipEvent::Refused => users::add(&raw mut (*record).refused, 1),
        }
    }
}

/// Counts a session of a host out, and removes its entry with the last one.
#[inline(always)]
pub(crate) fn leave_host<F: Maps>(address: &F::Addr) {
    let Some(host) = F::HOSTS.get_ptr_mut(address) else {
        return;
    };
    // SAFETY: a field of an entry that stays there until the program ends.
    if unsafe { users::leave(&raw mut (*host).sessions) } {
        let _ = F::HOSTS.remove(address);
    }
}

/// Counts a refused flow of a host, if it has an entry.
#[inline(always)]
pub(crate) fn refuse_host<F: Maps>(address: &F::Addr) {
    if let Some(host) = F::HOSTS.get_ptr_mut(address) {
        // SAFETY: as above. Losing one of two counts is harmless.
        unsafe { (*host).refused = (*host).refused.wrapping_add(1) };
    }
}

/// Counts a session out of a mapping; `true` if it was the last one. `peer` becomes the key of its external
/// entry.
#[inline(always)]
pub(crate) fn leave_mapping<F: Maps>(key: &MappingKey<F>, peer: &mut MappingKey<F>) -> bool {
    let Some(mapping) = F::MAPPINGS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: an entry that stays there until whoever counts the last user out removes it.
    unsafe {
        let last = users::leave(&raw mut (*mapping).users);
        let (address, port) = (&(*mapping).peer, (*mapping).port);
        peer.set(MappingKind::External, address, port, key.protocol);
        last
    }
}

/// How often a host's entry is looked for while other CPUs make it and remove it.
const ENTER_TRIES: usize = 3;

/// Counts a session in. A function of its own for its stack frame.
#[inline(never)]
pub(crate) fn enter_host<F: Maps>(address: &F::Addr, now_ns: u64, interval_ns: u32) {
    let step = u64::from(interval_ns);
    for _ in 0..ENTER_TRIES {
        let Some(host) = F::HOSTS.get_ptr_mut(address) else {
            let first = Host { due: now_ns.wrapping_add(step), sessions: 1, refused: 0 };
            match F::HOSTS.insert(address, first, u64::from(BPF_NOEXIST)) {
                Err(EXISTS) => continue,
                // Without memory the session goes uncounted, and so does its end.
                Ok(()) | Err(_) => return,
            }
        };
        // SAFETY: fields of an entry that stays there until the program ends.
        unsafe {
            if users::join(&raw mut (*host).sessions) {
                let passed = |due| accounting::ahead(due, now_ns) == 0;
                users::move_on(&raw mut (*host).due, passed, now_ns, step);
                return;
            }
        }
    }
}
