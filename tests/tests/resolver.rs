//! A few changed rules resolved by themselves, beside all objects resolved from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use gateway_tests::harness::{self, traffic::Dice};
use gateway_userspace::crd::ObjectRef;
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
    made: i64,
}

impl Cluster {
    fn new(addressing: Addressing) -> Self {
        let mut cluster = Self { objects: BTreeMap::new(), addressing, made: 0 };
        for gateway in ["gw1", "gw2"] {
            cluster.put(&text("VpcNatGateway", gateway, "vpc: vpc1, subnet: net1"));
        }
        cluster
    }

    /// Makes or changes an object; nothing if it cannot be read.
    fn put(&mut self, text: &str) -> Option<Changed> {
        let mut read = Snapshot::default();
        yaml::parse("test.yaml", text, &mut read);
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
                "VpcNatGateway" => false,
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
        Snapshot { objects, addressing: self.addressing, ..Snapshot::default() }
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
            0 => self.eip(),
            1..10 => self.fip(),
            10..20 => self.snat(),
            _ => self.dnat(),
        }
    }

    fn eip(&mut self) -> String {
        let (name, last) = (self.below(6), 10 + self.below(7));
        let mut spec = format!("natGwDp: {}", self.of(&["gw1", "gw1", "gw1", "gw2", "gw9"]));
        let _ = write!(spec, ", v4ip: 203.0.113.{last}");
        if self.below(3) == 0 {
            let _ = write!(spec, ", v6ip: '2001:db8::{last}'");
        }
        text("IptablesEIP", &format!("e{name}"), &spec)
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
        let (name, eip) = (self.below(4), 4 + self.below(3));
        let spec = format!("eip: e{eip}, internalIp: '{}'", self.inside());
        text("IptablesFIPRule", &format!("f{name}"), &spec)
    }

    fn snat(&mut self) -> String {
        let (name, eip) = (self.below(5), self.below(6));
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
    by_themselves: u32,
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
        Self { resolver, desired, maps, by_themselves: 0 }
    }

    fn follow(&mut self, changes: &[Changed], cluster: &Cluster) {
        if let Some(step) = self.resolver.change(changes, &mut self.desired) {
            self.by_themselves += 1;
            let round = self.maps.round_of(&self.desired, &step.touched, &surroundings());
            assert_eq!(round.expect("a round").overflows, []);
            return;
        }
        let snapshot = cluster.snapshot();
        let mut resolution = self.resolver.resolve(&snapshot);
        self.desired = resolution.state.take().expect("a state");
        self.resolver.adopt(resolution, &snapshot);
        self.maps.round(&self.desired, &surroundings()).expect("a round");
    }
}

fn rejected(rejections: &[Rejection]) -> BTreeSet<(Option<ObjectRef>, Option<String>)> {
    rejections.iter().map(|it| (it.object.clone(), it.gateway.clone())).collect()
}

fn active(previous: &Previous) -> Vec<(&ObjectRef, &SourceObject)> {
    previous.active.iter().map(|(object, source)| (object, &**source)).collect()
}

#[test]
fn a_few_rules_by_themselves_come_to_what_everything_together_does() {
    let (mut alone_of_all, mut changed_of_all) = (0, 0);
    for (seed, addressing) in
        [(7, Addressing::Cluster), (11, Addressing::Ours), (13, Addressing::Ours)]
    {
        let mut random = Random(Dice::new(seed));
        let mut cluster = Cluster::new(addressing);
        for n in 0..6 {
            let spec = format!("natGwDp: gw1, v4ip: 203.0.113.{}, v6ip: '2001:db8::{n}'", 10 + n);
            cluster.put(&text("IptablesEIP", &format!("e{n}"), &spec));
        }
        let mut daemon = Daemon::start(&cluster);
        let (mut changed, mut rejections) = (0, 0);
        for step in 0..2_000 {
            let previous = daemon.resolver.previous().clone();
            let (old, alone) = (daemon.desired.clone(), daemon.by_themselves);
            let count = 1 + random.below(3);
            let changes: Vec<_> = (0..count)
                .filter_map(|_| match random.below(4) {
                    0 => cluster.delete(&mut random),
                    _ => cluster.put(&random.object()),
                })
                .collect();
            daemon.follow(&changes, &cluster);

            let whole = resolve_after(&cluster.snapshot(), "gw1", &previous);
            let case = format!("seed {seed}, step {step}: {changes:#?}");
            assert_eq!(Some(&daemon.desired), whole.state.as_ref(), "{case}");
            let told = rejected(daemon.resolver.rejections());
            assert_eq!(told, rejected(&whole.rejections), "{case}");
            let noted = |notes: &[gateway_userspace::rejection::Note]| {
                let of = notes.iter().map(|note| (note.object.clone(), note.field.clone()));
                of.collect::<BTreeSet<_>>()
            };
            assert_eq!(noted(daemon.resolver.notes()), noted(&whole.notes), "{case}");
            let expected = Previous { allocations: whole.allocations, active: whole.active };
            let there = daemon.resolver.previous();
            assert_eq!(there.allocations, expected.allocations, "{case}");
            assert_eq!(
                format!("{:?}", active(there)),
                format!("{:?}", active(&expected)),
                "{case}"
            );
            let rest = daemon.maps.round(&daemon.desired, &surroundings()).expect("a round");
            assert!(rest.plan.is_empty(), "{case} left {:?}", rest.plan);
            changed += u32::from(alone < daemon.by_themselves && old != daemon.desired);
            rejections += told.len();
        }
        let alone = daemon.by_themselves;
        println!("seed {seed}: {alone} of 2000 by themselves, {changed} of them changed something");
        assert!(rejections > 1_000, "{rejections}");
        (alone_of_all, changed_of_all) = (alone_of_all + alone, changed_of_all + changed);
    }
    assert!(alone_of_all > 600 && changed_of_all > 200, "{alone_of_all} {changed_of_all}");
}

#[test]
fn one_rule_of_ten_thousand_costs_one_rule() {
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
        daemon.follow(&[change], &cluster);
    }
    println!("measured: one rule of 10 000: {:?}", begin.elapsed() / 100);
    assert_eq!(daemon.by_themselves, 100);
    let whole = daemon.resolver.resolve(&cluster.snapshot());
    assert_eq!(Some(&daemon.desired), whole.state.as_ref());
}
