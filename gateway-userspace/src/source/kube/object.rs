//! An object as the API server sends it -> an object of ours, or why it is none.
//!
//! The schemas of Kube-OVN let almost everything through, so an object may be anything: each is
//! decoded by itself, and one that cannot be is rejected by its name. Fields that we do not know
//! are no concern of ours here, unlike in a file: a newer Kube-OVN has more of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use kube::api::{DynamicObject, ObjectMeta};

use super::super::decode::{Unknown, decode_one};
use super::super::node::{Entry, Node, Value};
use super::super::{Snapshot, SourceObject};
use super::resources::Resource;
use crate::crd::{GROUP, Object, VERSION};
use crate::rejection::Origin;

/// Where every object of a cluster comes from.
static CLUSTER: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("cluster"));

/// An object of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterObject {
    /// Name, with the namespace before it where there is one.
    pub(super) key: String,
    /// `metadata.uid`, for Events.
    pub(super) uid: String,
    /// `metadata.namespace`, for Events.
    pub(super) namespace: Option<String>,
    /// When it was made, in microseconds since 1970; the older object has the older right.
    pub(super) created: i64,
    /// Whether it is about to go.
    pub(super) deleting: bool,
    /// What it says.
    pub(super) content: Snapshot,
}

impl ClusterObject {
    /// Decodes what the API server sent.
    pub(super) fn decode(resource: &Resource, object: &DynamicObject) -> Self {
        let metadata = &object.metadata;
        let (key, namespace) = (key_of(metadata), metadata.namespace.clone());
        let origin = Origin { source: Arc::clone(&CLUSTER), document: 0, line: 0 };
        let mut content = Snapshot::default();
        decode_one(&tree(resource, object), &origin, Unknown::Ignored, &mut content);
        let created = metadata.creation_timestamp.as_ref();
        let created = created.map_or(0, |time| time.0.as_microsecond());
        for object in content.objects.iter_mut().filter_map(Arc::get_mut) {
            object.rank = created;
        }
        Self {
            key,
            uid: metadata.uid.clone().unwrap_or_default(),
            namespace,
            created,
            deleting: metadata.deletion_timestamp.is_some(),
            content,
        }
    }

    /// The object and nothing else, if that is what it is.
    pub(super) fn plain(&self) -> Option<&Arc<SourceObject>> {
        let content = &self.content;
        match content.objects.as_slice() {
            [one] if content.rejections.is_empty() && content.notes.is_empty() => Some(one),
            _ => None,
        }
    }

    /// Whether a gateway cannot tell the two apart.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        fn objects(one: &ClusterObject) -> impl Iterator<Item = &Object> {
            one.content.objects.iter().map(|source| &source.object)
        }
        self.uid == other.uid
            && self.deleting == other.deleting
            && objects(self).eq(objects(other))
            && self.content.rejections == other.content.rejections
    }
}

/// What tells an object from all others of its kind: the name, with the namespace before it where there is one.
pub(super) fn key_of(metadata: &ObjectMeta) -> String {
    let name = metadata.name.as_deref().unwrap_or_default();
    match &metadata.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// The object as the tree that files are read into.
fn tree<'a>(resource: &Resource, object: &'a DynamicObject) -> Node<'a> {
    let metadata = &object.metadata;
    let mut about = vec![entry("name", text(metadata.name.as_deref().unwrap_or_default()))];
    if let Some(namespace) = &metadata.namespace {
        about.push(entry("namespace", text(namespace)));
    }
    for (key, map) in [("labels", &metadata.labels), ("annotations", &metadata.annotations)] {
        if let Some(map) = map {
            about.push(entry(key, texts(map)));
        }
    }
    let mut root = vec![
        entry("apiVersion", owned(format!("{GROUP}/{VERSION}"))),
        entry("kind", text(resource.kind)),
        entry("metadata", node(Value::Map(about))),
    ];
    if let serde_json::Value::Object(parts) = &object.data {
        root.extend(parts.iter().map(|(key, value)| entry(key, json(value))));
    }
    node(Value::Map(root))
}

