//! `vpc-gateway bfdd` against FRR's bfdd and against itself, over veth.

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gateway_tests::lab::frr::{Frr, Peer};
use gateway_tests::lab::netns::{self, Netns};
use gateway_tests::lab::process::Process;
use gateway_tests::lab::scratch::Scratch;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::{cleanup, tier};
use nix::sys::signal::Signal;
use serde_json::Value;

const OURS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const THEIRS: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const PATIENCE: Duration = Duration::from_secs(15);

/// Two namespaces and a veth pair; ours is `vg0`, theirs `vg1`.
struct Pair {
    ours: Netns,
    theirs: Netns,
    scratch: Scratch,
}

impl Pair {
    fn build() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        cleanup::on_signals()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vgbfd-{}-{count}", std::process::id());
        let scratch = Scratch::create(&name)?;
        let ours = Netns::create(&format!("{name}-ours"))?;
        let theirs = Netns::create(&format!("{name}-theirs"))?;
        ours.ip(&format!("link add vg0 type veth peer name vg1 netns {}", theirs.name()))?;
        for (ns, link, addresses) in [(&ours, "vg0", OURS), (&theirs, "vg1", THEIRS)] {
            ns.ip(&format!("address add {}/24 dev {link}", addresses[0]))?;
            ns.ip(&format!("address add {}/64 dev {link} nodad", addresses[1]))?;
            ns.ip(&format!("link set {link} up"))?;
        }
        Ok(Self { ours, theirs, scratch })
    }

    /// Starts our daemon at one of the ends.
    fn daemon(&self, ns: &Netns, name: &str, arguments: &str) -> Result<Daemon> {
        let mut command = Command::new(tier::binary()?);
        let state = self.scratch.join("state");
        command.args(["bfdd", "--gateway", name, "--state-dir"]).arg(&state).arg("--netns");
        command.arg(ns.path()).args(arguments.split(' '));
        let process = Process::start(&mut command, &self.scratch.join(&format!("{name}.log")))?;
        Ok(Daemon { process, state, name: name.to_owned() })
    }
}

struct Daemon {
    process: Process,
    state: std::path::PathBuf,
    name: String,
}

impl Daemon {
    fn sessions(&self) -> Result<Vec<Value>> {
        let mut command = Command::new(tier::binary()?);
        command.args(["bfd", "--json", "--gateway", &self.name, "--state-dir"]).arg(&self.state);
        // Exit code 1 says that a session is down: the answer is there all the same.
        let output = command.output()?;
        let all: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(all["sessions"].as_array().cloned().unwrap_or_default())
    }

    fn session(&self, remote: &str) -> Result<Value> {
        let all = self.sessions()?;
        let found = all.into_iter().find(|session| session["remote"] == remote);
        found.with_context(|| format!("no session with {remote}"))
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        let all = || Ok(self.sessions()?.iter().all(&holds).then_some(()));
        wait_until(what, PATIENCE, all).with_context(|| self.process.log())
    }

    fn wait_up(&self) -> Result<()> {
        self.wait_for("all sessions to be up", |session| {
            session["state"] == "up" && session["remote_state"] == "up"
        })
    }

