//! Objects from a real API server, and their effect on real packets.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_tests::lab::addresses::{A, B, C};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::{Gateway, Settings};
use gateway_tests::lab::kube::ApiServer;
use gateway_tests::lab::manifests::{
    DNAT_ECHO, EIP_DNAT, EIP_FIP, EIP_SNAT, EIP_UNUSED, Manifests,
};
use gateway_tests::lab::pinger::Pinger;
use gateway_tests::lab::probe;
use gateway_tests::lab::running::{ECHO_FIP, ECHO_Y, Running};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(15);

fn world() -> World {
    World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"))
}

fn server(world: &World, binary: &Path) -> ApiServer {
    ApiServer::start(&world.net.name, binary).unwrap_or_else(|e| panic!("{e:#}"))
}

/// A gateway that is not started.
fn gateway(world: &World, binary: &Path, name: &str, arguments: Vec<String>) -> Gateway {
    let binary = binary.to_owned();
    let (name, object, config) = (name.to_owned(), None, PathBuf::new());
    let settings = Settings { binary, name, object, config, arguments };
    Gateway::prepare(&world.net, settings).unwrap_or_else(|e| panic!("{e:#}"))
}

/// A gateway with the rules of the packet table, from an API server.
fn running(binary: &Path) -> (ApiServer, Running) {
    let world = world();
    let api = server(&world, binary);
    let name = world.net.name.clone();
    api.apply_as_kube_ovn(&Manifests::standard(&name)).unwrap_or_else(|e| panic!("{e:#}"));
    let arguments = api.arguments(true).expect("a kubeconfig");
    let mut gateway = gateway(&world, binary, &name, arguments);
    let took = gateway.restart().unwrap_or_else(|e| panic!("{e:#}"));
    println!("measured: ready {took:?} after its start");
    (api, Running { gateway, world })
}

/// Waits for a word in the problems that the status tells.
fn await_problem(gateway: &Gateway, wanted: &str) {
    let told = wait_until(wanted, SOON, || {
        let status = gateway.status()?;
        let problems = status["problems"].to_string();
        ensure!(problems.contains(wanted), "the status says {problems}");
        Ok(Some(()))
    });
    told.unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.log()));
}

fn await_no_problem(gateway: &Gateway) {
    let told = wait_until("no problem", SOON, || {
        let status = gateway.status()?;
        ensure!(status["problems"] == json!([]), "the status says {}", status["problems"]);
        Ok(Some(()))
    });
    told.unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.log()));
}

/// The address under which Y sees a host.
fn seen_by_y(world: &World, host: Ipv4Addr) -> Result<Ipv4Addr> {
    let hosts = world.net.vpc_hosts();
    let host = hosts.into_iter().find(|one| one.v4 == host).expect("a host of the lab");
    let exchange = probe::udp(&host.ns, 0, ECHO_Y, b"who am I")?;
    match exchange.seen.ip() {
        std::net::IpAddr::V4(address) => Ok(address),
        other => panic!("{other}"),
    }
}

fn await_seen(lab: &Running, host: Ipv4Addr, wanted: Ipv4Addr) {
    let seen = wait_until("another address", SOON, || {
        let seen = seen_by_y(&lab.world, host)?;
        ensure!(seen == wanted, "{host} is seen as {seen}, expected {wanted}");
        Ok(Some(()))
    });
    lab.must("the address", seen);
}

fn await_accepted(lab: &Running, at: SocketAddrV4) {
    lab.must(&at.to_string(), wait_until("a port forward", SOON, || lab.accepts(at)));
}

fn await_refused(lab: &Running, at: SocketAddrV4) {
    let refused = || probe::tcp_refused(&lab.world.net.x.ns, at).map(|_| Some(()));
    lab.must(&at.to_string(), wait_until("a refusal", SOON, refused));
}

fn generation(lab: &Running) -> u64 {
    let status = lab.must("status", lab.gateway.json("status"));
    status["generation"].as_u64().expect("a generation")
}

/// Waits for the round of an EIP and the one that its address makes, which must not hide how long it took.
fn await_timed(lab: &Running, before: u64) {
    let timed = wait_until("a time from the event to the map", SOON, || {
        let status = lab.gateway.json("status")?;
        ensure!(status["generation"].as_u64() >= Some(before + 2), "{}", status["generation"]);
        let apply = &status["last_apply"];
        ensure!(apply["event_to_map_us"].as_u64() > Some(0), "{apply}");
        Ok(Some(()))
    });
    lab.must("a moved EIP", timed);
}

