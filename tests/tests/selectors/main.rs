//! Selectors of egress gateways without a kernel: whom they take, and what is made of that.

mod mistakes;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use gateway_tests::harness::traffic::Dice;
use gateway_userspace::desired::{
    Allocations, DesiredState, EgressGateway, Identity, Previous, ReplicaName, Resolutions,
    Resolver, resolve_all,
};
use gateway_userspace::egress::plan::{Image, Link, Planned, Surroundings, plan};
use gateway_userspace::encode::part::Touched;
use gateway_userspace::source::pods::{Known, Labels, Pod, PodName, Pods};
use gateway_userspace::source::{Snapshot, yaml};
use ipnet::IpNet;

fn snapshot(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    yaml::parse("test.yaml", text, &mut snapshot);
    snapshot
}

fn parse(text: &str) -> Resolutions {
    resolve_all(&snapshot(text), &Previous::default())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// Without the place.
fn lines(said: impl Iterator<Item = String>) -> Vec<String> {
    let place = |line: &str| line.split_once(": document ").map(|(_, rest)| rest.to_owned());
    said.map(|line| match place(&line) {
        Some(rest) => rest[rest.find(": ").unwrap_or(0) + 2..].to_owned(),
        None => line,
    })
    .collect()
}

fn rejections(all: &Resolutions) -> Vec<String> {
    lines(all.rejections.iter().map(ToString::to_string))
}

fn notes(all: &Resolutions) -> Vec<String> {
    lines(all.notes.iter().map(ToString::to_string))
}

const NETWORKS: &str = "
apiVersion: kubeovn.io/v1
kind: Subnet
metadata: {name: tenants}
spec: {vpc: vpc1, cidrBlock: '10.0.1.0/24,fd00:10:1::/64'}
---
apiVersion: kubeovn.io/v1
kind: Subnet
metadata: {name: gateways}
spec: {vpc: vpc1, cidrBlock: '10.0.9.0/24,fd00:10:9::/64'}
---
apiVersion: kubeovn.io/v1
kind: Subnet
metadata: {name: outside}
spec: {provider: outside.kube-system, cidrBlock: '203.0.113.0/24,2001:db8:113::/64'}
---
";

const RED: &str = "selectors: [{podSelector: {matchLabels: {team: red}}}]";

/// A gateway of VPC vpc1 with two replicas.
fn gateway(name: &str, more: &str) -> String {
    format!(
        "apiVersion: kubeovn.io/v1\nkind: VpcEgressGateway\nmetadata: {{name: {name}}}\nspec:\n  \
         vpc: vpc1\n  replicas: 2\n  internalSubnet: gateways\n  externalSubnet: outside\n  \
         internalIPs: ['10.0.9.11,fd00:10:9::11', '10.0.9.12,fd00:10:9::12']\n  \
         externalIPs: ['203.0.113.11,2001:db8:113::11', '203.0.113.12,2001:db8:113::12']\n  \
         {}\n---\n",
        more.replace('\n', "\n  ")
    )
}

/// A pod that Kube-OVN has given an address in vpc1.
fn pod(name: &str, labels: &str, address: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{{labels}}}\n  \
         annotations:\n    ovn.kubernetes.io/allocated: 'true'\n    \
         ovn.kubernetes.io/logical_router: vpc1\n    ovn.kubernetes.io/logical_switch: tenants\n    \
         ovn.kubernetes.io/ip_address: '{address}'\n{more}\n---\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n"
    )
}

fn taken(all: &Resolutions, gateway: &str) -> Vec<String> {
    all.egress[gateway].pods.keys().map(ToString::to_string).collect()
}

fn state(gateway: &EgressGateway) -> DesiredState {
    let identity = Identity { name: Some(ReplicaName::Index(0)), ..Identity::default() };
    let (state, _) = gateway.replica(&identity).unwrap_or_else(|why| panic!("{why}"));
    state
}

