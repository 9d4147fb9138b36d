//! Rejections become Events on the objects that they are about.
//!
//! Each is written once it has lasted for a while, so that what is only passing (a rule whose EIP comes
//! a moment later) makes no noise, and never twice: its name is made of what it says, so that
//! another process that says the same only counts it up. Not more than [`BURST`] at once and one
//! per second.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::object::ClusterObject;
use super::watch::{causes, text_of};
use super::{Message, Reporter};
use crate::crd::{DEFAULT_NAMESPACE, GROUP, Kind, ObjectRef, VERSION};
use crate::rejection::{Rejection, RejectionKind};

/// How long something must last before it is worth an Event.
const GRACE: Duration = Duration::from_secs(1);
/// The same for an object that waits for another.
const WAITING_GRACE: Duration = Duration::from_secs(10);
/// How many Events may be written at once.
const BURST: u32 = 20;

/// A rejection and the object that it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grievance {
    kind: Kind,
    name: String,
    namespace: Option<String>,
    uid: String,
    reason: &'static str,
    waits: bool,
    message: String,
}

impl Grievance {
    pub(super) fn new(rejection: &Rejection, about: &ObjectRef, object: &ClusterObject) -> Self {
        let field = rejection.field.as_ref().map_or_else(String::new, |field| format!("{field}: "));
        let waits = rejection.kind() == RejectionKind::Waiting;
        Self {
            kind: about.kind,
            name: about.name.rsplit('/').next().unwrap_or_default().to_owned(),
            namespace: object.namespace.clone(),
            uid: object.uid.clone(),
            reason: if waits { "Waiting" } else { "Rejected" },
            waits,
            message: format!("{field}{}", rejection.problem),
        }
    }

    fn event_name(&self, gateway: &str) -> String {
        let mut hasher = DefaultHasher::new();
        (gateway, &self.uid, &self.message).hash(&mut hasher);
        // The name of an object has at most 253 characters.
        let name: String = self.name.chars().take(230).collect();
        format!("{name}.{:016x}", hasher.finish())
    }
}

/// What is wrong now and since when, and what has been written.
#[derive(Default)]
struct Desk {
    pending: BTreeMap<Grievance, Instant>,
    written: BTreeSet<Grievance>,
}

impl Desk {
    /// Takes over what is wrong now. What is no longer wrong may be written again one day.
    fn receive(&mut self, grievances: Vec<Grievance>, now: Instant) {
        let current: BTreeSet<_> = grievances.into_iter().collect();
        self.written.retain(|grievance| current.contains(grievance));
        self.pending.retain(|grievance, _| current.contains(grievance));
        for grievance in current {
            if !self.written.contains(&grievance) {
                self.pending.entry(grievance).or_insert(now);
            }
        }
    }

    /// The next one that has lasted long enough.
    fn due(&self, now: Instant) -> Option<Grievance> {
        let lasted = |(grievance, since): &(&Grievance, &Instant)| {
            let grace = if grievance.waits { WAITING_GRACE } else { GRACE };
            now.duration_since(**since) >= grace
        };
        self.pending.iter().find(lasted).map(|(grievance, _)| grievance.clone())
    }

    fn done(&mut self, grievance: Grievance) {
        self.pending.remove(&grievance);
        self.written.insert(grievance);
    }
}

/// Writes Events until nobody complains any more.
pub(super) async fn run(
    client: kube::Client,
    reporter: Reporter,
    mut complaints: UnboundedReceiver<Vec<Grievance>>,
    sender: UnboundedSender<Message>,
) {
    let mut desk = Desk::default();
    let mut tokens = BURST;
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = complaints.recv() => match received {
                Some(grievances) => desk.receive(grievances, Instant::now()),
                None => return,
            },
            _ = ticks.tick() => {
                tokens = (tokens + 1).min(BURST);
                while tokens > 0 && let Some(grievance) = desk.due(Instant::now()) {
                    tokens -= 1;
                    match write(&client, &reporter, &grievance).await {
                        Ok(()) => {
                            desk.done(grievance);
                            let _ = sender.send(Message::Events(None));
                        }
                        Err(text) => {
                            let _ = sender.send(Message::Events(Some(text)));
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// Writes one Event, or counts up the one that says the same.
async fn write(
    client: &kube::Client,
    reporter: &Reporter,
    grievance: &Grievance,
) -> Result<(), String> {
    let namespace = grievance.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let event = event(reporter, grievance, namespace);
    match events.create(&PostParams::default(), &event).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let again = json!({"lastTimestamp": event.last_timestamp});
            let name = event.metadata.name.unwrap_or_default();
            let patched = events.patch(&name, &PatchParams::default(), &Patch::Merge(&again)).await;
            patched.map(drop).map_err(|error| failure("patch", &error))
        }
        Err(error) => Err(failure("create", &error)),
    }
}

fn failure(verb: &str, error: &kube::Error) -> String {
    let because = match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("forbidden; RBAC must grant the verb {verb} on events ({})", status.message)
        }
        kube::Error::Api(status) => text_of(status),
        other => causes(other),
    };
    format!("failed to {verb} events: {because}")
}

fn event(reporter: &Reporter, grievance: &Grievance, namespace: &str) -> Event {
    let now = Time(Timestamp::now());
    Event {
        metadata: ObjectMeta {
            name: Some(grievance.event_name(&reporter.gateway)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(grievance.kind.as_str().to_owned()),
            name: Some(grievance.name.clone()),
            namespace: grievance.namespace.clone(),
            uid: Some(grievance.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(grievance.reason.to_owned()),
        message: Some(format!("gateway {}: {}", reporter.gateway, grievance.message)),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(EventSource {
            component: Some("vpc-gateway".to_owned()),
            host: Some(reporter.host.clone()),
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grievance(name: &str, waits: bool) -> Grievance {
        Grievance {
            kind: Kind::IptablesFipRule,
            name: name.to_owned(),
            namespace: None,
            uid: "u".to_owned(),
            reason: "Rejected",
            waits,
            message: "spec.eip: missing".to_owned(),
        }
    }

    #[test]
    fn what_is_passing_makes_no_event_and_nothing_makes_two() {
        let (mut desk, start) = (Desk::default(), Instant::now());
        desk.receive(vec![grievance("a", false), grievance("b", true)], start);
        assert_eq!(desk.due(start), None);
        let later = start + GRACE;
        assert_eq!(desk.due(later), Some(grievance("a", false)));
        desk.done(grievance("a", false));
        desk.receive(vec![grievance("a", false), grievance("b", true)], later);
        assert_eq!(desk.due(later), None, "it has been written, and the other still waits");
        assert_eq!(desk.due(start + WAITING_GRACE), Some(grievance("b", true)));
        desk.receive(Vec::new(), later);
        assert_eq!(desk.due(start + WAITING_GRACE), None);
        desk.receive(vec![grievance("a", false)], later);
        assert_eq!(desk.due(later + GRACE), Some(grievance("a", false)), "wrong once more");
    }

    #[test]
    fn the_name_of_an_event_depends_on_what_it_says() {
        let (a, b) = (grievance("a", false), grievance("a", false));
        assert_eq!(a.event_name("gw"), b.event_name("gw"));
        assert_ne!(a.event_name("gw"), a.event_name("gw2"));
        let long = grievance(&"x".repeat(253), false);
        assert!(long.event_name("gw").len() <= 253);
    }
}
