//! Selectors of an egress gateway with a real API server: pods are made, labelled, moved and deleted, and
//! real packets follow.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_tests::lab::addresses::{A, B, C, D, WAN, Y, v6};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::{Gateway, Settings};
use gateway_tests::lab::kube::ApiServer;
use gateway_tests::lab::probe::{self, TcpProbe};
use gateway_tests::lab::running::ECHO_Y;
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const GATEWAYS: &str = "/apis/kubeovn.io/v1/namespaces/tenants/vpc-egress-gateways";

/// An API server with a gateway, and a gateway of that name.
struct Lab {
    gateway: Gateway,
    api: ApiServer,
    world: World,
}

impl Lab {
    /// Nothing is started but the API server.
    fn new(binary: &Path, admin: bool, spec: Value) -> Self {
        let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
        let name = world.net.name.clone();
        let api = ApiServer::start(&name, binary).unwrap_or_else(|e| panic!("{e:#}"));
        let arguments =
            [api.arguments(admin).expect("a kubeconfig"), vec!["--name".into(), name.clone()]];
        let settings = Settings {
            binary: binary.to_owned(),
            name,
            object: Some("tenants/out".into()),
            config: PathBuf::new(),
            arguments: arguments.concat(),
        };
        let gateway = Gateway::prepare(&world.net, settings).unwrap_or_else(|e| panic!("{e:#}"));
        let lab = Self { gateway, api, world };
        let tenants = json!({"vpc": "lab", "cidrBlock": "10.0.1.0/24,fd00:10:1::/64", "gateway": "10.0.1.1,fd00:10:1::1"});
        let servers = json!({"vpc": "lab", "cidrBlock": "10.0.2.0/24,fd00:10:2::/64", "gateway": "10.0.2.1,fd00:10:2::1"});
        for (name, spec) in [("tenants", tenants), ("servers", servers)] {
            lab.must("a Subnet", lab.api.put("Subnet", name, &spec));
        }
        for (name, labels) in
            [("tenants", json!({})), ("shop", json!({"env": "prod"})), ("test", json!({}))]
        {
            let namespace = json!({"metadata": {"name": name, "labels": labels}});
            lab.request("POST", "/api/v1/namespaces", JSON, &namespace);
        }
        let mut all = json!({
            "vpc": "lab", "replicas": 1, "internalSubnet": "tenants", "externalSubnet": "outside",
            "internalIPs": [format!("10.0.1.254,{}", v6(Ipv4Addr::new(10, 0, 1, 254)))]
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            all[field] = value.clone();
        }
        let object = json!({"apiVersion": "kubeovn.io/v1", "kind": "VpcEgressGateway", "metadata": {"name": "out"}, "spec": all});
        lab.request("POST", GATEWAYS, JSON, &object);
        lab
    }

    fn request(&self, method: &str, path: &str, media: &str, body: &Value) {
        self.must(path, self.api.request(method, path, media, &body.to_string()).map(drop));
    }

    fn must<T>(&self, what: &str, result: Result<T>) -> T {
        result.unwrap_or_else(|e| panic!("{what}: {e:#}\n{}", self.gateway.log()))
    }

    /// Makes a pod with a host of the lab as its network.
    fn pod(&self, namespace: &str, name: &str, team: &str, host: Ipv4Addr) {
        let pod = json!({
            "metadata": {"name": name, "labels": {"team": team}, "annotations": {
                "ovn.kubernetes.io/allocated": "true",
                "ovn.kubernetes.io/ip_address": format!("{host},{}", v6(host)),
                "ovn.kubernetes.io/logical_router": "lab",
            }},
            "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 0}
        });
        self.request("POST", &format!("/api/v1/namespaces/{namespace}/pods"), JSON, &pod);
    }

    fn change(&self, pod: &str, change: &Value) {
        let (path, part) = pod.split_once(':').unwrap_or((pod, ""));
        let (namespace, name) = path.split_once('/').expect("namespace and name");
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}{part}");
        self.request("PATCH", &path, MERGE, change);
    }

    fn delete(&self, namespace: &str, name: &str) {
        self.request(
            "DELETE",
            &format!("/api/v1/namespaces/{namespace}/pods/{name}"),
            JSON,
            &json!({}),
        );
    }

    /// Waits until a host is hidden behind the gateway, in both families.
    fn await_out(&self, host: Ipv4Addr) {
        for (to, wanted) in
            [(ECHO_Y.into(), WAN.into()), (SocketAddr::from((v6(Y), ECHO_PORT)), v6(WAN).into())]
        {
            let seen = wait_until("a pod to get out", SOON, || {
                let seen = probe::udp(self.ns(host), 0, to, b"who")?.seen.ip();
                let wanted: std::net::IpAddr = wanted;
                ensure!(seen == wanted, "{host} is seen as {seen}");
                Ok(Some(()))
            });
            self.must(&host.to_string(), seen);
        }
    }