#[test]
fn a_selected_pod_leaves_with_the_address_of_the_replica_in_both_families() {
    let all = parse(
        &[
            NETWORKS,
            &gateway("egress", RED),
            &pod("a", "team: red", "10.0.1.5,fd00:10:1::5", ""),
            &pod("b", "team: blue", "10.0.1.6", ""),
        ]
        .concat(),
    );
    assert_eq!((rejections(&all), notes(&all)), (vec![], vec![]));
    assert_eq!(taken(&all, "egress"), ["10.0.1.5", "fd00:10:1::5"]);
    let state = state(&all.egress["egress"]);
    let snats: Vec<_> = state.snats.iter().map(|(cidr, snat)| (*cidr, snat.eips[0].eip)).collect();
    assert_eq!(
        snats,
        [
            (net("10.0.1.5/32"), ip("203.0.113.11")),
            (net("fd00:10:1::5/128"), ip("2001:db8:113::11"))
        ]
    );
    // The way back is to the Subnet, so that it need not change with the pods.
    assert_eq!(state.gateway.routes[&net("10.0.1.0/24")], ip("10.0.9.1"));
    assert!(!state.gateway.routes.contains_key(&net("10.0.1.5/32")));
}

#[test]
fn who_is_no_pod_of_the_vpc_with_an_address_is_left_out() {
    let host = pod("host", "team: red", "10.0.1.10", "spec: {hostNetwork: true, containers: []}");
    let ended =
        |phase| pod(phase, "team: red", "10.0.1.11", &format!("status: {{phase: {phase}}}"));
    let asked =
        pod("asked", "team: red", "10.0.1.12", "").replace("allocated: 'true'", "x: 'true'");
    let elsewhere =
        pod("elsewhere", "team: red", "10.0.1.13", "").replace("router: vpc1", "router: vpc2");
    let by_subnet = pod("by-subnet", "team: red", "10.0.1.14", "")
        .replace("    ovn.kubernetes.io/logical_router: vpc1\n", "");
    let nowhere =
        by_subnet.replace("switch: tenants", "switch: unknown").replace("by-subnet", "nowhere");
    let leaving = pod("leaving", "team: red", "10.0.1.15", "")
        .replace("  labels:", "  deletionTimestamp: '2026-01-01T00:00:00Z'\n  labels:");
    let second = pod("second", "team: red", "10.77.0.1", "")
        .replace("router: vpc1", "router: vpc2")
        .replace(
            "    ovn.kubernetes.io/allocated",
            "    net2.shop.ovn.kubernetes.io/allocated: 'true'\n    \
             net2.shop.ovn.kubernetes.io/logical_switch: tenants\n    \
             net2.shop.ovn.kubernetes.io/ip_address: 10.0.1.16\n    ovn.kubernetes.io/allocated",
        );
    let (succeeded, failed) = (ended("Succeeded"), ended("Failed"));
    let all = parse(
        &[
            NETWORKS,
            &gateway("egress", RED),
            &host,
            &succeeded,
            &failed,
            &asked,
            &elsewhere,
            &by_subnet,
            &nowhere,
            &leaving,
            &second,
        ]
        .concat(),
    );
    assert_eq!((rejections(&all), notes(&all)), (vec![], vec![]));
    // One that is being deleted has connections to end.
    assert_eq!(taken(&all, "egress"), ["10.0.1.14", "10.0.1.15", "10.0.1.16"]);
}