#[test]
fn objects_come_in_every_order_and_change() {
    let Some(binary) = tier::cluster() else { return };
    let world = world();
    let api = server(&world, &binary);
    let name = world.net.name.clone();
    let mut gateway = gateway(&world, &binary, &name, api.arguments(true).unwrap());
    gateway.launch().unwrap();
    await_problem(&gateway, &format!("waits for VpcNatGateway/{name}"));
    let untranslated = probe::udp(&world.net.b.ns, 0, ECHO_Y, b"too early");
    assert!(untranslated.is_err(), "forwarded without a gateway: {untranslated:?}");

    // Rules first, EIPs after them, subnets and the gateway last; addresses after all that.
    let manifests = Manifests { ipv6: false, ..Manifests::standard(&name) };
    let mut yaml = manifests.yaml();
    for (_, v4) in &manifests.eips {
        yaml = yaml.replace(&format!(", v4ip: {v4}"), "");
    }
    let mut documents: Vec<_> = yaml.split("---\n").collect();
    documents.reverse();
    api.apply(&documents.join("---\n")).unwrap_or_else(|e| panic!("{e:#}"));
    gateway.await_ready().unwrap_or_else(|e| panic!("{e:#}"));
    await_problem(&gateway, "waits for kube-ovn-controller to write an address into status.ip");
    for (eip, address) in &manifests.eips {
        api.assign(eip, *address).unwrap();
    }
    let lab = Running { gateway, world };
    lab.must("SNAT", wait_until("SNAT", SOON, || seen_by_y(&lab.world, B).map(Some)));
    await_accepted(&lab, DNAT_ECHO);
    lab.connections();
    await_seen(&lab, A, EIP_FIP);
    await_seen(&lab, B, EIP_SNAT);

    // Contract section 7, 10: every field of a rule changes while it is active.
    api.put("IptablesFIPRule", "fip", &json!({"eip": "fip", "internalIp": C})).unwrap();
    await_seen(&lab, C, EIP_FIP);
    api.put("IptablesFIPRule", "fip", &json!({"eip": "unused", "internalIp": C})).unwrap();
    await_seen(&lab, C, EIP_UNUSED);
    await_refused(&lab, ECHO_FIP);
    let dnat = |eip: &str, port: u16| {
        json!({
            "eip": eip, "externalPort": port.to_string(), "protocol": "tcp", "internalIp": B,
            "internalPort": ECHO_PORT.to_string()
        })
    };
    let moved = SocketAddrV4::new(EIP_FIP, 7100);
    api.put("IptablesDnatRule", "echo-tcp", &dnat("fip", 7100)).unwrap();
    await_accepted(&lab, moved);
    await_refused(&lab, DNAT_ECHO);
    api.put("IptablesSnatRule", "for-snat", &json!({"eip": "dnat", "internalCIDR": "10.0.1.10"}))
        .unwrap();
    await_seen(&lab, B, EIP_DNAT);

    // An EIP is re-pointed by its status, and a rule follows it.
    let other = Ipv4Addr::new(203, 0, 113, 77);
    let before = generation(&lab);
    api.assign("unused", other).unwrap();
    await_seen(&lab, C, other);
    await_timed(&lab, before);

    api.delete("IptablesDnatRule", "echo-tcp").unwrap();
    await_refused(&lab, moved);
    api.delete("IptablesFIPRule", "fip").unwrap();
    api.delete("IptablesEIP", "unused").unwrap();
    let addresses = wait_until("the EIP to go", SOON, || {
        let addresses = lab.external_addresses();
        ensure!(!addresses.contains("203.0.113.77/"), "{addresses}");
        Ok(Some(()))
    });
    lab.must("addresses", addresses);
    await_no_problem(&lab.gateway);
}

