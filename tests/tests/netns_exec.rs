//! The script of the image in a gateway pod, run as kube-ovn-controller runs it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gateway_tests::lab::addresses::{B, C, X};
use gateway_tests::lab::checks::Checks;
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::manifests::{
    DNAT_ECHO, EIP_DNAT, EIP_FIP, EIP_SNAT, EIP_UNUSED, Manifests,
};
use gateway_tests::lab::pod::{Form, IMAGE, Pod, succeeded};
use gateway_tests::lab::probe::{self, TcpProbe};
use gateway_tests::lab::running::ECHO_Y;
use gateway_tests::lab::table_run::{self, Unmatched};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

const SOON: Duration = Duration::from_secs(5);

/// A pod, and everything around it.
struct Lab {
    pod: Pod,
    world: World,
}

impl Lab {
    fn build() -> Option<Self> {
        let binary = tier::gateway()?;
        let world = World::build(&Options::default()).expect("a world");
        let pod = Pod::new(&world.net, &binary).expect("a pod");
        Some(Self { pod, world })
    }

    /// A pod that is initialised and has the rules of the packet table.
    fn with_rules() -> Option<Self> {
        let lab = Self::build()?;
        lab.replay();
        Some(lab)
    }

    /// What the controller does to a new pod.
    fn replay(&self) {
        self.must("init", &[]);
        for (verb, rules) in Manifests::standard(&self.world.net.name).verbs() {
            let rules: Vec<_> = rules.iter().map(String::as_str).collect();
            self.must(verb, &rules);
        }
    }

    fn must(&self, verb: &str, rules: &[&str]) -> String {
        self.check(verb, self.pod.must(verb, rules))
    }

    fn must_not(&self, code: i32, verb: &str, rules: &[&str]) -> String {
        self.check(verb, self.pod.must_not(code, verb, rules))
    }

    fn check<T>(&self, what: &str, outcome: Result<T>) -> T {
        outcome.unwrap_or_else(|e| panic!("{what}: {e:#}\n{}", self.pod.diagnostics()))
    }

    fn addresses(&self) -> String {
        self.check("addresses", self.world.net.gateway.ip("-4 address show dev net1"))
    }

    fn rules(&self) -> usize {
        let rules = self.check("rules", self.pod.json("rules"));
        rules.as_array().map_or(0, Vec::len)
    }

    /// That the rules of the packet table are in force.
    fn works(&self, when: &str) {
        let (net, fip) = (&self.world.net, SocketAddrV4::new(EIP_FIP, ECHO_PORT));
        let seen = self.check(when, probe::udp(&net.b.ns, 0, ECHO_Y, b"out")).seen;
        assert_eq!(seen.ip(), EIP_SNAT, "{when}");
        self.check(when, probe::tcp(&net.y.ns, 0, DNAT_ECHO));
        self.check(when, probe::tcp(&net.x.ns, 0, fip));
    }
}

fn forward(port: u16) -> String {
    format!("{EIP_DNAT},{port},tcp,{B},{ECHO_PORT}")
}

#[test]
fn the_packet_table_holds_behind_the_script() {
    let Some(lab) = Lab::with_rules() else { return };
    let mut checks = Checks::default();
    table_run::run(&lab.world.net, Unmatched::Drop, &mut checks);
    checks.conclude(|| lab.pod.diagnostics());
}

