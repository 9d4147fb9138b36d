//! Everything that was asked for and not taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::verb::{Order, QosKey, Rules};
use crate::desired::DnatKey;

/// The state that the verbs build up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The external addresses with the prefix length of their network, and the router there where a
    /// verb has named it.
    pub eips: BTreeMap<IpAddr, (IpNet, Option<IpAddr>)>,
    /// The floating IPs: external to internal.
    pub fips: BTreeMap<IpAddr, IpAddr>,
    /// The port forwards.
    pub dnats: BTreeMap<DnatKey, Target>,
    /// The external addresses of each source; never empty.
    pub snats: BTreeMap<IpNet, BTreeSet<IpAddr>>,
    /// Routes by the internal interface.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Networks on the external link, with a router there.
    pub external_routes: BTreeMap<IpNet, Option<IpAddr>>,
    /// Limits, which nobody enforces yet.
    pub qos: BTreeMap<QosKey, String>,
}

/// Where a port forward leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To one endpoint.
    Exclusive(SocketAddr),
    /// To several; never empty.
    Share(BTreeSet<SocketAddr>),
}

/// An order contradicts what is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The EIP is the floating IP of somebody else.
    #[error("{order}: {eip} is the floating IP of {holder} already; remove that first")]
    FipOfOther {
        /// The order.
        order: Order,
        /// The EIP.
        eip: IpAddr,
        /// The internal address that has it.
        holder: IpAddr,
    },
    /// The internal address has another floating IP.
    #[error("{order}: {internal} has the floating IP {eip} already; remove that first")]
    OtherFip {
        /// The order.
        order: Order,
        /// The internal address.
        internal: IpAddr,
        /// Its floating IP.
        eip: IpAddr,
    },
    /// The port leads elsewhere.
    #[error("{order}: {port} leads to {} already; remove that first", show(target))]
    Port {
        /// The order.
        order: Order,
        /// The port.
        port: DnatKey,
        /// Where it leads.
        target: Target,
    },
}

fn show(target: &Target) -> String {
    match target {
        Target::Exclusive(to) => to.to_string(),
        Target::Share(backends) => format!("{} backends that share it", backends.len()),
    }
}

/// The place of one thing in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// [`Ledger::eips`].
    Eip(IpAddr),
    /// [`Ledger::fips`].
    Fip(IpAddr),
    /// [`Ledger::dnats`].
    Dnat(DnatKey),
    /// [`Ledger::snats`].
    Snat(IpNet),
    /// [`Ledger::routes`].
    Route(IpNet),
    /// [`Ledger::external_routes`].
    ExternalRoute(IpNet),
    /// [`Ledger::qos`].
    Qos(QosKey),
}

impl Order {
    /// What the order is about.
    #[must_use]
    pub fn slot(&self) -> Slot {
        match self {
            Self::EipAdd(address, _) => Slot::Eip(address.addr()),
            Self::EipDel(eip) => Slot::Eip(*eip),
            Self::FipAdd(eip, _) | Self::FipDel(eip) => Slot::Fip(*eip),
            Self::DnatAdd(key, _)
            | Self::DnatDel(key)
            | Self::ShareAdd(key, _)
            | Self::ShareDel(key) => Slot::Dnat(*key),
            Self::SnatAdd(cidr, _) | Self::SnatDel(cidr, _) => Slot::Snat(*cidr),
            Self::RouteAdd(cidr, _) | Self::RouteDel(cidr) => Slot::Route(*cidr),
            Self::ExternalRouteAdd(cidr, _) | Self::ExternalRouteDel(cidr) => {
                Slot::ExternalRoute(*cidr)
            }
            Self::QosAdd(key, _) | Self::QosDel(key) => Slot::Qos(key.clone()),
        }
    }
}

