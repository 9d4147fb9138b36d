//! List, then watch, for ever: one resource.
//!
//! A watch that ends goes on from where it was; one whose place the server has forgotten (410) starts
//! with a new list. Bookmarks keep the place fresh where nothing happens. Whatever fails is told and
//! tried again, after a pause that grows to [`LONGEST`].

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::Resource as _;
use kube::api::{Api, ApiResource, DynamicObject, ObjectMeta, WatchEvent};
use kube::core::Status;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep};

use super::Message;
use super::cache::Change;
use super::object::{ClusterObject, key_of};
use super::pods::{list_params, watch_params};
use super::resources::Resource;
use crate::clock;
use crate::metrics::gateway::Heard;

/// How many objects are asked for at once.
const PAGE: u32 = 500;
/// When the server ends a watch, in seconds; a connection that died silently is noticed then.
const WATCH_SECONDS: u32 = 120;
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// What was tried, as RBAC calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    List,
    Watch,
}

impl Verb {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Watch => "watch",
        }
    }
}

/// What is made of the objects of a resource.
pub(super) trait Watched: Sized + Send + 'static {
    /// What is asked for: objects, or their metadata alone.
    type Object: kube::Resource<DynamicType = ApiResource> + Clone + Debug + DeserializeOwned + Send;
    /// Which objects, by their fields; empty: all.
    const FIELDS: &'static str;

    fn decode(resource: &Resource, object: &Self::Object) -> Self;

    /// How a change is told.
    fn message(kind: &'static str, change: Change<Self>, at: std::time::Instant) -> Message;
}

impl Watched for ClusterObject {
    type Object = DynamicObject;
    const FIELDS: &'static str = "";

    fn decode(resource: &Resource, object: &DynamicObject) -> Self {
        Self::decode(resource, object)
    }

    fn message(kind: &'static str, change: Change<Self>, at: std::time::Instant) -> Message {
        Message::Change(kind, change, at)
    }
}

/// Watches one resource.
pub(super) struct Watcher<T: Watched> {
    resource: Resource,
    api: Api<T::Object>,
    sender: UnboundedSender<Message>,
    /// How far we have read; `None`: a list is due.
    version: Option<String>,
    listed: bool,
    heard: Heard,
}

/// Why a try ended.
struct Ended {
    verb: Verb,
    error: kube::Error,
}

impl<T: Watched> Watcher<T> {
    pub(super) fn new(
        resource: Resource,
        (client, sender, heard): (kube::Client, UnboundedSender<Message>, Heard),
    ) -> Self {
        let api = Api::all_with(client, &resource.api());
        Self { resource, api, sender, version: None, listed: false, heard }
    }

