//! What the data path does with packets, case by case; the same cases for every backend.
//!
//! The numbers in the comments are the rows of the packet table in Kube-OVN's terms: who talks to
//! whom, by which interface, with which address before and after.

mod coexist;
mod conformance;
mod disorder;
mod dnat;
mod egress;
mod fip;
mod fragments;
mod gateway;
mod hairpin;
mod hosts;
mod icmp_errors;
mod independent;
mod life;
mod limits;
mod malformed;
mod next_hops;
mod ports;
mod sent;
mod share;
mod sizes;
mod snat;
mod tcp;
mod unmatched;

pub use self::gateway::{Gateway, Routers};
pub use self::sent::{Seen, Sent};

/// How many entries the session maps take, unless a case says otherwise.
pub const CAPACITY: u32 = 1 << 14;

/// One behaviour of the data path.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it shows, as a sentence.
    pub name: &'static str,
    /// Shows it, or panics.
    pub run: fn(&mut Gateway<'_>),
    /// How many entries the session maps take.
    pub capacity: u32,
    /// Whether the case holds over IPv4.
    pub ipv4: bool,
    /// Whether the case holds over IPv6.
    pub ipv6: bool,
}

impl Case {
    const fn new(name: &'static str, run: fn(&mut Gateway<'_>)) -> Self {
        Self { name, run, capacity: CAPACITY, ipv4: true, ipv6: true }
    }

    /// The case is about something that IPv6 does not have.
    const fn ipv4_only(self) -> Self {
        Self { ipv6: false, ..self }
    }

    /// The case is about something that IPv4 does not have.
    const fn ipv6_only(self) -> Self {
        Self { ipv4: false, ..self }
    }

    /// The session maps take only this many entries.
    const fn room_for(self, capacity: u32) -> Self {
        Self { capacity, ..self }
    }
}

/// Lists cases, each a function of its module, with what is special about it.
macro_rules! cases {
    ($($module:ident { $($name:ident $(.$special:ident($($value:literal)?))*,)+ })+) => {
        /// All cases.
        pub const CASES: &[Case] = &[$($(
            Case::new(concat!(stringify!($module), "::", stringify!($name)), $module::$name)
                $(.$special($($value)?))*,
        )+)+];
    };
}

