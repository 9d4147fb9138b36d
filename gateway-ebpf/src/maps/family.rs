//! What differs between the maps of IPv4 and those of IPv6.

use aya_ebpf::{
    bindings::{bpf_fib_lookup as FibParameters, bpf_redir_neigh},
    btf_maps::PerCpuArray,
};
use gateway_common::family::{Family, Ipv4, Ipv6, V4, V6};

use super::{
    BACKENDS_V4, BACKENDS_V6, Backends, DNATS_V4, DNATS_V6, Desk, Dnats, EIPS_V4, EIPS_V6,
    EXHAUSTED_V4, EXHAUSTED_V6, Eips, Exhausted, FIPS_V4, FIPS_V6, FRAGMENTS_V4, FRAGMENTS_V6,
    Fips, Fragments, HELD_V4, HELD_V6, HOSTS_V4, HOSTS_V6, HeldFragments, Hosts, MAPPINGS_V4,
    MAPPINGS_V6, Mappings, NEXT_HOPS_V4, NEXT_HOPS_V6, NextHops, ROUTES_V4, ROUTES_V6, Routes,
    SESSIONS_V4, SESSIONS_V6, SLOTS_V4, SLOTS_V6, SNATS_V4, SNATS_V6, Sessions, SlotTables, Snats,
    WORK_V4, WORK_V6,
};

/// A family's maps, and its addresses in the kernel's structures.
pub(crate) trait Maps: Family {
    const SESSIONS: &'static Sessions<Self>;
    const FIPS: &'static Fips<Self>;
    const DNATS: &'static Dnats<Self>;
    const SLOTS: &'static SlotTables<Self>;
    const BACKENDS: &'static Backends<Self>;
    const SNATS: &'static Snats<Self>;
    const EIPS: &'static Eips<Self>;
    const HOSTS: &'static Hosts<Self>;
    const MAPPINGS: &'static Mappings<Self>;
    const EXHAUSTED: &'static Exhausted<Self>;
    const FRAGMENTS: &'static Fragments<Self>;
    const HELD: &'static HeldFragments<Self>;
    const NEXT_HOPS: &'static NextHops<Self>;
    const ROUTES: &'static Routes<Self>;
    const WORK: &'static PerCpuArray<Desk<Self>, 1>;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;

    /// Puts the question into `parameters`.
    fn ask(parameters: &mut FibParameters, source: &Self::Addr, destination: &Self::Addr);

    /// Takes the next hop out of the answer.
    fn answer(parameters: &FibParameters) -> Self::Addr;

    /// Puts a next hop down as `bpf_redirect_neigh` takes it.
    fn put_neighbor(address: &Self::Addr, neighbor: &mut bpf_redir_neigh);
}

impl Maps for V4 {
    const SESSIONS: &'static Sessions<V4> = &SESSIONS_V4;
    const FIPS: &'static Fips<V4> = &FIPS_V4;
    const DNATS: &'static Dnats<V4> = &DNATS_V4;
    const SLOTS: &'static SlotTables<V4> = &SLOTS_V4;
    const BACKENDS: &'static Backends<V4> = &BACKENDS_V4;
    const SNATS: &'static Snats<V4> = &SNATS_V4;
    const EIPS: &'static Eips<V4> = &EIPS_V4;
    const HOSTS: &'static Hosts<V4> = &HOSTS_V4;
    const MAPPINGS: &'static Mappings<V4> = &MAPPINGS_V4;
    const EXHAUSTED: &'static Exhausted<V4> = &EXHAUSTED_V4;
    const FRAGMENTS: &'static Fragments<V4> = &FRAGMENTS_V4;
    const HELD: &'static HeldFragments<V4> = &HELD_V4;
    const NEXT_HOPS: &'static NextHops<V4> = &NEXT_HOPS_V4;
    const ROUTES: &'static Routes<V4> = &ROUTES_V4;
    const WORK: &'static PerCpuArray<Desk<V4>, 1> = &WORK_V4;
    const AF: u8 = 2;

    #[inline(always)]
    fn ask(parameters: &mut FibParameters, source: &Ipv4, destination: &Ipv4) {
        parameters.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source.octets);
        parameters.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination.octets);
    }

    #[inline(always)]
    fn answer(parameters: &FibParameters) -> Ipv4 {
        // SAFETY: every bit pattern is a value of either member.
        Ipv4 { octets: unsafe { parameters.__bindgen_anon_4.ipv4_dst }.to_ne_bytes() }
    }

    #[inline(always)]
    fn put_neighbor(address: &Ipv4, neighbor: &mut bpf_redir_neigh) {
        neighbor.nh_family = u32::from(Self::AF);
        neighbor.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(address.octets);
    }
}

impl Maps for V6 {
    const SESSIONS: &'static Sessions<V6> = &SESSIONS_V6;
    const FIPS: &'static Fips<V6> = &FIPS_V6;
    const DNATS: &'static Dnats<V6> = &DNATS_V6;
    const SLOTS: &'static SlotTables<V6> = &SLOTS_V6;
    const BACKENDS: &'static Backends<V6> = &BACKENDS_V6;
    const SNATS: &'static Snats<V6> = &SNATS_V6;
    const EIPS: &'static Eips<V6> = &EIPS_V6;
    const HOSTS: &'static Hosts<V6> = &HOSTS_V6;
    const MAPPINGS: &'static Mappings<V6> = &MAPPINGS_V6;
    const EXHAUSTED: &'static Exhausted<V6> = &EXHAUSTED_V6;
    const FRAGMENTS: &'static Fragments<V6> = &FRAGMENTS_V6;
    const HELD: &'static HeldFragments<V6> = &HELD_V6;
    const NEXT_HOPS: &'static NextHops<V6> = &NEXT_HOPS_V6;
    const ROUTES: &'static Routes<V6> = &ROUTES_V6;
    const WORK: &'static PerCpuArray<Desk<V6>, 1> = &WORK_V6;
    const AF: u8 = 10;

    #[inline(always)]
    fn ask(parameters: &mut FibParameters, source: &Ipv6, destination: &Ipv6) {
        parameters.__bindgen_anon_3.ipv6_src = source.words();
        parameters.__bindgen_anon_4.ipv6_dst = destination.words();
    }

    #[inline(always)]
    fn answer(parameters: &FibParameters) -> Ipv6 {
        // SAFETY: every bit pattern is a value of either member.
        Ipv6::from_words(unsafe { parameters.__bindgen_anon_4.ipv6_dst })
    }

    #[inline(always)]
    fn put_neighbor(address: &Ipv6, neighbor: &mut bpf_redir_neigh) {
        neighbor.nh_family = u32::from(Self::AF);
        // By words, as `Address::set` does.
        let [a, b, c, d] = address.words();
        // SAFETY: every bit pattern is a value of either member.
        let words = unsafe { &mut neighbor.__bindgen_anon_1.ipv6_nh };
        words[0] = a;
        words[1] = b;
        words[2] = c;
        words[3] = d;
    }
}
