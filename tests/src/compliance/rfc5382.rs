use super::{Document, Requirement, may, must, should};

pub(super) const DOCUMENT: Document =
    Document { rfc: 5382, title: "NAT behaviour for TCP", requirements: REQUIREMENTS };

const REQUIREMENTS: &[Requirement] = &[
    must("REQ-1", "Endpoint-independent mapping").not_met("As RFC 4787 REQ-1."),
    must("REQ-2", "All valid sequences of packets, whoever opens the connection").met(&[
        "snat::tcp_leaves_with_the_eip_and_the_answer_comes_back",
        "dnat::the_outside_reaches_the_port_and_the_answer_comes_from_the_eip",
        "life::a_syn_reopens_a_closing_flow",
        "netns_transfer::content_survives_over_veth_with_offloads",
    ]),
    must("REQ-2a", "Simultaneous open")
        .met(&["conformance::both_sides_open_at_once"]),
    should("REQ-3", "Endpoint-independent or address-dependent filtering")
        .not_met("As RFC 4787 REQ-8."),
    may("REQ-3a", "Filtering can be configured").not_met("As RFC 4787 REQ-8."),
    may("REQ-3b", "Independent of that of UDP").not_met("As RFC 4787 REQ-8."),
    must("REQ-4", "No answer to an unsolicited SYN from outside for six seconds; none at all if a SYN leaves meanwhile")
        .partly(&["unmatched::nobody_reaches_a_snat_eip_unasked", "conformance::both_sides_open_at_once"])
        .because("The gateway's programs never answer. The SYN goes to the kernel of the gateway as a \
                  packet to one of its own addresses, whose TCP answers with a RST unless a firewall \
                  rule forbids it."),
    should("REQ-4a", "Then ICMP port unreachable").not_met("See REQ-4."),
    must("REQ-5", "Established connections live 2 h 4 min, others 4 min")
        .met(&[
            "life::a_reset_from_outside_does_not_shorten_a_session",
            "life::a_reset_from_inside_shortens_a_session",
            "life::each_protocol_has_its_own_patience",
        ])
        .because("7440 s and 240 s."),
    may("REQ-5a", "The timeouts can be configured").met(&["gateway-userspace/src/cli/run.rs::ranges_and_timeouts_are_checked"]).because("`--timeouts`."),
    should("REQ-6", "No application gateways but FTP's").met(&[]).because("There are none, not for FTP either."),
    must("REQ-7", "No port overloading").not_met("As RFC 4787 REQ-3."),
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