#[test]
fn the_api_server_goes_and_comes_back() {
    let Some(binary) = tier::cluster() else { return };
    let (mut api, mut lab) = running(&binary);
    let mut open = lab.connections();
    let pinger = Pinger::start(&lab.world.net.b.ns, ECHO_Y).expect("a pinger");

    api.kill().unwrap();
    await_problem(&lab.gateway, "Connection refused");
    assert_eq!(lab.must("status", lab.gateway.json("status"))["ready"], Value::Bool(true));
    lab.all_alive(&mut open, "without an API server");
    let mut later = lab.connections();

    // The daemon dies as well, and its successor has nobody to ask.
    lab.gateway.kill9().unwrap();
    lab.gateway.launch().unwrap();
    await_problem(&lab.gateway, "waits for the first list of");
    lab.all_alive(&mut later, "with neither daemon nor API server");
    println!("measured: API server up in {:?}", api.launch().unwrap());
    api.delete("IptablesDnatRule", "http").unwrap();
    lab.gateway.await_ready().unwrap_or_else(|e| panic!("{e:#}"));
    lab.all_alive(&mut open, "after all of it");
    let tally = pinger.finish().expect("a tally");
    assert_eq!(tally.lost(), 0, "of {} datagrams", tally.sent);
    await_no_problem(&lab.gateway);

    // While the daemon cannot look, a rule changes and the server forgets the way there: its
    // watch cache begins after the change.
    lab.gateway.signal(Signal::SIGSTOP).unwrap();
    api.kill().unwrap();
    api.launch().unwrap();
    api.put("IptablesFIPRule", "fip", &json!({"eip": "fip", "internalIp": C})).unwrap();
    api.kill().unwrap();
    api.launch().unwrap();
    lab.gateway.signal(Signal::SIGCONT).unwrap();
    await_seen(&lab, C, EIP_FIP);
    let status = lab.must("status", lab.gateway.json("status"));
    assert!(status["source"]["expired"].as_u64() >= Some(1), "no watch had expired: {status}");
    await_no_problem(&lab.gateway);
}

#[test]
fn two_gateways_with_the_same_tenant_network_keep_apart() {
    let Some(binary) = tier::cluster() else { return };
    let (api, lab) = running(&binary);
    let other = world();
    let name = other.net.name.clone();
    let spec = json!({"vpc": "lab2", "subnet": "net1", "lanIp": "10.0.1.254"});
    let subnet = json!({"vpc": "lab2", "cidrBlock": "10.0.1.0/24", "gateway": "10.0.1.1"});
    api.put("Subnet", "tenant2", &subnet).unwrap();
    let mut spec2 = spec;
    spec2["subnet"] = "tenant2".into();
    spec2["externalSubnets"] = json!(["external"]);
    api.put("VpcNatGateway", &name, &spec2).unwrap();
    api.put("IptablesEIP", "second", &json!({"natGwDp": name})).unwrap();
    let address = Ipv4Addr::new(203, 0, 113, 50);
    api.assign("second", address).unwrap();
    let all = json!({"eip": "second", "internalCIDR": "10.0.1.0/24"});
    api.put("IptablesSnatRule", "second", &all).unwrap();
    let mut second = gateway(&other, &binary, &name, api.arguments(true).unwrap());
    second.restart().unwrap_or_else(|e| panic!("{e:#}"));

    assert_eq!(seen_by_y(&other, B).unwrap(), address);
    await_seen(&lab, B, EIP_SNAT);
    let rules = second.json("status").expect("a status")["rules"].clone();
    let counts = ["fip", "dnat", "snat"].map(|kind| rules[kind].as_u64());
    assert_eq!(counts, [Some(0), Some(0), Some(1)], "{rules}");
    // A change of one is none of the other.
    let before = lab.must("status", lab.gateway.json("status"))["generation"].clone();
    api.put("IptablesSnatRule", "second", &json!({"eip": "second", "internalCIDR": "10.0.1.10"}))
        .unwrap();
    let gone = || -> Result<Option<()>> {
        ensure!(seen_by_y(&other, C).is_err(), "C is still translated");
        Ok(Some(()))
    };
    wait_until("the narrower rule", SOON, gone).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(lab.must("status", lab.gateway.json("status"))["generation"], before);
}

