//! A real API server with its etcd, on loopback, with Kube-OVN's kinds.
//!
//! Requests go through curl. kube-ovn-controller is not there: what it would write into `status` is
//! written by [`ApiServer::assign`].

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::manifests::Manifests;
use super::netns;
use super::process::Process;
use super::scratch::Scratch;
use super::wait::wait_until;

/// The variable that names the directory of `etcd` and `kube-apiserver`.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

const READY: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(10);
/// Whom the API server takes for the administrator.
const ADMIN: &str = "admin-token";
/// Whom it takes for the gateway.
const GATEWAY: &str = "gateway-token";
/// The ServiceAccount behind that.
pub const SERVICE_ACCOUNT: &str = "system:serviceaccount:kube-system:vpc-gateway";

/// An API server and its etcd; dropped, both are gone.
#[derive(Debug)]
pub struct ApiServer {
    assets: PathBuf,
    scratch: Scratch,
    port: u16,
    etcd_port: u16,
    server: Option<Process>,
    _etcd: Process,
}

impl ApiServer {
    /// Starts both and applies the CRDs that `gateway` (the binary) prints.
    ///
    /// # Errors
    /// Something is missing, or one does not start.
    pub fn start(name: &str, gateway: &Path) -> Result<Self> {
        let assets = assets()?;
        let scratch = Scratch::create(&format!("{name}-kube"))?;
        let [port, etcd_port, peer_port] = free_ports()?;
        let etcd = start_etcd(&assets, &scratch, etcd_port, peer_port)?;
        netns::run(
            Command::new("openssl")
                .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
                .arg(scratch.join("account.key")),
        )?;
        let tokens = format!(
            "{ADMIN},admin,1,system:masters\n{GATEWAY},{SERVICE_ACCOUNT},2,system:serviceaccounts\n"
        );
        scratch.write("tokens.csv", tokens)?;
        let mut server = Self { assets, scratch, port, etcd_port, server: None, _etcd: etcd };
        server.launch()?;
        server.define(gateway)?;
        Ok(server)
    }

