//! The least that a NAT with a table of its flows does to a packet: the floor of what a gateway can cost.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::HashMap;

use crate::flow::{Record, Target};
use crate::{TARGET, Verdict, frame};

/// Memory comes with each flow.
pub(crate) const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
/// Memory is there from the start.
pub(crate) const PREALLOCATED: usize = 0;

/// Flows, with keys and records as long as those of the gateway's sessions over IPv4.
pub(crate) type Table<const FLAGS: usize> = HashMap<[u32; 4], Record, 1, FLAGS>;

/// Sends a frame where its flow goes.
#[inline(always)]
pub(crate) fn redirect<const FLAGS: usize>(
    table: &Table<FLAGS>,
    data: usize,
    end: usize,
) -> Verdict {
    let Some(key) = frame::tuple(data, end) else { return Verdict::Pass };
    let Some(target) = target(table, &key) else { return Verdict::Drop };
    frame::write_macs(data, end, &target.macs);
    Verdict::Redirect(target.ifindex)
}

/// Where a flow goes; the first packet of one makes its two entries.
#[inline(always)]
fn target<const FLAGS: usize>(table: &Table<FLAGS>, key: &[u32; 4]) -> Option<Target> {
    if let Some(record) = table.get_ptr(key) {
        // SAFETY: nobody changes a record.
        return Some(unsafe { (*record).target });
    }
    let record = Record { target: *TARGET.get(0)?, rest: [0; 28] };
    let [source, destination, ports, protocol] = *key;
    let reply = [destination, source, ports.rotate_left(16), protocol];
    for key in [key, &reply] {
        table.insert(key, record, u64::from(BPF_NOEXIST)).ok()?;
    }
    Some(record.target)
}
