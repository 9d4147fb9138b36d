//! The layout of the records in the maps, which outlive the process that made them.
//!
//! `abi/layout.txt` says what the layout of `ABI_VERSION` is. Whoever changes a record raises the
//! version, then accepts the new layout: `ABI_ACCEPT=1 cargo test -p gateway-tests --test abi`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};
use std::path::PathBuf;

use gateway_common::family::{Family, V4, V6};
use gateway_common::nexthop::{GroupMember, NextHopGroup};
use gateway_common::records::{
    ABI_VERSION, Backend, Config, Counter, Datagram, DatagramKey, Dnat, DnatKey, Draining, Eip,
    Fip, FipKey, HeldKey, Host, HostLimits, Identification, Mapping, MappingKey, Neighbor, Pool,
    PoolMember, Rule, Session, Slots, Timeouts, XdpFacts,
};
use gateway_common::tuple::{Endpoints, Tuple};
use gateway_common::verdict::NextHop;
use gateway_tests::kernel;

const ACCEPT: &str = "ABI_ACCEPT";

/// Writes size, alignment and the offset of every field of a record. That no field is left out is
/// for the compiler to say: the pattern would not be complete.
macro_rules! layout {
    ($out:ident, $name:expr, $type:ident $(<$family:ident>)? { $($field:ident),+ $(,)? }) => {{
        #[expect(unused_variables, reason = "only the names of the fields count")]
        let complete = |record: $type$(<$family>)?| {
            let $type { $($field),+ } = record;
        };
        type Record = $type$(<$family>)?;
        let _ = complete;
        let (size, align) = (size_of::<Record>(), align_of::<Record>());
        write!($out, "{:<16} size {size:>3} align {align}:", $name).expect("memory");
        $(write!($out, " {} {}", stringify!($field), offset_of!(Record, $field)).expect("memory");)+
        $out.push('\n');
    }};
}

macro_rules! both_families {
    ($out:ident, $type:ident { $($field:ident),+ $(,)? }) => {
        layout!($out, concat!(stringify!($type), "<V4>"), $type<V4> { $($field),+ });
        layout!($out, concat!(stringify!($type), "<V6>"), $type<V6> { $($field),+ });
    };
}

fn layout() -> String {
    let mut out = String::new();
    layout!(
        out,
        "Config",
        Config {
            generation,
            abi_version,
            internal_ifindex,
            external_ifindex,
            internal_mtu,
            external_mtu,
            clamp_mtu,
            routing,
            port_low,
            port_high,
            unmatched,
            mappings,
            next_hops,
            zero,
            timeouts,
            host_limits,
        }
    );
    layout!(
        out,
        "Timeouts",
        Timeouts { tcp_opening, tcp_established, tcp_closing, udp_new, udp_stream, icmp, other }
    );
    layout!(out, "HostLimits", HostLimits { sessions, interval_ns, burst });
    layout!(out, "Rule", Rule { kind, name_length, state, zero, name });
    layout!(out, "Draining", Draining { met, sessions });
    layout!(out, "Slots", Slots { rules });
    layout!(out, "Counter", Counter { packets, bytes });
    layout!(out, "Eip", Eip { sessions, opened, refused, reserved });
    layout!(out, "Host", Host { due, sessions, refused });
    layout!(out, "XdpFacts", XdpFacts { until, internal_mac, external_mac });
    layout!(out, "Neighbor", Neighbor { destination, source, used });
    both_families!(out, NextHop { ifindex, address });
    both_families!(out, Endpoints { source, destination, source_port, destination_port });
    both_families!(out, Tuple { endpoints, protocol, direction, zero });
    both_families!(
        out,
        DatagramKey { source, destination, identification, protocol, direction, zero }
    );
    both_families!(out, HeldKey { datagram, slot });
    layout!(out, "Datagram", Datagram { identification, since, source_port, destination_port });
    layout!(out, "Identification", Identification { next, asked, zero });
    both_families!(
        out,
        Session {
            packets,
            bytes,
            last_seen,
            rule,
            translated,
            next_hop,
            egress,
            routing,
            seen,
            flags,
            padding,
        }
    );
    both_families!(out, FipKey { address, direction });
    both_families!(out, Fip { peer, rule });
    both_families!(out, DnatKey { eip, port, protocol, zero });
    both_families!(out, Dnat { address, port, balance, rule });
    both_families!(out, Backend { key, address, port, weight });
    both_families!(out, PoolMember { eip, rule, options });
    both_families!(out, MappingKey { address, remote, port, protocol, kind });
    both_families!(out, Mapping { peer, port, zero, options, rule, users });
    both_families!(out, Pool { length, members });
    both_families!(out, GroupMember { address, mac, state, zero });
    both_families!(out, NextHopGroup { seed, hash, moves, zero, slots, members });
    out
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/abi/layout.txt")
}