#[test]
fn whatever_is_wrong_is_said_and_the_rest_keeps_working() {
    let Some(binary) = tier::cluster() else { return };
    let (api, lab) = running(&binary);
    await_no_problem(&lab.gateway);
    let mut open = lab.connections();

    api.put("IptablesDnatRule", "bad-type", &json!({"eip": ["dnat"]})).unwrap();
    api.put("IptablesDnatRule", "no-object", &json!([1, 2])).unwrap();
    api.put("IptablesEIP", "empty", &json!({"natGwDp": lab.gateway.name()})).unwrap();
    api.put("IptablesFIPRule", "early", &json!({"eip": "absent", "internalIp": B})).unwrap();
    let other = json!({"natGwDp": "other-gateway", "v4ip": "203.0.113.60"});
    api.put("VpcNatGateway", "other-gateway", &json!({"vpc": "o", "lanIp": "10.9.0.1"})).unwrap();
    api.put("IptablesEIP", "of-other", &other).unwrap();
    api.put("IptablesFIPRule", "of-other", &json!({"eip": "of-other", "internalIp": 7})).unwrap();
    for wanted in [
        "IptablesDnatRule/bad-type: spec.eip: is a list, expected a string",
        "IptablesDnatRule/no-object: spec: is a list, expected an object",
        "IptablesEIP/empty: spec.v4ip: waits for kube-ovn-controller",
        "IptablesFIPRule/early: spec.eip: waits for IptablesEIP/absent",
    ] {
        await_problem(&lab.gateway, wanted);
    }
    // A good object goes bad: it stays as it was.
    api.put("IptablesDnatRule", "echo-tcp", &json!({"eip": 5})).unwrap();
    await_problem(&lab.gateway, "IptablesDnatRule/echo-tcp: spec.eip: 5 is a number");
    await_accepted(&lab, DNAT_ECHO);
    lab.all_alive(&mut open, "beside bad objects");

    for (object, wanted) in [("bad-type", "is a list"), ("early", "waits for IptablesEIP/absent")] {
        let told = wait_until("an Event", Duration::from_secs(30), || {
            let events = api.events(object)?;
            ensure!(events.iter().any(|event| event.contains(wanted)), "{events:?}");
            ensure!(events.len() == 1, "said more than once: {events:?}");
            Ok(Some(()))
        });
        lab.must(object, told);
    }
    let rule = json!({"eip": "fip", "internalIp": A});
    api.put("IptablesFIPRule", "second-fip", &rule).unwrap();
    await_problem(&lab.gateway, "IptablesFIPRule/second-fip: spec.internalIp: the FIP for");
}

/// What users apply.
const RBAC: &str = include_str!("../../deploy/base/rbac.yaml");

#[test]
fn what_rbac_lacks_is_named_and_the_manifest_grants_what_is_needed() {
    let Some(binary) = tier::cluster() else { return };
    let world = world();
    let api = server(&world, &binary);
    let name = world.net.name.clone();
    api.apply_as_kube_ovn(&Manifests::standard(&name)).unwrap_or_else(|e| panic!("{e:#}"));
    let mut gateway = gateway(&world, &binary, &name, api.arguments(false).unwrap());
    gateway.launch().unwrap();
    await_problem(&gateway, "RBAC must grant the verb list on iptables-eips.kubeovn.io");

    let without_watch = RBAC.replace("verbs: [list, watch]", "verbs: [list]");
    assert_ne!(without_watch, RBAC);
    api.apply(&without_watch).unwrap_or_else(|e| panic!("{e:#}"));
    await_problem(&gateway, "RBAC must grant the verb watch on ");
    // What could be listed is acted upon.
    gateway.await_ready().unwrap_or_else(|e| panic!("{e:#}"));
    api.apply(RBAC).unwrap_or_else(|e| panic!("{e:#}"));
    await_no_problem(&gateway);

    let lab = Running { gateway, world };
    lab.connections();
    api.put("IptablesFIPRule", "fip", &json!({"eip": "fip", "internalIp": C})).unwrap();
    await_seen(&lab, C, EIP_FIP);
    api.put("IptablesDnatRule", "bad", &json!({"eip": 1})).unwrap();
    let told = wait_until("an Event", SOON, || {
        ensure!(!api.events("bad")?.is_empty(), "no Event");
        Ok(Some(()))
    });
    lab.must("Events by the ServiceAccount", told);
    assert!(!lab.gateway.log().contains("events: forbidden"), "{}", lab.gateway.log());
}
