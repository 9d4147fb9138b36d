//! The pure middle of the control path: encode, diff and apply on a data plane in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gateway_common::records::{
    ABI_VERSION, Config, FILTER_ADDRESS, HostLimits, MAP_INDEPENDENT, Timeouts, Unmatched,
};
use gateway_tests::harness;
use gateway_userspace::dataplane::Dataplane as _;
use gateway_userspace::dataplane::memory::Memory;
use gateway_userspace::desired::{
    self, Allocations, DesiredState, NatBehavior, NatFiltering, NatMapping,
};
use gateway_userspace::encode::{Overflow, Surroundings, encode};
use gateway_userspace::image::{MapImage, is_draining, is_exclusive};
use gateway_userspace::plan::{Action, Change, Plan, diff};
use gateway_userspace::reconcile::Reconciler;
use gateway_userspace::source::{Snapshot, yaml};

const GATEWAY: &str = "\
apiVersion: kubeovn.io/v1
kind: VpcNatGateway
metadata: {name: gw1}
spec: {vpc: vpc1, subnet: net1}
";

fn eip(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: kubeovn.io/v1\nkind: IptablesEIP\nmetadata: {{name: {name}}}\n\
         spec: {{natGwDp: gw1, v4ip: {address}}}\n"
    )
}

fn snat(name: &str, eip: &str, cidr: &str) -> String {
    format!(
        "---\napiVersion: kubeovn.io/v1\nkind: IptablesSnatRule\nmetadata: {{name: {name}}}\n\
         spec: {{eip: {eip}, internalCIDR: {cidr}}}\n"
    )
}

fn fip(name: &str, eip: &str, internal: &str) -> String {
    format!(
        "---\napiVersion: kubeovn.io/v1\nkind: IptablesFIPRule\nmetadata: {{name: {name}}}\n\
         spec: {{eip: {eip}, internalIp: {internal}}}\n"
    )
}

fn dnat(name: &str, eip: &str, port: u16, to: &str) -> String {
    let to: SocketAddr = to.parse().expect("an endpoint");
    format!(
        "---\napiVersion: kubeovn.io/v1\nkind: IptablesDnatRule\nmetadata: {{name: {name}}}\n\
         spec: {{eip: {eip}, externalPort: \"{port}\", protocol: tcp, internalIp: {}, \
         internalPort: \"{}\"}}\n",
        to.ip(),
        to.port()
    )
}

fn share(name: &str, eip: &str, port: u16, to: &str) -> String {
    dnat(name, eip, port, to).replace("protocol: tcp", "protocol: tcp, type: share")
}

fn state(text: &str) -> DesiredState {
    let mut snapshot = Snapshot::default();
    yaml::parse("gw.yaml", text, &mut snapshot);
    let resolution = desired::resolve(&snapshot, "gw1", &Allocations::default());
    assert_eq!(resolution.rejections, [], "{text}");
    resolution.state.expect("the gateway is there")
}

fn surroundings() -> Surroundings {
    harness::surroundings::surroundings(1500, 1400)
}

/// The image of a state on top of another, without anything that does not fit.
fn image(state: &DesiredState, live: &MapImage) -> MapImage {
    let encoded = encode(state, Some(&surroundings()), live, &BTreeSet::new());
    assert_eq!(encoded.overflows, []);
    encoded.image
}

/// A small gateway with one rule of each kind.
fn small() -> String {
    [
        GATEWAY,
        &eip("eip-s", "203.0.113.10"),
        &eip("eip-d", "203.0.113.11"),
        &eip("eip-f", "203.0.113.12"),
        &snat("snat-all", "eip-s", "10.0.0.0/16"),
        &dnat("dnat-web", "eip-d", 8080, "10.0.1.10:80"),
        &fip("fip-a", "eip-f", "10.0.1.5"),
    ]
    .concat()
}

fn id_of(image: &MapImage, name: &str) -> u32 {
    let found = image
        .rules
        .iter()
        .find(|(_, rule)| &rule.name[..usize::from(rule.name_length)] == name.as_bytes());
    *found.unwrap_or_else(|| panic!("no rule {name}")).0
}

fn actions(plan: &Plan) -> Vec<Action> {
    plan.changes.iter().map(Change::action).collect()
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.lines().map(|line| line.to_string()).collect()
}

