//! Pods and namespaces, as far as the selectors of egress gateways ask for them: labels, and the addresses
//! that Kube-OVN gave.
//!
//! | annotation | what it says |
//! |---|---|
//! | `PROVIDER.kubernetes.io/allocated` | `true`: the address is given, and not only asked for |
//! | `PROVIDER.kubernetes.io/logical_router` | the VPC |
//! | `PROVIDER.kubernetes.io/logical_switch` | the Subnet, which has a VPC where no router is named |
//! | `PROVIDER.kubernetes.io/ip_address` | one address, or one of each family |
//!
//! `PROVIDER` is `ovn` for the first interface of a pod. Nothing else of a pod is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::desired::value;

/// The label that the API server gives every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Who knows pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Known {
    /// Files: whatever is in them. A namespace that is not has the one label that every namespace has.
    #[default]
    Files,
    /// A cluster that has not told yet.
    NotYet,
    /// A cluster.
    Cluster,
}

/// All pods with an address, and all namespaces.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Who knows them.
    pub known: Known,
    pods: BTreeMap<PodName, Pod>,
    namespaces: BTreeMap<Box<str>, Labels>,
    /// The files that name pods or namespaces.
    files: BTreeSet<Arc<str>>,
}

/// The namespace and the name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// The namespace.
    pub namespace: Box<str>,
    /// The name in it.
    pub name: Box<str>,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pod/{}/{}", self.namespace, self.name)
    }
}

/// Labels in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// Of keys and values in any order.
    pub fn new<'t>(labels: impl IntoIterator<Item = (&'t str, &'t str)>) -> Self {
        let sorted: BTreeMap<_, _> = labels.into_iter().collect();
        Self(sorted.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// The value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(there, _)| (**there).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }
}

/// What is kept of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Its interfaces.
    pub ports: Box<[Port]>,
    /// When it was made, in microseconds since 1970.
    pub created: i64,
    /// Whether it is being deleted. It has its addresses until it is gone.
    pub leaving: bool,
}

/// An interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The VPC, if the pod says.
    pub vpc: Option<Box<str>>,
    /// The Subnet, or nothing.
    pub subnet: Box<str>,
    /// Its addresses, or the annotation that says something else.
    pub addresses: Result<Box<[IpAddr]>, Bad>,
}

/// An annotation that says no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Its key.
    pub annotation: Box<str>,
    /// Its value.
    pub value: Box<str>,
}

impl Pod {
    /// Of its labels and annotations, nothing else being known of it.
    #[must_use]
    pub fn new(labels: Labels, annotations: &BTreeMap<&str, &str>) -> Self {
        let allocated = annotations.iter().filter(|(_, value)| **value == "true");
        let providers = allocated.filter_map(|(key, _)| key.strip_suffix("/allocated"));
        let ports = providers.filter_map(|provider| port(provider, annotations));
        Self { labels, ports: ports.collect(), ..Self::default() }
    }
}

/// The interface of a provider, if it has an address.
fn port(provider: &str, annotations: &BTreeMap<&str, &str>) -> Option<Port> {
    let of = |what: &str| annotations.get(&*format!("{provider}/{what}")).copied();
    let text = provider.ends_with(".kubernetes.io").then(|| of("ip_address")).flatten()?;
    let addresses = value::per_family(text, value::address, IpAddr::is_ipv4);
    Some(Port {
        vpc: of("logical_router").filter(|vpc| !vpc.is_empty()).map(Into::into),
        subnet: of("logical_switch").unwrap_or_default().into(),
        addresses: addresses.map(Into::into).map_err(|_| Bad {
            annotation: format!("{provider}/ip_address").into(),
            value: text.into(),
        }),
    })
}

impl Pods {
    /// None so far, known to whoever that is.
    #[must_use]
    pub fn new(known: Known) -> Self {
        Self { known, ..Self::default() }
    }

    /// Takes over a pod; `None`: it went, or has ended. Returns whether that is news.
    pub fn set(&mut self, name: PodName, pod: Option<Pod>) -> bool {
        // One without an address cannot be selected.
        match pod.filter(|pod| !pod.ports.is_empty()) {
            Some(pod) if self.pods.get(&name) == Some(&pod) => false,
            Some(pod) => {
                self.pods.insert(name, pod);
                true
            }
            None => self.pods.remove(&name).is_some(),
        }
    }