#[test]
fn selectors_mean_what_they_mean_in_kube_ovn() {
    let pods = [
        namespace("shop", "env: prod"),
        pod("a", "team: red, tier: web", "10.0.1.5", ""),
        pod("b", "team: blue", "10.0.1.6", ""),
        pod("c", "team: red", "10.0.1.7", "").replace("namespace: shop", "namespace: lab"),
    ]
    .concat();
    let all = ["10.0.1.5", "10.0.1.6", "10.0.1.7"];
    for (selector, expected) in [
        // Absent: everything, and both have to take it.
        ("{}", &all[..]),
        ("{podSelector: {matchLabels: {team: red}}}", &["10.0.1.5", "10.0.1.7"]),
        ("{namespaceSelector: {matchLabels: {env: prod}}}", &["10.0.1.5", "10.0.1.6"]),
        (
            "{namespaceSelector: {matchLabels: {env: prod}}, podSelector: {matchLabels: {team: red}}}",
            &["10.0.1.5"],
        ),
        // A namespace that is not in the files has its name.
        ("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: lab}}}", &["10.0.1.7"]),
        (
            "{namespaceSelector: {matchExpressions: [{key: env, operator: DoesNotExist}]}}",
            &["10.0.1.7"],
        ),
        (
            "{namespaceSelector: {matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}}",
            &["10.0.1.7"],
        ),
        ("{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}", &["10.0.1.5"]),
        (
            "{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}}",
            &["10.0.1.6", "10.0.1.7"],
        ),
        (
            "{podSelector: {matchExpressions: [{key: team, operator: In, values: [red, blue]}]}}",
            &all,
        ),
        (
            "{podSelector: {matchLabels: {team: red}, matchExpressions: [{key: tier, operator: DoesNotExist}]}}",
            &["10.0.1.7"],
        ),
        // Several: any of them.
        (
            "{podSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {tier: web}}}",
            &["10.0.1.5", "10.0.1.6"],
        ),
        ("{podSelector: {matchLabels: {team: green}}}", &[]),
    ] {
        let all = parse(
            &[NETWORKS, &gateway("egress", &format!("selectors: [{selector}]")), &pods].concat(),
        );
        assert_eq!(rejections(&all), [""; 0], "{selector}");
        assert_eq!(taken(&all, "egress"), expected, "{selector}");
        if expected.is_empty() {
            let told = "VpcEgressGateway/egress: spec.selectors[0]: selects no pod that has an address in VPC vpc1";
            assert_eq!(notes(&all), [told]);
        }
    }
}

#[test]
fn policies_say_how_a_selected_pod_leaves() {
    let policies = "policies: [{snat: false, ipBlocks: [10.0.1.0/25, 10.0.1.201/32]}, {snat: true, ipBlocks: [10.0.1.64/26]}]";
    let all = parse(
        &[
            NETWORKS,
            &gateway("egress", &format!("{RED}\n{policies}")),
            &pod("a", "team: red", "10.0.1.5", ""),
            &pod("b", "team: red", "10.0.1.70", ""),
            &pod("c", "team: red", "10.0.1.200", ""),
            &pod("d", "team: red", "10.0.1.201", ""),
        ]
        .concat(),
    );
    assert_eq!((rejections(&all), notes(&all)), (vec![], vec![]));
    let how = [("10.0.1.5", false), ("10.0.1.70", true), ("10.0.1.200", true)];
    assert_eq!(all.egress["egress"].pods, how.map(|(pod, snat)| (ip(pod), snat)).into());
    let state = state(&all.egress["egress"]);
    assert!(state.forwards.contains_key(&net("10.0.1.5/32")));
    assert!(state.snats.contains_key(&net("10.0.1.70/32")));
    // The one policy that is for this address alone.
    assert!(state.forwards.contains_key(&net("10.0.1.201/32")));
}

#[test]
fn a_pod_leaves_through_one_gateway() {
    let policy = "policies: [{snat: true, ipBlocks: [10.0.1.6]}]";
    let all = parse(
        &[
            NETWORKS,
            &gateway("one", RED),
            &gateway("two", &format!("{RED}\n{policy}")),
            &pod("a", "team: red", "10.0.1.5", ""),
            &pod("b", "team: red", "10.0.1.6", ""),
            &pod("c", "team: red", "10.0.1.7", ""),
        ]
        .concat(),
    );
    assert_eq!(rejections(&all), [""; 0]);
    assert_eq!(taken(&all, "one"), ["10.0.1.5", "10.0.1.7"]);
    assert_eq!(taken(&all, "two"), [""; 0]);
    assert_eq!(
        notes(&all),
        [
            "VpcEgressGateway/one: spec.selectors[0]: 1 of the addresses it selects leave through \
             VpcEgressGateway/two, such as that of Pod/shop/b",
            "VpcEgressGateway/two: spec.selectors[0]: 2 of the addresses it selects leave through \
             VpcEgressGateway/one, such as that of Pod/shop/a",
        ]
    );
}

