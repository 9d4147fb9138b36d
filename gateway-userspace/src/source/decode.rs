//! A document -> objects: finds out the kind, reads the parts, collects what does not fit.

mod pod;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::sync::Arc;

use serde::Deserialize;

use self::pod::Core;
use super::deserialize::{Finding, Read, read};
use super::node::{Node, Value};
use super::{Snapshot, SourceObject};
use crate::crd::{GROUP, Kind, Metadata, Object, ObjectRef, Resource, VERSION};
use crate::rejection::{Note, Origin, Problem, Rejection, Remark};

/// Kinds of Kube-OVN that a gateway will act upon one day.
const NOT_HANDLED_YET: &[&str] = &["QoSPolicy"];

/// What is made of fields that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Whoever wrote them meant something else.
    Rejected,
    /// A later release of Kube-OVN has them.
    Ignored,
}

/// Adds the objects of a document to the snapshot. A list of objects counts as its items.
pub(super) fn decode(root: &Node<'_>, origin: &Origin, snapshot: &mut Snapshot) {
    match items_of(root) {
        Some(items) => {
            for item in items {
                decode_one(item, &origin.at(item.line), Unknown::Rejected, snapshot);
            }
        }
        None => decode_one(root, &origin.at(root.line), Unknown::Rejected, snapshot),
    }
}

/// The items of `kind: List`, which is what `kubectl get -o yaml` writes, or of a typed list.
fn items_of<'n, 'a>(root: &'n Node<'a>) -> Option<&'n [Node<'a>]> {
    let Value::List(items) = &field(root, "items")?.value else { return None };
    text(field(root, "kind")?)?.ends_with("List").then_some(items)
}

/// Adds one object to the snapshot.
pub(super) fn decode_one(
    node: &Node<'_>,
    origin: &Origin,
    unknown: Unknown,
    snapshot: &mut Snapshot,
) {
    let mut object = Decoder { node, origin, unknown, reference: None, snapshot };
    if let Err(findings) = object.decode() {
        for finding in findings {
            object.reject(finding);
        }
    }
}

struct Decoder<'n, 'a, 's> {
    node: &'n Node<'a>,
    origin: &'n Origin,
    unknown: Unknown,
    reference: Option<ObjectRef>,
    snapshot: &'s mut Snapshot,
}

impl<'a> Decoder<'a, 'a, '_> {
    fn decode(&mut self) -> Result<(), Vec<Finding>> {
        if !matches!(self.node.value, Value::Map(_)) {
            let found = self.node.describe();
            return Err(vec![self.finding("", Problem::NotAnObject { found })]);
        }
        if let Some(finding) = self.second_object() {
            return Err(vec![finding]);
        }
        let kind = self.string("kind", "the kind of the object")?;
        let version = self.string("apiVersion", "kubeovn.io/v1")?;
        let (group, served) = version.split_once('/').unwrap_or(("", version));
        if let Some(kind) = Core::of(kind, version) {
            return self.core(kind);
        }
        let name = self.name();
        let Some(kind) = Kind::from_manifest(kind).filter(|_| group == GROUP) else {
            self.leave_alone(kind, group, name.unwrap_or_default());
            return Ok(());
        };
        let Some(name) = name else {
            let expected = "the name of the object";
            return Err(vec![self.finding("metadata.name", Problem::Missing { expected })]);
        };
        let metadata = field(self.node, "metadata");
        let namespace = metadata.and_then(|it| field(it, "namespace")).and_then(text).unwrap_or("");
        self.reference = Some(ObjectRef::new(kind, kind.qualified(namespace, name)));
        if served != VERSION {
            let found = version.to_owned();
            return Err(vec![self.finding("apiVersion", Problem::UnsupportedVersion { found })]);
        }
        check_name(name).map_err(|problem| vec![self.finding("metadata.name", problem)])?;
        let object = self.object(kind, name)?;
        self.snapshot.objects.push(Arc::new(SourceObject {
            origin: self.origin.clone(),
            object,
            rank: 0,
            lines: if self.node.line == 0 { Box::default() } else { lines_of(self.node) },
        }));
        Ok(())
    }

    /// A second `kind`: what the document holds cannot be told.
    fn second_object(&self) -> Option<Finding> {
        let Value::Map(entries) = &self.node.value else { return None };
        let mut kinds = entries.iter().filter(|entry| entry.key == "kind");
        let (first, second) = (kinds.next()?, kinds.next()?);
        let problem = Problem::MissingSeparator { first: first.line };
        Some(Finding { path: String::new(), line: second.line, problem })
    }

    fn object(&self, kind: Kind, name: &str) -> Result<Object, Vec<Finding>> {
        Ok(match kind {
            Kind::VpcNatGateway => Object::NatGateway(self.resource(name)?),
            Kind::IptablesEip => Object::Eip(self.resource(name)?),
            Kind::IptablesFipRule => Object::Fip(self.resource(name)?),
            Kind::IptablesDnatRule => Object::Dnat(self.resource(name)?),
            Kind::IptablesSnatRule => Object::Snat(self.resource(name)?),
            Kind::Subnet => Object::Subnet(self.resource(name)?),
            Kind::Vpc => Object::Vpc(self.resource(name)?),
            Kind::VpcEgressGateway => Object::EgressGateway(self.resource(name)?),
        })
    }

