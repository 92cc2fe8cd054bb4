//! The end of a store.
//! In: nothing. Out: a log that is marked as closed, a folder that is free.
//! Invariant: it ends, also while the disk takes nothing; what was acknowledged is safe all the same.
use std::time::Duration;

use ursa_runtime::error::Chain;
use ursa_runtime::lease;

use super::Store;
use crate::error::Error;

/// Longest wait for the end of the core of a store whose disk takes nothing.
const CORE_ENDS: Duration = Duration::from_secs(1);

impl Store {
    /// Ends the store in order: no more proposals, everything written, the log marked as closed, the folder free. Later calls find it closed.
    ///
    /// # Errors
    /// The log could not be closed; what was acknowledged is safe all the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.inner.closing.cancel();
        let mut closed = self.inner.closed.lock().await;
        if *closed {
            return Ok(());
        }
        *closed = true;
        let mut core = std::pin::pin!(self.inner.raft.shutdown());
        let refused = self.inner.refused.borrow().is_some();
        let ended = match refused {
            false => core.await,
            true => match lease::within(CORE_ENDS, &mut core).await {
                Ok(ended) => ended,
                Err(_) => {
                    // It waits for the log, and the log for the disk.
                    if let Err(error) = self.inner.log.close().await {
                        tracing::warn!(error = %Chain(&error), "what the disk did not take was never acknowledged, and is lost");
                    }
                    match lease::within(CORE_ENDS, &mut core).await {
                        Ok(ended) => ended,
                        Err(_) => {
                            tracing::warn!("the core of the store waits for the disk: it is left to itself");
                            Ok(())
                        }
                    }
                }
            },
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "the core of the store ended badly");
        }
        if let Some(cache) = &self.inner.cache {
            cache.close().await;
        }
        let confirmed = self.inner.confirmed.clone();
        let settled = crate::disk::run(&*self.inner.disk, move || {
            confirmed.settle();
            Ok(())
        });
        if let Err(error) = settled.await {
            tracing::debug!(%error, "what was confirmed is not made durable at the end");
        }
        // Last: with the log goes the lock on the folder.
        self.inner
            .log
            .close()
            .await
            .map_err(|error| Error::Stopped(Chain(&error).to_string()))
    }
}
