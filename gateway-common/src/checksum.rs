//! Internet checksums, changed by difference (RFC 1624).
//!
//! A ones' complement sum does not depend on byte order as long as words are read and the result
//! is written in the same order (RFC 1071 section 2 B). Words are therefore taken from memory as
//! they are ([`u32::from_ne_bytes`]); this is also the form in which the kernel's checksum helpers
//! take a difference.

/// A difference between two ones' complement sums: new minus old, not yet folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// Adds the replacement of one 32-bit word by another, both as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub fn replace_u32(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// Adds the replacement of one 16-bit word by another, both as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub fn replace_u16(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// The two differences taken together.
    #[inline(always)]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Whether nothing changed: every replacement was by the same value, or there was none.
    #[inline(always)]
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0 == 0 || self.0 == 0xffff || self.0 == 2 * 0xffff
    }

    /// The sum itself, folded, where everything before was zero: as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub fn to_sum(self) -> [u8; 2] {
        folded(u64::from(self.to_wsum())).to_ne_bytes()
    }

    /// Folded to 32 bits: what the kernel's `__wsum` arguments take.
    #[inline(always)]
    #[must_use]
    pub fn to_wsum(self) -> u32 {
        let folded = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        // At most one carry is left after the first fold.
        ((folded & 0xffff_ffff) + (folded >> 32)) as u32
    }

    /// The same, computed here and now: left alone, the compiler does the sums where they are needed, and
    /// keeps all that goes into them on the stack until then.
    #[inline(always)]
    #[must_use]
    pub fn evaluated(self) -> Self {
        Self(core::hint::black_box(self.0))
    }

    /// The difference that [`Difference::to_wsum`] has folded.
    #[inline(always)]
    #[must_use]
    pub fn from_wsum(wsum: u32) -> Self {
        Self(u64::from(wsum))
    }

    /// The checksum `field` after this difference, both as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub fn apply(self, field: [u8; 2]) -> [u8; 2] {
        // RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
        let sum = u64::from(!u16::from_ne_bytes(field)) + u64::from(self.to_wsum());
        (!folded(sum)).to_ne_bytes()
    }
}

/// A sum of fewer than 2^17 words of 16 bits, with every carry added.
#[inline(always)]
const fn folded(mut sum: u64) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What a rewrite changed, split by whether the pseudo header covers it.
///
/// The split matters for socket buffers whose checksum is not finished yet: such a field holds the
/// sum of the pseudo header alone, so a changed address must be added and a changed port must not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumDelta {
    /// The addresses: part of the pseudo header.
    pub addresses: Difference,
    /// Ports or ICMP id: part of the layer-4 header itself.
    pub ports: Difference,
}

/// How a protocol's checksum behaves under NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Checksum {
    /// There is none, or none that addresses and ports have a part in.
    None,
    /// Covers the pseudo header: TCP, ICMPv6, DCCP.
    Pseudo,
    /// As [`L4Checksum::Pseudo`], and zero means "none" (RFC 768): UDP, UDP-Lite.
    PseudoOptional,
    /// Covers only the message: ICMPv4.
    Plain,
}

impl L4Checksum {
    /// The checksum field after `delta`, for a packet whose checksum is complete.
    #[inline(always)]
    #[must_use]
    pub fn patched(self, field: [u8; 2], delta: ChecksumDelta) -> [u8; 2] {
        match self {
            Self::None => field,
            Self::Pseudo => delta.addresses.and(delta.ports).apply(field),
            Self::PseudoOptional if field == [0, 0] => field,
            Self::PseudoOptional => match delta.addresses.and(delta.ports).apply(field) {
                [0, 0] => [0xff, 0xff],
                patched => patched,
            },
            // Not even which of the two zeros it is: the helper of the kernel would turn them.
            Self::Plain if delta.ports.is_none() => field,
            Self::Plain => delta.ports.apply(field),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, in full: what every incremental result is compared with.
    fn full(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&word| u32::from(word)).sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn incremental_equals_full_for_every_word() {
        let rest = [0x4500, 0x1234, 0xffff, 0x0001];
        for old in (0..=u16::MAX).step_by(7) {
            let new = old.wrapping_mul(31).wrapping_add(17);
            let before = full(&[rest[0], rest[1], rest[2], rest[3], old]);
            let after = full(&[rest[0], rest[1], rest[2], rest[3], new]);
            let patched = Difference::NONE.replace_u16(old, new).apply(before.to_ne_bytes());
            assert_eq!(u16::from_ne_bytes(patched), after, "{old:#06x} -> {new:#06x}");
        }
    }

    #[test]
    fn a_word_of_32_bits_counts_as_two_of_16() {
        let (old, new) = (0xc0a8_0001_u32, 0x0a00_ffff_u32);
        let halves = |word: u32| ((word >> 16) as u16, word as u16);
        let ((a, b), (c, d)) = (halves(old), halves(new));
        let whole = Difference::NONE.replace_u32(old, new).apply([0x12, 0x34]);
        let split = Difference::NONE.replace_u16(a, c).replace_u16(b, d).apply([0x12, 0x34]);
        assert_eq!(whole, split);
    }

    #[test]
    fn udp_without_checksum_stays_without() {
        let delta = ChecksumDelta {
            addresses: Difference::NONE.replace_u32(1, 2),
            ports: Difference::NONE.replace_u16(3, 4),
        };
        assert_eq!(L4Checksum::PseudoOptional.patched([0, 0], delta), [0, 0]);
        assert_ne!(L4Checksum::Pseudo.patched([0, 0], delta), [0, 0]);
    }

    #[test]
    fn a_computed_zero_is_sent_as_all_ones_in_udp() {
        // Sums to 0xffff, so the checksum computes to 0, which would mean "none".
        let before = full(&[0x1111]).to_ne_bytes();
        let delta = ChecksumDelta {
            addresses: Difference::NONE,
            ports: Difference::NONE.replace_u16(0x1111, 0xffff),
        };
        assert_eq!(L4Checksum::Pseudo.patched(before, delta), [0, 0]);
        assert_eq!(L4Checksum::PseudoOptional.patched(before, delta), [0xff, 0xff]);
    }

    #[test]
    fn icmp_ignores_the_addresses() {
        let delta = ChecksumDelta {
            addresses: Difference::NONE.replace_u32(1, 2),
            ports: Difference::NONE,
        };
        assert_eq!(L4Checksum::Plain.patched([0xab, 0xcd], delta), [0xab, 0xcd]);
    }
}
