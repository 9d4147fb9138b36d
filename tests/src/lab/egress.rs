//! Tenants, a selector, three replicas of an egress gateway, and an outside.
//!
//! ```text
//!                                        ┌ eth0 [replica 0] net1 ┐
//!  [tenant] ── in0 [selector] lan0 ──────┼ eth0 [replica 1] net1 ┼── wan0 [router] srv0 ── [server]
//!   10.0.1.10      10.0.9.1              └ eth0 [replica 2] net1 ┘   203.0.113.1           198.51.100.7
//!   10.0.2.10                        10.0.9.11..  203.0.113.11..
//! ```
//!
//! The manifests are those of `examples/egress-gateway`: 10.0.1.0/24 is hidden behind the replicas,
//! 10.0.2.0/24 is not. Every address has an IPv6 one beside it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cleanup::{self, Undo};
use super::gateway::{Gateway, Settings};
use super::netns::{self, Netns};
use super::process::Process;
use super::scratch::Scratch;
use super::tier;
use super::wait::wait_until;

/// Where the maps and programs of all selectors are pinned.
pub const SELECTOR_PINS: &str = "/sys/fs/bpf/vpc-gateway-select";
/// How many replicas there are.
pub const REPLICAS: usize = 3;
/// The name of the `VpcEgressGateway` of the example.
pub const OBJECT: &str = "egress";
/// The server, IPv4 and IPv6.
pub const SERVER: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
/// The tenant in the subnet that is hidden.
pub const TENANT: [&str; 2] = ["10.0.1.10", "fd00:10:1::10"];
/// The tenant in the subnet that is not.
pub const PLAIN: [&str; 2] = ["10.0.2.10", "fd00:10:2::10"];

const PATIENCE: Duration = Duration::from_secs(20);

/// The internal addresses of a replica.
#[must_use]
pub fn internal(replica: usize) -> [String; 2] {
    [format!("10.0.9.1{}", replica + 1), format!("fd00:10:9::1{}", replica + 1)]
}

/// The external addresses of a replica.
#[must_use]
pub fn external(replica: usize) -> [String; 2] {
    [format!("203.0.113.1{}", replica + 1), format!("2001:db8:113::1{}", replica + 1)]
}

/// Which replica has an external address.
#[must_use]
pub fn replica_of(address: IpAddr) -> Option<usize> {
    let text = address.to_string();
    (0..REPLICAS).find(|replica| external(*replica).contains(&text))
}

/// One of the gateways.
#[derive(Debug)]
pub struct Replica {
    /// Its gateway; stopped first.
    pub gateway: Gateway,
    bfd: Option<Process>,
    /// Its namespace.
    pub ns: Netns,
}

/// Everything. The parts are dropped in this order.
#[derive(Debug)]
pub struct EgressLab {
    selector_process: Option<Process>,
    detach: Option<Undo>,
    /// The replicas.
    pub replicas: Vec<Replica>,
    /// Where tenants live.
    pub tenant: Netns,
    /// The router of the VPC, where the selector runs.
    pub selector: Netns,
    /// The router of the outside.
    pub router: Netns,
    /// The server outside.
    pub server: Netns,
    /// The name of the selector, and what all other names begin with.
    pub name: String,
    /// The `vpc-gateway` binary.
    pub binary: PathBuf,
    /// Manifests and logs.
    pub scratch: Scratch,
}

/// The manifests that come with the project.
#[must_use]
pub fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples").join("egress-gateway")
}

impl EgressLab {
    /// Builds the namespaces with the example as configuration; starts nothing.
    ///
    /// # Errors
    /// Missing privilege, program or file.
    pub fn build(prefix: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        cleanup::on_signals()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{count}", std::process::id());
        let binary = tier::binary()?;
        let scratch = Scratch::create(&name)?;
        fs::create_dir(scratch.join("config"))?;
        for entry in fs::read_dir(example())? {
            let path = entry?.path();
            let file = path.file_name().context("a name")?;
            fs::copy(&path, scratch.join("config").join(file))?;
        }
        let create = |role: &str| Netns::create(&format!("{name}-{role}"));
        let [tenant, selector] = [create("tenant")?, create("selector")?];
        let [router, server] = [create("router")?, create("server")?];
        wire(&tenant, &selector, &router, &server)?;
        let mut lab = Self {
            selector_process: None,
            detach: None,
            replicas: Vec::new(),
            tenant,
            selector,
            router,
            server,
            name,
            binary,
            scratch,
        };
        for index in 0..REPLICAS {
            let replica = lab.replica(index)?;
            lab.replicas.push(replica);
        }
        Ok(lab)
    }

    /// Starts all replicas and the selector, and waits until every replica serves.
    ///
    /// # Errors
    /// Something is not ready in time.
    pub fn start(&mut self) -> Result<()> {
        for index in 0..REPLICAS {
            self.replicas[index].gateway.restart()?;
            self.start_bfd(index)?;
        }
        self.start_selector(&[])?;
        self.wait_serving(&[0, 1, 2])
    }

