//! Text -> address, CIDR, range.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::Sharing;
use crate::rejection::Problem;

/// The text of a field that must not be empty.
pub(super) fn required<'t>(text: &'t str, expected: &'static str) -> Result<&'t str, Problem> {
    if text.is_empty() { Err(Problem::Missing { expected }) } else { Ok(text) }
}

/// An address that a host can have.
pub(crate) fn address(text: &str) -> Result<IpAddr, Problem> {
    let text = required(text, "an IP address")?;
    let invalid = |not, expected| Problem::Invalid { value: text.to_owned(), not, expected };
    let address: IpAddr = text
        .parse()
        .map_err(|_| invalid("an IP address", "one such as 192.0.2.1 or 2001:db8::1"))?;
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast {
        return Err(invalid("the address of a host", "a unicast address"));
    }
    Ok(address)
}

/// An address of the family that a field is for.
pub(super) fn address_of_family(text: &str, v4: bool) -> Result<IpAddr, Problem> {
    address(text).and_then(|address| {
        if address.is_ipv4() == v4 {
            return Ok(address);
        }
        let value = text.to_owned();
        Err(if v4 {
            Problem::Invalid { value, not: "an IPv4 address", expected: "it in spec.v6ip" }
        } else {
            Problem::Invalid { value, not: "an IPv6 address", expected: "it in spec.v4ip" }
        })
    })
}

/// A CIDR, possibly with host bits, or a single address.
pub(crate) fn cidr(text: &str) -> Result<IpNet, Problem> {
    let text = required(text, "a CIDR such as 10.0.1.0/24")?;
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
        Problem::Invalid {
            value: text.to_owned(),
            not: "a CIDR",
            expected: "one such as 10.0.1.0/24 or fd00:10::/64",
        }
    })
}

/// One value for each family, with a comma between, as Subnets have them.
pub(crate) fn per_family<T>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, Problem>,
    is_ipv4: impl Fn(&T) -> bool,
) -> Result<Vec<T>, Problem> {
    let values = text.split(',').map(|part| parse(part.trim())).collect::<Result<Vec<T>, _>>()?;
    match &values[..] {
        [_] => Ok(values),
        [a, b] if is_ipv4(a) != is_ipv4(b) => Ok(values),
        _ => Err(Problem::Invalid {
            value: text.to_owned(),
            not: "one value for each address family",
            expected: "one IPv4, one IPv6, or both with a comma between",
        }),
    }
}

/// An address, or a range written `first..last`.
pub(super) fn range(text: &str) -> Result<RangeInclusive<IpAddr>, Problem> {
    let invalid = || Problem::Invalid {
        value: text.to_owned(),
        not: "an address or a range",
        expected: "one such as 192.0.2.1 or 192.0.2.1..192.0.2.9",
    };
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let parse = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| invalid());
    let (first, last) = (parse(first)?, parse(last)?);
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err(invalid());
    }
    Ok(first..=last)
}

/// `spec.type` of a DNAT rule.
pub(super) fn sharing(text: &str) -> Result<Sharing, Problem> {
    match text {
        "" | "exclusive" => Ok(Sharing::Exclusive),
        "share" => Ok(Sharing::Share),
        other => Err(Problem::Invalid {
            value: other.to_owned(),
            not: "a type of DNAT rules",
            expected: "exclusive or share",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_that_a_host_can_have() {
        assert!(address("10.0.1.5").is_ok());
        assert!(address("2001:DB8::1").is_ok());
        for bad in ["", "10.0.1", "10.0.1.256", "010.0.1.5", "10.0.1.5/24", "host", "0.0.0.0"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        for bad in ["127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_address_is_a_cidr() {
        assert_eq!(cidr("10.0.1.5").unwrap().to_string(), "10.0.1.5/32");
        assert_eq!(cidr("fd00::5").unwrap().to_string(), "fd00::5/128");
        assert_eq!(cidr("10.0.1.5/24").unwrap().trunc().to_string(), "10.0.1.0/24");
        for bad in ["", "10.0.1.0/33", "10.0.1.0/", "10.0.1.0/24,fd00::/64", "all"] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_family_has_at_most_one_value() {
        let read = |text| per_family(text, cidr, |cidr| cidr.addr().is_ipv4());
        assert_eq!(read("10.0.0.0/8").unwrap().len(), 1);
        assert_eq!(read("10.0.0.0/8, fd00::/64").unwrap().len(), 2);
        assert!(read("10.0.0.0/8,11.0.0.0/8").is_err());
        assert!(read("10.0.0.0/8,").is_err());
    }

    #[test]
    fn a_range_has_two_ends_of_one_family_in_order() {
        let read = |text| range(text).map(|range| (range.start().to_string(), *range.end()));
        assert_eq!(read("10.0.0.1").unwrap().0, "10.0.0.1");
        assert!(read("10.0.0.1..10.0.0.9").unwrap().1.is_ipv4());
        for bad in ["", "..", "10.0.0.9..10.0.0.1", "10.0.0.1..fd00::1", "10.0.0.1...10.0.0.2"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
