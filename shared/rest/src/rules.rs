//! What a write may contain: reading the document of a PUT, and the rules about its names, labels and origin.
//! Pure. Source: Kuma, `pkg/api-server/resource_crud_endpoints.go` and `reference/api.md` 1.2.
//! Stricter: what another control plane owns can be neither updated nor deleted here, whatever the request's labels say.

use serde_json::{Map, Value};
use ursa_model::{
    Kind, Labels, Origin, Resource, Scope, Violations,
    kind::{Encoding, dataplane::Dataplane, secret::Secret},
    labels, name,
};
use ursa_pki::token::Family;

use crate::{Site, error::Error};

/// Title of what is wrong with a request itself.
pub(crate) const PROCESS: &str = "Could not process a resource";
/// Mesh of a spec kind whose document names none: the default in Kuma's schemas.
const DEFAULT_MESH: &str = "default";
/// A resource is sent to the global under `<zone>.<name>` at the worst, which must fit as well.
const MAX_GLOBAL_NAME: usize = 253;

/// A document that was read: identity and labels as written, the spec canonical and valid unless something was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) kind: String,
    pub(crate) mesh: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) spec: Value,
    /// What is wrong with the spec; fields are paths within the document.
    pub(crate) found: Violations,
}

impl Document {
    /// Reads a document as a resource of `kind`.
    ///
    /// # Errors
    /// It is no object, or what it says of itself cannot be read: nothing more can be told about it then.
    pub(crate) fn read(kind: Kind, value: Value) -> Result<Self, Error> {
        let Value::Object(mut map) = value else {
            return Err(Error::unparsable(kind, "expected an object"));
        };
        let descriptor = kind.descriptor();
        let mut unread = Violations::default();
        let mut document = Self {
            kind: take_text(&mut map, "type", &mut unread),
            mesh: take_text(&mut map, "mesh", &mut unread),
            name: take_text(&mut map, "name", &mut unread),
            labels: take_labels(&mut map, &mut unread),
            spec: Value::Null,
            found: Violations::default(),
        };
        if !unread.is_empty() {
            return Err(Error::unreadable(kind, unread));
        }
        let (spec, at) = match descriptor.encoding {
            Encoding::Proto(_) => {
                for ignored in ["creationTime", "modificationTime", "kri", "snis"] {
                    map.remove(ignored);
                }
                (Value::Object(map), "")
            }
            Encoding::Json => {
                if document.kind != descriptor.name {
                    return Err(Error::invalid_field(
                        PROCESS,
                        "type",
                        format!("type in body should be one of [{kind}]"),
                    ));
                }
                if document.mesh.is_empty() && descriptor.scope == Scope::Mesh {
                    document.mesh = DEFAULT_MESH.into();
                }
                let spec = map
                    .remove("spec")
                    .filter(|s| !s.is_null())
                    .unwrap_or_else(|| Value::Object(Map::new()));
                (spec, "spec")
            }
        };
        document.take_spec(kind, spec, at);
        Ok(document)
    }

    /// The document that a stored resource would be today.
    pub(crate) fn of(stored: &Resource) -> Self {
        let mut document = Self {
            kind: stored.kind().name().to_owned(),
            mesh: stored.mesh().to_owned(),
            name: stored.name().to_owned(),
            labels: stored.labels.clone(),
            spec: Value::Null,
            found: Violations::default(),
        };
        let at = match stored.kind().descriptor().encoding {
            Encoding::Proto(_) => "",
            Encoding::Json => "spec",
        };
        document.take_spec(stored.kind(), stored.spec.clone(), at);
        document
    }

    fn take_spec(&mut self, kind: Kind, spec: Value, at: &str) {
        if !spec.is_object() {
            self.found.add("spec", "must be an object");
            return;
        }
        match (kind.descriptor().canonical)(spec) {
            Ok(spec) => self.spec = spec,
            Err(found) => self.found = below(at, found),
        }
    }
}

/// Violations of a spec as violations of the document that it is in.
fn below(at: &str, mut found: Violations) -> Violations {
    for violation in &mut found.0 {
        violation.field = match (at, violation.field.as_str()) {
            ("", field) => field.to_owned(),
            (at, "") => at.to_owned(),
            (at, field) => format!("{at}.{field}"),
        };
    }
    found
}

fn take_text(map: &mut Map<String, Value>, key: &str, unread: &mut Violations) -> String {
    match map.remove(key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        Some(_) => {
            unread.add(key, "must be a text");
            String::new()
        }
    }
}

fn take_labels(map: &mut Map<String, Value>, unread: &mut Violations) -> Labels {
    let mut labels = Labels::new();
    match map.remove("labels") {
        None | Some(Value::Null) => {}
        Some(Value::Object(all)) => {
            for (key, value) in all {
                match value {
                    Value::String(value) => drop(labels.insert(key, value)),
                    _ => unread.add(label_field(&key), "must be a text"),
                }
            }
        }
        Some(_) => unread.add("labels", "must be an object of texts"),
    }
    labels
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
pub(crate) fn check_workload(kind: Kind, document: &Document) -> Violations {
    let mut found = Violations::default();
    if let Some(workload) = document.labels.get(labels::WORKLOAD)
        && kind == Kind::Dataplane
        && !workload.is_empty()
        && !name::is_dns1035_label(workload)
    {
        found.add(
            label_field(labels::WORKLOAD),
            "must be a valid DNS-1035 label (at most 63 characters)",
        );
    }
    found
}

/// What a secret that signs or revokes tokens must hold. Takes a millisecond for a key.
pub(crate) fn check_token_secret(kind: Kind, mesh: &str, name: &str, spec: &Value) -> Violations {
    let mut found = Violations::default();
    if let Some(family) = token_family(kind, mesh, name)
        // Without data it has been found wanting already.
        && let Some(content) = serde_json::from_value::<Secret>(spec.clone()).ok().and_then(|s| s.bytes())
        && let Err(why) = family.check(name, &content)
    {
        found.add("data", why.to_string());
    }
    found
}

/// The tokens that a secret is about.
pub(crate) fn token_family(kind: Kind, mesh: &str, name: &str) -> Option<Family> {
    match kind {
        Kind::Secret => Family::of_mesh(mesh, name),
        Kind::GlobalSecret => Family::of_global(name),
        _ => None,
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
