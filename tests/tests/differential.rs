//! The programs in the kernel against the host code, packet by packet, on random traffic.
//!
//! | variable | default | |
//! |---|---|---|
//! | `DIFFERENTIAL_PACKETS` | 50000 | how many packets |
//! | `DIFFERENTIAL_SEED` | 1 | which packets; a failure prints it |

use std::time::Instant;

use gateway_common::nexthop::{HashFields, MemberState};
use gateway_common::records::{Config, Timeouts, Unmatched};
use gateway_common::tuple::Direction;
use gateway_common::verdict::{SESSIONS_CLOSED, SESSIONS_OPENED};
use gateway_tests::build_packet::{UDP, end};
use gateway_tests::cases::Routers;
use gateway_tests::decode::decode_whole;
use gateway_tests::harness::pair::Pair;
use gateway_tests::harness::routes::{Target, embed_prefix, prefix};
use gateway_tests::harness::traffic::{Dice, Traffic, rules};
use gateway_tests::harness::{Backend, NatRule, Outcome};
use gateway_tests::kernel::{self, Options};

/// After how many packets all sessions are compared and something is changed.
const ROUND: u64 = 1000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// Two gateways with the same rules, which no session outlives by itself.
fn set_up(pair: &mut Pair<'_>) {
    pair.both(|backend| {
        for rule in rules() {
            backend.add(&rule);
        }
        let never = u32::MAX / 2 - 1;
        let mut config = backend.config();
        config.mappings = 1;
        config.timeouts = Timeouts {
            tcp_opening: never,
            tcp_established: never,
            tcp_closing: never,
            udp_new: never,
            udp_stream: never,
            icmp: never,
            other: never,
        };
        backend.configure(config);
    });
}

/// Changes the configuration, and now and then a route or a rule.
fn disturb(pair: &mut Pair<'_>, traffic: &mut Traffic) -> Result<(), String> {
    let dice = traffic.dice();
    let policy = dice.pick(&[Unmatched::Drop, Unmatched::Forward, Unmatched::Kernel]);
    let ports = dice.pick(&[(1024, u16::MAX), (20_000, 20_003), (30_000, 30_000), (5000, 6000)]);
    let generation = u32::from(!dice.chance(3));
    let mtu = dice.pick(&[1500, 1500, 9000]);
    pair.both(|backend| {
        let mut config = backend.config();
        config.unmatched = policy as u8;
        (config.port_low, config.port_high) = ports;
        config.generation = generation;
        config.routing = config.routing.wrapping_add(1);
        config.internal_mtu = mtu.min(1500);
        backend.configure(config);
    });
    if dice.chance(50) {
        spread(pair, dice);
    }
    if dice.chance(30) {
        let links = pair.host.links();
        let outside = Some(["203.0.113.1", "203.0.113.99"][dice.below(2)]);
        let (network, ifindex, via) = dice.pick(&[
            ("198.51.100.0/24", Some(links.external), outside),
            ("198.51.100.8/32", None, None),
            ("198.51.100.8/32", Some(links.third), None),
            // The way to a host inside is lost, and found again.
            ("10.0.1.20/32", Some(links.external), outside),
            ("10.0.1.20/32", Some(links.internal), None),
        ]);
        pair.both(|backend| change_route(backend, network, ifindex, via));
    }
    if dice.chance(30) {
        let all = rules();
        let rule = all[dice.below(all.len())].clone();
        pair.both(|backend| backend.remove(&rule));
        let [kernel, host] = [pair.kernel.sweep(), pair.host.sweep()];
        if kernel != host {
            return Err(format!("sweep: {kernel} sessions in the kernel, {host} on the host"));
        }
        pair.compare_sessions()?;
        pair.both(|backend| backend.add(&rule));
    }
    Ok(())
}

