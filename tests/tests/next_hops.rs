//! The annotations of next-hop groups without a kernel: what they become, and what is refused.

use std::path::Path;
use std::time::Duration;

use gateway_common::nexthop::HashFields;
use gateway_userspace::desired::{
    Bfd, Hashes, Identity, NextHops, Previous, ReplicaName, Resolutions, resolve_all,
};
use gateway_userspace::source::{Snapshot, yaml};

fn parse(annotations: &[(&str, &str)]) -> Resolutions {
    let one = |(name, value): &(&str, &str)| format!("    vpc-gateway.io/{name}: '{value}'\n");
    let text = format!(
        "apiVersion: kubeovn.io/v1\nkind: VpcNatGateway\nmetadata:\n  name: gw\n  annotations:\n{}\
         spec: {{vpc: vpc1, subnet: lan, lanIp: 10.0.1.254}}\n",
        annotations.iter().map(one).collect::<String>()
    );
    let mut snapshot = Snapshot::default();
    yaml::parse("test.yaml", &text, &mut snapshot);
    resolve_all(&snapshot, &Previous::default())
}

fn next_hops(all: &Resolutions) -> NextHops {
    all.states["gw"].gateway.next_hops.clone()
}

fn external(all: &Resolutions) -> Vec<(String, u32)> {
    next_hops(all).external.iter().map(|one| (one.address.to_string(), one.weight)).collect()
}

fn example() -> Resolutions {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let path = root.join("examples/next-hops.yaml");
    let snapshot = yaml::read(&[path]).unwrap_or_else(|error| panic!("{error}"));
    resolve_all(&snapshot, &Previous::default())
}

/// Asserts that one thing is rejected, which says this.
fn rejected(all: &Resolutions, says: &str) {
    let found: Vec<_> = all.rejections.iter().map(ToString::to_string).collect();
    assert!(found.len() == 1 && found[0].contains(says), "{found:#?}\ndo not say {says}");
    assert!(found[0].contains("VpcNatGateway/gw"), "{found:?}");
}

#[test]
fn the_example_is_clean_and_says_what_it_says() {
    let all = example();
    assert_eq!(all.rejections, []);
    let next_hops = &all.states["gw-next-hops"].gateway.next_hops;
    assert_eq!((next_hops.external.len(), next_hops.internal.len()), (4, 4));
    assert_eq!(next_hops.hash, Hashes::default());
    let tenth = Duration::from_millis(100);
    assert_eq!(next_hops.bfd, Some(Bfd { min_rx: tenth, min_tx: tenth, multiplier: 3 }));
    assert!(!next_hops.moves);
}

#[test]
fn without_annotations_there_is_nothing() {
    assert!(next_hops(&parse(&[("next-hop-hash", "source")])).is_empty());
}

#[test]
fn both_families_stand_in_one_list_with_weights() {
    let all = parse(&[
        (
            "external-next-hops",
            "203.0.113.1,203.0.113.2   weight 2 , 2001:db8::1 weight 0, 2001:db8::2",
        ),
        ("next-hop-hash", "source"),
        ("next-hop-return", "move"),
        ("next-hop-bfd", "on"),
    ]);
    assert_eq!(all.rejections, []);
    let expected = [("203.0.113.1", 1), ("203.0.113.2", 2), ("2001:db8::1", 0), ("2001:db8::2", 1)];
    assert_eq!(external(&all), expected.map(|(address, weight)| (address.to_owned(), weight)));
    let found = next_hops(&all);
    assert_eq!((found.hash.to_string().as_str(), found.moves), ("source", true));
    assert_eq!(found.bfd, Some(Bfd::DEFAULT));
}

#[test]
fn a_bad_entry_is_rejected_and_the_others_go_on() {
    for (entry, says) in [
        ("203.0.113.1", "203.0.113.1 is given already"),
        ("", "expected an IP address"),
        ("somewhere", "somewhere is not an IP address"),
        ("224.0.0.1", "224.0.0.1 is not the address of a host"),
        ("203.0.113.2 weight", "203.0.113.2 weight is not a next hop"),
        ("203.0.113.2 weight 1001", "is not a next hop, expected an address"),
        ("203.0.113.2 weight +1", "is not a next hop"),
        ("203.0.113.2 wait 1", "is not a next hop"),
    ] {
        let all = parse(&[("external-next-hops", &format!("203.0.113.1, {entry}"))]);
        rejected(&all, says);
        assert_eq!(external(&all), [("203.0.113.1".to_owned(), 1)], "{entry:?}");
    }
}

