//! The verbs of kube-ovn-controller without a kernel: words -> orders -> ledger -> maps.

use std::collections::BTreeSet;
use std::time::Instant;

use gateway_tests::harness;
use gateway_userspace::dataplane::memory::Memory;
use gateway_userspace::desired::DesiredState;
use gateway_userspace::encode::Surroundings;
use gateway_userspace::exec::desired::{Identity, touched, update};
use gateway_userspace::exec::ledger::{Ledger, Slot};
use gateway_userspace::exec::verb::{Call, Init, Order, Rules, VERBS, parse};
use gateway_userspace::reconcile::Reconciler;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn orders(line: &str) -> Vec<Order> {
    match parse(&words(line)) {
        Ok(Call::Orders(orders)) => orders,
        other => panic!("{line}: {other:?}"),
    }
}

/// Each form that a release sends, and the order that it is, in the form of the ledger.
const FORMS: &[(&str, &str)] = &[
    // v1.7 to v1.12 name the router of an EIP.
    ("eip-add 203.0.113.10/24,203.0.113.1", "eip-add 203.0.113.10/24,203.0.113.1"),
    ("eip-add 203.0.113.10/24", "eip-add 203.0.113.10/24"),
    ("eip-add 203.0.113.10/24,203.0.113.1,more", "eip-add 203.0.113.10/24,203.0.113.1"),
    ("eip-del 203.0.113.10/24", "eip-del 203.0.113.10"),
    ("eip-del 203.0.113.10/24,203.0.113.1", "eip-del 203.0.113.10"),
    ("floating-ip-add 203.0.113.10,10.0.1.5", "floating-ip-add 203.0.113.10,10.0.1.5"),
    ("floating-ip-del 203.0.113.10", "floating-ip-del 203.0.113.10"),
    ("floating-ip-del 203.0.113.10,10.0.1.5", "floating-ip-del 203.0.113.10"),
    ("dnat-add 203.0.113.10,80,TCP,10.0.1.5,8080", "dnat-add 203.0.113.10,80,tcp,10.0.1.5,8080"),
    ("dnat-add 203.0.113.10,80,Udp,10.0.1.5,8080", "dnat-add 203.0.113.10,80,udp,10.0.1.5,8080"),
    ("dnat-del 203.0.113.10,80,TCP", "dnat-del 203.0.113.10,80,tcp"),
    ("dnat-del 203.0.113.10,80,tcp,10.0.1.5,8080", "dnat-del 203.0.113.10,80,tcp"),
    (
        "nft-dnat-map-add 203.0.113.10,80,TCP,10.0.1.6:80@10.0.1.5:80@10.0.1.6:80",
        "nft-dnat-map-add 203.0.113.10,80,tcp,10.0.1.5:80@10.0.1.6:80",
    ),
    (
        "nft-dnat-map-add 2001:db8::1,80,tcp,[fd00::5]:80",
        "nft-dnat-map-add 2001:db8::1,80,tcp,[fd00::5]:80",
    ),
    ("nft-dnat-map-del 203.0.113.10,80,tcp", "nft-dnat-map-del 203.0.113.10,80,tcp"),
    ("snat-add 203.0.113.10,10.0.7.5/24", "snat-add 203.0.113.10,10.0.7.0/24"),
    ("snat-add 203.0.113.10,10.0.7.5", "snat-add 203.0.113.10,10.0.7.5/32"),
    ("snat-add 203.0.113.10,10.0.7.0/24,--random-fully", "snat-add 203.0.113.10,10.0.7.0/24"),
    ("snat-del 203.0.113.10,10.0.7.9/24,--random-fully", "snat-del 203.0.113.10,10.0.7.0/24"),
    ("subnet-route-add 10.0.9.1/24,10.0.1.1", "subnet-route-add 10.0.9.0/24,10.0.1.1"),
    ("subnet-route-del 10.0.9.0/24", "subnet-route-del 10.0.9.0/24"),
    ("subnet-route-del 10.0.9.0/24,10.0.1.1", "subnet-route-del 10.0.9.0/24"),
    (
        "ext-subnet-route-add 192.0.2.0/24,203.0.113.1",
        "ext-subnet-route-add 192.0.2.0/24,203.0.113.1",
    ),
    ("ext-subnet-route-del 192.0.2.0/24,203.0.113.1", "ext-subnet-route-del 192.0.2.0/24"),
    ("eip-ingress-qos-add 203.0.113.10,1,10.5,2", "eip-ingress-qos-add 203.0.113.10,1,10.5,2"),
    ("eip-egress-qos-del 203.0.113.10", "eip-egress-qos-del 203.0.113.10"),
    ("qos-add ingress,,3,matchall,,,,10,2", "qos-add ingress,,3,matchall,,,,10,2"),
    (
        "qos-add egress,net1,2,u32,ip,src,10.0.1.5/32,10,2",
        "qos-add egress,net1,2,u32,ip,src,10.0.1.5/32,10,2",
    ),
    (
        "qos-del egress,net1,2,u32,ip,src,10.0.1.5/32,10,2",
        "qos-del egress,net1,2,u32,ip,src,10.0.1.5/32",
    ),
    (
        "qos-del egress,net1,2,u32,ip,src,10.0.1.5/32",
        "qos-del egress,net1,2,u32,ip,src,10.0.1.5/32",
    ),
];

