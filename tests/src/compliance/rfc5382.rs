use super::{Document, Requirement, may, must, should};

pub(super) const DOCUMENT: Document =
    Document { rfc: 5382, title: "NAT behaviour for TCP", requirements: REQUIREMENTS };

const REQUIREMENTS: &[Requirement] = &[
    must("REQ-1", "Endpoint-independent mapping")
        .partly(&["independent::a_connection_keeps_its_endpoint_too"])
        .because("As RFC 4787 REQ-1: by annotation."),
    must("REQ-2", "All valid sequences of packets, whoever opens the connection").met(&[
        "snat::tcp_leaves_with_the_eip_and_the_answer_comes_back",
        "dnat::the_outside_reaches_the_port_and_the_answer_comes_from_the_eip",
        "tcp::a_handshake_establishes",
        "tcp::a_connection_closed_by_both_ends_is_closing",
        "tcp::a_connection_closed_by_one_end_goes_on",
        "tcp::a_syn_reopens_a_closing_flow",
        "tcp::a_syn_on_a_tuple_that_nobody_has_swept_opens_anew",
        "netns_transfer::content_survives_over_veth_with_offloads",
    ]),
    must("REQ-2a", "Simultaneous open")
        .met(&[
            "conformance::both_sides_open_at_once",
            "tcp::crossing_syns_establish_when_both_are_acknowledged",
        ]),
    should("REQ-3", "Endpoint-independent or address-dependent filtering")
        .partly(&["independent::a_connection_from_outside_gets_in_by_a_mapping"])
        .because("As RFC 4787 REQ-8: by annotation."),
    may("REQ-3a", "Filtering can be configured").met(&[
        "independent::an_independent_filter_lets_everybody_in",
        "independent::an_address_dependent_filter_lets_known_addresses_in",
    ]),
    may("REQ-3b", "Independent of that of UDP").not_met("One annotation for all protocols of a rule."),
    must("REQ-4", "No answer to an unsolicited SYN from outside for six seconds; none at all if a SYN leaves meanwhile")
        .partly(&["unmatched::nobody_reaches_a_snat_eip_unasked", "conformance::both_sides_open_at_once"])
        .because("The gateway's programs never answer. The SYN goes to the kernel of the gateway as a \
                  packet to one of its own addresses, whose TCP answers with a RST unless a firewall \
                  rule forbids it."),
    should("REQ-4a", "Then ICMP port unreachable").not_met("See REQ-4."),
    must("REQ-5", "Established connections live 2 h 4 min, others 4 min")
        .met(&[
            "tcp::a_handshake_establishes",
            "tcp::a_handshake_without_its_end_stays_short",
            "tcp::a_refused_connection_stays_short",
            "tcp::a_syn_on_an_open_flow_changes_nothing",
            "tcp::a_reset_from_outside_does_not_shorten_a_session",
            "life::each_protocol_has_its_own_patience",
        ])
        .because("7440 s and 240 s."),
    may("REQ-5a", "The timeouts can be configured").met(&["gateway-userspace/src/timeouts.rs::durations_have_units"]).because("`--timeouts`."),
    should("REQ-6", "No application gateways but FTP's").met(&[]).because("There are none, not for FTP either."),
    must("REQ-7", "No port overloading")
        .partly(&["independent::two_hosts_with_one_source_port_have_two_endpoints"])
        .because("As RFC 4787 REQ-3: with the annotation."),
    must("REQ-8", "Hairpinning").met(&[
        "hairpin::a_plain_host_reaches_a_port_forward",
        "hairpin::a_backend_reaches_itself_by_its_own_port_forward",
        "netns_packet_table::the_packet_table_holds_over_veth",
    ]),
    must("REQ-8a", "With the external address and port as source").met(&[
        "hairpin::a_plain_host_reaches_a_port_forward",
        "hairpin::a_floating_ip_host_reaches_a_port_forward_with_its_own_eip",
    ]),
    should("REQ-9", "Destination unreachable is translated").met(&[
        "icmp_errors::an_error_from_outside_reaches_the_host_inside",
        "icmp_errors::an_error_about_a_port_forward_names_the_eip",
        "icmp_errors::a_quote_of_eight_bytes_is_enough",
    ]),
    must("REQ-10", "No ICMP message ends a mapping or a connection")
        .met(&["icmp_errors::an_error_neither_counts_nor_refreshes", "conformance::no_error_ends_an_open_connection"]),
];