/// What is to be done if `committed` is the file and the records are laid out as `layout`.
fn verdict(committed: &str, version: u32, layout: &str) -> Result<(), String> {
    let (first, rest) = committed.split_once('\n').unwrap_or_default();
    let committed_version: Option<u32> =
        first.strip_prefix("ABI_VERSION ").and_then(|text| text.parse().ok());
    let accept = format!("{ACCEPT}=1 cargo test -p gateway-tests --test abi");
    match (committed_version == Some(version), rest == layout) {
        (true, true) => Ok(()),
        (true, false) => Err(format!(
            "the layout of the records has changed and ABI_VERSION is still {version}: a daemon \
             would adopt maps that it misreads.\nRaise ABI_VERSION in \
             gateway-common/src/records.rs, then accept the new layout: {accept}\n\
             committed:\n{rest}\nnow:\n{layout}"
        )),
        (false, _) => {
            Err(format!("ABI_VERSION is {version}, and the file is of {first}: run {accept}"))
        }
    }
}

#[test]
fn a_changed_layout_has_a_new_version() {
    let (file, layout) = (file(), layout());
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let outcome = verdict(&committed, ABI_VERSION, &layout);
    let same_version = committed.starts_with(&format!("ABI_VERSION {ABI_VERSION}\n"));
    if outcome.is_err() && !same_version && std::env::var_os(ACCEPT).is_some() {
        std::fs::write(&file, format!("ABI_VERSION {ABI_VERSION}\n{layout}")).expect("a file");
        println!("accepted; commit {}", file.display());
        return;
    }
    outcome.unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn the_message_says_what_to_do() {
    let committed = "ABI_VERSION 1\nTuple size 16\n";
    assert_eq!(verdict(committed, 1, "Tuple size 16\n"), Ok(()));
    let forgotten = verdict(committed, 1, "Tuple size 20\n").unwrap_err();
    assert!(forgotten.contains("Raise ABI_VERSION"), "{forgotten}");
    let raised = verdict(committed, 2, "Tuple size 20\n").unwrap_err();
    assert!(raised.contains("ABI_ACCEPT=1"), "{raised}");
}

/// Sizes of key and value.
type Sizes = (usize, usize);

fn family_maps<F: Family>(suffix: &str) -> Vec<(String, Sizes)> {
    // The key of a longest-prefix trie is the length of the prefix and the address.
    let prefix = size_of::<u32>() + size_of::<F::Addr>();
    [
        ("SESSIONS", (size_of::<Tuple<F>>(), size_of::<Session<F>>())),
        ("FIPS", (size_of::<FipKey<F>>(), size_of::<Fip<F>>())),
        ("DNATS", (size_of::<DnatKey<F>>(), size_of::<Dnat<F>>())),
        ("SLOTS", (size_of::<DnatKey<F>>(), size_of::<Slots>())),
        ("BACKENDS", (size_of::<u32>(), size_of::<Backend<F>>())),
        ("SNATS", (prefix, size_of::<Pool<F>>())),
        ("FRAGMENTS", (size_of::<DatagramKey<F>>(), size_of::<Datagram>())),
        ("HELD", (size_of::<HeldKey<F>>(), 2048)),
        ("EIPS", (size_of::<F::Addr>(), size_of::<Eip>())),
        ("HOSTS", (size_of::<F::Addr>(), size_of::<Host>())),
        ("NEIGHBORS", (size_of::<NextHop<F>>(), size_of::<Neighbor>())),
        ("MAPPINGS", (size_of::<MappingKey<F>>(), size_of::<Mapping<F>>())),
    ]
    .map(|(map, sizes)| (format!("{map}_{suffix}"), sizes))
    .into()
}

#[test]
fn the_maps_of_the_object_have_the_sizes_of_the_records() {
    let Some(object) = kernel::granted() else {
        return;
    };
    let found = kernel::map_sizes(&object).expect("maps");
    let index = size_of::<u32>();
    let mut expected: BTreeMap<String, Sizes> =
        family_maps::<V4>("V4").into_iter().chain(family_maps::<V6>("V6")).collect();
    for (map, value) in [
        ("CONFIG", size_of::<Config>()),
        ("RULES", size_of::<Rule>()),
        ("DRAINING", size_of::<Draining>()),
        ("RULE_COUNTERS", size_of::<Counter>()),
        ("COUNTERS", size_of::<Counter>()),
        ("IDENTIFICATIONS", size_of::<Identification>()),
        ("XDP_COUNTERS", size_of::<Counter>()),
        ("XDP_FACTS", size_of::<XdpFacts>()),
    ] {
        expected.insert(map.to_owned(), (index, value));
    }
    for (map, sizes) in expected {
        assert_eq!(found.get(&map), Some(&sizes), "key and value of {map}");
    }
}
