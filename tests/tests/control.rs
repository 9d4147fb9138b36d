//! The control path without a kernel: fixtures -> snapshot -> desired state, and what is rejected.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gateway_userspace::desired::{
    Affinity, Allocations, DesiredState, Previous, Resolution, Resolutions, resolve, resolve_after,
    resolve_all,
};
use gateway_userspace::source::{Snapshot, SourceError, yaml};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn read(paths: &[PathBuf]) -> Snapshot {
    yaml::read(paths).unwrap_or_else(|error| panic!("{error}"))
}

fn parse(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    yaml::parse("test.yaml", text, &mut snapshot);
    snapshot
}

fn base() -> String {
    fs::read_to_string(fixture("base.yaml")).expect("the base is there")
}

fn all(snapshot: &Snapshot) -> Resolutions {
    resolve_all(snapshot, &Previous::default())
}

fn gw1(text: &str, previous: &Allocations) -> Resolution {
    resolve(&parse(text), "gw1", previous)
}

fn eip(name: &str, spec: &str) -> String {
    object("IptablesEIP", name, &format!("natGwDp: gw1{spec}"))
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: kubeovn.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}}}\n"
    )
}

fn messages<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

/// Everything of `small` is in `large`, with the same value.
fn assert_contains(large: &DesiredState, small: &DesiredState, case: &str) {
    fn assert_in<K: Ord, V: PartialEq>(large: &BTreeMap<K, V>, small: &BTreeMap<K, V>, case: &str) {
        assert!(small.iter().all(|(key, value)| large.get(key) == Some(value)), "{case}");
    }
    assert_eq!(large.gateway, small.gateway, "{case}");
    assert_in(&large.eips, &small.eips, case);
    assert_in(&large.fips, &small.fips, case);
    assert_in(&large.dnats, &small.dnats, case);
    assert_in(&large.snats, &small.snats, case);
}

