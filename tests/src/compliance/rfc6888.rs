use super::{Document, Requirement, may, must, should};

pub(super) const DOCUMENT: Document =
    Document { rfc: 6888, title: "Carrier-grade NAT: many tenants", requirements: REQUIREMENTS };

const REQUIREMENTS: &[Requirement] = &[
    must("REQ-1", "Each transport protocol meets its own RFC")
        .partly(&[])
        .because("See the tables above. DCCP and UDP-Lite have ports; SCTP and others keep theirs and change the address only."),
    must("REQ-2", "Paired pooling by default").met(&[
        "snat::a_source_stays_with_its_member_of_the_pool",
        "snat::the_members_of_a_pool_share_the_sources",
    ]),
    must("REQ-3", "External addresses need not be contiguous")
        .met(&["snat::the_members_of_a_pool_share_the_sources"])
        .because("A pool is a list of EIPs, up to eight for one CIDR."),
    must("REQ-4", "A limit of external ports per subscriber")
        .met(&["hosts::a_host_keeps_to_its_number_of_sessions", "hosts::another_host_is_not_limited_by_the_first", "hosts::a_hairpin_counts_for_the_host_that_opens_it"])
        .because("A subscriber is an inside address; sessions are what is counted, as one port serves many remotes."),
    must("REQ-4a", "It can be configured")
        .met(&["hosts::a_host_keeps_to_its_number_of_sessions", "hosts::a_host_may_open_again_when_a_session_has_ended"])
        .because("`--host-sessions`; no limit unless one is set."),
    may("REQ-4b", "Per protocol").not_met("As REQ-4."),
    should("REQ-4c", "A limit of new mappings per time and subscriber")
        .met(&["hosts::a_burst_then_the_rate"]),
    should("REQ-5", "A limit of memory per mapping and subscriber").met(&[
        "hosts::a_host_keeps_to_its_number_of_sessions",
        "limits::a_full_table_refuses_and_leaves_the_others_alone",
    ]).because("A mapping has two entries of one size; all together are limited by `--max-sessions`."),
    should("REQ-5a", "It can be configured").met(&["hosts::a_host_keeps_to_its_number_of_sessions"]),
    should("REQ-5b", "So can its rate").met(&["hosts::a_burst_then_the_rate"]),
    must("REQ-6", "Translation can be turned off for destinations")
        .partly(&["unmatched::a_source_without_rule_is_forwarded_if_asked"])
        .because("By source, by leaving it without a rule; not by destination: Kube-OVN's SNAT rules have none."),
    should("REQ-7", "Endpoint-independent filtering")
        .partly(&["independent::an_independent_filter_lets_everybody_in"])
        .because("As RFC 4787 REQ-8: by annotation."),
    should("REQ-8", "A port that is free again rests for 120 s")
        .partly(&["life::a_swept_port_is_free_again"])
        .because("Exception c: filtering depends on address and port, so it may be used again at once. That \
                  does not hold for rules with another filter by annotation, whose ports do not rest either."),
    must("REQ-9", "Subscribers control their mappings by a protocol")
        .not_met("Tenants make DNAT rules and floating IPs as Kubernetes objects; hosts have no PCP."),
    should("REQ-10", "Standard management")
        .partly(&["netns_manifests::every_pinned_map_is_dumped_by_bpftool_with_field_names"])
        .because("Counters and sessions as JSON and as BPF maps; no MIB."),
    must("REQ-11a", "A flow that cannot be mapped: its packet is dropped").met(&[
        "ports::an_exhausted_range_refuses_and_other_remotes_go_on",
        "limits::a_full_table_refuses_and_leaves_the_others_alone",
        "netns_robustness::a_port_range_fills_to_the_last_port_and_then_refuses_without_a_leak",
    ]),
    should("REQ-11b", "ICMP unreachable to the sender")
        .met(&["netns_answers::a_host_over_its_limit_is_told_so_at_once"])
        .because("With the code of RFC 5508 REQ-8, administratively prohibited."),
    should("REQ-11c", "The operator is told").partly(&["limits::a_full_table_refuses_and_leaves_the_others_alone"])
        .because("Counters `ports_exhausted` and `sessions_full`; nothing is pushed."),
    must("REQ-11d", "No mapping is deleted to make room").met(&[
        "ports::exhaustion_leaves_open_sessions_alone",
        "limits::a_full_table_refuses_and_leaves_the_others_alone",
        "netns_floods::a_full_session_table_refuses_new_flows_and_hurts_no_open_connection",
    ]),
    should("REQ-12", "Destinations are not logged").met(&[]).because("Nothing is logged per flow."),
    should("REQ-13", "Ports are used to the full").met(&[
        "ports::a_range_is_used_to_the_last_port",
        "ports::one_port_serves_many_remotes",
    ]),
    should("REQ-14", "Little is logged").met(&[]).because("Nothing is logged per flow."),
    should("REQ-15", "Ports are hard to guess").met(&["conformance::external_ports_are_spread"]),
];
