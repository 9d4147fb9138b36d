//! Egress gateways and routes of VPCs without a kernel: what they become, and what is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use gateway_common::nexthop::DENIED;
use gateway_userspace::bfd::engine::Ends;
use gateway_userspace::bfd::session::Parameters;
use gateway_userspace::desired::{
    Allocations, DesiredState, Identity, Previous, ReplicaName, Resolutions, resolve, resolve_all,
};
use gateway_userspace::egress::plan::{Image, Link, Planned, Surroundings, bfd_sessions, plan};
use gateway_userspace::source::{Snapshot, yaml};
use ipnet::IpNet;

fn parse(text: &str) -> Resolutions {
    let mut snapshot = Snapshot::default();
    let text = text.replace("\nkind: ", "\napiVersion: kubeovn.io/v1\nkind: ");
    yaml::parse("test.yaml", &text, &mut snapshot);
    resolve_all(&snapshot, &Previous::default())
}

fn read(path: &str) -> Resolutions {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let snapshot = yaml::read(&[root.join(path)]).unwrap_or_else(|error| panic!("{error}"));
    resolve_all(&snapshot, &Previous::default())
}

fn rejections(all: &Resolutions) -> Vec<String> {
    let place = |text: &str| text.split_once(": document ").map(|(_, rest)| rest.to_owned());
    let lines = all.rejections.iter().map(ToString::to_string);
    lines
        .map(|line| {
            place(&line).map_or(line, |rest| rest[rest.find(": ").unwrap_or(0) + 2..].to_owned())
        })
        .collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn named(index: usize) -> Identity {
    Identity { name: Some(ReplicaName::Index(index)), ..Identity::default() }
}

fn replica(all: &Resolutions, identity: &Identity) -> DesiredState {
    let (state, _) = all.egress["egress"].replica(identity).unwrap_or_else(|why| panic!("{why}"));
    state
}

const NETWORKS: &str = "
kind: Subnet
metadata: {name: tenants}
spec: {vpc: vpc1, cidrBlock: 'fd00:10:1::/64,10.0.1.0/24'}
---
kind: Subnet
metadata: {name: gateways}
spec: {vpc: vpc1, cidrBlock: '10.0.9.0/24,fd00:10:9::/64'}
---
kind: Subnet
metadata: {name: outside}
spec: {provider: outside.kube-system, cidrBlock: 203.0.113.0/24}
---
";

/// A gateway of two replicas, with more in its spec.
fn gateway(more: &str) -> String {
    format!(
        "{NETWORKS}\nkind: VpcEgressGateway\nmetadata: {{name: egress}}\nspec:\n  vpc: vpc1\n  replicas: 2\n  \
         internalSubnet: gateways\n  externalSubnet: outside\n  {}\n",
        more.replace('\n', "\n  ")
    )
}

const ADDRESSES: &str =
    "internalIPs: [10.0.9.11, 10.0.9.12]\nexternalIPs: [203.0.113.11, 203.0.113.12]\n";

#[test]
fn a_replica_is_a_gateway_with_its_own_address() {
    let all = read("examples/egress-gateway");
    assert_eq!(rejections(&all), [""; 0]);
    let state = replica(&all, &named(1));
    let eips: Vec<_> = state.eips.values().map(|eip| eip.address.to_string()).collect();
    assert_eq!(eips, ["203.0.113.12/24", "2001:db8:113::12/64"]);
    let snats: BTreeMap<_, _> =
        state.snats.iter().map(|(cidr, snat)| (*cidr, snat.eips[0].eip)).collect();
    let expected = [("10.0.1.0/24", "203.0.113.12"), ("fd00:10:1::/64", "2001:db8:113::12")];
    assert_eq!(snats, expected.map(|(cidr, eip)| (net(cidr), ip(eip))).into());
    let forwards: Vec<_> = state.forwards.keys().copied().collect();
    assert_eq!(forwards, [net("10.0.2.0/24"), net("fd00:10:2::/64")]);
    // Back to everybody who is not a neighbour.
    assert_eq!(state.gateway.routes[&net("10.0.1.0/24")], ip("10.0.9.1"));
    assert_eq!(state.gateway.routes[&net("fd00:10:2::/64")], ip("fd00:10:9::1"));
    assert_eq!(state.gateway.lan_ips, [ip("10.0.9.12"), ip("fd00:10:9::12")]);
}

#[test]
fn a_replica_is_told_or_knows_itself_by_its_addresses() {
    let all = read("examples/egress-gateway");
    let address =
        |text| Identity { name: Some(ReplicaName::Address(ip(text))), ..Identity::default() };
    let outside = |text| Identity { external: vec![net(text)], ..Identity::default() };
    let inside = |text| Identity { internal: vec![net(text)], ..Identity::default() };
    for identity in [
        named(2),
        address("10.0.9.13"),
        address("2001:db8:113::13"),
        outside("203.0.113.13/24"),
        inside("fd00:10:9::13/64"),
    ] {
        let state = replica(&all, &identity);
        assert!(state.eips.contains_key(&ip("203.0.113.13")), "{identity:?}");
    }
    let gateway = &all.egress["egress"];
    let why = gateway.replica(&named(3)).unwrap_err().to_string();
    assert!(
        why.starts_with("VpcEgressGateway/egress has no replica 3, expected 0: 10.0.9.11,"),
        "{why}"
    );
    let why = gateway.replica(&outside("203.0.113.99/24")).unwrap_err().to_string();
    assert!(why.contains("no address of a replica") && why.ends_with("say --replica"), "{why}");
}

#[test]
fn without_addresses_in_the_manifest_the_interface_tells() {
    let all =
        parse(&gateway("policies: [{snat: true, ipBlocks: [10.0.1.0/24, 'fd00:10:1::/64']}]"));
    let own = Identity { external: vec![net("203.0.113.77/24")], ..Identity::default() };
    let (state, notes) = all.egress["egress"].replica(&own).unwrap();
    assert_eq!(state.snats[&net("10.0.1.0/24")].eips[0].eip, ip("203.0.113.77"));
    // Dual stack inside, IPv4 outside: what cannot be translated is not let through.
    assert!(!state.snats.contains_key(&net("fd00:10:1::/64")));
    let notes: Vec<_> = notes.iter().map(ToString::to_string).collect();
    assert!(notes[0].contains("fd00:10:1::/64 is dropped"), "{notes:?}");
}

#[test]
fn bad_input_is_named_and_the_rest_goes_on() {
    let policies = "policies: [{snat: true, subnets: [tenants]}]\n";
    for (more, expected) in [
        (
            "internalIPs: [10.0.9.11]\n",
            "VpcEgressGateway/egress: spec.internalIPs: 1 addresses for 2 replicas, expected one for each",
        ),
        (
            "internalIPs: [10.0.9.11, 10.0.9.11]\n",
            "VpcEgressGateway/egress: spec.internalIPs[1]: 10.0.9.11 is given already",
        ),
        (
            "internalIPs: [10.0.9.11, 10.0.8.12]\n",
            "VpcEgressGateway/egress: spec.internalIPs[1]: 10.0.8.12 is outside Subnet/gateways \
             (10.0.9.0/24, fd00:10:9::/64)",
        ),
        (
            "internalIPs: [10.0.9.11, 10.0.9.12]\nexternalIPs: [203.0.113.1, 203.0.113.12]\n",
            "VpcEgressGateway/egress: spec.externalIPs[0]: 203.0.113.1 is the gateway of Subnet/outside",
        ),
        (
            "bfd: {enabled: true, multiplier: 0}\n",
            "VpcEgressGateway/egress: spec.bfd.multiplier: 0 is not a multiplier of BFD, expected 1 to 255",
        ),
        (
            "bfd: {enabled: true, multiplier: 256}\n",
            "VpcEgressGateway/egress: spec.bfd.multiplier: 256 is not a multiplier of BFD, expected 1 to 255",
        ),
        (
            "bfd: {enabled: true, minTX: 0}\n",
            "VpcEgressGateway/egress: spec.bfd.minTX: 0 is not an interval of BFD, expected 1 to 3600000 ms",
        ),
        (
            "bandwidth: {egress: fast}\n",
            "VpcEgressGateway/egress: spec.bandwidth.egress: fast is not a bandwidth, expected a number \
             of Mbit/s, or a quantity such as 100M, 1G or 1Gi",
        ),
        (
            "trafficPolicy: Nearby\n",
            "VpcEgressGateway/egress: spec.trafficPolicy: Nearby is not a traffic policy, expected \
             Cluster or Local",
        ),
    ] {
        let all = parse(&gateway(&format!("{policies}{more}")));
        assert_eq!(rejections(&all), [expected], "{more}");
        // The sources are still the gateway's: dropped if need be, and not sent past it.
        assert!(all.egress["egress"].sources[&net("10.0.1.0/24")], "{more}");
    }
}

#[test]
fn a_bandwidth_is_read_and_said_not_to_be_enforced() {
    let policies = "policies: [{snat: true, subnets: [tenants]}]\n";
    for rate in ["100", "'100'", "10M", "1G", "1Gi", "512Mi", "1.5G", "'.5Gi'"] {
        let all =
            parse(&gateway(&format!("{policies}{ADDRESSES}bandwidth: {{ingress: {rate}}}\n")));
        assert_eq!(rejections(&all), [""; 0], "{rate}");
        let noted =
            all.notes.iter().any(|note| note.to_string().ends_with("read, but not enforced"));
        assert!(noted, "{rate}");
    }
    for rate in ["1.5", "1.G", "'.G'", "+1G", "-1", "1K", "1.5.5G", "1e3", "9223372036855"] {
        let all =
            parse(&gateway(&format!("{policies}{ADDRESSES}bandwidth: {{ingress: {rate}}}\n")));
        let said = rejections(&all);
        assert!(
            said.len() == 1 && said[0].contains("spec.bandwidth.ingress: "),
            "{rate}: {said:?}"
        );
    }
}

#[test]
fn two_gateways_cannot_have_one_source() {
    let first = gateway(&format!("{ADDRESSES}policies: [{{snat: true, subnets: [tenants]}}]"));
    let second = "---\nkind: VpcEgressGateway\nmetadata: {name: second}\nspec:\n  vpc: vpc1\n  \
                  externalSubnet: outside\n  internalIPs: [10.0.9.20]\n  \
                  policies: [{ipBlocks: [10.0.1.0/24, 10.0.7.0/24]}]\n";
    let all = parse(&format!("{first}{second}"));
    let found = rejections(&all);
    let expected = "VpcEgressGateway/second: spec.policies: egress of 10.0.1.0/24 already belongs to \
                    VpcEgressGateway/egress";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    let sources: Vec<_> = all.egress["second"].sources.keys().copied().collect();
    assert_eq!(sources, [net("10.0.7.0/24")]);
}

#[test]
fn two_namespaces_can_have_gateways_of_one_name() {
    let here = gateway(&format!("{ADDRESSES}policies: [{{snat: true, subnets: [tenants]}}]"));
    let there = "---\nkind: VpcEgressGateway\nmetadata: {name: egress, namespace: team-b}\nspec:\n  \
                 vpc: vpc1\n  externalSubnet: outside\n  internalIPs: [10.0.9.20]\n  \
                 policies: [{ipBlocks: [10.0.7.0/24]}, {ipBlocks: [10.0.7.256/24]}]\n";
    let text = format!("{here}{there}").replace("\nkind: ", "\napiVersion: kubeovn.io/v1\nkind: ");
    let mut snapshot = Snapshot::default();
    yaml::parse("test.yaml", &text, &mut snapshot);
    let gateway = |name: &str| resolve(&snapshot, name, &Allocations::default());
    let sources = |name: &str| {
        let found = gateway(name).egress.unwrap_or_else(|| panic!("no {name}"));
        found.sources.keys().copied().filter(|one| one.addr().is_ipv4()).collect::<Vec<_>>()
    };
    for name in ["egress", "default/egress"] {
        assert_eq!(sources(name), [net("10.0.1.0/24")]);
        assert_eq!(gateway(name).rejections, [], "what is wrong with the other is no concern");
    }
    assert_eq!(sources("team-b/egress"), [net("10.0.7.0/24")]);
    let wrong = gateway("team-b/egress").rejections;
    assert!(
        wrong.len() == 1 && wrong[0].to_string().contains("VpcEgressGateway/team-b/egress"),
        "{wrong:?}"
    );
    assert!(gateway("team-c/egress").egress.is_none());
}

/// The interface of the selector, in 10.0.9.0/24 and fd00:10:9::/64.
fn links() -> Vec<Link> {
    let link = |address| Link { address: net(address), ifindex: 7, mtu: 1500 };
    vec![link("10.0.9.1/24"), link("fd00:10:9::1/64")]
}

fn planned(all: &Resolutions, alive: &dyn Fn(&Ends) -> Option<bool>, before: &Image) -> Planned {
    let links = links();
    let around = Surroundings { links: &links, node: None, alive };
    plan(&all.egress, &all.routers, &around, before)
}

/// The next hops of a packet, by what the maps would say; `None` leaves it to the kernel.
fn hops(planned: &Planned, from: &str, to: &str) -> Option<Vec<String>> {
    let Planned { image, .. } = planned;
    let id = |networks: &BTreeMap<IpNet, u32>, address: &str| {
        let covering = networks.iter().filter(|(cidr, _)| cidr.contains(&ip(address)));
        covering.max_by_key(|(cidr, _)| cidr.prefix_len()).map_or(0, |(_, id)| *id)
    };
    let row = image.choices.get(&id(&image.sources, from))?;
    let choice = *row.get(&id(&image.destinations, to))?;
    if choice == DENIED {
        return Some(vec!["denied".to_owned()]);
    }
    let slots = &image.groups[&choice].slots;
    let mut members: Vec<_> = slots.iter().filter(|id| **id != 0).collect();
    members.sort_unstable();
    members.dedup();
    Some(members.iter().map(|id| image.members[id].address.to_string()).collect())
}

fn to(hops: &[&str]) -> Option<Vec<String>> {
    Some(hops.iter().map(ToString::to_string).collect())
}

fn vpc(spec: &str) -> String {
    format!(
        "{NETWORKS}\nkind: Vpc\nmetadata: {{name: vpc1}}\nspec:\n  {}\n",
        spec.replace('\n', "\n  ")
    )
}

#[test]
fn static_routes_are_followed_by_prefix_and_then_by_destination() {
    let all = parse(&vpc("
staticRoutes:
- {cidr: 0.0.0.0/0, nextHopIP: 10.0.9.10, policy: policyDst}
- {cidr: 198.51.0.0/16, nextHopIP: 10.0.9.11}
- {cidr: 198.51.0.0/16, nextHopIP: 10.0.9.12}
- {cidr: 10.0.1.64/26, nextHopIP: 10.0.9.13, policy: policySrc}
- {cidr: 192.0.2.0/26, nextHopIP: 10.0.9.14}
- {cidr: '::/0', nextHopIP: 'fd00:10:9::10'}"));
    assert_eq!(rejections(&all), [""; 0]);
    let planned = planned(&all, &|_| None, &Image::default());
    assert_eq!(hops(&planned, "10.0.1.5", "203.0.113.9"), to(&["10.0.9.10"]));
    assert_eq!(hops(&planned, "10.0.1.5", "198.51.100.7"), to(&["10.0.9.11", "10.0.9.12"]));
    assert_eq!(hops(&planned, "10.0.1.70", "198.51.100.7"), to(&["10.0.9.13"]), "the longer one");
    assert_eq!(
        hops(&planned, "10.0.1.70", "192.0.2.1"),
        to(&["10.0.9.14"]),
        "by destination first"
    );
    assert_eq!(hops(&planned, "fd00:10:1::5", "2001:db8::1"), to(&["fd00:10:9::10"]));
    // Inside the VPC nobody is asked, but a longer route is.
    assert_eq!(hops(&planned, "10.0.1.5", "10.0.9.44"), None);
    // Another VPC is none of its business.
    assert_eq!(hops(&planned, "10.77.1.5", "203.0.113.9"), None);
}

#[test]
fn policy_routes_are_followed_by_priority() {
    let all = parse(&vpc("
staticRoutes:
- {cidr: 0.0.0.0/0, nextHopIP: 10.0.9.10}
policyRoutes:
- {priority: 10, action: reroute, match: ip4.src == 10.0.1.0/24, nextHopIP: '10.0.9.12,10.0.9.13'}
- {priority: 11, action: drop, match: ip4.src == 10.0.1.0/24 && ip4.dst == 198.51.100.7}
- {priority: 12, action: allow, match: ip4.src == 10.0.1.10/32}
- {priority: 31001, action: drop, match: ip4.dst == 10.0.9.200}"));
    assert_eq!(rejections(&all), [""; 0]);
    let planned = planned(&all, &|_| None, &Image::default());
    assert_eq!(hops(&planned, "10.0.1.5", "203.0.113.9"), to(&["10.0.9.12", "10.0.9.13"]));
    assert_eq!(hops(&planned, "10.0.1.5", "198.51.100.7"), to(&["denied"]));
    assert_eq!(hops(&planned, "10.0.1.10", "198.51.100.7"), to(&["10.0.9.10"]), "as routed");
    // What Kube-OVN makes of Subnets comes before these priorities, and after higher ones.
    assert_eq!(hops(&planned, "10.0.1.5", "10.0.9.44"), None);
    assert_eq!(hops(&planned, "10.0.1.5", "10.0.9.200"), to(&["denied"]));
}

#[test]
fn an_egress_gateway_is_a_policy_among_policies() {
    let text = format!(
        "{}---\nkind: Vpc\nmetadata: {{name: vpc1}}\nspec:\n  staticRoutes:\n  \
         - {{cidr: 0.0.0.0/0, nextHopIP: 10.0.9.10}}\n  policyRoutes:\n  \
         - {{priority: 29101, action: allow, match: ip4.src == 10.0.1.7}}\n  \
         - {{priority: 29099, action: drop, match: ip4.src == 10.0.1.8}}\n",
        gateway(&format!("{ADDRESSES}policies: [{{snat: true, subnets: [tenants]}}]"))
    );
    let all = parse(&text);
    assert_eq!(rejections(&all), [""; 0]);
    let planned = planned(&all, &|_| None, &Image::default());
    assert_eq!(hops(&planned, "10.0.1.8", "192.0.2.1"), to(&["10.0.9.11", "10.0.9.12"]));
    assert_eq!(hops(&planned, "10.0.1.7", "192.0.2.1"), to(&["10.0.9.10"]));
}

#[test]
fn a_vpc_has_the_timers_of_its_guarded_routes() {
    let with = |value: &str| {
        let annotated = format!(
            "metadata: {{name: vpc1, annotations: {{vpc-gateway.io/next-hop-bfd: {value}}}}}"
        );
        let text = vpc("
staticRoutes:
- {cidr: 0.0.0.0/0, nextHopIP: 10.0.9.11, bfdId: one}
- {cidr: 198.51.100.0/24, nextHopIP: 10.0.9.12}");
        parse(&text.replace("metadata: {name: vpc1}", &annotated))
    };
    let sessions = |all: &Resolutions| {
        let sessions = bfd_sessions(&all.egress, &all.routers, &links());
        let timers = sessions.into_iter().map(|(ends, wants)| {
            let Parameters { min_rx, min_tx, multiplier, .. } = wants.parameters;
            (ends.remote.to_string(), min_rx.as_millis(), min_tx.as_millis(), multiplier)
        });
        timers.collect::<Vec<_>>()
    };
    let one = |rx, tx, multiplier| vec![("10.0.9.11".to_owned(), rx, tx, multiplier)];
    for (value, expected) in [
        ("300/200/4", one(300, 200, 4)),
        ("'on'", one(1000, 1000, 3)),
        ("'off'", vec![]),
        // What is bad is rejected, and the default watches on.
        ("300/200", one(1000, 1000, 3)),
        ("0/200/3", one(1000, 1000, 3)),
        ("300/200/256", one(1000, 1000, 3)),
        ("'yes'", one(1000, 1000, 3)),
    ] {
        let all = with(value);
        assert_eq!(sessions(&all), expected, "{value}");
        let good = matches!(value, "300/200/4" | "'on'" | "'off'");
        let said = rejections(&all);
        let named = "Vpc/vpc1: metadata.annotations.vpc-gateway.io/next-hop-bfd: ";
        assert!(
            if good { said.is_empty() } else { said[0].starts_with(named) },
            "{value}: {said:?}"
        );
    }
    let unknown = with("'on', vpc-gateway.io/bfd-min-rx: '3'");
    assert_eq!(
        rejections(&unknown),
        ["Vpc/vpc1: metadata.annotations.vpc-gateway.io/bfd-min-rx: unknown annotation, expected \
             one of vpc-gateway.io/next-hop-bfd"]
    );
}

#[test]
fn a_guarded_route_gives_way_while_its_next_hops_are_dead() {
    let all = parse(&vpc("
staticRoutes:
- {cidr: 0.0.0.0/0, nextHopIP: 10.0.9.10}
- {cidr: 198.51.100.0/24, nextHopIP: 10.0.9.11, bfdId: one, ecmpMode: ecmp_symmetric_reply}
- {cidr: 198.51.100.0/24, nextHopIP: 10.0.9.12, bfdId: two, ecmpMode: ecmp_symmetric_reply}"));
    assert_eq!(rejections(&all), [""; 0]);
    let with = |dead: &'static [&'static str]| {
        let alive = |ends: &Ends| Some(!dead.contains(&&*ends.remote.to_string()));
        hops(&planned(&all, &alive, &Image::default()), "10.0.1.5", "198.51.100.7")
    };
    assert_eq!(with(&[]), to(&["10.0.9.11", "10.0.9.12"]));
    assert_eq!(with(&["10.0.9.12"]), to(&["10.0.9.11"]));
    assert_eq!(with(&["10.0.9.11", "10.0.9.12"]), to(&["10.0.9.10"]));
}

#[test]
fn a_route_table_is_for_the_subnets_that_name_it() {
    let text = vpc("
staticRoutes:
- {cidr: 0.0.0.0/0, nextHopIP: 10.0.9.10}
- {cidr: 0.0.0.0/0, nextHopIP: 10.0.9.11, routeTable: special}");
    let special = "---\nkind: Subnet\nmetadata: {name: special}\n\
                   spec: {vpc: vpc1, cidrBlock: 10.0.3.0/24, routeTable: special}\n";
    let all = parse(&format!("{text}{special}"));
    let planned = planned(&all, &|_| None, &Image::default());
    assert_eq!(hops(&planned, "10.0.1.5", "192.0.2.1"), to(&["10.0.9.10"]));
    assert_eq!(hops(&planned, "10.0.3.5", "192.0.2.1"), to(&["10.0.9.11"]));
}

#[test]
fn a_route_that_cannot_be_followed_is_named_and_the_others_go_on() {
    for (route, expected) in [
        (
            "policyRoutes: [{priority: 10, action: drop, match: tcp.dst == 80}]",
            "Vpc/vpc1: spec.policyRoutes[0].match: tcp.dst == 80 is not a match that is followed here, \
             expected ip4.src, ip4.dst, ip6.src or ip6.dst == a CIDR, each at most once, with && between",
        ),
        (
            "policyRoutes: [{priority: 10, action: reroute, match: ip4.src == 10.0.1.0/24}]",
            "Vpc/vpc1: spec.policyRoutes[0].nextHopIP: missing, expected one next hop, or several with \
             commas between",
        ),
        (
            "policyRoutes: [{priority: 10, action: jump, match: ip4.src == 10.0.1.0/24}]",
            "Vpc/vpc1: spec.policyRoutes[0].action: jump is not an action, expected allow, drop or reroute",
        ),
        (
            "policyRoutes: [{priority: 40000, action: drop, match: ip4.src == 10.0.1.0/24}]",
            "Vpc/vpc1: spec.policyRoutes[0].priority: 40000 is not a priority, expected 0 to 32767",
        ),
        (
            "policyRoutes: [{action: reroute, match: ip4.src == 10.0.1.0/24, nextHopIP: '10.0.9.1,10.0.9.1'}]",
            "Vpc/vpc1: spec.policyRoutes[0].nextHopIP: 10.0.9.1 is given already",
        ),
    ] {
        let all = parse(&vpc(&format!(
            "staticRoutes: [{{cidr: 0.0.0.0/0, nextHopIP: 10.0.9.10}}]\n{route}"
        )));
        assert_eq!(rejections(&all), [expected]);
        let planned = planned(&all, &|_| None, &Image::default());
        assert_eq!(hops(&planned, "10.0.1.5", "192.0.2.1"), to(&["10.0.9.10"]));
    }
}

#[test]
fn a_group_says_what_is_wrong_with_it() {
    let policies = "policies: [{snat: true, subnets: [tenants]}]\n";
    // No member; and one that is not on link.
    let all = parse(&gateway(policies));
    let nobody = planned(&all, &|_| None, &Image::default());
    assert_eq!(hops(&nobody, "10.0.1.5", "192.0.2.1"), to(&[]));
    assert!(
        nobody.problems.iter().any(|line| line.starts_with("egress/IPv4: no next hop is alive"))
    );
    let text = gateway(&format!("{policies}internalIPs: [10.0.9.11, 10.0.8.12]\n"));
    let all = parse(&text.replace("  internalSubnet: gateways\n", ""));
    let off = planned(&all, &|_| None, &Image::default());
    assert_eq!(hops(&off, "10.0.1.5", "192.0.2.1"), to(&["10.0.9.11"]));
    let said = "egress/IPv4: next hop 10.0.8.12 is not on link: no interface has an address in its network";
    assert!(off.problems.iter().any(|line| line == said), "{:?}", off.problems);
}

#[test]
fn weights_of_zero_are_refused_where_nobody_would_be_left() {
    let text = gateway(&format!("{ADDRESSES}policies: [{{snat: true, subnets: [tenants]}}]"));
    let weighted = |weights: &str| {
        let metadata =
            format!("{{name: egress, annotations: {{vpc-gateway.io/weights: '{weights}'}}}}");
        parse(&text.replace("{name: egress}", &metadata))
    };
    let found = rejections(&weighted("0,0"));
    assert!(
        found.len() == 1 && found[0].contains("vpc-gateway.io/weights: 0,0 is not"),
        "{found:?}"
    );
    let all = weighted("0,3");
    let planned = planned(&all, &|_| None, &Image::default());
    assert_eq!(hops(&planned, "10.0.1.5", "192.0.2.1"), to(&["10.0.9.12"]));
    // Taken out, and a gateway still.
    assert!(replica(&all, &named(0)).snats.contains_key(&net("10.0.1.0/24")));
}

#[test]
fn changes_keep_the_ids_of_what_stays() {
    let route = |more: &str| {
        parse(&vpc(&format!("staticRoutes: [{{cidr: 0.0.0.0/0, nextHopIP: 10.0.9.10}}{more}]")))
    };
    let first = planned(&route(""), &|_| None, &Image::default());
    let more = ", {cidr: 198.51.100.0/24, nextHopIP: 10.0.9.11}";
    let second = planned(&route(more), &|_| None, &first.image);
    for (before, after) in [
        (&first.image.sources, &second.image.sources),
        (&first.image.destinations, &second.image.destinations),
    ] {
        assert!(before.iter().all(|(cidr, id)| after[cidr] == *id));
    }
    let third = planned(&route(""), &|_| None, &second.image);
    assert_eq!(third.image, first.image);
    assert_eq!(planned(&route(""), &|_| None, &third.image).image, third.image);
}
