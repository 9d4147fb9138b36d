//! A few changed EIPs and rules resolved by themselves, beside all objects resolved from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use gateway_tests::harness::{self, traffic::Dice};
use gateway_userspace::crd::{Kind, ObjectRef};
use gateway_userspace::dataplane::memory::Memory;
use gateway_userspace::desired::{Allocations, DesiredState, Previous, Resolver, resolve_after};
use gateway_userspace::encode::Surroundings;
use gateway_userspace::reconcile::Reconciler;
use gateway_userspace::rejection::Rejection;
use gateway_userspace::source::{Addressing, Changed, Snapshot, SourceObject, yaml};

fn surroundings() -> Surroundings {
    harness::surroundings::surroundings(1500, 1500)
}

/// The objects of a cluster.
struct Cluster {
    objects: BTreeMap<ObjectRef, Arc<SourceObject>>,
    addressing: Addressing,
    /// What could not be read.
    rejections: Vec<Rejection>,
    made: i64,
}

impl Cluster {
    fn new(addressing: Addressing) -> Self {
        let (objects, rejections) = (BTreeMap::new(), Vec::new());
        let mut cluster = Self { objects, addressing, rejections, made: 0 };
        for gateway in ["gw1", "gw2"] {
            cluster.put(&text("VpcNatGateway", gateway, "vpc: vpc1, subnet: net1"));
        }
        cluster
    }

    /// Makes or changes an object; nothing if it cannot be read.
    fn put(&mut self, text: &str) -> Option<Changed> {
        let mut read = Snapshot::default();
        yaml::parse("test.yaml", text, &mut read);
        self.rejections.append(&mut read.rejections);
        let mut source = read.objects.pop()?;
        let object = source.object_ref();
        self.made += 1;
        let rank = self.objects.get(&object).map_or(self.made, |before| before.rank);
        Arc::make_mut(&mut source).rank = rank;
        self.objects.insert(object.clone(), Arc::clone(&source));
        Some(Changed { object, now: Some(source) })
    }

    fn delete(&mut self, random: &mut Random) -> Option<Changed> {
        let rules_only = random.below(16) > 0;
        let there: Vec<_> = self
            .objects
            .keys()
            .filter(|object| match object.kind.as_str() {
                "VpcNatGateway" | "Subnet" => false,
                "IptablesEIP" => !rules_only,
                _ => true,
            })
            .collect();
        let nth = random.below(there.len().max(1));
        let object = there.get(nth).copied()?.clone();
        self.objects.remove(&object);
        Some(Changed { object, now: None })
    }

    fn snapshot(&self) -> Snapshot {
        let mut objects: Vec<_> = self.objects.values().cloned().collect();
        objects.sort_by_key(|source| source.rank);
        let (addressing, rejections) = (self.addressing, self.rejections.clone());
        Snapshot { objects, addressing, rejections, ..Snapshot::default() }
    }
}

fn text(kind: &str, name: &str, spec: &str) -> String {
    annotated(kind, name, spec, "")
}

fn annotated(kind: &str, name: &str, spec: &str, annotations: &str) -> String {
    format!(
        "apiVersion: kubeovn.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{{spec}}}\n"
    )
}

