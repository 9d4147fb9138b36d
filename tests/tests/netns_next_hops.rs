//! A gateway between two routers of the VPC and two of the outside, end to end: see
//! [`gateway_tests::lab::routers`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_tests::lab::echo::{ECHO_PORT, EchoServers};
use gateway_tests::lab::frr::{Frr, Peer};
use gateway_tests::lab::http::{Nginx, random_file, sha256};
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::probe::TcpProbe;
use gateway_tests::lab::process::Process;
use gateway_tests::lab::routers::{EIP, INNER, OUTER, RoutersLab, SERVER, TENANT};
use gateway_tests::lab::tier;
use gateway_tests::lab::wait::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);
const MEGABYTE: u64 = 1 << 20;

fn lab(change: impl FnOnce(String) -> String, test: impl FnOnce(&mut RoutersLab) -> Result<()>) {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let mut lab = RoutersLab::start(change).unwrap_or_else(|error| panic!("{error:#}"));
    test(&mut lab).unwrap_or_else(|error| panic!("{error:#}\n{}", lab.diagnostics()));
}

fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// The next hop of each TCP session from inside, by its source.
fn ways(lab: &RoutersLab) -> Result<BTreeMap<SocketAddr, IpAddr>> {
    let shown = lab.gateway.json("sessions")?;
    let sessions = shown.as_array().context("no list")?;
    let mut ways = BTreeMap::new();
    for session in sessions.iter().filter(|one| one["kind"] == "outbound") {
        let source = session["original"]["source"].as_str().context("no source")?;
        let next_hop = session["next_hop"].as_str().context("no next hop")?;
        ways.insert(source.parse()?, next_hop.parse()?);
    }
    Ok(ways)
}

fn connect(lab: &RoutersLab, family: usize, count: usize) -> Result<Vec<TcpProbe>> {
    let to = socket(SERVER[family][0], ECHO_PORT);
    (0..count).map(|_| TcpProbe::connect(&lab.tenant, 0, to)).collect()
}

/// Where each connection goes.
fn ways_of(lab: &RoutersLab, connections: &[TcpProbe]) -> Result<Vec<IpAddr>> {
    let ways = ways(lab)?;
    let way = |one: &TcpProbe| ways.get(&one.exchange.local).copied().context("no session");
    connections.iter().map(way).collect()
}

fn is(address: IpAddr, text: &str) -> bool {
    address.to_string() == text
}

/// curl from one of the addresses of a host.
fn curl(from: &str, rate: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"]);
    command.args(["--interface", from, "--limit-rate", rate]);
    command
}

fn download(
    ns: &Netns,
    from: &str,
    server: SocketAddr,
    original: &Path,
    copy: &Path,
) -> Result<()> {
    let url = format!("http://{server}/files/original");
    ns.output(curl(from, "1G").arg("-o").arg(copy).arg(url))?;
    ensure!(sha256(original)? == sha256(copy)?, "the content has changed on the way");
    Ok(())
}

/// By how much the counts of both routers of a side grow meanwhile.
fn carried(lab: &RoutersLab, outer: bool, work: impl FnOnce() -> Result<()>) -> Result<[u64; 2]> {
    let before = [lab.received(outer, 0)?, lab.received(outer, 1)?];
    work()?;
    Ok([lab.received(outer, 0)? - before[0], lab.received(outer, 1)? - before[1]])
}

