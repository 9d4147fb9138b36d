//! Egress gateways end to end: tenants, a selector, three replicas of one gateway, an outside.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_tests::lab::echo::{ECHO_PORT, EchoServers};
use gateway_tests::lab::egress::{
    EgressLab, PLAIN, REPLICAS, TENANT, replica_of, server, way_back,
};
use gateway_tests::lab::gateway::{Gateway, Settings};
use gateway_tests::lab::http::{Nginx, random_file, sha256};
use gateway_tests::lab::load::Load;
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::probe::{self, Refusal, TcpProbe};
use gateway_tests::lab::process::Process;
use gateway_tests::lab::scratch::Scratch;
use gateway_tests::lab::tier;
use gateway_tests::lab::wait::wait_until;
use serde_json::Value;

/// The replica that dies.
const VICTIM: usize = 1;

fn lab(test: impl FnOnce(&mut EgressLab) -> Result<()>) {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let mut lab = EgressLab::build("vgegr").unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = lab.start().and_then(|()| test(&mut lab));
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", lab.diagnostics()));
}

/// Packets that a replica has forwarded unchanged.
fn forwarded(lab: &EgressLab, replica: usize) -> Result<u64> {
    let rules = lab.replicas[replica].gateway.json("rules")?;
    let rules = rules.as_array().context("no rules")?.clone();
    let forwards = rules.iter().filter(|rule| rule["kind"] == "forward");
    Ok(forwards.filter_map(|rule| rule["packets"].as_u64()).sum())
}

/// Starts to upload a file from the subnet that is not hidden, slowly enough to be interrupted.
fn upload(lab: &EgressLab, file: &Path, family: usize, name: &str) -> Result<Process> {
    let to = server(family, 80);
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"]);
    command.args(["--limit-rate", "4M", "--interface", PLAIN[family], "-T"]).arg(file);
    command.arg(format!("http://{to}/files/{name}"));
    let log = lab.scratch.join(&format!("{name}.log"));
    lab.tenant.enter(|| Process::start(&mut command, &log))?
}

#[test]
fn transfers_that_are_forwarded_survive_the_death_of_their_replica() {
    lab(|lab| {
        // Answers come by a replica that stays, and nobody is sent there.
        way_back(&lab.router, REPLICAS - 1)?;
        lab.change(|text| {
            let weights = "  annotations:\n    vpc-gateway.io/weights: 1,1,0\n";
            text.replace("  namespace: default\n", &format!("  namespace: default\n{weights}"))
        })?;
        lab.wait_serving(&[0, 1])?;
        let nginx = Nginx::start(&lab.server, &lab.scratch)?;
        let file = lab.scratch.join("original");
        random_file(&file, 12)?;
        let before = forwarded(lab, VICTIM)?;
        let mut uploads = Vec::new();
        for family in 0..2 {
            for number in 0..6 {
                let name = format!("copy-{family}-{number}");
                uploads.push((name.clone(), upload(lab, &file, family, &name)?));
            }
        }
        thread::sleep(Duration::from_millis(1200));
        let carried = forwarded(lab, VICTIM)? - before;
        ensure!(carried > 100, "the victim carried only {carried} packets");
        let ended = uploads.iter_mut().filter_map(|(_, upload)| upload.exited()).count();
        ensure!(ended == 0, "{ended} uploads are over already");
        let at = Instant::now();
        lab.kill(VICTIM)?;
        lab.wait_serving(&[0])?;
        println!("replica {VICTIM} was out of use {:?} after its death", at.elapsed());
        let wanted = sha256(&file)?;
        for (name, upload) in &mut uploads {
            let status = upload.wait(Duration::from_secs(40))?;
            ensure!(status.success(), "{name}: {status}: {}", upload.log());
            let found = sha256(&nginx.files().join(&*name))?;
            ensure!(found == wanted, "{name}: content changed: {wanted} became {found}");
        }
        println!("{} uploads whole, {carried} packets of them by the victim", uploads.len());
        Ok(())
    });
}

