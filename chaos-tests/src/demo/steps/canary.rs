//! Step 3: a canary. One call in ten goes to the backend in east, then all of them, then those with a header.
//!
//! Invariant: constant traffic runs through all three changes and no request of it fails.
use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::client::{Answer, Api, Mode};
use crate::demo::{Demo, SOON, answered, said};
use crate::harness::{POLL, Poll, wait_through};
use crate::traffic::Shot;
use crate::traffic::load::{Load, Outcome, Plan};

/// Calls per count; with a tenth of 1,000 the standard deviation is 9.5.
const CALLS: u32 = 1000;
/// Calls per second while counting.
const RATE: u32 = 500;
/// Calls per second that run through the changes.
const BACKGROUND: u32 = 100;
/// Answers in a row from where they should come from, before counting starts.
const IN_A_ROW: u32 = 20;

/// # Errors
/// If a change does not take effect in time.
pub async fn run(demo: &mut Demo) -> anyhow::Result<()> {
    demo.report.step("3. A canary: backend in west and in east");
    let background = Plan {
        name: "background".into(),
        shot: demo.call(),
        rate: BACKGROUND,
        mode: Mode::KeptAlive,
        judge: answered(),
    };
    let background = Load::start(background);
    let steps = changes(demo).await;
    let outcome = background.stop().await;
    steps?;
    demo.report
        .check("no call fails while the routes change", outcome.failed == 0, outcome.summary());
    Ok(())
}

async fn changes(demo: &mut Demo) -> anyhow::Result<()> {
    let call = demo.call();
    switch(demo, "mesh-http-route-90-10.yaml", &call, "east", 1).await?;
    let east = count(demo, "90/10", &call).await.get("east").copied().unwrap_or_default();
    // Five standard deviations: wrong once in a million runs.
    demo.report.check(
        "90/10: about one call in ten goes east",
        (52..=148).contains(&east),
        format!("{east} of {CALLS}"),
    );

    switch(demo, "mesh-http-route-0-100.yaml", &call, "east", IN_A_ROW).await?;
    let counts = count(demo, "0/100", &call).await;
    demo.report.check(
        "0/100: every call goes east",
        counts == BTreeMap::from([("east".to_owned(), u64::from(CALLS))]),
        format!("{counts:?}"),
    );

    switch(demo, "mesh-http-route-header.yaml", &call, "west", IN_A_ROW).await?;
    let canary = demo.call().with("x-canary", "yes");
    let (with, without) = (count(demo, "x-canary: yes", &canary).await, count(demo, "no header", &call).await);
    let right = with.keys().eq(["east"]) && without.keys().eq(["west"]);
    demo.report.check(
        "by header: x-canary: yes goes east, the rest west",
        right,
        format!("with {with:?}, without {without:?}"),
    );
    Ok(())
}

/// Sends the route and waits until `in_a_row` answers in a row come from `zone`.
async fn switch(demo: &mut Demo, file: &str, shot: &Shot, zone: &str, in_a_row: u32) -> anyhow::Result<()> {
    let start = Instant::now();
    demo.apply(file).await?;
    let (api, mut row) = (Api::new(shot.target.clone()), 0);
    wait_through(&format!("{file} takes effect"), SOON, POLL, async || {
        while row < in_a_row {
            let answer: Answer = api.get("/").await?;
            match said(&answer) {
                Ok(said) if said.zone == zone => row += 1,
                other => {
                    row = 0;
                    return Ok(Poll::NotYet(format!("{other:?}")));
                }
            }
        }
        Ok(Poll::Ready(()))
    })
    .await?;
    demo.report.did(&format!("{file} has taken effect"), start.elapsed());
    Ok(())
}

async fn count(demo: &mut Demo, name: &str, shot: &Shot) -> BTreeMap<String, u64> {
    let plan = Plan {
        name: name.into(),
        shot: shot.clone(),
        rate: RATE,
        mode: Mode::KeptAlive,
        judge: answered(),
    };
    let start = Instant::now();
    let outcome: Outcome = Load::exactly(plan, CALLS).await;
    let counts = outcome
        .counts
        .iter()
        .map(|(zone, n)| format!("{zone} {n}"))
        .collect::<Vec<_>>()
        .join(", ");
    demo.report.did(&format!("{CALLS} calls, {name}: {counts}"), start.elapsed());
    if outcome.failed > 0 {
        demo.report.check(&format!("{name}: no call fails"), false, outcome.summary());
    }
    outcome.counts
}