#[test]
fn an_address_that_was_given_to_another_pod_is_of_that_one() {
    let old = pod("old", "team: red", "10.0.1.5", "");
    let at = |pod: &str, what: &str, day: u8| {
        pod.replace("  labels:", &format!("  {what}: '2026-01-0{day}T00:00:00Z'\n  labels:"))
    };
    let new = at(&pod("new", "team: blue", "10.0.1.5", ""), "creationTimestamp", 2);
    for old in [
        at(&old, "creationTimestamp", 1),
        at(&at(&old, "deletionTimestamp", 4), "creationTimestamp", 3),
    ] {
        for pods in [[&old, &new], [&new, &old]] {
            let all = parse(&format!("{NETWORKS}{}{}{}", gateway("egress", RED), pods[0], pods[1]));
            assert_eq!(taken(&all, "egress"), [""; 0], "{old}");
        }
    }
}

#[test]
fn a_list_as_kubectl_writes_it_is_read() {
    let item = |text: &str| {
        let lines = text.trim_end_matches("---\n").trim_end().lines();
        let lines = lines
            .enumerate()
            .map(|(index, line)| format!("{}{line}\n", if index == 0 { "- " } else { "  " }));
        lines.collect::<String>()
    };
    let pods = [pod("a", "team: red", "10.0.1.5", ""), namespace("shop", "env: prod")];
    let list = format!(
        "apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n{}{}",
        item(&pods[0]),
        item(&pods[1])
    );
    let both = "selectors: [{namespaceSelector: {matchLabels: {env: prod}}}]";
    let all = parse(&format!("{NETWORKS}{}{list}", gateway("egress", both)));
    assert_eq!((rejections(&all), notes(&all)), (vec![], vec![]));
    assert_eq!(taken(&all, "egress"), ["10.0.1.5"]);
}

#[test]
fn a_replica_without_an_address_of_a_family_says_so_once() {
    let only_v4 = |text: &str| {
        text.replace(",2001:db8:113::11", "")
            .replace(",2001:db8:113::12", "")
            .replace(",2001:db8:113::/64", "")
    };
    let all = parse(
        &[
            only_v4(NETWORKS),
            only_v4(&gateway("egress", RED)),
            pod("a", "team: red", "10.0.1.5,fd00:10:1::5", ""),
            pod("b", "team: red", "10.0.1.6,fd00:10:1::6", ""),
        ]
        .concat(),
    );
    let identity = Identity { name: Some(ReplicaName::Index(1)), ..Identity::default() };
    let (state, notes) = all.egress["egress"].replica(&identity).unwrap();
    assert_eq!(state.snats.len(), 2);
    let said: Vec<_> = notes.iter().map(|note| note.remark.to_string()).collect();
    assert_eq!(said, ["the IPv6 addresses of pods are dropped: the replica has no external one"]);
}

/// As many pods as one likes, every other one red.
fn crowd(count: u32) -> Pods {
    let mut pods = Pods::new(Known::Cluster);
    pods.set_namespace("shop", Some(Labels::new([("env", "prod")])));
    for number in 0..count {
        pods.set(name(number), Some(one(number, if number % 2 == 0 { "red" } else { "blue" })));
    }
    pods
}

fn name(number: u32) -> PodName {
    PodName { namespace: "shop".into(), name: format!("pod{number}").into() }
}

