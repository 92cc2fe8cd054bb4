//! One page for a run of many scenarios: what was done to the system, what every judge says, how long things took, how to see it again.
//!
//! In: the reports of the scenarios, as JSON. Out: `report.json` with all of them, and `report.html` for people.
//! Invariant: what a check says is shown as it was said; a scenario whose report is missing is shown as failed.
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::oracles;

/// Checks that passed and failed, over all reports.
#[must_use]
pub fn result(reports: &[Value]) -> (u64, u64) {
    let sum = |field: &str| reports.iter().map(|r| r[field].as_u64().unwrap_or_default()).sum();
    let missing = reports.iter().filter(|r| r["passed"].is_null()).count() as u64;
    (sum("passed"), sum("failed") + missing)
}

/// Writes both files to `out`.
///
/// # Errors
/// If they cannot be written.
pub fn write(out: &Path, about: &Value, reports: &[Value]) -> std::io::Result<()> {
    let (passed, failed) = result(reports);
    let all = json!({"about": about, "passed": passed, "failed": failed, "scenarios": reports});
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("report.json"), serde_json::to_vec_pretty(&all)?)?;
    std::fs::write(out.join("report.html"), html(about, reports))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn list<'a>(report: &'a Value, field: &str) -> Vec<&'a Value> {
    let steps = report["steps"].as_array().into_iter().flatten();
    steps.flat_map(|step| step[field].as_array().into_iter().flatten()).collect()
}

const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse;margin:.5em 0}\
td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}td.n{text-align:right}\
.passed{background:#dfd}.failed{background:#fcc;font-weight:bold}code{background:#eee;padding:.1em .3em}";

fn html(about: &Value, reports: &[Value]) -> String {
    let mut page = format!("<!doctype html><meta charset=utf-8><title>Chaos</title><style>{STYLE}</style><h1>Chaos</h1>");
    let (passed, failed) = result(reports);
    let verdict = if failed == 0 { "passed" } else { "failed" };
    // Writing to a String cannot fail.
    let _ = write!(page, "<p class={verdict}>{passed} checks passed, {failed} failed</p><table>");
    for (key, value) in about.as_object().into_iter().flatten() {
        let _ = write!(page, "<tr><th>{}<td>{}", escaped(key), escaped(&text(value)));
    }
    page.push_str("</table>");
    judges(&mut page, reports);
    for report in reports {
        one(&mut page, report);
    }
    page
}

/// A row per judge, a column per scenario.
fn judges(page: &mut String, reports: &[Value]) {
    page.push_str("<h2>Verdict of each judge</h2><table><tr><th>judge");
    for report in reports {
        let _ = write!(page, "<th>{}", escaped(&text(&report["title"])));
    }
    for (name, what) in oracles::NAMES {
        let _ = write!(page, "<tr><th title=\"{what}\">{name}");
        for report in reports {
            let checks = list(report, "checks");
            let own: Vec<_> = checks.iter().filter(|c| c["oracle"] == name).collect();
            let failed = own.iter().filter(|c| c["verdict"] == "failed").count();
            let _ = match (own.len(), failed) {
                (0, _) => write!(page, "<td>"),
                (all, 0) => write!(page, "<td class=passed>{all} of {all}"),
                (all, failed) => write!(page, "<td class=failed>{} of {all}", all - failed),
            };
        }
    }
    page.push_str("</table>");
}

fn one(page: &mut String, report: &Value) {
    let about = &report["about"];
    let _ = write!(
        page,
        "<h2 id=\"{0}\">{0}</h2><p>{1}<p>Again: <code>{2}</code>",
        escaped(&text(&report["title"])),
        escaped(&text(&about["scenario"])),
        escaped(&text(&about["command"]))
    );
    if report["passed"].is_null() {
        page.push_str("<p class=failed>There is no report: it did not come to its end.");
        return;
    }
    let injected = list(report, "injected");
    if !injected.is_empty() {
        let _ = write!(page, "<h3>{} faults</h3><table><tr><th>after s<th>fault<th>what", injected.len());
        for fault in injected {
            let seconds = fault["at_ms"].as_f64().unwrap_or_default() / 1e3;
            let (name, what) = (escaped(&text(&fault["fault"])), escaped(&text(&fault["what"])));
            let _ = write!(page, "<tr><td class=n>{seconds:.1}<td>{name}<td>{what}");
        }
        page.push_str("</table>");
    }
    page.push_str("<h3>Checks</h3><table>");
    for check in list(report, "checks") {
        let verdict = text(&check["verdict"]);
        let (name, detail) = (escaped(&text(&check["name"])), escaped(&text(&check["detail"])));
        let _ = write!(
            page,
            "<tr><td class={verdict}>{verdict}<td>{}<td>{name}<td>{detail}",
            text(&check["oracle"])
        );
    }
    page.push_str("</table><h3>Times in ms</h3><table><tr><th>what<th>n<th>p50<th>p90<th>p99<th>max");
    for row in report["times"].as_array().into_iter().flatten() {
        let (group, name) = (escaped(&text(&row["group"])), escaped(&text(&row["name"])));
        let _ = write!(page, "<tr><td>{group}: {name}<td class=n>{}", text(&row["count"]));
        for field in ["p50_ms", "p90_ms", "p99_ms", "max_ms"] {
            let _ = write!(page, "<td class=n>{:.1}", row[field].as_f64().unwrap_or_default());
        }
    }
    page.push_str("</table>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    #[test]
    fn the_page_shows_faults_verdicts_times_and_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::quiet("partitions");
        report.about("command", "make chaos SCENARIO=partitions SEED=7");
        report.step("one");
        report.injected("partition", "cut 1->2 <all>");
        report.verdict(oracles::LEADERSHIP, "someone leads", false, "nobody");
        report.verdict(oracles::REPLICAS, "the same everywhere", true, "");
        report.finish();
        let path = dir.path().join("one.json");
        report.write_json(&path).unwrap();
        let one: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let lost = json!({"title": "soak", "about": {"command": "make chaos SCENARIO=soak"}});
        write(dir.path(), &json!({"seed": 7}), &[one, lost]).unwrap();
        let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        for part in [
            "1 checks passed, 2 failed",
            "cut 1-&gt;2 &lt;all&gt;",
            "make chaos SCENARIO=partitions SEED=7",
            "<td class=failed>0 of 1",
            "<td class=passed>1 of 1",
            "did not come to its end",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let all: Value = serde_json::from_slice(&std::fs::read(dir.path().join("report.json")).unwrap()).unwrap();
        assert_eq!((all["passed"].as_u64(), all["failed"].as_u64()), (Some(1), Some(2)));
        assert_eq!(all["scenarios"][0]["steps"][0]["injected"][0]["fault"], "partition");
    }
}