#[test]
fn the_base_has_nothing_to_report() {
    let resolution = gw1(&base(), &Allocations::default());
    assert_eq!(messages(&resolution.rejections), [""; 0]);
    assert_eq!(messages(&resolution.notes), [""; 0]);
    let state = resolution.state.unwrap();
    let counts = (state.eips.len(), state.fips.len(), state.dnats.len(), state.snats.len());
    assert_eq!(counts, (3, 1, 1, 1));
    assert_eq!(state.eips[&address("203.0.113.10")].address.to_string(), "203.0.113.10/24");
    assert_eq!(state.eips[&address("203.0.113.10")].gateway, Some(address("203.0.113.1")));
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn every_mistake_is_one_error_and_leaves_the_rest_alone() {
    let base_state = gw1(&base(), &Allocations::default()).state.unwrap();
    let mut cases = 0;
    for entry in fs::read_dir(fixture("rejected")).unwrap() {
        let path = entry.unwrap().path();
        let case = path.display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
        let expected = expected.unwrap_or_else(|| panic!("{case} does not say what it expects"));

        let resolutions = all(&read(&[fixture("base.yaml"), path]));
        let rejections = messages(&resolutions.rejections);
        assert_eq!(rejections.len(), 1, "{case}: {rejections:#?}");
        assert!(rejections[0].starts_with(&case), "{case}: {rejections:#?}");
        assert!(rejections[0].contains(expected), "{case}: {rejections:#?}");
        assert_contains(&resolutions.states["gw1"], &base_state, &case);
        cases += 1;
    }
    assert!(cases > 40, "only {cases} cases found");
}

#[test]
fn manifests_of_guides_and_tutorials_are_accepted() {
    for (file, gateway, [eips, fips, dnats, snats]) in [
        ("vpc-guide.yaml", Some("gw1"), [5, 1, 1, 1]),
        ("tutorial-v1.7.yaml", Some("ngw"), [2, 1, 1, 1]),
        ("harvester.yaml", Some("my-nat-gateway"), [0, 0, 0, 0]),
        ("virtual-switch.yaml", None, [0; 4]),
        ("egress-gateway.yaml", None, [0; 4]),
    ] {
        let resolutions = all(&read(&[fixture("accepted").join(file)]));
        assert_eq!(messages(&resolutions.rejections), [""; 0], "{file}");
        let found: Vec<_> = resolutions.states.keys().map(String::as_str).collect();
        assert_eq!(found, gateway.into_iter().collect::<Vec<_>>(), "{file}");
        for state in resolutions.states.values() {
            let counts = [state.eips.len(), state.fips.len(), state.dnats.len(), state.snats.len()];
            assert_eq!(counts, [eips, fips, dnats, snats], "{file}");
        }
    }
}

#[test]
fn names_of_the_guide_are_resolved() {
    let resolutions = all(&read(&[fixture("accepted/vpc-guide.yaml")]));
    let state = &resolutions.states["gw1"];
    assert_eq!(state.gateway.lan_ips, [address("10.0.1.254")]);
    // Kube-OVN takes the first address where a Subnet names no gateway.
    let subnet = state.gateway.subnet.as_ref().unwrap();
    assert_eq!(subnet.gateways, [address("10.0.1.1")]);
    let fip = &state.fips[&address("192.168.0.13")];
    assert_eq!(fip.internal, address("10.0.1.5"));
    assert_eq!(fip.owner.object.to_string(), "IptablesFIPRule/fip01");
    let (key, dnat) = state.dnats.first_key_value().unwrap();
    assert_eq!(key.to_string(), "192.168.0.12:8888/tcp");
    assert_eq!(dnat.backends[0].endpoint.to_string(), "10.0.1.10:80");
}

#[test]
fn a_full_subnet_refuses_a_random_eip_and_takes_a_static_one() {
    let harvester = fs::read_to_string(fixture("accepted/harvester.yaml")).unwrap();
    let mut text = harvester;
    for host in 2..10 {
        let spec = format!("natGwDp: my-nat-gateway, v4ip: 10.10.0.{host}");
        text += &object("IptablesEIP", &format!("static-{host}"), &spec);
    }
    text += &object("IptablesEIP", "random", "natGwDp: my-nat-gateway");
    let resolutions = all(&parse(&text));
    let rejections = messages(&resolutions.rejections);
    assert_eq!(rejections.len(), 1, "{rejections:#?}");
    assert!(rejections[0].ends_with(
        "IptablesEIP/random: spec.v4ip: no free address in Subnet/my-external-subnet \
         (10.10.0.0/24)"
    ));
    assert_eq!(resolutions.states["my-nat-gateway"].eips.len(), 8);
}

#[test]
fn the_examples_are_clean() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples");
    for (path, gateway) in
        [("nat-gateway", "gw1"), ("v1.7-inline.yaml", "ngw"), ("next-hops.yaml", "gw-next-hops")]
    {
        let resolutions = all(&read(&[examples.join(path)]));
        assert_eq!(messages(&resolutions.rejections), [""; 0], "{path}");
        assert!(resolutions.states.contains_key(gateway), "{path}");
    }
}

#[test]
fn a_chosen_address_does_not_move() {
    let before = base() + &eip("m", "") + &eip("z", "");
    let first = gw1(&before, &Allocations::default());
    let chosen =
        |resolution: &Resolution, name: &str| resolution.allocations.0[name][0].to_string();
    assert_eq!(chosen(&first, "m"), "203.0.113.2");
    assert_eq!(chosen(&first, "z"), "203.0.113.3");

    // One that comes first by name, one less, and a static one that wants a chosen address.
    let after = base() + &eip("a", "") + &eip("z", "") + &eip("thief", ", v4ip: 203.0.113.3");
    let second = gw1(&after, &first.allocations);
    assert_eq!(chosen(&second, "z"), "203.0.113.3");
    assert_eq!(chosen(&second, "a"), "203.0.113.2");
    assert!(!second.allocations.0.contains_key("m"));
    let rejections = messages(&second.rejections);
    assert_eq!(rejections.len(), 1, "{rejections:#?}");
    assert!(rejections[0].contains(
        "IptablesEIP/thief: spec.v4ip: 203.0.113.3 already belongs to IptablesEIP/z (test.yaml:"
    ));

    // Without a memory, as after the loss of the state directory, the static one has it.
    let third = gw1(&after, &Allocations::default());
    assert_eq!(messages(&third.rejections), [""; 0]);
    assert_eq!(chosen(&third, "z"), "203.0.113.4");
}

