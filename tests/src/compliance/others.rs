use super::{Document, Requirement, must, should};

pub(super) const RFC6864: Document = Document {
    rfc: 6864,
    title: "The IPv4 identification field",
    requirements: &[
        must("4.1", "The identification of an atomic datagram means nothing to anybody")
            .met(&["fragments::an_atomic_datagram_keeps_its_identification"]),
        must("4.2", "Others do not repeat one within the lifetime of a datagram, per source, destination and protocol")
            .partly(&[
                "fragments::a_datagram_that_may_be_fragmented_is_renumbered",
                "packet_kernel::two_cpus_never_give_out_the_same_identification",
            ])
            .because("An EIP gives out each of the 65 536 numbers once, then again: at high rates of \
                      fragmentable datagrams that is sooner than 120 s, as the RFC says of every sender."),
        must("5.3.1", "A device that shares an address among hosts sees to that").met(&[
            "fragments::interleaved_datagrams_with_one_identification_are_told_apart",
            "fragments::interleaved_answers_with_one_identification_are_told_apart",
        ]),
    ],
};

pub(super) const RFC6146: Document = Document {
    rfc: 6146,
    title: "Stateful NAT64: its rules about fragments, which hold for any NAT",
    requirements: &[
        must("3.4 (in order)", "Fragments of a datagram are translated alike")
            .met(&["fragments::fragments_leave_with_the_eip_and_those_of_the_answer_come_back"]),
        should("3.4 (out of order)", "Fragments that come early are kept for two seconds").met(&[
            "disorder::fragments_before_the_first_wait_for_it",
            "netns_fragments::fragments_arrive_in_any_order",
        ]),
        must("3.4 (bound)", "What is kept is limited, so that a flood does no harm").met(&[
            "disorder::more_than_a_datagram_has_do_not_wait",
            "netns_floods::a_flood_of_fragments_hurts_no_whole_packets",
        ]),
    ],
};

const RFC4884_REQUIREMENTS: &[Requirement] = &[
    must("3", "The length field of an error is kept")
        .met(&["conformance::extensions_after_the_quote_stay_as_they_are"]),
    must("4", "An extension structure after the quote passes unchanged")
        .met(&["conformance::extensions_after_the_quote_stay_as_they_are"]),
];

pub(super) const RFC4884: Document =
    Document { rfc: 4884, title: "Extended ICMP errors", requirements: RFC4884_REQUIREMENTS };

pub(super) const RFC6056: Document = Document {
    rfc: 6056,
    title: "Port randomisation",
    requirements: &[
        should("3.2", "As many ports as possible take part")
            .met(&[
                "ports::a_range_is_used_to_the_last_port",
                "conformance::external_ports_are_spread",
            ])
            .because("All of `--port-range` that is of the class of the source port."),
        should("3.3", "The next port cannot be guessed from the last ones")
            .met(&["conformance::external_ports_are_spread"])
            .because("Algorithm 1: a random start (the kernel's generator), then a bounded walk."),
        should("4", "A NAT keeps the source port or chooses at random")
            .met(&["conformance::external_ports_are_spread"])
            .because("At random within the class."),
    ],
};
