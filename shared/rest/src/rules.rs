//! What a write may contain: reading the document of a PUT, and the rules about its names, labels and origin.
//! Pure. Source: Kuma, `pkg/api-server/resource_crud_endpoints.go` and `reference/api.md` 1.2.
//! Stricter: what another control plane owns can be neither updated nor deleted here, whatever the request's labels say.

use serde_json::{Map, Value};
use ursa_model::{
    Kind, Labels, Origin, Resource, Scope, Violations,
    kind::{Encoding, dataplane::Dataplane},
    labels, name,
};

use crate::{Site, error::Error};

/// Title of what is wrong with a request itself.
pub(crate) const PROCESS: &str = "Could not process a resource";
/// Mesh of a spec kind whose document names none: the default in Kuma's schemas.
const DEFAULT_MESH: &str = "default";
/// A resource is sent to the global under `<zone>.<name>` at the worst, which must fit as well.
const MAX_GLOBAL_NAME: usize = 253;

/// A document that was read: identity and labels as written, the spec canonical and valid.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) kind: String,
    pub(crate) mesh: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) spec: Value,
}

impl Document {
    /// Reads a document as a resource of `kind`.
    pub(crate) fn read(kind: Kind, value: Value) -> Result<Self, Error> {
        let Value::Object(mut map) = value else {
            return Err(Error::unparsable(kind, "expected an object"));
        };
        let descriptor = kind.descriptor();
        let mut document = Self {
            kind: take_text(kind, &mut map, "type")?,
            mesh: take_text(kind, &mut map, "mesh")?,
            name: take_text(kind, &mut map, "name")?,
            labels: take_labels(kind, &mut map)?,
            spec: Value::Null,
        };
        let (spec, at) = match descriptor.encoding {
            Encoding::Proto(_) => {
                for ignored in ["creationTime", "modificationTime", "kri", "snis"] {
                    map.remove(ignored);
                }
                (Value::Object(map), "")
            }
            Encoding::Json => {
                if document.kind != descriptor.name {
                    return Err(Error::invalid_field(PROCESS, "", format!("type in body should be one of [{kind}]")));
                }
                if document.mesh.is_empty() && descriptor.scope == Scope::Mesh {
                    document.mesh = DEFAULT_MESH.into();
                }
                let spec = map
                    .remove("spec")
                    .filter(|s| !s.is_null())
                    .unwrap_or_else(|| Value::Object(Map::new()));
                if !spec.is_object() {
                    return Err(Error::invalid_field(PROCESS, "spec", "must be an object"));
                }
                (spec, "spec")
            }
        };
        document.spec = (descriptor.canonical)(spec).map_err(|found| spec_error(kind, at, found))?;
        Ok(document)
    }
}

/// Violations of a spec. Those without a field mean that it could not be read as the kind's schema.
fn spec_error(kind: Kind, at: &str, mut found: Violations) -> Error {
    if at.is_empty()
        && let Some(unread) = found.0.iter().find(|v| v.field.is_empty())
    {
        return Error::unparsable(kind, &unread.reason);
    }
    for violation in &mut found.0 {
        violation.field = match (at, violation.field.as_str()) {
            ("", field) => field.to_owned(),
            (at, "") => at.to_owned(),
            (at, field) => format!("{at}.{field}"),
        };
    }
    Error::invalid(PROCESS, found)
}

fn take_text(kind: Kind, map: &mut Map<String, Value>, key: &str) -> Result<String, Error> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Error::unparsable(kind, format!("{key} must be a text"))),
    }
}

