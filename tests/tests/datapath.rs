//! Every packet case on the host, and in the kernel by `BPF_PROG_TEST_RUN`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use gateway_tests::cases::{CAPACITY, CASES, Case, Gateway};
use gateway_tests::decode::describe;
use gateway_tests::harness::Backend;
use gateway_tests::harness::host::Host;
use gateway_tests::harness::invariants::leak;
use gateway_tests::harness::routes::Links;
use gateway_tests::harness::traffic::{Traffic, rules};
use gateway_tests::kernel::{self, Options};

/// Runs a case; returns what there is to say if it fails.
fn fails(case: &Case, backend: &mut dyn Backend, ipv6: bool) -> Option<String> {
    let mut gateway = Gateway::new(backend, ipv6);
    let whole = || {
        (case.run)(&mut gateway);
        gateway.settle();
    };
    catch_unwind(AssertUnwindSafe(whole)).err()?;
    Some(format!("{}, after\n{}\n", case.name, gateway.log()))
}

/// Runs all cases of a family and size on a backend that `open` gives out.
fn run<'b>(
    ipv6: bool,
    cases: impl Iterator<Item = &'static Case>,
    backend: &mut (dyn Backend + 'b),
) -> usize {
    let started = Instant::now();
    let holds = |case: &&Case| if ipv6 { case.ipv6 } else { case.ipv4 };
    let mut count = 0;
    let mut failed = Vec::new();
    for case in cases.filter(holds) {
        count += 1;
        failed.extend(fails(case, backend, ipv6));
    }
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let name = backend.name();
    println!("{count} cases over {family} on {name} in {:.1?}", started.elapsed());
    let failures = failed.join("\n");
    assert!(failed.is_empty(), "{} of {count} cases fail on {name}:\n{failures}", failed.len());
    count
}

fn run_on_host(ipv6: bool) {
    for capacity in capacities() {
        let cases = CASES.iter().filter(|case| case.capacity == capacity);
        run(ipv6, cases, &mut Host::new(Links::IMAGINED, capacity));
    }
}

/// Both families on the same programs: loading them takes longer than all cases.
fn run_in_kernel(capacities: impl IntoIterator<Item = u32>, options: impl Fn(u32) -> Options) {
    for capacity in capacities {
        let ran = kernel::run(options(capacity), |tc| {
            for ipv6 in [false, true] {
                run(ipv6, CASES.iter().filter(|case| case.capacity == capacity), tc);
            }
        });
        if !ran {
            return;
        }
    }
}

/// The sizes of the session maps that cases ask for.
fn capacities() -> Vec<u32> {
    let mut capacities: Vec<u32> = CASES.iter().map(|case| case.capacity).collect();
    capacities.sort_unstable();
    capacities.dedup();
    assert!(capacities.contains(&CAPACITY));
    capacities
}

#[test]
fn every_case_on_the_host_over_ipv4() {
    run_on_host(false);
}

#[test]
fn every_case_on_the_host_over_ipv6() {
    run_on_host(true);
}

#[test]
fn every_case_in_the_kernel_over_both() {
    run_in_kernel([CAPACITY], Options::tc);
}

// Apart from the others: each size loads the programs anew, which takes an emulated machine a minute.
#[test]
fn cases_with_small_tables_in_the_kernel_over_both() {
    run_in_kernel(capacities().into_iter().filter(|capacity| *capacity != CAPACITY), Options::tc);
}

#[test]
fn every_case_in_the_kernel_with_xdp_in_front_over_both() {
    run_in_kernel(capacities(), Options::xdp);
}

#[test]
fn nothing_leaks_on_random_traffic() {
    const PACKETS: u64 = 100_000;
    let mut host = Host::new(Links::IMAGINED, 1 << 18);
    for rule in rules() {
        host.add(&rule);
    }
    let mut traffic = Traffic::new(42);
    let mut forwarded = 0;
    for count in 0..PACKETS {
        let (direction, before) = traffic.next_frame();
        let mut frame = before.clone();
        let Some((egress, _)) = host.send(direction, &mut frame).next_hop else {
            continue;
        };
        forwarded += 1;
        traffic.learn(direction, &frame);
        if let Some(why) = leak(&frame, egress, &host.links()) {
            let (before, after) = (describe(&before), describe(&frame));
            panic!("packet {count}: {why}\n{direction:?} {before}\n{after}");
        }
    }
    assert!(forwarded > PACKETS / 4, "{forwarded} of {PACKETS} packets forwarded");
}
