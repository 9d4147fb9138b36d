//! Metrics and probes over HTTP, against what was really sent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gateway_tests::lab::addresses::B;
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::egress::EgressLab;
use gateway_tests::lab::manifests::{DNAT_ECHO, EIP_DNAT, EIP_FIP, EIP_SNAT, Manifests};
use gateway_tests::lab::probe::{self, UdpProbe};
use gateway_tests::lab::running::{ECHO_FIP, ECHO_Y, Running};
use gateway_tests::lab::scrape::{Page, ask, free_port, scrape};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Host, Options};
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;
use gateway_userspace::metrics::catalog::{COMMON, GATEWAY, SELECTOR};

/// Ports in use are counted every 5 s.
const SOON: Duration = Duration::from_secs(15);

fn start(binary: &std::path::Path, arguments: &[&str]) -> (Running, SocketAddr) {
    let server = free_port().expect("a port");
    let at = server.to_string();
    let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
    let arguments = [&["--metrics", &at], arguments].concat();
    let manifests = Manifests { ipv6: false, ..Manifests::standard(&world.net.name) };
    let gateway = world
        .start_gateway_with(binary, &manifests, &arguments)
        .unwrap_or_else(|e| panic!("{e:#}"));
    (Running { gateway, world }, server)
}

/// As many datagrams and answers over one flow.
fn exchanges(host: &Host, to: SocketAddrV4, count: usize) -> Result<()> {
    host.ns.enter(|| {
        let probe = UdpProbe::connect(0, to)?;
        (0..count).try_for_each(|_| probe.exchange(&[7; 100]).map(drop))
    })?
}

/// Waits for a page on which `check` finds nothing wrong.
fn await_page(lab: &Running, server: SocketAddr, check: impl Fn(&Page) -> Result<()>) -> Page {
    let page = wait_until("a page of metrics", SOON, || {
        let page = scrape(server)?;
        check(&page)?;
        Ok(Some(page))
    });
    lab.must("metrics", page)
}

fn equal(page: &Page, wanted: &[(&str, f64)]) -> Result<()> {
    for (series, wanted) in wanted {
        let is = page.get(series)?;
        ensure!(is == *wanted, "{series} is {is}, not {wanted}");
    }
    Ok(())
}

