//! Judges the proof that a write with `?wait` gives: that every zone that is connected and reports has stored it.
//!
//! In: what an answer claimed, and how far zones were afterwards. Out: claims that were not so.
//! Invariant: what one stream of a zone reports only grows. A zone counts if its stream is the same before the write and after the look:
//! one that comes, goes or comes back in between is not what the claim is about.
use std::collections::BTreeMap;

use serde_json::Value;

/// How far a zone is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSeen {
    /// Its stream; another one for each connection.
    pub stream: String,
    /// The newest revision that it has stored, as far as it reports. None: it is not connected, or tells nothing.
    pub stored: Option<u64>,
}

/// A write that was said to be stored in all zones.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its revision.
    pub revision: u64,
    /// The stream of each zone before.
    pub before: BTreeMap<String, String>,
    /// Each zone afterwards.
    pub after: BTreeMap<String, ZoneSeen>,
}

/// The zones in the answer of `GET /zones/_applied` that are connected and report, by name, with what they have stored.
#[must_use]
pub fn stored_in(applied: &Value) -> BTreeMap<String, u64> {
    let zones = applied["zones"].as_array().into_iter().flatten();
    zones
        .filter(|zone| zone["online"] == true && zone["reports"] == true)
        .filter_map(|zone| Some((zone["name"].as_str()?.to_owned(), zone["stored"].as_u64().unwrap_or_default())))
        .collect()
}

/// The claims that were not so.
#[must_use]
pub fn wrong(claims: &[Claim]) -> Vec<String> {
    let mut found = Vec::new();
    for claim in claims {
        for (zone, seen) in &claim.after {
            if let Some(stored) = seen.stored
                && claim.before.get(zone) == Some(&seen.stream)
                && stored < claim.revision
            {
                found.push(format!(
                    "revision {} was said to be stored in every zone, and {zone} has stored {stored}",
                    claim.revision
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(before: &str, stream: &str, stored: Option<u64>) -> Claim {
        let seen = ZoneSeen {
            stream: stream.into(),
            stored,
        };
        Claim {
            revision: 7,
            before: BTreeMap::from([("east".to_owned(), before.to_owned())]),
            after: BTreeMap::from([("east".to_owned(), seen)]),
        }
    }

    #[test]
    fn a_zone_that_was_there_all_the_time_must_have_it() {
        assert_eq!(wrong(&[claim("1", "1", Some(7)), claim("1", "1", Some(9))]), Vec::<String>::new());
        let found = wrong(&[claim("1", "1", Some(6))]);
        assert_eq!(found, ["revision 7 was said to be stored in every zone, and east has stored 6"]);
        // It came back in between, or is gone.
        assert_eq!(wrong(&[claim("1", "2", Some(6)), claim("1", "1", None)]), Vec::<String>::new());
    }

    #[test]
    fn only_zones_that_are_connected_and_report_count() {
        let zone = |name: &str, online: bool, reports: bool| json!({"name": name, "online": online, "reports": reports, "stored": 5});
        let applied = json!({"zones": [zone("a", true, true), zone("b", false, true), zone("c", true, false)]});
        assert_eq!(stored_in(&applied), BTreeMap::from([("a".to_owned(), 5)]));
    }
}
