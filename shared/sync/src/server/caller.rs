//! Who calls: zone name, token, features, from gRPC metadata. Source: kds.md 1.2.
//! Invariant: nothing is done for a caller whose name or token is not in order.

use tonic::{Status, metadata::MetadataMap};
use ursa_model::ZoneName;
use ursa_state::GlobalRevision;

use crate::{
    digest::{self, Hash},
    peer::{Features, INSTANCE_HEADER, RESUME_HEADER, SESSION_HEADER},
    ports::{Denied, ZoneAuth},
    revision,
};

/// Longest instance id kept.
const MAX_INSTANCE: usize = 128;

/// A zone that may call.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) zone: ZoneName,
    /// Empty for stock zones.
    pub(super) instance: String,
    /// Number of its session; 0 for stock zones.
    pub(super) session: u64,
    /// From gRPC metadata; what the node metadata says comes later.
    pub(super) features: Features,
    /// What it says it holds: revision, and the sum of all.
    pub(super) resume: Option<(GlobalRevision, Hash)>,
    pub(super) token: bool,
    /// It compresses what it sends.
    pub(super) compressed: bool,
}

impl Caller {
    pub(super) fn of(metadata: &MetadataMap, auth: &dyn ZoneAuth) -> Result<Self, Status> {
        let text = |key: &'static str| metadata.get(key).and_then(|v| v.to_str().ok());
        let name = text("client-id").ok_or_else(|| Status::invalid_argument("metadata client-id (the zone's name) is missing"))?;
        let zone: ZoneName = name
            .parse()
            .map_err(|err| Status::invalid_argument(format!("metadata client-id is no zone name: {err}")))?;
        let token = match metadata.get("authorization").map(|v| v.to_str()) {
            None => None,
            Some(Ok(value)) => Some(bearer(value)),
            Some(Err(_)) => return Err(Status::unauthenticated("metadata authorization is not text")),
        };
        auth.check(&zone, token).map_err(|denied| {
            let text = format!("zone {:?}: {denied}", zone.as_str());
            match denied {
                Denied::Missing | Denied::Invalid(_) => Status::unauthenticated(text),
                Denied::OtherZone { .. } => Status::permission_denied(text),
            }
        })?;
        let features = metadata
            .get_all("features")
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','));
        Ok(Self {
            zone,
            instance: text(INSTANCE_HEADER).unwrap_or_default().chars().take(MAX_INSTANCE).collect(),
            session: text(SESSION_HEADER).and_then(|n| n.parse().ok()).unwrap_or_default(),
            features: Features::from_names(features),
            resume: text(RESUME_HEADER).and_then(resume),
            token: token.is_some(),
            compressed: text("grpc-encoding") == Some("gzip"),
        })
    }
}

/// `<history>:<revision>/<digest>`.
fn resume(text: &str) -> Option<(GlobalRevision, Hash)> {
    let (at, sum) = text.split_once('/')?;
    Some((revision::parse(at)?, digest::parse(sum)?))
}

/// The token, with or without `Bearer ` before it.
fn bearer(value: &str) -> &str {
    match value.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("bearer ") => value[7..].trim(),
        _ => value.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Only(&'static str);
    impl ZoneAuth for Only {
        fn check(&self, zone: &ZoneName, token: Option<&str>) -> Result<(), Denied> {
            match token {
                None => Err(Denied::Missing),
                Some(token) if token == self.0 => Ok(()),
                Some(_) => Err(Denied::OtherZone {
                    token_zone: format!("not-{zone}"),
                }),
            }
        }
    }

    fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut out = MetadataMap::new();
        for (key, value) in pairs {
            out.append(*key, value.parse().unwrap());
        }
        out
    }

    #[test]
    fn a_caller_is_read_from_its_metadata() {
        let pairs = [
            ("client-id", "east"),
            ("authorization", "Bearer t"),
            ("features", "hash-suffix"),
            ("features", "ursa-progress"),
            ("grpc-encoding", "gzip"),
        ];
        let caller = Caller::of(&metadata(&pairs), &Only("t")).unwrap();
        assert_eq!((caller.zone.as_str(), caller.token, caller.compressed), ("east", true, true));
        assert!(caller.features.contains(Features::PROGRESS.with(Features::HASH_SUFFIX)));
        assert!(Caller::of(&metadata(&[("client-id", "east"), ("authorization", "t")]), &Only("t")).is_ok());
    }

    #[test]
    fn who_is_not_in_order_is_told_why() {
        let code = |pairs: &[(&'static str, &str)]| Caller::of(&metadata(pairs), &Only("t")).err().unwrap();
        assert_eq!(code(&[]).code(), tonic::Code::InvalidArgument);
        assert_eq!(
            code(&[("client-id", "East_1"), ("authorization", "t")]).code(),
            tonic::Code::InvalidArgument
        );
        assert_eq!(code(&[("client-id", "east")]).code(), tonic::Code::Unauthenticated);
        let denied = code(&[("client-id", "east"), ("authorization", "other")]);
        assert_eq!(denied.code(), tonic::Code::PermissionDenied);
        assert!(
            denied.message().contains("east") && denied.message().contains("not-east"),
            "{}",
            denied.message()
        );
    }
}
