//! The manifests that users apply.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

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