#[test]
fn a_chosen_address_is_kept_for_an_eip_that_cannot_be_read() {
    let good = base() + &eip("m", "") + &eip("z", "");
    let first = gw1(&good, &Allocations::default());
    let broken = base() + &eip("m", ", colour: red") + &eip("z", "") + &eip("b", "");
    let second = gw1(&broken, &first.allocations);
    assert_eq!(second.allocations.0["m"], first.allocations.0["m"]);
    assert_eq!(second.allocations.0["b"], [address("203.0.113.4")]);
    let third = gw1(&good, &second.allocations);
    assert_eq!(third.state, first.state);
}

#[test]
fn both_families_have_their_own_address() {
    let text = base().replace(
        "cidrBlock: 203.0.113.0/24\n  gateway: 203.0.113.1",
        "cidrBlock: 203.0.113.0/24,2001:db8:1::/64\n  gateway: 203.0.113.1,2001:db8:1::1",
    ) + &eip("dual", ", v6ip: \"2001:db8:1::10\"")
        + &object("IptablesFIPRule", "six", "eip: dual, internalIp: \"fd00:10:1::5\"")
        + &object("IptablesSnatRule", "six", "eip: dual, internalCIDR: \"fd00:10:1::/64\"")
        + &object("IptablesSnatRule", "four", "eip: dual, internalCIDR: 10.0.7.5/24");
    let resolution = gw1(&text, &Allocations::default());
    assert_eq!(messages(&resolution.rejections), [""; 0]);
    let notes = messages(&resolution.notes);
    assert!(notes.iter().any(|note| note.ends_with("10.0.7.5/24 is used as 10.0.7.0/24")));
    let state = resolution.state.unwrap();
    let (four, six) = (address("203.0.113.2"), address("2001:db8:1::10"));
    assert_eq!(state.eips[&four].gateway, Some(address("203.0.113.1")));
    assert_eq!(state.eips[&six].gateway, Some(address("2001:db8:1::1")));
    assert_eq!(state.fips[&six].internal, address("fd00:10:1::5"));
    assert_eq!(state.snats[&"fd00:10:1::/64".parse().unwrap()].eips[0].eip, six);
    assert_eq!(state.snats[&"10.0.7.0/24".parse().unwrap()].eips[0].eip, four);
}

#[test]
fn a_dual_stack_subnet_gives_an_address_of_each_family_and_keeps_both() {
    let dual = object(
        "Subnet",
        "outside-dual",
        "cidrBlock: \"198.51.100.0/24,2001:db8:9::/64\", protocol: Dual, \
         gateway: \"198.51.100.1,2001:db8:9::1\"",
    );
    let eip = |name: &str, rest: &str| {
        let spec = format!("natGwDp: gw1, externalSubnet: outside-dual{rest}");
        object("IptablesEIP", name, &spec)
    };
    let rule = object("IptablesFIPRule", "six", "eip: both, internalIp: \"fd00:10:1::9\"");
    let text = base() + &dual + &eip("both", "") + &rule;
    let first = gw1(&text, &Allocations::default());
    assert_eq!(messages(&first.rejections), [""; 0]);
    let chosen = first.allocations.0["both"].clone();
    assert_eq!(messages(&chosen), ["198.51.100.2", "2001:db8:9::2"]);
    let state = first.state.unwrap();
    assert_eq!(state.eips[&chosen[1]].gateway, Some(address("2001:db8:9::1")));
    assert_eq!(state.fips[&chosen[1]].internal, address("fd00:10:1::9"));

    // Who comes first in the alphabet does not take what was chosen; an address that is given is
    // enough in IPv4, and in IPv6 the other one is chosen.
    let more = text.clone()
        + &eip("a", "")
        + &eip("four", ", v4ip: 198.51.100.9")
        + &eip("six", ", v6ip: \"2001:db8:9::9\"");
    let second = gw1(&more, &first.allocations);
    assert_eq!(messages(&second.rejections), [""; 0]);
    assert_eq!(second.allocations.0["both"], chosen);
    assert_eq!(messages(&second.allocations.0["a"]), ["198.51.100.3", "2001:db8:9::3"]);
    assert!(!second.allocations.0.contains_key("four"));
    assert_eq!(messages(&second.allocations.0["six"]), ["198.51.100.4"]);
}

