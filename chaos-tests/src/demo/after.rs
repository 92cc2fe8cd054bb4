//! What must hold after every run, then the orderly end of all processes.
//!
//! In: a demo whose steps are done (or have failed). Out: checks. Invariant: what happens after [`judge`] counts only if it is a
//! crash, or if nobody could interfere. Source: DESIGN.md section 9: no panic, no restart, no KDS NACK,
//! no xDS NACK, no config pushed twice unchanged; CONVENTIONS.md C9, C13: an orderly end, no unlisted WARN or ERROR.
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::demo::topology::{Global, Proxy, Zone};
use crate::demo::{Demo, SOON};
use crate::harness::fleet::Ending;
use crate::harness::logs::{self, Allowed, Finding, Findings};
use crate::harness::metrics::Metrics;
use crate::harness::{POLL, Poll, wait_through};
use crate::oracles;

/// Longest orderly end of a process here: a sidecar's drain and the end of its Envoy.
const GRACE: Duration = Duration::from_secs(60);

/// WARN and ERROR lines that this scenario brings about itself.
const ALLOWED: [Allowed; 2] = [
    Allowed {
        process: "",
        text: "openraft::core::raft_core: A message will be ignored because Leader vote changed",
        reason: "a store's first election: the report of an I/O of before the vote arrives after it, and openraft drops it, as it should",
    },
    Allowed {
        process: "global-",
        text: "openraft::core::raft_core: while requesting vote, error: Unreachable",
        reason: "the nodes of a new group start at the same time: the first to be ready asks the others before they listen",
    },
];

/// Counters that must be zero at the end, by who has them.
const ZERO_AT_GLOBAL: [&str; 1] = ["kds_nack_total"];
const ZERO_AT_ZONES: [&str; 3] = ["kds_nack_total", "xds_nacks_total", "xds_unchanged_pushes_total"];

/// What was judged before the end.
#[derive(Debug)]
pub struct Judged {
    /// Every step ran to its end.
    complete: bool,
    /// The length of each log at that time: later lines belong to the end.
    lengths: BTreeMap<String, u64>,
}

/// Judges what the steps have left. With `complete` false (a step failed) only what can hold then is checked.
pub async fn judge(demo: &mut Demo, complete: bool) -> Judged {
    demo.report.step("After it all");
    if complete {
        still_the_same_processes(demo);
        global_counters(demo).await;
        for process in demo.topology.zones.clone().iter().map(Zone::control_plane) {
            counters(demo, &process, true).await;
        }
        insights(demo).await;
    }
    let lengths = demo.fleet.log_lengths();
    if complete {
        let found = scan(demo, &lengths);
        demo.report.verdict(
            oracles::LOGS,
            "no unexpected WARN or ERROR in any log",
            found.warnings.is_empty(),
            first_of(&found.warnings),
        );
    }
    Judged { complete, lengths }
}

/// Ends everything. How processes end is checked unless somebody else may have had a hand in it (`touched`).
pub async fn end(demo: &mut Demo, judged: Judged, touched: bool) {
    demo.report.step("The end");
    stop(demo, judged.complete && !touched).await;
    let found = scan(demo, &judged.lengths);
    demo.report.verdict(
        oracles::CRASHES,
        "no process panicked or crashed",
        found.crashes.is_empty(),
        first_of(&found.crashes),
    );
    let left = demo.fleet.alive();
    demo.report.check("nothing is left running", left.is_empty(), format!("{left:?}"));
}

fn scan(demo: &Demo, lengths: &BTreeMap<String, u64>) -> Findings {
    let allowed: Vec<Allowed> = ALLOWED.iter().chain(&demo.allowed).copied().collect();
    let mut found = logs::scan_until(&demo.fleet.dir().join("logs"), lengths, &allowed);
    let known = |f: &Finding| {
        let mut rules = demo.known_crashes.iter();
        rules.any(|rule| f.process.starts_with(rule.process) && f.text.contains(rule.text))
    };
    found.crashes.retain(|f| !known(f));
    for proxy in demo.topology.proxies() {
        let log = proxy.work_dir(&demo.places.data).join("envoy.log");
        found.crashes.extend(logs::crashes_in(&format!("{}/envoy", proxy.name), &log));
    }
    found
}

