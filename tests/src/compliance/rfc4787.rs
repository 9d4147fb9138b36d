use super::{Document, Requirement, may, must, should};

pub(super) const DOCUMENT: Document =
    Document { rfc: 4787, title: "NAT behaviour for unicast UDP", requirements: REQUIREMENTS };

const REQUIREMENTS: &[Requirement] = &[
    must("REQ-1", "Endpoint-independent mapping")
        .partly(&[
            "independent::one_endpoint_is_the_same_for_every_remote",
            "independent::a_mapping_lives_as_long_as_its_sessions",
        ])
        .because(
            "By annotation of the SNAT rule. By default mapping depends on the remote endpoint, as in \
             Linux: 64 512 flows per EIP and remote endpoint and not per EIP, the density that a \
             gateway with few EIPs is for.",
        ),
    should("REQ-2", "Paired pooling: one internal address uses one EIP of a pool").met(&[
        "snat::a_source_stays_with_its_member_of_the_pool",
        "snat::the_members_of_a_pool_share_the_sources",
        "ports::a_pool_overflows_to_its_other_members_before_it_refuses",
    ]).because("Until the ports of that EIP towards a remote endpoint are used up: then the next one."),
    must("REQ-3", "No port overloading")
        .partly(&[
            "independent::two_hosts_with_one_source_port_have_two_endpoints",
            "independent::a_session_with_a_port_for_each_remote_leaves_mapped_ports_alone",
            "independent::a_mapping_leaves_ports_of_sessions_and_of_port_forwards_alone",
        ])
        .because(
            "With the annotation of REQ-1. Without it one external port serves several remote endpoints \
             at a time, and never two flows to the same one.",
        ),
    should("REQ-3a", "A source port below 1024 stays below, one from 1024 stays there")
        .met(&["ports::each_class_of_source_ports_is_kept", "hairpin::the_class_of_the_source_port_is_kept"])
        .because("Three classes as in Linux: below 512, below 1024, from 1024."),
    should("REQ-4", "Port parity is kept").not_met(
        "RFC 7857 section 8 makes this optional: it was for RTP without `a=rtcp`, and it halves the \
         ports to choose from.",
    ),
    must("REQ-5", "A mapping lives at least two minutes")
        .met(&["life::each_protocol_has_its_own_patience", "life::an_idle_session_ends_and_a_live_one_stays"]),
    may("REQ-5a", "Shorter for well-known destination ports").not_met("One timeout for all ports."),
    may("REQ-5b", "The timeout can be configured")
        .met(&["gateway-userspace/src/timeouts.rs::durations_have_units"]).because("`--timeouts`."),
    should("REQ-5c", "Five minutes by default")
        .partly(&["life::an_idle_session_ends_and_a_live_one_stays"])
        .because("300 s once both sides have sent, 120 s before: a scan must not fill the table."),
    must("REQ-6", "A packet from inside refreshes the mapping")
        .met(&["life::an_idle_session_ends_and_a_live_one_stays"]),
    may("REQ-6a", "A packet from outside refreshes it")
        .met(&["life::an_idle_session_ends_and_a_live_one_stays"]),
    must("REQ-7", "Inside and outside addresses do not conflict, or it works all the same")
        .met(&["control::every_mistake_is_one_error_and_leaves_the_rest_alone"])
        .because("Addresses are configured; an EIP inside a VPC network is rejected by name."),
    should("REQ-8", "Endpoint-independent or address-dependent filtering")
        .partly(&[
            "independent::an_independent_filter_lets_everybody_in",
            "independent::an_address_dependent_filter_lets_known_addresses_in",
            "independent::without_a_filter_only_known_endpoints_get_in",
        ])
        .because("Each by annotation. By default filtering depends on address and port, as mapping does."),
    must("REQ-9", "Hairpinning").met(&[
        "hairpin::a_plain_host_reaches_a_floating_ip",
        "hairpin::a_plain_host_reaches_a_port_forward",
        "hairpin::two_floating_ip_hosts_reach_each_other_without_state",
        "netns_packet_table::the_packet_table_holds_over_veth",
    ]),
    must("REQ-9a", "With the external address and port as source").met(&[
        "hairpin::a_plain_host_reaches_a_port_forward",
        "hairpin::a_floating_ip_host_reaches_a_port_forward_with_its_own_eip",
        "hairpin::two_plain_hosts_with_one_source_port_are_told_apart",
        "independent::a_hairpin_shows_the_external_endpoint",
    ]),
    should("REQ-10", "No application gateways for UDP").met(&[]).because("There are none."),
    should("REQ-10a", "Each can be switched off").does_not_apply("There are none."),
    must("REQ-11", "Behaviour does not change under load or over time").met(&[
        "ports::exhaustion_leaves_open_sessions_alone",
        "ports::a_range_is_used_to_the_last_port",
        "ports::an_exhausted_range_refuses_and_other_remotes_go_on",
        "netns_robustness::a_port_range_fills_to_the_last_port_and_then_refuses_without_a_leak",
        "independent::a_nearly_full_range_maps_as_an_empty_one",
    ]),
    must("REQ-12", "No ICMP message ends a mapping").met(&[
        "icmp_errors::an_error_neither_counts_nor_refreshes",
        "icmp_errors::an_error_from_outside_reaches_the_host_inside",
    ]),
    should("REQ-12a", "ICMP is not filtered by its source")
        .met(&["icmp_errors::an_error_from_outside_reaches_the_host_inside"]),
    should("REQ-12b", "Destination unreachable is translated").met(&[
        "icmp_errors::an_error_from_outside_reaches_the_host_inside",
        "icmp_errors::an_error_from_inside_comes_from_the_eip",
    ]),
    must("REQ-13", "Too big with DF from inside: fragmentation needed goes back")
        .met(&["netns_answers::path_mtu_discovery_works_towards_either_side"]),
    must("REQ-13a", "Too big without DF: fragmented, in order").met(&[
        "sizes::a_packet_that_may_be_fragmented_is",
        "sizes::so_is_a_fragment_and_they_keep_one_identification",
        "gateway-userspace/src/answers/fragments.rs::a_datagram_is_cut_and_its_checksum_finished",
        "netns_fragments::a_datagram_that_is_too_large_arrives_in_fragments",
    ]),
    must("REQ-14", "Fragments are received in order and out of order")
        .met(&[
            "fragments::fragments_leave_with_the_eip_and_those_of_the_answer_come_back",
            "fragments::fragments_reach_a_port_forward",
            "fragments::fragments_turn_round_in_a_hairpin",
            "fip::fragments_pass_both_ways_and_reassemble",
            "disorder::fragments_before_the_first_wait_for_it",
            "disorder::fragments_of_an_answer_wait_too",
            "netns_fragments::fragments_arrive_in_any_order",
        ])
        .because("Up to 48 of a datagram, of 1024 in all, each no longer than 2026 bytes, wait 2 s for the first one."),
    must("REQ-14a", "A flood of fragments does not hurt whole packets").met(&[
        "netns_floods::a_flood_of_fragments_hurts_no_whole_packets",
    ]),
];
