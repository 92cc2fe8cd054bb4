//! The state of a running store, to be written somewhere: a picture at one revision, while writes go on.
use std::io::Write;

use ursa_model::Timestamp;
use ursa_pki::age::Recipient;
use ursa_runtime::error::Chain;
use ursa_state::State;

use super::{Error, Head};
use crate::Store;

/// See the module's text. It keeps what it shows in memory, beside what has changed since.
pub struct Export {
    pub head: Head,
    state: State,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Export {
    /// Writes the backup, and does not flush. Blocks on the writer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn write(&self, recipients: &[Recipient], out: impl Write) -> Result<(), Error> {
        super::write(&self.head, &self.state, recipients, out)
    }
}

impl Store {
    /// Everything that is applied here, as it is now. `program` is the version that writes it.
    ///
    /// # Errors
    /// [`crate::Error::Stopped`].
    pub async fn export(&self, program: &str, at: Timestamp) -> Result<Export, crate::Error> {
        let taken = self.inner().raft.with_state_machine(|machine| {
            let state = machine.state().clone();
            Box::pin(async move { state })
        });
        let state = taken.await.map_err(|fatal| crate::Error::Stopped(Chain(&fatal).to_string()))?;
        let (view, status) = (state.view(), self.status());
        let mut kinds = std::collections::BTreeMap::new();
        for resource in view.iter() {
            *kinds.entry(resource.key.kind().to_string()).or_insert(0) += 1;
        }
        let head = Head {
            program: program.to_owned(),
            history: view.history_id(),
            revision: view.revision(),
            oldest: view.past().oldest(),
            changed: view.time(),
            taken: at,
            node: status.node_id,
            term: status.term,
            members: status.members,
            feature_level: crate::level::of(state.feature_level()),
            kinds,
            origin: state.view().origin().cloned(),
        };
        Ok(Export { head, state })
    }
}
