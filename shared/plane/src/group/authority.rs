//! Who writes what is observed of a zone: the node with the newest stream of it.
//! In: claims of streams. Out: this node's right.
//! Invariant: nodes that have heard each other's claims agree; what a node does not know it does not deny itself.

use tokio::sync::watch;
use ursa_model::ZoneName;
use ursa_state::Authority;
use ursa_sync::{Claims, claims::Claim};

/// [`Authority`] over the claims of zone streams.
pub(crate) struct ByClaims {
    claims: Claims,
    own: watch::Receiver<std::sync::Arc<[Claim]>>,
}

impl ByClaims {
    pub(crate) fn new(claims: Claims) -> Self {
        Self { own: claims.own(), claims }
    }
}

impl Authority for ByClaims {
    /// The stream by which the zone sends decides; before it has begun, the other one is enough.
    fn claimed(&self, zone: &str) -> Option<u64> {
        let mine = self
            .own
            .borrow()
            .iter()
            .filter(|c| c.zone.as_str() == zone)
            .map(|c| c.epoch)
            .max()?;
        let zone: ZoneName = zone.parse().ok()?;
        match self.claims.owner(&zone) {
            Some(newest) if newest.node != *self.claims.node() && newest.epoch > mine => None,
            _ => Some(mine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ursa_sync::claims::StreamKind;

    #[test]
    fn the_newest_stream_decides() {
        let (one, two) = (Claims::new("1"), Claims::new("2"));
        let (first, second) = (ByClaims::new(one.clone()), ByClaims::new(two.clone()));
        let east: ZoneName = "east".parse().unwrap();
        assert_eq!(first.claimed("east"), None);
        let down = one.claim(&east, StreamKind::GlobalToZone, "z", 1).unwrap();
        assert_eq!(first.claimed("east"), Some(down.claim().epoch));
        let up = one.claim(&east, StreamKind::ZoneToGlobal, "z", 1).unwrap();
        assert_eq!(first.claimed("east"), Some(down.claim().epoch.max(up.claim().epoch)));

        two.learn("1", one.own().borrow().to_vec());
        let taken = two.claim(&east, StreamKind::ZoneToGlobal, "z", 2).unwrap();
        assert_eq!(second.claimed("east"), Some(taken.claim().epoch));
        assert!(first.claimed("east").is_some(), "it does not know yet");
        one.learn("2", two.own().borrow().to_vec());
        assert_eq!(first.claimed("east"), None);
        drop((down, up));
        assert_eq!(first.claimed("east"), None);
    }
}
