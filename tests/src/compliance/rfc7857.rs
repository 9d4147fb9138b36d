use super::{Document, Requirement, may, must, should};

pub(super) const DOCUMENT: Document = Document {
    rfc: 7857,
    title: "Updates to the requirements for UDP, TCP and ICMP",
    requirements: REQUIREMENTS,
};

const REQUIREMENTS: &[Requirement] = &[
    should("2", "TCP sessions are tracked by the state machine of RFC 6146, with time to close")
        .met(&[
            "gateway-common/src/expire.rs::flags_of_both_ends_make_the_state",
            "tcp::a_handshake_establishes",
            "tcp::crossing_syns_establish_when_both_are_acknowledged",
            "tcp::a_connection_closed_by_one_end_goes_on",
            "tcp::a_connection_closed_by_both_ends_is_closing",
            "tcp::a_syn_reopens_a_closing_flow",
        ])
        .because(
            "By the flags that each end has sent: established when both have sent an ACK. Its \
                  half-closed states have the timeout of established here.",
        ),
    should("2.1", "Opening and closing have timeouts of their own, four minutes by default").met(
        &[
            "life::each_protocol_has_its_own_patience",
            "tcp::a_handshake_without_its_end_stays_short",
            "tcp::a_refused_connection_stays_short",
            "tcp::a_syn_reopens_a_closing_flow",
            "tcp::a_syn_of_the_other_end_reopens_too",
        ],
    ),
    must("2.2", "A RST is translated").met(&[
        "tcp::a_reset_from_outside_does_not_shorten_a_session",
        "tcp::a_reset_from_inside_shortens_a_session",
    ]),
    should(
        "2.2 (time)",
        "The session stays for four minutes after a RST, and goes on if packets follow",
    )
    .met(&[
        "tcp::a_reset_from_inside_shortens_a_session",
        "tcp::what_follows_a_reset_from_inside_takes_it_back",
        "tcp::a_reset_from_outside_does_not_shorten_a_session",
        "tcp::a_reset_from_outside_ends_what_the_inside_has_closed",
    ])
    .because(
        "One from outside does not shorten an established session, since it is easily forged.",
    ),
    may("3", "A port may be shared by flows to different remotes").met(&[
        "ports::one_port_serves_many_remotes",
        "ports::a_range_of_one_port_serves_one_flow_per_remote",
    ]),
    should("4", "Paired pooling holds across protocols")
        .met(&["snat::a_source_stays_with_its_member_of_the_pool"]),
    should("5", "TCP and UDP mappings do not depend on each other").met(&[
        "dnat::udp_and_tcp_of_one_port_are_two_rules",
        "conformance::tcp_and_udp_share_a_port",
    ]),
    should("6", "Filtering does not mix protocols").met(&["dnat::the_protocol_must_match"]),
    may("7", "Whether inbound packets refresh can be configured").not_met("They do, always."),
    should("7.1", "A RST or an ICMP error from inside does not refresh")
        .partly(&[
            "icmp_errors::an_error_neither_counts_nor_refreshes",
            "tcp::a_reset_from_inside_shortens_a_session",
        ])
        .because("An ICMP error refreshes nothing; a RST begins the four minutes of section 2.2."),
    may("8", "Parity of ports need not be kept").met(&[]).because("It is not."),
    should("9", "External ports are random, as RFC 6056 has it")
        .met(&["conformance::external_ports_are_spread"]),
    should("10", "Identifications follow RFC 6864").met(&[
        "fragments::a_datagram_that_may_be_fragmented_is_renumbered",
        "fragments::interleaved_datagrams_with_one_identification_are_told_apart",
    ]),
    should("11", "A query's mapping may end when its answer is there")
        .not_met("It ends after 60 s: several answers may follow, and ids are plenty."),
    must("12", "Hairpinned ICMP errors and queries pass").met(&[
        "icmp_errors::an_error_in_a_hairpin_reaches_the_other_host",
        "hairpin::a_ping_of_a_floating_ip_gets_a_new_id",
    ]),
];
