//! Step 4: how fast a change takes effect. 200 changes, alternating between a permission (effect in west) and a route (effect in east).
//!
//! In: two pairs of resources to switch between. Out: for each change the time from sending the PUT to (a) committed, (b) stored by
//! the zone, (c) acknowledged by Envoy, (d) the first answer under the new rule, on new connections and on one kept throughout.
//! Invariant: probes send a request each millisecond from before the PUT until the new rule shows; nothing is waited for but that.
//! The two rules do not hide each other: east is always permitted, and a denied answer can only come from west.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{Answer, Api, Mode};
use crate::demo::programs::path_of;
use crate::demo::topology::{Proxy, Zone};
use crate::demo::{Demo, SOON, describe, said};
use crate::harness::stages::Stages;
use crate::report::{Row, milliseconds};
use crate::traffic::Shot;
use crate::traffic::stats::Times;
use crate::traffic::switch::{Probe, Seen, Side};

/// The check fails above this at p99 of the first answer under the new rule.
const LIMIT: Duration = Duration::from_millis(500);
/// A change whose effect is not seen by then is lost, not slow.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where the backend's answer can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    East,
    West,
    WestDenied,
}

fn origin(answer: &Answer) -> Result<From, String> {
    if answer.status == http::StatusCode::FORBIDDEN {
        return Ok(From::WestDenied);
    }
    match said(answer)?.zone.as_str() {
        "east" => Ok(From::East),
        "west" => Ok(From::West),
        _ => Err(describe(answer)),
    }
}

/// A rule that is switched between two forms.
struct Toggle {
    name: &'static str,
    /// Sent by turns, the first one first.
    forms: [Value; 2],
    path: String,
    /// Whether an answer is one under form 0, form 1, or neither.
    form_of: fn(From) -> Option<usize>,
    shot: Shot,
    zone: Zone,
    proxy: Proxy,
    times: Measured,
}

#[derive(Default)]
struct Measured {
    answered: Times,
    committed: Times,
    stored: Times,
    acked: Times,
    new: Times,
    kept: Times,
}

/// What the probes saw besides times.
#[derive(Default)]
struct Totals {
    old_after_new: u64,
    wrong: Vec<String>,
    one_new: Times,
    one_kept: Times,
}

/// # Errors
/// If a change is refused, or does not take effect at all.
pub async fn run(demo: &mut Demo) -> anyhow::Result<()> {
    demo.report.step(&format!(
        "4. Propagation: {} changes, from PUT to the first request under the new rule",
        demo.changes
    ));
    let mut toggles = prepare(demo).await?;
    // The PUTs go to the nodes by turns; each one's own ring says when it had the change committed.
    let nodes = demo.nodes()?;
    let mut committed: Vec<Stages> = demo.topology.globals.iter().map(|g| Stages::new(demo.diagnostics(g.ip))).collect();
    let mut zones: Vec<(String, Stages)> = demo
        .topology
        .zones
        .iter()
        .map(|z| (z.name.clone(), Stages::new(demo.diagnostics(z.ip))))
        .collect();
    let (mut new, mut kept, mut totals) = (Probe::new(Mode::NewConnection), Probe::new(Mode::KeptAlive), Totals::default());
    let start = Instant::now();
    for change in 0..demo.changes {
        let (which, form) = ((change % 2) as usize, (change / 2 % 2) as usize);
        let toggle = &mut toggles[which];
        let zone = &mut zones
            .iter_mut()
            .find(|(name, _)| *name == toggle.zone.name)
            .context("a zone without stages")?
            .1;
        let node = change as usize % nodes.len();
        one(
            &nodes[node],
            toggle,
            form,
            [&mut committed[node], zone],
            [&mut new, &mut kept],
            &mut totals,
        )
        .await
        .with_context(|| format!("change {} of {}: {} to form {form}", change + 1, demo.changes, toggle.name))?;
    }
    demo.report.did(&format!("{} changes", demo.changes), start.elapsed());
    conclude(demo, &toggles, &totals, kept.connections());
    restore(demo, &nodes[0]).await
}