    /// Takes over a namespace; `None`: it went. Returns whether that is news.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        match labels {
            Some(labels) if self.namespaces.get(name) == Some(&labels) => false,
            Some(labels) => {
                self.namespaces.insert(name.into(), labels);
                true
            }
            None => self.namespaces.remove(name).is_some(),
        }
    }

    /// All pods are these. Returns whether that is news.
    pub fn replace(&mut self, pods: impl IntoIterator<Item = (PodName, Pod)>) -> bool {
        let pods = pods.into_iter().filter(|(_, pod)| !pod.ports.is_empty()).collect();
        let before = std::mem::replace(&mut self.pods, pods);
        before != self.pods
    }

    /// All namespaces are these. Returns whether that is news.
    pub fn replace_namespaces(
        &mut self,
        namespaces: impl IntoIterator<Item = (Box<str>, Labels)>,
    ) -> bool {
        let namespaces = namespaces.into_iter().collect();
        let before = std::mem::replace(&mut self.namespaces, namespaces);
        before != self.namespaces
    }

    /// All pods with an address.
    pub fn iter(&self) -> impl Iterator<Item = (&PodName, &Pod)> {
        self.pods.iter()
    }

    /// How many pods have an address.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether no pod has an address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// The labels of a namespace; `None` if nobody has told of it.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<Labels> {
        match self.namespaces.get(name) {
            Some(labels) => Some(labels.clone()),
            None if self.known == Known::Files => Some(Labels::new([(NAMESPACE_NAME, name)])),
            None => None,
        }
    }

    /// Notes that a file names a pod or a namespace.
    pub(super) fn named_in(&mut self, file: &Arc<str>) {
        self.files.insert(Arc::clone(file));
    }

    /// Whether a file names a pod or a namespace.
    pub(super) fn are_in(&self, file: &str) -> bool {
        self.files.contains(file)
    }
}

/// The labels of a namespace, with the one that every namespace has.
pub(super) fn namespace_labels<'t>(
    name: &'t str,
    labels: impl IntoIterator<Item = (&'t str, &'t str)>,
) -> Labels {
    Labels::new(labels.into_iter().chain([(NAMESPACE_NAME, name)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: &[(&'static str, &'static str)]) -> Pod {
        Pod::new(Labels::default(), &annotations.iter().copied().collect())
    }

    #[test]
    fn every_interface_with_an_allocated_address_is_one() {
        let both = pod(&[
            ("ovn.kubernetes.io/allocated", "true"),
            ("ovn.kubernetes.io/ip_address", "10.0.1.5,fd00::5"),
            ("ovn.kubernetes.io/logical_router", "vpc1"),
            ("ovn.kubernetes.io/logical_switch", "tenants"),
            ("second.default.ovn.kubernetes.io/allocated", "true"),
            ("second.default.ovn.kubernetes.io/ip_address", "10.0.2.5"),
            ("second.default.ovn.kubernetes.io/logical_switch", "others"),
        ]);
        let [first, second] = &both.ports[..] else { panic!("{both:?}") };
        assert_eq!((first.vpc.as_deref(), &*first.subnet), (Some("vpc1"), "tenants"));
        assert_eq!(first.addresses.as_ref().unwrap().len(), 2);
        assert_eq!((second.vpc.as_deref(), &*second.subnet), (None, "others"));
    }

    #[test]
    fn an_address_that_is_only_asked_for_is_none() {
        let asked = pod(&[("ovn.kubernetes.io/ip_address", "10.0.1.5")]);
        assert_eq!(asked.ports.len(), 0);
        let without = pod(&[("ovn.kubernetes.io/allocated", "true")]);
        assert_eq!(without.ports.len(), 0);
        let other = pod(&[("example.org/allocated", "true"), ("example.org/ip_address", "::1")]);
        assert_eq!(other.ports.len(), 0);
    }

    #[test]
    fn what_is_no_address_is_told_with_its_annotation() {
        for value in ["10.0.1", "10.0.1.5,10.0.1.6", "127.0.0.1", ""] {
            let annotations =
                [("ovn.kubernetes.io/allocated", "true"), ("ovn.kubernetes.io/ip_address", value)];
            let pod = Pod::new(Labels::default(), &annotations.into());
            let bad = pod.ports[0].addresses.as_ref().unwrap_err();
            assert_eq!(&*bad.annotation, "ovn.kubernetes.io/ip_address");
            assert_eq!(&*bad.value, value);
        }
    }

    #[test]
    fn a_namespace_of_files_has_its_name_as_label_and_one_of_a_cluster_has_to_be_told() {
        let mut pods = Pods::default();
        assert_eq!(pods.namespace("a").unwrap().get(NAMESPACE_NAME), Some("a"));
        assert!(pods.set_namespace("a", Some(namespace_labels("a", [("team", "red")]))));
        assert!(!pods.set_namespace("a", Some(namespace_labels("a", [("team", "red")]))));
        let labels = pods.namespace("a").unwrap();
        assert_eq!((labels.get("team"), labels.get(NAMESPACE_NAME)), (Some("red"), Some("a")));
        assert_eq!(Pods::new(Known::NotYet).namespace("a"), None);
    }
}