#[test]
fn connections_that_are_translated_break_only_at_the_replica_that_died() {
    lab(|lab| {
        let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
        for family in 0..2 {
            let connect = |_| TcpProbe::connect(&lab.tenant, 0, server(family, ECHO_PORT));
            let mut connections: Vec<TcpProbe> = (0..60).map(connect).collect::<Result<_>>()?;
            let by_victim = |one: &TcpProbe| replica_of(one.exchange.seen.ip()) == Some(VICTIM);
            lab.kill(VICTIM)?;
            lab.wait_serving(&[0, 2])?;
            let (mut dead, mut alive) = (0, 0);
            for connection in &mut connections {
                let victim = by_victim(connection);
                match (victim, connection.echo("still there")) {
                    (false, Ok(())) => alive += 1,
                    (false, Err(error)) => return Err(error.context("at a living replica")),
                    (true, _) => dead += 1,
                }
            }
            ensure!(dead > 5 && alive > 20, "{dead} by the victim, {alive} by others");
            // Who asks again is served by somebody else.
            for _ in 0..dead {
                let again = TcpProbe::connect(&lab.tenant, 0, server(family, ECHO_PORT))?;
                ensure!(!by_victim(&again), "{:?}", again.exchange);
            }
            println!("family {family}: {alive} connections went on, {dead} were opened again");
            lab.revive(VICTIM)?;
            lab.wait_serving(&[0, 1, 2])?;
        }
        Ok(())
    });
}

#[test]
fn a_local_gateway_prefers_the_replicas_of_its_node() {
    lab(|lab| {
        let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
        lab.change(|text| {
            text.replace("  replicas: 3\n", "  replicas: 3\n  trafficPolicy: Local\n")
                + "status:\n  workload:\n    nodes: [node-a, node-b, node-a]\n"
        })?;
        lab.start_selector(&["--node", "node-b"])?;
        lab.wait_serving(&[VICTIM])?;
        let replicas = |lab: &EgressLab| -> Result<Vec<usize>> {
            let to = server(0, ECHO_PORT);
            let time = Duration::from_millis(300);
            let seen = Load::during(&lab.tenant, TENANT[0], to, (60, time))?;
            let last = seen.values().filter_map(|history| history.last());
            let mut replicas: Vec<_> = last.filter_map(|one| replica_of(one.seen.ip())).collect();
            ensure!(replicas.len() == 60, "{} of 60 flows had an answer", replicas.len());
            replicas.sort_unstable();
            replicas.dedup();
            Ok(replicas)
        };
        ensure!(replicas(lab)? == [VICTIM], "{:?}", replicas(lab)?);
        lab.kill(VICTIM)?;
        lab.wait_serving(&[0, 2])?;
        ensure!(replicas(lab)? == [0, 2], "elsewhere when nobody is here");
        Ok(())
    });
}

const VPC: &str = "
apiVersion: kubeovn.io/v1
kind: Vpc
metadata:
  name: vpc1
spec:
  staticRoutes:
    - {cidr: 198.51.100.8/32, nextHopIP: 10.0.9.12, policy: policyDst}
    - {cidr: '2001:db8:7::8/128', nextHopIP: 'fd00:10:9::12'}
  policyRoutes:
    - {priority: 30001, action: allow, match: ip4.src == 10.0.1.0/24 && ip4.dst == 198.51.100.8}
    - {priority: 30001, action: allow, match: 'ip6.src == fd00:10:1::/64 && ip6.dst == 2001:db8:7::8'}
    - {priority: 30000, action: reroute, match: ip4.dst == 198.51.100.9, nextHopIP: '10.0.9.11,10.0.9.13'}
    - {priority: 30000, action: drop, match: ip4.src == 10.0.1.10 && ip4.dst == 198.51.100.10}
    - {priority: 30000, action: drop, match: ip4.proto == 6}
";

