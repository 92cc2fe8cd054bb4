//! How resources look on the KDS wire and, for kinds that are protobuf, how their JSON and bytes correspond.
//! JSON <-> protobuf goes through the compiled descriptors (protobuf's JSON mapping), so no kind needs hand-written code.
//! Source: kds.md 2.3 and 2.5.

use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::{
    kind::{Encoding, Kind},
    labels::{Labels, MAX_LABELS},
    resource::{InvalidKey, ResourceKey},
    validate::Violations,
};
use ursa_proto::kds::{KumaResource, kuma_resource::Meta};

/// `Any.type_url` of every resource in a KDS response.
pub const RESOURCE_TYPE_URL: &str = "type.googleapis.com/kuma.mesh.v1alpha1.KumaResource";
const TYPE_PREFIX: &str = "type.googleapis.com/";

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(ursa_proto::FILE_DESCRIPTOR_SET).expect("the build script wrote a valid descriptor set"));

/// Why bytes or JSON from a peer are no resource.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the message is no KumaResource: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the resource has no {0}")]
    Missing(&'static str),
    #[error("unexpected type {got:?}, want {want:?}")]
    TypeUrl { got: String, want: String },
    #[error("the spec is no valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("more than {MAX_LABELS} labels")]
    Labels,
    #[error(transparent)]
    Key(#[from] InvalidKey),
    #[error("{key}: {source}")]
    Invalid { key: ResourceKey, source: Violations },
}

fn message(full_name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(full_name)
        .expect("the table of kinds names messages of our own .proto files")
}

/// Protobuf JSON mapping of `json` as message `full_name`; unknown fields are ignored.
pub fn json_to_proto(full_name: &str, json: &Value) -> Result<Vec<u8>, serde_json::Error> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let dynamic = DynamicMessage::deserialize_with_options(message(full_name), json, &options)?;
    Ok(dynamic.encode_to_vec())
}

/// The other way; default values are left out, 64-bit integers become texts, as Go's jsonpb does.
pub fn proto_to_json(full_name: &str, bytes: &[u8]) -> Result<Value, Error> {
    let dynamic = DynamicMessage::decode(message(full_name), bytes)?;
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())?)
}

/// A resource as KDS carries it, decoded and checked: the spec is canonical and valid by its kind's rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Incoming {
    pub key: ResourceKey,
    pub labels: Labels,
    pub spec: Value,
    pub status: Option<Value>,
}

/// Encodes a resource. `labels` and `name` are those after the sender's mapping.
pub fn encode(
    kind: Kind,
    mesh: &str,
    name: &str,
    labels: &Labels,
    spec: &Value,
    status: Option<&Value>,
) -> Result<Bytes, serde_json::Error> {
    let any = |value: &Value| -> Result<prost_types::Any, serde_json::Error> {
        Ok(match kind.descriptor().encoding {
            Encoding::Json => prost_types::Any {
                type_url: String::new(),
                value: serde_json::to_vec(value)?,
            },
            Encoding::Proto(name) => prost_types::Any {
                type_url: format!("{TYPE_PREFIX}{name}"),
                value: json_to_proto(name, value)?,
            },
        })
    };
    let resource = KumaResource {
        meta: Some(Meta {
            name: name.into(),
            mesh: mesh.into(),
            version: String::new(),
            labels: labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        }),
        spec: Some(any(spec)?),
        status: status.map(any).transpose()?,
    };
    Ok(resource.encode_to_vec().into())
}

/// Decodes and checks one resource of `kind`. [`Error::Invalid`] concerns this resource alone; the other errors mean that
/// the peer does not speak the protocol.
pub fn decode(kind: Kind, type_url: &str, bytes: &[u8]) -> Result<Incoming, Error> {
    if type_url != RESOURCE_TYPE_URL {
        return Err(Error::TypeUrl {
            got: type_url.chars().take(200).collect(),
            want: RESOURCE_TYPE_URL.into(),
        });
    }
    let resource = KumaResource::decode(bytes)?;
    let meta = resource.meta.ok_or(Error::Missing("meta"))?;
    if meta.labels.len() > MAX_LABELS {
        return Err(Error::Labels);
    }
    let key = ResourceKey::new(kind, &meta.mesh, &meta.name)?;
    let spec = any_to_json(kind, &resource.spec.ok_or(Error::Missing("spec"))?)?;
    let status = match resource.status {
        Some(any) if kind.descriptor().has_status => Some(any_to_json(kind, &any)?),
        _ => None,
    };
    let spec = (kind.descriptor().canonical)(spec).map_err(|source| Error::Invalid { key: key.clone(), source })?;
    Ok(Incoming {
        key,
        labels: meta.labels.into_iter().collect(),
        spec,
        status,
    })
}