#[test]
fn the_first_plan_inserts_rules_then_entries_then_the_configuration() {
    let plan = diff(&MapImage::default(), &image(&state(&small()), &MapImage::default()));
    let expected = [
        "+ EIPS_V4   203.0.113.10",
        "+ EIPS_V4   203.0.113.11",
        "+ EIPS_V4   203.0.113.12",
        "+ RULES     #1 -> fip fip-a",
        "+ RULES     #2 -> dnat dnat-web",
        "+ RULES     #3 -> snat snat-all",
        "+ FIPS_V4   out 10.0.1.5 -> 203.0.113.12 [fip-a]",
        "+ FIPS_V4   in 203.0.113.12 -> 10.0.1.5 [fip-a]",
        "+ DNATS_V4  203.0.113.11:8080/tcp -> 10.0.1.10:80 [dnat-web]",
        "+ SNATS_V4  10.0.0.0/16 -> 203.0.113.10 [snat-all]",
    ];
    assert_eq!(lines(&plan)[..10], expected);
    assert!(
        lines(&plan)[10].starts_with("+ CONFIG    config -> generation 1, internal #2 mtu 1500")
    );
    assert_eq!(plan.changes.len(), 11);
}

#[test]
fn a_rule_that_maps_otherwise_is_another_rule() {
    let mut desired = state(&small());
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&desired, &surroundings()).unwrap();
    assert_eq!(maps.live().config.unwrap().mappings, 0);
    let before = maps.live().clone();
    let independent = NatBehavior {
        mapping: NatMapping::EndpointIndependent,
        filtering: NatFiltering::AddressDependent,
    };
    for snat in desired.snats.values_mut().flat_map(|snat| &mut snat.eips) {
        snat.behavior = independent;
    }
    let plan = maps.round(&desired, &surroundings()).unwrap().plan;
    assert!(plan.cut().is_some(), "its flows end");
    assert_eq!(maps.live().config.unwrap().mappings, 1);
    let pool = *maps.live().v4.snats.values().next().unwrap();
    assert_eq!(pool.members[0].options, MAP_INDEPENDENT | FILTER_ADDRESS);
    let old = before.v4.snats.values().next().unwrap();
    assert_ne!(pool.members[0].rule, old.members[0].rule);
    let shown = "10.0.0.0/16 -> 203.0.113.10 (mapping endpoint-independent, filtering \
                 address-dependent)";
    assert!(lines(&plan).iter().any(|line| line.contains(shown)), "{:?}", lines(&plan));
    assert!(maps.round(&desired, &surroundings()).unwrap().plan.is_empty());
}

#[test]
fn an_eip_keeps_its_record_while_a_rule_uses_it() {
    let mut desired = state(&small());
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&desired, &surroundings()).unwrap();
    desired.fips.clear();
    let plan = maps.round(&desired, &surroundings()).unwrap().plan;
    let about_eips = |plan: &Plan| -> Vec<String> {
        lines(plan).into_iter().filter(|line| line.contains("EIPS")).collect()
    };
    assert_eq!(about_eips(&plan), ["- EIPS_V4   203.0.113.12"]);
    // The last thing that goes, and the first that comes.
    let gone = lines(&plan).iter().position(|line| line.contains("EIPS")).unwrap();
    assert!(lines(&plan)[..gone].iter().any(|line| line.starts_with("- RULES")));
    assert!(lines(&plan)[gone + 1..].iter().all(|line| !line.starts_with('-')));
}

#[test]
fn applying_twice_plans_nothing() {
    let state = state(&small());
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    assert!(!maps.round(&state, &surroundings()).unwrap().plan.is_empty());
    let before = maps.live().clone();
    assert!(maps.round(&state, &surroundings()).unwrap().plan.is_empty());
    assert_eq!(*maps.live(), before);
    assert_eq!(maps.live().config.unwrap().generation, 1);
    assert_eq!(maps.dataplane().image, before);
}

#[test]
fn a_restart_finds_its_rules_again() {
    let state = state(&small());
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&state, &surroundings()).unwrap();
    let survived = maps.dataplane().clone();
    let mut again = Reconciler::adopt(survived).unwrap();
    assert!(again.round(&state, &surroundings()).unwrap().plan.is_empty());
    // Sessions of rules that went while nobody was there are cut before an id is used again.
    assert_eq!(again.dataplane().sweeps, 1);
}

