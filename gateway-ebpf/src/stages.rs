//! Where the programs sit, and the stages of the path as functions of their own.
//!
//! The functions are global: the verifier looks at each once, with nothing known but its context, and
//! not again for every way that leads there. Everything else is in the record of the CPU.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use gateway_common::{
    family::{Family, V4, V6},
    pipeline::{Outcome, PacketStage, Passage, Stage},
};

use crate::{
    maps::{self, KernelTables, Maps},
    packet::SkbPacket,
};

/// Where a program sits.
pub(crate) trait Hook: Sized {
    /// Whether TC comes behind, and counts what is refused when it refuses it.
    const IN_FRONT: bool;

    /// Runs a stage in the function that it has for this hook; returns an [`Outcome`].
    fn apart<F: Maps>(stage: Stage, context: *mut c_void) -> u32;

    /// As [`Hook::apart`].
    fn apart_with<F: Maps>(stage: PacketStage, context: *mut c_void) -> u32;
}

/// Ingress of an interface, behind TC.
pub(crate) struct Tc;

/// The driver of an interface, in front of TC.
pub(crate) struct Xdp;

impl Hook for Tc {
    const IN_FRONT: bool = false;

    #[inline(always)]
    fn apart<F: Maps>(stage: Stage, context: *mut c_void) -> u32 {
        let skb = context.cast();
        if F::BITS == V4::BITS { tc_v4(stage, skb) } else { tc_v6(stage, skb) }
    }

    #[inline(always)]
    fn apart_with<F: Maps>(stage: PacketStage, context: *mut c_void) -> u32 {
        let skb = context.cast();
        match stage {
            PacketStage::Related if F::BITS == V4::BITS => related_v4(skb),
            PacketStage::Related => related_v6(skb),
            PacketStage::Lookup if F::BITS == V4::BITS => lookup_v4(skb),
            PacketStage::Lookup => lookup_v6(skb),
            PacketStage::Hold if F::BITS == V4::BITS => hold_v4(skb),
            PacketStage::Hold => hold_v6(skb),
            PacketStage::Replay if F::BITS == V4::BITS => replay_v4(skb),
            PacketStage::Replay => replay_v6(skb),
            PacketStage::ClampMss if F::BITS == V4::BITS => clamp_mss_v4(skb),
            PacketStage::ClampMss => clamp_mss_v6(skb),
        }
    }
}

impl Hook for Xdp {
    const IN_FRONT: bool = true;

    #[inline(always)]
    fn apart<F: Maps>(stage: Stage, context: *mut c_void) -> u32 {
        let context = context.cast();
        if F::BITS == V4::BITS { xdp_v4(stage, context) } else { xdp_v6(stage, context) }
    }

    /// What needs them is left to TC: see [`Packet::ACCELERATES`](gateway_common::packet::Packet).
    #[inline(always)]
    fn apart_with<F: Maps>(_stage: PacketStage, _context: *mut c_void) -> u32 {
        Outcome::No as u32
    }
}

/// Calls `stage` with what this CPU knows of the packet of `context`.
#[inline(always)]
fn run<F: Maps, H: Hook, C>(
    context: *mut C,
    stage: impl FnOnce(&mut Passage<'_, F, KernelTables<F, H>>) -> Outcome,
) -> u32 {
    // Without a use of it LLVM passes whatever is at hand, and the verifier wants a context.
    // SAFETY: the first field of the program's context.
    let _ = unsafe { context.cast::<u32>().read_volatile() };
    let (Some(config), Some(work)) = (maps::config(), maps::work::<F>()) else {
        return Outcome::No as u32;
    };
    let mut tables = KernelTables::new(context.cast());
    stage(&mut Passage { work, tables: &mut tables, config }) as u32
}

/// The functions of one hook and family.
macro_rules! stages {
    ($dispatch:ident: $family:ty, $hook:ty, $context:ty, $($stage:ident => $name:ident,)*) => {
        #[inline(always)]
        fn $dispatch(stage: Stage, context: *mut $context) -> u32 {
            match stage {
                $(Stage::$stage => $name(context),)*
            }
        }

        $(
            // SAFETY: no other symbol of the object has the name.
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name(context: *mut $context) -> u32 {
                run::<$family, $hook, _>(context, |passage| Stage::$stage.run(passage))
            }
        )*
    };
}

/// As `stages`, for those that need the packet.
macro_rules! packet_stages {
    ($($stage:ident, $family:ty => $name:ident,)*) => {
        $(
            // SAFETY: no other symbol of the object has the name.
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
                let mut packet = SkbPacket::unchecked(skb);
                run::<$family, Tc, _>(skb, |passage| PacketStage::$stage.run(&mut packet, passage))
            }
        )*
    };
}

packet_stages! {
    Related, V4 => related_v4,
    Related, V6 => related_v6,
    Lookup, V4 => lookup_v4,
    Lookup, V6 => lookup_v6,
    Hold, V4 => hold_v4,
    Hold, V6 => hold_v6,
    Replay, V4 => replay_v4,
    Replay, V6 => replay_v6,
    ClampMss, V4 => clamp_mss_v4,
    ClampMss, V6 => clamp_mss_v6,
}

stages! {
    tc_v4: V4, Tc, __sk_buff,
    Settle => settle_v4,
    Classify => classify_v4,
    Begin => begin_v4,
    MapSource => map_source_v4,
    Insert => insert_v4,
    DrawPort => draw_port_v4,
    TryPort => try_port_v4,
    WalkPorts => walk_ports_v4,
    ClaimOver => claim_over_v4,
    JoinMapping => join_mapping_v4,
    MakeMapping => make_mapping_v4,
    TryExternal => try_external_v4,
}

stages! {
    tc_v6: V6, Tc, __sk_buff,
    Settle => settle_v6,
    Classify => classify_v6,
    Begin => begin_v6,
    MapSource => map_source_v6,
    Insert => insert_v6,
    DrawPort => draw_port_v6,
    TryPort => try_port_v6,
    WalkPorts => walk_ports_v6,
    ClaimOver => claim_over_v6,
    JoinMapping => join_mapping_v6,
    MakeMapping => make_mapping_v6,
    TryExternal => try_external_v6,
}

stages! {
    xdp_v4: V4, Xdp, xdp_md,
    Settle => settle_xdp_v4,
    Classify => classify_xdp_v4,
    Begin => begin_xdp_v4,
    MapSource => map_source_xdp_v4,
    Insert => insert_xdp_v4,
    DrawPort => draw_port_xdp_v4,
    TryPort => try_port_xdp_v4,
    WalkPorts => walk_ports_xdp_v4,
    ClaimOver => claim_over_xdp_v4,
    JoinMapping => join_mapping_xdp_v4,
    MakeMapping => make_mapping_xdp_v4,
    TryExternal => try_external_xdp_v4,
}

stages! {
    xdp_v6: V6, Xdp, xdp_md,
    Settle => settle_xdp_v6,
    Classify => classify_xdp_v6,
    Begin => begin_xdp_v6,
    MapSource => map_source_xdp_v6,
    Insert => insert_xdp_v6,
    DrawPort => draw_port_xdp_v6,
    TryPort => try_port_xdp_v6,
    WalkPorts => walk_ports_xdp_v6,
    ClaimOver => claim_over_xdp_v6,
    JoinMapping => join_mapping_xdp_v6,
    MakeMapping => make_mapping_xdp_v6,
    TryExternal => try_external_xdp_v6,
}
