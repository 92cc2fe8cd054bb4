//! What a proxy says of itself in the metadata of its node, as our bootstrap put it there. Source: dataplane.md 1.3.

use std::sync::Arc;

use prost_types::{Struct, Value, value::Kind as ValueKind};
use ursa_model::kind::dataplane_insight::DpVersion;
use ursa_proto::discovery::Node;

use crate::derive::addresses::Advertised;

/// Largest Dataplane that a proxy may bring along, in bytes.
const MAX_DATAPLANE: usize = 256 * 1024;
/// As much of the metadata is kept for the proxy's insight, which is in memory at every node, in bytes of keys and texts.
const MAX_KEPT: usize = 256 * 1024;
/// Stands for what was left out.
const CUT: &str = "ursa.io/cut";
/// In the dynamic metadata: tells runs of our own proxy programs apart.
pub(super) const INSTANCE: &str = "ursa.io/instance";
/// Longest id of a run, in bytes.
const MAX_INSTANCE: usize = 128;

/// The parts of the metadata that this control plane uses.
#[derive(Clone, Debug, Default)]
pub struct NodeMetadata {
    /// The Dataplane, JSON, when the proxy brought it.
    pub dataplane: Option<String>,
    pub proxy_type: Option<String>,
    pub advertised: Option<Advertised>,
    /// Which run of its program this is; stock proxies say nothing.
    pub instance: Option<Arc<str>>,
    /// What runs there.
    pub version: Option<DpVersion>,
    /// All of it as JSON, for the proxy's insight; at most [`MAX_KEPT`].
    pub all: serde_json::Value,
}

/// Why metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the Dataplane in the node's metadata is larger than {MAX_DATAPLANE} bytes")]
    TooLarge,
    #[error("advertised port {0:?} is no port")]
    Port(String),
    #[error("the instance in the node's metadata is longer than {MAX_INSTANCE} bytes")]
    Instance,
}

/// Reads a node's metadata.
pub fn parse(node: &Node) -> Result<NodeMetadata, Error> {
    let Some(fields) = &node.metadata else {
        return Ok(NodeMetadata::default());
    };
    let text = |s: &Struct, key: &str| match s.fields.get(key).and_then(|v| v.kind.as_ref()) {
        Some(ValueKind::StringValue(s)) if !s.is_empty() => Some(s.clone()),
        _ => None,
    };
    let dataplane = text(fields, "dataplane.resource");
    if dataplane.as_ref().is_some_and(|d| d.len() > MAX_DATAPLANE) {
        return Err(Error::TooLarge);
    }
    let (mut advertised, mut instance) = (None, None);
    if let Some(ValueKind::StructValue(dynamic)) = fields.fields.get("dynamicMetadata").and_then(|v| v.kind.as_ref()) {
        if let (Some(address), Some(port)) = (
            text(dynamic, "ursa.io/advertised-address"),
            text(dynamic, "ursa.io/advertised-port"),
        ) {
            let port = port.parse().map_err(|_| Error::Port(port))?;
            advertised = Some(Advertised { address, port });
        }
        instance = text(dynamic, INSTANCE);
        if instance.as_ref().is_some_and(|i| i.len() > MAX_INSTANCE) {
            return Err(Error::Instance);
        }
    }
    let mut left = MAX_KEPT;
    let version = fields.fields.get("version").map(|v| value_to_json(v, 0, &mut left));
    let mut left = MAX_KEPT;
    Ok(NodeMetadata {
        dataplane,
        proxy_type: text(fields, "dataplane.proxyType"),
        advertised,
        instance: instance.map(Into::into),
        version: version.and_then(|v| serde_json::from_value(v).ok()),
        all: struct_to_json(fields, 0, &mut left),
    })
}

/// Deepest nesting that is shown; a client cannot make us recurse further.
const MAX_DEPTH: usize = 16;

/// What does not fit into `left` bytes is left out; that something is, is said.
fn struct_to_json(fields: &Struct, depth: usize, left: &mut usize) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    for (key, value) in &fields.fields {
        let text = match &value.kind {
            Some(ValueKind::StringValue(text)) => text.len(),
            _ => 0,
        };
        let size = key.len() + text + ENTRY;
        if size > *left {
            out.insert(CUT.into(), true.into());
            continue;
        }
        *left -= size;
        out.insert(key.clone(), value_to_json(value, depth, left));
    }
    serde_json::Value::Object(out)
}

/// What an entry costs beside its key and text, roughly, in bytes.
const ENTRY: usize = 16;

fn value_to_json(value: &Value, depth: usize, left: &mut usize) -> serde_json::Value {
    if depth >= MAX_DEPTH {
        return serde_json::Value::Null;
    }
    match &value.kind {
        None | Some(ValueKind::NullValue(_)) => serde_json::Value::Null,
        Some(ValueKind::BoolValue(b)) => (*b).into(),
        Some(ValueKind::NumberValue(n)) => serde_json::Number::from_f64(*n).map_or(serde_json::Value::Null, Into::into),
        Some(ValueKind::StringValue(s)) => s.clone().into(),
        Some(ValueKind::StructValue(s)) => struct_to_json(s, depth + 1, left),
        Some(ValueKind::ListValue(l)) => {
            let mut out = Vec::new();
            for value in &l.values {
                let size = ENTRY
                    + if let Some(ValueKind::StringValue(text)) = &value.kind {
                        text.len()
                    } else {
                        0
                    };
                if size > *left {
                    break;
                }
                *left -= size;
                out.push(value_to_json(value, depth + 1, left));
            }
            out.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: String) -> Value {
        Value {
            kind: Some(ValueKind::StringValue(s)),
        }
    }

    #[test]
    fn large_metadata_is_cut_and_what_matters_is_kept() {
        let version = Struct {
            fields: [(
                "envoy".to_owned(),
                Value {
                    kind: Some(ValueKind::StructValue(Struct {
                        fields: [("version".to_owned(), text("1.40.0".into()))].into(),
                    })),
                },
            )]
            .into(),
        };
        let list = prost_types::ListValue {
            values: vec![text("x".into()); 200_000],
        };
        let fields = [
            ("a".to_owned(), text("x".repeat(3_000_000))),
            (
                "b".to_owned(),
                Value {
                    kind: Some(ValueKind::ListValue(list)),
                },
            ),
            (
                "version".to_owned(),
                Value {
                    kind: Some(ValueKind::StructValue(version)),
                },
            ),
        ];
        let node = Node {
            metadata: Some(Struct {
                fields: fields.into_iter().collect(),
            }),
            ..Node::default()
        };
        let meta = parse(&node).unwrap();
        assert!(meta.all.to_string().len() < 2 * MAX_KEPT, "{}", meta.all.to_string().len());
        assert_eq!(meta.all[CUT], true);
        assert_eq!(meta.version.unwrap().envoy.unwrap().version, "1.40.0");
    }
}