#[test]
fn both_forms_of_the_controller_work() {
    let Some(lab) = Lab::build() else { return };
    let run = |form, verb: &str, rules: &[&str]| {
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        let output = lab.pod.run(&mut lab.pod.verb(form, verb, &rules));
        lab.check(verb, output.and_then(|output| succeeded(&output)))
    };
    for form in [Form::Line, Form::Words] {
        let version = run(form, "get-iptables-version", &[]);
        // The controller takes what fits `v([0-9]+(\.[0-9]+)+)`, and compares it with 1.6.2.
        let (_, rest) = version.split_once('v').expect("a version");
        let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        assert_eq!(number, "1.8.9", "{version}");
        run(form, "init", &["eth0,net1"]);
        let port = if form == Form::Line { 7301 } else { 7302 };
        run(form, "eip-add", &["203.0.113.30/24"]);
        run(form, "dnat-add", &[&forward(port), &forward(port + 10)]);
        for port in [port, port + 10] {
            let to = SocketAddrV4::new(EIP_DNAT, port);
            lab.check("dnat", probe::tcp(&lab.world.net.y.ns, 0, to));
        }
    }
}

#[test]
fn nothing_works_before_init_and_init_may_be_repeated() {
    let Some(lab) = Lab::build() else { return };
    for (verb, rule) in [
        ("eip-add", "203.0.113.30/24"),
        ("dnat-add", "203.0.113.30,80,tcp,10.0.1.10,80"),
        ("snat-del", "203.0.113.30,10.0.1.0/24"),
        ("floating-ip-sync", "203.0.113.10,10.0.1.5"),
    ] {
        let said = lab.must_not(1, verb, &[rule]);
        assert!(said.contains("not initialized"), "{said}");
    }
    lab.must("get-iptables-version", &[]);
    lab.must("eip-ingress-qos-add", &["203.0.113.30,1,10,2"]);
    assert_eq!(lab.pod.daemon(), None, "a verb before init started the daemon");

    let said = lab.must_not(1, "init", &["eth0,net9"]);
    assert!(said.contains("net9"), "{said}");
    let said = lab.must_not(1, "snat-add", &["203.0.113.30,10.0.1.0/24"]);
    assert!(said.contains("not initialized"), "an init that failed counts: {said}");

    lab.must("init", &[]);
    let first = lab.pod.daemon().expect("a daemon");
    lab.must("init", &[]);
    lab.must("init", &["eth0,net1"]);
    assert_eq!(lab.pod.daemon(), Some(first), "another daemon");
    lab.must_not(1, "init", &["net1,eth0"]);
    let said = lab.must_not(1, "make-coffee", &[]);
    assert!(said.contains("make-coffee is not a verb"), "{said}");

    // It belongs to nobody: a session of its own, and nothing of the caller's open.
    let session = nix::unistd::getsid(Some(first)).expect("a session");
    assert_eq!(session, first, "the daemon has the session of its caller");
    let stdin = std::fs::read_link(format!("/proc/{first}/fd/0")).expect("a file");
    assert_eq!(stdin.to_string_lossy(), "/dev/null");
}

