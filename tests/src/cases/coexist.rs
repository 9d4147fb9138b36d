//! Several kinds of rules on one EIP, and what is left when one of them goes.

use gateway_common::verdict::PassReason;

use super::Gateway;
use crate::build_packet::{ACK, SYN, TCP, tcp, udp};

const EIP: &str = "203.0.113.11";
const CLIENT: &str = "198.51.100.7:5000";
const REMOTE: &str = "198.51.100.8:53";

pub(super) fn dnat_and_snat_share_an_eip(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.snat("10.0.1.0/24", &[EIP]);
    let called = gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    called.is(CLIENT, "10.0.1.10:8080");
    // The backend calls out from the very same address.
    let calls = gw.outbound(udp("10.0.1.10:4000", REMOTE)).forwarded();
    calls.is_from(EIP, REMOTE);
    gw.outbound(called.answer()).forwarded().is("203.0.113.11:80", CLIENT);
    gw.inbound(calls.answer()).forwarded().is(REMOTE, "10.0.1.10:4000");
    // Whoever calls the port of a SNAT flow unasked is not let in.
    let port = calls.source().port();
    let stranger = udp("198.51.100.9:53", &format!("{EIP}:{port}"));
    gw.inbound(stranger).passed(PassReason::Local);
}

pub(super) fn a_floating_ip_takes_what_no_session_has(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let open = gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    let fip = gw.fip(EIP, "10.0.1.5");
    // New flows are the floating IP's, whatever their port.
    let late = "198.51.100.7:5001";
    gw.inbound(tcp(late, "203.0.113.11:80", SYN)).forwarded().is(late, "10.0.1.5:80");
    gw.inbound(udp(CLIENT, "203.0.113.11:9")).forwarded().is(CLIENT, "10.0.1.5:9");
    // What is open stays where it is, and other hosts still go out by SNAT.
    gw.outbound(open.answer()).forwarded().is("203.0.113.11:80", CLIENT);
    gw.inbound(tcp(CLIENT, "203.0.113.11:80", ACK)).forwarded().is(CLIENT, "10.0.1.10:8080");
    let calls = gw.outbound(udp("10.0.1.10:4000", REMOTE)).forwarded();
    calls.is_from(EIP, REMOTE);
    gw.inbound(calls.answer()).forwarded().is(REMOTE, "10.0.1.10:4000");
    // Without the floating IP the port forward serves again.
    gw.remove(fip);
    let later = "198.51.100.7:5002";
    gw.inbound(tcp(later, "203.0.113.11:80", SYN)).forwarded().is(later, "10.0.1.10:8080");
}

pub(super) fn a_rule_that_goes_takes_only_its_own_flows(gw: &mut Gateway<'_>) {
    let web = gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.dnat("203.0.113.11:81", TCP, "10.0.1.10:8081");
    let snat = gw.snat("10.0.1.0/24", &[EIP])[0];
    let to_web = gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    let to_other = gw.inbound(tcp(CLIENT, "203.0.113.11:81", SYN)).forwarded();
    let hairpin = gw.outbound(tcp("10.0.1.20:4000", "203.0.113.11:80", SYN)).forwarded();
    let out = gw.outbound(udp("10.0.1.10:4000", REMOTE)).forwarded();

    gw.remove(web);
    assert_eq!(gw.sweep(), 2, "the flow from outside and the hairpin");
    gw.inbound(tcp(CLIENT, "203.0.113.11:80", ACK)).passed(PassReason::Local);
    gw.outbound(tcp("10.0.1.20:4000", "203.0.113.11:80", ACK)).passed(PassReason::Local);
    drop((to_web, hairpin));
    gw.outbound(to_other.answer()).forwarded().is("203.0.113.11:81", CLIENT);
    gw.inbound(out.answer()).forwarded().is(REMOTE, "10.0.1.10:4000");

    gw.remove(snat);
    assert_eq!(gw.sweep(), 1);
    gw.inbound(out.answer()).passed(PassReason::Local);
    gw.outbound(to_other.answer()).forwarded().is("203.0.113.11:81", CLIENT);
}
