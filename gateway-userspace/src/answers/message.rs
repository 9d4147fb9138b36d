//! The ICMP error that a dropped packet is answered with (RFC 792, RFC 1191, RFC 4443).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gateway_common::answer::{Answer, KEPT, Unanswered};
use gateway_common::tuple::Direction;
use ipnet::IpNet;

use crate::announce::{checksum, icmpv6_checksum};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOPS: u8 = 64;
/// Internetwork control (RFC 1812 section 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;
/// RFC 1812 section 4.3.2.3: as much as fits into 576 bytes.
const QUOTED_V4: usize = 576 - 20 - 8;

/// A packet that goes to `to`, from its IP header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender of the packet that was dropped.
    pub to: IpAddr,
    /// The packet.
    pub packet: Vec<u8>,
}

/// The answer to a dropped packet: to a host of the VPC from one of `lan`, to anyone else from the EIP that
/// he has sent it to.
///
/// `None` if the record is none that the programs write, or if there is no address to answer from.
#[must_use]
pub fn message(record: &Unanswered, lan: &[IpNet]) -> Option<Message> {
    let answer = Answer::from_u8(record.answer)?;
    let dropped = record.packet.get(..usize::from(record.bytes).min(KEPT))?;
    let inside = record.direction == Direction::Outbound as u8;
    match dropped.first()? >> 4 {
        4 => {
            let to = Ipv4Addr::from(*dropped.get(12..)?.first_chunk::<4>()?);
            let addressed = Ipv4Addr::from(*dropped.get(16..)?.first_chunk::<4>()?);
            let IpAddr::V4(from) = source(to.into(), addressed.into(), inside, lan)? else {
                return None;
            };
            Some(Message { to: to.into(), packet: v4(answer, record.mtu, dropped, from, to) })
        }
        6 => {
            let to = Ipv6Addr::from(*dropped.get(8..)?.first_chunk::<16>()?);
            let addressed = Ipv6Addr::from(*dropped.get(24..)?.first_chunk::<16>()?);
            let IpAddr::V6(from) = source(to.into(), addressed.into(), inside, lan)? else {
                return None;
            };
            Some(Message { to: to.into(), packet: v6(answer, record.mtu, dropped, from, to) })
        }
        _ => None,
    }
}

fn source(to: IpAddr, addressed: IpAddr, inside: bool, lan: &[IpNet]) -> Option<IpAddr> {
    if !inside {
        return Some(addressed);
    }
    let of_family = || lan.iter().filter(|net| net.addr().is_ipv4() == to.is_ipv4());
    let near = of_family().find(|net| net.contains(&to)).or_else(|| of_family().next());
    near.map(IpNet::addr)
}

