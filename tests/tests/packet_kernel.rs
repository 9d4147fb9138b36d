//! Packets that meet in the programs on two CPUs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use gateway_common::records::{Config, FILTER_INDEPENDENT, MAP_INDEPENDENT, Timeouts};
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, SESSIONS_OPENED};
use gateway_tests::build_packet::{ACK, Draft, TCP, tcp, udp};
use gateway_tests::decode::decode;
use gateway_tests::harness::routes::{embed_prefix, ingress_mac, prefix};
use gateway_tests::harness::{Backend as _, NatRule, Outcome, accounts};
use gateway_tests::kernel::{self, FORWARDED, Options, Tc, Worker};
use gateway_userspace::clock;

/// Two threads at a time are as many as have a CPU each.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const CAPACITY: u32 = 1 << 16;
const REMOTE: &str = "198.51.100.7:443";

/// Adds a pool of one EIP for the whole VPC, with a range of this many ports.
fn one_eip(tc: &mut Tc, ports: u16) {
    let eip = prefix("203.0.113.10").0;
    let network = prefix("10.0.0.0/8");
    tc.add(&NatRule::Snat { prefix: network, pool: vec![(eip, 1)] });
    let (network, eip) = (embed_prefix(network), embed_prefix((eip, 32)).0);
    tc.add(&NatRule::Snat { prefix: network, pool: vec![(eip, 2)] });
    let config = tc.config();
    let (port_low, port_high) = (20_000, 20_000 + ports - 1);
    tc.configure(Config { port_low, port_high, ..config });
}

/// Sends two lists of packets from two threads, the n-th of both at once. Returns what became of
/// them, in order.
fn on_two_cpus(tc: &Tc, packets: [Vec<Vec<u8>>; 2]) -> [Vec<(u32, Vec<u8>)>; 2] {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let arrived = AtomicUsize::new(0);
    let workers = [Worker::of(tc), Worker::of(tc)].map(|worker| worker.expect("a worker"));
    std::thread::scope(|scope| {
        let threads = workers.iter().zip(packets).map(|(worker, packets)| {
            let arrived = &arrived;
            scope.spawn(move || {
                worker.enter().expect("the namespace");
                let send = |(index, packet): (usize, Vec<u8>)| {
                    // A barrier that sleeps would wake both threads too far apart.
                    arrived.fetch_add(1, Ordering::SeqCst);
                    while arrived.load(Ordering::SeqCst) < 2 * (index + 1) {
                        std::hint::spin_loop();
                    }
                    // Whoever panicked here would leave the other waiting.
                    worker.send(Direction::Outbound, &packet).unwrap_or_default()
                };
                packets.into_iter().enumerate().map(send).collect::<Vec<_>>()
            })
        });
        let threads: Vec<_> = threads.collect();
        let mut results = threads.into_iter().map(|thread| thread.join().expect("a worker"));
        [results.next().expect("one"), results.next().expect("two")]
    })
}

fn frames(drafts: impl Iterator<Item = Draft>) -> Vec<Vec<u8>> {
    drafts.map(|draft| draft.frame(ingress_mac(Direction::Outbound))).collect()
}

/// How often two CPUs meet, unless `RACE_TRIES` says otherwise: a few seconds.
const TRIES: usize = 200_000;

#[test]
fn two_cpus_never_give_out_the_same_port() {
    const FLOWS: u16 = 4000;
    let tries = std::env::var("RACE_TRIES").map_or(TRIES, |text| text.parse().expect("a number"));
    let rounds = tries.div_ceil(2 * usize::from(FLOWS));
    kernel::run(Options::tc(CAPACITY), |tc| {
        let started = std::time::Instant::now();
        // Two hosts with the same source ports, one remote, as many ports as flows.
        let host = |host: &'static str| {
            frames((0..FLOWS).map(move |flow| udp(&format!("{host}:{}", 10_000 + flow), REMOTE)))
        };
        let packets = [host("10.0.1.10"), host("10.0.1.20")];
        for round in 0..rounds {
            tc.clear();
            one_eip(tc, 2 * FLOWS);
            let results = on_two_cpus(tc, packets.clone());
            let mut external = BTreeSet::new();
            for (code, frame) in results.iter().flatten() {
                assert_eq!(*code, FORWARDED, "round {round}");
                external.insert(decode(frame).expect("a packet").from());
            }
            let flows = 2 * usize::from(FLOWS);
            assert_eq!(external.len(), flows, "every flow has a port of its own, round {round}");
            assert_eq!(tc.sessions().len(), 2 * flows, "round {round}");
            assert_eq!(tc.event(SESSIONS_OPENED), flows as u64, "round {round}");
            accounts::check(tc).unwrap_or_else(|why| panic!("round {round}: {why}"));
        }
        let flows = rounds * 2 * usize::from(FLOWS);
        println!("{flows} flows opened by two CPUs in {:.1?}, no port twice", started.elapsed());
    });
}

