//! One frame, read by the data path and by the test's own decoder.

use gateway_common::family::{V4, V6};
use gateway_common::packet::HostPacket;
use gateway_common::parse::{Fragment, Parsed, PortFields, parse};
use gateway_common::tuple::Direction;

use crate::decode::{Decoded, decode_whole};
use crate::harness::notation::{Notation, flow};

/// The first byte says by which interface the rest comes in.
pub(super) fn run(input: &[u8]) {
    let Some((first, frame)) = input.split_first() else { return };
    let direction = if first & 1 == 0 { Direction::Outbound } else { Direction::Inbound };
    read::<V4>(direction, frame, 0x0800);
    read::<V6>(direction, frame, 0x86dd);
}

fn read<F: Notation>(direction: Direction, frame: &[u8], ether_type: u16) {
    let mut bytes = frame.to_vec();
    let mut parsed = Parsed::<F>::new(direction);
    let read = parse(&mut HostPacket::new(&mut bytes), &mut parsed);
    assert_eq!(bytes, frame, "reading changes nothing");
    let named = frame.get(12..14).is_some_and(|kind| kind == ether_type.to_be_bytes());
    if read.is_err() || !named {
        return;
    }
    assert!(usize::from(parsed.l4) <= frame.len(), "{parsed:?}");
    let Ok(decoded) = decode_whole(frame) else { return };
    agree(&parsed, &decoded);
}

/// Both have read the frame to its layer-4 header.
fn agree<F: Notation>(parsed: &Parsed<F>, decoded: &Decoded) {
    let ends = flow(&parsed.tuple);
    assert_eq!((ends.source.ip(), ends.destination.ip()), (decoded.source, decoded.destination));
    assert_eq!(parsed.tuple.protocol, decoded.protocol, "{decoded:?}");
    assert_eq!(parsed.ttl, decoded.ttl, "{decoded:?}");
    let (_, _, offset, more) = decoded.fragment;
    let place = match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    assert_eq!(parsed.fragment, place, "{decoded:?}");
    match parsed.ports {
        PortFields::Both => {
            assert_eq!(Some((ends.source.port(), ends.destination.port())), decoded.ports);
        }
        PortFields::SourceId => {
            assert_eq!(Some(ends.source.port()), decoded.icmp.map(|(.., id)| id), "{decoded:?}");
        }
        PortFields::DestinationId => {
            assert_eq!(Some(ends.destination.port()), decoded.icmp.map(|(.., id)| id));
        }
        PortFields::Quoted | PortFields::Redirect | PortFields::None => {
            assert_eq!((ends.source.port(), ends.destination.port()), (0, 0), "{decoded:?}");
        }
    }
    assert!(decoded.tcp_flags.is_none_or(|flags| flags == parsed.tcp_flags), "{decoded:?}");
}
