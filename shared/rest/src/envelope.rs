//! Resources as the API shows them: flat for protobuf kinds, with `spec` and `status` for the others.
//! Source: `reference/api.md` 3.1 (Kuma, `pkg/core/resources/model/rest`). Keys are written in Kuma's order.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use ursa_model::{
    Kind, Kri, Resource, Scope, Timestamp,
    kind::{Encoding, mesh_service::MeshService},
    sni::sni,
};

/// A resource alone.
pub(crate) struct Envelope<'a>(pub(crate) &'a Resource);

/// A Dataplane or Zone with what is known about it.
pub(crate) struct Overview<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) insight: Option<&'a Resource>,
}

/// Something computed on reading, in the shape of a flat resource of global scope.
pub(crate) struct Computed<'a, T> {
    pub(crate) kind: &'static str,
    pub(crate) name: &'a str,
    pub(crate) created: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) spec: T,
}

/// The insight kind of a kind, and the names of both in an overview.
pub(crate) fn insight_of(kind: Kind) -> Option<(Kind, &'static str, &'static str, &'static str)> {
    match kind {
        Kind::Zone => Some((Kind::ZoneInsight, "ZoneOverview", "zone", "zoneInsight")),
        Kind::Dataplane => Some((Kind::DataplaneInsight, "DataplaneOverview", "dataplane", "dataplaneInsight")),
        _ => None,
    }
}

fn meta<M: SerializeMap>(map: &mut M, kind: &str, resource: &Resource) -> Result<(), M::Error> {
    map.serialize_entry("type", kind)?;
    if resource.kind().descriptor().scope == Scope::Mesh {
        map.serialize_entry("mesh", resource.mesh())?;
    }
    map.serialize_entry("name", resource.name())?;
    map.serialize_entry("creationTime", &resource.created.rfc3339())?;
    map.serialize_entry("modificationTime", &resource.modified.rfc3339())?;
    if !resource.labels.is_empty() {
        map.serialize_entry("labels", &resource.labels)?;
    }
    if let Some(kri) = Kri::of(resource) {
        map.serialize_entry("kri", &kri.to_string())?;
    }
    Ok(())
}

impl Serialize for Envelope<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let resource = self.0;
        let descriptor = resource.kind().descriptor();
        let mut map = s.serialize_map(None)?;
        meta(&mut map, descriptor.name, resource)?;
        match descriptor.encoding {
            Encoding::Proto(_) => {
                for (key, value) in resource.spec.as_object().into_iter().flatten() {
                    map.serialize_entry(key, value)?;
                }
            }
            Encoding::Json => {
                let snis = snis(resource);
                if !snis.is_empty() {
                    map.serialize_entry("snis", &snis)?;
                }
                map.serialize_entry("spec", &resource.spec)?;
                if descriptor.has_status {
                    match &resource.status {
                        Some(status) => map.serialize_entry("status", status)?,
                        None => map.serialize_entry("status", &empty_status(resource.kind()))?,
                    }
                }
            }
        }
        map.end()
    }
}

impl Serialize for Overview<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Some((_, kind, spec, insight)) = insight_of(self.resource.kind()) else {
            return Envelope(self.resource).serialize(s);
        };
        let mut map = s.serialize_map(None)?;
        meta(&mut map, kind, self.resource)?;
        map.serialize_entry(spec, &self.resource.spec)?;
        if let Some(found) = self.insight {
            map.serialize_entry(insight, &found.spec)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Flat<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
    #[serde(rename = "creationTime")]
    created: String,
    #[serde(rename = "modificationTime")]
    modified: String,
    #[serde(flatten)]
    spec: &'a T,
}

impl<T: Serialize> Serialize for Computed<'_, T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let (created, modified) = (self.created.rfc3339(), self.modified.rfc3339());
        Flat {
            kind: self.kind,
            name: self.name,
            created,
            modified,
            spec: &self.spec,
        }
        .serialize(s)
    }
}

