//! The register of external addresses: who holds which one, and that nobody else does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::findings::{Findings, Site};
use super::{Eip, Owner};
use crate::rejection::{Claim, Problem};

/// The external addresses of all gateways.
#[derive(Clone, Debug, Default)]
pub(super) struct Eips {
    by_name: BTreeMap<String, Named>,
    by_gateway: BTreeMap<String, BTreeMap<IpAddr, Eip>>,
    /// Addresses of v1.7 gateways that were rejected.
    rejected: BTreeSet<(String, IpAddr)>,
    taken: BTreeMap<(Scope, IpAddr), Owner>,
    /// Whether an `IptablesEIP` waits for what others have: it may get it when one of them goes.
    contested: bool,
}

/// What became of an `IptablesEIP`.
#[derive(Clone, Debug)]
pub(super) enum Named {
    /// It has addresses, at most one of each family.
    Accepted {
        /// The gateway that holds it.
        gateway: String,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// It was rejected.
    Rejected {
        /// The gateway that would hold it, if that exists.
        gateway: Option<String>,
    },
}

/// Where an address can be only once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Gateway(String),
    Subnet(String),
}

fn scopes(gateway: &str, subnet: Option<&str>) -> impl Iterator<Item = Scope> {
    let subnet = subnet.map(|name| Scope::Subnet(name.to_owned()));
    [Some(Scope::Gateway(gateway.to_owned())), subnet].into_iter().flatten()
}

impl Eips {
    pub(super) fn named(&self, name: &str) -> Option<&Named> {
        self.by_name.get(name)
    }

    pub(super) fn held_by(&self, gateway: &str, address: IpAddr) -> Option<&Eip> {
        self.by_gateway.get(gateway)?.get(&address)
    }

    pub(super) fn was_rejected(&self, gateway: &str, address: IpAddr) -> bool {
        self.rejected.contains(&(gateway.to_owned(), address))
    }

    pub(super) fn of_gateway(&self, gateway: &str) -> BTreeMap<IpAddr, Eip> {
        self.by_gateway.get(gateway).cloned().unwrap_or_default()
    }

    pub(super) fn is_taken(&self, gateway: &str, subnet: &str, address: IpAddr) -> bool {
        scopes(gateway, Some(subnet)).any(|scope| self.taken.contains_key(&(scope, address)))
    }

    pub(super) fn record(&mut self, name: &str, named: Named) {
        self.by_name.insert(name.to_owned(), named);
    }

    pub(super) const fn is_contested(&self) -> bool {
        self.contested
    }

    /// The addresses of an `IptablesEIP`.
    pub(super) fn addresses(&self, name: &str) -> &[IpAddr] {
        match self.by_name.get(name) {
            Some(Named::Accepted { addresses, .. }) => addresses,
            Some(Named::Rejected { .. }) | None => &[],
        }
    }

    /// The addresses of an `IptablesEIP` if that gateway holds it.
    pub(super) fn addresses_in(&self, gateway: &str, name: &str) -> &[IpAddr] {
        match self.by_name.get(name) {
            Some(Named::Accepted { gateway: holder, addresses }) if holder == gateway => addresses,
            Some(Named::Accepted { .. } | Named::Rejected { .. }) | None => &[],
        }
    }

    /// Forgets an `IptablesEIP`.
    pub(super) fn remove(&mut self, name: &str) {
        let Some(Named::Accepted { gateway, addresses }) = self.by_name.remove(name) else {
            return;
        };
        let mut held = self.by_gateway.get_mut(&gateway);
        for address in addresses {
            let eip = held.as_mut().and_then(|held| held.remove(&address));
            let subnet = eip.and_then(|eip| eip.subnet);
            for scope in scopes(&gateway, subnet.as_deref()) {
                self.taken.remove(&(scope, address));
            }
        }
    }

    /// Notes that an `IptablesEIP` did not get what it wants because others have it.
    pub(super) fn record_contested(&mut self, name: &str, gateway: String) {
        self.contested = true;
        self.record(name, Named::Rejected { gateway: Some(gateway) });
    }

    pub(super) fn record_rejected(&mut self, gateway: &str, address: IpAddr) {
        self.rejected.insert((gateway.to_owned(), address));
    }

    /// Gives all addresses to the gateway, or none and rejects the site naming who has one.
    pub(super) fn claim(
        &mut self,
        site: &Site,
        gateway: &str,
        eips: Vec<(&str, Eip)>,
        findings: &mut Findings,
    ) -> bool {
        for (field, eip) in &eips {
            let address = eip.address.addr();
            let mut scopes = scopes(gateway, eip.subnet.as_deref());
            if let Some(holder) = scopes.find_map(|scope| self.taken.get(&(scope, address))) {
                let (holder, at) = (holder.object.clone(), holder.origin.clone());
                let claim = Claim::Address(address);
                findings.reject(site, field, Problem::Taken { claim, holder, at });
                return false;
            }
        }
        for (_, eip) in eips {
            let address = eip.address.addr();
            for scope in scopes(gateway, eip.subnet.as_deref()) {
                self.taken.insert((scope, address), eip.owner.clone());
            }
            self.by_gateway.entry(gateway.to_owned()).or_default().insert(address, eip);
        }
        true
    }
}
