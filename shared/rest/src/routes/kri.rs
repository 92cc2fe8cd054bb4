//! `GET /_kri/{kri}`: a resource by its identifier.
//! Source: Kuma, `pkg/api-server/kri_endpoint.go`.

use ursa_model::{Kri, ResourceKey, hash::hashed, kri::InvalidKri};

use super::Answer;
use crate::{
    Site,
    call::{Call, shown},
    error::Error,
};

const TITLE: &str = "Could not retrieve a resource";

pub(super) async fn by_kri(call: Call) -> Answer {
    let text = call.param("kri");
    let kri: Kri = text.parse().map_err(|why| match why {
        InvalidKri::ShortName => Error::bad_request(format_args!("{why}: {:?}", text.split('_').nth(1).unwrap_or_default())),
        InvalidKri::Shape(_) | InvalidKri::Prefix => Error::bad_request(why),
    })?;
    let kind = kri.kind().ok_or(Error::not_found(TITLE))?;
    call.require_read(kind)?;
    let name = stored_name(&call.api().site, kind.descriptor().hashed, &kri);
    let resource = ResourceKey::new(kind, &kri.mesh, &name)
        .ok()
        .and_then(|k| call.catalog.get(&k).cloned())
        .ok_or(Error::not_found(TITLE))?;
    shown(&call, &resource)
}

/// What was made here has its own name; what came from elsewhere is stored under the hashed one, unless its kind is never hashed.
fn stored_name(site: &Site, is_hashed: bool, kri: &Kri) -> String {
    let local = kri.zone == site.zone().map_or("", |z| z.as_str());
    if local || !is_hashed {
        return kri.name.clone();
    }
    let extra: Vec<&str> = [kri.zone.as_str(), kri.namespace.as_str()]
        .into_iter()
        .filter(|v| !v.is_empty())
        .collect();
    hashed(&kri.mesh, &kri.name, &extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_resources_from_elsewhere_are_hashed() {
        let zone = Site::Zone {
            name: "west".parse().unwrap(),
            federated: true,
        };
        let name = |site: &Site, kri: &str| stored_name(site, true, &kri.parse().unwrap());
        assert_eq!(name(&zone, "kri_msvc_default_west__backend_"), "backend");
        assert_eq!(name(&zone, "kri_msvc_default_east__backend_"), "backend-d2622w4zxzdb6cfw");
        assert_eq!(name(&zone, "kri_mtp_default___allow-frontend_"), "allow-frontend-9586fw9x6wd94z46");
        assert_eq!(name(&Site::Global, "kri_mtp_default___allow-frontend_"), "allow-frontend");
        assert_eq!(name(&Site::Global, "kri_msvc_default_west__backend_"), "backend-d49vb4d82969fv4f");
        assert_eq!(stored_name(&zone, false, &"kri_m____default_".parse().unwrap()), "default");
    }
}
