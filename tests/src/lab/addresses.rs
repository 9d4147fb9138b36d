//! Who lives where in the lab. The same plan for both families.

use std::net::{Ipv4Addr, Ipv6Addr};

/// VPC host A, the floating-IP host.
pub const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
/// VPC host B.
pub const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
/// VPC host C.
pub const C: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 20);
/// VPC host D, in the second subnet.
pub const D: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 30);
/// The VPC router in the subnet of the gateway.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// The VPC router in the second subnet.
pub const ROUTER_2: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// The gateway's `eth0`, its `lanIp`.
pub const LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);
/// The gateway's own address on `net1`.
pub const WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The external gateway X.
pub const X: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// X, seen from Y.
pub const X_FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The outside host Y, one hop behind X.
pub const Y: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// The first VPC subnet.
pub const VPC_NET: &str = "10.0.1.0/24";
/// The second VPC subnet.
pub const VPC_NET_2: &str = "10.0.2.0/24";

/// The IPv6 address that goes with an IPv4 address of the lab: same subnet, same host part.
pub fn v6(v4: Ipv4Addr) -> Ipv6Addr {
    let [_, second, third, host] = v4.octets();
    // The last byte is kept as the reader sees it: 10.0.1.254 becomes fd00:10:1::254.
    let host = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
    match second {
        0 if v4.octets()[0] == 10 => Ipv6Addr::new(0xfd00, 0x10, third.into(), 0, 0, 0, 0, host),
        51 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, host),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ipv6_plan_mirrors_the_ipv4_plan() {
        assert_eq!(v6(LAN).to_string(), "fd00:10:1::254");
        assert_eq!(v6(D).to_string(), "fd00:10:2::30");
        assert_eq!(v6(X).to_string(), "2001:db8:1::1");
        assert_eq!(v6(Y).to_string(), "2001:db8:2::7");
    }
}