#[test]
fn two_cpus_never_give_out_the_same_identification() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        const PACKETS: u16 = 10_000;
        one_eip(tc, 100);
        // Two hosts with one EIP, one remote and the same identifications.
        let host = |host: &'static str| {
            let source = format!("{host}:4000");
            frames((0..PACKETS).map(move |id| udp(&source, REMOTE).with_identification(id)))
        };
        let results = on_two_cpus(tc, [host("10.0.1.10"), host("10.0.1.20")]);
        let mut identifications = BTreeSet::new();
        for (code, frame) in results.iter().flatten() {
            assert_eq!(*code, FORWARDED);
            identifications.insert(decode(frame).expect("a packet").fragment.0);
        }
        assert_eq!(identifications.len(), 2 * usize::from(PACKETS));
    });
}

#[test]
fn two_cpus_that_open_the_same_flow_open_one_session() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        const FLOWS: u16 = 4000;
        one_eip(tc, 40_000);
        for ipv6 in [false, true] {
            let flow = |flow: u16| {
                // Atomic: each copy of any other datagram gets an identification of its own.
                let draft = udp(&format!("10.0.1.10:{}", 10_000 + flow), REMOTE);
                let draft = Draft { dont_fragment: true, ..draft };
                if ipv6 { draft.over_ipv6() } else { draft }
            };
            let packets = || frames((0..FLOWS).map(flow));
            let [one, two] = on_two_cpus(tc, [packets(), packets()]);
            for (index, pair) in one.iter().zip(&two).enumerate() {
                assert_eq!((pair.0.0, pair.1.0), (FORWARDED, FORWARDED), "flow {index}");
                assert_eq!(pair.0.1, pair.1.1, "flow {index}: both CPUs translate alike");
            }
        }
        assert_eq!(tc.sessions().len(), 4 * usize::from(FLOWS));
        assert_eq!(tc.event(SESSIONS_OPENED), 2 * u64::from(FLOWS));
    });
}

#[test]
fn two_cpus_that_open_the_same_port_forward_open_one_session() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        const FLOWS: u16 = 4000;
        tc.add(&NatRule::Fip {
            eip: prefix("203.0.113.14").0,
            inside: prefix("10.0.1.5").0,
            id: 1,
        });
        tc.add(&NatRule::Dnat {
            external: "203.0.113.11:80".parse().expect("an endpoint"),
            protocol: TCP,
            inside: "10.0.1.10:8080".parse().expect("an endpoint"),
            id: 2,
        });
        // From a floating IP to a port forward: the tuple must be kept, so both want the same.
        let packets =
            || {
                frames((0..FLOWS).map(|flow| {
                    tcp(&format!("10.0.1.5:{}", 10_000 + flow), "203.0.113.11:80", ACK)
                }))
            };
        let results = on_two_cpus(tc, [packets(), packets()]);
        for (code, _) in results.iter().flatten() {
            assert_eq!(*code, FORWARDED);
        }
        assert_eq!(tc.sessions().len(), 2 * usize::from(FLOWS));
        assert_eq!(tc.event(SESSIONS_OPENED), u64::from(FLOWS));
        accounts::check(tc).unwrap_or_else(|why| panic!("{why}"));
    });
}

/// Adds a rule that maps endpoint-independently and lets everybody in, with a range of ports.
fn one_mapped_eip(tc: &mut Tc, ports: u16) {
    one_eip(tc, ports);
    for (rule, id) in [(1, 3), (2, 4)] {
        let eip = (prefix("203.0.113.10").0, prefix("10.0.1.0/24"));
        let eip = if rule == 1 { eip } else { (embed_prefix((eip.0, 32)).0, embed_prefix(eip.1)) };
        let options = MAP_INDEPENDENT | FILTER_INDEPENDENT;
        tc.add(&NatRule::Mapped { prefix: eip.1, pool: vec![(eip.0, id)], options });
    }
    let config = tc.config();
    tc.configure(Config { mappings: 1, ..config });
}