#[test]
fn only_the_flows_of_a_router_that_dies_move_and_transfers_go_on() {
    lab(
        |text| text,
        |lab| {
            lab.wait_all()?;
            let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
            let nginx = Nginx::start(&lab.server, &lab.scratch)?;
            let file = lab.scratch.join("original");
            random_file(&file, 8)?;
            let mut connections = Vec::new();
            for family in 0..2 {
                connections.extend(connect(lab, family, 48)?);
            }
            let before = ways_of(lab, &connections)?;
            for routers in OUTER {
                let [first, second] =
                    routers.map(|router| before.iter().filter(|way| is(**way, router)).count());
                ensure!(first + second == 48, "{before:?}");
                ensure!((4..=30).contains(&first), "{first} of 48, and 16 is its share");
            }
            let start = [lab.received(true, 0)?, lab.received(true, 1)?];
            let mut uploads = Vec::new();
            for number in 0..12 {
                let family = number % 2;
                let (name, to) = (format!("copy-{number}"), socket(SERVER[family][0], 80));
                let mut command = curl(TENANT[family][0], "2M");
                command.arg("-T").arg(&file).arg(format!("http://{to}/files/{name}"));
                let log = lab.scratch.join(&format!("{name}.log"));
                uploads.push((name, lab.tenant.enter(|| Process::start(&mut command, &log))??));
            }
            wait_until("both routers to carry some", PATIENCE, || {
                let now = [lab.received(true, 0)?, lab.received(true, 1)?];
                let enough = (0..2).all(|index| now[index] > start[index] + MEGABYTE);
                Ok(enough.then_some(()))
            })?;
            let at = Instant::now();
            lab.kill(true, 1)?;
            for (connection, way) in connections.iter_mut().zip(&before) {
                if OUTER.iter().any(|both| is(*way, both[0])) {
                    connection.echo("undisturbed").context("by the router that lives")?;
                }
            }
            lab.wait_for(&OUTER.map(|both| both[1]), "dead")?;
            println!("dead after {:?}", at.elapsed());
            for connection in &mut connections {
                connection.echo("by the other one")?;
            }
            let after = ways_of(lab, &connections)?;
            for (way, family) in after.iter().zip([0; 48].iter().chain(&[1; 48])) {
                ensure!(is(*way, OUTER[*family][0]), "{way}");
            }
            for (name, upload) in &mut uploads {
                let status = upload.wait(Duration::from_secs(50))?;
                ensure!(status.success(), "{name}: {status}: {}", upload.log());
                ensure!(sha256(&file)? == sha256(&nginx.files().join(&*name))?, "{name} differs");
            }
            Ok(())
        },
    );
}

#[test]
fn replies_leave_by_the_router_that_the_request_came_from() {
    lab(
        |text| text,
        |lab| {
            lab.wait_all()?;
            let _outside = Nginx::start(&lab.server, &lab.scratch)?;
            let file = lab.scratch.join("original");
            let copy = lab.scratch.join("copy");
            random_file(&file, 6)?;
            std::fs::copy(&file, _outside.files().join("original"))?;
            for family in 0..2 {
                for index in 0..2 {
                    let (from, to) = (TENANT[family][index], socket(SERVER[family][0], 80));
                    let got =
                        carried(lab, false, || download(&lab.tenant, from, to, &file, &copy))?;
                    ensure!(got[index] > 6 * MEGABYTE, "{from}: {got:?}");
                    ensure!(got[1 - index] < MEGABYTE, "{from}: {got:?}");
                }
            }
            drop(_outside);
            let _inside = Nginx::start(&lab.tenant, &lab.scratch)?;
            std::fs::copy(&file, _inside.files().join("original"))?;
            for family in 0..2 {
                for index in 0..2 {
                    let (from, to) = (SERVER[family][index], socket(EIP[family], 8080));
                    let got = carried(lab, true, || download(&lab.server, from, to, &file, &copy))?;
                    ensure!(got[index] > 6 * MEGABYTE, "{from}: {got:?}");
                    ensure!(got[1 - index] < MEGABYTE, "{from}: {got:?}");
                }
            }
            Ok(())
        },
    );
}

#[test]
fn a_reply_moves_when_its_router_dies() {
    lab(
        |text| text,
        |lab| {
            lab.wait_all()?;
            let nginx = Nginx::start(&lab.server, &lab.scratch)?;
            let file = lab.scratch.join("original");
            random_file(&file, 48)?;
            std::fs::copy(&file, nginx.files().join("original"))?;
            let mut downloads = Vec::new();
            let start = lab.received(false, 1)?;
            for family in 0..2 {
                let copy = lab.scratch.join(&format!("copy-{family}"));
                let mut command = curl(TENANT[family][1], "8M");
                let url = format!("http://{}/files/original", socket(SERVER[family][0], 80));
                command.arg("-o").arg(&copy).arg(url);
                let log = lab.scratch.join(&format!("download-{family}.log"));
                downloads.push((copy, lab.tenant.enter(|| Process::start(&mut command, &log))??));
            }
            wait_until("some replies", PATIENCE, || {
                Ok((lab.received(false, 1)? > start + 2 * MEGABYTE).then_some(()))
            })?;
            let other = lab.received(false, 0)?;
            lab.silence(false, 1)?;
            lab.wait_for(&INNER.map(|both| both[1]), "dead")?;
            for (copy, download) in &mut downloads {
                let status = download.wait(Duration::from_secs(50))?;
                ensure!(status.success(), "{status}: {}", download.log());
                ensure!(sha256(&file)? == sha256(copy)?, "the content has changed on the way");
            }
            let moved = lab.received(false, 0)? - other;
            ensure!(moved > 16 * MEGABYTE, "only {moved} bytes by the other router");
            Ok(())
        },
    );
}

