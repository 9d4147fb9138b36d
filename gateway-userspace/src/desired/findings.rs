//! Where a value stands, and the collection of what was found there.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Owner;
use crate::crd::ObjectRef;
use crate::rejection::{Note, Problem, Rejection, Remark};
use crate::source::SourceObject;

/// An object, or an entry of a list in a v1.7 gateway, and the gateway it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) object: ObjectRef,
    pub(super) source: Arc<SourceObject>,
    /// The gateway that the object concerns, once that is known.
    pub(super) gateway: Option<String>,
    /// The path of what is read: `spec`, or an entry below it.
    base: String,
}

impl Site {
    pub(super) fn new(source: &Arc<SourceObject>) -> Self {
        let (object, source) = (source.object_ref(), Arc::clone(source));
        Self { object, source, gateway: None, base: "spec".to_owned() }
    }

    /// The entry of a list in `spec`.
    pub(super) fn entry(&self, list: &str, index: usize) -> Self {
        let part = format!("{list}[{index}]");
        Self { base: format!("spec.{part}"), object: self.object.part(part), ..self.clone() }
    }

    pub(super) fn of_gateway(&self, gateway: Option<&str>) -> Self {
        Self { gateway: gateway.map(str::to_owned), ..self.clone() }
    }

    pub(super) fn owner(&self) -> Owner {
        Owner { object: self.object.clone(), origin: self.source.origin_of(&self.base) }
    }

    fn path(&self, field: &str) -> String {
        if field.starts_with("metadata.") {
            return field.to_owned();
        }
        format!("{}.{field}", self.base)
    }
}

/// Everything that was found, and which objects are not acted upon because of it.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) rejections: Vec<Rejection>,
    pub(super) notes: Vec<Note>,
    /// The objects with a rejection.
    pub(super) rejected: BTreeSet<ObjectRef>,
    /// The objects that were left out for want of another.
    pub(super) left_out: BTreeSet<ObjectRef>,
}

impl Findings {
    pub(super) fn reject(&mut self, site: &Site, field: &str, problem: Problem) {
        let path = site.path(field);
        self.rejected.insert(site.object.whole());
        self.rejections.push(Rejection {
            origin: site.source.origin_of(&path),
            // The path names the entry.
            object: Some(site.object.whole()),
            field: Some(path),
            gateway: site.gateway.clone(),
            problem,
        });
    }

    pub(super) fn note(&mut self, site: &Site, field: &str, remark: Remark) {
        let path = site.path(field);
        self.notes.push(Note {
            origin: site.source.origin_of(&path),
            object: Some(site.object.whole()),
            field: Some(path),
            gateway: site.gateway.clone(),
            remark,
        });
    }

    /// Notes that the object is not acted upon because another one was rejected.
    pub(super) fn leave_out(&mut self, site: &Site, field: &str, because: ObjectRef) {
        self.left_out.insert(site.object.whole());
        self.note(site, field, Remark::LeftOut { because });
    }

    /// The value, or a rejection of the field.
    pub(super) fn accept<T>(
        &mut self,
        site: &Site,
        field: &str,
        value: Result<T, Problem>,
    ) -> Option<T> {
        value.map_err(|problem| self.reject(site, field, problem)).ok()
    }

    /// As [`Self::accept`] for a CIDR, with a note when host bits were cleared.
    pub(super) fn accept_cidr(
        &mut self,
        site: &Site,
        field: &str,
        text: &str,
    ) -> Option<ipnet::IpNet> {
        let cidr = self.accept(site, field, super::value::cidr(text))?;
        let network = cidr.trunc();
        if cidr != network {
            let remark = Remark::HostBits { written: text.to_owned(), cidr: network };
            self.note(site, field, remark);
        }
        Some(network)
    }
}
