//! What a proxy says of itself in the metadata of its node, as our bootstrap put it there. Source: dataplane.md 1.3.

use prost_types::{Struct, Value, value::Kind as ValueKind};
use ursa_proto::discovery::Node;

use crate::derive::addresses::Advertised;

/// Largest Dataplane that a proxy may bring along, in bytes.
const MAX_DATAPLANE: usize = 256 * 1024;

/// The parts of the metadata that this control plane uses.
#[derive(Clone, Debug, Default)]
pub struct NodeMetadata {
    /// The Dataplane, JSON, when the proxy brought it.
    pub dataplane: Option<String>,
    pub proxy_type: Option<String>,
    pub advertised: Option<Advertised>,
    /// All of it as JSON, for the proxy's insight.
    pub all: serde_json::Value,
}

/// Why metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the Dataplane in the node's metadata is larger than {MAX_DATAPLANE} bytes")]
    TooLarge,
    #[error("advertised port {0:?} is no port")]
    Port(String),
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
    let mut advertised = None;
    if let Some(ValueKind::StructValue(dynamic)) = fields.fields.get("dynamicMetadata").and_then(|v| v.kind.as_ref())
        && let (Some(address), Some(port)) = (
            text(dynamic, "ursa.io/advertised-address"),
            text(dynamic, "ursa.io/advertised-port"),
        )
    {
        let port = port.parse().map_err(|_| Error::Port(port))?;
        advertised = Some(Advertised { address, port });
    }
    Ok(NodeMetadata {
        dataplane,
        proxy_type: text(fields, "dataplane.proxyType"),
        advertised,
        all: struct_to_json(fields, 0),
    })
}

/// Deepest nesting that is shown; a client cannot make us recurse further.
const MAX_DEPTH: usize = 16;

fn struct_to_json(fields: &Struct, depth: usize) -> serde_json::Value {
    serde_json::Value::Object(fields.fields.iter().map(|(k, v)| (k.clone(), value_to_json(v, depth))).collect())
}

fn value_to_json(value: &Value, depth: usize) -> serde_json::Value {
    if depth >= MAX_DEPTH {
        return serde_json::Value::Null;
    }
    match &value.kind {
        None | Some(ValueKind::NullValue(_)) => serde_json::Value::Null,
        Some(ValueKind::BoolValue(b)) => (*b).into(),
        Some(ValueKind::NumberValue(n)) => serde_json::Number::from_f64(*n).map_or(serde_json::Value::Null, Into::into),
        Some(ValueKind::StringValue(s)) => s.clone().into(),
        Some(ValueKind::StructValue(s)) => struct_to_json(s, depth + 1),
        Some(ValueKind::ListValue(l)) => l.values.iter().map(|v| value_to_json(v, depth + 1)).collect(),
    }
}