    /// Waits until nothing of a host has an answer.
    fn await_in(&self, host: Ipv4Addr) {
        let shut = wait_until("a pod to be shut in", SOON, || {
            let answer = probe::udp(self.ns(host), 0, ECHO_Y, b"who");
            ensure!(answer.is_err(), "{host} got {answer:?}");
            Ok(Some(()))
        });
        self.must(&host.to_string(), shut);
    }

    fn ns(&self, host: Ipv4Addr) -> &gateway_tests::lab::netns::Netns {
        let hosts = self.world.net.vpc_hosts();
        let found = hosts.into_iter().find(|one| one.v4 == host);
        &found.expect("a host of the lab").ns
    }

    fn await_status(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let told = wait_until(what, SOON, || {
            let status = self.gateway.status()?;
            ensure!(holds(&status), "the status is {status}");
            Ok(Some(()))
        });
        self.must(what, told);
    }

    fn await_problem(&self, wanted: &str) {
        self.await_status(wanted, |status| status["problems"].to_string().contains(wanted));
    }
}

fn by_selector() -> Value {
    json!({"selectors": [{
        "namespaceSelector": {"matchLabels": {"env": "prod"}},
        "podSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["red"]}]}
    }]})
}

#[test]
fn pods_are_made_labelled_moved_and_deleted() {
    let Some(binary) = tier::cluster() else { return };
    let mut lab = Lab::new(&binary, true, by_selector());
    lab.pod("shop", "a", "red", A);
    lab.gateway.restart().unwrap_or_else(|e| panic!("{e:#}"));
    // It is ready only when pods are known too.
    lab.await_out(A);
    lab.await_status("one pod", |status| status["source"]["objects"]["Pod"] == 1);
    let mut open = lab.must("TCP", TcpProbe::connect(lab.ns(A), 0, ECHO_Y));

    lab.pod("shop", "b", "blue", B);
    lab.await_status("two pods", |status| status["source"]["objects"]["Pod"] == 2);
    lab.await_in(B);
    lab.change("shop/b", &json!({"metadata": {"labels": {"team": "red"}}}));
    lab.await_out(B);
    // Two families of one pod are two entries.
    lab.await_status("what one pod costs", |status| {
        let apply = &status["last_apply"];
        apply["inserted"].as_u64() <= Some(4) && apply["event_to_map_us"].as_u64() > Some(0)
    });
    lab.change("shop/b", &json!({"metadata": {"labels": {"team": null}}}));
    lab.await_in(B);

    // Namespaces have labels too.
    lab.pod("test", "c", "red", C);
    lab.await_status("three pods", |status| status["source"]["objects"]["Pod"] == 3);
    lab.await_in(C);
    let label = |env: Value| json!({"metadata": {"labels": {"env": env}}});
    lab.request("PATCH", "/api/v1/namespaces/test", MERGE, &label("prod".into()));
    lab.await_out(C);
    lab.request("PATCH", "/api/v1/namespaces/test", MERGE, &label(Value::Null));
    lab.await_in(C);

    // It is made anew with another address, in another Subnet, and comes to its end there.
    lab.change("shop/b", &json!({"metadata": {"labels": {"team": "red"}}}));
    lab.await_out(B);
    lab.delete("shop", "b");
    lab.await_in(B);
    lab.pod("shop", "b", "red", D);
    lab.await_out(D);
    lab.must("TCP", open.echo("through all of it"));
    lab.change("shop/b:/status", &json!({"status": {"phase": "Succeeded"}}));
    lab.await_in(D);

    lab.must("TCP", open.echo("to the last"));
    lab.delete("shop", "a");
    lab.await_in(A);
    assert!(open.echo("no more").is_err(), "the connection outlived its pod");

    // Without selectors nobody asks for pods.
    let policies = json!({"spec": {"selectors": null, "policies": [{"snat": true, "ipBlocks": ["10.0.1.0/24", "fd00:10:1::/64"]}]}});
    lab.request("PATCH", &format!("{GATEWAYS}/out"), MERGE, &policies);
    lab.await_out(A);
    lab.await_status("no pods", |status| status["source"]["objects"]["Pod"].is_null());
}

const CROWD: u32 = 10_000;

/// A pod with an address of its own, every other one red.
fn one_of_many(number: u32) -> Value {
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number + 1);
    let team = ["blue", "red"][number as usize % 2];
    json!({
        "metadata": {"name": format!("p{number}"), "labels": {"team": team, "app": "shop"}, "annotations": {
            "ovn.kubernetes.io/allocated": "true",
            "ovn.kubernetes.io/ip_address": address,
            "ovn.kubernetes.io/logical_router": "lab",
        }},
        "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 0}
    })
}

/// CPU time and resident memory of a process, for people.
fn cost(pid: u32) -> String {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let status = read("status").unwrap_or_default();
    let memory = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("no VmRSS");
    let ticks = read("stat").unwrap_or_default();
    let ticks: u64 =
        ticks.split(' ').skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    format!("{} ms of CPU, {memory}", ticks * 10)
}