#[test]
fn a_changed_rule_gets_another_id_and_its_sessions_are_cut() {
    let before = image(&state(&small()), &MapImage::default());
    let moved = small().replace("10.0.1.10", "10.0.1.20");
    let after = image(&state(&moved), &before);
    let plan = diff(&before, &after);
    let expected = [
        "+ RULES     #4 -> dnat dnat-web",
        "~ DNATS_V4  203.0.113.11:8080/tcp -> 10.0.1.20:80 (was 10.0.1.10:80) [dnat-web]",
        "- RULES     #2 -> dnat dnat-web",
    ];
    assert_eq!(lines(&plan)[..3], expected);
    assert_eq!(lines(&plan)[4], "! SESSIONS  sessions of #2 [dnat-web]");
    for same in ["snat-all", "fip-a"] {
        assert_eq!(id_of(&before, same), id_of(&after, same));
    }
}

#[test]
fn an_eip_that_joins_a_pool_changes_no_other_rule() {
    let before = image(&state(&small()), &MapImage::default());
    let more = [small(), snat("snat-more", "eip-d", "10.0.0.0/16")].concat();
    let after = image(&state(&more), &before);
    assert_eq!(id_of(&before, "snat-all"), id_of(&after, "snat-all"));
    let plan = diff(&before, &after);
    assert_eq!(actions(&plan), [Action::Insert, Action::Update, Action::Update]);
    assert!(plan.cut().is_none());
    let pool = after.v4.snats.values().next().unwrap();
    assert_eq!(pool.length, 2);
    assert_eq!(pool.members[2..], [Default::default(); 6]);
}

#[test]
fn the_ninth_eip_of_a_pool_is_refused_and_the_others_work() {
    let mut text = GATEWAY.to_owned();
    for n in 1..=9 {
        text += &eip(&format!("eip-{n}"), &format!("203.0.113.{n}"));
        text += &snat(&format!("snat-{n}"), &format!("eip-{n}"), "10.0.0.0/16");
    }
    let encoded =
        encode(&state(&text), Some(&surroundings()), &MapImage::default(), &BTreeSet::new());
    assert!(matches!(&encoded.overflows[..], [Overflow::Pool { .. }]));
    assert_eq!(
        encoded.overflows[0].to_string(),
        "IptablesSnatRule/snat-9: 10.0.0.0/16 already has 8 EIPs, the most there can be"
    );
    assert_eq!(encoded.image.rules.len(), 8);
    assert_eq!(encoded.image.v4.snats.values().next().unwrap().length, 8);
}

#[test]
fn an_id_is_not_given_away_while_sessions_may_name_it() {
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&state(&small()), &surroundings()).unwrap();
    let without = small().replace(&dnat("dnat-web", "eip-d", 8080, "10.0.1.10:80"), "");
    let round = maps.round(&state(&without), &surroundings()).unwrap();
    assert_eq!(round.plan.cut().unwrap().rules, [2].into());
    assert!(round.plan.cut().unwrap().families.v4 && !round.plan.cut().unwrap().families.v6);

    let with = |name| [without.clone(), dnat(name, "eip-d", 9090, "10.0.1.10:90")].concat();
    maps.round(&state(&with("dnat-next")), &surroundings()).unwrap();
    assert_eq!(id_of(maps.live(), "dnat-next"), 4);
    maps.sweep().unwrap();
    let both = [with("dnat-next"), dnat("dnat-later", "eip-d", 9091, "10.0.1.10:91")].concat();
    maps.round(&state(&both), &surroundings()).unwrap();
    assert_eq!(id_of(maps.live(), "dnat-later"), 2);
}

#[test]
fn the_configuration_changes_only_when_something_does() {
    let state = state(&small());
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&state, &surroundings()).unwrap();
    let routed = Surroundings { routing: 2, ..surroundings() };
    let round = maps.round(&state, &routed).unwrap();
    assert_eq!(actions(&round.plan), [Action::Update]);
    let config = maps.live().config.unwrap();
    let expected = Config {
        generation: 2,
        abi_version: ABI_VERSION,
        internal_ifindex: 2,
        external_ifindex: 3,
        internal_mtu: 1500,
        external_mtu: 1400,
        clamp_mtu: 0,
        routing: 2,
        port_low: 1024,
        port_high: 65535,
        unmatched: Unmatched::Drop as u8,
        mappings: 0,
        next_hops: 0,
        zero: [0; 3],
        timeouts: Timeouts::default(),
        host_limits: HostLimits::default(),
    };
    assert_eq!(config, expected);
    // A plan made without a daemon leaves the configuration alone.
    assert_eq!(encode(&state, None, maps.live(), &BTreeSet::new()).image, *maps.live());
}