fn first_of(findings: &[Finding]) -> String {
    match findings {
        [] => String::new(),
        [first, ..] => format!("{} lines, the first {first}", findings.len()),
    }
}

fn still_the_same_processes(demo: &mut Demo) {
    let ended = demo.fleet.unasked_exits();
    demo.report.verdict(
        oracles::CRASHES,
        "no process ended or was restarted",
        ended.is_empty(),
        format!("{} processes{}", demo.fleet.names().len(), list(&ended)),
    );
    let changed = demo.fleet.changed_envoys();
    demo.report.check(
        "every Envoy is still the one that was started",
        changed.is_empty(),
        changed.join("; "),
    );
}

fn list(ended: &[(String, String)]) -> String {
    ended.iter().map(|(name, how)| format!("; {name}: {how}")).collect()
}

/// The nodes' counters together: one that holds no zone's stream has none.
async fn global_counters(demo: &mut Demo) {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for global in demo.topology.globals.clone() {
        match demo.diagnostics(global.ip).get("/metrics").await {
            Ok(answer) => {
                let scraped = Metrics::parse(&answer.text());
                for name in ZERO_AT_GLOBAL {
                    if let Some(value) = scraped.sum(name) {
                        *sums.entry(name).or_default() += value;
                    }
                }
            }
            Err(error) => drop(
                demo.report
                    .check(&format!("{} answers /metrics", global.name()), false, error.to_string()),
            ),
        }
    }
    for name in ZERO_AT_GLOBAL {
        let value = sums.get(name);
        let detail = value.map_or_else(|| "no node has such a metric".to_owned(), f64::to_string);
        demo.report.check(&format!("global: {name} is 0"), value == Some(&0.0), detail);
    }
}

/// Looks at the counters of a control plane that is about to end: they end with it. Shows only what is wrong.
pub async fn counters_before_the_end_of(demo: &mut Demo, process: &str) {
    counters(demo, process, false).await;
}

async fn counters(demo: &mut Demo, process: &str, show: bool) {
    let global = demo.topology.globals.iter().find(|g| g.name() == process).map(|g| g.ip);
    let zone = demo.topology.zones.iter().find(|z| z.control_plane() == process).map(|z| z.ip);
    let (ip, names) = match (global, zone) {
        (Some(ip), _) => (ip, ZERO_AT_GLOBAL.as_slice()),
        (None, Some(ip)) => (ip, ZERO_AT_ZONES.as_slice()),
        (None, None) => return,
    };
    let scraped = match demo.diagnostics(ip).get("/metrics").await {
        Ok(answer) => Metrics::parse(&answer.text()),
        Err(error) => {
            demo.report.check(&format!("{process} answers /metrics"), false, error.to_string());
            return;
        }
    };
    for name in names {
        let value = scraped.sum(name);
        let detail = value.map_or_else(|| "there is no such metric".to_owned(), |v| v.to_string());
        // A counter that is created by the first connection may be missing when there was none.
        if show || value.is_some_and(|v| v != 0.0) {
            demo.report.check(&format!("{process}: {name} is 0"), value == Some(0.0), detail);
        }
    }
}