#[derive(Serialize)]
struct Sni {
    port: u32,
    sni: String,
}

/// One SNI per port of a destination, by port. A port whose SNI would be invalid has none.
fn snis(resource: &Resource) -> Vec<Sni> {
    if !resource.kind().descriptor().destination {
        return Vec::new();
    }
    let Ok(service) = resource.spec::<MeshService>() else {
        return Vec::new();
    };
    let mut snis: Vec<Sni> = service
        .ports
        .iter()
        .filter_map(|p| {
            Some(Sni {
                port: p.port,
                sni: sni(resource, &p.section())?,
            })
        })
        .collect();
    snis.sort_by(|a, b| (a.port, &a.sni).cmp(&(b.port, &b.sni)));
    snis
}

/// The status of a resource that has none yet: Go writes nested structs even when they are empty.
fn empty_status(kind: Kind) -> Value {
    match kind {
        Kind::MeshService => json!({"tls": {}, "dataplaneProxies": {}}),
        _ => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ursa_model::{Labels, ResourceKey, labels};

    fn resource(kind: Kind, mesh: &str, name: &str, labels: &[(&str, &str)], spec: Value) -> Resource {
        Resource {
            key: ResourceKey::new(kind, mesh, name).unwrap(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>(),
            spec,
            status: None,
            owner: None,
            created: Timestamp::default(),
            modified: Timestamp::default(),
            version: 1,
            create_revision: 1,
            mod_revision: 1,
        }
    }

    /// Source: Kuma, crud goldens put_meshes_00 and put_meshservice_01.
    #[test]
    fn both_shapes() {
        let mesh = serde_json::to_string(&Envelope(&resource(Kind::Mesh, "", "default", &[], json!({})))).unwrap();
        assert_eq!(
            mesh,
            r#"{"type":"Mesh","name":"default","creationTime":"0001-01-01T00:00:00Z","modificationTime":"0001-01-01T00:00:00Z","kri":"kri_m____default_"}"#
        );
        let spec = json!({"state": "Unavailable", "selector": {}, "ports": [{"port": 6379, "targetPort": 6379, "appProtocol": "tcp"}]});
        let service = resource(Kind::MeshService, "default", "redis", &[(labels::ZONE, "default")], spec.clone());
        assert_eq!(
            serde_json::to_value(Envelope(&service)).unwrap(),
            json!({
                "type": "MeshService", "mesh": "default", "name": "redis",
                "creationTime": "0001-01-01T00:00:00Z", "modificationTime": "0001-01-01T00:00:00Z",
                "labels": {"kuma.io/zone": "default"}, "kri": "kri_msvc_default_default__redis_",
                "snis": [{"port": 6379, "sni": "sni.msvc.default.default.redis.6379"}],
                "spec": spec, "status": {"tls": {}, "dataplaneProxies": {}},
            })
        );
        let secret = serde_json::to_value(Envelope(&resource(Kind::Secret, "m", "s", &[], json!({"data": "dGVzdAo="})))).unwrap();
        assert_eq!((secret["data"].as_str(), secret.get("kri")), (Some("dGVzdAo="), None));
    }

    /// Source: Kuma, meshes_mesh1_dataplanes_overview_name_tew.json.
    #[test]
    fn an_overview_keeps_the_identity_of_its_resource() {
        let dataplane = resource(Kind::Dataplane, "mesh1", "dp", &[], json!({"networking": {"address": "127.0.0.1"}}));
        let alone = serde_json::to_value(Overview {
            resource: &dataplane,
            insight: None,
        })
        .unwrap();
        assert_eq!(
            (alone["type"].as_str(), alone["kri"].as_str(), &alone["dataplane"]),
            (Some("DataplaneOverview"), Some("kri_dp_mesh1___dp_"), &dataplane.spec)
        );
        assert!(alone.get("dataplaneInsight").is_none());
    }
}
