//! The accelerator: packets that can be finished in the driver are, all others go on to TC as they
//! are.

use aya_ebpf::bindings::{
    xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    xdp_md,
};
use gateway_common::{
    family::{Family, V4, V6},
    packet::Packet,
    pipeline::{self, Arrival},
    tuple::Direction,
    verdict::{DropReason, PassReason, Verdict, XDP_FORWARDED},
    wire::ethernet::Ethernet,
};

use crate::{
    clock,
    maps::{self, KernelTables, Maps},
    packet::{XdpPacket, xdp_frame_bytes},
    stages::Xdp,
};

/// Sends a frame through the data path of its family.
#[inline(always)]
pub(crate) fn ingress(context: *mut xdp_md, direction: Direction) -> u32 {
    match ether_type(context) {
        V4::ETHER_TYPE => datapath_v4(context, direction),
        V6::ETHER_TYPE => datapath_v6(context, direction),
        _ => leave(PassReason::NotIp.counter(), xdp_frame_bytes(context)),
    }
}

/// Leaves a packet to TC.
#[inline(always)]
fn leave(counter: u32, frame_bytes: u32) -> u32 {
    maps::count_xdp(counter, frame_bytes);
    XDP_PASS
}

// Two functions, so that each family has a stack frame of its own.
#[inline(never)]
fn datapath_v4(context: *mut xdp_md, direction: Direction) -> u32 {
    datapath::<V4>(context, direction)
}

#[inline(never)]
fn datapath_v6(context: *mut xdp_md, direction: Direction) -> u32 {
    datapath::<V6>(context, direction)
}

#[inline(always)]
fn datapath<F: Maps>(context: *mut xdp_md, direction: Direction) -> u32 {
    let frame_bytes = xdp_frame_bytes(context);
    let now = clock::now();
    let facts = match maps::xdp_facts() {
        Some(facts) if facts.hold_at(now) => facts,
        _ => return leave(PassReason::Unconfirmed.counter(), frame_bytes),
    };
    let mut packet = XdpPacket::new(context, facts, direction, now);
    let arrival = Arrival { now, ifindex: packet.ifindex(), direction, frame_bytes };
    let mut tables = KernelTables::<F, Xdp>::new(packet.context());
    let verdict = match (maps::config(), maps::work::<F>()) {
        (Some(config), Some(work)) => {
            pipeline::process_in(work, &mut packet, &mut tables, config, &arrival)
        }
        _ => Verdict::Drop(DropReason::NotConfigured),
    };
    match verdict {
        Verdict::Forward(next_hop) => send(&mut packet, next_hop.ifindex, &arrival),
        Verdict::Pass(reason) => leave(reason.counter(), frame_bytes),
        // TC comes to the same decision, and answers where an answer is due.
        Verdict::Drop(reason) => leave(reason.counter(), frame_bytes),
    }
}

/// Sends a packet that is rewritten: from here on there is no way back to TC.
#[inline(always)]
fn send(packet: &mut XdpPacket, egress: u32, arrival: &Arrival) -> u32 {
    if packet.address().is_ok() {
        let code = if egress == arrival.ifindex { Some(XDP_TX) } else { maps::redirect(egress) };
        if let Some(code) = code {
            maps::count_xdp(XDP_FORWARDED, arrival.frame_bytes);
            return code;
        }
    }
    maps::count(DropReason::HelperFailed.counter(), arrival.frame_bytes);
    XDP_DROP
}

/// The ether type of the frame; 0 if it has none.
#[inline(always)]
fn ether_type(context: *mut xdp_md) -> u16 {
    XdpPacket::unchecked(context).at::<Ethernet>(0).map_or(0, |header| header.ether_type.get())
}
