//! What a scenario did, how long it took, what was checked, what was measured: told while it runs, kept as JSON for machines.
//!
//! In: steps, checks, histograms, in the order in which they happen. Out: lines on standard output; `report.json`.
//! Invariant: a check that failed stays failed; a scenario without a failed check passed, and one without any check did not.
pub mod page;
mod table;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::traffic::stats::Times;

pub use table::{milliseconds, table};

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Passed,
    /// Not as it must be.
    Failed,
    /// A fact without a bound.
    Reported,
}

/// One checked fact.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What must hold.
    pub name: String,
    /// Whether it does.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// The judge that says so, one of [`crate::oracles::NAMES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oracle: Option<&'static str>,
}

/// A fault that was brought about.
#[derive(Clone, Debug, Serialize)]
pub struct Injection {
    /// When, in milliseconds from the start.
    pub at_ms: f64,
    /// Its name.
    pub fault: &'static str,
    /// Whom it hit, and how.
    pub what: String,
}

/// Something that was done, and how long it took.
#[derive(Clone, Debug, Serialize)]
pub struct Action {
    /// What.
    pub what: String,
    /// Milliseconds.
    pub took_ms: f64,
}

/// One step of the scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its title.
    pub title: String,
    /// Milliseconds in all.
    pub took_ms: f64,
    /// What was done in it.
    pub actions: Vec<Action>,
    /// What was checked in it.
    pub checks: Vec<Check>,
    /// What was done to the system in it.
    pub injected: Vec<Injection>,
    /// Remarks for people.
    pub notes: Vec<String>,
}

/// One row of the table of times.
#[derive(Clone, Debug)]
pub struct Row {
    /// Rows of one group stand together.
    pub group: String,
    /// What was timed.
    pub name: String,
    /// The times.
    pub times: Times,
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "group": self.group, "name": self.name, "count": self.times.count(),
            "p50_ms": in_ms(self.times.quantile(0.5)), "p90_ms": in_ms(self.times.quantile(0.9)), "p99_ms": in_ms(self.times.quantile(0.99)),
            "max_ms": in_ms(self.times.max()),
        })
    }
}

/// See the module's header.
#[derive(Debug)]
pub struct Report {
    title: String,
    quiet: bool,
    began: Instant,
    began_unix: u64,
    step_began: Instant,
    steps: Vec<Step>,
    rows: Vec<Row>,
    facts: serde_json::Map<String, serde_json::Value>,
    /// Everything that was told.
    told: Mutex<String>,
}

impl Report {
    /// A report that also tells everything on standard output.
    #[must_use]
    pub fn new(title: &str) -> Self {
        let began_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = Instant::now();
        Self {
            title: title.into(),
            quiet: false,
            began: now,
            began_unix,
            step_began: now,
            steps: Vec::new(),
            rows: Vec::new(),
            facts: serde_json::Map::new(),
            told: Mutex::default(),
        }
    }

    /// A report that only collects.
    #[must_use]
    pub fn quiet(title: &str) -> Self {
        Self {
            quiet: true,
            ..Self::new(title)
        }
    }

    /// Begins a step; the one before ends here.
    pub fn step(&mut self, title: &str) {
        self.end_step();
        self.say(&format!("\n== {title}"));
        self.step_began = Instant::now();
        self.steps.push(Step {
            title: title.into(),
            took_ms: 0.0,
            actions: Vec::new(),
            checks: Vec::new(),
            injected: Vec::new(),
            notes: Vec::new(),
        });
    }

    /// Something was done.
    pub fn did(&mut self, what: &str, took: Duration) {
        self.say(&format!("   {:>10}  {what}", milliseconds(took)));
        let took_ms = in_ms(took);
        self.current().actions.push(Action {
            what: what.into(),
            took_ms,
        });
    }

    /// Something must hold. Returns whether it does.
    pub fn check(&mut self, name: &str, holds: bool, detail: impl Into<String>) -> bool {
        self.add_check(None, name, if holds { Verdict::Passed } else { Verdict::Failed }, detail.into());
        holds
    }

    /// As [`Report::check`]; the page of a run lists it under this judge.
    pub fn verdict(&mut self, oracle: &'static str, name: &str, holds: bool, detail: impl Into<String>) -> bool {
        let verdict = if holds { Verdict::Passed } else { Verdict::Failed };
        self.add_check(Some(oracle), name, verdict, detail.into());
        holds
    }

    /// A fault begins.
    pub fn injected(&mut self, fault: &'static str, what: &str) {
        self.say(&format!("   {fault:>10}  {what}"));
        let at_ms = in_ms(self.began.elapsed());
        self.current().injected.push(Injection {
            at_ms,
            fault,
            what: what.into(),
        });
    }

    /// A fact without a bound.
    pub fn fact(&mut self, name: &str, detail: impl Into<String>) {
        self.add_check(None, name, Verdict::Reported, detail.into());
    }