#[test]
fn sessions_go_back_to_a_router_that_returns_if_they_shall() {
    for moves in [true, false] {
        lab(
            |text| {
                text.replace("return: stay", if moves { "return: move" } else { "return: stay" })
            },
            |lab| {
                lab.wait_all()?;
                let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
                let mut connections = connect(lab, 0, 24)?;
                connections.extend(connect(lab, 1, 24)?);
                let before = ways_of(lab, &connections)?;
                lab.silence(true, 1)?;
                lab.wait_for(&OUTER.map(|both| both[1]), "dead")?;
                connections.iter_mut().try_for_each(|one| one.echo("by the other one"))?;
                let meanwhile = ways_of(lab, &connections)?;
                ensure!(meanwhile.iter().all(|way| OUTER.iter().any(|both| is(*way, both[0]))));
                lab.speak(true, 1)?;
                lab.wait_for(&OUTER.map(|both| both[1]), "alive")?;
                connections.iter_mut().try_for_each(|one| one.echo("again"))?;
                let after = ways_of(lab, &connections)?;
                ensure!(after == if moves { before } else { meanwhile }, "moves: {moves}");
                // New flows take it in both cases.
                let fresh = connect(lab, 0, 24)?;
                let fresh = ways_of(lab, &fresh)?;
                ensure!(fresh.iter().any(|way| is(*way, OUTER[0][1])), "{fresh:?}");
                Ok(())
            },
        );
    }
}

#[test]
fn a_router_that_is_taken_out_keeps_its_sessions_and_a_restart_moves_nothing() {
    lab(
        |text| text,
        |lab| {
            lab.wait_all()?;
            let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
            let mut connections = connect(lab, 0, 24)?;
            let before = ways_of(lab, &connections)?;
            let config = lab.gateway.settings().config.clone();
            let text = std::fs::read_to_string(&config)?;
            std::fs::write(&config, text.replace("203.0.113.3 weight 2, ", ""))?;
            lab.wait_for(&[OUTER[0][1]], "draining")?;
            for _ in 0..2 {
                connections.iter_mut().try_for_each(|one| one.echo("still there"))?;
                ensure!(ways_of(lab, &connections)? == before);
                let fresh = connect(lab, 0, 12)?;
                let fresh = ways_of(lab, &fresh)?;
                ensure!(fresh.iter().all(|way| is(*way, OUTER[0][0])), "{fresh:?}");
                lab.gateway.kill9()?;
                lab.gateway.restart()?;
            }
            lab.wait_for(&[OUTER[0][1]], "draining")
        },
    );
}

#[test]
fn beside_another_bfd_daemon_the_neighbour_table_tells_who_is_alive() {
    lab(
        |text| text,
        |lab| {
            lab.wait_all()?;
            lab.gateway.terminate()?;
            let _beside = lab.speak_beside()?;
            lab.gateway.restart()?;
            for routers in [OUTER, INNER] {
                lab.wait_for(&routers.concat(), "alive")?;
            }
            wait_until("the problem to be told", PATIENCE, || {
                let problems = lab.next_hops()?["problems"].to_string();
                Ok(problems.contains("only by the neighbour table").then_some(()))
            })?;
            lab.kill(true, 1)?;
            lab.wait_for(&OUTER.map(|both| both[1]), "dead")
        },
    );
}