/// Objects with few values, so that they meet.
struct Random(Dice);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0.below(limit)
    }

    fn of<'a>(&mut self, values: &[&'a str]) -> &'a str {
        self.0.pick(values)
    }

    fn object(&mut self) -> String {
        match self.below(40) {
            0..6 => self.eip(),
            6..14 => self.fip(),
            14..22 => self.snat(),
            _ => self.dnat(),
        }
    }

    /// An EIP that moves among addresses of its own; few mistakes, as nothing is resolved by itself while an
    /// EIP goes on in an old form.
    fn eip(&mut self) -> String {
        let (name, away, mistake) = (self.below(8), self.below(3), self.below(64));
        let last = if mistake == 0 { 10 + self.below(8) } else { 10 + name + 10 * away };
        let gateway = if mistake == 1 { "gw9" } else { self.of(&["gw1", "gw1", "gw1", "gw2"]) };
        let subnet = if mistake == 2 { "elsewhere" } else { "" };
        let mut spec = format!("natGwDp: {gateway}, externalSubnet: '{subnet}'");
        let (mut v4ip, mut status) = (format!("203.0.113.{last}"), String::new());
        if mistake == 3 {
            v4ip.clear();
        } else if self.below(2) == 0 {
            std::mem::swap(&mut v4ip, &mut status);
        }
        let _ = write!(spec, ", v4ip: '{v4ip}'");
        if self.below(4) > 0 {
            let _ = write!(spec, ", v6ip: '2001:db8::{last}'");
        }
        text("IptablesEIP", &format!("e{name}"), &spec) + &format!("status: {{ip: '{status}'}}\n")
    }

    fn inside(&mut self) -> String {
        match self.below(12) {
            0 => "fd00::5".to_owned(),
            1 => "nonsense".to_owned(),
            2 => format!("203.0.113.{}", 10 + self.below(7)),
            _ => format!("10.0.1.{}", 5 + self.below(5)),
        }
    }

    fn fip(&mut self) -> String {
        let (name, eip) = (self.below(4), 4 + self.below(4));
        let spec = format!("eip: e{eip}, internalIp: '{}'", self.inside());
        text("IptablesFIPRule", &format!("f{name}"), &spec)
    }

    fn snat(&mut self) -> String {
        let (name, eip) = (self.below(5), self.below(8));
        let cidr = self.of(&["10.1.0.0/16", "10.1.2.3/16", "10.2.0.0/16", "fd00::/64", "10.3"]);
        let spec = format!("eip: e{eip}, internalCIDR: '{cidr}'");
        text("IptablesSnatRule", &format!("s{name}"), &spec)
    }

    fn dnat(&mut self) -> String {
        let (name, eip) = (self.below(9), self.below(5));
        let (port, inside) =
            (self.of(&["80", "080", "81", "82", "83", "80", "81", "0"]), self.inside());
        let protocol =
            self.of(&["tcp", "TCP", "udp", "tcp", "udp", "tcp", "TCP", "udp", "tcp", "sctp"]);
        let sharing = self.of(&["share", "share", "share", "exclusive"]);
        let annotations = self.of(&[
            "",
            "",
            "",
            "",
            "vpc-gateway.io/session-affinity: ClientIP",
            "vpc-gateway.io/session-affinity: None",
            "vpc-gateway.io/weight: '3'",
            "vpc-gateway.io/weihgt: '3'",
        ]);
        let spec = format!(
            "eip: e{eip}, externalPort: '{port}', protocol: {protocol}, internalIp: '{inside}', \
             internalPort: '80', type: {sharing}"
        );
        annotated("IptablesDnatRule", &format!("d{name}"), &spec, annotations)
    }
}

/// A daemon without a kernel.
struct Daemon {
    resolver: Resolver,
    desired: DesiredState,
    maps: Reconciler<Memory>,
}

impl Daemon {
    fn start(cluster: &Cluster) -> Self {
        let mut resolver = Resolver::new("gw1", Allocations::default());
        let snapshot = cluster.snapshot();
        let mut resolution = resolver.resolve(&snapshot);
        let desired = resolution.state.take().expect("a state");
        resolver.adopt(resolution, &snapshot);
        let mut maps = Reconciler::adopt(Memory::default()).expect("maps");
        maps.round(&desired, &surroundings()).expect("a round");
        Self { resolver, desired, maps }
    }

    /// Returns whether the changes were resolved by themselves.
    fn follow(&mut self, changes: &[Changed], cluster: &Cluster) -> bool {
        let eips = self.desired.eips.clone();
        if let Some(step) = self.resolver.change(changes, &mut self.desired) {
            assert_eq!(step.eips, eips != self.desired.eips);
            let round = self.maps.round_of(&self.desired, &step.touched, &surroundings());
            assert_eq!(round.expect("a round").overflows, []);
            return true;
        }
        let snapshot = cluster.snapshot();
        let mut resolution = self.resolver.resolve(&snapshot);
        self.desired = resolution.state.take().expect("a state");
        self.resolver.adopt(resolution, &snapshot);
        self.maps.round(&self.desired, &surroundings()).expect("a round");
        false
    }

