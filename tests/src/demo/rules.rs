//! The rules in force, as `vpc-gateway rules --json` tells them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The network address.
    pub network: Ipv4Addr,
    /// The number of leading bits.
    pub length: u8,
}

impl Prefix {
    /// Reads `10.0.1.0/24`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let (network, length) = text.split_once('/').with_context(|| format!("prefix {text}"))?;
        let prefix = Self { network: network.parse()?, length: length.parse()? };
        ensure!(prefix.length <= 32, "prefix {text}");
        Ok(prefix)
    }

    /// Whether an address is inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
        (self.network.to_bits() ^ address.to_bits()) & mask == 0
    }
}

/// A port forward in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Whether it is for TCP; otherwise for UDP.
    pub tcp: bool,
    /// Where clients connect to.
    pub at: SocketAddrV4,
    /// Where it leads.
    pub to: SocketAddrV4,
}

/// The rules in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Names and addresses of the EIPs.
    pub eips: Vec<(String, Ipv4Addr)>,
    /// External and inside address of the floating IPs.
    pub fips: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Source prefix and external address.
    pub snats: Vec<(Prefix, Ipv4Addr)>,
    /// Port forwards.
    pub forwards: Vec<Forward>,
    /// External and inside address of the floating IPs in IPv6.
    pub fips_v6: Vec<(Ipv6Addr, Ipv6Addr)>,
    /// The external addresses of SNAT in IPv6.
    pub snats_v6: Vec<Ipv6Addr>,
}

impl Rules {
    /// The external address that SNAT gives a host: the longest prefix wins.
    pub fn snat_of(&self, host: Ipv4Addr) -> Option<Ipv4Addr> {
        let matching = self.snats.iter().filter(|(prefix, _)| prefix.contains(host));
        matching.max_by_key(|(prefix, _)| prefix.length).map(|(_, eip)| *eip)
    }

    /// The floating IP of a host.
    pub fn fip_of(&self, host: Ipv4Addr) -> Option<Ipv4Addr> {
        self.fips.iter().find(|(_, inside)| *inside == host).map(|(eip, _)| *eip)
    }

    /// An external address that has no floating IP.
    pub fn eip_without_fip(&self) -> Option<Ipv4Addr> {
        let is_fip = |eip: &Ipv4Addr| self.fips.iter().any(|(fip, _)| fip == eip);
        self.eips.iter().map(|(_, eip)| *eip).find(|eip| !is_fip(eip))
    }

    /// The name of the EIP object with this address.
    pub fn eip_name(&self, address: Ipv4Addr) -> Option<&str> {
        self.eips.iter().find(|(_, eip)| *eip == address).map(|(name, _)| name.as_str())
    }

    /// Reads the JSON of `rules` and of `status`.
    ///
    /// # Errors
    /// One has another shape.
    pub fn parse(rules: &Value, status: &Value) -> Result<Self> {
        let mut read = Self::default();
        for eip in status["eips"].as_array().context("no list of EIPs in the status")? {
            if let Ok(address) = text(eip, "address")?.parse() {
                read.eips.push((text(eip, "name")?.to_owned(), address));
            }
        }
        for rule in rules.as_array().context("the rules are no list")? {
            read.add(rule).with_context(|| format!("rule {rule}"))?;
        }
        Ok(read)
    }

    fn add(&mut self, rule: &Value) -> Result<()> {
        let (from, to) = (text(rule, "from")?, text(rule, "to")?);
        if from.contains("::") {
            match text(rule, "kind")? {
                "fip" => self.fips_v6.push((from.parse()?, to.parse()?)),
                "snat" => self.snats_v6.push(to.parse()?),
                _ => {}
            }
            return Ok(());
        }
        match text(rule, "kind")? {
            "fip" => self.fips.push((from.parse()?, to.parse()?)),
            "snat" => self.snats.push((Prefix::parse(from)?, to.parse()?)),
            "dnat" => {
                let (at, protocol) = from.split_once('/').context("no protocol")?;
                let tcp = protocol == "tcp";
                self.forwards.push(Forward { tcp, at: at.parse()?, to: to.parse()? });
            }
            other => bail!("unknown kind {other}"),
        }
        Ok(())
    }
}

fn text<'a>(entry: &'a Value, name: &str) -> Result<&'a str> {
    entry[name].as_str().with_context(|| format!("no `{name}` in {entry}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let eip = |host| Ipv4Addr::new(203, 0, 113, host);
        let rules = Rules {
            snats: vec![
                (Prefix::parse("10.0.0.0/16").unwrap(), eip(1)),
                (Prefix::parse("10.0.1.0/24").unwrap(), eip(2)),
            ],
            ..Rules::default()
        };
        assert_eq!(rules.snat_of(Ipv4Addr::new(10, 0, 1, 10)), Some(eip(2)));
        assert_eq!(rules.snat_of(Ipv4Addr::new(10, 0, 2, 30)), Some(eip(1)));
        assert_eq!(rules.snat_of(Ipv4Addr::new(10, 1, 0, 1)), None);
        assert!(Prefix::parse("0.0.0.0/0").unwrap().contains(eip(9)));
    }
}