impl Ledger {
    /// Does what the order says. Adding what is there and removing what is not changes nothing.
    ///
    /// # Errors
    ///
    /// [`Conflict`]; nothing is changed then.
    pub fn execute(&mut self, order: &Order) -> Result<(), Conflict> {
        self.check(order)?;
        match order {
            Order::EipAdd(address, via) => {
                self.eips.insert(address.addr(), (*address, *via));
            }
            Order::EipDel(eip) => drop(self.eips.remove(eip)),
            Order::FipAdd(eip, internal) => drop(self.fips.insert(*eip, *internal)),
            Order::FipDel(eip) => drop(self.fips.remove(eip)),
            Order::DnatAdd(key, to) => drop(self.dnats.insert(*key, Target::Exclusive(*to))),
            Order::ShareAdd(key, backends) => {
                self.dnats.insert(*key, Target::Share(backends.clone()));
            }
            Order::DnatDel(key) => {
                if matches!(self.dnats.get(key), Some(Target::Exclusive(_))) {
                    self.dnats.remove(key);
                }
            }
            Order::ShareDel(key) => {
                if matches!(self.dnats.get(key), Some(Target::Share(_))) {
                    self.dnats.remove(key);
                }
            }
            Order::SnatAdd(cidr, eip) => {
                self.snats.entry(*cidr).or_default().insert(*eip);
            }
            Order::SnatDel(cidr, eip) => {
                if let Some(eips) = self.snats.get_mut(cidr) {
                    eips.remove(eip);
                    if eips.is_empty() {
                        self.snats.remove(cidr);
                    }
                }
            }
            Order::RouteAdd(cidr, via) => drop(self.routes.insert(*cidr, *via)),
            Order::RouteDel(cidr) => drop(self.routes.remove(cidr)),
            Order::ExternalRouteAdd(cidr, via) => {
                self.external_routes.insert(*cidr, *via);
            }
            Order::ExternalRouteDel(cidr) => drop(self.external_routes.remove(cidr)),
            Order::QosAdd(key, says) => drop(self.qos.insert(key.clone(), says.clone())),
            Order::QosDel(key) => drop(self.qos.remove(key)),
        }
        Ok(())
    }

    fn check(&self, order: &Order) -> Result<(), Conflict> {
        let port = |key: &DnatKey, fits: fn(&Target, &Order) -> bool| match self.dnats.get(key) {
            Some(target) if !fits(target, order) => {
                let (order, target) = (order.clone(), target.clone());
                Err(Conflict::Port { order, port: *key, target })
            }
            _ => Ok(()),
        };
        match order {
            Order::FipAdd(eip, internal) => {
                if let Some(holder) = self.fips.get(eip).filter(|holder| *holder != internal) {
                    let (order, holder) = (order.clone(), *holder);
                    return Err(Conflict::FipOfOther { order, eip: *eip, holder });
                }
                let other = self.fips.iter().find(|(other, to)| *other != eip && *to == internal);
                let Some((other, _)) = other else { return Ok(()) };
                let order = order.clone();
                Err(Conflict::OtherFip { order, internal: *internal, eip: *other })
            }
            Order::DnatAdd(key, _) => port(
                key,
                |there, order| matches!((there, order), (Target::Exclusive(a), Order::DnatAdd(_, b)) if a == b),
            ),
            Order::ShareAdd(key, _) => port(key, |there, _| matches!(there, Target::Share(_))),
            _ => Ok(()),
        }
    }

    /// The orders that make the rules of a kind exactly these: first what goes, then what comes.
    #[must_use]
    pub fn sync(&self, rules: &Rules) -> Vec<Order> {
        match rules {
            Rules::Fips(wanted) => {
                let stays = |pair: &(IpAddr, IpAddr)| wanted.contains(pair);
                let there = self.fips.iter().map(|(eip, internal)| (*eip, *internal));
                let gone = there.filter(|pair| !stays(pair)).map(|(eip, _)| Order::FipDel(eip));
                gone.chain(wanted.iter().map(|(eip, to)| Order::FipAdd(*eip, *to))).collect()
            }
            Rules::Dnats(wanted) => {
                let wanted: BTreeMap<_, _> = wanted.iter().copied().collect();
                let gone = self.dnats.iter().filter_map(|(key, target)| match target {
                    Target::Exclusive(to) if wanted.get(key) != Some(to) => {
                        Some(Order::DnatDel(*key))
                    }
                    Target::Exclusive(_) => None,
                    Target::Share(_) => Some(Order::ShareDel(*key)),
                });
                gone.chain(wanted.iter().map(|(key, to)| Order::DnatAdd(*key, *to))).collect()
            }
            Rules::Snats(wanted) => {
                let wanted: BTreeSet<_> = wanted.iter().copied().collect();
                let there = self.snats.iter();
                let there = there.flat_map(|(cidr, eips)| eips.iter().map(|eip| (*cidr, *eip)));
                let gone = there.filter(|pair| !wanted.contains(pair));
                let gone = gone.map(|(cidr, eip)| Order::SnatDel(cidr, eip));
                gone.chain(wanted.iter().map(|(cidr, eip)| Order::SnatAdd(*cidr, *eip))).collect()
            }
        }
    }

