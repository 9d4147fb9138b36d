//! The image in a container of a real runtime, driven as kube-ovn-controller drives it.

use anyhow::{Context as _, Result};
use gateway_tests::lab::addresses::{ROUTER, WAN, X, v6};
use gateway_tests::lab::checks::Checks;
use gateway_tests::lab::containerd::Containerd;
use gateway_tests::lab::manifests::Manifests;
use gateway_tests::lab::pod::succeeded;
use gateway_tests::lab::probe;
use gateway_tests::lab::running::ECHO_Y;
use gateway_tests::lab::table_run::{self, Unmatched};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::world::World;

const SCRIPT: &str = "/kube-ovn/nat-gateway.sh";
const UID: &str = "6f9a1f7e-61d2-4c0e-9d1c-0f4f1f0f8d11";

/// A gateway pod of the image, as the StatefulSet of kube-ovn-controller has it.
struct Pod {
    runtime: Containerd,
    container: String,
    world: World,
}

impl Pod {
    fn start() -> Option<Self> {
        let image = tier::image()?;
        let mut world = World::build(&Options::default()).expect("a world");
        let started = (|| -> Result<_> {
            let mut runtime = Containerd::start(&world.net.scratch)?;
            runtime.import(&image)?;
            let sandbox = runtime.run("kube-system", "vpc-nat-gw-gw1-0", UID, 0)?;
            world.net.unplug_gateway()?;
            world.net.plug_in(runtime.namespace(&sandbox)?)?;
            let variables = [("GATEWAY_V4", X.to_string()), ("GATEWAY_V6", v6(X).to_string())];
            let image = "docker.io/library/vpc-gateway:test";
            let command = ["sleep", "infinity"];
            let container = runtime.start_container(&sandbox, image, &command, &variables)?;
            Ok((runtime, container))
        })();
        let (runtime, container) = started.unwrap_or_else(|e| panic!("{e:#}"));
        Some(Self { runtime, container, world })
    }

    fn run(&self, command: &[&str]) -> String {
        let output = self.runtime.exec(&self.container, command);
        let outcome = output.and_then(|output| succeeded(&output));
        outcome.with_context(|| format!("{command:?}")).unwrap_or_else(|e| panic!("{e:#}"))
    }

    fn log(&self) -> String {
        let log = ["cat", "/run/vpc-gateway/pod/daemon.log"];
        let output = self.runtime.exec(&self.container, &log);
        output.map_or_else(|e| format!("{e:#}"), |o| String::from_utf8_lossy(&o.stdout).into())
    }
}

#[test]
fn the_packet_table_holds_in_a_container_of_the_image() {
    let Some(pod) = Pod::start() else { return };
    // postStart of the StatefulSet, and what the controller asks before anything else.
    pod.run(&["sh", "-c", "sysctl -w net.ipv4.ip_forward=1"]);
    let version = pod.run(&["bash", SCRIPT, "get-iptables-version"]);
    assert!(version.contains("v1."), "{version}");
    pod.run(&["bash", SCRIPT, "init", "eth0,net1"]);
    for (verb, rules) in Manifests::standard(&pod.world.net.name).verbs() {
        let rules = rules.iter().map(String::as_str);
        pod.run(&["bash", SCRIPT, verb].into_iter().chain(rules).collect::<Vec<_>>());
    }
    let mut checks = Checks::default();
    table_run::run(&pod.world.net, Unmatched::Drop, &mut checks);
    checks.conclude(|| pod.log());

    // What an operator looks at.
    let status = pod.run(&["vpc-gateway", "status"]);
    assert!(status.contains("net1"), "{status}");
    let rules = pod.run(&["vpc-gateway", "rules", "--json"]);
    let rules: serde_json::Value = serde_json::from_str(&rules).expect("JSON");
    assert!(rules.as_array().is_some_and(|rules| rules.len() > 5), "{rules}");

    // What other pods of Kube-OVN run.
    for command in [&["ip", "-V"][..], &["iptables", "-V"], &["ip6tables", "-V"], &["ping", "-V"]] {
        pod.run(command);
    }
    let refused = pod.runtime.exec(&pod.container, &["bash", "/kube-ovn/lb-svc.sh", "init"]);
    let refused = refused.expect("an answer");
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("LoadBalancer"), "{said}");

    // The pod of an egress gateway whose policies translate everybody, in place of this one.
    let end = "kill $(cat /run/vpc-gateway/pod/lock); until vpc-gateway detach --gateway pod 2>/dev/null; \
               do sleep 0.1; done";
    pod.run(&["bash", "-c", end]);
    let gateways = format!("INTERNAL_GATEWAY_IPV4={ROUTER} EXTERNAL_GATEWAY_IPV4={X}");
    let name = "VPC_GATEWAY_NAME=egress";
    let script = format!("{gateways} {name} bash /kube-ovn/init-vpc-egress-gateway.sh");
    pod.run(&["bash", "-c", &script]);
    let seen = probe::udp(&pod.world.net.b.ns, 0, ECHO_Y, b"out").map(|reply| reply.seen.ip());
    assert_eq!(seen.unwrap_or_else(|e| panic!("{e:#}\n{}", pod.log())), WAN);
}