#[test]
fn shared_ports_and_pools_are_ordered() {
    let dnat = |name: &str, host: u8| {
        let spec = format!(
            "eip: eip-free, externalPort: 53, internalIp: 10.0.1.{host}, internalPort: 53, \
             protocol: udp, type: share"
        );
        object("IptablesDnatRule", name, &spec)
    };
    let snat = |name: &str, eip: &str| {
        object("IptablesSnatRule", name, &format!("eip: {eip}, internalCIDR: 10.0.8.0/24"))
    };
    let text =
        base() + &dnat("x", 30) + &dnat("y", 20) + &snat("p", "eip-free") + &snat("q", "eip-a");
    let resolution = gw1(&text, &Allocations::default());
    assert_eq!(messages(&resolution.rejections), [""; 0]);
    let state = resolution.state.unwrap();
    let shared = state.dnats.values().find(|dnat| dnat.backends.len() == 2).unwrap();
    let backends: Vec<_> = shared.backends.iter().map(|backend| backend.endpoint).collect();
    assert_eq!(messages(&backends), ["10.0.1.20:53", "10.0.1.30:53"]);
    let pool = &state.snats[&"10.0.8.0/24".parse().unwrap()].eips;
    let pool: Vec<_> = pool.iter().map(|snat| snat.eip).collect();
    assert_eq!(messages(&pool), ["203.0.113.10", "203.0.113.30"]);
}

/// A rule for port 53 of `eip-free`, with annotations.
fn shared(name: &str, host: u8, annotations: &str) -> String {
    format!(
        "---\napiVersion: kubeovn.io/v1\nkind: IptablesDnatRule\n\
         metadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
         spec: {{eip: eip-free, externalPort: 53, internalIp: 10.0.1.{host}, internalPort: 53, \
         protocol: udp, type: share}}\n"
    )
}

#[test]
fn a_shared_port_has_weights_and_affinity() {
    const CLIENT_IP: &str = "vpc-gateway.io/session-affinity: ClientIP";
    const NONE: &str = "vpc-gateway.io/session-affinity: None";
    for order in [["x", "y", "z"], ["z", "y", "x"]] {
        let rules: String = order
            .iter()
            .map(|name| match *name {
                "x" => shared("x", 20, "vpc-gateway.io/weight: \"3\""),
                "y" => shared("y", 30, NONE),
                _ => shared("z", 40, CLIENT_IP),
            })
            .collect();
        let resolution = gw1(&(base() + &rules), &Allocations::default());
        assert_eq!(messages(&resolution.rejections), [""; 0]);
        let state = resolution.state.unwrap();
        let dnat = state.dnats.values().find(|dnat| dnat.backends.len() == 3).unwrap();
        assert_eq!(dnat.affinity, Affinity::ClientIp);
        let weights: Vec<_> = dnat.backends.iter().map(|backend| backend.weight).collect();
        assert_eq!(weights, [3, 1, 1]);
        // Who says otherwise is told, whatever the order, and stays a backend.
        let notes = messages(&resolution.notes);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(
            notes[0].ends_with(
                "IptablesDnatRule/y: metadata.annotations.vpc-gateway.io/session-affinity: has no \
                 effect, because IptablesDnatRule/z asks for ClientIP on 203.0.113.30:53/udp"
            ),
            "{notes:?}"
        );
    }
    let rules = shared("x", 20, NONE) + &shared("y", 30, "");
    let state = gw1(&(base() + &rules), &Allocations::default()).state.unwrap();
    let dnat = state.dnats.values().find(|dnat| dnat.backends.len() == 2).unwrap();
    assert_eq!(dnat.affinity, Affinity::None);
}

