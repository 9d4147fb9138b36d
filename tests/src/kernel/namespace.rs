//! A network namespace that lives as long as the thread that made it.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use super::{name, text};
use crate::build_packet::end;
use crate::harness::routes::{
    EIPS, EXTERNAL_MAC, INTERNAL_MAC, LAN, Links, MTU, Prefix, Routes, Target, WAN, embed_prefix,
    prefix,
};

/// Moves this thread into a new namespace with the interfaces and routes of [`Routes::of`].
pub(super) fn enter() -> Result<Links> {
    unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace")?;
    for (file, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
    ] {
        let path = format!("/proc/sys/net/{file}");
        std::fs::write(&path, value).with_context(|| format!("failed to write {path}"))?;
    }
    ip(&plan())?;
    let index = |interface: &str| -> Result<u32> {
        if_nametoindex(interface).with_context(|| format!("no interface {interface}"))
    };
    Ok(Links { internal: index("eth0")?, external: index("net1")?, third: index("aux0")? })
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

fn plan() -> Vec<String> {
    let third = [2, 0, 0, 0, 3, 0xfe];
    let mut lines = vec!["link set lo up".to_owned()];
    for (link, octets) in [("eth0", INTERNAL_MAC), ("net1", EXTERNAL_MAC), ("aux0", third)] {
        let mac = mac(octets);
        lines.push(format!("link add {link} address {mac} mtu {MTU} type veth peer name {link}p"));
        lines.push(format!("link set {link}p up"));
        lines.push(format!("link set {link} up"));
    }
    let mut addresses = vec![("eth0", format!("{LAN}/24")), ("net1", format!("{WAN}/24"))];
    addresses.push(("aux0", "172.16.0.254/24".to_owned()));
    addresses.extend(EIPS.map(|eip| ("net1", eip.to_owned())));
    for (link, address) in addresses {
        let v4 = prefix(&address);
        lines.push(format!("addr add {} dev {link}", text(v4)));
        lines.push(format!("addr add {} dev {link} nodad", text(embed_prefix(v4))));
    }
    for (network, gateway, link) in
        [("10.0.2.0/24", "10.0.1.1", "eth0"), ("0.0.0.0/0", "203.0.113.1", "net1")]
    {
        let (network, gateway) = (prefix(network), (end(gateway).ip(), 32));
        lines.push(format!("route add {} via {} dev {link}", text(network), gateway.0));
        let (network, gateway) = (embed_prefix(network), embed_prefix(gateway).0);
        lines.push(format!("route add {} via {gateway} dev {link}", text(network)));
    }
    // One neighbour is known and the others are not: a route look-up tells them apart.
    let known = prefix("203.0.113.1");
    for (address, _) in [known, embed_prefix(known)] {
        lines.push(format!("neigh add {address} lladdr 02:00:00:00:02:01 dev net1 nud permanent"));
    }
    let refused = prefix("192.0.2.0/24");
    for refused in [refused, embed_prefix(refused)] {
        lines.push(format!("route add blackhole {}", text(refused)));
    }
    lines
}

/// Runs `ip` on these lines.
fn ip(lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("iproute2 is missing")?;
    let script = lines.join("\n") + "\n";
    child.stdin.take().context("no standard input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip refuses: {error}\n{script}");
    Ok(())
}

/// Adds or replaces a route.
pub(super) fn set_route(links: &Links, prefix: Prefix, target: Target) -> Result<()> {
    let to = text(prefix);
    ip(&[match target {
        Target::Forward { ifindex, via: Some(via) } => {
            let via: IpAddr = via;
            format!("route replace {to} via {via} dev {}", name(links, ifindex))
        }
        Target::Forward { ifindex, via: None } => {
            format!("route replace {to} dev {}", name(links, ifindex))
        }
        Target::Local => format!("route replace local {to} dev lo"),
        Target::Refused => format!("route replace blackhole {to}"),
    }])
}

/// Brings a route back to what it is in `base`.
pub(super) fn reset_route(links: &Links, prefix: Prefix, base: &Routes) -> Result<()> {
    match base.get(prefix) {
        Some(target) => set_route(links, prefix, target),
        None => ip(&[format!("route del {}", text(prefix))]),
    }
}
