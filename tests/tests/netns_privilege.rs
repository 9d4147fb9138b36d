//! What a daemon keeps of its capabilities, and that it is enough.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use gateway_tests::lab::addresses::{A, B};
use gateway_tests::lab::capabilities::{
    BPF, DOCUMENTED, NET_ADMIN, PERFMON, READ_FILES, keeps, threads,
};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::egress::EgressLab;
use gateway_tests::lab::gateway::Gateway;
use gateway_tests::lab::manifests::{EIP_DNAT, EIP_SNAT, Manifests};
use gateway_tests::lab::probe;
use gateway_tests::lab::process::Process;
use gateway_tests::lab::running::{ECHO_FIP, ECHO_Y};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);

fn names(status: &Value) -> BTreeSet<&str> {
    status["capabilities"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn a_daemon_gives_up_what_it_does_not_need() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
    let arguments = ["--metrics", "127.0.0.1:0"];
    let gateway = world.start_gateway(&binary, &arguments).unwrap_or_else(|e| panic!("{e:#}"));
    let pid = gateway.pid().expect("a daemon");
    // Manifests may belong to anybody.
    keeps(pid, DOCUMENTED | READ_FILES).unwrap_or_else(|e| panic!("{e:#}"));
    let status = gateway.json("status").expect("a status");
    let wanted = ["CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"];
    assert_eq!(names(&status), BTreeSet::from(wanted));
    let metrics = threads(pid).expect("threads").into_iter().find(|one| one.name == "metrics");
    let [_, permitted, ..] = metrics.expect("a thread for metrics").sets;
    assert_eq!(permitted, BPF, "the thread that serves metrics has {permitted:x}");
}

/// Starts the daemon inside its namespace with nothing but these capabilities.
fn start_with(world: &World, gateway: &Gateway, set: &str, arguments: &[&str]) -> Process {
    let whole = gateway.run_command("net1");
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", &format!("-all,{set}"), "--inh-caps", "-all"]);
    command.arg(whole.get_program());
    // It is in the namespace already.
    let mut words = whole.get_args();
    while let Some(word) = words.next() {
        if word == "--netns" {
            words.next();
        } else {
            command.arg(word);
        }
    }
    command.args(arguments);
    let log = world.net.scratch.join("bounded.log");
    let started = world.net.gateway.enter(|| Process::start(&mut command, &log));
    started.expect("a namespace").unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn the_documented_capabilities_are_enough() {
    let Some(binary) = tier::gateway() else { return };
    for mode in ["tc", "xdp-generic"] {
        let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
        let net = &world.net;
        let manifests = Manifests { ipv6: false, ..Manifests::standard(&net.name) };
        let settings = world.settings(&binary, &manifests, &[]).expect("settings");
        let gateway = Gateway::prepare(net, settings).unwrap_or_else(|e| panic!("{e:#}"));
        let arguments = ["--mode", mode, "--timeouts", "udp-new=1,udp-stream=1"];
        let set = "+net_admin,+net_raw,+perfmon,+bpf";
        let daemon = start_with(&world, &gateway, set, &arguments);
        let fail = |what: &str, error: anyhow::Error| -> ! {
            panic!("{mode}: {what}: {error:#}\n{}\n{}", daemon.log(), gateway.diagnostics())
        };
        let ready = wait_until("the daemon to be ready", SOON, || {
            let status = gateway.status()?;
            ensure!(status["ready"] == Value::Bool(true), "{status}");
            Ok(Some(status))
        });
        let status = ready.unwrap_or_else(|e| fail("ready", e));
        assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
        keeps(daemon.pid(), DOCUMENTED).unwrap_or_else(|e| fail("sets", e));

        // Traffic of each kind, and answers of our own.
        probe::udp(&net.x.ns, 0, ECHO_FIP, b"FIP").unwrap_or_else(|e| fail("FIP", e));
        let seen = probe::udp(&net.b.ns, 0, ECHO_Y, b"SNAT").unwrap_or_else(|e| fail("SNAT", e));
        assert_eq!(seen.seen.ip(), EIP_SNAT);
        let ping = net.x.ns.enter(|| {
            let mut ping = Command::new("ping");
            ping.args(["-n", "-c", "1", "-W", "2", "-t", "1", "203.0.113.10"]).output()
        });
        let ping = ping.expect("a namespace").expect("ping");
        let said = String::from_utf8_lossy(&ping.stdout).into_owned();
        assert!(said.contains("Time to live exceeded"), "{mode}: {said}\n{}", daemon.log());

        // Rules change, with addresses and sysctls; the sweep ends what is over.
        let mut more = manifests.clone();
        let at = std::net::SocketAddrV4::new(EIP_DNAT, 7070);
        more.forward("late", "tcp", at, B, ECHO_PORT);
        more.eips.push(("late".into(), "203.0.113.99".parse().unwrap()));
        more.fips.push(("late".into(), A));
        more.fips.remove(0);
        world.configure(&more.yaml()).expect("manifests");
        let late = || probe::tcp(&net.y.ns, 0, at).map(Some);
        wait_until("a rule that came later", SOON, late).unwrap_or_else(|e| fail("reload", e));
        let moved = std::net::SocketAddrV4::new("203.0.113.99".parse().unwrap(), ECHO_PORT);
        probe::udp(&net.x.ns, 0, moved, b"FIP").unwrap_or_else(|e| fail("a new EIP", e));
        let swept = wait_until("a sweep that ends something", SOON, || {
            let status = gateway.status()?;
            let ended = status["last_sweep"]["ended"].as_u64().unwrap_or(0);
            ensure!(ended > 0, "nothing has ended: {}", status["last_sweep"]);
            Ok(Some(()))
        });
        swept.unwrap_or_else(|e| fail("sweep", e));
        // The next one takes over what is attached, without a gap.
        let inode = |link: &str| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(gateway.pins().join("links").join(link)).map(|about| about.ino())
        };
        let links = ["internal", "external"].map(|link| inode(link).expect("a pinned link"));
        let old = daemon.pid();
        drop(daemon);
        let daemon = start_with(&world, &gateway, set, &arguments);
        let again = wait_until("the daemon to be ready again", SOON, || {
            let status = gateway.status()?;
            ensure!(status["pid"] != old && status["ready"] == Value::Bool(true), "{status}");
            Ok(Some(()))
        });
        again.unwrap_or_else(|e| panic!("{mode}: {e:#}\n{}", daemon.log()));
        let after = ["internal", "external"].map(|link| inode(link).expect("a pinned link"));
        assert_eq!(links, after, "{mode}: a link was replaced\n{}", daemon.log());
        let log = daemon.log();
        for word in ["not permitted", "ermission denied"] {
            assert!(!log.contains(word), "{mode}:\n{log}");
        }
    }
}

#[test]
fn without_a_capability_it_says_which() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
    let manifests = Manifests::standard(&world.net.name);
    let settings = world.settings(&binary, &manifests, &[]).expect("settings");
    let gateway = Gateway::prepare(&world.net, settings).unwrap_or_else(|e| panic!("{e:#}"));
    for (set, missing) in [("+net_raw,+perfmon,+bpf", "CAP_NET_ADMIN"), ("+net_admin", "CAP_BPF")] {
        let mut daemon = start_with(&world, &gateway, set, &[]);
        let ended = daemon.wait(SOON).expect("an end");
        assert_eq!(ended.code(), Some(2));
        assert!(daemon.log().contains(&format!("{missing} is missing")), "{}", daemon.log());
    }
}

#[test]
fn a_selector_and_bfdd_give_up_what_they_do_not_need() {
    if tier::gateway().is_none() {
        return;
    }
    let mut lab = EgressLab::build("vgcap").unwrap_or_else(|e| panic!("{e:#}"));
    lab.start().unwrap_or_else(|e| panic!("{e:#}"));
    let selector = lab.selector_pid().expect("a selector");
    keeps(selector, NET_ADMIN | PERFMON | BPF | READ_FILES).unwrap_or_else(|e| panic!("{e:#}"));
    let bfdd = lab.bfd_pid(0).expect("a bfdd");
    keeps(bfdd, 0).unwrap_or_else(|e| panic!("{e:#}"));
}
