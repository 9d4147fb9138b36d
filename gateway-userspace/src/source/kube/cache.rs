//! What the API server said last, kind by kind: changes in, snapshots out. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::{Addressing, Changed, Snapshot};
use super::object::ClusterObject;
use super::pods::PodCache;
use super::resources::RESOURCES;
use crate::crd::{DEFAULT_NAMESPACE, Kind, Object, ObjectRef};
use crate::desired::egress_name;

/// A change of the objects of one kind.
#[derive(Debug)]
pub(super) enum Change<T = ClusterObject> {
    /// These are all of them.
    Listed(Vec<T>),
    /// This one came or changed.
    Applied(Box<T>),
    /// This one went; its key.
    Deleted(String),
}

/// What a gateway can tell of a change.
#[derive(Debug)]
pub(super) enum Effect {
    /// One object is another one now.
    One(Changed),
    /// Anything.
    Any,
}

/// What it means that an object was this before and is that now.
fn effect(before: Option<&ClusterObject>, now: Option<&ClusterObject>) -> Effect {
    // What cannot be decoded has findings of its own, which concern others.
    if [before, now].into_iter().flatten().any(|one| one.plain().is_none()) {
        return Effect::Any;
    }
    let there = now.filter(|one| one.is_there()).and_then(ClusterObject::plain).cloned();
    let either = now.or(before).and_then(ClusterObject::plain);
    either.map_or(Effect::Any, |either| {
        Effect::One(Changed { object: either.object_ref(), now: there })
    })
}

/// The objects of all kinds.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// By kind; a kind that was never listed is not there.
    kinds: BTreeMap<&'static str, BTreeMap<String, ClusterObject>>,
    /// The pods, as long as a gateway asks for them.
    pub(super) pods: PodCache,
}

impl Cache {
    /// Whether the gateway of that name is an egress gateway with selectors.
    pub(super) fn selects(&self, gateway: &str) -> bool {
        let gateways = self.kinds.get(Kind::VpcEgressGateway.as_str());
        let mut objects = gateways.into_iter().flatten().filter_map(|(_, one)| one.plain());
        objects.any(|source| match &source.object {
            Object::EgressGateway(object) => {
                !object.spec.selectors.is_empty()
                    && source.object_ref().name == egress_name(gateway)
            }
            _ => false,
        })
    }

    /// Takes over a change, and returns what a gateway can tell of it, if anything.
    pub(super) fn apply(&mut self, kind: &'static str, change: Change) -> Option<Effect> {
        match change {
            Change::Listed(objects) => {
                let fresh: BTreeMap<_, _> =
                    objects.into_iter().map(|object| (object.key.clone(), object)).collect();
                let Some(before) = self.kinds.insert(kind, fresh) else { return Some(Effect::Any) };
                let now = &self.kinds[kind];
                let changed = before.len() != now.len()
                    || before
                        .iter()
                        .any(|(key, old)| now.get(key).is_none_or(|new| !new.says_the_same(old)));
                changed.then_some(Effect::Any)
            }
            Change::Applied(object) => {
                let objects = self.kinds.entry(kind).or_default();
                let before = objects.get(&object.key);
                if before.is_some_and(|before| before.says_the_same(&object)) {
                    return None;
                }
                let effect = effect(before, Some(&object));
                objects.insert(object.key.clone(), *object);
                Some(effect)
            }
            Change::Deleted(key) => {
                let before = self.kinds.get_mut(kind)?.remove(&key)?;
                Some(effect(Some(&before), None))
            }
        }
    }

    /// The kinds that were not listed yet.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let all = RESOURCES.iter().map(|resource| resource.kind);
        let objects = all.filter(|kind| !self.kinds.contains_key(kind));
        objects.chain(self.pods.missing()).collect()
    }

    /// How many objects of each kind there are.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        let kinds = self.kinds.iter().map(|(kind, objects)| ((*kind).to_owned(), objects.len()));
        kinds.chain(self.pods.count()).collect()
    }

    /// Whom an Event about an object has to name.
    pub(super) fn identity(&self, object: &ObjectRef) -> Option<&ClusterObject> {
        let objects = self.kinds.get(object.kind.as_str())?;
        let in_default = || objects.get(&format!("{DEFAULT_NAMESPACE}/{}", object.name));
        objects.get(&object.name).or_else(in_default)
    }

    /// All objects, the oldest first.
    ///
    /// A rule that is being deleted is gone: kube-ovn-controller removes it at that moment too. What
    /// rules depend on stays until it is really gone, as it does in Kube-OVN.
    pub(super) fn snapshot(&self) -> Snapshot {
        let there = |one: &&ClusterObject| one.is_there();
        let mut all: Vec<_> =
            self.kinds.values().flat_map(BTreeMap::values).filter(there).collect();
        all.sort_by_key(|one| one.created);
        let pods = Arc::clone(self.pods.pods());
        let addressing = Addressing::Cluster;
        let mut snapshot = Snapshot { addressing, pods, ..Snapshot::default() };
        for one in all {
            snapshot.objects.extend(one.content.objects.iter().cloned());
            snapshot.rejections.extend(one.content.rejections.iter().cloned());
            snapshot.notes.extend(one.content.notes.iter().cloned());
        }
        snapshot
    }
}

