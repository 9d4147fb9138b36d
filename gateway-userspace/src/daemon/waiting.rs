//! Before the start: a cluster has to tell everything once, and the gateway has to be there.

use std::fs;
use std::path::Path;

use super::publish::publish_waiting;
use super::{BEAT, DaemonError, Settings, Signals, Wish, log};
use crate::clock;
use crate::crd::{Kind, ObjectRef};
use crate::dataplane::pins::Pins;
use crate::desired::egress_name;
use crate::host::sysctl;
use crate::source::feed::Feed;
use crate::status::{self, Status};
use gateway_common::records::Unmatched;
use tokio::time::sleep;

/// What a cluster that has not told everything yet is reported as.
const FIRST_LIST: &str = "waits for the first list of";

/// Waits until there is something to start with; `false` if a signal ends that.
///
/// Meanwhile nothing is forwarded: a gateway without programs would forward untranslated. A data
/// plane that runs already goes on.
pub(super) async fn until_complete(
    settings: &Settings,
    feed: &mut Feed,
    signals: &mut Signals,
) -> Result<bool, DaemonError> {
    if !feed.may_bring_the_gateway() {
        return Ok(true);
    }
    if settings.unmatched == Unmatched::Drop && !Pins::new(&settings.name).exist() {
        sysctl::remember(&settings.state, &settings.internal, &settings.external)?;
        stop_forwarding(&[&settings.internal, &settings.external]);
    }
    let started_at = clock::unix_seconds();
    let mut said: Vec<String> = Vec::new();
    let first_list = |line: &str| line.starts_with(FIRST_LIST);
    loop {
        let missing = missing(settings, feed)?;
        if missing.is_empty() {
            return Ok(true);
        }
        let mut problems = feed.problems();
        problems.extend(missing);
        // The list of what is missing gets shorter; that is worth no line each time.
        let listing = said.iter().any(|line| first_list(line));
        let fresh = |line: &&String| !(said.contains(*line) || listing && first_list(line));
        problems.iter().filter(fresh).for_each(log);
        let status = Status {
            gateway: settings.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at,
            netns: settings.netns.clone(),
            capabilities: settings.capabilities.clone(),
            source: feed.status(),
            problems: problems.clone(),
            ..Status::default()
        };
        publish_waiting(settings, &status);
        settings.state.save(status::FILE, &status)?;
        said = problems;
        tokio::select! {
            wish = signals.next() => {
                if let Wish::Stop = wish {
                    return Ok(false);
                }
            }
            () = sleep(BEAT) => {}
            () = feed.woken() => feed.settle().await,
        }
    }
}

/// What is still missing, one line each.
fn missing(settings: &Settings, feed: &mut Feed) -> Result<Vec<String>, DaemonError> {
    let waits_for = feed.status().waits_for;
    if !feed.synced() {
        let kinds = waits_for.join(", ");
        return Ok(vec![format!("{FIRST_LIST} {kinds}")]);
    }
    // A `VpcNatGateway` has no namespace, so `NAMESPACE/NAME` is none.
    let wanted = [
        ObjectRef::new(Kind::VpcNatGateway, settings.gateway.clone()),
        ObjectRef::new(Kind::VpcEgressGateway, egress_name(&settings.gateway)),
    ];
    let snapshot = feed.snapshot()?;
    if snapshot.objects.iter().any(|source| wanted.contains(&source.object_ref())) {
        return Ok(Vec::new());
    }
    let reasons = snapshot.rejections.iter();
    let mut lines: Vec<_> = reasons
        .filter(|rejection| rejection.object.as_ref().is_some_and(|it| wanted.contains(it)))
        .map(ToString::to_string)
        .collect();
    let [nat, egress] = wanted;
    lines.push(match settings.gateway.contains('/') {
        true => format!("waits for {egress}"),
        false => format!("waits for {nat} or {egress}"),
    });
    Ok(lines)
}

/// Turns forwarding off where it is on. It is turned on again with the start.
fn stop_forwarding(interfaces: &[&str]) {
    for family in ["ipv4", "ipv6"] {
        for interface in interfaces {
            let setting = Path::new("/proc/sys/net").join(family).join("conf").join(interface);
            // An interface or a family that is not there forwards nothing.
            let _ = fs::write(setting.join("forwarding"), "0");
        }
    }
}