fn v4(answer: Answer, mtu: u32, dropped: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let (kind, code) = match answer {
        Answer::TimeExceeded => (11, 0),
        Answer::TooBig => (3, 4),
        Answer::Refused => (3, 13),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    if answer == Answer::TooBig {
        message[6..].copy_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
    }
    message.extend(&dropped[..dropped.len().min(QUOTED_V4)]);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let total = u16::try_from(20 + message.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, PRECEDENCE];
    packet.extend(total.to_be_bytes());
    // The kernel chooses an identification and sums the header up.
    packet.extend([0, 0, 0, 0, HOPS, ICMP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(message);
    packet
}

fn v6(answer: Answer, mtu: u32, dropped: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let (kind, code, value) = match answer {
        Answer::TimeExceeded => (3, 0, 0),
        Answer::TooBig => (2, 0, mtu),
        Answer::Refused => (1, 1, 0),
    };
    let mut message = vec![kind, code, 0, 0];
    message.extend(value.to_be_bytes());
    message.extend(dropped);
    let sum = icmpv6_checksum(from, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([ICMPV6, HOPS]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(message);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    const LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);

    fn lan() -> Vec<IpNet> {
        ["10.0.9.254/24", "10.0.1.254/24", "fd00:1::fe/64"]
            .map(|net| net.parse().expect("a network"))
            .to_vec()
    }

    fn record(answer: Answer, direction: Direction, packet: &[u8]) -> Unanswered {
        let mut kept = [0; KEPT];
        kept[..packet.len()].copy_from_slice(packet);
        let bytes = u16::try_from(packet.len()).expect("short");
        Unanswered {
            mtu: 1400,
            bytes,
            answer: answer as u8,
            direction: direction as u8,
            packet: kept,
        }
    }

    /// An IPv4 packet of `bytes` bytes.
    fn packet(from: Ipv4Addr, to: Ipv4Addr, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0; bytes];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&from.octets());
        packet[16..20].copy_from_slice(&to.octets());
        packet
    }

    #[test]
    fn outside_hears_from_the_eip_and_inside_from_the_near_lan_address() {
        let outside = Ipv4Addr::new(198, 51, 100, 7);
        let host = Ipv4Addr::new(10, 0, 1, 5);
        for (direction, from, to, source) in [
            (Direction::Inbound, outside, EIP, EIP),
            (Direction::Outbound, host, outside, LAN),
            (Direction::Outbound, host, EIP, LAN),
        ] {
            let dropped = packet(from, to, 60);
            let answer = message(&record(Answer::TimeExceeded, direction, &dropped), &lan());
            let answer = answer.expect("an answer");
            assert_eq!(answer.to, IpAddr::from(from));
            assert_eq!(answer.packet[12..16], source.octets());
            assert_eq!(answer.packet[16..20], from.octets());
            assert_eq!(answer.packet[20..22], [11, 0]);
            assert_eq!(answer.packet[28..], dropped);
            assert_eq!(checksum(&answer.packet[20..]), 0, "the sum covers itself");
        }
    }

    #[test]
    fn too_big_says_the_mtu_and_quotes_no_more_than_fits() {
        let dropped = packet(Ipv4Addr::new(10, 0, 1, 5), EIP, 1200);
        let answer = message(&record(Answer::TooBig, Direction::Outbound, &dropped), &lan());
        let answer = answer.expect("an answer").packet;
        assert_eq!(answer.len(), 576);
        assert_eq!(answer[20..22], [3, 4]);
        assert_eq!(answer[24..28], [0, 0, 5, 120], "1400");
        assert_eq!(answer[2..4], 576_u16.to_be_bytes());
    }

    #[test]
    fn ipv6_is_no_longer_than_1280_bytes_and_summed_up() {
        let (from, to) = ("fd00:1::5", "2001:db8::7");
        let [from, to]: [Ipv6Addr; 2] = [from, to].map(|text| text.parse().expect("an address"));
        let mut dropped = vec![0; KEPT];
        dropped[0] = 0x60;
        dropped[8..24].copy_from_slice(&from.octets());
        dropped[24..40].copy_from_slice(&to.octets());
        let answer = message(&record(Answer::TooBig, Direction::Outbound, &dropped), &lan());
        let answer = answer.expect("an answer").packet;
        assert_eq!(answer.len(), 1280);
        let source: Ipv6Addr = "fd00:1::fe".parse().expect("an address");
        assert_eq!(answer[8..24], source.octets());
        assert_eq!(answer[40..42], [2, 0]);
        assert_eq!(answer[44..48], 1400_u32.to_be_bytes());
        assert_eq!(icmpv6_checksum(source, from, &answer[40..]), 0, "the sum covers itself");
    }

    #[test]
    fn what_no_program_writes_is_not_answered() {
        let dropped = packet(Ipv4Addr::new(10, 0, 1, 5), EIP, 60);
        let good = record(Answer::Refused, Direction::Outbound, &dropped);
        assert!(message(&good, &lan()).is_some());
        assert!(message(&good, &[]).is_none(), "no address to answer from");
        assert!(message(&Unanswered { answer: 9, ..good }, &lan()).is_none());
        assert!(message(&Unanswered { bytes: 12, ..good }, &lan()).is_none());
        assert!(message(&Unanswered { bytes: 0, ..good }, &lan()).is_none());
    }
}
