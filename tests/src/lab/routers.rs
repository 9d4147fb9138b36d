//! A gateway with two routers on either side, each watched by BFD.
//!
//! ```text
//!            ┌ a0 [inner 0] b0 ┐                          ┌ b0 [outer 0] a0 ┐
//!  [tenant] ─┤                 ├─ eth0 [gateway] net1 ────┤                 ├─ [server]
//!   10.0.2.10└ a0 [inner 1] b0 ┘ .254   203.0.113.2       └ b0 [outer 1] a0 ┘  198.51.100.7
//!   10.0.2.20   10.0.1.1, .2             203.0.113.1, .3                       198.51.100.8
//! ```
//!
//! Both ends have two addresses, and send from each by a router of its own. The manifest is
//! `examples/next-hops.yaml`. Every address has an IPv6 one beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cleanup;
use super::gateway::{Gateway, Settings};
use super::netns::Netns;
use super::process::Process;
use super::scratch::Scratch;
use super::tier;
use super::wait::wait_until;

/// The tenant's addresses in each family, by the inner router that they send by.
pub const TENANT: [[&str; 2]; 2] = [["10.0.2.10", "10.0.2.20"], ["fd00:10:2::10", "fd00:10:2::20"]];
/// The server's, by the outer router.
pub const SERVER: [[&str; 2]; 2] =
    [["198.51.100.7", "198.51.100.8"], ["2001:db8:7::7", "2001:db8:7::8"]];
/// The EIP of both rules.
pub const EIP: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
/// The outer routers, as the gateway sees them, in each family.
pub const OUTER: [[&str; 2]; 2] =
    [["203.0.113.1", "203.0.113.3"], ["2001:db8:113::1", "2001:db8:113::3"]];
/// The inner routers.
pub const INNER: [[&str; 2]; 2] = [["10.0.1.1", "10.0.1.2"], ["fd00:10:1::1", "fd00:10:1::2"]];

const NAME: &str = "gw-next-hops";
const PATIENCE: Duration = Duration::from_secs(20);

/// A router and whoever speaks BFD on it.
#[derive(Debug)]
pub struct Router {
    bfd: Option<Process>,
    /// Its namespace.
    pub ns: Netns,
}

/// Everything. The parts are dropped in this order.
#[derive(Debug)]
pub struct RoutersLab {
    /// The gateway.
    pub gateway: Gateway,
    /// Towards the tenant.
    pub inner: Vec<Router>,
    /// Towards the server.
    pub outer: Vec<Router>,
    /// The tenant.
    pub tenant: Netns,
    /// The server.
    pub server: Netns,
    pod: Netns,
    _switch: Netns,
    binary: PathBuf,
    /// Manifest and logs.
    pub scratch: Scratch,
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples").join("next-hops.yaml")
}