/// Makes other next-hop groups, or none.
fn spread(pair: &mut Pair<'_>, dice: &mut Dice) {
    use MemberState::{Alive, Dead, Draining, Represented};
    for (side, routers) in [
        (Direction::Inbound, ["203.0.113.1", "203.0.113.99"]),
        (Direction::Outbound, ["10.0.1.1", "10.0.1.3"]),
    ] {
        let states =
            [(); 2].map(|()| dice.pick(&[Alive, Alive, Alive, Dead, Draining, Represented]));
        let members = [(routers[0], states[0]), (routers[1], states[1])];
        let slots = dice.pick(&[[1, 2], [1, 2], [1, 1], [2, 2], [0, 0]]);
        let hash = dice.pick(&[HashFields::FiveTuple, HashFields::Source]);
        let group = Routers { members: &members, slots: &slots, moves: dice.chance(50), hash };
        let v4 = routers.map(|router| end(router).ip());
        let v6 = v4.map(|router| embed_prefix((router, 32)).0);
        pair.both(|backend| {
            backend.v4().set_next_hops(side as u32, Some(group.group(&v4)));
            backend.v6().set_next_hops(side as u32, Some(group.group(&v6)));
        });
    }
    let there = u8::from(dice.chance(80));
    pair.both(|backend| {
        let config = backend.config();
        backend.configure(Config { next_hops: there, ..config });
    });
}

/// Changes a route in both families: by a neighbour, on link, or by a blackhole.
fn change_route(backend: &mut dyn Backend, network: &str, ifindex: Option<u32>, via: Option<&str>) {
    let network = prefix(network);
    let via = via.map(|gateway| end(gateway).ip());
    let embedded = via.map(|gateway| embed_prefix((gateway, 32)).0);
    for (network, via) in [(network, via), (embed_prefix(network), embedded)] {
        let target = ifindex.map_or(Target::Refused, |ifindex| Target::Forward { ifindex, via });
        backend.set_route(network, target);
    }
}

/// How many packets met which end.
#[derive(Debug, Default)]
struct Tally {
    forwarded: u64,
    passed: u64,
    dropped: u64,
    sessions: usize,
}

fn run(pair: &mut Pair<'_>, seed: u64, packets: u64) -> Result<Tally, String> {
    let mut traffic = Traffic::new(seed);
    let mut tally = Tally::default();
    let numbered = |count: u64, why: String| format!("seed {seed}, packet {count}: {why}");
    for count in 0..packets {
        if count % ROUND == ROUND - 1 {
            let entries = pair.compare_sessions().map_err(|why| numbered(count, why))?;
            tally.sessions = tally.sessions.max(entries);
            disturb(pair, &mut traffic).map_err(|why| numbered(count, why))?;
        }
        let (direction, mut frame) = traffic.next_frame();
        if traffic.dice().chance(60)
            && let Some(sender) = frame.get_mut(6..12)
        {
            sender.copy_from_slice(&Routers::mac(traffic.dice().pick(&[1, 2])));
        }
        pair.kernel.checksum_complete = traffic.dice().chance(50) && sum_is_kept(&frame);
        let (outcome, after) = pair.send(direction, &frame).map_err(|why| numbered(count, why))?;
        match outcome {
            Outcome::Forward => {
                tally.forwarded += 1;
                traffic.learn(direction, &after);
            }
            Outcome::Pass(_) => tally.passed += 1,
            Outcome::Drop(_) => tally.dropped += 1,
        }
    }
    pair.compare_sessions().map_err(|why| numbered(packets, why))?;
    counters_agree(pair).map_err(|why| numbered(packets, why))?;
    Ok(tally)
}

/// Whether the sum of a packet's bytes is kept right. The kernel's helpers do not follow the ports
/// of a datagram without checksum, and nobody ever looks at the sum of one.
fn sum_is_kept(frame: &[u8]) -> bool {
    decode_whole(frame).is_ok_and(|packet| packet.protocol != UDP || packet.checksum != Some(0))
}