fn any_to_json(kind: Kind, any: &prost_types::Any) -> Result<Value, Error> {
    match kind.descriptor().encoding {
        Encoding::Json => Ok(serde_json::from_slice(&any.value)?),
        Encoding::Proto(name) => {
            let want = format!("{TYPE_PREFIX}{name}");
            if any.type_url != want {
                return Err(Error::TypeUrl {
                    got: any.type_url.chars().take(200).collect(),
                    want,
                });
            }
            proto_to_json(name, &any.value)
        }
    }
}

/// `<name>.<mesh>`: the name of a resource within KDS, also in `removed_resources`.
pub fn kds_name(mesh: &str, name: &str) -> String {
    format!("{name}.{mesh}")
}

/// Splits at the last dot, as Kuma does; without a dot the mesh is empty. Errors as [`ResourceKey::new`].
pub fn parse_kds_name(kind: Kind, text: &str) -> Result<ResourceKey, InvalidKey> {
    let (name, mesh) = text.rsplit_once('.').unwrap_or((text, ""));
    ResourceKey::new(kind, mesh, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_json_kind_travels_as_raw_json_without_type_url() {
        let labels = Labels::from([("kuma.io/origin".into(), "zone".into())]);
        let spec = json!({"address": "127.0.2.2", "port": 10001});
        let bytes = encode(Kind::MeshZoneAddress, "default", "z", &labels, &spec, None).unwrap();
        let raw = KumaResource::decode(bytes.as_ref()).unwrap();
        assert_eq!(raw.spec.unwrap().type_url, "");
        let back = decode(Kind::MeshZoneAddress, RESOURCE_TYPE_URL, &bytes).unwrap();
        assert_eq!((back.spec, back.labels, back.key.mesh()), (spec, labels, "default"));
    }

    #[test]
    fn a_protobuf_kind_goes_through_the_json_mapping() {
        let spec = json!({"networking": {"address": "127.0.0.1", "inbound": [{"port": 8080, "state": "NotReady", "name": "http"}]}});
        let bytes = encode(Kind::Dataplane, "default", "dp-1", &Labels::new(), &spec, None).unwrap();
        let back = decode(Kind::Dataplane, RESOURCE_TYPE_URL, &bytes).unwrap();
        assert_eq!(back.spec["networking"]["inbound"][0]["state"], "NotReady");
        assert_eq!(back.spec["networking"]["inbound"][0]["port"], 8080);
    }

    #[test]
    fn an_empty_mesh_is_an_empty_message() {
        let bytes = encode(Kind::Mesh, "", "default", &Labels::new(), &json!({}), None).unwrap();
        let any = KumaResource::decode(bytes.as_ref()).unwrap().spec.unwrap();
        assert_eq!(
            (any.type_url.as_str(), any.value.len()),
            ("type.googleapis.com/kuma.mesh.v1alpha1.Mesh", 0)
        );
    }

    #[test]
    fn garbage_is_refused_with_a_typed_error() {
        assert!(matches!(decode(Kind::Mesh, "nonsense", b""), Err(Error::TypeUrl { .. })));
        assert!(matches!(
            decode(Kind::Mesh, RESOURCE_TYPE_URL, b"\xff\xff\xff"),
            Err(Error::Decode(_))
        ));
        assert!(matches!(decode(Kind::Mesh, RESOURCE_TYPE_URL, b""), Err(Error::Missing("meta"))));
    }

    #[test]
    fn removed_names_split_at_the_last_dot() {
        assert_eq!(parse_kds_name(Kind::Mesh, "default.").unwrap().name(), "default");
        let key = parse_kds_name(Kind::MeshService, "a.ns.default").unwrap();
        assert_eq!((key.name(), key.mesh()), ("a.ns", "default"));
    }
}
