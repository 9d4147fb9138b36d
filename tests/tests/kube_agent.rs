//! The agent of a node: pods from a real API server, real namespaces and processes, real packets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway_tests::lab::addresses::{D, ROUTER, WAN, X, Y};
use gateway_tests::lab::containerd::Containerd;
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::PINS;
use gateway_tests::lab::kube::ApiServer;
use gateway_tests::lab::manifests::{EIP_SNAT, Manifests};
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::node::{Agent, Sandbox, Template};
use gateway_tests::lab::pinger::Pinger;
use gateway_tests::lab::probe;
use gateway_tests::lab::running::ECHO_Y;
use gateway_tests::lab::scrape::{Page, ask, free_port, scrape};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Host, Options};
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const SOON: Duration = Duration::from_secs(15);
const NODE: &str = "node-1";
const SECOND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 50);

fn must<T>(what: &str, agent: &Agent, outcome: Result<T>) -> T {
    outcome.unwrap_or_else(|e| panic!("{what}: {e:#}\n{}", agent.log()))
}

fn world() -> World {
    World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"))
}

/// What Kube-OVN's script does in a pod: EIPs on the external interface, rules in iptables.
fn script(ns: &Netns, eips: &[Ipv4Addr]) -> Result<()> {
    let eip = |eip: &Ipv4Addr| format!("address add {eip}/24 dev net1");
    ns.ip_batch(&eips.iter().map(eip).collect::<Vec<_>>())?;
    // D is in no rule of the objects: it leaves by the pod's own, if at all.
    let source = WAN.to_string();
    let rule = [
        "-t",
        "nat",
        "-A",
        "POSTROUTING",
        "-s",
        "10.0.2.0/24",
        "-j",
        "SNAT",
        "--to-source",
        &source,
    ];
    ns.output(Command::new("iptables-legacy").args(rule))?;
    ns.ip("route replace 10.0.2.0/24 via 10.0.1.1").map(drop)
}

/// Everything in a pod that somebody could change.
fn look(ns: &Netns) -> String {
    let run = |line: &str| {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        let text = ns.output(command.args(words)).unwrap_or_else(|e| panic!("{e:#}"));
        // Packets and bytes that a chain has counted are no change; nor is how old an entry is.
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let plain = lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n");
        format!("$ {line}\n{}", plain.collect::<String>())
    };
    [
        "ip -o -d link show",
        "ip -o address show",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule show",
        "tc qdisc show",
        "tc filter show dev eth0 ingress",
        "tc filter show dev net1 ingress",
        "bpftool net show",
        "iptables-legacy-save",
        "sysctl net.ipv4.ip_forward net.ipv4.conf.net1.forwarding net.ipv4.conf.net1.promote_secondaries \
         net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.forwarding net.ipv6.conf.net1.forwarding",
    ]
    .map(run)
    .concat()
}

fn seen_by_y(host: &Host) -> Result<Ipv4Addr> {
    match probe::udp(&host.ns, 0, ECHO_Y, b"who am I")?.seen.ip() {
        std::net::IpAddr::V4(address) => Ok(address),
        other => panic!("{other}"),
    }
}

fn await_seen(agent: &Agent, host: &Host, wanted: Ipv4Addr) {
    let seen = wait_until("an address", SOON, || {
        let seen = seen_by_y(host)?;
        ensure!(seen == wanted, "{} is seen as {seen}, expected {wanted}", host.label);
        Ok(Some(()))
    });
    must("the address", agent, seen);
}

/// A second gateway whose VPC has the networks of the first, with one EIP for all.
fn second_gateway(api: &ApiServer, name: &str) -> Result<()> {
    let subnet = json!({"vpc": "lab2", "cidrBlock": "10.0.1.0/24", "gateway": "10.0.1.1"});
    api.put("Subnet", "tenant2", &subnet)?;
    let spec = json!({
        "vpc": "lab2", "subnet": "tenant2", "lanIp": "10.0.1.254", "externalSubnets": ["external"]
    });
    api.put("VpcNatGateway", name, &spec)?;
    api.put("IptablesEIP", "second", &json!({"natGwDp": name}))?;
    api.assign("second", SECOND)?;
    let all = json!({"eip": "second", "internalCIDR": "10.0.1.0/24"});
    api.put("IptablesSnatRule", "second", &all)
}