    /// As [`Self::follow`], and compares everything with what all objects come to.
    fn follow_beside_all(&mut self, changes: &[Changed], cluster: &Cluster, case: &str) -> bool {
        let previous = self.resolver.previous().clone();
        let alone = self.follow(changes, cluster);
        let whole = resolve_after(&cluster.snapshot(), "gw1", &previous);
        assert_eq!(Some(&self.desired), whole.state.as_ref(), "{case}");
        assert_eq!(texts(self.resolver.rejections()), texts(&whole.rejections), "{case}");
        assert_eq!(texts(self.resolver.notes()), texts(&whole.notes), "{case}");
        let expected = Previous { allocations: whole.allocations, active: whole.active };
        let there = self.resolver.previous();
        assert_eq!(there.allocations, expected.allocations, "{case}");
        assert_eq!(format!("{:?}", active(there)), format!("{:?}", active(&expected)), "{case}");
        let rest = self.maps.round(&self.desired, &surroundings()).expect("a round");
        assert!(rest.plan.is_empty(), "{case} left {:?}", rest.plan);
        alone
    }
}

fn texts(told: &[impl ToString]) -> BTreeSet<String> {
    told.iter().map(ToString::to_string).collect()
}

fn active(previous: &Previous) -> Vec<(&ObjectRef, &SourceObject)> {
    previous.active.iter().map(|(object, source)| (object, &**source)).collect()
}

/// What became of many changes.
#[derive(Debug, Default)]
struct Tally {
    /// Those that were resolved by themselves.
    alone: u32,
    /// Those of them that changed what is desired.
    changed: u32,
    /// Those among these that were of EIPs only.
    eips: u32,
    /// What was rejected after each of them, in all.
    rejections: usize,
}

impl Tally {
    fn follow(&mut self, seed: u64, addressing: Addressing) {
        let mut random = Random(Dice::new(seed));
        let mut cluster = Cluster::new(addressing);
        for n in 0..6 {
            let spec = format!("natGwDp: gw1, v4ip: 203.0.113.{}, v6ip: '2001:db8::{n}'", 10 + n);
            cluster.put(&text("IptablesEIP", &format!("e{n}"), &spec));
        }
        if seed == 13 {
            let spec = "cidrBlock: '203.0.113.0/24,2001:db8::/64', provider: outside.default";
            cluster.put(&text("Subnet", "ovn-vpc-external-network", spec));
        }
        let mut daemon = Daemon::start(&cluster);
        for step in 0..2_000 {
            let old = daemon.desired.clone();
            let count = 1 + random.below(3);
            let changes: Vec<_> = (0..count)
                .filter_map(|_| match random.below(4) {
                    0 => cluster.delete(&mut random),
                    _ => cluster.put(&random.object()),
                })
                .collect();
            let case = format!("seed {seed}, step {step}: {changes:#?}");
            let alone = daemon.follow_beside_all(&changes, &cluster, &case);
            let changed = alone && old != daemon.desired;
            let only_eips = changes.iter().all(|it| it.object.kind == Kind::IptablesEip);
            self.alone += u32::from(alone);
            self.changed += u32::from(changed);
            self.eips += u32::from(changed && only_eips);
            self.rejections += daemon.resolver.rejections().len();
        }
    }
}

#[test]
fn a_few_objects_by_themselves_come_to_what_everything_together_does() {
    let mut tally = Tally::default();
    for (seed, addressing) in
        [(7, Addressing::Cluster), (11, Addressing::Ours), (13, Addressing::Ours)]
    {
        tally.follow(seed, addressing);
    }
    println!("of 6000 changes: {tally:?}");
    assert!(tally.alone > 1_200 && tally.changed > 800 && tally.eips > 80, "{tally:?}");
    assert!(tally.rejections > 3_000, "{tally:?}");
}

/// An EIP whose address the cluster has chosen.
fn eip(name: &str, last: u8) -> String {
    let status = format!("status: {{ip: 203.0.113.{last}}}\n");
    text("IptablesEIP", name, "natGwDp: gw1") + &status
}

