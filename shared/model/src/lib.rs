//! The resource model: kinds and their schemas, identities, labels, names and hashes, and how resources look on the wires.
//! Pure: no I/O and no clock except [`resource::Timestamp::now`], which only proposers call.
//! Source: Kuma's resource model, 3.0 line.

pub mod duration;
pub mod hash;
pub mod header_format;
pub mod kind;
pub mod kri;
pub mod labels;
pub mod name;
pub mod re2;
pub mod resource;
pub mod sni;
pub mod validate;
pub mod wire;

pub use kind::{Kind, Scope, Spec};
pub use kri::Kri;
pub use labels::{Labels, Origin};
pub use name::ZoneName;
pub use resource::{Resource, ResourceKey, Timestamp};
pub use validate::Violations;