#[test]
fn a_weight_on_an_exclusive_rule_is_told() {
    let rule = shared("x", 20, "vpc-gateway.io/weight: \"3\"").replace(", type: share", "");
    let resolution = gw1(&(base() + &rule), &Allocations::default());
    assert_eq!(messages(&resolution.rejections), [""; 0]);
    let notes = messages(&resolution.notes);
    assert!(
        notes[0].ends_with(
            "IptablesDnatRule/x: metadata.annotations.vpc-gateway.io/weight: has no effect, because \
             the type of the rule is not share"
        ),
        "{notes:?}"
    );
}

#[test]
fn a_fip_beside_a_dnat_rule_is_told() {
    let spec = "eip: eip-a, externalPort: 80, internalIp: 10.0.1.10, internalPort: 80, \
                protocol: tcp";
    let text = base() + &object("IptablesDnatRule", "shadowed", spec);
    let resolution = gw1(&text, &Allocations::default());
    assert_eq!(messages(&resolution.rejections), [""; 0]);
    let notes = messages(&resolution.notes);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].ends_with(
        "IptablesDnatRule/shadowed: never used, because IptablesFIPRule/fip-a takes every packet \
         to 203.0.113.10"
    ));
}

#[test]
fn objects_of_another_gateway_are_not_reported() {
    let text = base()
        + &object("VpcNatGateway", "gw2", "vpc: test-vpc-1, subnet: net1, lanIp: 10.0.1.253")
        + &object("IptablesEIP", "other", "natGwDp: gw2, v4ip: 203.0.113.60")
        + &object("IptablesFIPRule", "bad", "eip: other, internalIp: nonsense");
    assert_eq!(messages(&gw1(&text, &Allocations::default()).rejections), [""; 0]);
    let other = resolve(&parse(&text), "gw2", &Allocations::default());
    assert_eq!(other.rejections.len(), 1);
    assert_eq!(other.state.unwrap().eips.len(), 1);
    assert!(resolve(&parse(&text), "gw3", &Allocations::default()).state.is_none());
}

/// The generator of Knuth's MMIX.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// The documents of a text in another order, decided by `seed`.
fn shuffled(text: &str, seed: u64) -> String {
    let mut documents: Vec<&str> = text.split("---\n").filter(|text| !text.is_empty()).collect();
    let mut random = Random(seed);
    for last in (1..documents.len()).rev() {
        documents.swap(last, random.below(last + 1));
    }
    documents.join("---\n")
}

#[test]
fn the_order_of_the_documents_does_not_matter() {
    let mut text = base();
    for name in ["r1", "r2", "r3", "r4"] {
        text += &eip(name, "");
        text += &object(
            "IptablesSnatRule",
            name,
            &format!("eip: {name}, internalCIDR: 10.{}.0.0/16", name.len()),
        );
    }
    let expected = gw1(&text, &Allocations::default());
    assert_eq!(messages(&expected.rejections), [""; 0]);
    for seed in 0..200 {
        let resolution = gw1(&shuffled(&text, seed), &Allocations::default());
        assert_eq!(resolution.state, expected.state, "seed {seed}");
        assert_eq!(resolution.allocations, expected.allocations, "seed {seed}");
    }
}

fn previous(resolution: &Resolution) -> Previous {
    Previous { allocations: resolution.allocations.clone(), active: resolution.active.clone() }
}