    fn add_check(&mut self, oracle: Option<&'static str>, name: &str, verdict: Verdict, detail: String) {
        let mark = match verdict {
            Verdict::Passed => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Reported => "is",
        };
        let shown = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        self.say(&format!("   {mark:>10}  {name}{shown}"));
        self.current().checks.push(Check {
            name: name.into(),
            verdict,
            detail,
            oracle,
        });
    }

    /// A remark for people.
    pub fn note(&mut self, text: &str) {
        self.say(&format!("               {text}"));
        self.current().notes.push(text.into());
    }

    /// Something about the machine or the build that the numbers depend on.
    pub fn about(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        self.facts.insert(key.into(), value.into());
    }

    /// Adds rows to the table of times and shows them.
    pub fn times(&mut self, rows: Vec<Row>) {
        for line in table(&rows).lines() {
            self.say(&format!("   {line}"));
        }
        self.rows.extend(rows);
    }

    /// The number of checks that passed and failed. A report without any check counts as one failure.
    #[must_use]
    pub fn result(&self) -> (usize, usize) {
        let count = |wanted| self.steps.iter().flat_map(|s| &s.checks).filter(|c| c.verdict == wanted).count();
        match (count(Verdict::Passed), count(Verdict::Failed)) {
            (0, 0) => (0, 1),
            counted => counted,
        }
    }

    /// Names of the failed checks.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let failed = |c: &&Check| c.verdict == Verdict::Failed;
        self.steps
            .iter()
            .flat_map(|s| &s.checks)
            .filter(failed)
            .map(|c| format!("{}: {}", c.name, c.detail))
            .collect()
    }

    /// Ends the report and prints its result in one line, in the same form as cargo's tests.
    pub fn finish(&mut self) -> (usize, usize) {
        self.end_step();
        let (passed, failed) = self.result();
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        self.say(&format!(
            "\n{} result: {verdict}. {passed} passed; {failed} failed; finished in {:.1}s",
            self.title,
            self.began.elapsed().as_secs_f64()
        ));
        (passed, failed)
    }

    /// Writes the report as JSON.
    ///
    /// # Errors
    /// If the file or its folder cannot be written.
    pub fn write_json(&self, path: &Path) -> std::io::Result<()> {
        let (passed, failed) = self.result();
        let report = json!({
            "title": self.title, "began_unix": self.began_unix, "took_ms": in_ms(self.began.elapsed()),
            "passed": passed, "failed": failed, "about": self.facts, "steps": self.steps,
            "times": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        });
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(path, serde_json::to_vec_pretty(&report)?)
    }

    /// Writes what was told, for people.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_summary(&self, path: &Path) -> std::io::Result<()> {
        fs::write(path, self.told.lock().as_bytes())
    }

    fn end_step(&mut self) {
        let took = self.step_began.elapsed();
        if let Some(step) = self.steps.last_mut()
            && step.took_ms == 0.0
        {
            step.took_ms = in_ms(took);
            self.say(&format!("   {:>10}  in all", milliseconds(took)));
        }
    }

    fn current(&mut self) -> &mut Step {
        if self.steps.is_empty() {
            self.step("start");
        }
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    fn say(&self, line: &str) {
        let mut told = self.told.lock();
        told.push_str(line);
        told.push('\n');
        if !self.quiet {
            println!("{line}");
        }
    }
}

/// Milliseconds to three digits after the point: the times are measured in microseconds.
fn in_ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_failed_stays_failed_and_nothing_checked_is_no_success() {
        let mut report = Report::quiet("demo");
        assert_eq!(report.result(), (0, 1));
        report.step("1. first");
        assert!(report.check("a", true, ""));
        assert!(!report.check("b", false, "saw 3"));
        report.fact("c", "7");
        assert_eq!(report.finish(), (1, 1));
        assert_eq!(report.failures(), ["b: saw 3"]);
    }

    #[test]
    fn the_json_holds_steps_checks_and_times() {
        let mut report = Report::quiet("demo");
        report.about("cores", 2);
        report.step("1. first");
        report.did("started", Duration::from_millis(12));
        report.check("a", true, "fine");
        report.step("2. second");
        let mut times = Times::default();
        times.record(Duration::from_millis(5));
        report.times(vec![Row {
            group: "g".into(),
            name: "n".into(),
            times,
        }]);
        report.finish();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/report.json");
        report.write_json(&path).unwrap();
        let summary = dir.path().join("deep/summary.txt");
        report.write_summary(&summary).unwrap();
        assert!(fs::read_to_string(summary).unwrap().contains("2 passed; 0 failed") || report.result() == (1, 0));
        let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(
            (json["passed"].as_u64(), json["failed"].as_u64(), json["about"]["cores"].as_u64()),
            (Some(1), Some(0), Some(2))
        );
        assert_eq!(json["steps"][0]["actions"][0]["took_ms"].as_f64(), Some(12.0));
        assert_eq!(json["steps"][0]["checks"][0]["verdict"], "passed");
        assert_eq!(
            (json["times"][0]["count"].as_u64(), json["times"][0]["p99_ms"].as_f64()),
            (Some(1), Some(5.003))
        );
    }
}
