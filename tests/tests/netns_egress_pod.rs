//! The pod of a `VpcEgressGateway`: the script of the image with the environment that Kube-OVN gives it, and
//! real packets against what its own pod does with them.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_tests::lab::addresses::{B, D, LAN, ROUTER, WAN, X, Y, v6};
use gateway_tests::lab::checks::{Checks, Observation};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::pod::{IMAGE, Pod, succeeded};
use gateway_tests::lab::probe;
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Host, Options};
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

struct Lab {
    pod: Pod,
    world: World,
}

impl Lab {
    fn build() -> Option<Self> {
        let binary = tier::gateway()?;
        let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
        let pod = Pod::new(&world.net, &binary).unwrap_or_else(|e| panic!("{e:#}"));
        Some(Self { pod, world })
    }

    /// The script as Kube-OVN runs it: both families, the second subnet without SNAT.
    fn script(&self) -> Command {
        let mut command = self.pod.command("bash");
        command.arg("-exc").arg(format!("bash {IMAGE}/init-vpc-egress-gateway.sh"));
        command
            .env("INTERNAL_GATEWAY_IPV4", ROUTER.to_string())
            .env("INTERNAL_GATEWAY_IPV6", v6(ROUTER).to_string())
            .env("EXTERNAL_GATEWAY_IPV4", X.to_string())
            .env("EXTERNAL_GATEWAY_IPV6", v6(X).to_string())
            .env("NO_SNAT_SOURCES_IPV4", "10.0.2.0/24,10.0.77.0/24")
            .env("NO_SNAT_SOURCES_IPV6", "fd00:10:2::/64")
            .env("ENABLE_BGP", "false")
            .env("VPC_GATEWAY_OPTIONS", "--no-tcx");
        command
    }

    fn start(&self) {
        let output = self.pod.run(&mut self.script()).expect("a script");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}\n{}", output.status, self.pod.diagnostics());
    }

    /// Who the echo server sees, over UDP and over TCP.
    fn seen(&self, from: &Host, to: SocketAddr, wanted: IpAddr) -> Result<Observation> {
        let udp = probe::udp(&from.ns, 0, to, b"who am I")?.seen;
        let tcp = probe::tcp(&from.ns, 0, to)?.seen;
        for seen in [udp, tcp] {
            ensure!(seen.ip() == wanted, "{} is seen as {seen}, not {wanted}", from.label);
        }
        Ok(Observation::new(format_args!("{} to {to}", from.label), wanted))
    }

    /// Section 4.4 of what Kube-OVN's pod does, with the differences that docs/egress.md names.
    fn table(&self, checks: &mut Checks, when: &str) {
        let net = &self.world.net;
        for ipv6 in [false, true] {
            let of = |v4: std::net::Ipv4Addr| if ipv6 { IpAddr::from(v6(v4)) } else { v4.into() };
            let echo = |v4| SocketAddr::new(of(v4), ECHO_PORT);
            let title = |what: &str| format!("{when}: {what} (IPv{})", if ipv6 { 6 } else { 4 });
            checks.check(&title("a source with SNAT"), || self.seen(&net.b, echo(Y), of(WAN)));
            checks.check(&title("another source"), || self.seen(&net.c, echo(Y), of(WAN)));
            checks.check(&title("a source without SNAT"), || self.seen(&net.d, echo(Y), of(D)));
            checks.check(&title("from outside to a source without SNAT"), || {
                self.seen(&net.y, echo(D), of(Y))
            });
            checks.check(&title("from outside to a source with SNAT is dropped"), || {
                let refusal = probe::udp_refused(&net.y.ns, echo(B))?;
                probe::tcp_refused(&net.y.ns, echo(B))?;
                Ok(Observation::new(format_args!("Y to {}", of(B)), format_args!("{refusal:?}")))
            });
            checks.check(&title("ping of the pod from outside"), || {
                let who = probe::icmp_echo(&net.y.ns, of(WAN), 7, 56)?;
                ensure!(who == of(WAN), "{who} answers");
                Ok(Observation::new(format_args!("ping {}", of(WAN)), who))
            });
            checks.check(&title("ping of the pod from inside"), || {
                let who = probe::icmp_echo(&net.d.ns, of(LAN), 8, 56)?;
                ensure!(who == of(LAN), "{who} answers");
                Ok(Observation::new(format_args!("ping {}", of(LAN)), who))
            });
            checks.check(&title("the pod itself is not translated"), || {
                let here = &net.gateway;
                let exchange = probe::udp(here, 49_160, echo(Y), b"BFD")?;
                let wanted = SocketAddr::new(of(WAN), 49_160);
                ensure!(exchange.seen == wanted, "seen as {}", exchange.seen);
                let inside = probe::udp(here, 49_161, echo(D), b"BFD")?;
                ensure!(inside.seen == SocketAddr::new(of(LAN), 49_161), "seen as {}", inside.seen);
                Ok(Observation::new("UDP of the pod", wanted))
            });
        }
    }
}