#[test]
fn a_family_without_any_weight_is_rejected_and_the_other_one_goes_on() {
    let all = parse(&[("external-next-hops", "203.0.113.1 weight 0, 2001:db8::1")]);
    rejected(&all, "is not a group: every weight is 0");
    assert_eq!(external(&all), [("2001:db8::1".to_owned(), 1)]);
}

#[test]
fn a_family_has_at_most_sixteen() {
    let list: Vec<_> = (1..=17).map(|last| format!("203.0.113.{last}")).collect();
    let all = parse(&[("external-next-hops", &list.join(","))]);
    rejected(&all, "203.0.113.17 is not among the first 16 of its family");
    assert_eq!(external(&all).len(), 16);
}

#[test]
fn bad_numbers_of_bfd_are_rejected_and_nobody_is_watched() {
    for (text, says) in [
        ("300/300/0", "0 is not a multiplier of BFD"),
        ("300/300/256", "256 is not a multiplier of BFD"),
        ("300/0/3", "0 is not an interval of BFD"),
        ("0/300/3", "0 is not an interval of BFD"),
        ("300/300", "300/300 is not a way to watch next hops"),
        ("yes", "yes is not a way to watch next hops"),
        ("300/300/-1", "is not a way to watch next hops"),
    ] {
        let all = parse(&[("external-next-hops", "203.0.113.1"), ("next-hop-bfd", text)]);
        rejected(&all, says);
        assert_eq!(next_hops(&all).bfd, None);
        assert_eq!(external(&all).len(), 1);
    }
}

#[test]
fn each_side_may_have_a_hash_of_its_own() {
    let all = parse(&[("external-next-hops", "203.0.113.1"), ("next-hop-hash", "source/5-tuple")]);
    let hash = next_hops(&all).hash;
    assert_eq!((hash.external, hash.internal), (HashFields::Source, HashFields::FiveTuple));
    assert_eq!(hash.to_string(), "source/5-tuple");
}

#[test]
fn a_bad_hash_or_return_is_rejected_and_an_annotation_that_nobody_knows_too() {
    rejected(&parse(&[("next-hop-hash", "7-tuple")]), "7-tuple is not a choice of fields");
    rejected(&parse(&[("next-hop-hash", "source/")]), " is not a choice of fields");
    rejected(&parse(&[("next-hop-hash", "source/source/5-tuple")]), "is not a choice of fields");
    rejected(&parse(&[("next-hop-return", "maybe")]), "maybe is not what becomes of open sessions");
    rejected(&parse(&[("next-hops", "203.0.113.1")]), "vpc-gateway.io/next-hops");
}

#[test]
fn every_replica_of_an_egress_gateway_has_them() {
    let text = "apiVersion: kubeovn.io/v1\nkind: VpcEgressGateway\nmetadata:\n  name: egress\n  \
                annotations:\n    vpc-gateway.io/external-next-hops: 203.0.113.1, 203.0.113.3\n\
                spec:\n  vpc: vpc1\n  externalSubnet: outside\n  internalIPs: [10.0.9.11, 10.0.9.12]\n  \
                externalIPs: [203.0.113.11, 203.0.113.12]\n  replicas: 2\n  \
                policies: [{snat: true, ipBlocks: [10.0.1.0/24]}]\n";
    let mut snapshot = Snapshot::default();
    yaml::parse("test.yaml", text, &mut snapshot);
    let all = resolve_all(&snapshot, &Previous::default());
    assert_eq!(all.rejections, []);
    for index in 0..2 {
        let identity = Identity { name: Some(ReplicaName::Index(index)), ..Identity::default() };
        let (state, _) = all.egress["egress"].replica(&identity).expect("a replica");
        assert_eq!(state.gateway.next_hops.external.len(), 2);
    }
}