    /// Goes on until nobody listens.
    pub(super) async fn run(mut self) {
        let mut pause = SHORTEST;
        while !self.sender.is_closed() {
            let started = Instant::now();
            let Err(Ended { verb, error }) = self.follow().await else {
                // Servers that end every watch at once must not keep us busy.
                sleep(SHORTEST.saturating_sub(started.elapsed())).await;
                pause = SHORTEST;
                continue;
            };
            if started.elapsed() > LONGEST {
                pause = SHORTEST;
            }
            if self.accept(verb, &error) {
                continue;
            }
            let text = describe(&self.resource, verb, &error);
            self.send(Message::Trouble(self.resource.kind, text));
            let jitter = f64::from(fastrand::u8(..)) / 512.0;
            sleep(pause.mul_f64(1.0 + jitter)).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Whether an error is nothing to speak of.
    fn accept(&mut self, verb: Verb, error: &kube::Error) -> bool {
        let kube::Error::Api(status) = error else { return false };
        if verb == Verb::Watch && !matches!(status.code, 401 | 403 | 429) {
            // 410 mostly; whatever else the server holds against our place, a list gives a new one.
            self.version = None;
            self.send(Message::Expired);
            return status.code == 410;
        }
        if status.code == 404 && self.resource.optional && !self.listed {
            self.listed = true;
            self.tell(Change::Listed(Vec::new()));
        }
        false
    }

    /// Lists if that is due, and watches until the server ends it.
    async fn follow(&mut self) -> Result<(), Ended> {
        let mut version = match self.version.take() {
            Some(version) => version,
            None => self.list().await.map_err(|error| Ended { verb: Verb::List, error })?,
        };
        let result = self.watch(&mut version).await;
        self.version = Some(version);
        result.map_err(|error| Ended { verb: Verb::Watch, error })
    }

    async fn list(&mut self) -> Result<String, kube::Error> {
        let mut params = list_params(T::FIELDS).limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = self.api.list(&params).await?;
            self.heard.now();
            let decode = |object| T::decode(&self.resource, object);
            objects.extend(page.items.iter().map(decode));
            let metadata = page.metadata;
            match metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => {
                    self.listed = true;
                    self.tell(Change::Listed(objects));
                    self.send(Message::Fine(self.resource.kind));
                    return Ok(metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }

    async fn watch(&self, version: &mut String) -> Result<(), kube::Error> {
        let params = watch_params(T::FIELDS).timeout(WATCH_SECONDS);
        let mut events = pin!(self.api.watch(&params, version).await?);
        self.send(Message::Fine(self.resource.kind));
        while let Some(event) = events.try_next().await? {
            self.heard.now();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.tell(Change::Applied(Box::new(T::decode(&self.resource, &object))));
                    remember(version, object.meta());
                }
                WatchEvent::Deleted(object) => {
                    self.tell(Change::Deleted(key_of(object.meta())));
                    remember(version, object.meta());
                }
                WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
            }
        }
        Ok(())
    }

    fn tell(&self, change: Change<T>) {
        self.send(T::message(self.resource.kind, change, clock::now()));
    }

    fn send(&self, message: Message) {
        // Nobody listens any more when the process ends.
        let _ = self.sender.send(message);
    }
}

fn remember(version: &mut String, metadata: &ObjectMeta) {
    if let Some(fresh) = &metadata.resource_version {
        version.clone_from(fresh);
    }
}

/// What went wrong, for people: what was tried on what, and what to do about it.
pub(super) fn describe(resource: &Resource, verb: Verb, error: &kube::Error) -> String {
    let (plural, verb, qualified) = (resource.plural, verb.as_str(), resource.qualified());
    let because = match error {
        kube::Error::Api(status) if status.code == 404 => format!(
            "the API server has no such resource; the CRD {qualified} of Kube-OVN is not \
             installed"
        ),
        other => because(verb, &qualified, other),
    };
    format!("failed to {verb} {plural}: {because}")
}

/// Why a request failed, for people. `resource` is what RBAC calls it.
pub(crate) fn because(verb: &str, resource: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match status.code {
            403 => format!(
                "forbidden; RBAC must grant the verb {verb} on {resource} ({})",
                status.message
            ),
            401 => format!(
                "the API server does not accept our credentials; look at the token of the \
                 ServiceAccount or at the kubeconfig ({})",
                status.message
            ),
            _ => text_of(status),
        },
        other => causes(other),
    }
}

pub(super) fn text_of(status: &Status) -> String {
    format!("the API server answered {} {}: {}", status.code, status.reason, status.message)
}

/// An error of the client with its causes, none twice.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::resources::NAMESPACES;
    use super::*;
    use crate::crd::Kind;

    #[test]
    fn a_missing_permission_is_named_by_verb_and_resource() {
        let resource = Resource::of(Kind::IptablesEip).unwrap();
        let status = Status { code: 403, message: "no".into(), ..Status::default() };
        let said = describe(&resource, Verb::Watch, &kube::Error::Api(Box::new(status)));
        assert_eq!(
            said,
            "failed to watch iptables-eips: forbidden; RBAC must grant the verb watch on \
             iptables-eips.kubeovn.io (no)"
        );
        let status = Status { code: 403, message: "no".into(), ..Status::default() };
        let said = describe(&NAMESPACES, Verb::List, &kube::Error::Api(Box::new(status)));
        assert_eq!(
            said,
            "failed to list namespaces: forbidden; RBAC must grant the verb list on namespaces (no)"
        );
    }
}
