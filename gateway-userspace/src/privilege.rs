//! What a process keeps of its capabilities, once it needs no others.
//!
//! Capabilities belong to threads: each gives up its own, and those that it starts later have no more than it
//! has. None can be got back, by `execve` of a set-user-ID program neither.

use std::fmt;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What `vpc-gateway run` needs while it runs: maps and programs, their verifier's trust (without it
/// programs get barriers against speculation), interfaces and routes, and packets of its own.
pub const RUN: &[Capability] = &[
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
];

/// What `vpc-gateway select` needs while it runs.
pub const SELECT: &[Capability] =
    &[Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN];

/// What it takes to read the maps.
pub const READ_MAPS: &[Capability] = &[Capability::CAP_BPF];

/// For manifests that belong to another user.
pub const READ_FILES: Capability = Capability::CAP_DAC_READ_SEARCH;

/// Capabilities cannot be given up.
#[derive(Debug, thiserror::Error)]
#[error("failed to give up {what}")]
pub struct PrivilegeError {
    what: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed<E>(what: &'static str) -> impl FnOnce(E) -> PrivilegeError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| PrivilegeError { what, source: Box::new(error) }
}

/// What the calling thread has kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept(Vec<Capability>);

impl Kept {
    /// The names, in alphabetical order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        names.sort();
        names
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { f.write_str(&self.names().join(", ")) }
    }
}

/// Gives up every capability of the calling thread but the wanted ones, for good.
///
/// What it does not have it does not get. One that has CAP_SYS_ADMIN in place of CAP_PERFMON, as was asked
/// for before Linux 5.8, keeps that instead.
///
/// # Errors
///
/// When the kernel refuses it. Then nothing should be done with what is left.
pub fn keep(wanted: &[Capability]) -> Result<Kept, PrivilegeError> {
    let has = caps::read(None, CapSet::Permitted).map_err(failed("capabilities"))?;
    let mut kept: CapsHashSet = wanted.iter().copied().filter(|one| has.contains(one)).collect();
    let perfmon = Capability::CAP_PERFMON;
    if wanted.contains(&perfmon)
        && !has.contains(&perfmon)
        && has.contains(&Capability::CAP_SYS_ADMIN)
    {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    nix::sys::prctl::set_no_new_privs().map_err(failed("new privileges"))?;
    bound(&has, &kept)?;
    let none = CapsHashSet::new();
    let drop =
        |set, to: &CapsHashSet, what| caps::set(None, set, to).map_err(failed::<CapsError>(what));
    drop(CapSet::Ambient, &none, "ambient capabilities")?;
    drop(CapSet::Effective, &kept, "effective capabilities")?;
    drop(CapSet::Permitted, &kept, "permitted capabilities")?;
    drop(CapSet::Inheritable, &none, "inheritable capabilities")?;
    let mut kept: Vec<_> = kept.into_iter().collect();
    kept.sort_by_key(Capability::index);
    Ok(Kept(kept))
}

/// Narrows the bounding set, which takes CAP_SETPCAP. Who has none was bound by whoever started it.
fn bound(has: &CapsHashSet, kept: &CapsHashSet) -> Result<(), PrivilegeError> {
    if !has.contains(&Capability::CAP_SETPCAP) {
        return Ok(());
    }
    let set = caps::read(None, CapSet::Bounding).map_err(failed("the bounding set"))?;
    let mut surplus: Vec<_> = set.difference(kept).copied().collect();
    surplus.sort_by_key(Capability::index);
    for one in surplus {
        caps::drop(None, CapSet::Bounding, one).map_err(failed("the bounding set"))?;
    }
    Ok(())
}