#[test]
fn verbs_end_as_the_controller_expects() {
    let Some(lab) = Lab::build() else { return };
    lab.must("init", &[]);
    // Adding again is nothing, something else in its place is a conflict, and going is going.
    let table: &[(&str, &str, &str, &str, &str)] = &[
        ("eip-add", "203.0.113.30/24", "203.0.113.30/24", "eip-del", "203.0.113.30/24"),
        ("floating-ip-add", "203.0.113.10,10.0.1.5", "", "floating-ip-del", "203.0.113.10"),
        (
            "floating-ip-add",
            "203.0.113.11,10.0.1.6",
            "203.0.113.11,10.0.1.7",
            "floating-ip-del",
            "203.0.113.11,10.0.1.6",
        ),
        (
            "dnat-add",
            "203.0.113.30,80,TCP,10.0.1.10,80",
            "203.0.113.30,80,tcp,10.0.1.20,80",
            "dnat-del",
            "203.0.113.30,80,Tcp",
        ),
        (
            "dnat-add",
            "203.0.113.30,53,udp,10.0.1.10,53",
            "203.0.113.30,53,UDP,10.0.1.10,54",
            "dnat-del",
            "203.0.113.30,53,UDP,10.0.1.10,53",
        ),
        (
            "snat-add",
            "203.0.113.30,10.0.1.7/24,--random-fully",
            "",
            "snat-del",
            "203.0.113.30,10.0.1.99/24",
        ),
        ("snat-add", "203.0.113.30,10.0.1.7", "", "snat-del", "203.0.113.30,10.0.1.7/32"),
    ];
    for (add, rule, conflict, del, gone) in table {
        let before = lab.rules();
        lab.must(add, &[rule]);
        lab.must(add, &[rule]);
        if !conflict.is_empty() && conflict != rule {
            let said = lab.must_not(1, add, &[conflict]);
            assert!(said.contains("already"), "{said}");
        }
        let added = usize::from(!add.starts_with("eip"));
        assert_eq!(lab.rules(), before + added, "{add} {rule}");
        lab.must(del, &[gone]);
        lab.must(del, &[gone]);
        assert_eq!(lab.rules(), before, "{del} {gone}");
    }
    // A shared port and an exclusive one exclude each other.
    lab.must("nft-dnat-map-add", &["203.0.113.30,90,tcp,10.0.1.10:90@10.0.1.20:90"]);
    lab.must_not(1, "dnat-add", &["203.0.113.30,90,tcp,10.0.1.10,90"]);
    lab.must("dnat-add", &["203.0.113.30,91,tcp,10.0.1.10,90"]);
    lab.must_not(1, "nft-dnat-map-add", &["203.0.113.30,91,TCP,10.0.1.10:90"]);
    // Routes.
    lab.must("subnet-route-add", &["10.0.9.0/24,10.0.1.1", "10.0.10.0/24,10.0.1.1"]);
    lab.must("subnet-route-add", &["10.0.9.0/24,10.0.1.20"]);
    let routes = lab.check("routes", lab.world.net.gateway.ip("route show dev eth0"));
    assert!(routes.contains("10.0.9.0/24 via 10.0.1.20"), "{routes}");
    assert_eq!(routes.matches("10.0.9.0/24").count(), 1, "{routes}");
    lab.must("subnet-route-del", &["10.0.9.0/24"]);
    let said = lab.must_not(2, "subnet-route-del", &["10.0.9.0/24"]);
    assert!(said.contains("no such route"), "{said}");
    // What cannot be meant.
    for (verb, rule) in [
        ("dnat-add", "203.0.113.30,80,sctp,10.0.1.10,80"),
        ("dnat-add", "203.0.113.30,0,tcp,10.0.1.10,80"),
        ("dnat-add", "203.0.113.30,80,tcp,fd00::1,80"),
        ("snat-add", "203.0.113.30"),
        ("eip-add", "203.0.113.300/24"),
        ("nft-dnat-map-add", "203.0.113.30,95,tcp,"),
    ] {
        let said = lab.must_not(1, verb, &[rule]);
        assert!(said.starts_with(&format!("{verb} {rule}: ")), "{said}");
    }
}

#[test]
fn qos_is_accepted_and_the_status_says_that_nobody_enforces_it() {
    let Some(lab) = Lab::build() else { return };
    lab.must("init", &[]);
    let said = lab.must("eip-egress-qos-add", &["203.0.113.30,1,10,2"]);
    assert!(said.contains("not enforced"), "{said}");
    lab.must("qos-add", &["ingress,,2,u32,ip,src,10.0.1.5/32,10.5,1"]);
    let problems = || -> Result<String> { Ok(lab.pod.json("status")?["problems"].to_string()) };
    let says = |wanted: bool| {
        wait_until("the status", SOON, || {
            let problems = problems()?;
            ensure!(problems.contains("QoS is not enforced") == wanted, "{problems}");
            Ok(Some(()))
        })
    };
    lab.check("status", says(true));
    // The controller sends all fields on deletion too.
    lab.must("qos-del", &["ingress,,2,u32,ip,src,10.0.1.5/32,10.5,1"]);
    lab.must("eip-egress-qos-del", &["203.0.113.30"]);
    lab.must("eip-egress-qos-del", &["203.0.113.30"]);
    lab.check("status", says(false));
}

