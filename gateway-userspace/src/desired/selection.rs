//! Whom the selectors of egress gateways take: pods -> their addresses in the VPC of the gateway.
//!
//! A pod leaves through the first gateway whose selectors take it, those that are active coming first. How
//! is for the policies of that gateway to say: the longest one that has the address, and where none has,
//! the address is hidden. Of two pods with one address, as there are while one lingers after its address
//! was given away, the one counts that stays, and the younger one of those.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Owner;
use super::findings::{Findings, Site};
use super::selector::Selector;
use crate::crd::ObjectRef;
use crate::rejection::{Note, Remark};
use crate::source::pods::{Bad, Known, Labels, Pod, PodName, Pods};

/// The selectors of all gateways, those of the older right first, and what else decides about pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Chooser {
    gateways: Vec<Asking>,
    /// Who has which network by a policy, in each VPC.
    claimed: BTreeMap<String, BTreeMap<IpNet, ObjectRef>>,
    /// The VPC of each Subnet.
    vpcs: BTreeMap<String, String>,
}

/// A gateway with selectors.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    pub(super) site: Site,
    pub(super) name: String,
    pub(super) vpc: String,
    pub(super) selectors: Vec<Selector>,
    /// Its policies: CIDR, and whether sources are hidden.
    pub(super) policies: BTreeMap<IpNet, bool>,
}

/// Addresses of pods, and whether they are hidden.
pub(super) type Addresses = BTreeMap<IpAddr, bool>;

/// Who was taken by each gateway.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) gateways: BTreeMap<String, Addresses>,
    pub(super) notes: Vec<Note>,
}

/// The pod that has an address.
type Holder<'p> = (&'p PodName, &'p Pod);

/// What became of the pods that one selector takes.
#[derive(Default)]
struct Tally<'c> {
    taken: usize,
    lost: usize,
    lost_to: Option<(&'c PodName, &'c ObjectRef)>,
}

impl Chooser {
    pub(super) fn new(
        gateways: Vec<Asking>,
        holders: BTreeMap<(String, IpNet), Owner>,
        vpcs: BTreeMap<String, String>,
    ) -> Self {
        let mut claimed: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
        for ((vpc, cidr), owner) in holders {
            claimed.entry(vpc).or_default().insert(cidr, owner.object);
        }
        Self { gateways, claimed, vpcs }
    }

    /// Gives each gateway the pods that it takes.
    pub(super) fn choose(&self, pods: &Pods) -> Chosen {
        let mut findings = Findings::default();
        let mut chosen = Chosen::default();
        if !self.gateways.is_empty() {
            let world = World::new(self, pods, &mut findings);
            let mut takers: HashMap<(&str, IpAddr), &ObjectRef> = HashMap::new();
            for asking in &self.gateways {
                let taken = self.take(asking, &world, &mut takers, &mut findings);
                chosen.gateways.insert(asking.name.clone(), taken);
            }
        }
        chosen.notes = findings.notes;
        chosen
    }

    fn take<'c>(
        &'c self,
        asking: &'c Asking,
        world: &World<'c>,
        takers: &mut HashMap<(&'c str, IpAddr), &'c ObjectRef>,
        findings: &mut Findings,
    ) -> Addresses {
        let (site, vpc) = (&asking.site, asking.vpc.as_str());
        if world.pods.known == Known::NotYet {
            findings.note(site, "selectors", Remark::PodsNotYet);
            return Addresses::new();
        }
        let mut addresses = Addresses::new();
        let mut tallies: BTreeMap<usize, Tally<'c>> =
            asking.selectors.iter().map(|one| (one.index, Tally::default())).collect();
        let claimed = self.claimed.get(vpc);
        for (address, (name, pod)) in world.holders.get(vpc).into_iter().flatten() {
            let Some(selector) = world.first_of(asking, name, pod) else { continue };
            let tally = tallies.entry(selector.index).or_default();
            let network = IpNet::from(*address);
            let claimed = claimed.and_then(|claimed| claimed.get(&network));
            let taker = takers.entry((vpc, *address)).or_insert(claimed.unwrap_or(&site.object));
            if **taker == site.object {
                tally.taken += 1;
                if claimed.is_none() {
                    addresses.insert(*address, asking.hides(*address));
                }
            } else {
                tally.lost += 1;
                tally.lost_to.get_or_insert((*name, *taker));
            }
        }
        for (index, Tally { taken, lost, lost_to }) in tallies {
            let field = format!("selectors[{index}]");
            if let Some((pod, holder)) = lost_to {
                let (first, holder) = (pod.to_string(), holder.clone());
                findings.note(site, &field, Remark::PodsTaken { count: lost, first, holder });
            } else if taken == 0 {
                findings.note(site, &field, Remark::SelectsNobody { vpc: vpc.to_owned() });
            }
        }
        addresses
    }
}

