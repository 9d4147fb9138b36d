use super::{Document, Requirement, may, must, should};

pub(super) const DOCUMENT: Document =
    Document { rfc: 5508, title: "NAT behaviour for ICMP", requirements: REQUIREMENTS };

const REQUIREMENTS: &[Requirement] = &[
    must("REQ-1", "Queries from inside and their answers pass").met(&[
        "snat::ping_leaves_with_the_eip_and_the_answer_comes_back",
        "ports::two_pingers_with_the_same_id_are_told_apart",
        "conformance::every_kind_of_query_has_its_answer",
    ]),
    should("REQ-1a", "The mapping of an id does not depend on the remote")
        .partly(&["independent::a_query_id_is_the_same_for_every_remote"])
        .because("As RFC 4787 REQ-1: by annotation."),
    must("REQ-2", "A query's session lives at least 60 s").met(&["life::each_protocol_has_its_own_patience"]),
    should("REQ-2a", "That can be configured").met(&["gateway-userspace/src/timeouts.rs::durations_have_units"]).because("`--timeouts`."),
    should("REQ-3", "An error with a wrong checksum is dropped")
        .not_met("Checksums are adjusted and never verified: a wrong one stays wrong, and its receiver \
                  drops it. Verifying costs a pass over the packet."),
    should("REQ-3a", "So is one whose quoted IP header has a wrong checksum").not_met("As REQ-3."),
    must("REQ-3b", "Options of the quoted header are stepped over").met(&[
        "icmp_errors::a_quote_with_options_is_translated",
        "icmp_errors::a_quote_with_extension_headers_is_translated",
    ]),
    should("REQ-3c", "The transport checksum in the quote is not verified")
        .met(&["icmp_errors::a_quote_of_eight_bytes_is_enough"]),
    must("REQ-3d", "Extensions after the quote do not count as part of it")
        .met(&["conformance::extensions_after_the_quote_stay_as_they_are"]),
    should("REQ-4", "An error from outside about no session is dropped")
        .met(&["icmp_errors::an_error_about_no_session_is_refused_or_the_gateways_own"])
        .because("If it is to one of the gateway's own addresses the kernel decides: it may be about a \
                  packet of the gateway."),
    must("REQ-4a", "The quoted headers are reverted").met(&[
        "icmp_errors::an_error_from_outside_reaches_the_host_inside",
        "icmp_errors::an_error_about_a_ping_names_the_id_of_the_host",
    ]),
    must("REQ-4b", "Type and code are kept").met(&["icmp_errors::an_error_from_outside_reaches_the_host_inside"]),
    must("REQ-4c", "It goes to the source of the quoted packet").met(&[
        "icmp_errors::an_error_from_outside_reaches_the_host_inside",
        "icmp_errors::an_error_to_somebody_else_than_the_sender_is_refused",
    ]),
    should("REQ-5", "An error from inside about no session is dropped")
        .met(&["icmp_errors::an_error_about_no_session_is_refused_or_the_gateways_own"]),
    must("REQ-5a", "The quoted headers are reverted").met(&["icmp_errors::an_error_from_inside_comes_from_the_eip"]),
    must("REQ-5b", "Type and code are kept").met(&["icmp_errors::an_error_from_inside_comes_from_the_eip"]),
    must("REQ-5c", "It comes from the mapped address of its sender, else from a public one of the NAT").met(&[
        "icmp_errors::an_error_from_inside_comes_from_the_eip",
        "icmp_errors::an_error_about_a_port_forward_names_the_eip",
        "icmp_errors::an_error_about_a_floating_ip_passes_both_ways",
    ]),
    must("REQ-6", "An error neither refreshes nor ends a session")
        .met(&["icmp_errors::an_error_neither_counts_nor_refreshes", "conformance::no_error_ends_an_open_connection"]),
    must("REQ-7", "Hairpinned queries (basic NAT) and errors pass").met(&[
        "hairpin::a_ping_of_a_floating_ip_gets_a_new_id",
        "hairpin::two_floating_ip_hosts_reach_each_other_without_state",
        "icmp_errors::an_error_in_a_hairpin_reaches_the_other_host",
    ]),
    must("REQ-7a", "A hairpinned error goes to the source of the quoted packet")
        .met(&["icmp_errors::an_error_in_a_hairpin_reaches_the_other_host"]),
    should("REQ-8", "A flow that is refused: ICMP 3/13 to its sender, and the packet is dropped")
        .met(&[
            "ports::an_exhausted_range_refuses_and_other_remotes_go_on",
            "netns_answers::a_host_over_its_limit_is_told_so_at_once",
        ]),
    may("REQ-9", "A policy against ICMP towards an interface").not_met("There is none."),
    must("REQ-10a", "Unreachable, time exceeded and echo are supported").met(&[
        "icmp_errors::an_error_from_outside_reaches_the_host_inside",
        "snat::ping_leaves_with_the_eip_and_the_answer_comes_back",
        "conformance::every_kind_of_error_is_translated",
        "limits::the_last_hop_outbound_is_the_kernels",
        "netns_answers::a_ttl_that_ends_here_is_answered_from_the_eip_and_inside_from_the_lan_address",
    ]),
    may("REQ-10b", "Source route, timestamp, parameter problem and others are supported")
        .met(&["conformance::every_kind_of_query_has_its_answer", "conformance::every_kind_of_error_is_translated"]),
    should("REQ-10c", "No source quench is made").met(&[]).because("None is made. One that arrives is translated like other errors."),
    may("REQ-10d", "Router solicitation and the like").does_not_apply("The kernel's: never translated."),
    may("REQ-11", "Other ICMP messages are dropped or handled")
        .met(&["conformance::a_message_that_is_neither_query_nor_error_is_refused"]),
];
