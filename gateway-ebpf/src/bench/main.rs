//! Programs of `cargo xtask bench`: traffic, sinks, and how fast a hook is without a gateway in it.
//!
//! | program | what it does |
//! |---|---|
//! | `generate` | run with live frames: writes a whole UDP frame and sends it on |
//! | `sink_tc`, `sink_xdp` | count UDP packets and drop them |
//! | `redirect_tc` | new Ethernet header, `bpf_redirect`: the limit of the TC hook |
//! | `neighbor_tc` | `bpf_redirect_neigh`: the limit when the kernel writes the header |
//! | `redirect_xdp` | new Ethernet header, `bpf_redirect`: the limit of the XDP hook |
//! | `table_tc`, `table_xdp` | the same with a table of flows: one look-up, or two new entries for a new flow |
//! | `prealloc_tc`, `prealloc_xdp` | the same with a table that is preallocated |
//! | `pass_xdp` | nothing: its presence lets a veth take redirected frames |
#![no_std]
#![no_main]
#![expect(
    unreachable_pub,
    missing_docs,
    reason = "the program macros generate public items that nothing documents"
)]

mod flow;
mod frame;
mod table;

use aya_ebpf::{
    bindings::{
        TC_ACT_OK, TC_ACT_SHOT, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, xdp_action,
    },
    btf_maps::{Array, PerCpuArray},
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

use crate::flow::{CLOCK_EVERY, Flows, Progress, Seen, Target};
use crate::table::{ON_DEMAND, PREALLOCATED, Table};

/// What `generate` sends.
#[btf_map]
static FLOWS: Array<Flows, 1> = Array::new();
/// How far `generate` is.
#[btf_map]
static PROGRESS: Array<Progress, 1> = Array::new();
/// Where bare redirects go.
#[btf_map]
static TARGET: Array<Target, 1> = Array::new();
/// Where each flow goes. The loader makes it as large as it has to be.
#[btf_map]
static TABLE: Table<ON_DEMAND> = Table::new();
/// The same, preallocated.
#[btf_map]
static TABLE_PREALLOC: Table<PREALLOCATED> = Table::new();
/// What the sinks have seen.
#[btf_map]
static SEEN: PerCpuArray<Seen, 1> = PerCpuArray::new();

#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let (Some(flows), Some(progress)) = (FLOWS.get(0), PROGRESS.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: one thread at a time generates, and nobody else writes here meanwhile.
    let progress = unsafe { &mut *progress };
    let turn = progress.turn;
    if turn % CLOCK_EVERY == 0 {
        // SAFETY: a helper without arguments.
        progress.last_ns = unsafe { bpf_ktime_get_ns() };
        progress.last_turn = turn;
        if turn == 0 {
            progress.first_ns = progress.last_ns;
        }
    }
    progress.turn = turn + 1;
    let number = flows.number(turn);
    let written = match flows.version {
        6 => frame::write_v6(&ctx, flows, number),
        _ => frame::write_v4(&ctx, flows, number),
    };
    match written {
        // SAFETY: a helper that takes numbers.
        Some(()) => unsafe { bpf_redirect(flows.ifindex, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

#[classifier]
pub fn sink_tc(ctx: TcContext) -> i32 {
    if frame::is_udp(ctx.data(), ctx.data_end()) {
        count(u64::from(ctx.len()));
        return TC_ACT_SHOT;
    }
    TC_ACT_OK
}

#[xdp]
pub fn sink_xdp(ctx: XdpContext) -> u32 {
    if frame::is_udp(ctx.data(), ctx.data_end()) {
        count((ctx.data_end() - ctx.data()) as u64);
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_PASS
}

#[xdp]
pub fn pass_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn redirect_tc(ctx: TcContext) -> i32 {
    tc(redirect(ctx.data(), ctx.data_end()))
}

#[classifier]
pub fn neighbor_tc(ctx: TcContext) -> i32 {
    let Some(target) = TARGET.get(0) else { return TC_ACT_SHOT };
    if !frame::has_ports(ctx.data(), ctx.data_end()) {
        return TC_ACT_OK;
    }
    let mut address = bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: [0; 4] };
    address.ipv4_nh = u32::from_ne_bytes(target.neighbor);
    let mut neighbor = bpf_redir_neigh { nh_family: 2, __bindgen_anon_1: address };
    let size = size_of_val(&neighbor) as i32;
    // SAFETY: the helper reads `size` bytes of a local.
    unsafe { bpf_redirect_neigh(target.ifindex, &mut neighbor, size, 0) as i32 }
}

#[xdp]
pub fn redirect_xdp(ctx: XdpContext) -> u32 {
    xdp(redirect(ctx.data(), ctx.data_end()))
}

#[classifier]
pub fn table_tc(ctx: TcContext) -> i32 {
    tc(table::redirect(&TABLE, ctx.data(), ctx.data_end()))
}

#[classifier]
pub fn prealloc_tc(ctx: TcContext) -> i32 {
    tc(table::redirect(&TABLE_PREALLOC, ctx.data(), ctx.data_end()))
}

#[xdp]
pub fn table_xdp(ctx: XdpContext) -> u32 {
    xdp(table::redirect(&TABLE, ctx.data(), ctx.data_end()))
}

#[xdp]
pub fn prealloc_xdp(ctx: XdpContext) -> u32 {
    xdp(table::redirect(&TABLE_PREALLOC, ctx.data(), ctx.data_end()))
}

/// What becomes of a frame.
enum Verdict {
    /// It is not for us.
    Pass,
    /// It cannot be sent on.
    Drop,
    /// It leaves by this interface.
    Redirect(u32),
}

#[inline(always)]
fn tc(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop => TC_ACT_SHOT,
        // SAFETY: a helper that takes numbers.
        Verdict::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as i32 },
    }
}

#[inline(always)]
fn xdp(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_ABORTED,
        // SAFETY: a helper that takes numbers.
        Verdict::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
    }
}

#[inline(always)]
fn redirect(data: usize, end: usize) -> Verdict {
    let Some(target) = TARGET.get(0) else { return Verdict::Drop };
    if !frame::has_ports(data, end) {
        return Verdict::Pass;
    }
    frame::write_macs(data, end, &target.macs);
    Verdict::Redirect(target.ifindex)
}

#[inline(always)]
fn count(bytes: u64) {
    if let Some(seen) = SEEN.get_ptr_mut(0) {
        // SAFETY: the slot belongs to this CPU.
        unsafe {
            (*seen).packets += 1;
            (*seen).bytes += bytes;
        }
    }
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
