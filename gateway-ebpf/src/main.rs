//! The kernel shell of vpc-gateway: bytes, maps and return codes around `gateway-common`.
//!
//! | program | hook |
//! |---|---|
//! | `tc_internal` | ingress of the interface towards the VPC |
//! | `tc_external` | ingress of the interface towards the outside |
//! | `xdp_internal`, `xdp_external` | the same interfaces' drivers, in front of TC |
//! | `select` | ingress of an interface of tenants, in front of several gateways |
//! | `sweep_v4`, `sweep_v6` | run by the daemon on frames of session keys: end those that are idle or whose rule is gone |
#![no_std]
#![no_main]
// The target has no `AtomicU32`, and nothing of `AtomicU64` but load and store.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the only way to the atomic instructions of BPF")]
#![expect(
    unreachable_pub,
    missing_docs,
    reason = "the program macros generate public items that nothing documents"
)]

mod action;
mod answers;
mod clock;
mod counts;
mod held;
mod maps;
mod oversize;
mod packet;
mod select;
mod stages;
mod sweep;
mod users;
mod xdp;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use gateway_common::{
    family::{Family, V4, V6},
    pipeline::{self, Arrival},
    tuple::Direction,
    verdict::{DropReason, PassReason, Verdict},
};

use crate::{
    maps::{Desk, KernelTables, Maps},
    packet::SkbPacket,
    stages::Tc,
};

/// From the VPC.
#[classifier]
pub fn tc_internal(ctx: TcContext) -> i32 {
    ingress(&ctx, Direction::Outbound)
}

/// From outside.
#[classifier]
pub fn tc_external(ctx: TcContext) -> i32 {
    ingress(&ctx, Direction::Inbound)
}

/// From the VPC, in the driver.
#[xdp]
pub fn xdp_internal(ctx: XdpContext) -> u32 {
    xdp::ingress(ctx.ctx, Direction::Outbound)
}

/// From outside, in the driver.
#[xdp]
pub fn xdp_external(ctx: XdpContext) -> u32 {
    xdp::ingress(ctx.ctx, Direction::Inbound)
}

/// From tenants, to one of several gateways.
#[classifier]
pub fn select(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    match ether_type(skb) {
        V4::ETHER_TYPE => select_v4(skb),
        V6::ETHER_TYPE => select_v6(skb),
        _ => not_ip(skb),
    }
}

/// Ends sessions over IPv4 whose keys are in the frame. Returns how many.
#[classifier]
pub fn sweep_v4(ctx: TcContext) -> i32 {
    sweep::sweep::<V4>(ctx.skb.skb)
}

/// Ends sessions over IPv6 whose keys are in the frame. Returns how many.
#[classifier]
pub fn sweep_v6(ctx: TcContext) -> i32 {
    sweep::sweep::<V6>(ctx.skb.skb)
}

/// Sends a frame through the data path of its family.
#[inline(always)]
fn ingress(ctx: &TcContext, direction: Direction) -> i32 {
    let skb = ctx.skb.skb;
    match ether_type(skb) {
        V4::ETHER_TYPE => datapath_v4(skb, direction),
        V6::ETHER_TYPE => datapath_v6(skb, direction),
        _ => not_ip(skb),
    }
}

/// The protocol of a frame; 0 if it has a VLAN tag, which lies beside the bytes.
#[inline(always)]
fn ether_type(skb: *mut __sk_buff) -> u16 {
    // SAFETY: the kernel hands every classifier a valid context.
    let (protocol, tagged) = unsafe { (u16::from_be((*skb).protocol as u16), (*skb).vlan_present) };
    if tagged == 0 { protocol } else { 0 }
}

#[inline(always)]
fn not_ip(skb: *mut __sk_buff) -> i32 {
    maps::count(PassReason::NotIp.counter(), packet::frame_bytes(skb));
    TC_ACT_OK
}

// Functions, so that each family has a stack frame of its own.
#[inline(never)]
fn datapath_v4(skb: *mut __sk_buff, direction: Direction) -> i32 {
    datapath::<V4>(skb, direction)
}

#[inline(never)]
fn datapath_v6(skb: *mut __sk_buff, direction: Direction) -> i32 {
    datapath::<V6>(skb, direction)
}

#[inline(never)]
fn select_v4(skb: *mut __sk_buff) -> i32 {
    select::run::<V4>(skb)
}

#[inline(never)]
fn select_v6(skb: *mut __sk_buff) -> i32 {
    select::run::<V6>(skb)
}

#[inline(always)]
fn datapath<F: Maps>(skb: *mut __sk_buff, direction: Direction) -> i32 {
    let mut packet = SkbPacket::new(skb);
    let arrival = Arrival {
        now: clock::now(),
        ifindex: packet.ifindex(),
        direction,
        frame_bytes: packet::frame_bytes(skb),
    };
    let mut tables = KernelTables::<F, Tc>::new(packet.context());
    let (Some(config), Some(Desk { work, neighbor })) = (maps::config(), maps::desk::<F>()) else {
        maps::count(DropReason::NotConfigured.counter(), arrival.frame_bytes);
        return TC_ACT_SHOT;
    };
    let mut verdict = pipeline::process_in(work, &mut packet, &mut tables, config, &arrival);
    if let Verdict::Drop(reason) = verdict {
        answers::ask::<F>(skb, reason);
    } else if verdict == Verdict::Pass(PassReason::Fragmented) && oversize::report(skb) == 0 {
        verdict = Verdict::Drop(DropReason::TooBig);
    }
    action::apply(&verdict, &work.rewrite.next_hop, neighbor, arrival.frame_bytes)
}

/// What the kernel asks of programs that call its GPL-only helpers.
// SAFETY: the section holds nothing but this string, where loaders look for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program in which it could be.
    loop {}
}