    /// Process id of the selector.
    #[must_use]
    pub fn selector_pid(&self) -> Option<u32> {
        self.selector_process.as_ref().map(Process::pid)
    }

    /// Process id of the BFD daemon beside a replica.
    #[must_use]
    pub fn bfd_pid(&self, index: usize) -> Option<u32> {
        self.replicas[index].bfd.as_ref().map(Process::pid)
    }

    /// All namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        let replicas = self.replicas.iter().map(|replica| &replica.ns);
        [&self.tenant, &self.selector, &self.router, &self.server].into_iter().chain(replicas)
    }

    /// The directory of the manifests.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.scratch.join("config")
    }

    /// Changes the manifest of the gateway; everybody reads it again.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn change(&self, change: impl FnOnce(String) -> String) -> Result<()> {
        let path = self.config().join("20-gateway.yaml");
        let text = fs::read_to_string(example().join("20-gateway.yaml"))?;
        Ok(fs::write(path, change(text))?)
    }

    /// Ends a replica as a node does that loses its power: nothing says good-bye.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let replica = &mut self.replicas[index];
        replica.ns.ip("link set eth0 down")?;
        replica.ns.ip("link set net1 down")?;
        replica.bfd = None;
        replica.gateway.kill9()
    }

    /// Starts a replica again that was killed, with an empty memory.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn revive(&mut self, index: usize) -> Result<()> {
        let replica = &mut self.replicas[index];
        replica.gateway.detach()?;
        address(&replica.ns, index)?;
        replica.gateway.restart()?;
        self.start_bfd(index)
    }

    /// Starts the selector on the tenants' interface.
    ///
    /// # Errors
    /// It does not attach in time.
    pub fn start_selector(&mut self, arguments: &[&str]) -> Result<()> {
        self.selector_process = None;
        let mut command = self.select();
        command.arg("--config").arg(self.config()).args(arguments);
        let log = self.scratch.join("select.log");
        let attached = |log: &str| log.matches("attached by").count();
        let before = attached(&fs::read_to_string(&log).unwrap_or_default());
        if self.detach.is_none() {
            let mut detach = self.select();
            detach.arg("--detach");
            let undo = move || drop(netns::run(&mut detach));
            let mut undo = Some(undo);
            let ((), undo) = cleanup::make(
                || Ok(()),
                |()| Box::new(move || undo.take().into_iter().for_each(|mut undo| undo())),
            )?;
            self.detach = Some(undo);
        }
        let process = self.selector_process.insert(Process::start(&mut command, &log)?);
        wait_until("the selector to attach", PATIENCE, || {
            Ok((attached(&process.log()) > before).then_some(()))
        })
    }

    fn select(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["select", "--name", &self.name, "--interface", "in0", "--netns"]);
        command.arg(self.selector.path()).arg("--state-dir").arg(self.scratch.join("select"));
        command
    }

    /// What `vpc-gateway nexthops` prints.
    ///
    /// # Errors
    /// It prints nothing.
    pub fn nexthops(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(["nexthops", "--gateway", &self.name]).args(arguments);
        // Exit code 1 says that a group has nobody: the answer is there all the same.
        let output = command.arg("--state-dir").arg(self.scratch.join("select")).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    /// What the selector printed.
    #[must_use]
    pub fn selector_log(&self) -> String {
        self.selector_process.as_ref().map_or_else(String::new, Process::log)
    }

    /// Waits until the replicas with slots are these, in both families.
    ///
    /// # Errors
    /// They are not, in time.
    pub fn wait_serving(&self, wanted: &[usize]) -> Result<()> {
        let waited = wait_until(&format!("replicas {wanted:?} to serve"), PATIENCE, || {
            let shown: Value = serde_json::from_str(&self.nexthops(&["--json"])?)?;
            let groups = shown["groups"].as_array().context("no groups")?;
            let of_gateway = groups.iter().filter(|group| group["gateway"] == OBJECT);
            let mut serving = of_gateway.map(|group| {
                let members = group["members"].as_array().cloned().unwrap_or_default();
                let serves = |(index, member): (usize, &Value)| {
                    (member["slots"] != 0 && member["liveness"] == "alive").then_some(index)
                };
                members.iter().enumerate().filter_map(serves).collect::<Vec<_>>()
            });
            ensure!(serving.all(|serving| serving == wanted) && groups.len() >= 2, "{shown}");
            Ok(Some(()))
        });
        waited.with_context(|| self.selector_log())
    }

    /// Speaks BFD for a replica, as the second container of its pod does.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_bfd(&mut self, index: usize) -> Result<()> {
        let mut command = Command::new(&self.binary);
        let replica = &mut self.replicas[index];
        command.args(["bfdd", "--gateway", replica.gateway.name(), "--netns"]);
        command.arg(replica.ns.path()).arg("--state-dir").arg(self.scratch.join("bfd"));
        command.args(["--local", &internal(index).join(","), "--peer", "10.0.9.1,fd00:10:9::1"]);
        command.args(["--min-tx", "100", "--min-rx", "100"]);
        let log = self.scratch.join(&format!("bfd-{index}.log"));
        replica.bfd = Some(Process::start(&mut command, &log)?);
        Ok(())
    }

    /// What helps to understand a failure.
    #[must_use]
    pub fn diagnostics(&self) -> String {
        let mut text = format!("--- selector\n{}", self.selector_log());
        text += &self.nexthops(&[]).unwrap_or_else(|error| format!("{error:#}"));
        self.replicas.iter().for_each(|replica| text += &replica.gateway.diagnostics());
        text
    }

    fn replica(&self, index: usize) -> Result<Replica> {
        let ns = Netns::create(&format!("{}-replica{index}", self.name))?;
        for (side, bridge, link) in
            [(&self.selector, "lan0", "eth0"), (&self.router, "wan0", "net1")]
        {
            let port = format!("port{index}");
            side.ip(&format!("link add {port} type veth peer name {link} netns {}", ns.name()))?;
            side.ip(&format!("link set {port} master {bridge} up"))?;
        }
        address(&ns, index)?;
        let mut arguments: Vec<String> = vec!["--name".into(), format!("{}-{index}", self.name)];
        if index == 0 {
            arguments.extend(["--replica".into(), "0".into()]);
        }
        let settings = Settings {
            binary: self.binary.clone(),
            name: format!("{}-{index}", self.name),
            object: Some(OBJECT.into()),
            config: self.config(),
            arguments,
        };
        let gateway = Gateway::prepare_in(&ns, &self.scratch, settings)?;
        Ok(Replica { gateway, bfd: None, ns })
    }
}