fn endpoints(results: &[(u32, Vec<u8>)]) -> Vec<std::net::SocketAddr> {
    let endpoint = |(code, frame): &(u32, Vec<u8>)| {
        assert_eq!(*code, FORWARDED);
        decode(frame).expect("a packet").from()
    };
    results.iter().map(endpoint).collect()
}

#[test]
fn two_cpus_give_one_inside_endpoint_one_mapping() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        const FLOWS: u16 = 3000;
        one_mapped_eip(tc, 40_000);
        for ipv6 in [false, true] {
            let to = |remote: &'static str| {
                frames((0..FLOWS).map(move |flow| {
                    let draft = udp(&format!("10.0.1.10:{}", 10_000 + flow), remote);
                    if ipv6 { draft.over_ipv6() } else { draft }
                }))
            };
            let [one, two] = on_two_cpus(tc, [to(REMOTE), to("198.51.100.8:53")]);
            let [one, two] = [endpoints(&one), endpoints(&two)];
            assert_eq!(one, two, "every inside endpoint has one external endpoint");
            let distinct: BTreeSet<_> = one.iter().collect();
            assert_eq!(distinct.len(), usize::from(FLOWS), "and no two have the same");
        }
        assert_eq!(tc.event(SESSIONS_OPENED), 4 * u64::from(FLOWS));
        accounts::check(tc).unwrap_or_else(|why| panic!("{why}"));
    });
}

// RFC 4787 REQ-3: nobody else has the port of a mapping, whoever is faster.
#[test]
fn two_cpus_never_overload_the_port_of_a_mapping() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        const FLOWS: u16 = 2000;
        // With a few to spare: of two who meet on the last port both may leave it.
        one_mapped_eip(tc, 2 * FLOWS + 100);
        // A mapping here, a port for each remote there; the same EIP and remote.
        let host = |host: &'static str| {
            frames((0..FLOWS).map(move |flow| udp(&format!("{host}:{}", 10_000 + flow), REMOTE)))
        };
        let [mapped, other] = on_two_cpus(tc, [host("10.0.1.10"), host("10.0.2.30")]);
        // A session that gives a mapped port back a moment later may cost the mapping's host a packet.
        let forwarded: Vec<_> =
            mapped.into_iter().chain(other).filter(|(code, _)| *code == FORWARDED).collect();
        let all: BTreeSet<_> = endpoints(&forwarded).into_iter().collect();
        assert_eq!(all.len(), forwarded.len(), "a port was given out twice");
        let lost = 2 * usize::from(FLOWS) - forwarded.len();
        assert!(lost <= usize::from(FLOWS) / 100, "{lost} packets dropped");
        accounts::check(tc).unwrap_or_else(|why| panic!("{why}"));
    });
}

#[test]
fn both_ends_that_open_one_flow_at_once_open_one_session() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        const FLOWS: u16 = 3000;
        one_mapped_eip(tc, 40_000);
        // Two hosts know each other's external endpoint, and both begin.
        let host = |host: &str| {
            frames((0..FLOWS).map(|flow| udp(&format!("{host}:{}", 10_000 + flow), REMOTE)))
        };
        let known = on_two_cpus(tc, [host("10.0.1.10"), host("10.0.1.20")]);
        let [b, c] = known.map(|results| endpoints(&results));
        let opened = tc.event(SESSIONS_OPENED);
        let to =
            |host: &str, others: &[std::net::SocketAddr]| {
                frames((0..FLOWS).zip(others).map(|(flow, other)| {
                    udp(&format!("{host}:{}", 10_000 + flow), &other.to_string())
                }))
            };
        let results = on_two_cpus(tc, [to("10.0.1.10", &c), to("10.0.1.20", &b)]);
        for (results, external) in results.iter().zip([&b, &c]) {
            assert_eq!(&endpoints(results), external, "the source is the external endpoint");
        }
        assert_eq!(tc.event(SESSIONS_OPENED) - opened, u64::from(FLOWS));
        accounts::check(tc).unwrap_or_else(|why| panic!("{why}"));
        tc.advance(1000);
        tc.sweep();
        assert_eq!(tc.sessions(), []);
        accounts::check(tc).unwrap_or_else(|why| panic!("{why}"));
    });
}