/// Puts the permission for each zone into a resource of its own, so that west can be denied while east is not.
async fn prepare(demo: &mut Demo) -> anyhow::Result<[Toggle; 2]> {
    demo.apply("propagation/permission-east.yaml").await?;
    demo.apply("propagation/permission-west-allow.yaml").await?;
    let resource = |file: &str| demo.places.resource(file);
    let permission = [
        resource("propagation/permission-west-deny.yaml")?,
        resource("propagation/permission-west-allow.yaml")?,
    ];
    let route = [
        resource("propagation/route-a-east.yaml")?,
        resource("propagation/route-a-west.yaml")?,
    ];
    let (east, west) = (demo.topology.zone("east").clone(), demo.topology.zone("west").clone());
    let toggles = [
        Toggle {
            name: "MeshTrafficPermission, effect in west",
            path: path_of(&permission[0])?,
            forms: permission,
            form_of: |from| match from {
                From::WestDenied => Some(0),
                From::West => Some(1),
                From::East => None,
            },
            shot: demo.call(),
            zone: west,
            proxy: demo.topology.proxy("backend-west").clone(),
            times: Measured::default(),
        },
        Toggle {
            name: "MeshHTTPRoute by header, effect in east",
            path: path_of(&route[0])?,
            forms: route,
            form_of: |from| Some(usize::from(from != From::East)),
            shot: demo.call().with("x-version", "a"),
            zone: east,
            proxy: demo.topology.proxy("frontend-east").clone(),
            times: Measured::default(),
        },
    ];
    demo.apply("propagation/route-a-west.yaml").await?;
    // The permission for both zones goes last: no call is denied in between.
    demo.global()?
        .delete("/meshes/default/meshtrafficpermissions/allow-frontend")
        .await?
        .success()?;
    let side = |answer: &Answer| match origin(answer) {
        Ok(From::West) => Side::New,
        _ => Side::Old,
    };
    Probe::new(Mode::NewConnection)
        .watch(&toggles[1].shot, Instant::now(), SOON, side)
        .await
        .context("the rules to start from take effect")?;
    Ok(toggles)
}

/// One change, timed.
async fn one(
    global: &Api,
    toggle: &mut Toggle,
    form: usize,
    [committed, zone]: [&mut Stages; 2],
    [new, kept]: [&mut Probe; 2],
    totals: &mut Totals,
) -> anyhow::Result<()> {
    committed.skip().await?;
    zone.skip().await?;
    let form_of = toggle.form_of;
    let side = |answer: &Answer| match origin(answer) {
        Err(why) => Side::Wrong(why),
        Ok(from) => match form_of(from) {
            Some(seen) if seen == form => Side::New,
            Some(_) => Side::Old,
            None => Side::Wrong(format!("an answer from {from:?}")),
        },
    };
    let sent_unix = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let sent = Instant::now();
    let (answer, new_seen, kept_seen) = tokio::join!(
        global.put(&toggle.path, &toggle.forms[form]),
        new.watch(&toggle.shot, sent, DEADLINE, side),
        kept.watch(&toggle.shot, sent, DEADLINE, side),
    );
    let answer = answer?.success()?;
    let revision = answer.revision().context("the answer to a PUT has no revision")?;
    let (new_seen, kept_seen) = (
        new_seen.context("on new connections")?,
        kept_seen.context("on the kept connection")?,
    );
    let times = &mut toggle.times;
    times.answered.record(answer.received.duration_since(sent));
    times.new.record(new_seen.first_new);
    times.kept.record(kept_seen.first_new);
    totals.add(new_seen, kept_seen);

    let proxy = toggle.proxy.id();
    let since = |unix_ns: u64| Duration::from_nanos(unix_ns).saturating_sub(sent_unix);
    let at = committed
        .first("stage committed", SOON, |e| e.stage == "committed" && e.revision == revision)
        .await?;
    times.committed.record(since(at.at_unix_ns));
    let at = zone
        .first("stage stored", SOON, |e| e.stage == "stored" && e.revision >= revision)
        .await?;
    times.stored.record(since(at.at_unix_ns));
    let at = zone
        .first("stage acked", SOON, |e| {
            e.stage == "acked" && e.revision >= revision && e.subject.contains(&proxy)
        })
        .await?;
    times.acked.record(since(at.at_unix_ns));
    Ok(())
}

