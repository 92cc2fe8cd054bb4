//! The secrets of tokens in a [`Catalog`]: what they hold, the key that signs.
//! Not here: which secrets those are and how they are read ([`ursa_pki::token::stored`]).

use std::sync::Arc;

use ursa_model::{Kind, Resource, kind::secret::Secret};
use ursa_pki::token::{Family, Kind as TokenKind};
use ursa_state::Catalog;

/// GlobalSecret with the token of the first administrator.
pub(crate) const ADMIN_TOKEN: &str = "admin-user-token";

/// The secrets of a family. `mesh` is that of data-plane tokens, and empty for others.
pub(crate) fn of_family(catalog: &Catalog, family: &Family, mesh: &str) -> Vec<Arc<Resource>> {
    let mut secrets = match family.kind() {
        TokenKind::Dataplane => catalog.list_in(Kind::Secret, mesh),
        TokenKind::User | TokenKind::Zone => catalog.list(Kind::GlobalSecret),
    };
    secrets.retain(|s| family.purpose(s.name()).is_some());
    secrets
}

/// Names and contents, as a [`Family`] reads them.
pub(crate) fn named(secrets: &[Arc<Resource>]) -> impl Iterator<Item = (&str, Vec<u8>)> {
    secrets.iter().map(|s| (s.name(), content(s)))
}

/// Whether there is a key that would sign, readable or not.
pub(crate) fn has_key(catalog: &Catalog, family: &Family, mesh: &str) -> bool {
    let secrets = of_family(catalog, family, mesh);
    family.newest(secrets.iter().map(|s| (s.name(), ()))).is_some()
}

/// The decoded data of a secret; empty if it has none.
pub(crate) fn content(secret: &Resource) -> Vec<u8> {
    secret.spec::<Secret>().ok().and_then(|s| s.bytes()).unwrap_or_default()
}
