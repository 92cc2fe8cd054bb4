//! Whether the other zones know what this zone changed. Only the global can say: it knows which revision each zone has stored.

use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use ursa_state::GlobalRevision;
use ursa_sync::client::Elsewhere;

/// Zones named in an answer.
const MAX_NAMED: usize = 10;

/// What is known of the other zones. It is in the answer to a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Others {
    /// Every zone that is connected has stored the change, as the global says.
    pub confirmed: bool,
    /// Some of those that have not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<String>,
    /// Why it is not known of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Asks what other zones have.
pub trait OtherZones: Send + Sync + 'static {
    /// Waits until every other zone that is connected has stored what this zone changed up to a revision of its own, at most for
    /// `limit`. What cannot be confirmed comes back earlier, with the reason.
    fn have(&self, own: GlobalRevision, limit: Duration) -> BoxFuture<'_, Others>;
}

impl OtherZones for Elsewhere {
    fn have(&self, own: GlobalRevision, limit: Duration) -> BoxFuture<'_, Others> {
        Box::pin(async move {
            match self.stored(own, limit).await {
                Ok(zones) => {
                    let behind: Vec<String> = zones.behind.iter().take(MAX_NAMED).map(ToString::to_string).collect();
                    let silent = zones.silent.iter().take(MAX_NAMED).map(ToString::to_string).collect::<Vec<_>>();
                    Others {
                        confirmed: behind.is_empty() && silent.is_empty(),
                        reason: (!silent.is_empty()).then(|| format!("zones that do not say what they have stored: {}", silent.join(", "))),
                        behind,
                    }
                }
                Err(unknown) => Others {
                    reason: Some(unknown.to_string()),
                    ..Others::default()
                },
            }
        })
    }
}