    /// Starts the API server, again if it was killed, and waits until it answers.
    ///
    /// # Errors
    /// It does not answer in time.
    pub fn launch(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let file = |name: &str| self.scratch.join(name);
        let mut command = Command::new(self.assets.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--cert-dir={}", file("certificates").display()))
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
            .arg("--service-account-issuer=https://lab.invalid")
            .arg(format!("--service-account-key-file={}", file("account.key").display()))
            .arg(format!("--service-account-signing-key-file={}", file("account.key").display()))
            .arg(format!("--token-auth-file={}", file("tokens.csv").display()))
            // Pods of this cluster never run, so they need no token.
            .args(["--disable-admission-plugins=ServiceAccount", "--profiling=false"])
            .arg("--allow-privileged=true");
        self.server = Some(Process::start(&mut command, &file("server.log"))?);
        let ready = wait_until("the API server", READY, || {
            ensure!(self.get("/readyz")? == "ok", "not ready");
            Ok(Some(()))
        });
        ready.with_context(|| self.log_tail())?;
        Ok(started.elapsed())
    }

    /// Kills the API server; etcd goes on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut server = self.server.take().context("the API server does not run")?;
        server.signal(Signal::SIGKILL)?;
        server.wait(SOON).map(drop)
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.scratch.join("server.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(15).collect();
        format!("the log of the API server ends with:\n{}", lines.join("\n"))
    }

    fn define(&self, gateway: &Path) -> Result<()> {
        let text = netns::run(Command::new(gateway).arg("crds"))?;
        let list: Value = serde_json::from_str(&text)?;
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let items = list["items"].as_array().context("no list of CRDs")?;
        for item in items {
            self.request("POST", path, "application/json", &item.to_string())?;
        }
        for item in items {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            let resource = name.split('.').next().unwrap_or_default();
            wait_until("a CRD to be served", SOON, || {
                self.get(&format!("/apis/kubeovn.io/v1/{resource}")).map(Some)
            })?;
        }
        Ok(())
    }

    /// A kubeconfig of the administrator, or one of the ServiceAccount of the gateway.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn kubeconfig(&self, admin: bool) -> Result<PathBuf> {
        let (name, token) = if admin { ("admin", ADMIN) } else { ("gateway", GATEWAY) };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority": self.certificate(),
            }}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        });
        self.scratch.write(&format!("{name}.kubeconfig"), config.to_string())
    }

    fn certificate(&self) -> PathBuf {
        self.scratch.join("certificates/apiserver.crt")
    }

    /// The arguments by which `vpc-gateway run` watches this server.
    ///
    /// # Errors
    /// The file system refuses the kubeconfig.
    pub fn arguments(&self, admin: bool) -> Result<Vec<String>> {
        let file = self.kubeconfig(admin)?.display().to_string();
        Ok(vec!["--kube".to_owned(), "--kubeconfig".to_owned(), file])
    }

    fn curl(&self) -> Command {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "20"]);
        command.arg("--cacert").arg(self.certificate());
        command.args(["--header", &format!("Authorization: Bearer {ADMIN}")]);
        command
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// What the API server says to a GET.
    ///
    /// # Errors
    /// It refuses; the error carries its answer.
    pub fn get(&self, path: &str) -> Result<String> {
        netns::run(self.curl().arg(self.url(path)))
    }

    /// Sends a request with a body.
    ///
    /// # Errors
    /// It is refused; the error carries the answer.
    pub fn request(&self, method: &str, path: &str, media: &str, body: &str) -> Result<Value> {
        let body = self.scratch.write("body", body)?;
        let mut command = self.curl();
        command.args(["--request", method, "--header", &format!("Content-Type: {media}")]);
        command.arg("--data-binary").arg(format!("@{}", body.display())).arg(self.url(path));
        Ok(serde_json::from_str(&netns::run(&mut command)?)?)
    }

    /// Applies documents as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// One is refused.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        for document in yaml.split("---\n").filter(|document| document.contains("kind: ")) {
            let path = format!("{}?fieldManager=lab&force=true", path_of(document)?);
            self.request("PATCH", &path, "application/apply-patch+yaml", document)?;
        }
        Ok(())
    }

    /// Applies one object of Kube-OVN.
    ///
    /// # Errors
    /// It is refused.
    pub fn put(&self, kind: &str, name: &str, spec: &Value) -> Result<()> {
        self.apply(&document(kind, name, spec))
    }

    /// Deletes an object of Kube-OVN.
    ///
    /// # Errors
    /// It is refused, or there is none.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let path = format!("{}/{name}", collection(kind)?);
        netns::run(self.curl().args(["--request", "DELETE"]).arg(self.url(&path))).map(drop)
    }

    /// Writes the status of an EIP as kube-ovn-controller does.
    ///
    /// # Errors
    /// It is refused.
    pub fn assign(&self, eip: &str, address: Ipv4Addr) -> Result<()> {
        let path = format!("{}/{eip}/status", collection("IptablesEIP")?);
        let status = json!({"status": {"ip": address, "ready": true, "redo": "", "nat": ""}});
        let media = "application/merge-patch+json";
        self.request("PATCH", &path, media, &status.to_string()).map(drop)
    }

    /// All objects of manifests, each EIP with its address in `status` only.
    ///
    /// # Errors
    /// One is refused.
    pub fn apply_as_kube_ovn(&self, manifests: &Manifests) -> Result<()> {
        let mut yaml = manifests.yaml();
        for (_, v4) in &manifests.eips {
            yaml = yaml.replace(&format!(", v4ip: {v4}"), "");
        }
        self.apply(&yaml)?;
        manifests.eips.iter().try_for_each(|(name, v4)| self.assign(name, *v4))
    }

    /// Creates many objects of one kind over one connection.
    ///
    /// # Errors
    /// One is refused.
    pub fn create_many(&self, kind: &str, objects: &[(String, Value)]) -> Result<Duration> {
        let bodies = objects.iter().map(|(name, spec)| object(kind, name, spec));
        self.create_all(collection(kind)?, bodies)
    }

    /// Creates many objects in one collection over one connection.
    ///
    /// # Errors
    /// One is refused.
    pub fn create_all(
        &self,
        collection: &str,
        objects: impl Iterator<Item = Value>,
    ) -> Result<Duration> {
        let started = Instant::now();
        let url = self.url(collection);
        let mut config = String::new();
        for object in objects {
            let body = object.to_string().replace('"', "\\\"");
            let _ = write!(
                config,
                "{}url = \"{url}\"\nrequest = \"POST\"\nheader = \"Content-Type: application/json\"\n\
                 header = \"Authorization: Bearer {ADMIN}\"\ncacert = \"{}\"\nsilent\nfail-with-body\n\
                 show-error\noutput = \"/dev/null\"\ndata-binary = \"{body}\"\n",
                if config.is_empty() { "" } else { "next\n" },
                self.certificate().display(),
            );
        }
        let file = self.scratch.write("many.curl", config)?;
        let mut command = Command::new("curl");
        command.args(["--parallel", "--parallel-max", "16", "--config"]).arg(file);
        let output = command.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("curl: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(started.elapsed())
    }

    /// The messages of the Events about an object.
    ///
    /// # Errors
    /// The API server does not tell.
    pub fn events(&self, name: &str) -> Result<Vec<String>> {
        let selector = format!("fieldSelector=involvedObject.name%3D{name}");
        let path = format!("/api/v1/namespaces/default/events?{selector}");
        let list: Value = serde_json::from_str(&self.get(&path)?)?;
        let items = list["items"].as_array().context("no list of Events")?;
        Ok(items.iter().filter_map(|item| Some(item["message"].as_str()?.to_owned())).collect())
    }
}