impl Totals {
    fn add(&mut self, new: Seen, kept: Seen) {
        self.old_after_new += new.old_after_new + kept.old_after_new;
        new.requests.iter().for_each(|time| self.one_new.record(*time));
        kept.requests.iter().for_each(|time| self.one_kept.record(*time));
        self.wrong.extend(new.wrong);
        self.wrong.extend(kept.wrong);
    }
}

fn conclude(demo: &mut Demo, toggles: &[Toggle], totals: &Totals, kept_connections: u64) {
    let row = |group: &str, name: &str, times: &Times| Row {
        group: group.into(),
        name: name.into(),
        times: times.clone(),
    };
    let mut rows = Vec::new();
    for Toggle { name, times, .. } in toggles {
        rows.extend([
            row(name, "(a) PUT answered", &times.answered),
            row(name, "(a) committed", &times.committed),
            row(name, "(b) stored by the zone", &times.stored),
            row(name, "(c) ACKed by Envoy", &times.acked),
            row(name, "(d) first request, new connection", &times.new),
            row(name, "(d) first request, kept connection", &times.kept),
        ]);
    }
    let (mut all_new, mut all_kept) = (Times::default(), Times::default());
    for toggle in toggles {
        all_new.add(&toggle.times.new);
        all_kept.add(&toggle.times.kept);
    }
    let both = "both kinds of change";
    rows.extend([
        row(both, "(d) first request, new connection", &all_new),
        row(both, "(d) first request, kept connection", &all_kept),
    ]);
    let one = "for comparison: any one request of the probes";
    rows.extend([
        row(one, "on a new connection", &totals.one_new),
        row(one, "on the kept connection", &totals.one_kept),
    ]);
    demo.report.times(rows);

    for (name, times) in [("new connections", &all_new), ("a kept connection", &all_kept)] {
        let p99 = times.quantile(0.99);
        let name = format!(
            "p99 from PUT to the first request under the new rule is at most {} on {name}",
            milliseconds(LIMIT)
        );
        demo.report.check(&name, p99 <= LIMIT, milliseconds(p99));
    }
    let first = totals.wrong.first().map(|w| format!("; the first: {w}")).unwrap_or_default();
    let all = totals.one_new.count() + totals.one_kept.count();
    demo.report.check(
        "no request fails while the rules change",
        totals.wrong.is_empty(),
        format!("{} of {all}{first}", totals.wrong.len()),
    );
    demo.report.fact(
        "answers under the old rule after the first under the new one",
        totals.old_after_new.to_string(),
    );
    demo.report
        .fact("connections that the kept connection took", kept_connections.to_string());
}

/// Leaves the rules of steps 2 and 3 in force, for whoever tries things afterwards.
async fn restore(demo: &mut Demo, global: &Api) -> anyhow::Result<()> {
    demo.apply("allow-frontend.yaml").await?;
    for name in ["allow-frontend-east", "allow-frontend-west"] {
        global
            .delete(&format!("/meshes/default/meshtrafficpermissions/{name}"))
            .await?
            .success()?;
    }
    demo.apply("mesh-http-route-90-10.yaml").await?;
    let side = |answer: &Answer| if origin(answer) == Ok(From::West) { Side::New } else { Side::Old };
    Probe::new(Mode::NewConnection)
        .watch(&demo.call(), Instant::now(), SOON, side)
        .await
        .context("the rules of step 3 are back")?;
    Ok(())
}
