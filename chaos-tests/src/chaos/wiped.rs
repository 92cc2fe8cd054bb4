//! A node loses its data folder and comes back under its old id: it is refused, with the way out, and the others do not notice.
//!
//! In: a cluster at work. Out: checks. Invariant: a node that forgot what it acknowledged never votes; its folder, put back, is welcome.
use crate::chaos::stage::Stage;
use crate::chaos::{leader, outage};
use crate::demo::{SOON, START};
use crate::faults::kill;
use crate::faults::wipe::Wiped;
use crate::harness::logs::{self, Allowed};
use crate::harness::{POLL, Poll, wait_through};
use crate::oracles;

/// What is said of a node that is refused, by itself and by the others.
const REFUSED: [Allowed; 1] = [Allowed {
    process: "global-",
    text: WAY_OUT,
    reason: "the scenario took the folder away",
}];
/// The way out, in the words of the node that is refused.
const WAY_OUT: &str = "or remove node";

/// # Errors
/// If the cluster does not recover.
pub async fn run(stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
    stage.demo.allowed.extend(REFUSED);
    stage.demo.allowed.extend(leader::ALLOWED);
    stage.demo.allowed.extend(outage::GONE);
    for round in 0..rounds {
        let (leading, _) = stage.leader().await?;
        // By turns one that has the newest writes for sure, and one that may not.
        let node = if round % 2 == 0 { stage.another(leading.id)? } else { leading };
        let name = node.name();
        stage.demo.report.injected("wipe", &format!("{name} loses its data folder"));
        kill::begin(&stage.demo.fleet, &name, SOON).await?;
        let length = stage.demo.fleet.log_length(&name);
        let wiped = Wiped::begin(&stage.demo.places.data.join(&name))?;
        kill::end(&stage.demo.fleet, &name)?;
        stage.demo.fleet.may_end(&name)?;
        let ended = wait_through("the wiped node is refused and ends", START, POLL, async || {
            Ok(match stage.demo.fleet.ended(&name)? {
                Some(how) => Poll::Ready(how),
                None => Poll::NotYet("it runs".into()),
            })
        })
        .await;
        let told = logs::since(&stage.demo.fleet.log(&name), length);
        let why = told.lines().find(|line| line.contains(WAY_OUT));
        let (how, refused) = match &ended {
            Ok((how, _)) => (how.clone(), how == "exit code 1" && why.is_some()),
            Err(error) => (format!("{error:#}"), false),
        };
        stage.demo.report.verdict(
            oracles::CRASHES,
            &format!("{name} without its data folder is refused and says why"),
            refused,
            format!("{how}: {}", why.unwrap_or("it does not say why")),
        );
        let writes = stage.background.until_further(20).await;
        if ended.is_err() {
            kill::begin(&stage.demo.fleet, &name, SOON).await?;
        }
        wiped.end()?;
        kill::end(&stage.demo.fleet, &name)?;
        writes?;
        stage.demo.fleet.wait_ready(&name, START).await?;
        stage.whole("the wiped node has its folder back").await?;
    }
    Ok(())
}
