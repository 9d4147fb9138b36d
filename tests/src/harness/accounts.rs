//! What is counted of EIPs and inside hosts, against the sessions that are there.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;

use gateway_common::records::ORIGINAL;
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
    same("sessions of hosts", counted.collect(), hosts)
}

fn same<T: Debug + PartialEq>(what: &str, counted: T, there: T) -> Result<(), String> {
    if counted == there {
        return Ok(());
    }
    Err(format!("{what}: counted {counted:?}, there are {there:?}"))
}
