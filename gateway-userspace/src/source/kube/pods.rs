//! The pods and namespaces of a cluster, of which only the metadata is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kube::ResourceExt as _;
use kube::api::{DynamicObject, ListParams, WatchParams};
use kube::core::PartialObjectMeta;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::super::pods::{Known, Labels, Pod, PodName, Pods, namespace_labels};
use super::Message;
use super::cache::Change;
use super::resources::{NAMESPACES, PODS, Resource};
use super::watch::{Watched, Watcher};
use crate::metrics::gateway::Heard;

/// Pods that have ended have no network any more. What is in the network of its node has no address of
/// Kube-OVN, and is left out by that.
const NOT_ENDED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// A pod of the cluster.
#[derive(Debug)]
pub(super) struct OnePod(PodName, Pod);

/// A namespace of the cluster.
#[derive(Debug)]
pub(super) struct OneNamespace(Box<str>, Labels);

fn pairs(map: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    map.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

impl Watched for OnePod {
    type Object = PartialObjectMeta<DynamicObject>;
    const FIELDS: &'static str = NOT_ENDED;

    fn decode(_: &Resource, object: &Self::Object) -> Self {
        let annotations: BTreeMap<_, _> = pairs(object.annotations()).collect();
        let pod = Pod {
            created: object.creation_timestamp().map_or(0, |time| time.0.as_microsecond()),
            leaving: object.metadata.deletion_timestamp.is_some(),
            ..Pod::new(Labels::new(pairs(object.labels())), &annotations)
        };
        let namespace = object.namespace().unwrap_or_default().into();
        Self(PodName { namespace, name: object.name_any().into() }, pod)
    }

    fn message(_: &'static str, change: Change<Self>, at: Instant) -> Message {
        Message::Pods(change, at)
    }
}

impl Watched for OneNamespace {
    type Object = PartialObjectMeta<DynamicObject>;
    const FIELDS: &'static str = "";

    fn decode(_: &Resource, object: &Self::Object) -> Self {
        let name = object.name_any();
        let labels = namespace_labels(&name, pairs(object.labels()));
        Self(name.into(), labels)
    }

    fn message(_: &'static str, change: Change<Self>, at: Instant) -> Message {
        Message::Namespaces(change, at)
    }
}

/// What is known of pods, as long as that is asked for.
#[derive(Debug)]
pub(super) struct PodCache {
    pods: Arc<Pods>,
    wanted: bool,
    /// Whether pods, and namespaces, have been listed.
    listed: (bool, bool),
}

impl Default for PodCache {
    fn default() -> Self {
        Self { pods: Pods::new(Known::NotYet).into(), wanted: false, listed: (false, false) }
    }
}

impl PodCache {
    /// Whether pods are asked for. Returns whether that is news; what is known is forgotten then.
    pub(super) fn want(&mut self, wanted: bool) -> bool {
        let news = wanted != self.wanted;
        if news {
            *self = Self { wanted, ..Self::default() };
        }
        news
    }

    /// Takes over a change. Returns whether it is news.
    pub(super) fn apply(&mut self, change: Change<OnePod>) -> bool {
        if !self.wanted {
            return false;
        }
        let pods = Arc::make_mut(&mut self.pods);
        match change {
            Change::Listed(all) => {
                let first = !std::mem::replace(&mut self.listed.0, true);
                pods.replace(all.into_iter().map(|OnePod(name, pod)| (name, pod)))
                    | self.tell(first)
            }
            Change::Applied(one) => {
                let OnePod(name, pod) = *one;
                pods.set(name, Some(pod))
            }
            Change::Deleted(key) => {
                let (namespace, name) = key.split_once('/').unwrap_or_default();
                pods.set(PodName { namespace: namespace.into(), name: name.into() }, None)
            }
        }
    }

    /// As [`Self::apply`], for namespaces.
    pub(super) fn apply_namespace(&mut self, change: Change<OneNamespace>) -> bool {
        if !self.wanted {
            return false;
        }
        let pods = Arc::make_mut(&mut self.pods);
        match change {
            Change::Listed(all) => {
                let first = !std::mem::replace(&mut self.listed.1, true);
                let all = all.into_iter().map(|OneNamespace(name, labels)| (name, labels));
                pods.replace_namespaces(all) | self.tell(first)
            }
            Change::Applied(one) => {
                let OneNamespace(name, labels) = *one;
                pods.set_namespace(&name, Some(labels))
            }
            Change::Deleted(key) => pods.set_namespace(&key, None),
        }
    }

    /// Tells what is known once both have been listed. Returns whether that is so for the first time.
    fn tell(&mut self, first: bool) -> bool {
        let all = self.listed == (true, true);
        if all {
            Arc::make_mut(&mut self.pods).known = Known::Cluster;
        }
        first && all
    }

    /// The kinds that were not listed yet.
    pub(super) fn missing(&self) -> impl Iterator<Item = &'static str> {
        let kinds = [(PODS.kind, self.listed.0), (NAMESPACES.kind, self.listed.1)];
        kinds.into_iter().filter(|(_, listed)| self.wanted && !listed).map(|(kind, _)| kind)
    }

    /// How many of them there are, if anybody asks.
    pub(super) fn count(&self) -> Option<(String, usize)> {
        self.wanted.then(|| (PODS.kind.to_owned(), self.pods.len()))
    }

    pub(super) const fn pods(&self) -> &Arc<Pods> {
        &self.pods
    }
}