#[test]
fn what_is_active_wins_a_conflict() {
    let fip = |name| object("IptablesFIPRule", name, "eip: eip-free, internalIp: 10.0.1.40");
    let first = gw1(&(base() + &fip("z")), &Allocations::default());
    // The new one stands first in the file and in the alphabet.
    let both = parse(&(fip("a") + "---\n" + &base() + &fip("z")));
    let second = resolve_after(&both, "gw1", &previous(&first));
    assert_eq!(second.state, first.state);
    assert_eq!(second.rejections.len(), 1);
    assert!(second.rejections[0].to_string().contains("IptablesFIPRule/a: spec.internalIp: "));
}

#[test]
fn a_mistake_loses_nothing_that_was_active() {
    let first = gw1(&base(), &Allocations::default());
    for (case, text) in [
        ("a bad value", base().replace("externalPort: \"8080\"", "externalPort: \"70000\"")),
        ("an unknown field", base().replace("internalPort:", "internalport:")),
        ("a document that is not YAML", base().replace("  externalPort:", "     externalPort:")),
        ("an EIP that moves outside", base().replace("203.0.113.20", "192.0.2.20")),
        ("a lanIp outside", base().replace("10.0.1.254", "10.0.9.254")),
        ("an empty file", String::new()),
        ("a missing separator", base().replacen("---\n", "", 1)),
    ] {
        let second = resolve_after(&parse(&text), "gw1", &previous(&first));
        assert_eq!(second.state, first.state, "{case}");
        assert_eq!(second.rejections.len(), 1, "{case}: {:#?}", messages(&second.rejections));
        assert!(second.notes.iter().any(|note| note.to_string().ends_with("as it was before")));
        // And it is not forgotten on the next reading.
        let third = resolve_after(&parse(&text), "gw1", &previous(&second));
        assert_eq!(third.state, first.state, "{case}");
    }
}

// Found by the fuzzer: the second mistake is about the gateway in its old form.
#[test]
fn a_gateway_outlives_two_mistakes_at_once() {
    let first = gw1(&base(), &Allocations::default());
    let text = base().replacen("vpc: test-vpc-1", "vpc: another", 1);
    let text = text.replace("  lanIp: 10.0.1.254", "     lanIp: 10.0.1.254");
    let second = resolve_after(&parse(&text), "gw1", &previous(&first));
    assert!(second.state.is_some(), "{:#?}", messages(&second.rejections));
    let third = resolve_after(&parse(&text), "gw1", &previous(&second));
    assert_eq!(third.state, second.state, "{:#?}", messages(&third.rejections));
}

#[test]
fn what_is_removed_is_gone() {
    let with = base() + &object("IptablesFIPRule", "more", "eip: eip-free, internalIp: 10.0.1.40");
    let first = gw1(&with, &Allocations::default());
    let second = resolve_after(&parse(&base()), "gw1", &previous(&first));
    assert_eq!(second.state, gw1(&base(), &Allocations::default()).state);
    assert_eq!(messages(&second.rejections), [""; 0]);
}

#[test]
fn rules_may_swap_what_they_hold() {
    let dnats = |a: u16, b: u16| {
        let spec = |port: u16| {
            format!(
                "eip: eip-free, externalPort: {port}, internalIp: 10.0.1.10, internalPort: \
                 {port}, protocol: tcp"
            )
        };
        base()
            + &object("IptablesDnatRule", "a", &spec(a))
            + &object("IptablesDnatRule", "b", &spec(b))
    };
    let first = gw1(&dnats(1, 2), &Allocations::default());
    let second = resolve_after(&parse(&dnats(2, 1)), "gw1", &previous(&first));
    assert_eq!(messages(&second.rejections), [""; 0]);
    assert_ne!(second.state, first.state);
}