cases! {
    snat {
        tcp_leaves_with_the_eip_and_the_answer_comes_back,
        udp_leaves_with_the_eip_and_the_answer_comes_back,
        ping_leaves_with_the_eip_and_the_answer_comes_back,
        an_open_session_keeps_its_port_and_counts_both_directions,
        the_rule_counts_its_packets,
        the_longest_prefix_wins,
        a_source_stays_with_its_member_of_the_pool,
        the_members_of_a_pool_share_the_sources,
        protocols_without_ports_keep_everything_but_the_address,
        sctp_keeps_its_ports,
        two_hosts_cannot_share_a_protocol_without_ports,
        udp_lite_and_dccp_have_ports_too,
        a_datagram_without_checksum_stays_without.ipv4_only(),
        a_checksum_that_computes_to_zero_is_sent_as_all_ones,
        a_finished_checksum_may_look_like_an_unfinished_one,
        ipv4_options_are_kept.ipv4_only(),
        an_eip_is_for_the_external_interface_only,
        type_of_service_and_identification_are_kept,
    }
    ports {
        each_class_of_source_ports_is_kept,
        an_icmp_id_may_become_any_other,
        two_pingers_with_the_same_id_are_told_apart,
        two_hosts_with_the_same_source_port_are_told_apart,
        one_port_serves_many_remotes,
        an_exhausted_range_refuses_and_other_remotes_go_on,
        a_pool_overflows_to_its_other_members_before_it_refuses,
        a_range_of_one_port_serves_one_flow_per_remote,
        exhaustion_leaves_open_sessions_alone,
        a_range_is_used_to_the_last_port,
        an_answer_that_nobody_asked_for_opens_no_session,
        an_answer_with_the_id_of_a_query_keeps_its_checksum,
    }
    hosts {
        a_host_keeps_to_its_number_of_sessions,
        another_host_is_not_limited_by_the_first,
        a_host_may_open_again_when_a_session_has_ended,
        what_comes_from_outside_does_not_count_for_the_host,
        a_hairpin_counts_for_the_host_that_opens_it,
        a_burst_then_the_rate,
        a_refused_flow_makes_no_record,
        an_eip_counts_what_it_carries,
        an_eip_counts_what_it_refuses,
        an_eip_of_port_forwards_counts_what_comes_in,
        a_session_that_gives_way_is_counted_out,
        a_session_cut_with_its_rule_is_counted_out,
        a_session_that_does_not_fit_is_not_counted.room_for(3),
        tries_are_counted,
    }
    independent {
        one_endpoint_is_the_same_for_every_remote,
        a_connection_keeps_its_endpoint_too,
        a_query_id_is_the_same_for_every_remote,
        two_hosts_with_one_source_port_have_two_endpoints,
        a_session_with_a_port_for_each_remote_leaves_mapped_ports_alone,
        a_mapping_leaves_ports_of_sessions_and_of_port_forwards_alone,
        an_independent_filter_lets_everybody_in,
        an_address_dependent_filter_lets_known_addresses_in,
        without_a_filter_only_known_endpoints_get_in,
        a_connection_from_outside_gets_in_by_a_mapping,
        nobody_gets_in_for_a_flow_that_came_from_outside,
        a_hairpin_shows_the_external_endpoint,
        a_hairpin_meets_the_filter,
        a_hairpin_to_a_port_forward_shows_the_external_endpoint,
        a_host_does_not_reach_itself_by_its_own_mapping,
        a_mapping_lives_as_long_as_its_sessions,
        a_removed_rule_takes_its_mappings_along,
        a_removed_rule_takes_its_mappings_from_hairpins_too,
        a_nearly_full_range_maps_as_an_empty_one,
        a_pool_overflows_with_mappings_too,
        a_port_class_is_kept_by_mappings,
        a_full_table_leaves_no_mapping.room_for(3),
        a_limited_host_has_no_more_mappings_than_sessions,
        a_rule_without_mappings_is_as_it_was,
    }
    unmatched {
        a_source_without_rule_is_dropped_by_default,
        a_source_without_rule_is_forwarded_if_asked,
        a_source_without_rule_is_left_to_the_kernel_if_asked,
        a_packet_straight_to_an_inside_address_is_dropped_by_default,
        a_packet_straight_to_an_inside_address_is_left_to_the_kernel_if_asked,
        a_forwarded_inbound_flow_is_pinned_and_its_answer_stays_untranslated,
        an_eip_without_a_matching_rule_is_the_gateways_own,
        nobody_reaches_a_snat_eip_unasked,
        the_gateways_own_addresses_are_left_to_the_kernel,
        traffic_between_vpc_networks_is_left_to_the_kernel,
        an_unknown_policy_is_the_strict_one,
    }
    dnat {
        the_outside_reaches_the_port_and_the_answer_comes_from_the_eip,
        the_answer_keeps_the_dnat_eip_whatever_snat_says,
        the_protocol_must_match,
        the_port_must_match,
        two_eips_to_the_same_backend_cannot_serve_one_client_port,
        a_taken_tuple_is_rolled_back,
        a_flow_from_inside_is_no_answer,
        the_rule_counts_both_directions,
        a_backend_outside_is_refused,
        a_removed_rule_no_longer_opens,
        udp_and_tcp_of_one_port_are_two_rules,
    }
    egress {
        a_prefix_passes_as_it_is_both_ways,
        any_protocol_passes,
        a_new_connection_from_outside_is_delivered_as_it_is,
        fragments_pass_as_they_are,
        an_error_passes_with_its_quote,
        a_redirect_goes_no_further.ipv4_only(),
        the_longest_prefix_decides_both_ways,
        no_state_is_kept_so_another_replica_goes_on,
        a_removed_rule_stops_it_at_once,
        a_lost_way_inside_does_not_turn_outside,
        the_gateways_own_packets_stay_its_own,
        an_unselected_source_is_dropped,
    }
    coexist {
        dnat_and_snat_share_an_eip,
        a_floating_ip_takes_what_no_session_has,
        a_rule_that_goes_takes_only_its_own_flows,
    }
    share {
        a_flow_gets_a_backend_and_keeps_it,
        new_flows_are_shared_by_weight,
        a_client_keeps_its_backend_for_all_flows,
        clients_are_shared_by_weight,
        a_change_of_backends_moves_only_their_share_of_the_clients,
        a_backend_that_drains_keeps_its_flows_and_gets_no_new_ones,
        a_drained_backend_has_no_session_left,
        a_port_that_goes_cuts_the_flows_of_all_its_backends,
        the_answer_keeps_the_eip_whatever_snat_says,
        a_host_inside_reaches_it_from_the_eip,
        a_floating_ip_host_reaches_it_with_its_own_eip,
        an_error_of_a_backend_comes_from_the_eip,
        its_other_ports_and_protocols_are_not_shared,
        a_port_whose_slots_are_gone_has_a_backend_still,
        a_backend_outside_is_refused,
    }
    fip {
        any_protocol_comes_in_with_ports_kept,
        any_protocol_goes_out_with_ports_kept,
        no_state_is_kept,
        a_floating_ip_wins_over_snat,
        a_floating_ip_wins_over_dnat_on_its_eip,
        fragments_pass_both_ways_and_reassemble,
        ipv4_options_are_kept.ipv4_only(),
        both_directions_count_for_the_rule,
        an_open_session_wins_over_a_new_floating_ip,
        a_removed_floating_ip_ends_at_once,
        a_blackhole_route_stops_it,
        traffic_to_another_vpc_network_is_left_to_the_kernel,
    }
    hairpin {
        a_plain_host_reaches_a_floating_ip,
        a_plain_host_reaches_a_port_forward,
        a_backend_reaches_itself_by_its_own_port_forward,
        a_backend_does_not_get_the_port_that_it_talks_to,
        a_backend_does_not_reach_itself_by_its_mapped_port,
        a_floating_ip_host_reaches_a_port_forward_with_its_own_eip,
        a_floating_ip_host_reaches_its_own_eip,
        two_floating_ip_hosts_reach_each_other_without_state,
        a_ping_of_a_floating_ip_gets_a_new_id,
        two_plain_hosts_with_one_source_port_are_told_apart,
        a_protocol_without_ports_passes,
        the_class_of_the_source_port_is_kept,
    }
    fragments {
        fragments_leave_with_the_eip_and_those_of_the_answer_come_back,
        fragments_of_a_ping_share_its_id,
        fragments_reach_a_port_forward,
        fragments_turn_round_in_a_hairpin,
        a_later_fragment_counts_for_session_and_rule,
        a_later_fragment_does_not_outlive_its_session,
        interleaved_datagrams_with_one_identification_are_told_apart,
        interleaved_answers_with_one_identification_are_told_apart,
        a_first_fragment_that_comes_twice_keeps_its_identification,
        the_next_datagram_of_one_identification_takes_over,
        a_first_fragment_without_its_whole_header_is_dropped,
        a_later_fragment_that_reaches_into_the_header_is_dropped,
        a_fragment_of_a_fragment_is_dropped.ipv6_only(),
        a_datagram_in_one_fragment_is_a_whole_one.ipv6_only(),
        a_datagram_that_may_be_fragmented_is_renumbered.ipv4_only(),
        an_atomic_datagram_keeps_its_identification.ipv4_only(),
        a_floating_ip_keeps_the_identification,
        an_untranslated_flow_keeps_the_identification,
        a_later_fragment_of_the_gateway_is_its_own,
        an_error_in_fragments_is_refused,
    }
    disorder {
        fragments_before_the_first_wait_for_it,
        fragments_of_an_answer_wait_too,
        fragments_to_a_port_forward_wait_too,
        fragments_of_a_ping_in_any_order,
        what_waits_is_counted_once,
        a_first_fragment_alone_waits_for_nobody,
        a_datagram_does_not_wait_for_another,
        more_than_a_datagram_has_do_not_wait,
        a_first_fragment_that_is_refused_takes_nothing_along,
        what_no_rule_covers_waits_in_vain,
        fragments_of_the_gateways_own_stay_its_own,
    }
    sizes {
        a_packet_that_may_be_fragmented_is.ipv4_only(),
        so_is_one_of_a_floating_ip_and_one_that_turns_round.ipv4_only(),
        so_is_a_fragment_and_they_keep_one_identification.ipv4_only(),
        one_that_must_not_be_fragmented_is_not,
        a_large_segment_size_is_clamped_in_both_directions,
        a_small_segment_size_stays,
        only_the_option_of_a_syn_is_clamped,
        the_option_is_found_among_others,
        broken_options_are_left_alone,
        nothing_is_clamped_unless_asked_for,
    }
    icmp_errors {
        an_error_from_outside_reaches_the_host_inside,
        an_error_from_inside_comes_from_the_eip,
        an_error_about_a_port_forward_names_the_eip,
        an_error_about_a_ping_names_the_id_of_the_host,
        an_error_about_a_floating_ip_passes_both_ways,
        an_error_in_a_hairpin_reaches_the_other_host,
        a_quote_of_eight_bytes_is_enough,
        a_quote_of_fewer_bytes_is_refused,
        a_quote_with_options_is_translated.ipv4_only(),
        a_quote_with_extension_headers_is_translated.ipv6_only(),
        the_quote_of_a_datagram_without_checksum_stays_without.ipv4_only(),
        the_mtu_of_too_big_is_kept,
        an_error_neither_counts_nor_refreshes,
        an_error_about_no_session_is_refused_or_the_gateways_own,
        an_error_to_somebody_else_than_the_sender_is_refused,
        an_error_about_an_error_is_refused,
        an_error_at_its_last_hop_goes_no_further,
        a_floating_ip_reports_only_about_itself,
        a_redirect_goes_no_further.ipv4_only(),
        an_error_in_a_hairpin_does_not_turn_outside,
    }
    limits {
        the_last_hop_outbound_is_the_kernels,
        the_last_hop_inbound_is_dropped,
        the_last_hop_of_a_hairpin_is_dropped,
        two_hops_are_enough,
        what_goes_no_further_is_not_counted,
        too_big_for_the_interface_is_dropped,
        just_as_big_as_the_interface_takes_is_forwarded,
        a_full_table_refuses_and_leaves_the_others_alone.room_for(4),
        a_full_table_leaves_no_half_session.room_for(3),
        a_full_table_leaves_stateless_rules_alone.room_for(2),
        nothing_passes_before_a_configuration,
        a_route_change_is_followed_at_once_when_announced,
        a_route_change_is_followed_soon_when_not_announced,
        a_floating_ip_follows_a_route_change_at_once_when_announced,
        a_floating_ip_follows_a_route_change_soon_when_not_announced,
        a_remembered_route_is_of_one_protocol_and_one_pair_of_ends,
        a_blackhole_route_stops_an_open_session,
        a_blackhole_route_stops_every_packet_of_a_session,
        a_blackhole_route_opens_no_session,
        an_inside_address_that_is_outside_is_refused,
        an_open_session_does_not_turn_outside,
    }
    tcp {
        a_handshake_establishes,
        a_handshake_without_its_end_stays_short,
        a_refused_connection_stays_short,
        a_refused_connection_can_be_tried_again,
        crossing_syns_establish_when_both_are_acknowledged,
        a_flow_that_was_there_before_is_established_by_both_ends,
        a_reset_from_outside_does_not_shorten_a_session,
        a_reset_from_inside_shortens_a_session,
        what_follows_a_reset_from_inside_takes_it_back,
        a_connection_closed_by_both_ends_is_closing,
        a_connection_closed_by_one_end_goes_on,
        a_reset_from_outside_ends_what_the_inside_has_closed,
        a_syn_on_an_open_flow_changes_nothing,
        a_syn_reopens_a_closing_flow,
        a_syn_of_the_other_end_reopens_too,
        a_syn_on_a_tuple_that_nobody_has_swept_opens_anew,
    }
    life {
        a_forged_packet_from_outside_misses_the_session_of_the_inside,
        a_forged_packet_from_inside_misses_the_answers_entry,
        another_remote_does_not_get_in,
        an_idle_session_ends_and_a_live_one_stays,
        each_protocol_has_its_own_patience,
        a_session_without_its_rule_ends,
        a_half_without_its_other_half_ends_soon,
        a_lost_half_of_a_port_forward_is_made_again,
        a_swept_port_is_free_again,
        an_expired_session_gives_its_port_away_before_the_sweep,
        an_expired_session_gives_its_tuple_away_before_the_sweep,
        an_expired_session_without_ports_gives_way_before_the_sweep,
        sessions_opened_and_closed_are_counted,
    }
    next_hops {
        flows_are_spread_over_the_members,
        an_open_session_stays_with_a_living_member,
        an_open_session_moves_to_its_slot_if_the_group_says_so,
        only_the_flows_of_a_dead_member_move,
        a_member_that_drains_keeps_its_sessions_and_gets_no_others,
        nobody_alive_is_no_way_out,
        what_is_on_link_is_left_to_the_route,
        another_router_is_left_to_its_route,
        the_router_of_the_default_route_is_represented,
        without_the_flag_no_group_is_asked,
        a_reply_leaves_by_the_router_that_the_request_came_from,
        a_reply_from_inside_leaves_by_the_router_outside,
        a_reply_moves_when_its_router_dies,
        a_reply_to_an_unknown_router_goes_by_its_slot,
        a_hairpin_is_answered_by_the_way_it_came,
        a_floating_ip_is_spread_without_state,
        fragments_of_a_floating_ip_go_one_way,
        an_error_goes_with_its_flow,
        by_source_all_that_a_host_does_goes_one_way,
    }
    conformance {
        every_kind_of_error_is_translated,
        no_error_ends_an_open_connection,
        every_kind_of_query_has_its_answer.ipv4_only(),
        a_message_that_is_neither_query_nor_error_is_refused,
        extensions_after_the_quote_stay_as_they_are,
        both_sides_open_at_once,
        tcp_and_udp_share_a_port,
        external_ports_are_spread,
        bytes_after_the_packet_are_not_looked_at,
    }
    malformed {
        a_frame_cut_inside_a_header_is_dropped,
        a_cut_frame_opens_no_session,
        a_cut_frame_of_an_open_session_is_dropped,
        a_payload_cut_short_is_not_our_business,
        a_wrong_version_is_dropped,
        a_short_header_length_is_dropped.ipv4_only(),
        a_header_longer_than_the_frame_is_dropped.ipv4_only(),
        a_header_longer_than_the_frame_is_dropped_whatever_it_carries,
        a_total_length_short_of_the_header_is_dropped.ipv4_only(),
        an_ipv4_link_local_address_is_not_forwarded.ipv4_only(),
        another_ether_type_is_left_to_the_kernel,
        a_vlan_tag_is_left_to_the_kernel,
        frames_to_others_are_left_to_the_kernel,
        groups_and_nobody_are_left_to_the_kernel.ipv4_only(),
        a_broadcast_address_is_the_gateways_own.ipv4_only(),
        a_link_local_address_is_left_to_the_kernel.ipv6_only(),
        a_wrong_header_checksum_stays_wrong.ipv4_only(),
        a_wrong_checksum_stays_wrong,
        neighbour_discovery_is_left_to_the_kernel.ipv6_only(),
        extension_headers_are_stepped_over.ipv6_only(),
        too_many_extension_headers_are_dropped.ipv6_only(),
    }
}