#[test]
fn the_verbs_of_old_releases_replace_whole_lists() {
    let Some(lab) = Lab::build() else { return };
    let net = &lab.world.net;
    lab.must("init", &["10.0.1.0/24"]);
    lab.must("eip-add", &["203.0.113.30/24,203.0.113.1", "203.0.113.10/24,203.0.113.1"]);
    lab.must("dnat-sync", &[&forward(7301), &forward(7302)]);
    lab.must("snat-sync", &["203.0.113.30,10.0.1.0/24"]);
    lab.must("floating-ip-sync", &["203.0.113.10,10.0.1.5"]);
    let at = |port| SocketAddrV4::new(EIP_DNAT, port);
    let mut stays = lab.check("dnat", TcpProbe::connect(&net.y.ns, 0, at(7302)));
    lab.check("fip", probe::tcp(&net.x.ns, 0, SocketAddrV4::new(EIP_FIP, ECHO_PORT)));
    let seen = lab.check("snat", probe::udp(&net.c.ns, 0, ECHO_Y, b"out")).seen;
    assert_eq!(seen.ip(), EIP_DNAT);
    lab.must("dnat-sync", &[&forward(7302), &forward(7303)]);
    lab.check("7301 is closed", probe::tcp_refused(&net.y.ns, at(7301)));
    lab.check("7303", probe::tcp(&net.y.ns, 0, at(7303)));
    lab.check("a rule that stays", stays.echo("still here"));
    lab.must("floating-ip-sync", &[]);
    lab.must("snat-sync", &[]);
    lab.must("dnat-sync", &[]);
    assert_eq!(lab.rules(), 0);
    // v1.11: networks on the external link.
    lab.must("ext-subnet-route-add", &["192.0.2.0/24,203.0.113.1"]);
    let routes = lab.check("routes", net.gateway.ip("route show dev net1"));
    assert!(
        routes.contains("192.0.2.0/24") && routes.contains("default via 203.0.113.1"),
        "{routes}"
    );
    lab.must("ext-subnet-route-del", &["192.0.2.0/24"]);
    lab.must("ext-subnet-route-del", &["192.0.2.0/24"]);
}

#[test]
fn eips_are_addresses_of_the_kernel_with_a_way_out() {
    let Some(lab) = Lab::build() else { return };
    let net = &lab.world.net;
    // As with noDefaultEIP: no address and no way out on net1, and a default route elsewhere.
    net.gateway.ip("address flush dev net1").expect("no address");
    net.gateway.ip("route add default via 10.0.1.1").expect("a route");
    let elsewhere =
        format!("neigh replace {EIP_UNUSED} lladdr 02:00:00:00:00:99 dev ext nud stale");
    net.x.ns.ip(&elsewhere).expect("a neighbour entry");
    lab.must("init", &[]);
    lab.must("snat-add", &["203.0.113.20,10.0.1.0/24"]);
    lab.must("eip-add", &["203.0.113.40/24"]);
    lab.must("eip-add", &["203.0.113.20/24", "203.0.113.30/24"]);
    let routes = lab.check("routes", net.gateway.ip("route show default"));
    assert!(routes.contains(&format!("default via {X} dev net1")), "{routes}");
    let learned = || -> Result<Option<()>> {
        let entry = net.x.ns.ip(&format!("neigh show {EIP_UNUSED} dev ext"))?;
        ensure!(entry.contains("lladdr") && !entry.contains("02:00:00:00:00:99"), "{entry}");
        Ok(Some(()))
    };
    lab.check("the announcement", wait_until("the announcement", SOON, learned));
    let pinged = lab.check("ping", probe::icmp_echo(&net.x.ns, EIP_UNUSED, 77, 56));
    assert_eq!(pinged, EIP_UNUSED);
    let seen = lab.check("snat", probe::udp(&net.b.ns, 0, ECHO_Y, b"out")).seen;
    assert_eq!(seen.ip(), EIP_SNAT);

    // The first address of a prefix carries the others, unless the kernel is told otherwise.
    lab.must("eip-del", &["203.0.113.40/24"]);
    let addresses = lab.addresses();
    assert!(!addresses.contains("203.0.113.40/"), "{addresses}");
    assert!(
        addresses.contains("203.0.113.20/") && addresses.contains("203.0.113.30/"),
        "{addresses}"
    );
    let routes = lab.check("routes", net.gateway.ip("route show default"));
    assert!(routes.contains(&format!("default via {X} dev net1")), "{routes}");
    let seen = lab.check("snat", probe::udp(&net.b.ns, 0, ECHO_Y, b"out")).seen;
    assert_eq!(seen.ip(), EIP_SNAT);
}