#[test]
fn every_form_of_a_rule_is_understood_and_written_in_one_form() {
    for (line, normal) in FORMS {
        let read = orders(line);
        assert_eq!(read.len(), 1, "{line}");
        assert_eq!(read[0].to_string(), *normal, "{line}");
        assert_eq!(orders(normal), read, "{line} is another order in its own form");
    }
    let seen: BTreeSet<_> = FORMS.iter().filter_map(|(line, _)| line.split(' ').next()).collect();
    let others = ["init", "get-iptables-version", "floating-ip-sync", "dnat-sync", "snat-sync"];
    let alike = ["eip-ingress-qos-del", "eip-egress-qos-add"];
    for verb in VERBS {
        let tried = seen.contains(verb) || others.contains(verb) || alike.contains(verb);
        assert!(tried, "no form of {verb} is tried");
    }
    let many = orders("snat-add 203.0.113.10,10.0.1.0/24 203.0.113.10,10.0.2.0/24");
    assert_eq!(many.len(), 2);
    assert_eq!(orders("snat-add"), []);
}

#[test]
fn init_takes_what_any_release_says() {
    let read = |line: &str| match parse(&words(line)) {
        Ok(Call::Init(init)) => Ok(init),
        Err(error) => Err(error.to_string()),
        other => panic!("{line}: {other:?}"),
    };
    let interfaces = |internal: &str, external: &str| Init::Interfaces {
        internal: internal.into(),
        external: external.into(),
    };
    assert_eq!(read("init"), Ok(Init::Plain));
    assert_eq!(read("init 10.0.1.0/24"), Ok(Init::Plain));
    assert_eq!(read("init net1,net2"), Ok(interfaces("net1", "net2")));
    let route = orders("subnet-route-add 10.96.0.0/12,10.0.1.1").remove(0);
    assert_eq!(read("init 10.96.0.0/12,10.0.1.1"), Ok(Init::Route(route)));
    for bad in ["init net1", "init net1,net1", "init net1,net2,net3", "init ,net1", "init a/b,c"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_list_replaces_the_rules_of_its_kind() {
    let mut ledger = Ledger::default();
    for line in [
        "floating-ip-add 203.0.113.10,10.0.1.5",
        "dnat-add 203.0.113.10,80,tcp,10.0.1.5,80",
        "dnat-add 203.0.113.10,81,tcp,10.0.1.5,81",
        "nft-dnat-map-add 203.0.113.10,82,tcp,10.0.1.5:82",
    ] {
        orders(line).iter().for_each(|order| ledger.execute(order).expect("no conflict"));
    }
    let Ok(Call::Sync(rules)) =
        parse(&words("dnat-sync 203.0.113.10,80,TCP,10.0.1.5,80 203.0.113.10,81,tcp,10.0.1.6,81"))
    else {
        panic!("not a list")
    };
    assert!(matches!(rules, Rules::Dnats(_)));
    let steps = ledger.sync(&rules);
    for order in &steps {
        ledger.execute(order).unwrap_or_else(|error| panic!("{error}"));
    }
    let left: Vec<_> = ledger.orders().map(|order| order.to_string()).collect();
    assert_eq!(
        left,
        [
            "floating-ip-add 203.0.113.10,10.0.1.5",
            "dnat-add 203.0.113.10,80,tcp,10.0.1.5,80",
            "dnat-add 203.0.113.10,81,tcp,10.0.1.6,81",
        ]
    );
    assert!(!steps.iter().any(|order| order.to_string() == "dnat-del 203.0.113.10,80,tcp"));
}

#[test]
fn what_is_not_a_rule_is_refused_by_name() {
    for (line, wanted) in [
        ("", "no verb, expected one of: init"),
        ("frobnicate 1", "frobnicate is not a verb"),
        ("eip-add 203.0.113.10", ""),
        ("dnat-add 203.0.113.10,80,icmp,10.0.1.5,80", "icmp is not a protocol of DNAT rules"),
        ("dnat-add 203.0.113.10,80,tcp,10.0.1.5", "expected EIP,PORT,PROTOCOL,INTERNAL_IP"),
        ("dnat-add 203.0.113.10,80,tcp,10.0.1.5,80,more", "expected EIP,PORT,PROTOCOL"),
        ("snat-add 203.0.113.10,fd00::/64", "are of different families"),
        ("snat-add 203.0.113.10,10.0.1.0/24,--persistent", "--random-fully"),
        ("nft-dnat-map-add 203.0.113.10,80,tcp,10.0.1.5", "expected EIP,PORT,PROTOCOL,IP:PORT@"),
        ("qos-add sideways,,1,matchall,,,,1,1", "expected DIRECTION,INTERFACE"),
        ("eip-ingress-qos-add 203.0.113.10,1,fast,2", "expected EIP,PRIORITY,RATE,BURST"),
    ] {
        match parse(&words(line)) {
            Ok(call) => assert!(wanted.is_empty(), "{line}: {call:?}"),
            Err(error) => {
                let said = error.to_string();
                assert!(!wanted.is_empty() && said.contains(wanted), "{line}: {said}");
            }
        }
    }
}

#[test]
fn a_contradiction_changes_nothing() {
    let mut ledger = Ledger::default();
    for (line, wanted) in [
        ("floating-ip-add 203.0.113.10,10.0.1.5", ""),
        ("floating-ip-add 203.0.113.10,10.0.1.5", ""),
        ("floating-ip-add 203.0.113.10,10.0.1.6", "is the floating IP of 10.0.1.5 already"),
        ("floating-ip-add 203.0.113.11,10.0.1.5", "has the floating IP 203.0.113.10 already"),
        ("dnat-add 203.0.113.10,80,tcp,10.0.1.5,80", ""),
        ("dnat-add 203.0.113.10,80,TCP,10.0.1.5,80", ""),
        ("dnat-add 203.0.113.10,80,tcp,10.0.1.5,81", "203.0.113.10:80/tcp leads to 10.0.1.5:80"),
        ("nft-dnat-map-add 203.0.113.10,80,tcp,10.0.1.5:80", "leads to 10.0.1.5:80 already"),
        ("nft-dnat-map-del 203.0.113.10,80,tcp", ""),
        ("nft-dnat-map-add 203.0.113.10,81,tcp,10.0.1.5:80@10.0.1.6:80", ""),
        ("nft-dnat-map-add 203.0.113.10,81,tcp,10.0.1.7:80", ""),
        ("dnat-add 203.0.113.10,81,tcp,10.0.1.7,80", "leads to 1 backends that share it already"),
        ("dnat-del 203.0.113.10,81,tcp", ""),
    ] {
        let before = ledger.clone();
        match ledger.execute(&orders(line)[0]) {
            Ok(()) => assert!(wanted.is_empty(), "{line} was accepted"),
            Err(conflict) => {
                let said = conflict.to_string();
                assert!(!wanted.is_empty() && said.contains(wanted), "{line}: {said}");
                assert_eq!(ledger, before, "{line}");
            }
        }
    }
    assert_eq!(ledger.dnats.len(), 2, "a delete of the other kind has removed a port");
}

fn surroundings() -> Surroundings {
    harness::surroundings::surroundings(1400, 1500)
}

fn identity() -> Identity {
    Identity { name: "pod".into(), routers: vec!["203.0.113.1".parse().expect("an address")] }
}

/// A gateway that is told what to do, with its maps in memory.
struct Told {
    ledger: Ledger,
    desired: DesiredState,
    maps: Reconciler<Memory>,
}

impl Told {
    fn new() -> Self {
        let ledger = Ledger::default();
        let desired = identity().desired(&ledger);
        let mut maps = Reconciler::adopt(Memory::default()).expect("maps");
        maps.round(&desired, &surroundings()).expect("a round");
        Self { ledger, desired, maps }
    }

    /// Does orders as one change. Those that contradict what is there are left out.
    fn execute(&mut self, orders: &[Order]) {
        let slots: Vec<Slot> = orders.iter().map(Order::slot).collect();
        for order in orders {
            let _ = self.ledger.execute(order);
            update(&mut self.desired, &self.ledger, &order.slot());
        }
        let round = self.maps.round_of(&self.desired, &touched(&slots), &surroundings());
        assert_eq!(round.expect("a round").overflows, []);
    }
}

/// Xorshift, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Few values, so that they meet.
    fn order(&mut self) -> Order {
        let (eip, host) = (10 + self.below(4), 5 + self.below(4));
        let (port, other) = (80 + self.below(3), 5 + self.below(4));
        let net = self.below(3);
        let v6 = self.below(4) == 0;
        let (eip, host, other, net) = if v6 {
            let net = format!("fd00:{net}::/64");
            (format!("2001:db8::{eip}"), format!("fd00::{host}"), format!("fd00::{other}"), net)
        } else {
            let (host, other) = (format!("10.0.1.{host}"), format!("10.0.1.{other}"));
            (format!("203.0.113.{eip}"), host, other, format!("10.{net}.0.0/16"))
        };
        let backend = |host: &str| if v6 { format!("[{host}]:80") } else { format!("{host}:80") };
        let (first, second) = (backend(&host), backend(&other));
        let lines = [
            format!("floating-ip-add {eip},{host}"),
            format!("floating-ip-del {eip}"),
            format!("dnat-add {eip},{port},tcp,{host},80"),
            format!("dnat-del {eip},{port},tcp"),
            format!("nft-dnat-map-add {eip},{port},tcp,{first}@{second}"),
            format!("nft-dnat-map-del {eip},{port},tcp"),
            format!("snat-add {eip},{net}"),
            format!("snat-del {eip},{net}"),
        ];
        let chosen = self.below(lines.len() as u64);
        let line = lines.get(usize::try_from(chosen).expect("small")).expect("a line");
        orders(line).remove(0)
    }
}

#[test]
fn a_change_of_a_few_rules_is_what_all_rules_together_ask_for() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut told = Told::new();
    let mut changes = 0;
    for step in 0..4_000_u32 {
        let count = 1 + random.below(4);
        let orders: Vec<_> = (0..count).map(|_| random.order()).collect();
        let before = told.maps.live().clone();
        told.execute(&orders);
        changes += u32::from(before != *told.maps.live());
        let shown: Vec<_> = orders.iter().map(ToString::to_string).collect();
        assert_eq!(told.desired, identity().desired(&told.ledger), "step {step}: {shown:?}");
        // All rules together have nothing to add, and the maps are as they are thought to be.
        let whole = told.maps.round(&told.desired, &surroundings()).expect("a round");
        assert!(whole.plan.is_empty(), "step {step}: {shown:?} left {:?}", whole.plan);
        let live = told.maps.live().clone();
        assert_eq!(told.maps.dataplane().image, live, "step {step}: {shown:?}");
        if step % 7 == 0 {
            told.maps.sweep().expect("a sweep");
        }
    }
    assert!(changes > 2_000, "only {changes} of 4000 steps changed anything");
}

#[test]
fn one_rule_more_beside_ten_thousand() {
    let mut told = Told::new();
    let all: Vec<_> = (0..10_000)
        .map(|n| orders(&format!("dnat-add 203.0.113.10,{},tcp,10.0.1.5,80", 10_000 + n)).remove(0))
        .collect();
    told.execute(&all);
    let begin = Instant::now();
    for n in 0..100 {
        told.execute(&orders(&format!("dnat-add 203.0.113.11,{},tcp,10.0.1.5,80", 10_000 + n)));
    }
    println!("measured: one rule beside 10 000: {:?}", begin.elapsed() / 100);
    assert_eq!(told.maps.live().rules.len(), 10_100);
}