fn take_labels(kind: Kind, map: &mut Map<String, Value>) -> Result<Labels, Error> {
    let wrong = || Error::unparsable(kind, "labels must be an object of texts");
    match map.remove("labels") {
        None | Some(Value::Null) => Ok(Labels::new()),
        Some(Value::Object(all)) => all
            .into_iter()
            .map(|(k, v)| if let Value::String(v) = v { Ok((k, v)) } else { Err(wrong()) })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

fn label_field(key: &str) -> String {
    format!("labels[\"{key}\"]")
}

/// The identity and labels of a document against the URL and the rules of this control plane (step 4 of a PUT).
pub(crate) fn check_request(site: &Site, kind: Kind, mesh: &str, name: &str, document: &Document) -> Violations {
    let descriptor = kind.descriptor();
    let mut found = Violations::default();
    if document.name != name {
        found.add("name", "name from the URL has to be the same as in body");
    }
    if let Site::Zone {
        name: zone,
        federated: true,
    } = site
        && zone.as_str().len() + 1 + name.len() >= MAX_GLOBAL_NAME
    {
        found.add("name", "the length of the name must be shorter");
    }
    if document.kind != descriptor.name {
        found.add("type", "type from the URL has to be the same as in body");
    }
    if descriptor.scope == Scope::Mesh && document.mesh != mesh {
        found.add("mesh", "mesh from the URL has to be the same as in body");
    }
    check_labels(site, kind, document, &mut found);
    if let Err(why) = name::check_resource_name(&document.name) {
        found.add("name", why.to_string());
    }
    if descriptor.scope == Scope::Mesh
        && let Err(why) = name::check_stored_name(&document.mesh)
    {
        found.add("mesh", why.to_string());
    }
    found
}

fn check_labels(site: &Site, kind: Kind, document: &Document, found: &mut Violations) {
    let labels = &document.labels;
    let origin = labels.get(labels::ORIGIN).map(String::as_str);
    if let Some(origin) = origin.filter(|o| !matches!(*o, "global" | "zone")) {
        found.add(label_field(labels::ORIGIN), format!("unknown resource origin {origin:?}"));
    }
    if site.is_global() && origin.is_some_and(|o| o != "global") {
        found.add(label_field(labels::ORIGIN), "the origin label must be set to 'global'");
    }
    if site.is_federated() && is_spec_kind(kind) && origin != Some("zone") {
        found.add(label_field(labels::ORIGIN), "the origin label must be set to 'zone'");
    }
    if let Some(zone) = site.zone()
        && origin != Some("global")
    {
        if labels.get(labels::ZONE).is_some_and(|z| z != zone.as_str()) {
            found.add(
                label_field(labels::ZONE),
                format!("{} label should have {zone} value", labels::ZONE),
            );
        }
        if labels.get(labels::MESH).is_some_and(|m| *m != document.mesh) {
            found.add(
                label_field(labels::MESH),
                format!("{} label must not differ from mesh set on resource", labels::MESH),
            );
        }
    }
    if kind.descriptor().policy.is_some()
        && let Some(role) = labels.get(labels::POLICY_ROLE).filter(|r| *r != "system")
    {
        found.add(
            label_field(labels::POLICY_ROLE),
            format!("{} label should have system value, got {role}", labels::POLICY_ROLE),
        );
    }
    labels::validate(labels, found);
}

/// Kinds with a `spec` key; Kuma calls them plugin-originated.
fn is_spec_kind(kind: Kind) -> bool {
    kind.descriptor().encoding == Encoding::Json
}

/// Whether this control plane owns a stored resource; the others' cannot be updated or deleted here.
pub(crate) fn check_owned(site: &Site, stored: &Resource) -> Violations {
    let mut found = Violations::default();
    match (site, stored.origin()) {
        (Site::Global, Some(Origin::Zone)) => found.add(label_field(labels::ORIGIN), "the origin label must be set to 'global'"),
        (Site::Zone { federated: true, .. }, origin) => {
            let ours = if is_spec_kind(stored.kind()) {
                origin == Some(Origin::Zone)
            } else {
                origin != Some(Origin::Global)
            };
            if !ours {
                found.add(label_field(labels::ORIGIN), "the origin label must be set to 'zone'");
            }
        }
        _ => {}
    }
    found
}

/// The workload of a Dataplane becomes part of its identity, so it must be a DNS label (step 7).
pub(crate) fn check_workload(kind: Kind, document: &Document) -> Result<(), Error> {
    match document.labels.get(labels::WORKLOAD) {
        Some(workload) if kind == Kind::Dataplane && !workload.is_empty() && !name::is_dns1035_label(workload) => {
            Err(Error::bad_request(format_args!(
                "{}: must be a valid DNS-1035 label (at most 63 characters)",
                label_field(labels::WORKLOAD)
            )))
        }
        _ => Ok(()),
    }
}

/// The labels to store (step 8).
pub(crate) fn compute_labels(site: &Site, kind: Kind, mesh: &str, name: &str, labels: Labels, spec: &Value) -> Labels {
    let listeners = if kind == Kind::Dataplane {
        serde_json::from_value::<Dataplane>(spec.clone()).ok().map(|d| d.zone_listeners())
    } else {
        None
    };
    labels::computed(site.labels(), kind, mesh, name, labels, listeners)
}

/// A resource never moves to another zone: `kuma.io/zone` can be neither changed nor removed.
pub(crate) fn check_immutable(current: &Labels, new: &Labels) -> Violations {
    let mut found = Violations::default();
    match (current.get(labels::ZONE), new.get(labels::ZONE)) {
        (Some(was), None) => found.add(label_field(labels::ZONE), format!("is immutable, cannot be removed (was {was:?})")),
        (Some(was), Some(is)) if was != is => {
            found.add(
                label_field(labels::ZONE),
                format!("is immutable, cannot be changed from {was:?} to {is:?}"),
            );
        }
        _ => {}
    }
    found
}

/// Names that end up in host names must be DNS labels (step 9).
pub(crate) fn check_label_name(kind: Kind, name: &str) -> Violations {
    let mut found = Violations::default();
    if kind.descriptor().label_name && !name::is_dns1035_label(name) {
        found.add("name", name::InvalidName::NotLabel.to_string());
    }
    found
}
