//! What a zone derives from its own resources, in the same step as the change that causes it: MeshServices, MeshZoneAddresses,
//! CAs and MeshTrusts. Everything here is pure except the making of a CA's key, which the caller does.

pub mod addresses;
pub mod identity;
pub mod services;
pub mod template;
pub mod trust;