impl RoutersLab {
    /// Builds the network and starts everything; `change` changes the manifest before.
    ///
    /// # Errors
    /// Something is missing or not ready in time.
    pub fn start(change: impl FnOnce(String) -> String) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        cleanup::on_signals()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vghop-{}-{count}", std::process::id());
        let (binary, scratch) = (tier::binary()?, Scratch::create(&name)?);
        let object = format!("{NAME}-{name}");
        let config = scratch.join("next-hops.yaml");
        fs::write(&config, change(fs::read_to_string(example())?).replace(NAME, &object))?;
        let create = |role: &str| Netns::create(&format!("{name}-{role}"));
        let switch = create("switch")?;
        for bridge in ["tenants", "lan", "wan", "servers"] {
            switch.ip(&format!("link add {bridge} type bridge"))?;
            switch.ip(&format!("link set {bridge} up"))?;
        }
        let [tenant, server, pod] = [create("tenant")?, create("server")?, create("pod")?];
        plug(&switch, "tenants", &tenant, "e0", &TENANT.map(|both| both.to_vec()))?;
        plug(&switch, "servers", &server, "e0", &SERVER.map(|both| both.to_vec()))?;
        plug(&switch, "lan", &pod, "eth0", &[vec!["10.0.1.254"], vec!["fd00:10:1::254"]])?;
        plug(&switch, "wan", &pod, "net1", &[vec!["203.0.113.2"], vec!["2001:db8:113::2"]])?;
        hasten_neighbours(&pod)?;
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        for index in 0..2 {
            let ns = create(&format!("inner{index}"))?;
            let near = [format!("10.0.2.{}", index + 1), format!("fd00:10:2::{}", index + 1)];
            wire(&switch, &ns, index, ["tenants", "lan"], &near, INNER)?;
            ns.ip("route add default via 10.0.1.254")?;
            ns.ip("route add default via fd00:10:1::254")?;
            leave_by(&tenant, TENANT, index, &near)?;
            inner.push(Router { bfd: None, ns });
            let ns = create(&format!("outer{index}"))?;
            let near = [format!("198.51.100.{}", index + 1), format!("2001:db8:7::{}", index + 1)];
            wire(&switch, &ns, index, ["servers", "wan"], &near, OUTER)?;
            leave_by(&server, SERVER, index, &near)?;
            outer.push(Router { bfd: None, ns });
        }
        let (arguments, binary_of) = (Vec::new(), binary.clone());
        let settings =
            Settings { binary: binary_of, name: object, object: None, config, arguments };
        let gateway = Gateway::prepare_in(&pod, &scratch, settings)?;
        let _switch = switch;
        let mut lab = Self { gateway, inner, outer, tenant, server, pod, _switch, binary, scratch };
        for index in 0..2 {
            lab.speak(true, index)?;
            lab.speak(false, index)?;
        }
        lab.gateway.restart()?;
        Ok(lab)
    }

    /// Speaks BFD on a router.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn speak(&mut self, outer: bool, index: usize) -> Result<()> {
        let (router, local, peer, role) = if outer {
            (&mut self.outer[index], OUTER, "203.0.113.2,2001:db8:113::2", "outer")
        } else {
            (&mut self.inner[index], INNER, "10.0.1.254,fd00:10:1::254", "inner")
        };
        let local = local.map(|both| both[index]).join(",");
        let mut command = Command::new(&self.binary);
        command.args(["bfdd", "--gateway", &format!("{role}{index}"), "--netns"]);
        command.arg(router.ns.path()).arg("--state-dir").arg(self.scratch.join("bfd"));
        command.args(["--local", &local, "--peer", peer, "--min-ttl", "255"]);
        command.args(["--min-tx", "100", "--min-rx", "100"]);
        let log = self.scratch.join(&format!("bfd-{role}{index}.log"));
        router.bfd = Some(Process::start(&mut command, &log)?);
        Ok(())
    }

    /// Speaks BFD with nobody, beside the gateway.
    ///
    /// # Errors
    /// It cannot be started, or does not listen in time.
    pub fn speak_beside(&self) -> Result<Process> {
        let mut command = Command::new(&self.binary);
        command.args(["bfdd", "--gateway", "beside", "--netns"]).arg(self.pod.path());
        command.arg("--state-dir").arg(self.scratch.join("bfd"));
        command.args(["--local", "10.0.1.254", "--peer", "10.0.1.99"]);
        let process = Process::start(&mut command, &self.scratch.join("bfd-beside.log"))?;
        wait_until("the other daemon to listen", PATIENCE, || {
            let sockets = self.pod.output(Command::new("ss").args(["-Hlun"]))?;
            Ok(sockets.contains(":3784").then_some(()))
        })?;
        Ok(process)
    }

    /// Ends a router as one that loses its power: nothing says good-bye.
    ///
    /// # Errors
    /// Its links cannot be cut.
    pub fn kill(&mut self, outer: bool, index: usize) -> Result<()> {
        let router = if outer { &mut self.outer[index] } else { &mut self.inner[index] };
        router.ns.ip("link set b0 down")?;
        router.ns.ip("link set a0 down")?;
        router.bfd = None;
        Ok(())
    }

    /// Ends what speaks BFD on a router without a word; the router itself goes on.
    ///
    /// # Errors
    /// Nobody speaks.
    pub fn silence(&mut self, outer: bool, index: usize) -> Result<()> {
        let router = if outer { &mut self.outer[index] } else { &mut self.inner[index] };
        let mut bfd = router.bfd.take().context("nobody speaks")?;
        bfd.signal(nix::sys::signal::Signal::SIGKILL)?;
        bfd.wait(PATIENCE).map(drop)
    }

    /// What `vpc-gateway nexthops --json` prints.
    ///
    /// # Errors
    /// It prints nothing.
    pub fn next_hops(&self) -> Result<Value> {
        // Exit code 1 says that a group has nobody: the answer is there all the same.
        let output = self.gateway.verb_command("nexthops", &["--json"]).output()?;
        let error = || String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).with_context(error)
    }

    /// The members of a group, by their addresses.
    ///
    /// # Errors
    /// There is no such group.
    pub fn member(&self, address: &str) -> Result<Value> {
        let shown = self.next_hops()?;
        let groups = shown["groups"].as_array().context("no groups")?;
        let mut members = groups.iter().flat_map(|group| group["members"].as_array()).flatten();
        let found = members.find(|member| member["address"] == address).cloned();
        found.with_context(|| format!("no {address} in {shown}"))
    }

    /// Waits until the members with these addresses have this state.
    ///
    /// # Errors
    /// They have not, in time.
    pub fn wait_for(&self, addresses: &[&str], state: &str) -> Result<()> {
        let waited = wait_until(&format!("{addresses:?} to be {state}"), PATIENCE, || {
            for address in addresses {
                let member = self.member(address)?;
                ensure!(member["state"] == state, "{member}");
                // One that is alive for the moment because nothing is known of it has no session.
                let mac = member["mac"].is_string();
                ensure!(state != "alive" || mac, "its MAC address is not known yet: {member}");
            }
            Ok(Some(()))
        });
        waited.with_context(|| self.gateway.log())
    }

    /// Waits until every router is alive, and BFD says so.
    ///
    /// # Errors
    /// One is not, in time.
    pub fn wait_all(&self) -> Result<()> {
        let waited = wait_until("all BFD sessions to be up", PATIENCE, || {
            let shown = self.gateway.json("bfd")?;
            let sessions = shown["sessions"].as_array().context("no sessions")?;
            let up = sessions.iter().filter(|session| session["state"] == "up").count();
            Ok((up == 8).then_some(()))
        });
        waited.with_context(|| self.gateway.log())?;
        for routers in [OUTER, INNER] {
            self.wait_for(&routers.concat(), "alive")?;
        }
        Ok(())
    }

    /// Bytes that a router has got on the side of the gateway.
    ///
    /// # Errors
    /// It has no such link.
    pub fn received(&self, outer: bool, index: usize) -> Result<u64> {
        let router = if outer { &self.outer[index] } else { &self.inner[index] };
        let text = router.ns.ip("-j -s link show dev b0")?;
        let shown: Value = serde_json::from_str(&text)?;
        shown[0]["stats64"]["rx"]["bytes"].as_u64().context("no count")
    }

    /// What helps to understand a failure.
    #[must_use]
    pub fn diagnostics(&self) -> String {
        let shown = self.next_hops().map_or_else(|error| format!("{error:#}"), |it| it.to_string());
        format!("{shown}\n{}", self.gateway.diagnostics())
    }
}

