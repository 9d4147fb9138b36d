//! The manifests that users apply.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::lab::kube::ApiServer;

/// Where they are.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// All documents of a file in [`FOLDER`].
///
/// # Errors
/// It is not there, or no YAML.
pub fn documents(file: &str) -> Result<Vec<Value>> {
    let path = Path::new(FOLDER).join(file);
    let text =
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// All documents of a text.
///
/// # Errors
/// It is no YAML.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(text)?)
}

/// The path of an object on an API server.
pub fn path_of(document: &Value) -> String {
    let field = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (version, kind) = (field("/apiVersion"), field("/kind"));
    let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    let resource = format!("{}s", kind.to_lowercase());
    let (namespace, name) = (field("/metadata/namespace"), field("/metadata/name"));
    match namespace {
        "" => format!("{root}/{resource}/{name}"),
        namespace => format!("{root}/namespaces/{namespace}/{resource}/{name}"),
    }
}

/// Applies an object, every field of which has to be one.
///
/// # Errors
/// It is refused.
pub fn apply(api: &ApiServer, document: &Value) -> Result<Value> {
    let path = format!("{}?fieldManager=lab&force=true&fieldValidation=Strict", path_of(document));
    api.request("PATCH", &path, "application/apply-patch+yaml", &document.to_string())
}

/// The fields of a PodMonitor that we use, as the Prometheus operator has them.
pub fn pod_monitors() -> Value {
    let string = || json!({"type": "string"});
    let strings = || json!({"type": "array", "items": {"type": "string"}});
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let objects = |properties: Value| json!({"type": "array", "items": object(properties)});
    let relabeling = json!({"sourceLabels": strings(), "targetLabel": string()});
    let endpoint = json!({
        "port": string(), "path": string(), "interval": string(), "scrapeTimeout": string(),
        "relabelings": objects(relabeling)
    });
    let labels = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let spec = object(json!({
        "selector": object(json!({"matchLabels": labels})),
        "namespaceSelector": object(json!({"matchNames": strings()})),
        "podMetricsEndpoints": objects(endpoint)
    }));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "podmonitors.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com", "scope": "Namespaced",
            "names": {"kind": "PodMonitor", "plural": "podmonitors"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": object(json!({"spec": spec}))}
            }]
        }
    })
}

/// Merges a patch into an object as kustomize does: entries of lists are known by their names.
pub fn merge(there: &mut Value, patch: &Value) {
    match (there, patch) {
        (Value::Object(there), Value::Object(patch)) => {
            for (key, value) in patch {
                match there.get_mut(key) {
                    Some(there) => merge(there, value),
                    None => drop(there.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(there), Value::Array(patch)) => {
            for value in patch {
                match there.iter_mut().find(|it| it["name"] == value["name"]) {
                    Some(there) => merge(there, value),
                    None => there.push(value.clone()),
                }
            }
        }
        (there, patch) => *there = patch.clone(),
    }
}

/// A verb on a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// The API group.
    pub group: String,
    /// The resource.
    pub resource: String,
    /// The verb.
    pub verb: String,
}

impl Permission {
    /// The resource as people name it: with its group, if it has one.
    pub fn qualified(&self) -> String {
        let Self { group, resource, .. } = self;
        if group.is_empty() { resource.clone() } else { format!("{resource}.{group}") }
    }
}

fn words(rule: &Value, field: &str) -> Vec<String> {
    let words = rule[field].as_array().into_iter().flatten();
    words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

/// Everything that a role grants.
pub fn permissions(role: &Value) -> Vec<Permission> {
    let mut all = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                for verb in words(rule, "verbs") {
                    let (group, resource) = (group.clone(), resource.clone());
                    all.push(Permission { group, resource, verb });
                }
            }
        }
    }
    all
}

/// The role with these permissions in place of its own.
pub fn role_with<'p>(role: &Value, permissions: impl Iterator<Item = &'p Permission>) -> Value {
    let rule = |permission: &Permission| {
        json!({
            "apiGroups": [permission.group], "resources": [permission.resource],
            "verbs": [permission.verb]
        })
    };
    let mut role = role.clone();
    role["rules"] = permissions.map(rule).collect();
    role
}