#[test]
fn a_refused_change_is_made_up_for_in_the_next_round() {
    for patience in 0..8 {
        let memory = Memory { patience: Some(patience), ..Memory::default() };
        let mut maps = Reconciler::adopt(memory).unwrap();
        maps.round(&state(&small()), &surroundings()).unwrap_err();
        maps.dataplane().patience = None;
        maps.round(&state(&small()), &surroundings()).unwrap();
        let live = maps.live().clone();
        assert_eq!(maps.dataplane().image, live, "after {patience} changes");
        assert_whole(&live);
        // Ids may differ: a rule without its entry counts as another one.
        let expected = image(&state(&small()), &MapImage::default());
        let contents = |image: &MapImage| image.contents().into_values().collect::<BTreeSet<_>>();
        assert_eq!(contents(&live), contents(&expected));
        assert_eq!(live.rules.len(), expected.rules.len());
    }
}

/// At every moment of a plan each entry names a rule that is there, and no way to a backend ends
/// before it.
fn assert_whole(image: &MapImage) {
    let ids: BTreeSet<_> = image.rules.keys().copied().collect();
    for (key, dnat) in image.v4.dnats.iter().filter(|(_, dnat)| !is_exclusive(dnat)) {
        let slots = image.v4.slots.get(key).unwrap_or_else(|| panic!("{dnat:?} has no slots"));
        for rule in slots.rules {
            let backend = image.v4.backends.get(&rule);
            assert!(backend.is_some_and(|backend| backend.key == *key), "a slot leads to {rule}");
        }
        assert!(image.v4.backends.contains_key(&dnat.rule));
    }
    assert!(image.v4.backends.keys().all(|id| ids.contains(id)));
    let fips = image.v4.fips.values().map(|fip| fip.rule);
    let dnats = image.v4.dnats.values().map(|dnat| dnat.rule);
    let snats = image
        .v4
        .snats
        .values()
        .flat_map(|pool| pool.members[..pool.length as usize].iter().map(|member| member.rule));
    for id in fips.chain(dnats).chain(snats) {
        assert!(ids.contains(&id), "an entry names rule {id}, which is gone");
    }
}

/// How a rule is written.
type Rule = fn(&str, &str, u16, &str) -> String;

/// A linear congruential generator: the same states in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// A gateway with some of a few possible rules, so that two of them have much in common.
    fn state(&mut self) -> DesiredState {
        let mut text = GATEWAY.to_owned();
        for n in 1..=6 {
            text += &eip(&format!("eip-{n}"), &format!("203.0.113.{n}"));
        }
        for n in 1..=3 {
            if self.below(2) == 0 {
                let inside = 10 + 4 * n + self.below(2);
                text += &fip(&format!("fip-{n}"), &format!("eip-{n}"), &format!("10.0.1.{inside}"));
            }
        }
        for n in 0..6 {
            if self.below(3) > 0 {
                let to = format!("10.0.2.{}:80", 1 + self.below(3));
                text += &dnat(&format!("dnat-{n}"), "eip-5", 8000 + n, &to);
            }
        }
        for port in [9000, 9001] {
            // Now and then one rule has the port for itself.
            let (most, rule) =
                if self.below(5) == 0 { (1, dnat as Rule) } else { (4, share as Rule) };
            for n in 0..most {
                if self.below(2) == 0 {
                    let to = format!("10.0.3.{}:80", 1 + n + self.below(2) * 4);
                    text += &rule(&format!("share-{port}-{n}"), "eip-6", port, &to);
                }
            }
        }
        for n in 1..=4 {
            if self.below(2) == 0 {
                let cidr = ["10.0.0.0/16", "10.0.1.0/24"][self.below(2) as usize];
                text += &snat(&format!("snat-{n}"), &format!("eip-{n}"), cidr);
            }
        }
        state(&text)
    }
}

#[test]
fn a_plan_leads_from_any_state_to_any_other() {
    let mut random = Random(42);
    let mut live = MapImage::default();
    for _ in 0..300 {
        let desired = image(&random.state(), &live);
        assert!(diff(&desired, &desired).is_empty());
        let plan = diff(&live, &desired);
        let mut maps = live.clone();
        for change in &plan.changes {
            maps.apply(change);
            assert_whole(&maps);
        }
        assert_eq!(maps, desired);
        let slots = desired.v4.slots.values().flat_map(|slots| slots.rules);
        assert!({ slots }.all(|rule| !is_draining(&desired.rules[&rule])));
        let mut memory = Memory { image: live, ..Memory::default() };
        let applied = memory.apply(&plan).unwrap();
        assert_eq!(applied.inserted + applied.updated + applied.deleted, plan.len());
        assert_eq!(memory.image, desired);
        live = desired;
    }
}