/// Every proxy's insight: connected, configuration acknowledged, nothing rejected; in its zone and at the global alike.
async fn insights(demo: &mut Demo) {
    let proxies: Vec<Proxy> = demo.topology.proxies().cloned().collect();
    // Counts reach the API a moment after they changed.
    let waited = wait_through("every proxy has acknowledged configuration", SOON, POLL, async || {
        let mut seen = Vec::new();
        for zone in &demo.topology.zones {
            let insights = demo.zone(zone)?.get_json("/meshes/default/dataplane-insights").await?;
            seen.extend(insights["items"].as_array().cloned().unwrap_or_default());
        }
        // A proxy that met a control plane anew, and had all that it would get, was sent nothing.
        let acked = |insight: &&Value| sum_of(insight, "responsesAcknowledged");
        let settled = seen.iter().filter(|i| acked(i) > 0 || sum_of(i, "responsesSent") == 0).count();
        let somebody = seen.iter().any(|i| acked(&i) > 0);
        Ok(Poll::when(settled == proxies.len() && somebody, seen, || {
            format!("{settled} of {}", proxies.len())
        }))
    })
    .await;
    let detail = match &waited {
        Ok(_) => format!("{} of {}", proxies.len(), proxies.len()),
        Err(error) => format!("{error:#}"),
    };
    demo.report
        .check("every proxy has acknowledged configuration", waited.is_ok(), detail);
    let seen = waited.map_or_else(|_| Vec::new(), |(seen, _)| seen);
    let rejected: u64 = seen.iter().map(|insight| sum_of(insight, "responsesRejected")).sum();
    demo.report.check(
        "no proxy has rejected any",
        rejected == 0,
        format!("{rejected} rejections in {} insights", seen.len()),
    );

    let waited = async {
        let global = demo.global()?;
        wait_through("the global control plane knows every proxy", SOON, POLL, async || {
            let insights = global.get_json("/meshes/default/dataplane-insights").await?;
            Ok(Poll::when(insights["total"].as_u64() == Some(proxies.len() as u64), (), || {
                format!("total {}", insights["total"])
            }))
        })
        .await
    }
    .await;
    let detail = waited.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
    demo.report
        .check("the global control plane knows every proxy", waited.is_ok(), detail);
}

/// The sum of all fields of this name, at any depth. 64-bit numbers are texts in protobuf's JSON.
fn sum_of(value: &Value, field: &str) -> u64 {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, inner)| match inner {
                Value::String(text) if name == field => text.parse().unwrap_or_default(),
                Value::Number(number) if name == field => number.as_u64().unwrap_or_default(),
                _ => sum_of(inner, field),
            })
            .sum(),
        Value::Array(items) => items.iter().map(|inner| sum_of(inner, field)).sum(),
        _ => 0,
    }
}

/// Ends all processes, those that need others first: proxies, applications, zones, global.
async fn stop(demo: &mut Demo, check: bool) {
    let running = demo.fleet.names();
    let topology = &demo.topology;
    let waves: [Vec<String>; 4] = [
        topology.proxies().map(|p| p.name.clone()).collect(),
        topology.sidecars().map(Proxy::application).collect(),
        topology.zones.iter().map(|z| z.control_plane()).collect(),
        topology.globals.iter().map(Global::name).collect(),
    ];
    let mut endings: Vec<Ending> = Vec::new();
    for wave in waves {
        let wave: Vec<String> = wave.into_iter().filter(|name| running.contains(name)).collect();
        endings.extend(demo.fleet.terminate_together(&wave, GRACE).await);
    }
    for ending in &endings {
        demo.report.did(&format!("SIGTERM to {}: {}", ending.name, ending.how), ending.took);
    }
    if check {
        let unclean: Vec<String> = endings
            .iter()
            .filter(|e| !e.clean)
            .map(|e| format!("{}: {}", e.name, e.how))
            .collect();
        demo.report
            .check("every process ends in order when asked to", unclean.is_empty(), unclean.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_are_summed_at_any_depth_as_text_or_number() {
        let insight = json!({"subscriptions": [{"status": {"total": {"responsesRejected": "2"}, "cds": {"responsesRejected": 1, "responsesSent": "9"}}}]});
        assert_eq!(sum_of(&insight, "responsesRejected"), 3);
        assert_eq!(sum_of(&insight, "responsesAcknowledged"), 0);
    }
}