#[test]
fn routes_of_the_vpc_are_followed_beside_the_gateway() {
    lab(|lab| {
        let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
        for last in [8, 9, 10] {
            lab.server.ip(&format!("address add 198.51.100.{last}/24 dev eth0"))?;
        }
        lab.server.ip("address add 2001:db8:7::8/64 dev eth0 nodad")?;
        fs::write(lab.config().join("30-vpc.yaml"), VPC)?;
        let by = |to: &str| -> Result<Option<usize>> {
            let to = SocketAddr::new(to.parse()?, ECHO_PORT);
            Ok(replica_of(TcpProbe::connect(&lab.tenant, 0, to)?.exchange.seen.ip()))
        };
        wait_until("the routes to be followed", Duration::from_secs(10), || {
            Ok(lab.nexthops(&[])?.contains("Vpc/vpc1 policyDst").then_some(()))
        })?;
        for _ in 0..8 {
            ensure!(by("198.51.100.8")? == Some(1), "the static route");
            ensure!(by("2001:db8:7::8")? == Some(1), "the static route of IPv6");
            ensure!(by("198.51.100.9")? != Some(1), "the policy with two next hops");
        }
        let hidden: IpAddr = "198.51.100.10".parse()?;
        let refused = probe::udp_refused(&lab.tenant, (hidden, ECHO_PORT))?;
        ensure!(refused == Refusal::Silent, "{refused}");
        let shown: Value = serde_json::from_str(&lab.nexthops(&["--json"])?)?;
        ensure!(shown["denied"].as_u64() >= Some(1), "{shown}");
        // What cannot be followed is named; the rest is followed.
        let said = "Vpc/vpc1: spec.policyRoutes[4].match: ip4.proto == 6 is not a match";
        ensure!(shown["problems"].to_string().contains(said), "{}", shown["problems"]);
        by("198.51.100.7").map(drop)
    });
}

/// The gateway of Kube-OVN's guide: two replicas, of which nothing but the policies is said. The pod has
/// its addresses from elsewhere.
#[test]
fn the_gateway_of_the_guide_runs() {
    let Some(binary) = tier::gateway() else { return };
    let run = || -> Result<()> {
        let name = format!("vgguide-{}", std::process::id());
        let scratch = Scratch::create(&name)?;
        let create = |role: &str| Netns::create(&format!("{name}-{role}"));
        let [tenant, pod, outside] = [create("tenant")?, create("pod")?, create("outside")?];
        for (ns, link, address) in
            [(&tenant, "eth0", "192.168.0.10/24"), (&outside, "net1", "172.17.0.1/16")]
        {
            pod.ip(&format!("link add {link} type veth peer name if0 netns {}", ns.name()))?;
            ns.ip(&format!("address add {address} dev if0"))?;
            ns.ip("link set if0 up")?;
        }
        pod.ip("address add 192.168.0.2/24 dev eth0")?;
        pod.ip("address add 172.17.0.13/16 dev net1")?;
        pod.ip("link set eth0 up")?;
        pod.ip("link set net1 up")?;
        pod.ip("route add default via 172.17.0.1")?;
        tenant.ip("route add default via 192.168.0.2")?;
        let config =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/accepted/egress-gateway.yaml");
        let arguments = vec!["--name".to_owned(), name.clone()];
        let object = Some("gateway2".to_owned());
        let settings = Settings { binary, name: name.clone(), object, config, arguments };
        let _echo = EchoServers::start(&outside, ECHO_PORT)?;
        let gateway = Gateway::start_in(&pod, &scratch, settings)?;
        let to: IpAddr = "172.17.0.1".parse()?;
        let exchange = probe::udp(&tenant, 0, (to, ECHO_PORT), b"hello");
        let exchange = exchange.with_context(|| gateway.diagnostics())?;
        ensure!(exchange.seen.ip().to_string() == "172.17.0.13", "{exchange:?}");
        // Its own packets keep their ports: BFD has to come from 49152 and above (RFC 5881).
        let own = pod.enter(|| -> Result<SocketAddr> {
            let socket = UdpSocket::bind(("172.17.0.13", 49_160))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.send_to(b"me", (to, ECHO_PORT))?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            text.split(' ').nth(1).context("no peer")?.parse().context("no address")
        })??;
        ensure!(own.to_string() == "172.17.0.13:49160", "seen as {own}");
        Ok(())
    };
    run().expect("the gateway of the guide");
}