/// One object of Kube-OVN.
fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "kubeovn.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// The same as a document for [`ApiServer::apply`].
fn document(kind: &str, name: &str, spec: &Value) -> String {
    format!("apiVersion: kubeovn.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

/// The path of the resource that a document describes.
fn path_of(document: &str) -> Result<String> {
    let field = |prefix: &str| {
        let mut lines = document.lines().filter_map(|line| line.strip_prefix(prefix));
        lines.next().with_context(|| format!("no {prefix} in {document}"))
    };
    let (kind, metadata) = (field("kind: ")?, field("metadata: {name: ")?);
    let name = metadata.split([',', '}']).next().unwrap_or_default();
    Ok(format!("{}/{name}", collection(kind.trim())?))
}

fn collection(kind: &str) -> Result<&'static str> {
    Ok(match kind {
        "Vpc" => "/apis/kubeovn.io/v1/vpcs",
        "Subnet" => "/apis/kubeovn.io/v1/subnets",
        "VpcNatGateway" => "/apis/kubeovn.io/v1/vpc-nat-gateways",
        "IptablesEIP" => "/apis/kubeovn.io/v1/iptables-eips",
        "IptablesFIPRule" => "/apis/kubeovn.io/v1/iptables-fip-rules",
        "IptablesDnatRule" => "/apis/kubeovn.io/v1/iptables-dnat-rules",
        "IptablesSnatRule" => "/apis/kubeovn.io/v1/iptables-snat-rules",
        "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        other => bail!("{other} is no kind of the lab"),
    })
}

fn start_etcd(assets: &Path, scratch: &Scratch, port: u16, peer_port: u16) -> Result<Process> {
    let (clients, peers) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new(assets.join("etcd"));
    command.arg("--data-dir").arg(scratch.join("etcd"));
    for (flag, value) in [
        ("--listen-client-urls", &clients),
        ("--advertise-client-urls", &clients),
        ("--listen-peer-urls", &peers),
        ("--initial-advertise-peer-urls", &peers),
    ] {
        command.arg(flag).arg(value);
    }
    command.arg("--initial-cluster").arg(format!("default={peers}"));
    Process::start(&mut command, &scratch.join("etcd.log"))
}

/// The directory with the programs.
///
/// # Errors
/// One line that says what is missing.
pub fn assets() -> Result<PathBuf> {
    let folder = std::env::var_os(ASSETS).with_context(|| {
        format!("{ASSETS} is not set: `cargo xtask kube-assets` makes the directory it has to name")
    })?;
    Ok(folder.into())
}

fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All at once, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}