#[test]
fn a_shared_port_gets_its_whole_set_at_once() {
    let Some(lab) = Lab::with_rules() else { return };
    let shared = SocketAddrV4::new(EIP_DNAT, 7200);
    let set = |backends: &[Ipv4Addr]| {
        let all: Vec<_> = backends.iter().map(|host| format!("{host}:{ECHO_PORT}")).collect();
        format!("{EIP_DNAT},7200,TCP,{}", all.join("@"))
    };
    let met = || -> Result<BTreeSet<char>> {
        (0..30).map(|_| Ok(probe::tcp(&lab.world.net.y.ns, 0, shared)?.server)).collect()
    };
    lab.must("nft-dnat-map-add", &[&set(&[B])]);
    assert_eq!(lab.check("one", met()), ['b'].into());
    lab.must("nft-dnat-map-add", &[&set(&[B, C])]);
    assert_eq!(lab.check("two", met()), ['b', 'c'].into());
    let mut pinned = lab.check("a flow", TcpProbe::connect(&lab.world.net.y.ns, 0, shared));
    lab.must("nft-dnat-map-add", &[&set(&[C])]);
    assert_eq!(lab.check("the other", met()), ['c'].into());
    lab.check("a flow to a backend that may be gone", pinned.echo("still there"));
    lab.must("nft-dnat-map-del", &[&format!("{EIP_DNAT},7200,tcp")]);
    lab.check("closed", probe::tcp_refused(&lab.world.net.y.ns, shared));
    lab.check("its flows end", pinned.wait_for_end(SOON));
}

#[test]
fn sixty_four_at_once_are_all_right() {
    let Some(lab) = Lab::build() else { return };
    lab.must("init", &[]);
    lab.must("eip-add", &["203.0.113.30/24"]);
    // The first to come has to start the daemon.
    lab.check("kill", lab.pod.kill_daemon());
    let all: Vec<_> = thread::scope(|scope| {
        let add = |n: u16| {
            let pod = &lab.pod;
            scope.spawn(move || match n % 4 {
                0 => pod.must("dnat-add", &[&forward(7000 + n)]),
                1 => pod.must("snat-add", &[&format!("{EIP_DNAT},10.1.{n}.0/24")]),
                2 => pod.must("eip-add", &[&format!("203.0.113.{}/24", 100 + n)]),
                _ => pod.must("floating-ip-add", &[&format!("203.0.113.{},10.2.0.{n}", 180 + n)]),
            })
        };
        let running: Vec<_> = (0..64).map(add).collect();
        running.into_iter().map(|thread| thread.join().expect("an end")).collect()
    });
    for outcome in all {
        lab.check("one of 64", outcome);
    }
    assert_eq!(lab.rules(), 48);
    let addresses = lab.addresses();
    assert_eq!(addresses.matches("inet ").count(), 16 + 2, "{addresses}");
    for n in (0..64).step_by(4) {
        let to = SocketAddrV4::new(EIP_DNAT, 7000 + n);
        lab.check("dnat", probe::tcp(&lab.world.net.y.ns, 0, to));
    }
}