impl Asking {
    fn hides(&self, address: IpAddr) -> bool {
        let covering = self.policies.iter().filter(|(cidr, _)| cidr.contains(&address));
        covering.max_by_key(|(cidr, _)| cidr.prefix_len()).is_none_or(|(_, snat)| *snat)
    }
}

/// Pods and who of them has which address, in the VPCs that are asked for.
struct World<'c> {
    pods: &'c Pods,
    namespaces: HashMap<&'c str, Option<Labels>>,
    holders: BTreeMap<&'c str, BTreeMap<IpAddr, Holder<'c>>>,
}

impl<'c> World<'c> {
    fn new(chooser: &'c Chooser, pods: &'c Pods, findings: &mut Findings) -> Self {
        let asked = chooser.gateways.iter().map(|one| (one.vpc.as_str(), BTreeMap::new()));
        let mut world = Self { pods, namespaces: HashMap::new(), holders: asked.collect() };
        for (name, pod) in pods.iter() {
            let namespace = &*name.namespace;
            world.namespaces.entry(namespace).or_insert_with(|| pods.namespace(namespace));
            for port in &pod.ports {
                let by_subnet = || chooser.vpcs.get(&*port.subnet).map(String::as_str);
                let Some(vpc) = port.vpc.as_deref().or_else(by_subnet) else { continue };
                match &port.addresses {
                    Ok(addresses) => world.hold(vpc, addresses, (name, pod)),
                    Err(bad) => world.complain(chooser, vpc, (name, pod), bad, findings),
                }
            }
        }
        world
    }

    fn hold(&mut self, vpc: &str, addresses: &[IpAddr], holder: Holder<'c>) {
        let Some(holders) = self.holders.get_mut(vpc) else { return };
        let right = |(_, pod): &Holder<'_>| (!pod.leaving, pod.created);
        for address in addresses {
            let there = holders.entry(*address).or_insert(holder);
            if right(&holder) > right(there) {
                *there = holder;
            }
        }
    }

    /// Tells the gateways that would take a pod that it has no address.
    fn complain(
        &self,
        chooser: &Chooser,
        vpc: &str,
        (name, pod): Holder<'_>,
        bad: &Bad,
        findings: &mut Findings,
    ) {
        let of_vpc = chooser.gateways.iter().filter(|asking| asking.vpc == vpc);
        for asking in of_vpc {
            if let Some(selector) = self.first_of(asking, name, pod) {
                let Bad { annotation, value } = bad;
                let (pod, annotation) = (name.to_string(), annotation.to_string());
                let remark = Remark::BadPod { pod, annotation, value: value.to_string() };
                findings.note(&asking.site, &format!("selectors[{}]", selector.index), remark);
            }
        }
    }

    /// The first selector of a gateway that takes the pod.
    fn first_of<'a>(&self, asking: &'a Asking, name: &PodName, pod: &Pod) -> Option<&'a Selector> {
        let labels = self.namespaces.get(&*name.namespace).and_then(Option::as_ref);
        asking.selectors.iter().find(|selector| {
            let wanted = selector.namespaces.as_ref();
            wanted.is_none_or(|wanted| labels.is_some_and(|labels| wanted.take(labels)))
                && selector.pods.as_ref().is_none_or(|wanted| wanted.take(&pod.labels))
        })
    }
}