#[test]
fn an_unreadable_input_is_an_error_of_its_own() {
    let missing = yaml::read(&[fixture("no-such-file.yaml")]).unwrap_err();
    assert!(matches!(missing, SourceError::Io { operation: "read", .. }), "{missing}");
    let directory = std::env::temp_dir().join(format!("vpc-gateway-read-{}", std::process::id()));
    fs::create_dir_all(directory.join("deeper.yaml")).unwrap();
    let paths = [directory.clone()];
    assert!(matches!(yaml::read(&paths), Err(SourceError::NoFiles { .. })));
    fs::write(directory.join("latin1.yaml"), b"name: \xe9\n").unwrap();
    assert!(matches!(yaml::read(&paths), Err(SourceError::Io { .. })));
    let large = fs::File::create(directory.join("latin1.yaml")).unwrap();
    large.set_len(yaml::MAX_FILE_BYTES + 1).unwrap();
    assert!(matches!(yaml::read(&paths), Err(SourceError::TooLarge { .. })));
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_directory_is_read_in_the_order_of_its_names() {
    let directory = std::env::temp_dir().join(format!("vpc-gateway-dir-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let vpc = |name: &str| object("Vpc", name, "");
    for (file, text) in [
        ("b.yml", vpc("second")),
        ("a.yaml", vpc("first")),
        ("c.json", r#"{"kind":"Vpc","apiVersion":"kubeovn.io/v1","metadata":{"name":"c"}}"#.into()),
        ("README.md", "not a manifest".into()),
    ] {
        fs::write(directory.join(file), text).unwrap();
    }
    let snapshot = read(std::slice::from_ref(&directory));
    let names: Vec<_> = snapshot.objects.iter().map(|object| object.object_ref().name).collect();
    assert_eq!(names, ["first", "second", "c"]);
    fs::remove_dir_all(&directory).unwrap();
}

/// What a slip of the finger, a bad merge or an attacker may leave of a file.
#[test]
fn no_input_makes_it_panic() {
    let inputs = ["base.yaml", "accepted/vpc-guide.yaml", "accepted/tutorial-v1.7.yaml"];
    let pieces =
        ["---\n", "  ", "- ", ": ", "&a ", "*a", "{", "]", "\"", "'", "\t", "\u{e9}", "0/", "|"];
    let mut random = Random(7);
    for file in inputs {
        let text = fs::read_to_string(fixture(file)).unwrap();
        for _ in 0..700 {
            let mut mutant: Vec<char> = text.chars().collect();
            for _ in 0..=random.below(4) {
                let at = random.below(mutant.len());
                let until = (at + random.below(12)).min(mutant.len());
                let piece = pieces[random.below(pieces.len())];
                mutant.splice(at..until, piece.chars());
            }
            let mutant: String = mutant.into_iter().collect();
            let resolutions = all(&parse(&mutant));
            let _ = (messages(&resolutions.rejections), messages(&resolutions.notes));
        }
    }
}

#[test]
fn ten_thousand_rules_are_read_and_resolved() {
    let mut text = base();
    for rule in 0..10_000 {
        let (port, host) = (1024 + rule, rule % 200 + 2);
        let _ = write!(
            text,
            "---\napiVersion: kubeovn.io/v1\nkind: IptablesDnatRule\nmetadata:\n  name: \
             dnat-{rule}\nspec:\n  eip: eip-free\n  externalPort: \"{port}\"\n  internalIp: \
             10.0.1.{host}\n  internalPort: \"80\"\n  protocol: tcp\n"
        );
    }
    let started = Instant::now();
    let snapshot = parse(&text);
    let parsed = started.elapsed();
    let resolution = resolve(&snapshot, "gw1", &Allocations::default());
    let resolved = started.elapsed() - parsed;
    println!(
        "10 000 DNAT rules, {} bytes: read in {parsed:?}, resolved in {resolved:?}",
        text.len()
    );
    assert_eq!(messages(&resolution.rejections), [""; 0]);
    assert_eq!(resolution.state.unwrap().dnats.len(), 10_001);
}