fn json(value: &serde_json::Value) -> Node<'_> {
    match value {
        serde_json::Value::Null => node(Value::Plain(Cow::Borrowed("null"))),
        serde_json::Value::Bool(value) => node(Value::Plain(Cow::Owned(value.to_string()))),
        serde_json::Value::Number(value) => node(Value::Plain(Cow::Owned(value.to_string()))),
        serde_json::Value::String(value) => text(value),
        serde_json::Value::Array(items) => node(Value::List(items.iter().map(json).collect())),
        serde_json::Value::Object(fields) => {
            node(Value::Map(fields.iter().map(|(key, value)| entry(key, json(value))).collect()))
        }
    }
}

fn texts(map: &BTreeMap<String, String>) -> Node<'_> {
    node(Value::Map(map.iter().map(|(key, value)| entry(key, text(value))).collect()))
}

fn text<'a>(text: &'a str) -> Node<'a> {
    node(Value::Quoted(Cow::Borrowed(text)))
}

fn owned<'a>(text: String) -> Node<'a> {
    node(Value::Quoted(Cow::Owned(text)))
}

const fn node(value: Value<'_>) -> Node<'_> {
    Node { line: 0, value }
}

fn entry<'a>(key: &'a str, node: Node<'a>) -> Entry<'a> {
    Entry { key: Cow::Borrowed(key), line: 0, node }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::crd::Kind;

    fn decode(kind: Kind, object: serde_json::Value) -> ClusterObject {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        ClusterObject::decode(&Resource::of(kind).unwrap(), &object)
    }

    #[test]
    fn an_eip_has_the_address_that_the_controller_gave_it() {
        let eip = decode(
            Kind::IptablesEip,
            json!({
                "metadata": {
                    "name": "eip01", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
                    "managedFields": [{"manager": "x"}], "finalizers": ["a"]
                },
                "spec": {"natGwDp": "gw", "fieldOfTomorrow": 7},
                "status": {"ip": "203.0.113.9", "ready": false, "conditions": []}
            }),
        );
        assert_eq!(eip.content.rejections, []);
        let Object::Eip(object) = &eip.content.objects[0].object else { panic!() };
        assert_eq!(object.status.ip, "203.0.113.9");
        assert_eq!((eip.key.as_str(), eip.uid.as_str()), ("eip01", "u"));
        assert!(eip.created > 0 && !eip.deleting);
    }

    #[test]
    fn wrong_types_are_rejected_by_name() {
        for (spec, wanted) in [
            (json!({"eip": ["a"]}), "spec.eip: is a list, expected a string"),
            (json!([]), "spec: is a list, expected an object"),
            (json!({"externalPort": {}}), "spec.externalPort: is an object, expected a port"),
        ] {
            let dnat = json!({"metadata": {"name": "d"}, "spec": spec, "status": 7});
            let dnat = decode(Kind::IptablesDnatRule, dnat);
            assert!(dnat.content.objects.is_empty());
            let said: Vec<_> = dnat.content.rejections.iter().map(ToString::to_string).collect();
            assert_eq!(said.len(), 1, "{said:?}");
            let prefix = "cluster: IptablesDnatRule/d: ";
            assert!(said[0].starts_with(&format!("{prefix}{wanted}")), "{said:?}");
        }
    }

    #[test]
    fn what_only_the_controller_cares_about_is_no_change() {
        let rule = |status: serde_json::Value, ip: &str| {
            let spec = json!({"eip": "e", "internalIp": ip});
            let object = json!({"metadata": {"name": "f"}, "spec": spec, "status": status});
            decode(Kind::IptablesFipRule, object)
        };
        let before = rule(json!({}), "10.0.0.1");
        assert!(before.says_the_same(&rule(json!({"ready": true}), "10.0.0.1")));
        assert!(!before.says_the_same(&rule(json!({}), "10.0.0.2")));
    }
}