/// Brings the links of a replica up, with the addresses that a CNI plugin would give them. The first
/// replica is told which it is, and adds its addresses itself.
fn address(ns: &Netns, index: usize) -> Result<()> {
    for (link, addresses) in [("eth0", internal(index)), ("net1", external(index))] {
        if index > 0 {
            let [v4, v6] = &addresses;
            ns.ip(&format!("address replace {v4}/24 dev {link}"))?;
            ns.ip(&format!("address replace {v6}/64 dev {link} nodad"))?;
        }
        ns.ip(&format!("link set {link} up"))?;
    }
    Ok(())
}

fn wire(tenant: &Netns, selector: &Netns, router: &Netns, server: &Netns) -> Result<()> {
    selector.ip("link add lan0 type bridge")?;
    router.ip("link add wan0 type bridge")?;
    selector.ip(&format!("link add in0 type veth peer name eth0 netns {}", tenant.name()))?;
    router.ip(&format!("link add srv0 type veth peer name eth0 netns {}", server.name()))?;
    for (ns, link, addresses) in [
        (selector, "lan0", &["10.0.9.1/24", "fd00:10:9::1/64"][..]),
        (selector, "in0", &["10.0.1.1/24", "10.0.2.1/24", "fd00:10:1::1/64", "fd00:10:2::1/64"]),
        (tenant, "eth0", &["10.0.1.10/24", "10.0.2.10/24", "fd00:10:1::10/64", "fd00:10:2::10/64"]),
        (router, "wan0", &["203.0.113.1/24", "2001:db8:113::1/64"]),
        (router, "srv0", &["198.51.100.1/24", "2001:db8:7::1/64"]),
        (server, "eth0", &["198.51.100.7/24", "2001:db8:7::7/64"]),
    ] {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            ns.ip(&format!("address add {address} dev {link}{nodad}"))?;
        }
        ns.ip(&format!("link set {link} up"))?;
    }
    for ns in [selector, router] {
        ns.sysctl("ipv4/ip_forward", "1")?;
        ns.sysctl("ipv6/conf/all/forwarding", "1")?;
    }
    let [v4, v6] = TENANT;
    // Who does not bind an address is hidden.
    let tenants = [format!("10.0.1.1 src {v4}"), format!("fd00:10:1::1 src {v6}")];
    let servers = ["198.51.100.1".to_owned(), "2001:db8:7::1".to_owned()];
    for (ns, [v4, v6]) in [(tenant, tenants), (server, servers)] {
        ns.ip(&format!("route add default via {v4}"))?;
        ns.ip(&format!("-6 route add default via {v6}"))?;
    }
    way_back(router, REPLICAS - 1)
}

/// Leads what comes from outside for the subnet that is not hidden to a replica.
///
/// # Errors
/// The kernel refuses the route.
pub fn way_back(router: &Netns, replica: usize) -> Result<()> {
    let [v4, v6] = external(replica);
    router.ip(&format!("route replace 10.0.2.0/24 via {v4}"))?;
    router.ip(&format!("-6 route replace fd00:10:2::/64 via {v6}")).map(drop)
}

/// The server's address and a port of it.
///
/// # Panics
/// Never: the address is valid.
#[must_use]
pub fn server(family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(SERVER[family].parse().expect("an address"), port)
}