/// Watches both while that is wanted, until nobody can want it any more.
pub(super) async fn watch_on_demand(
    client: kube::Client,
    sender: mpsc::UnboundedSender<Message>,
    heard: Heard,
    mut wanted: watch::Receiver<bool>,
) {
    let mut running: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let want = *wanted.borrow_and_update();
        if want && running.is_empty() {
            let ends = || (client.clone(), sender.clone(), heard.clone());
            let pods = Watcher::<OnePod>::new(PODS, ends());
            let namespaces = Watcher::<OneNamespace>::new(NAMESPACES, ends());
            running = vec![tokio::spawn(pods.run()), tokio::spawn(namespaces.run())];
        } else if !want {
            running.drain(..).for_each(|task| task.abort());
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// With a selection of objects by their fields, if there is one.
pub(super) fn list_params(fields: &str) -> ListParams {
    let params = ListParams::default();
    if fields.is_empty() { params } else { params.fields(fields) }
}

/// As [`list_params`].
pub(super) fn watch_params(fields: &str) -> WatchParams {
    let params = WatchParams::default();
    if fields.is_empty() { params } else { params.fields(fields) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, address: &str) -> OnePod {
        let object = json!({"metadata": {
            "name": name, "namespace": "shop", "labels": {"team": "red"},
            "annotations": {
                "ovn.kubernetes.io/allocated": "true", "ovn.kubernetes.io/ip_address": address
            }
        }});
        OnePod::decode(&PODS, &serde_json::from_value(object).unwrap())
    }

    fn namespace(name: &str) -> OneNamespace {
        let object = json!({"metadata": {"name": name, "labels": {"env": "prod"}}});
        OneNamespace::decode(&NAMESPACES, &serde_json::from_value(object).unwrap())
    }

    #[test]
    fn pods_are_known_once_both_kinds_are_listed() {
        let mut cache = PodCache::default();
        assert!(!cache.apply(Change::Listed(vec![pod("a", "10.0.1.5")])), "nobody asks");
        assert!(cache.want(true) && !cache.want(true));
        assert_eq!(cache.missing().collect::<Vec<_>>(), ["Pod", "Namespace"]);
        cache.apply(Change::Listed(vec![pod("a", "10.0.1.5")]));
        assert_eq!(cache.pods().known, Known::NotYet);
        assert!(cache.apply_namespace(Change::Listed(Vec::new())), "now they are");
        assert_eq!((cache.pods().known, cache.missing().count()), (Known::Cluster, 0));
        assert!(cache.want(false));
        assert!(cache.pods().is_empty() && cache.pods().known == Known::NotYet);
    }

    #[test]
    fn only_what_changes_an_address_or_a_label_is_news() {
        let mut cache = PodCache::default();
        cache.want(true);
        let applied = |pod| Change::Applied(Box::new(pod));
        assert!(cache.apply(applied(pod("a", "10.0.1.5"))));
        assert!(!cache.apply(applied(pod("a", "10.0.1.5"))));
        assert!(cache.apply(applied(pod("a", "10.0.1.6"))));
        assert!(cache.apply(Change::Deleted("shop/a".into())));
        assert!(!cache.apply(Change::Deleted("shop/a".into())));
        let applied = |namespace| Change::Applied(Box::new(namespace));
        assert!(cache.apply_namespace(applied(namespace("shop"))));
        assert!(!cache.apply_namespace(applied(namespace("shop"))));
        assert!(cache.apply_namespace(Change::Deleted("shop".into())));
    }
}