/// The agent's kubeconfig is that of the ServiceAccount, with what `deploy/base` grants.
fn agent(api: &ApiServer, world: &World, binary: &Path) -> Agent {
    let rbac = include_str!("../../deploy/base/rbac.yaml");
    api.apply(rbac).unwrap_or_else(|e| panic!("{e:#}"));
    let kubeconfig = api.kubeconfig(false).expect("a kubeconfig");
    Agent::new(binary, &world.net.scratch, NODE, kubeconfig).unwrap_or_else(|e| panic!("{e:#}"))
}

fn first(world: &World, binary: &Path) -> ApiServer {
    let name = &world.net.name;
    let api = ApiServer::start(name, binary).unwrap_or_else(|e| panic!("{e:#}"));
    let manifests = Manifests { ipv6: false, ..Manifests::standard(name) };
    api.apply_as_kube_ovn(&manifests).unwrap_or_else(|e| panic!("{e:#}"));
    script(&world.net.gateway, &manifests.eips.iter().map(|(_, v4)| *v4).collect::<Vec<_>>())
        .unwrap_or_else(|e| panic!("{e:#}"));
    api
}

fn sandbox(world: &World, uid: &str) -> Sandbox {
    Sandbox::start(&world.net.gateway, &world.net.scratch, uid).unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn two_pods_of_a_node_are_served_apart_and_left_as_they_were() {
    let Some(binary) = tier::cluster() else { return };
    let (one, two) = (world(), world());
    let api = first(&one, &binary);
    let (name1, name2) = (one.net.name.clone(), two.net.name.clone());
    second_gateway(&api, &name2).unwrap_or_else(|e| panic!("{e:#}"));
    script(&two.net.gateway, &[SECOND]).unwrap_or_else(|e| panic!("{e:#}"));
    let (pod1, pod2) = (format!("vpc-nat-gw-{name1}-0"), format!("vpc-nat-gw-{name2}-0"));
    let (pod1, pod2) = (Template::nat(NODE, &pod1, &name1), Template::nat(NODE, &pod2, &name2));
    let elsewhere = Template::nat("node-2", "vpc-nat-gw-elsewhere-0", &name1);
    let before = (look(&one.net.gateway), look(&two.net.gateway));

    let mut agent = agent(&api, &one, &binary);
    let metrics = free_port().unwrap();
    agent.environment = vec![("VPC_GATEWAY_METRICS".into(), metrics.to_string())];
    agent.start().unwrap();
    let uid1 = pod1.create(&api).unwrap();
    let far = elsewhere.create(&api).unwrap();
    // A sandbox of the other pod on this very node: its object says that it is none of ours.
    let third = world();
    let _far = sandbox(&third, &far);
    elsewhere.phase(&api, "Running").unwrap();
    must("waiting", &agent, agent.await_said("waits for its containers"));
    let _sandbox1 = sandbox(&one, &uid1);
    pod1.phase(&api, "Running").unwrap();
    must("ready", &agent, agent.await_ready(&pod1.data_plane()));
    await_seen(&agent, &one.net.b, EIP_SNAT);

    let uid2 = pod2.create(&api).unwrap();
    let _sandbox2 = sandbox(&two, &uid2);
    pod2.phase(&api, "Running").unwrap();
    must("ready", &agent, agent.await_ready(&pod2.data_plane()));
    // The same source in both, and each has the address of its own gateway.
    await_seen(&agent, &two.net.b, SECOND);
    await_seen(&agent, &one.net.b, EIP_SNAT);
    // What no rule covers is left to the iptables of the pod.
    await_seen(&agent, &one.net.d, WAN);
    let status = agent.status().unwrap();
    assert_eq!(status["pods"].as_array().map(Vec::len), Some(2), "{status}");
    must("the status in text", &agent, agent.verb(&["agent", "status"]));
    must("the probe", &agent, agent.verb(&["agent", "status", "--probe"]));
    must("metrics", &agent, both_are_shown(metrics, [&pod1, &pod2]));
    assert_ne!(look(&one.net.gateway), before.0, "nothing shows that the programs are there");

    // Each process dies alone, and nobody's traffic notices.
    let pingers = [&one, &two].map(|world| Pinger::start(&world.net.b.ns, ECHO_Y).unwrap());
    let of = |pod: &Template<'_>| process(&agent.pod(&pod.data_plane())?);
    let (victim, other) = (of(&pod1).unwrap(), of(&pod2).unwrap());
    kill(victim, Signal::SIGKILL).unwrap();
    let restarted = wait_until("another process", SOON, || {
        let pod = agent.await_ready(&pod1.data_plane())?;
        ensure!(process(&pod)? != victim, "it is still that one");
        Ok(Some(pod))
    });
    let restarted = must("restart", &agent, restarted);
    assert_eq!(restarted["restarts"], json!(1), "{restarted}");
    let page = must("metrics", &agent, both_are_shown(metrics, [&pod1, &pod2]));
    let restarts = format!("agent_pod_restarts_total{}", of_pod(&pod1));
    assert_eq!(page.get(&restarts).unwrap(), 1.0);
    assert_eq!(of(&pod2).unwrap(), other);

    // The agent dies with its processes, and its successor takes over.
    agent.kill9().unwrap();
    let before_restart = agent.status().unwrap();
    assert_eq!(before_restart["running"], json!(false), "{before_restart}");
    agent.start().unwrap();
    for data_plane in [pod1.data_plane(), pod2.data_plane()] {
        let again = wait_until("processes of the new agent", SOON, || {
            let pod = agent.await_ready(&data_plane)?;
            ensure!(![victim, other].contains(&process(&pod)?), "an old process: {pod}");
            Ok(Some(()))
        });
        must("takeover", &agent, again);
    }
    // An upgrade: SIGTERM, and the next one.
    agent.terminate().unwrap();
    await_seen(&agent, &two.net.b, SECOND);
    agent.start().unwrap();
    for data_plane in [pod1.data_plane(), pod2.data_plane()] {
        must("upgrade", &agent, agent.await_ready(&data_plane));
    }
    for pinger in pingers {
        let tally = pinger.finish().expect("a tally");
        assert_eq!(tally.lost(), 0, "of {} datagrams", tally.sent);
        println!("measured: {} datagrams, none lost", tally.sent);
    }

    // Uninstalled: one by an agent that is told to, before that, one whose agent is gone.
    agent.terminate().unwrap();
    agent.environment = vec![("VPC_GATEWAY_DETACH_ON_EXIT".into(), "true".into())];
    agent.start().unwrap();
    for data_plane in [pod1.data_plane(), pod2.data_plane()] {
        must("ready", &agent, agent.await_ready(&data_plane));
        assert!(Path::new(PINS).join(data_plane.replace('.', "_")).exists());
    }
    agent.terminate().unwrap();
    assert_eq!(look(&one.net.gateway), before.0, "{}", agent.log());
    assert_eq!(look(&two.net.gateway), before.1, "{}", agent.log());
    assert!(!Path::new(PINS).join(pod1.data_plane().replace('.', "_")).exists());
    // And the iptables of the pod work as before.
    assert_eq!(seen_by_y(&one.net.d).unwrap(), WAN);
}

fn of_pod(pod: &Template<'_>) -> String {
    format!("{{gateway_namespace=\"{}\",gateway_pod=\"{}\"}}", pod.namespace, pod.name)
}

/// Waits until the agent shows what the processes of both pods measure.
fn both_are_shown(metrics: SocketAddr, pods: [&Template<'_>; 2]) -> Result<Page> {
    wait_until("the metrics of both pods", SOON, || {
        let page = scrape(metrics)?;
        ensure!(page.get("ready")? == 1.0 && page.get("agent_connected")? == 1.0, "not ready");
        ensure!(page.get("agent_pods{state=\"runs\"}")? == 2.0, "not both run");
        for pod in pods {
            let of = of_pod(pod);
            ensure!(page.get(&format!("agent_pod_shown{of}"))? == 1.0, "{of} is not shown");
            ensure!(page.get(&format!("ready{of}"))? == 1.0, "{of} is not ready");
            ensure!(page.get(&format!("sessions{of}"))? > 0.0, "{of} has no session");
        }
        ensure!(page.sum("eips") == (2, 5.0), "EIPs: {:?}", page.sum("eips"));
        let (ready, health) = (ask(metrics, "/readyz", &[])?.0, ask(metrics, "/healthz", &[])?.0);
        ensure!((ready, health) == (200, 200), "/readyz {ready}, /healthz {health}");
        Ok(Some(page))
    })
}

fn process(pod: &serde_json::Value) -> Result<Pid> {
    let id = pod["process"].as_i64().with_context(|| format!("no process in {pod}"))?;
    Ok(Pid::from_raw(i32::try_from(id)?))
}

#[test]
fn a_pod_that_is_made_anew_under_the_same_name_starts_afresh() {
    let Some(binary) = tier::cluster() else { return };
    let mut world = world();
    let api = first(&world, &binary);
    let gateway = world.net.name.clone();
    let name = format!("vpc-nat-gw-{gateway}-0");
    let pod = Template::nat(NODE, &name, &gateway);
    let mut agent = agent(&api, &world, &binary);
    agent.start().unwrap();
    let uid = pod.create(&api).unwrap();
    let old = sandbox(&world, &uid);
    pod.phase(&api, "Running").unwrap();
    must("ready", &agent, agent.await_ready(&pod.data_plane()));
    await_seen(&agent, &world.net.b, EIP_SNAT);
    let sessions = |agent: &Agent| -> Result<usize> {
        let text = agent.verb(&["sessions", "--json", "--gateway", &pod.data_plane()])?;
        let list: serde_json::Value = serde_json::from_str(&text)?;
        Ok(list.as_array().or(list["sessions"].as_array()).context("no list")?.len())
    };
    assert!(must("sessions", &agent, sessions(&agent)) > 0);

    // While an agent looks.
    pod.delete(&api).unwrap();
    drop(old);
    let pins = Path::new(PINS).join(pod.data_plane().replace('.', "_"));
    let gone = wait_until("the pins to go", SOON, || {
        ensure!(!pins.exists(), "{} is there", pins.display());
        Ok(Some(()))
    });
    must("the end", &agent, gone);
    renew(&mut world);
    let uid = pod.create(&api).unwrap();
    let old = sandbox(&world, &uid);
    pod.phase(&api, "Running").unwrap();
    must("ready", &agent, agent.await_ready(&pod.data_plane()));
    assert_eq!(must("sessions", &agent, sessions(&agent)), 0, "the old state was adopted");
    await_seen(&agent, &world.net.b, EIP_SNAT);

    // While nobody looks.
    agent.terminate().unwrap();
    pod.delete(&api).unwrap();
    drop(old);
    renew(&mut world);
    let uid = pod.create(&api).unwrap();
    let old = sandbox(&world, &uid);
    pod.phase(&api, "Running").unwrap();
    agent.start().unwrap();
    must("ready", &agent, agent.await_ready(&pod.data_plane()));
    assert!(agent.log().contains("what the pod before it has left is removed"), "{}", agent.log());
    await_seen(&agent, &world.net.b, EIP_SNAT);

    // Gone while nobody looks, for good; what is left goes with a verb or with the next agent.
    agent.terminate().unwrap();
    pod.delete(&api).unwrap();
    drop(old);
    agent.start().unwrap();
    must(
        "the end",
        &agent,
        wait_until("the pins to go", SOON, || {
            ensure!(!pins.exists(), "{} is there", pins.display());
            Ok(Some(()))
        }),
    );
    let refused = agent.verb(&["agent", "detach"]).expect_err("an agent runs").to_string();
    assert!(refused.contains("an agent runs already"), "{refused}");
}

#[test]
fn a_container_runtime_tells_where_pods_are() {
    let Some(binary) = tier::cluster() else { return };
    if !tier::containerd() {
        return;
    }
    let mut world = world();
    let api = first(&world, &binary);
    let gateway = world.net.name.clone();
    let name = format!("vpc-nat-gw-{gateway}-0");
    let pod = Template::nat(NODE, &name, &gateway);
    let mut runtime = Containerd::start(&world.net.scratch).unwrap_or_else(|e| panic!("{e:#}"));
    let uid = pod.create(&api).unwrap();
    let id = runtime.run(pod.namespace, pod.name, &uid, 0).unwrap_or_else(|e| panic!("{e:#}"));
    world.net.unplug_gateway().unwrap();
    move_in(&mut world, &runtime, &id);
    pod.phase(&api, "Running").unwrap();

    // Its cgroups do not have the name of a pod: without the runtime nobody finds it.
    let mut agent = agent(&api, &world, &binary);
    agent.start().unwrap();
    let nowhere = format!("no process in /proc has a cgroup of pod {uid}");
    must("waiting", &agent, agent.await_said(&nowhere));
    agent.terminate().unwrap();
    let socket = format!("unix://{}", runtime.socket().display());
    agent.environment = vec![("VPC_GATEWAY_CRI".into(), socket)];
    agent.start().unwrap();
    must("ready", &agent, agent.await_ready(&pod.data_plane()));
    await_seen(&agent, &world.net.b, EIP_SNAT);

    // The runtime goes and comes back: that is said, and nobody's traffic notices.
    let pinger = Pinger::start(&world.net.b.ns, ECHO_Y).unwrap();
    runtime.kill();
    must("trouble", &agent, agent.await_said("failed to ask the container runtime at"));
    runtime.up().unwrap_or_else(|e| panic!("{e:#}"));
    let fine = wait_until("the end of the trouble", SOON, || {
        let status = agent.status()?;
        ensure!(status["problems"] == json!([]), "{status}");
        Ok(Some(()))
    });
    must("fine again", &agent, fine);
    let tally = pinger.finish().expect("a tally");
    assert_eq!(tally.lost(), 0, "of {} datagrams", tally.sent);

    // The sandbox is made anew under the same uid, as after the node was restarted.
    world.net.unplug_gateway().unwrap();
    runtime.remove(&id).unwrap_or_else(|e| panic!("{e:#}"));
    let id = runtime.run(pod.namespace, pod.name, &uid, 1).unwrap_or_else(|e| panic!("{e:#}"));
    move_in(&mut world, &runtime, &id);
    await_seen(&agent, &world.net.b, EIP_SNAT);
    assert!(agent.log().contains("has another network namespace now"), "{}", agent.log());

    // Without a sandbox that is ready there is nothing to serve.
    agent.terminate().unwrap();
    runtime.remove(&id).unwrap_or_else(|e| panic!("{e:#}"));
    agent.start().unwrap();
    must(
        "waiting",
        &agent,
        agent.await_said(&format!("has no sandbox of pod {uid} that is ready")),
    );
}

/// The lab's interfaces in the namespace that the runtime has made, and what Kube-OVN's script does.
fn move_in(world: &mut World, runtime: &Containerd, id: &str) {
    let namespace = runtime.namespace(id).unwrap_or_else(|e| panic!("{e:#}"));
    world.net.plug_in(namespace).unwrap_or_else(|e| panic!("{e:#}"));
    script(&world.net.gateway, &[EIP_SNAT]).unwrap_or_else(|e| panic!("{e:#}"));
}

/// A pod of an egress gateway in a namespace of its own: what Kube-OVN makes of the objects.
fn egress_gateway(api: &ApiServer) -> Result<Template<'static>> {
    let subnets = [
        ("inside", json!({"vpc": "lab", "cidrBlock": "10.0.1.0/24", "gateway": ROUTER})),
        ("outside", json!({"cidrBlock": "203.0.113.0/24", "gateway": X})),
    ];
    subnets.iter().try_for_each(|(name, spec)| api.put("Subnet", name, spec))?;
    let media = "application/json";
    let namespace = json!({"metadata": {"name": "tenants"}}).to_string();
    api.request("POST", "/api/v1/namespaces", media, &namespace)?;
    let gateway = json!({
        "apiVersion": "kubeovn.io/v1", "kind": "VpcEgressGateway", "metadata": {"name": "out"},
        "spec": {
            "vpc": "lab", "internalSubnet": "inside", "externalSubnet": "outside", "replicas": 1,
            "policies": [
                {"snat": true, "ipBlocks": ["10.0.1.0/24"]}, {"snat": false, "ipBlocks": ["10.0.2.0/24"]}
            ]
        }
    });
    let path = "/apis/kubeovn.io/v1/namespaces/tenants/vpc-egress-gateways";
    api.request("POST", path, media, &gateway.to_string())?;
    Ok(Template {
        namespace: "tenants",
        name: "out-7c5d9f-x2x4k",
        node: NODE,
        labels: json!({"app": "vpc-egress-gateway", "ovn.kubernetes.io/vpc-egress-gateway": "out"}),
        annotations: json!({}),
    })
}

#[test]
fn a_pod_of_an_egress_gateway_is_served() {
    let Some(binary) = tier::cluster() else { return };
    let world = world();
    let net = &world.net;
    let api = ApiServer::start(&net.name, &binary).unwrap_or_else(|e| panic!("{e:#}"));
    let pod = egress_gateway(&api).unwrap_or_else(|e| panic!("{e:#}"));
    net.route_plainly().unwrap_or_else(|e| panic!("{e:#}"));
    let before = look(&net.gateway);
    let mut agent = agent(&api, &world, &binary);
    agent.start().unwrap();
    let uid = pod.create(&api).unwrap();
    let _sandbox = sandbox(&world, &uid);
    pod.phase(&api, "Running").unwrap();
    let ready = must("ready", &agent, agent.await_ready(&pod.data_plane()));
    let serves = json!({"egress": ["tenants", "out"]});
    assert_eq!(ready["pod"]["serves"], serves, "{ready}");

    // Nothing in the pod translates but the programs: hidden, and passed through in both directions.
    await_seen(&agent, &net.b, WAN);
    await_seen(&agent, &net.c, WAN);
    await_seen(&agent, &net.d, D);
    let to_d = SocketAddr::from((D, ECHO_PORT));
    let seen = must("from outside", &agent, probe::tcp(&net.y.ns, 0, to_d)).seen;
    assert_eq!(seen.ip(), std::net::IpAddr::from(Y));
    must("TCP", &agent, probe::tcp(&net.b.ns, 0, ECHO_Y));

    // The policy changes, and its process dies, while datagrams pass.
    let pinger = Pinger::start(&net.b.ns, ECHO_Y).unwrap();
    let victim = process(&agent.pod(&pod.data_plane()).unwrap()).unwrap();
    kill(victim, Signal::SIGKILL).unwrap();
    let restarted = wait_until("another process", SOON, || {
        let pod = agent.await_ready(&pod.data_plane())?;
        ensure!(process(&pod)? != victim, "it is still that one");
        Ok(Some(()))
    });
    must("restart", &agent, restarted);
    let policies = json!({"spec": {"policies": [{"snat": true, "ipBlocks": ["10.0.0.0/16"]}]}});
    let path = "/apis/kubeovn.io/v1/namespaces/tenants/vpc-egress-gateways/out";
    let media = "application/merge-patch+json";
    api.request("PATCH", path, media, &policies.to_string()).unwrap();
    await_seen(&agent, &net.d, WAN);
    let tally = pinger.finish().expect("a tally");
    assert_eq!(tally.lost(), 0, "of {} datagrams", tally.sent);

    agent.terminate().unwrap();
    agent.environment = vec![("VPC_GATEWAY_DETACH_ON_EXIT".into(), "true".into())];
    agent.start().unwrap();
    must("ready", &agent, agent.await_ready(&pod.data_plane()));
    agent.terminate().unwrap();
    assert_eq!(look(&net.gateway), before, "{}", agent.log());
}

/// New namespace and interfaces, and the script has run again.
fn renew(world: &mut World) {
    world.net.replace_gateway().unwrap_or_else(|e| panic!("{e:#}"));
    script(&world.net.gateway, &[EIP_SNAT]).unwrap_or_else(|e| panic!("{e:#}"));
}