#[test]
fn one_of_ten_thousand_pods_costs_one_entry() {
    let Some(binary) = tier::cluster() else { return };
    let mut lab = Lab::new(&binary, true, by_selector());
    let wide = json!({"vpc": "lab", "cidrBlock": "10.1.0.0/16", "gateway": "10.1.0.1"});
    lab.must("a Subnet", lab.api.put("Subnet", "wide", &wide));
    lab.gateway.restart().unwrap_or_else(|e| panic!("{e:#}"));
    let pid = lab.gateway.pid().expect("a process");
    println!("measured: without pods {}", cost(pid));
    let pods = (0..CROWD).map(one_of_many);
    let created = lab.must("pods", lab.api.create_all("/api/v1/namespaces/shop/pods", pods));
    let snats = |wanted: u64| move |status: &Value| status["rules"]["snat"] == wanted;
    lab.await_status("half of them", snats(u64::from(CROWD) / 2));
    println!("measured: {CROWD} pods made in {created:?}, taken over with {}", cost(pid));

    let before = cost(pid);
    for number in 0..20 {
        let pod = format!("shop/p{}", 2 * number);
        lab.change(&pod, &json!({"metadata": {"labels": {"team": "red"}}}));
        lab.await_status("one more", snats(u64::from(CROWD) / 2 + number + 1));
        let apply = lab.must("status", lab.gateway.status())["last_apply"].clone();
        // A prefix and the record of its rule.
        let entries = ["inserted", "updated", "deleted"].map(|what| apply[what].as_u64());
        assert!(entries[0] <= Some(2) && entries[1] <= Some(1), "{apply}");
        assert_eq!((entries[2], &apply["sessions_cut"]), (Some(0), &json!(0)), "{apply}");
        println!("measured: one pod, from the event to the map {} us", apply["event_to_map_us"]);
    }
    println!("measured: 20 pods later {}, before {before}", cost(pid));

    lab.gateway.terminate().unwrap();
    let took = lab.gateway.restart().unwrap_or_else(|e| panic!("{e:#}"));
    lab.await_status("all of them again", snats(u64::from(CROWD) / 2 + 20));
    let pid = lab.gateway.pid().expect("a process");
    println!("measured: ready {took:?} after a restart, {}", cost(pid));
}

#[test]
fn a_restart_keeps_pods_and_what_rbac_lacks_is_named() {
    let Some(binary) = tier::cluster() else { return };
    let policies =
        json!({"policies": [{"snat": true, "ipBlocks": ["10.0.2.0/24", "fd00:10:2::/64"]}]});
    let mut lab = Lab::new(&binary, false, policies);
    let rbac = include_str!("../../deploy/base/rbac.yaml");
    let less = rbac.replace("resources: [pods, namespaces]", "resources: [pods]");
    assert_ne!(less, rbac);
    lab.must("RBAC", lab.api.apply(&less));
    lab.pod("shop", "a", "red", A);
    lab.gateway.restart().unwrap_or_else(|e| panic!("{e:#}"));
    lab.await_out(D);

    // The policy goes on while the pods cannot be told.
    lab.request("PATCH", &format!("{GATEWAYS}/out"), MERGE, &json!({"spec": by_selector()}));
    lab.await_problem("RBAC must grant the verb list on namespaces (");
    lab.await_out(D);
    lab.await_in(A);
    lab.must("RBAC", lab.api.apply(rbac));
    lab.await_out(A);
    lab.await_status("no problem", |status| status["problems"] == json!([]));

    // A successor that cannot ask leaves everything as it is, and begins once it can.
    let mut open = lab.must("TCP", TcpProbe::connect(lab.ns(A), 0, ECHO_Y));
    lab.gateway.kill9().unwrap();
    lab.must("RBAC", lab.api.apply(&less));
    lab.gateway.launch().unwrap();
    lab.await_problem("RBAC must grant the verb list on namespaces (");
    lab.must("TCP", open.echo("without pods"));
    lab.must("RBAC", lab.api.apply(rbac));
    lab.gateway.await_ready().unwrap_or_else(|e| panic!("{e:#}"));
    lab.must("TCP", open.echo("with them"));
    lab.await_out(A);

    // What is wrong is named, and the rest works.
    let bad = json!({"spec": {"selectors": [
        {"podSelector": {"matchExpressions": [{"key": "team", "operator": "Like", "values": ["red"]}]}},
        by_selector()["selectors"][0]
    ]}});
    lab.request("PATCH", &format!("{GATEWAYS}/out"), MERGE, &bad);
    lab.await_problem(
        "VpcEgressGateway/tenants/out: spec.selectors[0].podSelector.matchExpressions[0].operator: \
         \\\"Like\\\" is not an operator",
    );
    lab.must("TCP", open.echo("beside a mistake"));
}