#[test]
fn a_dead_daemon_loses_nothing_and_the_next_verb_starts_it() {
    let Some(lab) = Lab::with_rules() else { return };
    let mut open = lab.check("a flow", TcpProbe::connect(&lab.world.net.b.ns, 0, ECHO_Y));
    let rules = lab.rules();
    let before = std::fs::read_to_string(lab.pod.ledger()).expect("a ledger");
    lab.check("kill", lab.pod.kill_daemon());
    lab.works("without the daemon");
    lab.check("a flow without the daemon", open.echo("hello"));
    lab.must("dnat-add", &[&forward(7301)]);
    lab.check("dnat", probe::tcp(&lab.world.net.y.ns, 0, SocketAddrV4::new(EIP_DNAT, 7301)));
    assert!(lab.pod.daemon().is_some(), "no daemon");
    assert_eq!(lab.rules(), rules + 1);
    lab.check("a flow after the restart", open.echo("hello"));
    lab.works("after the restart");
    let after = std::fs::read_to_string(lab.pod.ledger()).expect("a ledger");
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(lines(&after).difference(&lines(&before)).count(), 1, "{after}");
}

#[test]
fn a_replay_changes_nothing_and_a_new_pod_gets_everything_again() {
    let Some(lab) = Lab::with_rules() else { return };
    let mut open = lab.check("a flow", TcpProbe::connect(&lab.world.net.b.ns, 0, ECHO_Y));
    let rules = lab.rules();
    for _ in 0..3 {
        lab.replay();
    }
    assert_eq!(lab.rules(), rules);
    lab.check("a flow across three replays", open.echo("hello"));
    lab.pod.recreate();
    assert!(!lab.pod.ledger().exists(), "the ledger outlives the pod");
    assert_eq!(lab.addresses().matches("inet ").count(), 1, "{}", lab.addresses());
    lab.replay();
    assert_eq!(lab.rules(), rules);
    lab.works("in the new pod");
}

/// A container that restarts loses its file system and its mounts, and with them ledger and pins.
#[test]
fn a_container_that_restarts_leaves_the_rules_in_force() {
    let Some(mut lab) = Lab::build() else { return };
    // As the image sets it.
    let image = std::fs::read_to_string(format!("{IMAGE}/Dockerfile")).expect("a Dockerfile");
    let line = image.lines().find_map(|line| line.strip_prefix("ENV VPC_GATEWAY_OPTIONS="));
    lab.pod.options = line.expect("options").trim_matches('"').to_owned();
    lab.replay();
    lab.works("with the options of the image");
    lab.check("kill", lab.pod.kill_daemon());
    lab.pod.forget();
    lab.works("in a new container");
    let said = lab.must_not(1, "dnat-add", &[&forward(7301)]);
    assert!(said.contains("not initialized"), "{said}");
}

