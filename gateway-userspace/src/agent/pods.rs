//! The gateway pods of a node, as the API server tells.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use crate::source::kube::because;

/// On the pods of a `VpcNatGateway`: its name.
const NAT_GATEWAY: &str = "ovn.kubernetes.io/vpc_nat_gw";
/// The label of the same pods.
const NAT_LABEL: (&str, &str) = ("ovn.kubernetes.io/vpc-nat-gw", "true");
/// The label of the pods of a `VpcEgressGateway`: its name. It is in their namespace.
const EGRESS_GATEWAY: &str = "ovn.kubernetes.io/vpc-egress-gateway";
/// The other label of the same pods.
const EGRESS_LABEL: (&str, &str) = ("app", "vpc-egress-gateway");
/// The annotation by which a pod names other interfaces than usual.
const INTERFACES: &str = "vpc-gateway.io/interfaces";
const WATCH_SECONDS: u32 = 290;
const PAGE: u32 = 500;
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// The interfaces of a gateway pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// Towards the VPC.
    pub internal: String,
    /// Towards the outside.
    pub external: String,
}

/// What a pod is a gateway of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Serves {
    /// A `VpcNatGateway` of this name.
    Nat(String),
    /// A `VpcEgressGateway` of this namespace and name.
    Egress(String, String),
}

impl Serves {
    /// The gateway as `run --gateway` takes it.
    pub(super) fn gateway(&self) -> String {
        match self {
            Self::Nat(name) => name.clone(),
            Self::Egress(namespace, name) => format!("{namespace}/{name}"),
        }
    }
}

impl fmt::Display for Serves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Nat(_) => "VpcNatGateway",
            Self::Egress(..) => "VpcEgressGateway",
        };
        write!(f, "{kind}/{}", self.gateway())
    }
}

/// A gateway pod of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayPod {
    /// `metadata.uid`, which is part of the name of its cgroups.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it is a gateway of.
    pub serves: Serves,
    /// Its interface towards the VPC.
    pub internal: String,
    /// Its interface towards the outside.
    pub external: String,
    /// `status.phase`.
    pub phase: String,
}

impl GatewayPod {
    /// The name of its data plane: no two pods of a cluster have the same at one time.
    pub(super) fn data_plane(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }
}

impl fmt::Display for GatewayPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The pods by their uid, or why they are not known at the moment.
pub(super) type Told = Result<BTreeMap<String, GatewayPod>, String>;

/// Tells the pods of the node whenever they change, until nobody listens.
pub(super) async fn follow(
    client: kube::Client,
    node: String,
    usual: Interfaces,
    sender: UnboundedSender<Told>,
) {
    let (api, known) = (Api::all(client), BTreeMap::new());
    let mut pods = Pods { api, node, usual, known, version: None, sender };
    let mut pause = SHORTEST;
    while !pods.sender.is_closed() {
        match pods.follow_once().await {
            Ok(()) => pause = SHORTEST,
            // The server has forgotten how far we were: a list tells everything.
            Err(("watch", kube::Error::Api(status))) if status.code == 410 => pods.version = None,
            Err((verb, error)) => {
                if matches!(&error, kube::Error::Api(status) if status.code != 403) {
                    pods.version = None;
                }
                let text = format!("failed to {verb} pods: {}", because(verb, "pods", &error));
                let _ = pods.sender.send(Err(text));
                pause = (pause * 2).min(LONGEST);
            }
        }
        sleep(pause).await;
    }
}

struct Pods {
    api: Api<Pod>,
    node: String,
    usual: Interfaces,
    known: BTreeMap<String, GatewayPod>,
    /// How far we have read; `None`: a list is due.
    version: Option<String>,
    sender: UnboundedSender<Told>,
}