#[test]
fn what_an_eip_has_or_leaves_behind_concerns_those_who_do_not_name_it() {
    let fip = |eip: &str, inside: &str| {
        text("IptablesFIPRule", "f", &format!("eip: {eip}, internalIp: {inside}"))
    };
    let snat = |eip: &str| {
        text("IptablesSnatRule", "s", &format!("eip: {eip}, internalCIDR: 10.1.0.0/16"))
    };
    let mut cluster = Cluster::new(Addressing::Cluster);
    cluster.put(&eip("e0", 10));
    let mut daemon = Daemon::start(&cluster);
    for (case, alone, text) in [
        ("an EIP without an address", true, text("IptablesEIP", "e1", "natGwDp: gw1")),
        ("the address of another EIP", false, eip("e1", 10)),
        ("which becomes free", false, eip("e0", 11)),
        ("a floating IP for the address of an EIP", true, fip("e0", "203.0.113.10")),
        ("which gets another one", true, eip("e1", 12)),
        ("the address of a floating IP that is active", false, eip("e1", 10)),
        ("and another one again", false, eip("e1", 12)),
        ("a source", true, snat("e0")),
        ("a mistake in it, so that its old form goes on", false, snat("e9")),
        ("the EIP of that form", false, eip("e0", 13)),
        ("another EIP", true, eip("e1", 14)),
    ] {
        let changes: Vec<_> = cluster.put(&text).into_iter().collect();
        assert_eq!(daemon.follow_beside_all(&changes, &cluster, case), alone, "{case}");
    }
}

#[test]
fn what_is_absent_may_be_what_cannot_be_read() {
    let mut cluster = Cluster::new(Addressing::Ours);
    cluster.put(&text("IptablesEIP", "e0", "natGwDp: gw1, v4ip: 203.0.113.10"));
    let rule = cluster.put(&text("IptablesSnatRule", "s0", "eip: e0, internalCIDR: 10.1.0.0/16"));
    let mut daemon = Daemon::start(&cluster);
    cluster.put("kind: [");
    assert!(cluster.rejections.iter().all(|one| one.object.is_none()));
    let snapshot = cluster.snapshot();
    let resolution = daemon.resolver.resolve(&snapshot);
    daemon.resolver.adopt(resolution, &snapshot);

    let object = rule.expect("a rule").object;
    cluster.objects.remove(&object);
    daemon.follow_beside_all(&[Changed { object, now: None }], &cluster, "an absent rule");
    assert_eq!(daemon.desired.snats.len(), 1, "it goes on as it was");
}

#[test]
fn one_object_of_ten_thousand_costs_one_object() {
    let mut cluster = Cluster::new(Addressing::Cluster);
    let dnat = |n: u32, to: u32| {
        let spec = format!(
            "eip: e{}, externalPort: '{}', protocol: tcp, internalIp: 10.0.1.5, internalPort: '{to}'",
            n % 100,
            10_000 + n / 100
        );
        text("IptablesDnatRule", &format!("d{n}"), &spec)
    };
    for n in 0..100 {
        let spec = format!("natGwDp: gw1, v4ip: 198.18.0.{n}");
        cluster.put(&text("IptablesEIP", &format!("e{n}"), &spec));
    }
    for n in 0..10_000 {
        cluster.put(&dnat(n, 80));
    }
    let mut daemon = Daemon::start(&cluster);
    let changes: Vec<_> = (0..100).filter_map(|n| cluster.put(&dnat(n * 97, 81))).collect();
    let begin = Instant::now();
    for change in changes {
        assert!(daemon.follow(&[change], &cluster), "by itself");
    }
    println!("measured: one rule of 10 000: {:?}", begin.elapsed() / 100);
    let moved: Vec<_> = (0..100)
        .filter_map(|n| {
            let eip = text("IptablesEIP", &format!("e{n}"), "natGwDp: gw1");
            cluster.put(&(eip + &format!("status: {{ip: 198.18.1.{n}}}\n")))
        })
        .collect();
    let begin = Instant::now();
    for change in moved {
        assert!(daemon.follow(&[change], &cluster), "by itself");
    }
    println!("measured: one EIP with 100 of 10 000 rules: {:?}", begin.elapsed() / 100);
    let whole = daemon.resolver.resolve(&cluster.snapshot());
    assert_eq!(Some(&daemon.desired), whole.state.as_ref());
}
