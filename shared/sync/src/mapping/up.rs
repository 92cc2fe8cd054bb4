//! A zone's resources as the global gets them.
//! Source: kds.md 4.2 (mapping), 4.6 (ZoneProvidedFilter).

use ursa_model::{
    Labels, Origin, Resource, ZoneName,
    labels::{DELETION_GRACE, ORIGIN, ZONE},
};

use super::{Draft, Entry, Problem, hashed_name};
use crate::peer::Features;

/// Only what was made in this zone goes up, under its zone's name, always hashed.
pub(super) fn map(resource: &Resource, zone: &ZoneName) -> Result<Option<Entry>, Problem> {
    if !matches!(resource.label(ORIGIN), None | Some("zone")) {
        return Ok(None);
    }
    let mut labels: Labels = resource.labels.clone();
    labels.insert(ORIGIN.into(), Origin::Zone.as_str().into());
    labels.insert(ZONE.into(), zone.as_str().into());
    labels.remove(DELETION_GRACE);
    let name = hashed_name(resource.mesh(), resource.name(), &mut labels);
    Draft {
        source: resource,
        name,
        labels,
        spec: &resource.spec,
        status: resource.status.as_ref().filter(|_| resource.kind().descriptor().has_status),
        from: None,
        needs: Features::default(),
    }
    .finish(Ok)
}