/// What was tried, and what came of it.
type Failed = (&'static str, kube::Error);

impl Pods {
    async fn follow_once(&mut self) -> Result<(), Failed> {
        let on_node = format!("spec.nodeName={}", self.node);
        let version = match self.version.take() {
            Some(version) => version,
            None => self.list(&on_node).await.map_err(|error| ("list", error))?,
        };
        self.version = Some(version.clone());
        let params = WatchParams::default().fields(&on_node).timeout(WATCH_SECONDS);
        let failed = |error| ("watch", error);
        let mut events = pin!(self.api.watch(&params, &version).await.map_err(failed)?);
        // Whatever was wrong is over.
        let _ = self.sender.send(Ok(self.known.clone()));
        while let Some(event) = events.try_next().await.map_err(failed)? {
            let (version, changed) = match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    let before = self.known.remove(&uid);
                    let now = read(&pod, &self.usual);
                    let changed = before != now;
                    self.known.extend(now.map(|now| (uid, now)));
                    (pod.metadata.resource_version, changed)
                }
                WatchEvent::Deleted(pod) => {
                    let gone = self.known.remove(&pod.metadata.uid.unwrap_or_default());
                    (pod.metadata.resource_version, gone.is_some())
                }
                WatchEvent::Bookmark(mark) => (Some(mark.metadata.resource_version), false),
                WatchEvent::Error(status) => return Err(failed(kube::Error::Api(status))),
            };
            self.version = version.or(self.version.take());
            if changed {
                let _ = self.sender.send(Ok(self.known.clone()));
            }
        }
        Ok(())
    }

    async fn list(&mut self, on_node: &str) -> Result<String, kube::Error> {
        let mut params = ListParams::default().fields(on_node).limit(PAGE);
        let mut known = BTreeMap::new();
        loop {
            let page = self.api.list(&params).await?;
            let pods = page.items.iter().filter_map(|pod| read(pod, &self.usual));
            known.extend(pods.map(|pod| (pod.uid.clone(), pod)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => {
                    self.known = known;
                    return Ok(page.metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }
}

/// The pod, if it is one of a gateway and has not ended. One that is being deleted works until it
/// is gone.
fn read(pod: &Pod, usual: &Interfaces) -> Option<GatewayPod> {
    let metadata = &pod.metadata;
    let label = |key: &str| metadata.labels.as_ref()?.get(key).cloned();
    let annotation = |key: &str| metadata.annotations.as_ref()?.get(key).cloned();
    let has = |(key, value): (&str, &str)| label(key).as_deref() == Some(value);
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let serves = if has(NAT_LABEL) {
        Serves::Nat(annotation(NAT_GATEWAY)?)
    } else if has(EGRESS_LABEL) {
        Serves::Egress(namespace.clone(), label(EGRESS_GATEWAY)?)
    } else {
        return None;
    };
    let in_host = pod.spec.as_ref()?.host_network == Some(true);
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    if in_host || phase == "Succeeded" || phase == "Failed" {
        return None;
    }
    let said = annotation(INTERFACES);
    let said = said.as_deref().and_then(|said| said.split_once(','));
    let (internal, external) = said.unwrap_or((&usual.internal, &usual.external));
    Some(GatewayPod {
        uid: metadata.uid.clone()?,
        namespace,
        name: metadata.name.clone()?,
        serves,
        internal: internal.trim().to_owned(),
        external: external.trim().to_owned(),
        phase,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(labels: Value, annotations: Value, spec: Value, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "uid": "u", "namespace": "n", "name": "p", "labels": labels,
                "annotations": annotations
            },
            "spec": spec,
            "status": {"phase": phase}
        }))
        .unwrap()
    }

    fn nat(annotations: Value, spec: Value, phase: &str) -> Option<GatewayPod> {
        read(&pod(json!({NAT_LABEL.0: NAT_LABEL.1}), annotations, spec, phase), &usual())
    }

    fn usual() -> Interfaces {
        Interfaces { internal: "eth0".into(), external: "net1".into() }
    }

    fn spec() -> Value {
        json!({"containers": []})
    }

    #[test]
    fn the_pods_of_both_kinds_are_told_by_their_labels() {
        let found = nat(json!({NAT_GATEWAY: "gw1"}), spec(), "Running").unwrap();
        assert_eq!(found.serves, Serves::Nat("gw1".into()));
        assert_eq!((&*found.internal, &*found.external), ("eth0", "net1"));
        assert_eq!(found.data_plane(), "n.p");
        let labels = json!({"app": "vpc-egress-gateway", EGRESS_GATEWAY: "out"});
        let found = read(&pod(labels, json!({}), spec(), "Pending"), &usual()).unwrap();
        assert_eq!(found.serves.to_string(), "VpcEgressGateway/n/out");
        assert_eq!(found.phase, "Pending");
        let web = pod(json!({"app": "web"}), json!({}), spec(), "Running");
        assert_eq!(read(&web, &usual()), None);
        assert_eq!(nat(json!({}), spec(), "Running"), None, "no gateway is named");
    }

    #[test]
    fn neither_a_pod_of_the_host_network_nor_one_that_has_ended_is_a_gateway() {
        let gateway = || json!({NAT_GATEWAY: "gw1"});
        let host = json!({"containers": [], "hostNetwork": true});
        assert_eq!(nat(gateway(), host, "Running"), None);
        assert_eq!(nat(gateway(), spec(), "Failed"), None);
    }

    #[test]
    fn an_annotation_names_other_interfaces() {
        let annotations = json!({NAT_GATEWAY: "gw1", INTERFACES: "net1, net2"});
        let found = nat(annotations, spec(), "Running").unwrap();
        assert_eq!((&*found.internal, &*found.external), ("net1", "net2"));
    }
}
