//! The daemon's sweep over a large session map.
//!
//! | variable | default | |
//! |---|---|---|
//! | `SWEEP_SESSIONS` | 100000 | how many sessions there are |

use std::time::{Duration, Instant};

use gateway_tests::kernel;
use gateway_tests::kernel::crowd::{Crowd, Kind, kind};
use gateway_userspace::dataplane::Dataplane as _;
use gateway_userspace::plan::Families;
use nix::time::{ClockId, clock_gettime};

/// How long this thread has had a CPU.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

#[test]
fn a_sweep_ends_what_is_idle_and_holds_no_cpu_for_long() {
    sweeps(false);
}

#[test]
fn nor_does_one_over_maps_that_took_their_memory_at_the_start() {
    sweeps(true);
}

fn sweeps(preallocate: bool) {
    let Some(object) = kernel::granted() else { return };
    let count: u32 = std::env::var("SWEEP_SESSIONS")
        .map_or(100_000, |text| text.parse().expect("SWEEP_SESSIONS"));
    let name = format!("sweep-{}-{preallocate}", std::process::id());
    let mut crowd = Crowd::gather(&name, &object, count, preallocate).expect("many sessions");
    assert_eq!(crowd.kernel.maps().is_preallocated(), preallocate);
    let (started, worked, mut slice) = (Instant::now(), cpu_time(), Duration::ZERO);
    crowd.kernel.begin_sweep(Families::ALL).expect("a sweep");
    let swept = loop {
        let began = Instant::now();
        let swept = crowd.kernel.sweep_on().expect("a slice");
        slice = slice.max(began.elapsed());
        if let Some(swept) = swept {
            break swept;
        }
    };
    let (took, worked) = (started.elapsed(), cpu_time() - worked);
    let usual = swept.running / swept.runs.max(1);
    println!(
        "measured: a sweep over {count} sessions, of which {} ended, in {took:.1?}, {worked:.1?} of them \
         on a CPU; the longest slice {slice:.1?}; {} runs of a program, of {usual:.1?} on average, the longest {:.1?}",
        swept.ended, swept.runs, swept.longest
    );
    let expected: Vec<_> = (0..count).filter(|number| kind(*number) != Kind::Idle).collect();
    assert_eq!(swept.ended, u64::from(count) - expected.len() as u64);
    let (whole, others) = crowd.whole().expect("the sessions");
    assert!(whole == expected, "{} sessions are left of {}", whole.len(), expected.len());
    assert_eq!(others, 0, "entries without their other half");
    // Not the longest one: the CPU may have been taken from it.
    assert!(usual < Duration::from_millis(1), "{usual:?}");
    // Nothing is left to do.
    let again = crowd.kernel.sweep(Families::ALL).expect("another sweep");
    assert_eq!(again.ended, 0);
}
