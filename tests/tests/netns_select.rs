//! `vpc-gateway select`: a tenant, a selector, three replicas, and which of them a flow reaches.
//!
//! ```text
//!   tenant 10.0.1.10 ── in0 [selector] lan0 ── 10.0.9.1 ─┬─ 10.0.9.11 [replica 1]
//!                                                        ├─ 10.0.9.12 [replica 2]   each is 198.51.100.7
//!                                                        └─ 10.0.9.13 [replica 3]   and says who it is
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_tests::lab::netns::{self, Netns};
use gateway_tests::lab::process::Process;
use gateway_tests::lab::scratch::Scratch;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::{cleanup, tier};
use nix::sys::signal::Signal;
use serde_json::Value;

const SERVER: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
const PORT: u16 = 7007;
const PATIENCE: Duration = Duration::from_secs(20);
const FLOWS: u16 = 120;

/// A replica: a namespace that answers with its number, and its side of BFD.
struct Replica {
    number: usize,
    ns: Netns,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
    bfd: Option<Process>,
}

impl Replica {
    /// Answers on both addresses of the server; a socket for each, so that answers come from it.
    fn answer(&mut self) -> Result<()> {
        for server in SERVER {
            let socket = self.ns.enter(|| UdpSocket::bind((address(server), PORT)))??;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let (stop, number) = (self.stop.clone(), self.number.to_string());
            self.servers.push(std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(number.as_bytes(), from);
                    }
                }
            }));
        }
        Ok(())
    }

    fn start_bfd(&mut self, scratch: &Scratch) -> Result<()> {
        let number = self.number;
        let mut command = Command::new(tier::binary()?);
        command.args(["bfdd", "--gateway", &format!("replica-{number}"), "--netns"]);
        command.arg(self.ns.path()).arg("--state-dir").arg(scratch.join("state"));
        command.args(["--local", &format!("10.0.9.1{number},fd00:10:9::1{number}")]);
        command.args(["--peer", "10.0.9.1,fd00:10:9::1", "--min-tx", "100", "--min-rx", "100"]);
        let log = scratch.join(&format!("bfd-{number}.log"));
        self.bfd = Some(Process::start(&mut command, &log)?);
        Ok(())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
    }
}

struct Lab {
    name: String,
    tenant: Netns,
    selector: Netns,
    replicas: Vec<Replica>,
    daemon: Option<Process>,
    // Last, so that it goes last.
    scratch: Scratch,
}

impl Lab {
    /// A lab whose replicas all speak BFD.
    fn with_bfd() -> Result<Self> {
        let mut lab = Self::build()?;
        let Self { replicas, scratch, .. } = &mut lab;
        replicas.iter_mut().try_for_each(|replica| replica.start_bfd(scratch))?;
        Ok(lab)
    }