    /// How long after `since` the log says what it says, at a resolution of 2 ms.
    fn wait_for_lines(&self, count: usize, line: &str, since: Instant) -> Result<Duration> {
        wait_until(line, PATIENCE, || {
            let seen = self.process.log().lines().filter(|one| one.ends_with(line)).count();
            Ok((seen >= count).then(|| since.elapsed()))
        })
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn frr_peers(interval: u32) -> [Peer; 2] {
    [0, 1].map(|family| Peer {
        local: address(THEIRS[family]),
        remote: address(OURS[family]),
        interval,
    })
}

const ALL: &str = "--local 192.0.2.1,2001:db8::1 --peer 192.0.2.2,2001:db8::2 --min-ttl 255";

/// Whether FRR sees its session as this, eventually.
fn frr_says(frr: &Frr<'_>, remote: &str, status: &str, diagnostic: &str) -> Result<()> {
    wait_until(&format!("FRR to say {status}, {diagnostic}"), PATIENCE, || {
        let peer = frr.peer(address(remote))?;
        Ok((peer["status"] == status && peer["diagnostic"] == diagnostic).then_some(()))
    })
}

#[test]
fn frr_and_we_agree_on_timers_and_notice_each_others_death() {
    if !tier::namespaces() || tier::gateway().is_none() || !tier::frr() {
        return;
    }
    let run = || -> Result<()> {
        let pair = Pair::build()?;
        let mut frr = Frr::start(&pair.theirs, &pair.scratch, "vg1", &frr_peers(200))?;
        let mut ours =
            pair.daemon(&pair.ours, "gw", &format!("{ALL} --min-tx 100 --min-rx 300"))?;
        ours.wait_up()?;
        for (ours_at, theirs) in OURS.iter().zip(THEIRS) {
            // We send at max(our 100, their 200), they at max(their 200, our 300).
            wait_until("the timers", PATIENCE, || {
                let session = ours.session(theirs)?;
                Ok((session["transmit_interval_ms"] == 200 && session["detection_time_ms"] == 900)
                    .then_some(()))
            })?;
            let peer = frr.peer(address(ours_at))?;
            assert_eq!(peer["remote-transmit-interval"], 100, "{peer}");
            assert_eq!(peer["remote-receive-interval"], 300, "{peer}");
        }

        let killed = Instant::now();
        frr.kill()?;
        let took = ours.wait_for_lines(2, "Up -> Down (control detection time expired)", killed)?;
        println!("FRR killed: noticed after {took:?}, detection time 900 ms");
        assert!(took < Duration::from_millis(1400), "{took:?}");
        frr.restart()?;
        ours.wait_up()?;

        ours.process.signal(Signal::SIGKILL)?;
        ours.process.wait(PATIENCE)?;
        for remote in OURS {
            frr_says(&frr, remote, "down", "control detection time expired")?;
        }
        Ok(())
    };
    run().expect("BFD with FRR");
}

#[test]
fn being_administratively_down_is_told_at_once() {
    if !tier::namespaces() || tier::gateway().is_none() || !tier::frr() {
        return;
    }
    let run = || -> Result<()> {
        let pair = Pair::build()?;
        let frr = Frr::start(&pair.theirs, &pair.scratch, "vg1", &frr_peers(1000))?;
        let ours = pair.daemon(&pair.ours, "gw", &format!("{ALL} --active"))?;
        ours.wait_up()?;
        let peer = "peer 192.0.2.1 local-address 192.0.2.2 interface vg1";
        let asked = Instant::now();
        frr.configure(&["bfd", peer, "shutdown"])?;
        let took = ours.wait_for_lines(1, "Up -> Down (neighbor signaled session down)", asked)?;
        println!("FRR shut down: known after {took:?}, detection time 3 s");
        assert!(took < Duration::from_secs(2), "{took:?}");
        frr.configure(&["bfd", peer, "no shutdown"])?;
        ours.wait_up()?;

        ours.process.signal(Signal::SIGTERM)?;
        for remote in OURS {
            frr_says(&frr, remote, "down", "neighbor signaled session down")?;
            let peer = frr.peer(address(remote))?;
            assert_eq!(peer["remote-diagnostic"], "administratively down", "{peer}");
        }
        Ok(())
    };
    run().expect("administrative down");
}

/// Keeps every processor busy until it is dropped.
struct Load(std::sync::Arc<AtomicBool>);

impl Load {
    fn start() -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..2 * processors {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn sessions_hold_while_every_processor_is_busy() {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let run = || -> Result<()> {
        let pair = Pair::build()?;
        let fast = "--min-tx 50 --min-rx 50 --min-ttl 255";
        let one = format!("--local 192.0.2.1,2001:db8::1 --peer 192.0.2.2,2001:db8::2 {fast}");
        let other = format!("--local 192.0.2.2,2001:db8::2 --peer 192.0.2.1,2001:db8::1 {fast}");
        let ours = pair.daemon(&pair.ours, "ours", &one)?;
        let theirs = pair.daemon(&pair.theirs, "theirs", &format!("{other} --active"))?;
        ours.wait_up()?;
        let load = Load::start();
        std::thread::sleep(Duration::from_secs(5));
        drop(load);
        for daemon in [&ours, &theirs] {
            for session in daemon.sessions()? {
                assert_eq!((&session["flaps"], &session["state"]), (&0.into(), &"up".into()));
                let received = session["received"].as_u64().unwrap_or(0);
                assert!(received >= 80, "100 packets were due: {session}");
            }
        }
        Ok(())
    };
    run().expect("sessions under load");
}

#[test]
fn packets_from_beyond_the_allowed_hops_are_discarded() {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let run = || -> Result<()> {
        let pair = Pair::build()?;
        // Theirs has another address behind a router: what it sends from there has lost one hop.
        let far = Netns::create(&format!("{}-far", pair.theirs.name()))?;
        far.ip(&format!("link add vg2 type veth peer name vg3 netns {}", pair.theirs.name()))?;
        far.ip("address add 198.51.100.2/24 dev vg2")?;
        far.ip("link set vg2 up")?;
        far.ip("route add default via 198.51.100.1")?;
        pair.theirs.ip("address add 198.51.100.1/24 dev vg3")?;
        pair.theirs.ip("link set vg3 up")?;
        pair.theirs.sysctl("ipv4/ip_forward", "1")?;
        pair.ours.ip("route add 198.51.100.0/24 via 192.0.2.2")?;
        let near = "--local 192.0.2.1 --peer 198.51.100.2";
        let strict = pair.daemon(&pair.ours, "gw", &format!("{near} --min-ttl 255"))?;
        let from_far = "--local 198.51.100.2 --peer 192.0.2.1 --active";
        let _far = pair.daemon(&far, "far", from_far)?;
        strict.wait_for("discarded packets", |session| {
            session["discarded"].as_u64() > Some(2) && session["received"] == 0
        })?;
        drop(strict);
        let one_hop = pair.daemon(&pair.ours, "gw", &format!("{near} --min-ttl 254"))?;
        one_hop.wait_up()
    };
    run().expect("one routed hop");
}

#[test]
fn options_that_cannot_work_are_named() {
    let Ok(binary) = tier::binary() else { return };
    for (arguments, message) in [
        ("--local 192.0.2.1 --peer 2001:db8::2", "no IPv6 address in --local"),
        ("--local 192.0.2.1 --peer 192.0.2.2 --multiplier 0", "--multiplier"),
        ("--local 192.0.2.1 --peer 192.0.2.2 --multiplier 256", "--multiplier"),
        ("--local 192.0.2.1 --peer 192.0.2.2 --min-tx 0", "--min-tx"),
        ("--local 192.0.2.1 --peer 192.0.2.2 --min-rx 3600001", "--min-rx"),
        ("--local 192.0.2 --peer 192.0.2.2", "--local"),
    ] {
        let mut command = Command::new(&binary);
        let error = netns::run(command.arg("bfdd").args(arguments.split(' ')));
        let error = format!("{:#}", error.expect_err("an error"));
        assert!(error.contains(message), "{arguments}: {error}");
    }
}
