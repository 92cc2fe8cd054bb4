//! Whether a resource may be written or deleted as it is meant to be: the checks that every way of writing passes.
//! Pure. Source: Kuma's order of checks (`reference/api.md` 1.2); the rules themselves are in [`crate::rules`].

use ursa_model::{Kind, Labels, Resource, ResourceKey, Violations, ZoneName, kind::zone_insight::ZoneInsight};
use ursa_state::Catalog;

use crate::{
    Site,
    rules::{self, Document},
};

/// Titles of what is wrong with a resource that is new, and with one that is there.
pub(crate) const CREATE: &str = "Failed to create a resource";
pub(crate) const UPDATE: &str = "Failed to update a resource";
const UPDATE_LABELS: &str = "Could not update a resource";

/// Everything that is wrong is told at once, under the title of the first check that failed.
pub(crate) struct Refused {
    pub(crate) title: &'static str,
    pub(crate) found: Violations,
}

/// What was found so far.
#[derive(Default)]
struct Checks {
    title: Option<&'static str>,
    found: Violations,
}

impl Checks {
    fn add(&mut self, title: &'static str, found: Violations) {
        if found.is_empty() {
            return;
        }
        self.title.get_or_insert(title);
        for violation in found.0 {
            if !self.found.0.contains(&violation) {
                self.found.0.push(violation);
            }
        }
    }
}

/// Checks a document that is to become the resource of that identity, in the place of `existing`; `secret` is what
/// [`rules::check_token_secret`] found, which takes its time. Gives the labels to store.
pub(crate) fn document(
    site: &Site,
    kind: Kind,
    mesh: &str,
    name: &str,
    document: &Document,
    existing: Option<&Resource>,
    secret: Violations,
) -> Result<Labels, Refused> {
    let mut checks = Checks::default();
    checks.add(rules::PROCESS, rules::check_request(site, kind, mesh, name, document));
    checks.add(rules::PROCESS, document.found.clone());
    checks.add(rules::PROCESS, secret);
    checks.add("Bad Request", rules::check_workload(kind, document));
    let labels = rules::compute_labels(site, kind, mesh, name, document.labels.clone(), &document.spec);
    if let Some(existing) = existing {
        checks.add(UPDATE_LABELS, rules::check_owned(site, existing));
        let current = rules::compute_labels(site, kind, mesh, name, existing.labels.clone(), &existing.spec);
        checks.add(UPDATE_LABELS, rules::check_immutable(&current, &labels));
    }
    let title = if existing.is_some() { UPDATE } else { CREATE };
    checks.add(title, rules::check_label_name(kind, name));
    match checks.title {
        None => Ok(labels),
        Some(title) => Err(Refused {
            title,
            found: checks.found,
        }),
    }
}

/// A Mesh with proxies and a Zone that is connected stay.
pub(crate) fn unused(catalog: &Catalog, unknown_zones: &[ZoneName], subject: &ResourceKey) -> Violations {
    let mut found = Violations::default();
    match subject.kind() {
        Kind::Mesh => {
            if !catalog.list_in(Kind::Dataplane, subject.name()).is_empty() {
                found.add("mesh", "unable to delete mesh, there are still some dataplanes attached");
            }
            for zone in unknown_zones {
                found.add(
                    "mesh",
                    format!("unable to delete mesh, the dataplanes of zone {zone} are not known since it has not connected yet"),
                );
            }
        }
        Kind::Zone => {
            let insight = ResourceKey::new(Kind::ZoneInsight, "", subject.name())
                .ok()
                .and_then(|k| catalog.get(&k).cloned());
            if insight.and_then(|i| i.spec::<ZoneInsight>().ok()).is_some_and(|i| i.is_online()) {
                found.add(
                    "zone",
                    "unable to delete Zone, Zone CP is still connected, please shut it down first",
                );
            }
        }
        _ => {}
    }
    found
}