fn one(number: u32, team: &str) -> Pod {
    let address = std::net::Ipv4Addr::from(0x0a00_0000 + 0x10_000 + number);
    let annotations = BTreeMap::from([
        ("ovn.kubernetes.io/allocated", "true"),
        ("ovn.kubernetes.io/logical_router", "vpc1"),
    ]);
    let text = address.to_string();
    let mut annotations = annotations;
    annotations.insert("ovn.kubernetes.io/ip_address", &text);
    Pod::new(Labels::new([("team", team), ("app", "shop")]), &annotations)
}

/// The networks, wide enough for a crowd.
fn wide() -> String {
    NETWORKS.replace("10.0.1.0/24", "10.1.0.0/16")
}

/// What a process that follows pod by pod has after each change, it would have from scratch too.
#[test]
fn pods_that_change_one_by_one_come_to_the_same_as_all_at_once() {
    let policies = "policies: [{snat: false, ipBlocks: [10.1.0.16/28]}]";
    let selectors = "selectors: [{podSelector: {matchLabels: {team: red}}}, {namespaceSelector: {matchLabels: {env: test}}}]";
    let text = [
        wide(),
        gateway("egress", &format!("{selectors}\n{policies}")),
        gateway("other", "selectors: [{podSelector: {matchLabels: {team: grey}}}]"),
    ]
    .concat();
    let mut snapshot = snapshot(&text);
    snapshot.pods = crowd(40).into();
    let identity = Identity { name: Some(ReplicaName::Index(0)), ..Identity::default() };
    let mut resolver = Resolver::new("egress", Allocations::default());
    let first = resolver.resolve(&snapshot).as_replica(&identity).unwrap();
    let mut desired = first.state.clone().unwrap();
    resolver.adopt(first, &snapshot);
    let mut rng = Dice::new(7);
    let mut alone = 0;
    for round in 0..400 {
        let pods = Arc::make_mut(&mut snapshot.pods);
        let number = u32::try_from(rng.below(60)).unwrap();
        match rng.below(8) {
            0 | 1 => drop(pods.set(name(number), None)),
            2 => {
                let env = ["prod", "test"][rng.below(2)];
                pods.set_namespace("shop", Some(Labels::new([("env", env)])));
            }
            _ => {
                let team = ["red", "blue", "grey"][rng.below(3)];
                let mut pod = one(u32::try_from(rng.below(60)).unwrap(), team);
                pod.leaving = rng.below(4) == 0;
                pod.created = i64::try_from(rng.below(3)).unwrap();
                pods.set(name(number), Some(pod));
            }
        }
        let before = desired.clone();
        let step = resolver.select(&snapshot.pods, &identity, &mut desired);
        let whole = resolver.resolve(&snapshot).as_replica(&identity).unwrap();
        if let Some(step) = step {
            assert_eq!(Some(&desired), whole.state.as_ref(), "round {round}");
            assert_eq!(step.touched, Touched::between(&before, &desired), "round {round}");
            assert_eq!(
                lines(resolver.notes().iter().map(ToString::to_string)),
                lines(whole.notes.iter().map(ToString::to_string)),
                "round {round}"
            );
            alone += 1;
        } else {
            desired = whole.state.clone().unwrap();
            resolver.adopt(whole, &snapshot);
        }
    }
    assert!(alone >= 390, "only {alone} of 400 changes by themselves");
}

fn planned(all: &Resolutions, before: &Image) -> Planned {
    let link = |address| Link { address: net(address), ifindex: 7, mtu: 1500 };
    let links = [link("10.0.9.1/24"), link("fd00:10:9::1/64")];
    let around = Surroundings { links: &links, node: None, alive: &|_| None };
    plan(&all.egress, &all.routers, &around, before)
}