#[test]
fn what_is_exported_is_what_was_sent() {
    let Some(binary) = tier::gateway() else { return };
    let (lab, server) = start(&binary, &[]);
    let net = &lab.world.net;
    assert_eq!(ask(server, "/readyz", &[]).unwrap(), (200, "ok\n".into()));
    assert_eq!(ask(server, "/healthz", &[]).unwrap(), (200, "ok\n".into()));
    let fresh = scrape(server).unwrap_or_else(|e| panic!("{e:#}"));
    fresh.agrees_with(&[COMMON, GATEWAY]).unwrap_or_else(|e| panic!("{e:#}"));

    lab.must("FIP in", exchanges(&net.x, ECHO_FIP, 5));
    lab.must("SNAT", exchanges(&net.b, ECHO_Y, 3));
    lab.must("DNAT", exchanges(&net.y, DNAT_ECHO, 4));
    lab.must("refused", probe::udp_refused(&net.d.ns, ECHO_Y));

    let eip = |name: &str, eip: std::net::Ipv4Addr| format!("{name}{{eip=\"{eip}\"}}");
    let packets = |address| eip("eip_packets_total", address);
    let page = await_page(&lab, server, |page| {
        equal(
            page,
            &[
                (&packets(EIP_FIP), 10.0),
                (&packets(EIP_SNAT), 6.0),
                (&packets(EIP_DNAT), 8.0),
                (&eip("eip_sessions", EIP_SNAT), 1.0),
                (&eip("eip_sessions", EIP_DNAT), 1.0),
                (&eip("eip_sessions_opened_total", EIP_SNAT), 1.0),
                (&eip("eip_refused_flows_total", EIP_SNAT), 0.0),
                (&eip("eip_ports_in_use", EIP_SNAT), 1.0),
                (&eip("eip_ports_in_use", EIP_DNAT), 0.0),
                ("sessions", 2.0),
                ("sessions_limit", 262_144.0),
                ("sessions_opened_total", 2.0),
                ("ports", 64_512.0),
                ("eips", 4.0),
                ("rules{kind=\"fip\",state=\"active\"}", 1.0),
                ("rules{kind=\"snat\",state=\"active\"}", 2.0),
                ("rules{kind=\"dnat\",state=\"active\"}", 5.0),
                ("map_entries{map=\"DNATS_V4\"}", 5.0),
                ("map_entries{map=\"RULES\"}", 8.0),
                ("rounds_total{result=\"failed\"}", 0.0),
                ("rejections{kind=\"value\"}", 0.0),
                ("ready", 1.0),
                ("source_synced", 1.0),
                ("source_connected", 1.0),
                ("other_eips_packets_total", 0.0),
            ],
        )
    });
    // Rules and drops, by name, are what the other verbs say.
    let rules = lab.gateway.json("rules").expect("rules");
    for rule in rules.as_array().expect("a list") {
        let (kind, name) = (rule["kind"].as_str().unwrap(), rule["name"].as_str().unwrap());
        let labels = format!("{{kind=\"{kind}\",rule=\"{name}\",id=\"{}\"}}", rule["id"]);
        for unit in ["packets", "bytes"] {
            let exported = page.get(&format!("rule_{unit}_total{labels}")).unwrap();
            assert_eq!(Some(exported), rule[unit].as_f64(), "{labels} {unit}");
        }
    }
    let drops = lab.gateway.json("drops").expect("drops");
    let mut dropped = 0.0;
    for drop in drops.as_array().expect("a list").iter().filter(|drop| drop["verdict"] == "drop") {
        let reason = drop["reason"].as_str().unwrap();
        let exported = page.get(&format!("dropped_packets_total{{reason=\"{reason}\"}}")).unwrap();
        assert_eq!(Some(exported), drop["packets"].as_f64(), "{reason}");
        dropped += exported;
    }
    assert!(dropped >= 1.0, "{drops}");
    let rounds = page.get("rounds_total{result=\"changed\"}").unwrap();
    assert!(rounds >= 1.0);
    assert_eq!(page.get("apply_duration_seconds_count").unwrap(), rounds);
    assert!(page.get("process_resident_memory_bytes").unwrap() > 1e6);
    page.agrees_with(&[COMMON, GATEWAY]).unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn what_is_not_shown_one_by_one_is_summed_and_only_rises() {
    let Some(binary) = tier::gateway() else { return };
    let (lab, server) = start(&binary, &["--metrics-limit", "1"]);
    let net = &lab.world.net;
    lab.must("DNAT", exchanges(&net.y, DNAT_ECHO, 4));
    lab.must("SNAT", exchanges(&net.b, ECHO_Y, 3));
    let sum = |page: &Page, kind: &str| {
        let other = page.get(&format!("other_rules_packets_total{{kind=\"{kind}\"}}"))?;
        Ok::<_, anyhow::Error>(other)
    };
    let all =
        |page: &Page| page.sum("rule_packets_total").1 + page.sum("other_rules_packets_total").1;
    let page = await_page(&lab, server, |page| {
        ensure!(all(page) == 14.0, "{} packets", all(page));
        Ok(())
    });
    assert_eq!(page.sum("rule_packets_total").0, 1, "one rule is shown");
    assert_eq!(page.sum("eip_packets_total").0, 1, "one EIP is shown");
    let eips = page.sum("eip_packets_total").1 + page.sum("other_eips_packets_total").1;
    assert_eq!(eips, 14.0);
    let before = sum(&page, "dnat").unwrap() + sum(&page, "snat").unwrap();
    // The rules go; what they carried has been carried.
    let mut rest = Manifests { ipv6: false, ..Manifests::standard(&net.name) };
    rest.dnats.clear();
    lab.world.configure(&rest.yaml()).expect("manifests");
    let page = await_page(&lab, server, |page| {
        equal(page, &[("rules{kind=\"dnat\",state=\"active\"}", 0.0)])?;
        // Rules are read from the maps, changes are counted once all of them are made.
        let deleted = page.get("map_changes_total{action=\"delete\"}")?;
        ensure!(deleted >= 5.0, "{deleted} entries deleted");
        Ok(())
    });
    let after = sum(&page, "dnat").unwrap() + sum(&page, "snat").unwrap();
    assert!(after >= before, "{after} after {before}");
}

#[test]
fn a_page_beside_ten_thousand_rules_shows_a_thousand() {
    let Some(binary) = tier::gateway() else { return };
    let (lab, server) = start(&binary, &[]);
    let mut manifests = Manifests { ipv6: false, ..Manifests::standard(&lab.world.net.name) };
    let few = manifests.dnats.len();
    for n in 0..10_000 {
        let at = SocketAddrV4::new(EIP_DNAT, 20_000 + n);
        manifests.forward(&format!("many-{n}"), "tcp", at, B, 80);
    }
    lab.must("rules", lab.world.configure(&manifests.yaml()));
    let all = (few + 10_000) as f64;
    let check = |page: &Page| equal(page, &[("rules{kind=\"dnat\",state=\"active\"}", all)]);
    let page = await_page(&lab, server, check);
    assert_eq!(page.sum("rule_packets_total").0, 1_000);
    let mut times = Vec::new();
    while times.len() < 5 {
        // A page is made anew once a second.
        let page = scrape(server).expect("a page");
        let time = page.get("scrape_seconds").expect("a time");
        if times.last() != Some(&time) {
            times.push(time);
        }
    }
    times.sort_by(f64::total_cmp);
    let (_, body) = ask(server, "/metrics", &[]).expect("a page");
    println!("measured: a page beside 10 000 rules: {} s, {} bytes", times[2], body.len());
}

#[test]
fn a_probe_says_what_is_missing() {
    let Some(binary) = tier::gateway() else { return };
    let (lab, server) = start(&binary, &[]);
    lab.world.net.gateway.ip("link del net1").expect("a link to delete");
    let answer = wait_until("not ready", SOON, || {
        let answer = ask(server, "/readyz", &[])?;
        ensure!(answer.0 == 503, "{answer:?}");
        Ok(Some(answer.1))
    });
    let answer = lab.must("readyz", answer);
    assert!(answer.contains("net1") && answer.trim_end().lines().count() == 1, "{answer}");
    let page = await_page(&lab, server, |page| equal(page, &[("ready", 0.0)]));
    assert!(page.get("problems{step=\"interfaces\"}").unwrap() >= 1.0);
    assert_eq!(ask(server, "/healthz", &[]).unwrap().0, 200);
}

#[test]
fn nonsense_and_slow_clients_hurt_nobody() {
    let Some(binary) = tier::gateway() else { return };
    let (lab, server) = start(&binary, &[]);
    assert_eq!(ask(server, "/nothing", &[]).unwrap().0, 404);
    assert_eq!(ask(server, "/metrics", &["-X", "POST", "-d", "x=1"]).unwrap().0, 405);
    assert_eq!(ask(server, "/metrics", &["-I"]).unwrap().0, 200);
    let long = format!("X-Long: {}", "x".repeat(100_000));
    assert_ne!(ask(server, "/metrics", &["-H", &long]).map_or(0, |answer| answer.0), 200);
    for nonsense in
        [&b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"[..], b"\r\n\r\n\0\0", b"GET\n"]
    {
        let mut stream = TcpStream::connect(server).expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        stream.write_all(nonsense).expect("bytes sent");
        let began = Instant::now();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        assert!(began.elapsed() < Duration::from_secs(5), "kept for {:?}", began.elapsed());
    }

    // More clients than there are places, none of which ends its request.
    let slow: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(server).expect("a connection");
            stream.write_all(b"GET /metrics HTT").expect("bytes sent");
            stream
        })
        .collect();
    let mut rest = Manifests { ipv6: false, ..Manifests::standard(&lab.world.net.name) };
    let at = SocketAddrV4::new(EIP_DNAT, 7070);
    rest.forward("late", "tcp", at, B, ECHO_PORT);
    lab.world.configure(&rest.yaml()).expect("manifests");
    let applied =
        wait_until("a rule beside slow clients", Duration::from_secs(2), || lab.accepts(at));
    lab.must("a rule beside slow clients", applied);
    let served = wait_until("a place", SOON, || {
        Ok(Some(ask(server, "/metrics", &[]).context("no place yet")?))
    });
    assert_eq!(lab.must("a place", served).0, 200);
    drop(slow);
}

#[test]
fn a_selector_exports_its_next_hops() {
    if tier::gateway().is_none() {
        return;
    }
    let server = free_port().expect("a port");
    let mut lab = EgressLab::build("vgmet").unwrap_or_else(|e| panic!("{e:#}"));
    lab.start().unwrap_or_else(|e| panic!("{e:#}"));
    lab.start_selector(&["--metrics", &server.to_string()]).unwrap_or_else(|e| panic!("{e:#}"));
    let page = wait_until("next hops", SOON, || {
        let page = scrape(server)?;
        let (count, alive) = page.sum("next_hop_alive");
        ensure!(count > 0 && alive == count as f64, "{alive} of {count} are alive");
        Ok(Some(page))
    });
    let page = page.unwrap_or_else(|e| panic!("{e:#}"));
    page.agrees_with(&[COMMON, SELECTOR]).unwrap_or_else(|e| panic!("{e:#}"));
    let groups = page.sum("next_hop_slots").1 / 1024.0;
    assert!(groups >= 1.0 && groups.fract() == 0.0, "{groups} groups");
    assert_eq!(ask(server, "/readyz", &[]).unwrap().0, 200);
}
