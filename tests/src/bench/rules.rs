//! The same rules in three languages: Kube-OVN's objects, its iptables chains, and an nftables map.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::plan::{
    A, B, DNAT_PORT, DNATS_PER_EIP, EIP_DNAT, EIP_FIP, EIP_SNAT, EIP_SNAT_6, LAN, VPC_NET,
    VPC_NET_6,
};

/// One floating IP, one SNAT rule for the whole VPC, and port forwards over UDP.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How many port forwards; all lead to one host.
    pub dnats: u32,
}

/// One port forward.
struct Dnat {
    eip: Ipv4Addr,
    port: u32,
}

impl Rules {
    fn eips(self) -> impl Iterator<Item = Ipv4Addr> {
        let count = self.dnats.div_ceil(DNATS_PER_EIP).max(1);
        (0..count).map(|index| Ipv4Addr::from_bits(EIP_DNAT.to_bits() + index))
    }

    fn dnats(self) -> impl Iterator<Item = Dnat> {
        (0..self.dnats).map(|index| Dnat {
            eip: Ipv4Addr::from_bits(EIP_DNAT.to_bits() + index / DNATS_PER_EIP),
            port: DNAT_PORT + index % DNATS_PER_EIP,
        })
    }

    /// As manifests for a gateway of this name.
    pub fn yaml(self, gateway: &str) -> String {
        let mut out = String::from(
            "apiVersion: kubeovn.io/v1\nkind: Vpc\nmetadata: {name: bench}\nspec: {}\n",
        );
        let mut object = |kind: &str, name: &str, spec: &str| {
            let _ = write!(
                out,
                "---\napiVersion: kubeovn.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
            );
        };
        let dual = format!("protocol: Dual, cidrBlock: \"{VPC_NET},{VPC_NET_6}\"");
        object(
            "Subnet",
            "inside",
            &format!("{{vpc: bench, {dual}, gateway: \"10.0.0.1,fd00:10::1\"}}"),
        );
        let dual = "protocol: Dual, cidrBlock: \"203.0.113.0/24,2001:db8:1::/64\"";
        object(
            "Subnet",
            "external",
            &format!("{{{dual}, gateway: \"203.0.113.1,2001:db8:1::1\"}}"),
        );
        let spec =
            format!("{{vpc: bench, subnet: inside, lanIp: {LAN}, externalSubnets: [external]}}");
        object("VpcNatGateway", gateway, &spec);
        let eip = |v4: Ipv4Addr, v6: String| {
            format!("{{natGwDp: {gateway}, externalSubnet: external, v4ip: {v4}{v6}}}")
        };
        object("IptablesEIP", "fip", &eip(EIP_FIP, String::new()));
        object("IptablesEIP", "snat", &eip(EIP_SNAT, format!(", v6ip: \"{EIP_SNAT_6}\"")));
        for (index, address) in self.eips().enumerate() {
            object("IptablesEIP", &format!("dnat{index}"), &eip(address, String::new()));
        }
        object("IptablesFIPRule", "fip", &format!("{{eip: fip, internalIp: {A}}}"));
        object("IptablesSnatRule", "snat", &format!("{{eip: snat, internalCIDR: {VPC_NET}}}"));
        object(
            "IptablesSnatRule",
            "snat6",
            &format!("{{eip: snat, internalCIDR: \"{VPC_NET_6}\"}}"),
        );
        for (index, dnat) in self.dnats().enumerate() {
            let (eip, port) = (index as u32 / DNATS_PER_EIP, dnat.port);
            let spec = format!(
                "{{eip: dnat{eip}, externalPort: \"{port}\", internalPort: \"{port}\", \
                 internalIp: {B}, protocol: udp}}"
            );
            object("IptablesDnatRule", &format!("d{index}"), &spec);
        }
        out
    }

    /// As input of `iptables-restore`: the chains that Kube-OVN's gateway script makes.
    pub fn iptables(self) -> String {
        let mut out = String::from(
            "*mangle\n-A PREROUTING -i eth0 -j MARK --set-xmark 0x1/0x1\nCOMMIT\n*nat\n\
             :DNAT_FILTER - [0:0]\n:EXCLUSIVE_DNAT - [0:0]\n:SHARED_DNAT - [0:0]\n\
             :SNAT_FILTER - [0:0]\n:EXCLUSIVE_SNAT - [0:0]\n:SHARED_SNAT - [0:0]\n\
             :HAIRPIN_SNAT - [0:0]\n\
             -A PREROUTING -j DNAT_FILTER\n-A DNAT_FILTER -j EXCLUSIVE_DNAT\n\
             -A DNAT_FILTER -j SHARED_DNAT\n-A POSTROUTING -j SNAT_FILTER\n\
             -A SNAT_FILTER -j EXCLUSIVE_SNAT\n-A SNAT_FILTER -j SHARED_SNAT\n\
             -A SNAT_FILTER -j HAIRPIN_SNAT\n",
        );
        let _ = write!(
            out,
            "-A EXCLUSIVE_DNAT -d {EIP_FIP}/32 -j DNAT --to-destination {A}\n\
             -A EXCLUSIVE_SNAT -s {A}/32 -j SNAT --to-source {EIP_FIP}\n\
             -A SHARED_SNAT -s {VPC_NET} -o net1 -j SNAT --to-source {EIP_SNAT} --random-fully\n"
        );
        for eip in self.eips().chain([EIP_FIP, EIP_SNAT]) {
            let _ = writeln!(
                out,
                "-A HAIRPIN_SNAT -o eth0 -m mark --mark 0x1/0x1 -m conntrack --ctstate DNAT \
                 --ctorigdst {eip}/32 -j SNAT --to-source {eip} --random-fully"
            );
        }
        for Dnat { eip, port } in self.dnats() {
            let _ = writeln!(
                out,
                "-A SHARED_DNAT -d {eip}/32 -p udp -m udp --dport {port} -j DNAT --to-destination {B}:{port}"
            );
        }
        out + "COMMIT\n"
    }

    /// As input of `nft -f`: the port forwards in one map, so that their number does not matter.
    pub fn nftables(self) -> String {
        let mut out = String::from(
            "table ip bench {\n map dnats {\n  type ipv4_addr . inet_proto . inet_service : \
             ipv4_addr . inet_service\n",
        );
        if self.dnats > 0 {
            out += "  elements = {\n";
            for Dnat { eip, port } in self.dnats() {
                let _ = writeln!(out, "   {eip} . udp . {port} : {B} . {port},");
            }
            out += "  }\n";
        }
        let _ = write!(
            out,
            " }}\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n  \
             ip daddr {EIP_FIP} dnat to {A}\n  \
             dnat to ip daddr . meta l4proto . th dport map @dnats\n }}\n chain postrouting {{\n  \
             type nat hook postrouting priority srcnat;\n  \
             ip saddr {A} snat to {EIP_FIP}\n  \
             oifname \"net1\" ip saddr {VPC_NET} snat to {EIP_SNAT} fully-random\n  \
             iifname \"eth0\" oifname \"eth0\" ct status dnat ct original ip daddr {EIP_DNAT} \
             snat to {EIP_DNAT} fully-random\n }}\n}}\n"
        );
        out
    }
}