fn counters_agree(pair: &mut Pair<'_>) -> Result<(), String> {
    for event in [SESSIONS_OPENED, SESSIONS_CLOSED] {
        let [kernel, host] = [pair.kernel.event(event), pair.host.event(event)];
        if kernel != host {
            return Err(format!("event {event}: kernel {kernel}, host {host}"));
        }
    }
    for id in rules().iter().flat_map(NatRule::ids) {
        let [kernel, host] = [pair.kernel.rule_counter(id), pair.host.rule_counter(id)];
        if kernel != host {
            return Err(format!("rule {id}: kernel {kernel:?}, host {host:?}"));
        }
    }
    Ok(())
}

#[test]
fn kernel_and_host_agree_on_random_traffic() {
    agree_on_random_traffic(Options::tc(1 << 18));
}

#[test]
fn kernel_with_xdp_in_front_and_host_agree_on_random_traffic() {
    agree_on_random_traffic(Options::xdp(1 << 18));
}

fn agree_on_random_traffic(options: Options) {
    let packets = number("DIFFERENTIAL_PACKETS", 50_000);
    let seed = number("DIFFERENTIAL_SEED", 1);
    let capacity = options.capacity;
    kernel::run(options, |tc| {
        let started = Instant::now();
        let mut pair = Pair::new(tc, capacity);
        set_up(&mut pair);
        let tally = run(&mut pair, seed, packets).unwrap_or_else(|why| panic!("{why}"));
        println!("{packets} packets in {:.1?}: {tally:?}", started.elapsed());
        // Traffic that is nearly all dropped would show nothing.
        assert!(tally.forwarded > packets / 4 && tally.sessions > 100, "{tally:?}");
        if options.xdp {
            let share = pair.kernel.accelerated();
            println!("{share:?}");
            // Half of the traffic has a checksum by hardware, and most neighbours are unknown.
            assert!(share.finished > packets / 20, "{share:?}");
        }
    });
}

#[test]
fn kernel_and_host_agree_when_sessions_run_out() {
    agree_when_sessions_run_out(Options::tc);
}

#[test]
fn kernel_with_xdp_in_front_and_host_agree_when_sessions_run_out() {
    agree_when_sessions_run_out(Options::xdp);
}

fn agree_when_sessions_run_out(options: impl Fn(u32) -> Options) {
    let seed = number("DIFFERENTIAL_SEED", 1);
    // Of larger maps the kernel only estimates the fill.
    let capacity = 101;
    kernel::run(options(capacity), |tc| {
        let mut pair = Pair::new(tc, capacity);
        set_up(&mut pair);
        let tally = run(&mut pair, seed, 5000).unwrap_or_else(|why| panic!("{why}"));
        assert!(tally.sessions >= 100, "{tally:?}");
    });
}

/// Something that is done to the gateway in the kernel and not to the one on the host.
type Change = fn(&mut dyn Backend);

fn other_backend_ports(kernel: &mut dyn Backend) {
    for rule in rules() {
        if let NatRule::Dnat { external, protocol, mut inside, id } = rule {
            inside.set_port(inside.port() + 1);
            kernel.add(&NatRule::Dnat { external, protocol, inside, id });
        }
    }
}

fn other_rule_ids(kernel: &mut dyn Backend) {
    for rule in rules() {
        if let NatRule::Snat { prefix, mut pool } = rule {
            pool[0].1 += 50;
            kernel.add(&NatRule::Snat { prefix, pool });
        }
    }
}

fn another_policy(kernel: &mut dyn Backend) {
    let config = kernel.config();
    kernel.configure(Config { unmatched: Unmatched::Kernel as u8, ..config });
}

#[test]
fn a_difference_in_the_maps_would_be_seen() {
    const CHANGES: [(Change, &str); 3] =
        [(other_backend_ports, "bytes"), (other_rule_ids, "session"), (another_policy, "verdict")];
    let capacity = 1 << 14;
    kernel::run(Options::tc(capacity), |tc| {
        for (change, what) in CHANGES {
            let mut pair = Pair::new(tc, capacity);
            set_up(&mut pair);
            change(&mut *pair.kernel);
            let why = run(&mut pair, 1, ROUND - 1).expect_err(what);
            assert!(why.contains(what), "expected a difference of the {what}: {why}");
        }
    });
}