    /// The orders that build the ledger up from nothing.
    pub fn orders(&self) -> impl Iterator<Item = Order> {
        let eips = self.eips.values().map(|(address, via)| Order::EipAdd(*address, *via));
        let fips = self.fips.iter().map(|(eip, internal)| Order::FipAdd(*eip, *internal));
        let dnats = self.dnats.iter().map(|(key, target)| match target {
            Target::Exclusive(to) => Order::DnatAdd(*key, *to),
            Target::Share(backends) => Order::ShareAdd(*key, backends.clone()),
        });
        let snats = self
            .snats
            .iter()
            .flat_map(|(cidr, eips)| eips.iter().map(|eip| Order::SnatAdd(*cidr, *eip)));
        let routes = self.routes.iter().map(|(cidr, via)| Order::RouteAdd(*cidr, *via));
        let external =
            self.external_routes.iter().map(|(cidr, via)| Order::ExternalRouteAdd(*cidr, *via));
        let qos = self.qos.iter().map(|(key, says)| Order::QosAdd(key.clone(), says.clone()));
        eips.chain(fips).chain(dnats).chain(snats).chain(routes).chain(external).chain(qos)
    }

    /// How many orders [`Ledger::orders`] has, nearly.
    #[must_use]
    pub fn len(&self) -> usize {
        let rules = self.fips.len() + self.dnats.len() + self.snats.len();
        rules + self.eips.len() + self.routes.len() + self.external_routes.len() + self.qos.len()
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is in a slot, to be put back.
    #[must_use]
    pub fn take_note(&self, slot: Slot) -> Note {
        match slot {
            Slot::Eip(key) => Note::Eip(key, self.eips.get(&key).copied()),
            Slot::Fip(key) => Note::Fip(key, self.fips.get(&key).copied()),
            Slot::Dnat(key) => Note::Dnat(key, self.dnats.get(&key).cloned()),
            Slot::Snat(key) => Note::Snat(key, self.snats.get(&key).cloned()),
            Slot::Route(key) => Note::Route(key, self.routes.get(&key).copied()),
            Slot::ExternalRoute(key) => {
                Note::ExternalRoute(key, self.external_routes.get(&key).copied())
            }
            Slot::Qos(key) => {
                let says = self.qos.get(&key).cloned();
                Note::Qos(key, says)
            }
        }
    }

    /// Puts back what was in a slot.
    pub fn put_back(&mut self, note: Note) {
        match note {
            Note::Eip(key, value) => put(&mut self.eips, key, value),
            Note::Fip(key, value) => put(&mut self.fips, key, value),
            Note::Dnat(key, value) => put(&mut self.dnats, key, value),
            Note::Snat(key, value) => put(&mut self.snats, key, value),
            Note::Route(key, value) => put(&mut self.routes, key, value),
            Note::ExternalRoute(key, value) => put(&mut self.external_routes, key, value),
            Note::Qos(key, value) => put(&mut self.qos, key, value),
        }
    }
}

/// What was in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// [`Slot::Eip`].
    Eip(IpAddr, Option<(IpNet, Option<IpAddr>)>),
    /// [`Slot::Fip`].
    Fip(IpAddr, Option<IpAddr>),
    /// [`Slot::Dnat`].
    Dnat(DnatKey, Option<Target>),
    /// [`Slot::Snat`].
    Snat(IpNet, Option<BTreeSet<IpAddr>>),
    /// [`Slot::Route`].
    Route(IpNet, Option<IpAddr>),
    /// [`Slot::ExternalRoute`].
    ExternalRoute(IpNet, Option<Option<IpAddr>>),
    /// [`Slot::Qos`].
    Qos(QosKey, Option<String>),
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