#[test]
fn sessions_that_end_while_others_open_are_all_counted_out() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        const FLOWS: u32 = 40_000;
        one_eip(tc, 40_000);
        let config = tc.config();
        // Whatever is older than the clock's last step is over: the host's record comes and goes.
        let timeouts = Timeouts { udp_new: 0, ..Timeouts::default() };
        tc.configure(Config { timeouts, ..config });
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let [opener, sweeper] = [Worker::of(tc), Worker::of(tc)].map(|it| it.expect("a worker"));
        let done = AtomicBool::new(false);
        let opened = std::thread::scope(|scope| {
            let sweeps = scope.spawn(|| {
                sweeper.enter().expect("the namespace");
                while !done.load(Ordering::SeqCst) {
                    sweeper.sweep().expect("a sweep");
                }
            });
            let opens = scope.spawn(|| {
                opener.enter().expect("the namespace");
                let open = |flow: u32| {
                    let remote = format!("198.51.{}.{}:443", 100 + flow / 20_000, 1 + flow % 200);
                    let draft = udp(&format!("10.0.1.10:{}", 10_000 + flow % 20_000), &remote);
                    let draft = if flow.is_multiple_of(2) { draft } else { draft.over_ipv6() };
                    let frame = draft.frame(ingress_mac(Direction::Outbound));
                    let (code, _) = opener.send(Direction::Outbound, &frame).expect("a test run");
                    u64::from(code == FORWARDED)
                };
                let opened = (0..FLOWS).map(open).sum::<u64>();
                done.store(true, Ordering::SeqCst);
                opened
            });
            sweeps.join().expect("the sweeper");
            opens.join().expect("the opener")
        });
        accounts::check(tc).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(opened, u64::from(FLOWS));
        tc.advance(1);
        tc.sweep();
        assert_eq!(tc.sessions(), []);
        assert_eq!(tc.hosts(), []);
        let eips = [prefix("203.0.113.10"), embed_prefix((prefix("203.0.113.10").0, 32))];
        let eips = eips.map(|(eip, _)| tc.eip(eip).expect("an EIP"));
        assert_eq!(eips.map(|eip| eip.sessions), [0, 0]);
        assert_eq!(eips.iter().map(|eip| eip.opened).sum::<u64>(), opened);
    });
}

#[test]
fn the_programs_and_the_daemon_read_the_same_clock() {
    kernel::run(Options::tc(CAPACITY), |tc| {
        one_eip(tc, 100);
        let before = clock::ticks();
        let mut frame = udp("10.0.1.10:40000", REMOTE).frame(ingress_mac(Direction::Outbound));
        tc.send(Direction::Outbound, &mut frame);
        let after = clock::ticks();
        let [one, _] = &tc.v4().sessions()[..] else { panic!("other sessions than one") };
        // The counter and the clock change one right after the other: a tick of at most 10 ms apart.
        let seen = one.1.last_seen;
        let (early, late) = (seen.wrapping_sub(before) as i32, after.wrapping_sub(seen) as i32);
        assert!(early >= -10 && late >= -10, "{before} <= {seen} <= {after}");
    });
}

/// The time in 2.1 s, after which routes are asked for again.
fn epoch() -> u32 {
    clock::ticks() >> 11
}

#[test]
fn a_route_is_remembered_until_the_next_epoch_and_no_longer_than_nothing_changes() {
    for options in [Options::tc(CAPACITY), Options::xdp(CAPACITY)] {
        kernel::run(options, |tc| {
            let mut cpu = nix::sched::CpuSet::new();
            cpu.set(0).expect("a CPU");
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpu).expect("CPU 0");
            let (eip, inside) = (prefix("203.0.113.14").0, prefix("10.0.1.5").0);
            tc.add(&NatRule::Fip { eip, inside, id: 1 });
            let send = |tc: &mut Tc| {
                let mut frame =
                    udp(REMOTE, "203.0.113.14:53").frame(ingress_mac(Direction::Inbound));
                tc.send(Direction::Inbound, &mut frame).outcome
            };
            let external = tc.links().external;
            let in_one_epoch = (0..5).any(|_| {
                let began = epoch();
                assert_eq!(send(tc), Outcome::Forward);
                assert_eq!(tc.bend_routes(external), 1, "routes that are remembered");
                let bent = send(tc);
                if epoch() != began {
                    return false;
                }
                assert_eq!(bent, Outcome::Drop(DropReason::NotInside), "the kernel was asked");
                true
            });
            assert!(in_one_epoch, "five times an epoch ended meanwhile");
            let config = tc.config();
            tc.configure(Config { routing: config.routing + 1, ..config });
            assert_eq!(send(tc), Outcome::Forward, "another routing");
            let ends = epoch();
            tc.bend_routes(external);
            while epoch() == ends {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            assert_eq!(send(tc), Outcome::Forward, "another epoch");
        });
    }
}
