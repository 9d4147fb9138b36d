//! Metrics and probes of a gateway whose objects come from an API server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_tests::lab::capabilities::{DOCUMENTED, keeps};
use gateway_tests::lab::gateway::{Gateway, Settings};
use gateway_tests::lab::kube::ApiServer;
use gateway_tests::lab::manifests::Manifests;
use gateway_tests::lab::scrape::{Page, ask, free_port, scrape};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;
use gateway_userspace::metrics::catalog::{COMMON, GATEWAY};
use serde_json::json;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn readiness_follows_what_the_api_server_has_told() {
    let Some(binary) = tier::cluster() else { return };
    let world = World::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
    let name = world.net.name.clone();
    let mut api = ApiServer::start(&name, &binary).unwrap_or_else(|e| panic!("{e:#}"));
    let server = free_port().expect("a port");
    let mut arguments = api.arguments(true).expect("a kubeconfig");
    arguments.extend(["--metrics".to_owned(), server.to_string()]);
    let settings =
        Settings { binary, name: name.clone(), object: None, config: PathBuf::new(), arguments };
    let mut gateway = Gateway::prepare(&world.net, settings).unwrap_or_else(|e| panic!("{e:#}"));
    gateway.launch().expect("a daemon");
    let fail =
        |gateway: &Gateway, error: anyhow::Error| -> ! { panic!("{error:#}\n{}", gateway.log()) };
    let waits = wait_until("a daemon that waits", SOON, || {
        let (status, body) = ask(server, "/readyz", &[])?;
        ensure!(status == 503, "{status} {body}");
        ensure!(body.contains(&format!("waits for VpcNatGateway/{name}")), "{body}");
        let page = scrape(server)?;
        ensure!(page.get("ready")? == 0.0 && page.get("source_synced")? == 1.0, "{page:?}");
        Ok(Some(()))
    });
    waits.unwrap_or_else(|e| fail(&gateway, e));
    assert_eq!(ask(server, "/healthz", &[]).expect("an answer").0, 200);

    let manifests = Manifests { ipv6: false, ..Manifests::standard(&name) };
    api.apply_as_kube_ovn(&manifests).unwrap_or_else(|e| panic!("{e:#}"));
    api.put("IptablesDnatRule", "bad", &json!({"eip": 1})).expect("a bad object");
    let at = |what: &str, check: &dyn Fn(&Page) -> Result<()>| {
        wait_until(what, SOON, || {
            let page = scrape(server)?;
            check(&page)?;
            Ok(Some(page))
        })
    };
    let page = at("ready", &|page| {
        ensure!(page.get("ready")? == 1.0, "not ready");
        ensure!(page.get("rules{kind=\"dnat\",state=\"active\"}")? == 5.0, "not all rules");
        ensure!(page.get("rejections{kind=\"schema\"}")? == 1.0, "nothing is rejected");
        Ok(())
    });
    let page = page.unwrap_or_else(|e| fail(&gateway, e));
    page.agrees_with(&[COMMON, GATEWAY]).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(page.get("source_objects{kind=\"IptablesDnatRule\"}").expect("objects"), 6.0);
    assert!(page.get("source_last_event_age_seconds").expect("an age") < 60.0);
    assert_eq!(ask(server, "/readyz", &[]).expect("an answer").0, 200);
    // The thread that talks to the API server needs nothing, the others what is documented.
    keeps(gateway.pid().expect("a daemon"), DOCUMENTED).unwrap_or_else(|e| fail(&gateway, e));

    api.kill().expect("a kill");
    let away = at("an API server that is away", &|page| {
        ensure!(page.get("source_connected")? == 0.0, "still connected");
        ensure!(page.get("ready")? == 1.0, "what was applied stays");
        Ok(())
    });
    away.unwrap_or_else(|e| fail(&gateway, e));
    api.launch().unwrap_or_else(|e| panic!("{e:#}"));
    let back = at("an API server that is back", &|page| {
        ensure!(page.get("source_connected")? == 1.0, "still away");
        Ok(())
    });
    back.unwrap_or_else(|e| fail(&gateway, e));
}