/// Makes a kernel notice within seconds that a neighbour outside is gone, not within a minute.
fn hasten_neighbours(pod: &Netns) -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        let of = |key: &str| format!("{family}/neigh/net1/{key}");
        pod.sysctl(&of("base_reachable_time_ms"), "1000")?;
        pod.sysctl(&of("delay_first_probe_time"), "1")?;
        pod.sysctl(&of("retrans_time_ms"), "200")?;
    }
    Ok(())
}

/// Gives a namespace an interface on a bridge, with addresses of both families.
fn plug(
    switch: &Netns,
    bridge: &str,
    ns: &Netns,
    link: &str,
    addresses: &[Vec<&str>; 2],
) -> Result<()> {
    static PORTS: AtomicU32 = AtomicU32::new(0);
    let port = format!("p{}", PORTS.fetch_add(1, Ordering::Relaxed));
    switch.ip(&format!("link add {port} type veth peer name {link} netns {}", ns.name()))?;
    switch.ip(&format!("link set {port} master {bridge} up"))?;
    for key in ["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"] {
        ns.sysctl(key, "0")?;
    }
    for address in &addresses[0] {
        ns.ip(&format!("address add {address}/24 dev {link}"))?;
    }
    for address in &addresses[1] {
        ns.ip(&format!("address add {address}/64 dev {link} nodad"))?;
    }
    ns.ip(&format!("link set {link} up")).map(drop)
}

/// A router between two bridges: `a0` towards an end, `b0` towards the gateway.
fn wire(
    switch: &Netns,
    ns: &Netns,
    index: usize,
    bridges: [&str; 2],
    near: &[String; 2],
    far: [[&str; 2]; 2],
) -> Result<()> {
    let near = [vec![near[0].as_str()], vec![near[1].as_str()]];
    plug(switch, bridges[0], ns, "a0", &near)?;
    plug(switch, bridges[1], ns, "b0", &far.map(|both| vec![both[index]]))?;
    ns.sysctl("ipv4/ip_forward", "1")?;
    ns.sysctl("ipv6/conf/all/forwarding", "1")?;
    // It would tell an end of the other router.
    ns.sysctl("ipv4/conf/all/send_redirects", "0")?;
    ns.sysctl("ipv4/conf/a0/send_redirects", "0")
}

/// Has an end send by a router from one of its addresses, and by default from the first.
fn leave_by(ns: &Netns, own: [[&str; 2]; 2], index: usize, via: &[String; 2]) -> Result<()> {
    let table = 100 + index;
    for (family, flag) in [(0, "-4"), (1, "-6")] {
        let (own, via) = (own[family][index], &via[family]);
        ns.ip(&format!("{flag} route add default via {via} table {table}"))?;
        ns.ip(&format!("{flag} rule add from {own} table {table}"))?;
        if index == 0 {
            ns.ip(&format!("{flag} route add default via {via}"))?;
        }
    }
    Ok(())
}