/// A gateway with one shared port, whose backends have these names and addresses.
fn shared(backends: &[(&str, &str)]) -> DesiredState {
    let rules = backends.iter().map(|(name, to)| share(name, "eip-d", 80, to));
    state(&[GATEWAY.to_owned(), eip("eip-d", "203.0.113.11"), rules.collect()].concat())
}

const ONE: (&str, &str) = ("web-1", "10.0.1.10:80");
const TWO: (&str, &str) = ("web-2", "10.0.1.20:80");
const THREE: (&str, &str) = ("web-3", "10.0.1.30:80");

#[test]
fn a_shared_port_comes_after_its_slots_and_they_after_its_backends() {
    let plan = diff(&MapImage::default(), &image(&shared(&[ONE, TWO]), &MapImage::default()));
    let expected = [
        "+ RULES     #1 -> dnat web-1",
        "+ RULES     #2 -> dnat web-2",
        "+ BACKENDS_V4 #1 -> 10.0.1.10:80 of 203.0.113.11:80/tcp, weight 1 [web-1]",
        "+ BACKENDS_V4 #2 -> 10.0.1.20:80 of 203.0.113.11:80/tcp, weight 1 [web-2]",
        "+ SLOTS_V4  203.0.113.11:80/tcp -> slots 256 #1, 256 #2 [web-1, web-2]",
        "+ DNATS_V4  203.0.113.11:80/tcp -> its slots, else 10.0.1.10:80",
    ];
    assert_eq!(lines(&plan)[1..7], expected);
}

#[test]
fn a_backend_that_goes_drains_until_no_sweep_meets_it() {
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&shared(&[ONE, TWO]), &surroundings()).unwrap();
    let round = maps.round(&shared(&[TWO]), &surroundings()).unwrap();
    let expected = [
        "~ RULES     #1 -> dnat web-1, draining (was dnat web-1)",
        "~ SLOTS_V4  203.0.113.11:80/tcp -> slots 512 #2 (was slots 256 #1, 256 #2) [web-2]",
        "~ DNATS_V4  203.0.113.11:80/tcp -> its slots, else 10.0.1.20:80 (was its slots, else \
         10.0.1.10:80)",
    ];
    assert_eq!(lines(&round.plan)[..3], expected);
    assert!(round.plan.cut().is_none());
    assert!(maps.round(&shared(&[TWO]), &surroundings()).unwrap().plan.is_empty());

    // Its sessions keep it; a restart forgets nothing.
    maps.dataplane().sessions.insert(1, 7);
    let mut maps = Reconciler::adopt(maps.dataplane().clone()).unwrap();
    for _ in 0..3 {
        assert!(maps.sweep().unwrap().is_empty());
        assert!(maps.round(&shared(&[TWO]), &surroundings()).unwrap().plan.is_empty());
    }
    // One sweep without them may have missed some.
    for left in [0, 1, 0] {
        maps.dataplane().sessions.insert(1, left);
        assert!(maps.sweep().unwrap().is_empty());
    }
    let drained = maps.sweep().unwrap();
    let expected = [
        "- BACKENDS_V4 #1 -> 10.0.1.10:80 of 203.0.113.11:80/tcp, weight 1 [web-1]",
        "- RULES     #1 -> dnat web-1, draining",
        "! SESSIONS  sessions of #1 [web-1]",
    ];
    assert_eq!(lines(&drained), expected);
    let live = maps.live().clone();
    assert_eq!(maps.dataplane().image, live);
    assert!(maps.round(&shared(&[TWO]), &surroundings()).unwrap().plan.is_empty());
}

#[test]
fn the_last_backend_that_goes_cuts_those_that_drain_too() {
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&shared(&[ONE, TWO]), &surroundings()).unwrap();
    maps.round(&shared(&[TWO]), &surroundings()).unwrap();
    let round = maps.round(&shared(&[]), &surroundings()).unwrap();
    assert_eq!(round.plan.cut().unwrap().rules, [1, 2].into());
    assert!(round.plan.cut().unwrap().families.v4);
    let gone: Vec<_> = lines(&round.plan).iter().map(|line| line[..9].to_owned()).collect();
    let order = ["- DNATS_V", "- SLOTS_V", "- BACKEND", "- BACKEND", "- RULES  ", "- RULES  "];
    assert_eq!(gone[..6], order);
    assert_eq!(maps.live().rules.len(), 0);
}

