//! Whether the other zones have stored what this zone changed. Only the global knows, and it is asked over the running session: first
//! its answers to our own content must say that it has stored the change, then a health check with [`WAIT_HEADER`] is answered when the
//! other zones have.
//! In: a revision of this zone's store. Out: [`Zones`], or why nobody knows.
//! Invariant: nothing is taken for confirmed that some zone did not report itself.

use std::time::Duration;

use tokio::sync::watch;
use tonic::{Request, Status, metadata::MetadataMap, transport::Channel};
use ursa_proto::kds::{ZoneHealthCheckRequest, global_kds_service_client::GlobalKdsServiceClient};
use ursa_runtime::lease::{Deadline, within};
use ursa_state::GlobalRevision;

use crate::peer::{WAIT_HEADER, Zones};

/// The global's answer needs some of the time as well.
const MARGIN: Duration = Duration::from_millis(250);

/// Why it is not known what other zones have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("the global control plane cannot be reached")]
    NotConnected,
    #[error("the global control plane did not say that it has stored the change (a stock one never does)")]
    NotStored,
    #[error("the global control plane does not tell what other zones have stored")]
    Untold,
    #[error("the global control plane did not answer: {0}")]
    NoAnswer(String),
}

/// A session while our content flows.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) number: u64,
    pub(super) channel: Channel,
    /// Of every call.
    pub(super) metadata: MetadataMap,
    /// Up to which revision of ours the global has stored everything. Ends with the session.
    pub(super) stored: watch::Receiver<Option<GlobalRevision>>,
}

/// Where sessions are shown.
#[derive(Default)]
pub(super) struct Sessions(watch::Sender<Option<Live>>);

/// Shows a session until it is dropped.
pub(super) struct Shown<'a>(&'a Sessions);

impl Sessions {
    pub(super) fn show(&self, live: Live) -> Shown<'_> {
        self.0.send_replace(Some(live));
        Shown(self)
    }

    pub(super) fn elsewhere(&self) -> Elsewhere {
        Elsewhere(self.0.subscribe())
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.0.send_replace(None);
    }
}

/// See the module's text.
#[derive(Clone)]
pub struct Elsewhere(watch::Receiver<Option<Live>>);

impl Elsewhere {
    /// Waits until every other zone that is connected and reports has stored what is in this zone's store at `own`; at most for
    /// `limit`. A connection that breaks meanwhile is waited for. Cancel-safe.
    ///
    /// # Errors
    /// [`Unknown`] when that cannot be found out within the time.
    pub async fn stored(&self, own: GlobalRevision, limit: Duration) -> Result<Zones, Unknown> {
        let mut so_far = Unknown::NotConnected;
        let asked = within(limit, self.ask(own, Deadline::after(limit), &mut so_far)).await;
        asked.unwrap_or(Err(so_far))
    }

    async fn ask(&self, own: GlobalRevision, time: Deadline, so_far: &mut Unknown) -> Result<Zones, Unknown> {
        let mut sessions = self.0.clone();
        let mut asked = None;
        let other = |asked: Option<u64>| move |live: &Option<Live>| live.as_ref().is_some_and(|l| asked != Some(l.number));
        while let Ok(live) = sessions.wait_for(other(asked)).await.map(|live| live.clone()) {
            let Some(mut live) = live else { continue };
            asked = Some(live.number);
            *so_far = Unknown::NotStored;
            let is_stored = |at: &Option<GlobalRevision>| at.is_some_and(|at| at.history == own.history && at.revision >= own.revision);
            if live.stored.wait_for(is_stored).await.is_err() {
                *so_far = Unknown::NotConnected;
                continue;
            }
            match live.others(time.remaining().saturating_sub(MARGIN)).await {
                Ok(zones) => return zones.ok_or(Unknown::Untold),
                // Another session may say more.
                Err(status) => *so_far = Unknown::NoAnswer(format!("{:?}: {}", status.code(), status.message())),
            }
        }
        Err(Unknown::NotConnected)
    }
}

impl Live {
    /// `None`: the global does not know the question.
    async fn others(&self, wait: Duration) -> Result<Option<Zones>, Status> {
        let mut request = Request::new(ZoneHealthCheckRequest {});
        *request.metadata_mut() = self.metadata.clone();
        if let Ok(wait) = wait.as_millis().to_string().parse() {
            request.metadata_mut().insert(WAIT_HEADER, wait);
        }
        let answer = GlobalKdsServiceClient::new(self.channel.clone()).health_check(request).await?;
        Ok(Zones::read(answer.metadata()))
    }
}
