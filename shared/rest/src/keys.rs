//! Where token keys and revocations are kept: names of secrets, and the newest key of a prefix.
//! Source: `reference/api.md` 4.3.

use ursa_model::{Kind, Resource, kind::secret::Secret};
use ursa_state::Catalog;

/// Prefix of the GlobalSecrets that sign user tokens.
pub(crate) const USER_KEY: &str = "user-token-signing-key";
/// GlobalSecret with the ids of user tokens that are no longer accepted.
pub(crate) const USER_REVOCATIONS: &str = "user-token-revocations";
/// Prefix of the GlobalSecrets that sign zone tokens.
pub(crate) const ZONE_KEY: &str = "zone-token-signing-key";
/// GlobalSecret with the token of the first administrator.
pub(crate) const ADMIN_TOKEN: &str = "admin-user-token";

/// Prefix of the Secrets of a mesh that sign its dataplane tokens.
pub(crate) fn dataplane_key(mesh: &str) -> String {
    format!("dataplane-token-signing-key-{mesh}")
}

/// Serial number and key id of a signing key called `name`: `<prefix>-<number>`, or the bare prefix for 0.
pub(crate) fn serial<'a>(name: &'a str, prefix: &str) -> Option<(u64, &'a str)> {
    let rest = name.strip_prefix(prefix)?;
    if rest.is_empty() {
        return Some((0, "0"));
    }
    let id = rest.strip_prefix('-')?;
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    id.parse().ok().map(|n| (n, id))
}

/// Key id and content of the newest signing key; `None` when there is none, or the newest is unreadable.
pub(crate) fn newest(catalog: &Catalog, kind: Kind, mesh: &str, prefix: &str) -> Option<(String, Vec<u8>)> {
    let secrets = if mesh.is_empty() {
        catalog.list(kind)
    } else {
        catalog.list_in(kind, mesh)
    };
    let newest = secrets
        .iter()
        .filter_map(|s| serial(s.name(), prefix).map(|(n, id)| (n, id, s)))
        .max_by_key(|(n, _, _)| *n);
    let (_, id, secret) = newest?;
    Some((id.to_owned(), content(secret)?))
}

/// The decoded data of a secret.
pub(crate) fn content(secret: &Resource) -> Option<Vec<u8>> {
    secret.spec::<Secret>().ok()?.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers() {
        assert_eq!(serial("user-token-signing-key-12", USER_KEY), Some((12, "12")));
        assert_eq!(serial("user-token-signing-key", USER_KEY), Some((0, "0")));
        for other in [
            "user-token-signing-key-",
            "user-token-signing-key-x",
            "user-token-signing-key-1-2",
            "user-token-signing-keys",
            "x",
        ] {
            assert_eq!(serial(other, USER_KEY), None, "{other}");
        }
        assert_eq!(serial("dataplane-token-signing-key-a-b-1", &dataplane_key("a")), None);
        assert_eq!(serial("user-token-signing-key-99999999999999999999999", USER_KEY), None);
    }
}
