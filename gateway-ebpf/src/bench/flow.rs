//! What the generator sends: one record, written by the bench and read by the program.
//!
//! This file is part of both: it knows nothing of BPF.

/// A set of flows, numbered from 0, and the frames that carry them.
///
/// A flow's ports and addresses come out of a bijection of its number (RFC 4814 asks for
/// pseudorandom ports), so no two of the first 2^32 flows are the same as long as the bits that are
/// taken from it are 32 or fewer flows are asked for than they can tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flows {
    /// The interface that frames leave by.
    pub ifindex: u32,
    /// Length of a frame in bytes, from the Ethernet header on.
    pub frame_bytes: u32,
    /// Number of the first flow.
    pub first: u32,
    /// How many flows take turns.
    pub count: u32,
    /// Step from one flow to the next, prime to `count`: not in the order in which they were opened.
    pub stride: u32,
    /// 4 or 6.
    pub version: u32,
    /// Who sends.
    pub source: End,
    /// Who receives.
    pub destination: End,
    /// Destination and source address of the Ethernet header.
    pub macs: [u8; 12],
}

/// One end of all flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct End {
    /// The lowest address, in words of host byte order, most significant first. IPv4 uses the last.
    pub address: [u32; 4],
    /// How many addresses take part: a mask of low bits.
    pub address_mask: u32,
    /// The lowest port.
    pub port: u32,
    /// How many ports take part: a mask of low bits.
    pub port_mask: u32,
    /// If not 0: ports come from the flow's number modulo this, and not from its bits.
    pub port_turns: u32,
}

/// One end of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Last word of the address, in host byte order.
    pub low: u32,
    /// The port, in host byte order.
    pub port: u16,
}

impl Flows {
    /// The flow that the `turn`-th frame belongs to.
    #[inline(always)]
    #[must_use]
    pub fn number(&self, turn: u64) -> u32 {
        let count = if self.count == 0 { 1 } else { u64::from(self.count) };
        let step = (turn * u64::from(self.stride)) % count;
        self.first.wrapping_add(step as u32)
    }

    /// Both ends of a flow.
    #[inline(always)]
    #[must_use]
    pub fn ends(&self, number: u32) -> (Endpoint, Endpoint) {
        let mut bits = scatter(number);
        let source = self.source.take(number, &mut bits);
        let destination = self.destination.take(number, &mut bits);
        (source, destination)
    }
}

impl End {
    #[inline(always)]
    fn take(&self, number: u32, bits: &mut u32) -> Endpoint {
        let mut take = |mask: u32| {
            let taken = *bits & mask;
            // A mask of n bits plus one is 2^n.
            *bits = (u64::from(*bits) / (u64::from(mask) + 1)) as u32;
            taken
        };
        let offset =
            if self.port_turns == 0 { take(self.port_mask) } else { number % self.port_turns };
        let low = self.address[3].wrapping_add(take(self.address_mask));
        Endpoint { low, port: (self.port + offset) as u16 }
    }
}

/// A bijection of 32 bits (the finaliser of MurmurHash3).
#[inline(always)]
fn scatter(number: u32) -> u32 {
    let mut bits = number;
    bits ^= bits >> 16;
    bits = bits.wrapping_mul(0x85eb_ca6b);
    bits ^= bits >> 13;
    bits = bits.wrapping_mul(0xc2b2_ae35);
    bits ^ (bits >> 16)
}

/// Where a bare redirect sends everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// The interface.
    pub ifindex: u32,
    /// The neighbour, for the redirect that leaves the Ethernet header to the kernel: its IPv4 address
    /// as in the packet.
    pub neighbor: [u8; 4],
    /// Destination and source address of the Ethernet header.
    pub macs: [u8; 12],
}

/// What a table has of a flow, as long as the gateway's record of a session over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// Where its packets go.
    pub target: Target,
    /// Nothing.
    pub rest: [u8; 28],
}

/// What a sink has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    /// UDP packets.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
}

/// How far the generator is. Its own clock: what a run needs to begin and to end is not part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Progress {
    /// Frames made since the bench set this to 0.
    pub turn: u64,
    /// When the first of them was made, in nanoseconds.
    pub first_ns: u64,
    /// When a later one was made, in nanoseconds.
    pub last_ns: u64,
    /// How many had been made before that one.
    pub last_turn: u64,
}

/// Frames between two looks at the clock.
pub const CLOCK_EVERY: u64 = 32;