#[test]
fn a_backend_that_comes_back_is_the_same_rule() {
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&shared(&[ONE, TWO]), &surroundings()).unwrap();
    maps.round(&shared(&[TWO, THREE]), &surroundings()).unwrap();
    let round = maps.round(&shared(&[ONE, TWO, THREE]), &surroundings()).unwrap();
    assert_eq!(id_of(maps.live(), "web-1"), 1);
    let revived = "~ RULES     #1 -> dnat web-1 (was dnat web-1, draining)";
    assert_eq!(lines(&round.plan)[0], revived);
    // Under another name, or at another place, it is another one.
    let other = ("web-9", ONE.1);
    maps.round(&shared(&[other, TWO, THREE]), &surroundings()).unwrap();
    assert_eq!(id_of(maps.live(), "web-9"), 4);
    assert!(is_draining(&maps.live().rules[&1]));
}

#[test]
fn an_exclusive_rule_that_becomes_a_shared_one_keeps_its_sessions() {
    let alone = state(
        &[GATEWAY.to_owned(), eip("eip-d", "203.0.113.11"), dnat(ONE.0, "eip-d", 80, ONE.1)]
            .concat(),
    );
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&alone, &surroundings()).unwrap();
    for next in [shared(&[ONE, TWO]), shared(&[ONE])] {
        assert!(maps.round(&next, &surroundings()).unwrap().plan.cut().is_none());
        assert_eq!(id_of(maps.live(), ONE.0), 1);
    }
    // The other way round too; what drains has no shared port to drain from.
    let round = maps.round(&alone, &surroundings()).unwrap();
    assert_eq!(id_of(maps.live(), ONE.0), 1);
    assert_eq!(round.plan.cut().unwrap().rules, [2].into());
}

#[test]
fn a_weight_moves_slots_and_nothing_else() {
    let mut desired = shared(&[ONE, TWO]);
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    maps.round(&desired, &surroundings()).unwrap();
    desired.dnats.values_mut().next().unwrap().backends[0].weight = 3;
    let round = maps.round(&desired, &surroundings()).unwrap();
    let expected = [
        "~ BACKENDS_V4 #1 -> 10.0.1.10:80 of 203.0.113.11:80/tcp, weight 3 (was 10.0.1.10:80 of \
         203.0.113.11:80/tcp, weight 1) [web-1]",
        "~ SLOTS_V4  203.0.113.11:80/tcp -> slots 384 #1, 128 #2 (was slots 256 #1, 256 #2) \
         [web-1, web-2]",
    ];
    assert_eq!(lines(&round.plan)[..2], expected);
    assert_eq!(round.plan.changes.len(), 3);
}

#[test]
fn a_plan_as_json_has_stable_names() {
    let plan = diff(&MapImage::default(), &image(&state(&small()), &MapImage::default()));
    let json = serde_json::to_value(&plan).unwrap();
    let expected = serde_json::json!({
        "action": "insert",
        "map": "DNATS_V4",
        "key": "203.0.113.11:8080/tcp",
        "value": "10.0.1.10:80",
        "rules": ["dnat-web"],
    });
    assert_eq!(json[8], expected);
}

#[test]
fn ten_thousand_rules_and_then_one_more() {
    let mut desired = state(&small());
    let (key, template) = desired.dnats.iter().next().map(|(k, d)| (*k, d.clone())).unwrap();
    for n in 0..10_000_u16 {
        let mut dnat = template.clone();
        dnat.backends[0].owner.object.name = format!("dnat-{n}");
        let port = (10_000 + n).to_string().parse().unwrap();
        desired.dnats.insert(desired::DnatKey { port, ..key }, dnat);
    }
    let mut maps = Reconciler::adopt(Memory::default()).unwrap();
    let first = maps.round(&desired, &surroundings()).unwrap();
    let other: SocketAddr = (IpAddr::V4(Ipv4Addr::new(10, 0, 1, 99)), 80).into();
    if let Some(dnat) = desired.dnats.values_mut().nth(5_000) {
        dnat.backends[0].endpoint = other;
    }
    let second = maps.round(&desired, &surroundings()).unwrap();
    println!("10 000 rules: {:?}, one changed: {:?}", first.duration, second.duration);
    let counts: BTreeMap<_, _> =
        actions(&second.plan).into_iter().map(|a| (a.as_str(), ())).collect();
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), ["cut", "delete", "insert", "update"]);
    assert_eq!(second.plan.len(), 4);
}