#[test]
fn without_bfd_the_neighbour_table_tells_who_is_dead_and_with_nobody_alive_all_is_dropped() {
    lab(
        |text| text.replace("next-hop-bfd: 100/100/3", "next-hop-bfd: off"),
        |lab| {
            for routers in [OUTER, INNER] {
                lab.wait_for(&routers.concat(), "alive")?;
            }
            let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
            let mut connections = connect(lab, 0, 24)?;
            lab.kill(true, 1)?;
            lab.wait_for(&[OUTER[0][1]], "dead")?;
            connections.iter_mut().try_for_each(|one| one.echo("by the other one"))?;
            let after = ways_of(lab, &connections)?;
            ensure!(after.iter().all(|way| is(*way, OUTER[0][0])), "{after:?}");
            lab.kill(true, 0)?;
            lab.wait_for(&[OUTER[0][0]], "dead")?;
            lab.tenant.enter(|| -> Result<()> {
                let probe = std::net::UdpSocket::bind((TENANT[0][0], 0))?;
                probe.send_to(b"nowhere\n", socket(SERVER[0][0], ECHO_PORT))?;
                Ok(())
            })??;
            wait_until("the packet to be counted", PATIENCE, || {
                let shown = lab.next_hops()?;
                let problems = shown["problems"].to_string();
                ensure!(problems.contains("external next hops, IPv4: none is alive"), "{shown}");
                Ok(shown["dropped"].as_u64().filter(|dropped| *dropped > 0).map(drop))
            })
        },
    );
}

/// The other side of BFD is FRR: killed, started again, and shut down by its administrator.
#[test]
fn flows_move_when_frr_dies_or_says_good_bye_and_come_back_with_it() {
    if !tier::frr() {
        return;
    }
    lab(
        |text| {
            let text = text.replace("return: stay", "return: move");
            text.replace("next-hop-hash: 5-tuple", "next-hop-hash: 5-tuple/source")
        },
        |lab| {
            lab.wait_all()?;
            let shown = lab.next_hops()?;
            for group in shown["groups"].as_array().context("no groups")? {
                let expected = if group["side"] == "external" { "5-tuple" } else { "source" };
                ensure!(group["hash"] == expected, "{group}");
            }
            lab.silence(true, 1)?;
            lab.wait_for(&OUTER.map(|both| both[1]), "dead")?;
            let peers =
                [(0, "203.0.113.2"), (1, "2001:db8:113::2")].map(|(family, gateway)| Peer {
                    local: OUTER[family][1].parse().expect("an address"),
                    remote: gateway.parse().expect("an address"),
                    interval: 100,
                });
            let mut frr = Frr::start(&lab.outer[1].ns, &lab.scratch, "b0", &peers)?;
            lab.wait_all()?;
            let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
            let mut connections = connect(lab, 0, 24)?;
            connections.extend(connect(lab, 1, 24)?);
            let before = ways_of(lab, &connections)?;
            let by_frr = before.iter().filter(|way| OUTER.iter().any(|both| is(**way, both[1])));
            ensure!(by_frr.count() > 8, "{before:?}");
            let moved = |connections: &mut Vec<TcpProbe>| -> Result<()> {
                lab.wait_for(&OUTER.map(|both| both[1]), "dead")?;
                connections.iter_mut().try_for_each(|one| one.echo("by the other one"))?;
                let now = ways_of(lab, connections)?;
                ensure!(
                    now.iter().all(|way| OUTER.iter().any(|both| is(*way, both[0]))),
                    "{now:?}"
                );
                Ok(())
            };
            let back = |connections: &mut Vec<TcpProbe>| -> Result<()> {
                lab.wait_all()?;
                connections.iter_mut().try_for_each(|one| one.echo("as before"))?;
                ensure!(ways_of(lab, connections)? == before, "not where they were");
                Ok(())
            };
            let at = Instant::now();
            frr.kill()?;
            moved(&mut connections)?;
            println!(
                "FRR killed: its flows are elsewhere after {:?}, detection 300 ms",
                at.elapsed()
            );
            frr.restart()?;
            back(&mut connections)?;

            let session = |peer: &Peer| {
                format!("peer {} local-address {} interface b0", peer.remote, peer.local)
            };
            let [one, other] = [session(&peers[0]), session(&peers[1])];
            frr.configure(&["bfd", &one, "shutdown", "exit", &other, "shutdown"])?;
            moved(&mut connections)?;
            frr.configure(&["bfd", &one, "no shutdown", "exit", &other, "no shutdown"])?;
            back(&mut connections)
        },
    );
}