impl ClusterObject {
    fn is_there(&self) -> bool {
        !(self.deleting && self.is_rule())
    }

    fn is_rule(&self) -> bool {
        // One that cannot be decoded does nothing anyway.
        self.content.objects.iter().all(|source| source.object.kind().is_rule())
    }
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;
    use serde_json::json;

    use super::super::resources::Resource;
    use super::*;
    use crate::crd::Kind;

    fn fip(name: &str, ip: &str, created: &str, deleted: Option<&str>) -> ClusterObject {
        let object: DynamicObject = serde_json::from_value(json!({
            "metadata": {
                "name": name, "creationTimestamp": created, "deletionTimestamp": deleted
            },
            "spec": {"eip": "e", "internalIp": ip},
        }))
        .unwrap();
        ClusterObject::decode(&Resource::of(Kind::IptablesFipRule).unwrap(), &object)
    }

    const FIP: &str = "IptablesFIPRule";
    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-02T00:00:00Z";

    fn names(cache: &Cache) -> Vec<String> {
        cache.snapshot().objects.iter().map(|source| source.object_ref().name).collect()
    }

    #[test]
    fn a_list_replaces_what_was_there_and_the_oldest_comes_first() {
        let mut cache = Cache::default();
        assert!(cache.missing().contains(&FIP));
        let list = || vec![fip("a", "10.0.0.1", LATE, None), fip("b", "10.0.0.2", EARLY, None)];
        assert!(cache.apply(FIP, Change::Listed(list())).is_some());
        assert!(!cache.missing().contains(&FIP));
        assert_eq!(names(&cache), ["b", "a"]);
        let again = cache.apply(FIP, Change::Listed(list()));
        assert!(again.is_none(), "nothing is new in the same list");
        assert!(cache.apply(FIP, Change::Listed(list()[..1].to_vec())).is_some());
        assert_eq!(names(&cache), ["a"]);
    }

    #[test]
    fn an_empty_kind_is_listed_too() {
        let mut cache = Cache::default();
        for resource in RESOURCES {
            cache.apply(resource.kind, Change::Listed(Vec::new()));
        }
        assert_eq!(cache.missing(), [""; 0]);
    }

    #[test]
    fn a_rule_that_is_being_deleted_is_gone() {
        let mut cache = Cache::default();
        let mut applied = |object| match cache.apply(FIP, Change::Applied(Box::new(object))) {
            Some(Effect::One(changed)) => Some(changed.now.is_some()),
            None => None,
            Some(Effect::Any) => panic!("one object changed"),
        };
        assert_eq!(applied(fip("a", "10.0.0.1", EARLY, None)), Some(true));
        assert_eq!(applied(fip("a", "10.0.0.1", EARLY, None)), None);
        assert_eq!(applied(fip("a", "10.0.0.1", EARLY, Some(LATE))), Some(false));
        assert_eq!(names(&cache), [""; 0]);
        assert!(cache.apply(FIP, Change::Deleted("a".into())).is_some());
        assert!(cache.apply(FIP, Change::Deleted("a".into())).is_none());
    }

    #[test]
    fn what_cannot_be_decoded_may_mean_anything() {
        let mut cache = Cache::default();
        let mut bad = fip("a", "10.0.0.1", EARLY, None);
        bad.content.objects.clear();
        for object in [bad.clone(), fip("a", "10.0.0.1", EARLY, None), bad] {
            let effect = cache.apply(FIP, Change::Applied(Box::new(object)));
            assert!(matches!(effect, Some(Effect::Any)), "{effect:?}");
        }
    }
}
