//! What is counted of EIPs and inside hosts, against the sessions that are there.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;

use gateway_common::records::{
    FILTER_ADDRESS, MAPPED_SOURCE, MAPPED_TARGET, MappingKey, MappingKind, ORIGINAL,
};
use gateway_common::tuple::Direction;

use super::notation::Notation;
use super::{Backend, Store};

/// Whether every count agrees with the sessions.
///
/// # Errors
/// One does not; the error names it.
pub fn check(backend: &mut dyn Backend) -> Result<(), String> {
    let name = backend.name();
    check_family(backend.v4()).map_err(|why| format!("{name}, IPv4: {why}"))?;
    check_family(backend.v6()).map_err(|why| format!("{name}, IPv6: {why}"))
}

fn check_family<F: Notation>(store: &mut dyn Store<F>) -> Result<(), String> {
    let mut eips: BTreeMap<IpAddr, u64> =
        store.eips().into_iter().map(|(address, _)| (F::to_ip(address), 0)).collect();
    let mut hosts: BTreeMap<IpAddr, u64> = BTreeMap::new();
    for (key, session) in store.sessions() {
        if session.flags & ORIGINAL == 0 {
            continue;
        }
        if let Some(count) = eips.get_mut(&F::to_ip(*session.eip(&key))) {
            *count += 1;
        }
        if key.direction == Direction::Outbound as u8 {
            *hosts.entry(F::to_ip(key.endpoints.source)).or_default() += 1;
        }
    }
    let counted = store.eips().into_iter().map(|(address, eip)| (F::to_ip(address), eip.sessions));
    same("sessions of EIPs", counted.collect(), eips)?;
    let counted = store.hosts().into_iter();
    let counted = counted.map(|(address, host)| (F::to_ip(address), u64::from(host.sessions)));
    same("sessions of hosts", counted.collect(), hosts)?;
    check_mappings(store)
}

/// Whether every mapping has both of its entries, counts its sessions and lives no longer than they do.
fn check_mappings<F: Notation>(store: &mut dyn Store<F>) -> Result<(), String> {
    let there: BTreeMap<_, _> = store.mappings().into_iter().collect();
    let mut expected: BTreeMap<MappingKey<F>, u32> = BTreeMap::new();
    let mut key = MappingKey::default();
    for (tuple, session) in store.sessions() {
        if session.flags & ORIGINAL == 0 {
            continue;
        }
        let (before, after) = (&tuple.endpoints, &session.translated);
        if session.flags & MAPPED_TARGET != 0 {
            let (address, port) = (&after.destination, after.destination_port);
            key.set(MappingKind::Inside, address, port, tuple.protocol);
            *expected.entry(key).or_default() += 1;
        }
        if session.flags & MAPPED_SOURCE != 0 {
            key.set(MappingKind::Inside, &before.source, before.source_port, tuple.protocol);
            *expected.entry(key).or_default() += 1;
            if there.get(&key).is_some_and(|mapping| mapping.options & FILTER_ADDRESS != 0) {
                key.kind = MappingKind::Contact as u8;
                key.remote = before.destination;
                *expected.entry(key).or_default() += 1;
            }
        }
    }
    for (inside, mapping) in there.iter().filter(|(key, _)| key.kind == MappingKind::Inside as u8) {
        key.set(MappingKind::External, &mapping.peer, mapping.port, inside.protocol);
        expected.insert(key, 0);
        let back = there.get(&key).map(|external| (external.peer, external.port));
        if back != Some((inside.address, inside.port)) {
            return Err(format!("{inside:?} leads to {key:?}, and that to {back:?}"));
        }
    }
    let counted = there.iter().map(|(key, mapping)| (*key, mapping.users));
    same("users of mappings", counted.collect(), expected)
}

fn same<T: Debug + PartialEq>(what: &str, counted: T, there: T) -> Result<(), String> {
    if counted == there {
        return Ok(());
    }
    Err(format!("{what}: counted {counted:?}, there are {there:?}"))
}