    fn build() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        cleanup::on_signals()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vgsel-{}-{count}", std::process::id());
        let scratch = Scratch::create(&name)?;
        let tenant = Netns::create(&format!("{name}-tenant"))?;
        let selector = Netns::create(&format!("{name}-selector"))?;
        selector.ip("link add lan0 type bridge")?;
        selector.ip("link set lan0 up")?;
        selector.ip(&format!("link add in0 type veth peer name eth0 netns {}", tenant.name()))?;
        for (ns, link, addresses) in [
            (&selector, "lan0", ["10.0.9.1/24", "fd00:10:9::1/64"]),
            (&selector, "in0", ["10.0.1.1/24", "fd00:10:1::1/64"]),
            (&tenant, "eth0", ["10.0.1.10/24", "fd00:10:1::10/64"]),
        ] {
            configure(ns, link, addresses)?;
        }
        for (family, sysctl) in [("-4", "ipv4/ip_forward"), ("-6", "ipv6/conf/all/forwarding")] {
            selector.sysctl(sysctl, "1")?;
            let via = if family == "-4" { "10.0.1.1" } else { "fd00:10:1::1" };
            tenant.ip(&format!("{family} route add default via {via}"))?;
        }
        let replicas =
            (1..=3).map(|number| replica(&name, number, &selector)).collect::<Result<_>>()?;
        Ok(Self { name, tenant, selector, replicas, daemon: None, scratch })
    }

    fn manifest(&self, change: impl Fn(String) -> String) -> Result<()> {
        let text = include_str!("fixtures/select.yaml").to_owned();
        self.scratch.write("select.yaml", change(text)).map(drop)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(tier::binary()?);
        command.args(["select", "--name", &self.name, "--interface", "in0", "--netns"]);
        command.arg(self.selector.path()).arg("--state-dir").arg(self.scratch.join("state"));
        Ok(command)
    }

    fn start(&mut self) -> Result<()> {
        let mut command = self.command()?;
        command.arg("--config").arg(self.scratch.join("select.yaml"));
        let log = self.scratch.join("select.log");
        let attached = |log: &str| log.matches("attached by").count();
        let before = attached(&std::fs::read_to_string(&log).unwrap_or_default());
        let daemon = self.daemon.insert(Process::start(&mut command, &log)?);
        let more = || Ok((attached(&daemon.log()) > before).then_some(()));
        wait_until("the selector to attach", PATIENCE, more)
    }

    fn nexthops(&self) -> Result<Value> {
        let mut command = Command::new(tier::binary()?);
        command.args(["nexthops", "--json", "--gateway", &self.name, "--state-dir"]);
        // Exit code 1 says that a group has nobody: the answer is there all the same.
        let output = command.arg(self.scratch.join("state")).output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The BFD sessions of the selector.
    fn sessions(&self) -> Result<Vec<Value>> {
        let mut command = Command::new(tier::binary()?);
        command.args(["bfd", "--json", "--gateway", &self.name, "--state-dir"]);
        // Exit code 1 says that a session is down: the answer is there all the same.
        let output = command.arg(self.scratch.join("state")).output()?;
        let shown: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(shown["sessions"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until so many sessions are up with these timers, in milliseconds.
    fn wait_timers(&self, count: usize, transmit: u64, detection: u64) -> Result<()> {
        wait_until("the timers", PATIENCE, || {
            let sessions = self.sessions()?;
            let agreed = sessions.iter().filter(|one| {
                one["state"] == "up"
                    && one["transmit_interval_ms"] == transmit
                    && one["detection_time_ms"] == detection
            });
            ensure!(agreed.count() == count, "{sessions:?}");
            Ok(Some(()))
        })
    }

    /// Waits until the replicas with slots are these, in both families, and known to be alive.
    fn wait_serving(&self, numbers: &[usize]) -> Result<()> {
        wait_until(&format!("replicas {numbers:?} to serve"), PATIENCE, || {
            let shown = self.nexthops()?;
            let groups = shown["groups"].as_array().context("no groups")?;
            let serves = |group: &Value| {
                let members = group["members"].as_array().cloned().unwrap_or_default();
                let has_slots = |member: &Value| member["slots"] != 0;
                let with_slots = |(index, member)| has_slots(member).then_some(index + 1);
                members.iter().filter(|one| has_slots(one)).all(|one| one["liveness"] == "alive")
                    && members.iter().enumerate().filter_map(with_slots).eq(numbers.iter().copied())
            };
            ensure!(groups.len() == 2 && groups.iter().all(serves), "{shown}");
            Ok(Some(()))
        })
        .with_context(|| self.daemon.as_ref().map_or_else(String::new, Process::log))
    }

    /// Which replica each of many flows reaches, by source port; those without an answer are absent.
    fn reach(&self, family: usize, patience: Duration) -> Result<BTreeMap<u16, usize>> {
        let server = SocketAddr::new(address(SERVER[family]), PORT);
        self.tenant.enter(|| -> Result<_> {
            let any = if family == 0 { "0.0.0.0" } else { "::" };
            let mut sockets = Vec::new();
            for port in 30_000..30_000 + FLOWS {
                let socket = UdpSocket::bind((address(any), port))?;
                socket.connect(server)?;
                let _ = socket.send(b"who");
                sockets.push((port, socket));
            }
            let deadline = Instant::now() + patience;
            let mut reached = BTreeMap::new();
            for (port, socket) in sockets {
                let left = deadline.saturating_duration_since(Instant::now());
                socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                let mut buffer = [0; 8];
                if let Ok(length) = socket.recv(&mut buffer) {
                    let answer = String::from_utf8_lossy(&buffer[..length]).parse()?;
                    reached.insert(port, answer);
                }
            }
            Ok(reached)
        })?
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.daemon = None;
        if let Ok(mut command) = self.command() {
            let _ = netns::run(command.arg("--detach"));
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn configure(ns: &Netns, link: &str, [v4, v6]: [&str; 2]) -> Result<()> {
    ns.ip(&format!("address add {v4} dev {link}"))?;
    ns.ip(&format!("address add {v6} dev {link} nodad"))?;
    ns.ip(&format!("link set {link} up")).map(drop)
}

fn replica(lab: &str, number: usize, selector: &Netns) -> Result<Replica> {
    let ns = Netns::create(&format!("{lab}-replica{number}"))?;
    let port = format!("port{number}");
    selector.ip(&format!("link add {port} type veth peer name eth0 netns {}", ns.name()))?;
    selector.ip(&format!("link set {port} master lan0 up"))?;
    let addresses = [format!("10.0.9.1{number}/24"), format!("fd00:10:9::1{number}/64")];
    configure(&ns, "eth0", [&addresses[0], &addresses[1]])?;
    ns.ip(&format!("address add {}/32 dev lo", SERVER[0]))?;
    ns.ip(&format!("address add {}/128 dev lo nodad", SERVER[1]))?;
    ns.ip("route add 10.0.1.0/24 via 10.0.9.1")?;
    ns.ip("route add fd00:10:1::/64 via fd00:10:9::1")?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut replica = Replica { number, ns, stop, servers: Vec::new(), bfd: None };
    replica.answer()?;
    Ok(replica)
}

fn shares(reached: &BTreeMap<u16, usize>) -> [usize; 3] {
    [1, 2, 3].map(|number| reached.values().filter(|one| **one == number).count())
}

/// The VPC of Kube-OVN's guide, with the replicas as its next hops: policies before static routes.
#[test]
fn the_routes_of_the_guide_are_followed() {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let run = || -> Result<()> {
        let mut lab = Lab::build()?;
        let guide = include_str!("../fixtures/accepted/vpc-guide.yaml");
        let guide = [("254", "11"), ("253", "12"), ("252", "13")].iter().fold(
            guide.to_owned(),
            |text, (theirs, ours)| {
                text.replace(
                    &format!("nextHopIP: 10.0.1.{theirs}"),
                    &format!("nextHopIP: 10.0.9.{ours}"),
                )
            },
        );
        let all_by = |lab: &Lab, expected: [usize; 3]| {
            wait_until(&format!("{expected:?}"), PATIENCE, || {
                let shares = shares(&lab.reach(0, Duration::from_millis(500))?);
                ensure!(shares == expected, "{shares:?}");
                Ok(Some(()))
            })
        };
        let flows = usize::from(FLOWS);
        lab.manifest(|_| guide.clone())?;
        lab.start()?;
        all_by(&lab, [0, 0, flows]).context("rerouted")?;
        lab.manifest(|_| guide.replace("10.0.1.250", SERVER[0]))?;
        all_by(&lab, [0, 0, 0]).context("dropped")?;
        // The later one of two objects of a name counts, so that the static routes had no effect.
        let documents: Vec<_> = guide.split("---\n").collect();
        let others = documents.iter().filter(|one| !one.contains("policyRoutes:"));
        let others: Vec<_> = others.copied().collect();
        ensure!(others.len() + 1 == documents.len(), "the guide has changed");
        lab.manifest(|_| others.join("---\n"))?;
        all_by(&lab, [flows, 0, 0]).context("by the static route")
    };
    run().expect("the guide's routes");
}

/// Routes by all replicas, guarded by BFD with these timers.
fn guarded_routes(timers: &str) -> String {
    let fixture = include_str!("fixtures/select.yaml");
    let (_, subnets) = fixture.split_once("---\n").expect("Subnets");
    let mut routes = String::new();
    for number in 1..=3 {
        routes += &format!("    - {{cidr: 0.0.0.0/0, nextHopIP: 10.0.9.1{number}, bfdId: b}}\n");
        routes += &format!("    - {{cidr: '::/0', nextHopIP: 'fd00:10:9::1{number}', bfdId: b}}\n");
    }
    format!(
        "apiVersion: kubeovn.io/v1\nkind: Vpc\nmetadata:\n  name: vpc1\n  annotations:\n    \
         vpc-gateway.io/next-hop-bfd: {timers}\nspec:\n  staticRoutes:\n{routes}---\n{subnets}"
    )
}

#[test]
fn guarded_routes_have_the_timers_of_their_vpc_and_change_them_in_running_sessions() {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let run = || -> Result<()> {
        let mut lab = Lab::with_bfd()?;
        lab.manifest(|_| guarded_routes("100/100/3"))?;
        lab.start()?;
        lab.wait_serving(&[1, 2, 3])?;
        lab.wait_timers(4 + 2, 100, 300)?;
        ensure!(lab.reach(0, SOON)?.len() == usize::from(FLOWS), "not every flow has an answer");
        let killed = Instant::now();
        lab.replicas[1].bfd = None;
        lab.wait_serving(&[1, 3])?;
        println!("next hop 2 dead: out of use after {:?}, detection 300 ms", killed.elapsed());
        for family in 0..2 {
            let reached = lab.reach(family, SOON)?;
            ensure!(reached.len() == usize::from(FLOWS) && shares(&reached)[1] == 0, "{reached:?}");
        }

        // We send every 200 ms then, and hear every 400 ms, of which they let us miss three.
        lab.manifest(|_| guarded_routes("400/200/5"))?;
        lab.wait_timers(4, 200, 1200)?;
        let up = lab.sessions()?.into_iter().filter(|one| one["state"] == "up");
        ensure!(
            up.clone().count() == 4 && up.clone().all(|one| one["flaps"] == 0),
            "a session broke"
        );
        // A mistake is named, and the default watches on.
        lab.manifest(|_| guarded_routes("400/200/0"))?;
        wait_until("the mistake to be named", PATIENCE, || {
            let problems = lab.nexthops()?["problems"].to_string();
            let wanted =
                "Vpc/vpc1: metadata.annotations.vpc-gateway.io/next-hop-bfd: 0 is not a multiplier";
            ensure!(problems.contains(wanted), "{problems}");
            Ok(Some(()))
        })?;
        lab.wait_serving(&[1, 3])
    };
    run().expect("guarded routes");
}

fn keep(text: String) -> String {
    text
}

const SOON: Duration = Duration::from_secs(2);

#[test]
fn only_the_flows_of_a_dead_replica_move_and_come_back() {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let run = || -> Result<()> {
        let mut lab = Lab::with_bfd()?;
        lab.manifest(keep)?;
        lab.start()?;
        lab.wait_serving(&[1, 2, 3])?;
        let before: Vec<_> = (0..2).map(|family| lab.reach(family, SOON)).collect::<Result<_>>()?;
        for reached in &before {
            ensure!(reached.len() == usize::from(FLOWS), "{} answers", reached.len());
            let shares = shares(reached);
            ensure!(shares.iter().all(|share| (20..=60).contains(share)), "{shares:?}");
        }

        // A selector that is killed and started again sends every flow where it went.
        lab.daemon.as_ref().context("no daemon")?.signal(Signal::SIGKILL)?;
        ensure!(lab.reach(0, SOON)? == before[0], "flows moved without a daemon");
        lab.start()?;
        for _ in 0..20 {
            ensure!(lab.reach(0, SOON)? == before[0], "flows moved by the restart");
        }
        lab.wait_serving(&[1, 2, 3])?;

        let killed = Instant::now();
        lab.replicas[1].bfd = None;
        lab.wait_serving(&[1, 3])?;
        println!("replica 2 dead: moved after {:?}, detection time 300 ms", killed.elapsed());
        for (family, before) in before.iter().enumerate() {
            let after = lab.reach(family, SOON)?;
            ensure!(after.len() == usize::from(FLOWS), "{} answers", after.len());
            for (port, number) in before {
                let now = after[port];
                ensure!(now != 2 && (*number == 2 || now == *number), "{port}: {number} -> {now}");
            }
        }

        let Lab { replicas, scratch, .. } = &mut lab;
        replicas[1].start_bfd(scratch)?;
        lab.wait_serving(&[1, 2, 3])?;
        let back = lab.reach(0, SOON)?;
        let moved = before[0].iter().filter(|(port, number)| back[*port] != **number).count();
        // What comes back is a share of that size, mostly the same flows.
        ensure!(moved <= usize::from(FLOWS) / 2, "{moved} flows elsewhere than at first");
        ensure!((20..=60).contains(&shares(&back)[1]), "{:?}", shares(&back));

        for replica in &mut lab.replicas {
            replica.bfd = None;
        }
        lab.wait_serving(&[])?;
        ensure!(lab.reach(0, Duration::from_millis(20))?.is_empty(), "an answer from the dead");
        let shown = lab.nexthops()?;
        ensure!(shown["dropped"].as_u64() >= Some(FLOWS.into()), "{shown}");
        Ok(())
    };
    run().expect("a selector with BFD");
}

#[test]
fn weights_and_the_hash_are_followed_and_changes_are_taken_over() {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let run = || -> Result<()> {
        let mut lab = Lab::build()?;
        let without_bfd = |text: String| text.replace("enabled: true", "enabled: false");
        lab.manifest(without_bfd)?;
        lab.start()?;
        lab.wait_serving(&[1, 2, 3])?;
        let weighted = |text: String| {
            without_bfd(text).replace(
                "  name: egress",
                "  name: egress\n  annotations:\n    vpc-gateway.io/weights: 1,0,3",
            )
        };
        lab.manifest(weighted)?;
        wait_until("the weights", PATIENCE, || {
            let reached = lab.reach(0, SOON)?;
            let [one, two, three] = shares(&reached);
            ensure!(two == 0 && one > 10 && three > 2 * one, "{one} {two} {three}");
            Ok(Some(()))
        })?;
        let by_source = |text: String| {
            without_bfd(text).replace(
                "  name: egress",
                "  name: egress\n  annotations:\n    vpc-gateway.io/hash: source",
            )
        };
        lab.manifest(by_source)?;
        wait_until("one way for one host", PATIENCE, || {
            let shares = shares(&lab.reach(1, SOON)?);
            ensure!(shares.iter().filter(|share| **share > 0).count() == 1, "{shares:?}");
            Ok(Some(()))
        })?;
        // Inside the VPC no gateway is asked.
        let ping = lab.tenant.output(Command::new("ping").args(["-c1", "-W2", "10.0.9.12"]));
        ping.context("inside the VPC").map(drop)
    };
    run().expect("a selector without BFD");
}
