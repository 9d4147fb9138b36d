//! A document -> a pod or a namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::{Decoder, Finding, field, text};
use crate::crd::{DEFAULT_NAMESPACE, PodMetadata, PodSpec, PodStatus};
use crate::source::deserialize::{Read, read};
use crate::source::pods::{Labels, Pod, PodName, Pods, namespace_labels};

/// A kind of the core group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Core {
    Pod,
    Namespace,
}

impl Core {
    /// The kind, if it is one that selectors ask for.
    pub(super) fn of(kind: &str, version: &str) -> Option<Self> {
        match (kind, version) {
            ("Pod", "v1") => Some(Self::Pod),
            ("Namespace", "v1") => Some(Self::Namespace),
            _ => None,
        }
    }
}

impl<'a> Decoder<'a, 'a, '_> {
    pub(super) fn core(&mut self, kind: Core) -> Result<(), Vec<Finding>> {
        let (metadata, mut findings) = self.core_part::<PodMetadata>("metadata");
        let namespace = match self.about("namespace") {
            "" => DEFAULT_NAMESPACE,
            namespace => namespace,
        };
        let name = self.about("name");
        if name.is_empty() {
            let expected = "the name of the object";
            let problem = crate::rejection::Problem::Missing { expected };
            findings.push(self.finding("metadata.name", problem));
        }
        let object = match kind {
            Core::Pod => format!("Pod/{namespace}/{name}"),
            Core::Namespace => format!("Namespace/{name}"),
        };
        if findings.is_empty() {
            findings = match kind {
                Core::Pod => self.pod(&metadata, namespace),
                Core::Namespace => {
                    let labels = namespace_labels(name, pairs(&metadata.labels));
                    self.pods().set_namespace(name, Some(labels));
                    Vec::new()
                }
            };
        }
        let file = Arc::clone(&self.origin.source);
        self.pods().named_in(&file);
        // Neither is an object of ours, so that the path has to name it.
        let named =
            |finding: Finding| Finding { path: format!("{object}: {}", finding.path), ..finding };
        if findings.is_empty() { Ok(()) } else { Err(findings.into_iter().map(named).collect()) }
    }

    /// A field of the metadata, which may be wrong elsewhere.
    fn about(&self, key: &str) -> &'a str {
        let metadata = field(self.node, "metadata");
        metadata.and_then(|metadata| field(metadata, key)).and_then(text).unwrap_or_default()
    }

    fn pod(&mut self, metadata: &PodMetadata, namespace: &str) -> Vec<Finding> {
        let (spec, mut findings) = self.core_part::<PodSpec>("spec");
        let (status, more) = self.core_part::<PodStatus>("status");
        findings.extend(more);
        if !findings.is_empty() {
            return findings;
        }
        let name = PodName { namespace: namespace.into(), name: metadata.name.as_str().into() };
        let annotations: BTreeMap<_, _> = pairs(&metadata.annotations).collect();
        let pod = Pod {
            created: micros(&metadata.creation_timestamp),
            leaving: !metadata.deletion_timestamp.is_empty(),
            ..Pod::new(Labels::new(pairs(&metadata.labels)), &annotations)
        };
        let ended = status.phase == "Succeeded" || status.phase == "Failed";
        self.pods().set(name, (!spec.host_network && !ended).then_some(pod));
        Vec::new()
    }

    fn core_part<T: Deserialize<'a> + Default>(&self, key: &str) -> (T, Vec<Finding>) {
        let Some(node) = field(self.node, key).filter(|node| !node.is_null()) else {
            return (T::default(), Vec::new());
        };
        let Read { value, findings } = read(node, key);
        (value.unwrap_or_default(), findings)
    }

    fn pods(&mut self) -> &mut Pods {
        Arc::make_mut(&mut self.snapshot.pods)
    }
}

fn pairs(map: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    map.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

/// Microseconds since 1970; 0 if nobody says.
fn micros(time: &str) -> i64 {
    let time = serde_json::from_value::<Time>(time.into());
    time.map_or(0, |time| time.0.as_microsecond())
}
