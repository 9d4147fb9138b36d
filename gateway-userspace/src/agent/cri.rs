//! The container runtime of a node, by its CRI socket: API `runtime.v1`, as of containerd 1.6 and CRI-O.
//!
//! Only the fields that are needed have names here; the numbers are those of Kubernetes' `cri-api`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use prost::Message;
use serde::Deserialize;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::namespaces::{self, Namespace, Nobody};

/// Where a container runtime listens: an absolute path, after `unix://` or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket(PathBuf);

impl FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            Ok(Self(path.into()))
        } else {
            Err("expected the absolute path of a socket, such as /run/containerd/containerd.sock \
                 or unix:///run/crio/crio.sock"
                .to_owned())
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Why a runtime did not tell something.
#[derive(Debug, thiserror::Error)]
#[error("failed to ask the container runtime at {socket} for {method}: {cause}")]
pub struct CriError {
    socket: Socket,
    method: String,
    cause: String,
    /// There is no such thing any more.
    gone: bool,
}

/// A connection to a container runtime.
#[derive(Clone, Debug)]
pub struct Runtime {
    socket: Socket,
    channel: Channel,
}

impl Runtime {
    /// Connects at the first call, and again after one that failed. An answer may take `patience`.
    ///
    /// # Errors
    ///
    /// When the path of the socket is none that an address can have.
    pub fn new(socket: &Socket, patience: Duration) -> Result<Self, CriError> {
        let endpoint = Endpoint::from_shared(format!("unix://{socket}")).map_err(|error| {
            let (socket, cause) = (socket.clone(), error.to_string());
            CriError { socket, method: "anything".into(), cause, gone: false }
        })?;
        let channel = endpoint.connect_timeout(patience).timeout(patience).connect_lazy();
        Ok(Self { socket: socket.clone(), channel })
    }

    /// Calls a method of `runtime.v1.RuntimeService`, by its name.
    ///
    /// # Errors
    ///
    /// When nobody listens, or the runtime refuses, or takes longer than it may.
    pub async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, CriError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let failed = |cause| {
            let (socket, method) = (self.socket.clone(), method.to_owned());
            CriError { socket, method, cause, gone: false }
        };
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| failed(chain(&error)))?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}"));
        let path = path.map_err(|error| failed(error.to_string()))?;
        let answer = client.unary(Request::new(request), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| match status.code() {
            Code::NotFound => CriError { gone: true, ..failed(chain(&status)) },
            Code::Unimplemented => failed("it does not know CRI v1; containerd 1.6 does".into()),
            _ => failed(chain(&status)),
        })
    }

    /// The network namespaces of pods that have a sandbox which is ready. `proc` is the procfs of the
    /// node.
    ///
    /// # Errors
    ///
    /// When the runtime does not answer. A sandbox that went meanwhile is no error.
    pub(super) async fn namespaces<'u>(
        &self,
        proc: &Path,
        uids: &[&'u str],
    ) -> Result<BTreeMap<&'u str, Namespace>, CriError> {
        let ready = SandboxState { state: SANDBOX_READY };
        let request = ListPodSandboxRequest { filter: Some(SandboxFilter { state: Some(ready) }) };
        let list: ListPodSandboxResponse = self.call("ListPodSandbox", request).await?;
        let nobody = Nobody::find(proc);
        let mut found: BTreeMap<&str, (i64, Namespace)> = BTreeMap::new();
        for sandbox in list.items {
            let uid = sandbox.metadata.unwrap_or_default().uid;
            let Some(uid) = uids.iter().find(|wanted| **wanted == uid) else { continue };
            if found.get(uid).is_some_and(|(newest, _)| *newest >= sandbox.created_at) {
                continue;
            }
            let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.id, verbose: true };
            let status: PodSandboxStatusResponse =
                match self.call("PodSandboxStatus", request).await {
                    Ok(status) => status,
                    Err(error) if error.gone => continue,
                    Err(error) => return Err(error),
                };
            let paths = status.info.get("info").map(|info| paths(info, proc)).unwrap_or_default();
            let namespace = paths.iter().find_map(|path| namespaces::open(path, &nobody));
            if let Some(namespace) = namespace {
                found.insert(uid, (sandbox.created_at, namespace));
            }
        }
        Ok(found.into_iter().map(|(uid, (_, namespace))| (uid, namespace)).collect())
    }
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

const SANDBOX_READY: i32 = 0;

/// What both containerd and CRI-O have in the verbose status, as JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    /// The process that holds the namespaces; 0 where there is none.
    pid: u32,
    runtime_spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<NamespaceOf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamespaceOf {
    r#type: String,
    path: PathBuf,
}

/// Where the network namespace may be opened, best first: by the name that CNI gave it, in this mount
/// namespace and in that of the node, then by the process that holds it.
fn paths(info: &str, proc: &Path) -> Vec<PathBuf> {
    let info: Info = serde_json::from_str(info).unwrap_or_default();
    let spec = info.runtime_spec.linux.namespaces.into_iter();
    let named = spec.filter(|one| one.r#type == "network" && one.path.is_absolute());
    let mut paths: Vec<_> = named
        .flat_map(|one| {
            // The link /var/run -> /run is absolute: it would lead out of the node's file system.
            let plain = one.path.strip_prefix("/var/run").map(|rest| Path::new("run").join(rest));
            let below = plain.or_else(|_| one.path.strip_prefix("/").map(Path::to_path_buf));
            let below = below.map(|path| proc.join("1/root").join(path));
            [Some(one.path), below.ok()].into_iter().flatten()
        })
        .collect();
    if info.pid > 0 {
        paths.push(proc.join(info.pid.to_string()).join("ns/net"));
    }
    paths
}

#[derive(Clone, PartialEq, Message)]
struct SandboxState {
    #[prost(int32, tag = "1")]
    state: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxFilter {
    #[prost(message, optional, tag = "2")]
    state: Option<SandboxState>,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<SandboxFilter>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<SandboxMetadata>,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "4")]
    created_at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_an_absolute_path() {
        let path = "/run/containerd/containerd.sock";
        for text in [path.to_owned(), format!("unix://{path}")] {
            assert_eq!(text.parse::<Socket>().unwrap().to_string(), path);
        }
        for text in ["containerd.sock", "tcp://127.0.0.1:1", "unix:containerd.sock", ""] {
            assert!(text.parse::<Socket>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_namespace_is_tried_by_its_name_first_and_then_by_its_process() {
        let spec = |pid: u32, path: &str| {
            format!(
                r#"{{"pid": {pid}, "image": "x", "runtimeSpec": {{"ociVersion": "1.0.2", "linux":
                {{"namespaces": [{{"type": "pid"}}, {{"type": "network"{path}}}]}}}}}}"#
            )
        };
        let proc = Path::new("/host/proc");
        let named = r#", "path": "/var/run/netns/cni-1""#;
        let texts = |info: &str| -> Vec<String> {
            paths(info, proc).iter().map(|path| path.display().to_string()).collect()
        };
        // The file system of the node, as its first process has it.
        let node = proc.join("1").join("root").join("run/netns/cni-1").display().to_string();
        let names = ["/var/run/netns/cni-1", node.as_str()];
        assert_eq!(texts(&spec(42, named)), [names[0], names[1], "/host/proc/42/ns/net"]);
        assert_eq!(texts(&spec(0, named)), names, "CRI-O without an infra container");
        assert_eq!(texts(&spec(42, "")), ["/host/proc/42/ns/net"]);
        assert!(texts("no JSON").is_empty());
    }
}