    /// Reads the parts of the object and collects the findings of all of them.
    fn resource<S, T>(&self, name: &str) -> Result<Resource<S, T>, Vec<Finding>>
    where
        S: Deserialize<'a> + Default,
        T: Deserialize<'a> + Default,
    {
        let mut findings = self.unknown_parts();
        let metadata = self.part::<Metadata>("metadata", &mut findings);
        let spec = self.part::<S>("spec", &mut findings);
        // The status is none of the user's business, whatever is in it.
        let status = self.part::<T>("status", &mut Vec::new());
        if self.unknown == Unknown::Ignored {
            findings.retain(|finding| !is_unknown(finding));
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        Ok(Resource { metadata: Metadata { name: name.to_owned(), ..metadata }, spec, status })
    }

    fn part<T: Deserialize<'a> + Default>(&self, key: &str, findings: &mut Vec<Finding>) -> T {
        let Some(node) = field(self.node, key).filter(|node| !node.is_null()) else {
            return T::default();
        };
        let Read { value, findings: found } = read(node, key);
        findings.extend(found);
        value.unwrap_or_default()
    }

    fn unknown_parts(&self) -> Vec<Finding> {
        const PARTS: &[&str] = &["apiVersion", "kind", "metadata", "name", "spec", "status"];
        let Value::Map(entries) = &self.node.value else { return Vec::new() };
        let mut first_lines = BTreeMap::new();
        let mut findings = Vec::new();
        for entry in entries {
            let problem = match first_lines.entry(&*entry.key) {
                Slot::Occupied(first) => Problem::DuplicateField { first: *first.get() },
                Slot::Vacant(slot) => {
                    slot.insert(entry.line);
                    if PARTS.contains(&&*entry.key) {
                        continue;
                    }
                    // The usual cause is a field that slid out of `spec`.
                    Problem::UnknownField { suggestion: None }
                }
            };
            let (path, line) = (entry.key.clone().into_owned(), entry.line);
            findings.push(Finding { path, line, problem });
        }
        findings
    }

    /// `metadata.name`, or the `name` beside `metadata` that a well-known tutorial has.
    fn name(&mut self) -> Option<&'a str> {
        let inside = field(self.node, "metadata").and_then(|metadata| field(metadata, "name"));
        if let Some(name) = inside.and_then(text) {
            return Some(name);
        }
        let outside = field(self.node, "name")?;
        self.snapshot.notes.push(Note {
            origin: self.origin.at(outside.line),
            object: None,
            field: Some("name".to_owned()),
            gateway: None,
            remark: Remark::NameOutsideMetadata,
        });
        text(outside)
    }

    fn string(&self, key: &str, expected: &'static str) -> Result<&'a str, Vec<Finding>> {
        field(self.node, key)
            .and_then(text)
            .ok_or_else(|| vec![self.finding(key, Problem::Missing { expected })])
    }

    fn leave_alone(&mut self, kind: &str, group: &str, name: &str) {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        let soon = group == GROUP && NOT_HANDLED_YET.contains(&&*kind);
        self.snapshot.notes.push(Note {
            origin: self.origin.clone(),
            object: None,
            field: None,
            gateway: None,
            remark: if soon {
                Remark::NotHandledYet { kind, name }
            } else {
                Remark::LeftAlone { kind, name }
            },
        });
    }

    fn finding(&self, path: &str, problem: Problem) -> Finding {
        let line = field(self.node, path).map_or(self.node.line, |node| node.line);
        Finding { path: path.to_owned(), line, problem }
    }

    fn reject(&mut self, finding: Finding) {
        self.snapshot.rejections.push(Rejection {
            origin: self.origin.at(finding.line),
            object: self.reference.clone(),
            field: (!finding.path.is_empty()).then_some(finding.path),
            gateway: None,
            problem: finding.problem,
        });
    }
}

fn is_unknown(finding: &Finding) -> bool {
    matches!(finding.problem, Problem::UnknownField { .. })
}

fn field<'n, 'a>(node: &'n Node<'a>, key: &str) -> Option<&'n Node<'a>> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
}

/// The text of a scalar that is not null.
fn text<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    match &node.value {
        Value::Plain(text) | Value::Quoted(text) if !node.is_null() => Some(text),
        _ => None,
    }
}

/// The name of an object as Kubernetes wants it.
fn check_name(name: &str) -> Result<(), Problem> {
    if name.contains("${") {
        return Err(Problem::Placeholder { value: name.to_owned() });
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = name.bytes().next().is_some_and(inner) && name.bytes().last().is_some_and(inner);
    let all = name.bytes().all(|byte| inner(byte) || byte == b'-' || byte == b'.');
    if ends && all && name.len() <= 253 {
        return Ok(());
    }
    Err(Problem::Invalid {
        value: format!("{name:?}"),
        not: "a name",
        expected: "lower-case letters, digits, '-' and '.'",
    })
}

/// The line of every field under `spec`, and of every annotation.
fn lines_of(object: &Node<'_>) -> Box<[(Box<str>, u32)]> {
    fn collect(node: &Node<'_>, path: &str, lines: &mut Vec<(Box<str>, u32)>) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    let path = format!("{path}.{}", entry.key);
                    collect(&entry.node, &path, lines);
                    lines.push((path.into(), entry.line));
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    collect(item, &path, lines);
                    lines.push((path.into(), item.line));
                }
            }
            Value::Plain(_) | Value::Quoted(_) => {}
        }
    }

    let mut lines = Vec::new();
    if let Some(spec) = field(object, "spec") {
        collect(spec, "spec", &mut lines);
    }
    let metadata = field(object, "metadata");
    if let Some(annotations) = metadata.and_then(|metadata| field(metadata, "annotations")) {
        collect(annotations, "metadata.annotations", &mut lines);
    }
    lines.into()
}