/// The group of a packet by what the maps would say.
fn group(image: &Image, from: &str, to: &str) -> Option<String> {
    let id = |networks: &BTreeMap<IpNet, u32>, address: &str| {
        let covering = networks.iter().filter(|(cidr, _)| cidr.contains(&ip(address)));
        covering.max_by_key(|(cidr, _)| cidr.prefix_len()).map_or(0, |(_, id)| *id)
    };
    let row = image.choices.get(&id(&image.sources, from))?;
    let group = row.get(&id(&image.destinations, to))?;
    image.group_ids.iter().find(|(_, id)| *id == group).map(|(name, _)| name.clone())
}

#[test]
fn a_selector_sends_selected_pods_to_their_gateway_and_nobody_else() {
    let other = "policies: [{snat: true, ipBlocks: [10.0.1.128/25]}]";
    let route = "apiVersion: kubeovn.io/v1\nkind: Vpc\nmetadata: {name: vpc1}\nspec:\n  staticRoutes:\n  - {cidr: 0.0.0.0/0, nextHopIP: 10.0.9.77}\n  policyRoutes:\n  - {priority: 30000, action: drop, match: ip4.src == 10.0.1.64/26}\n---\n";
    let text = |team: &str| {
        [
            NETWORKS,
            &gateway("egress", RED),
            &gateway("other", other),
            route,
            &pod("a", "team: red", "10.0.1.5,fd00:10:1::5", ""),
            &pod("b", &format!("team: {team}"), "10.0.1.6", ""),
            &pod("c", "team: red", "10.0.1.70", ""),
            &pod("d", "team: red", "10.0.1.200", ""),
        ]
        .concat()
    };
    let all = parse(&text("blue"));
    assert_eq!((rejections(&all), notes(&all)), (vec![], vec![]));
    let first = planned(&all, &Image::default());
    assert_eq!(first.problems, ["Vpc/vpc1"; 0]);
    let way = |planned: &Planned, from| group(&planned.image, from, "198.51.100.7");
    assert_eq!(way(&first, "10.0.1.5").as_deref(), Some("egress/IPv4"));
    assert_eq!(group(&first.image, "fd00:10:1::5", "2001:db8::1").as_deref(), Some("egress/IPv6"));
    assert_eq!(group(&first.image, "10.0.1.5", "10.0.9.44"), None, "inside the VPC");
    let routed = way(&first, "10.0.1.6").unwrap();
    assert!(routed.starts_with("Vpc/vpc1 "), "{routed}");
    assert_eq!(way(&first, "10.0.1.70"), None, "a policy route drops it");
    // A selected pod is closer than the network of another gateway's policy.
    assert_eq!(way(&first, "10.0.1.200").as_deref(), Some("egress/IPv4"));
    assert_eq!(way(&first, "10.0.1.201").as_deref(), Some("other/IPv4"));

    // One more pod is one more prefix, and nothing else.
    let second = planned(&parse(&text("red")), &first.image);
    assert_eq!(way(&second, "10.0.1.6").as_deref(), Some("egress/IPv4"));
    assert_eq!(second.image.choices, first.image.choices);
    let mut sources = second.image.sources.clone();
    assert!(sources.remove(&net("10.0.1.6/32")).is_some());
    assert_eq!(sources, first.image.sources);
}

#[test]
fn ten_thousand_pods_are_one_row() {
    let mut snapshot = snapshot(&[wide(), gateway("egress", RED)].concat());
    snapshot.pods = crowd(10_000).into();
    let all = resolve_all(&snapshot, &Previous::default());
    assert_eq!(all.egress["egress"].pods.len(), 5_000);
    let planned = planned(&all, &Image::default());
    assert_eq!(planned.problems, [""; 0]);
    assert_eq!(planned.image.sources.len(), 5_000);
    assert_eq!(planned.image.choices.len(), 1);

    // More than the map takes is said, and changes nothing.
    snapshot.pods = crowd(40_000).into();
    let all = resolve_all(&snapshot, &Previous::default());
    let more = self::planned(&all, &planned.image);
    assert_eq!(more.image.sources, planned.image.sources);
    assert!(more.problems[0].contains("20000 IPv4 networks"), "{:?}", more.problems);
}