#[test]
fn what_was_confirmed_survives_any_kill() {
    let Some(lab) = Lab::build() else { return };
    lab.must("init", &[]);
    lab.must("eip-add", &["203.0.113.30/24"]);
    let (next, over) = (AtomicU16::new(8000), AtomicBool::new(false));
    let count = AtomicU16::new(0);
    let confirmed = thread::scope(|scope| {
        let writer = || -> Result<Vec<u16>> {
            let mut confirmed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let port = next.fetch_add(1, Ordering::Relaxed);
                lab.pod.must("dnat-add", &[&forward(port)])?;
                confirmed.push(port);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(confirmed)
        };
        let writers: Vec<_> = (0..3).map(|_| scope.spawn(writer)).collect();
        for _ in 0..4 {
            // A client in the middle of it, and the daemon.
            let mut doomed = lab.pod.verb(Form::Words, "dnat-add", &[forward(9000)]);
            let doomed = lab.world.net.gateway.enter(|| doomed.spawn());
            let mut doomed = lab.check("a client", doomed.and_then(|child| Ok(child?)));
            thread::sleep(Duration::from_millis(3));
            doomed.kill().expect("a kill");
            doomed.wait().expect("an end");
            thread::sleep(Duration::from_millis(150));
            let before = count.load(Ordering::Relaxed);
            let _ = lab.pod.kill_daemon();
            let goes_on = || Ok((count.load(Ordering::Relaxed) >= before + 5).then_some(()));
            // What is missing shows at the end.
            let _ = wait_until("verbs after a kill", 6 * SOON, goes_on);
        }
        over.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .flat_map(|one| lab.check("a writer", one.join().expect("an end")))
            .collect::<Vec<_>>()
    });
    println!("{} verbs were confirmed across four kills of the daemon", confirmed.len());
    assert!(confirmed.len() >= 20, "only {} verbs", confirmed.len());
    lab.must("init", &[]);
    let rules = lab.check("rules", lab.pod.json("rules")).to_string();
    for port in &confirmed {
        assert!(rules.contains(&format!("{EIP_DNAT}:{port}/tcp")), "{port} is lost");
    }
    let to = SocketAddrV4::new(EIP_DNAT, confirmed[0]);
    lab.check("dnat", probe::tcp(&lab.world.net.y.ns, 0, to));
}

/// How many rules are added one by one beside as many that make ten thousand.
fn one_by_one() -> u16 {
    std::env::var("EXEC_RULES").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

#[test]
fn one_rule_beside_ten_thousand() {
    let Some(lab) = Lab::build() else { return };
    lab.must("init", &[]);
    lab.must("eip-add", &["203.0.113.30/24"]);
    let singles = one_by_one().min(10_000);
    let bulk: Vec<_> = (singles..10_000).map(|n| forward(10_000 + n)).collect();
    for chunk in bulk.chunks(2_000) {
        let rules: Vec<_> = chunk.iter().map(String::as_str).collect();
        lab.must("dnat-add", &rules);
    }
    let timed = |what: &str, all: &mut dyn Iterator<Item = (&str, String)>| {
        let mut times = Vec::new();
        for (verb, rule) in all {
            let begin = Instant::now();
            lab.must(verb, &[&rule]);
            times.push(begin.elapsed());
        }
        times.sort();
        let total: Duration = times.iter().sum();
        println!(
            "measured: {} {what}: median {:?}, 99 % {:?}, all {total:?}",
            times.len(),
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    };
    timed("dnat-add", &mut (0..singles).map(|n| ("dnat-add", forward(10_000 + n))));
    let many: Vec<_> = (0..1_000).map(|n| format!("198.18.{}.{}/32", n / 250, n % 250)).collect();
    lab.must("eip-add", &many.iter().map(String::as_str).collect::<Vec<_>>());
    timed("eip-add", &mut (50..150).map(|n| ("eip-add", format!("203.0.113.{n}/24"))));
    timed("eip-del", &mut (140..150).map(|n| ("eip-del", format!("203.0.113.{n}/24"))));
    timed("snat-add", &mut (0..50).map(|n| ("snat-add", format!("{EIP_DNAT},10.3.{n}.0/24"))));
    let apply = lab.check("status", lab.pod.json("status"));
    println!("measured: the last change in the maps: {} us", apply["last_apply"]["duration_us"]);
    assert_eq!(lab.rules(), 10_000 + 50);
    for port in [10_000, 10_000 + singles - 1, 19_999] {
        let to = SocketAddrV4::new(EIP_DNAT, port);
        lab.check("dnat", probe::tcp(&lab.world.net.y.ns, 0, to));
    }
    let begin = Instant::now();
    lab.must("dnat-del", &[&format!("{EIP_DNAT},10000,tcp")]);
    println!("measured: dnat-del, its flows ended: {:?}", begin.elapsed());
    let gone = SocketAddrV4::new(EIP_DNAT, 10_000);
    lab.check("closed", probe::tcp_refused(&lab.world.net.y.ns, gone));
}
