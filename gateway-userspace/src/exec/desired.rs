//! The ledger as a desired state, whole or one slot of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::ledger::{Ledger, Slot, Target};
use crate::crd::{Kind, ObjectRef};
use crate::desired::{
    Affinity, Backend, DesiredState, Dnat, DnatKey, Eip, Fip, Gateway, NatBehavior, Network,
    NextHops, Owner, Sharing, Snat, SnatEip,
};
use crate::encode::part::Touched;
use crate::rejection::Origin;

/// What the verbs do not say: who the gateway is, and the routers of its external network.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The name of the gateway.
    pub name: String,
    /// The routers, at most one of each family.
    pub routers: Vec<IpAddr>,
}

impl Identity {
    /// The state that the whole ledger asks for.
    #[must_use]
    pub fn desired(&self, ledger: &Ledger) -> DesiredState {
        let gateway = Gateway {
            name: self.name.clone(),
            vpc: String::new(),
            subnet: None,
            lan_ips: Vec::new(),
            external_subnets: vec![Network {
                name: String::new(),
                cidrs: Vec::new(),
                gateways: self.routers.clone(),
            }],
            routes: ledger.routes.clone(),
            next_hops: NextHops::default(),
            owner: owner(Kind::VpcNatGateway, self.name.clone()),
        };
        let mut state = DesiredState {
            gateway,
            eips: [].into(),
            fips: [].into(),
            dnats: [].into(),
            snats: [].into(),
            forwards: [].into(),
        };
        let eips = ledger.eips.keys().map(|key| Slot::Eip(*key));
        let fips = ledger.fips.keys().map(|key| Slot::Fip(*key));
        let dnats = ledger.dnats.keys().map(|key| Slot::Dnat(*key));
        let snats = ledger.snats.keys().map(|key| Slot::Snat(*key));
        for slot in eips.chain(fips).chain(dnats).chain(snats) {
            update(&mut state, ledger, &slot);
        }
        state
    }
}

/// Makes one thing of the state what the ledger says of it.
pub fn update(state: &mut DesiredState, ledger: &Ledger, slot: &Slot) {
    match slot {
        Slot::Eip(key) => {
            let eip = ledger.eips.get(key).map(|(address, router)| Eip {
                address: *address,
                subnet: None,
                gateway: *router,
                owner: owner(Kind::IptablesEip, key.to_string()),
            });
            put(&mut state.eips, *key, eip);
        }
        Slot::Fip(key) => {
            let fip = ledger.fips.get(key).map(|internal| Fip {
                internal: *internal,
                owner: owner(Kind::IptablesFipRule, key.to_string()),
            });
            put(&mut state.fips, *key, fip);
        }
        Slot::Dnat(key) => {
            put(&mut state.dnats, *key, ledger.dnats.get(key).map(|target| dnat(key, target)));
        }
        Slot::Snat(key) => {
            let snat = ledger.snats.get(key).map(|eips| Snat {
                eips: eips
                    .iter()
                    .map(|eip| SnatEip {
                        eip: *eip,
                        behavior: NatBehavior::default(),
                        owner: owner(Kind::IptablesSnatRule, format!("{eip}-{key}")),
                    })
                    .collect(),
            });
            put(&mut state.snats, *key, snat);
        }
        Slot::Route(key) => {
            put(&mut state.gateway.routes, *key, ledger.routes.get(key).copied());
        }
        Slot::ExternalRoute(_) | Slot::Qos(_) => {}
    }
}

/// The rules of the maps among the slots.
#[must_use]
pub fn touched<'s>(slots: impl IntoIterator<Item = &'s Slot>) -> Touched {
    let mut touched = Touched::default();
    for slot in slots {
        match slot {
            Slot::Fip(key) => drop(touched.fips.insert(*key)),
            Slot::Dnat(key) => drop(touched.dnats.insert(*key)),
            Slot::Snat(key) => drop(touched.snats.insert(*key)),
            Slot::Eip(_) | Slot::Route(_) | Slot::ExternalRoute(_) | Slot::Qos(_) => {}
        }
    }
    touched
}

fn dnat(key: &DnatKey, target: &Target) -> Dnat {
    let backend = |to: &SocketAddr, name: String| Backend {
        endpoint: *to,
        weight: 1,
        owner: owner(Kind::IptablesDnatRule, name),
    };
    let (sharing, backends) = match target {
        Target::Exclusive(to) => (Sharing::Exclusive, vec![backend(to, key.to_string())]),
        Target::Share(all) => {
            let all = all.iter().map(|to| backend(to, format!("{key}-{to}")));
            (Sharing::Share, all.collect())
        }
    };
    Dnat { sharing, affinity: Affinity::None, backends }
}

/// Kube-OVN does not tell the names of its objects, so a rule is called what it is about.
fn owner(kind: Kind, name: String) -> Owner {
    let origin = Origin { source: Arc::from("exec"), document: 0, line: 0 };
    Owner { object: ObjectRef::new(kind, name), origin }
}

fn put<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
