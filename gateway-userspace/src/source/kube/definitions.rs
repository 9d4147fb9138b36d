//! The CustomResourceDefinitions of what is watched, for clusters that do not have Kube-OVN.
//!
//! They let everything through, as those of Kube-OVN nearly do: what an object says is checked where it
//! is read.

use serde_json::{Value, json};

use super::resources::{RESOURCES, Resource};
use crate::crd::{GROUP, VERSION};

/// All of them, as one `List` that `kubectl apply -f -` takes.
#[must_use]
pub fn definitions() -> Value {
    let items: Vec<_> = RESOURCES.iter().map(definition).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn definition(resource: &Resource) -> Value {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    // An untyped part takes whatever is written there, a list instead of an object included.
    let untyped = json!({"x-kubernetes-preserve-unknown-fields": true});
    let mut schema = anything;
    schema["properties"] = json!({"spec": untyped, "status": untyped});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{GROUP}", resource.plural)},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": resource.kind,
                "listKind": format!("{}List", resource.kind),
                "plural": resource.plural,
                "singular": resource.kind.to_lowercase(),
                "shortNames": resource.short,
            },
            "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_a_definition_named_after_it() {
        let list = definitions();
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), RESOURCES.len());
        assert_eq!(items[1]["metadata"]["name"], "iptables-eips.kubeovn.io");
        assert_eq!(items[1]["spec"]["scope"], "Cluster");
    }
}