#[test]
fn the_environment_of_the_init_container_makes_a_gateway() {
    let Some(lab) = Lab::build() else { return };
    lab.start();
    let mut checks = Checks::default();
    lab.table(&mut checks, "started");
    // The init container ends, and its processes with it; a restart of it finds what is there.
    lab.pod.kill_daemon().unwrap_or_else(|e| panic!("{e:#}"));
    lab.table(&mut checks, "without the daemon");
    lab.start();
    lab.table(&mut checks, "started again");
    checks.conclude(|| lab.pod.diagnostics());
}

#[test]
fn the_script_stays_where_it_is_asked_to() {
    let Some(lab) = Lab::build() else { return };
    let mut script = lab.script();
    script.env("VPC_GATEWAY_STAY", "true");
    let log = lab.world.net.scratch.join("stay.log");
    let process = lab
        .world
        .net
        .gateway
        .enter(|| gateway_tests::lab::process::Process::start(&mut script, &log));
    let mut process = process.expect("a namespace").unwrap_or_else(|e| panic!("{e:#}"));
    let ready = wait_until("a gateway", Duration::from_secs(20), || {
        let status = lab.pod.json("status")?;
        ensure!(status["ready"] == true, "{status}");
        Ok(Some(()))
    });
    ready.unwrap_or_else(|e| panic!("{e:#}\n{}", process.log()));
    let to = SocketAddr::new(Y.into(), ECHO_PORT);
    lab.seen(&lab.world.net.b, to, WAN.into()).unwrap_or_else(|e| panic!("{e:#}"));
    assert!(process.exited().is_none(), "{}", process.log());
}

#[test]
fn a_pod_that_cannot_be_a_gateway_says_why() {
    let Some(lab) = Lab::build() else { return };
    for (variable, value, wanted) in [
        ("ENABLE_EVPN", "true", "EVPN is not supported"),
        ("NO_SNAT_SOURCES_IPV4", "10.0.2.0/33", "10.0.2.0/33"),
        ("INTERNAL_GATEWAY_IPV4", "nonsense", "no route leads to nonsense"),
    ] {
        let output = lab.pod.run(lab.script().env(variable, value)).expect("a script");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let found = said.contains(wanted) || lab.pod.diagnostics().contains(wanted);
        assert!(found, "{variable}={value}: {}: {said}\n{}", output.status, lab.pod.diagnostics());
        lab.pod.recreate();
    }
    // FRR routes instead: nothing of ours is there.
    let mut bgp = lab.script();
    let output = lab.pod.run(bgp.env("ENABLE_BGP", "true")).expect("a script");
    let code = output.status.code();
    assert_eq!(code, Some(0), "{}", succeeded(&output).unwrap_or_default());
    assert!(lab.pod.daemon().is_none());
    let plain = SocketAddr::new(Y.into(), ECHO_PORT);
    lab.seen(&lab.world.net.b, plain, B.into()).unwrap_or_else(|e| panic!("{e:#}"));
}
