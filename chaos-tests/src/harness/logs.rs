//! Reads the logs of our programs for what must not be in them.
//!
//! In: log files as `tracing` writes them, plain or JSON. Out: panics, and WARN and ERROR lines that no rule allows.
//! Invariant: a line is allowed only by a rule that names the program and gives its reason. Source: CONVENTIONS.md C13.
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A WARN or ERROR that a scenario brings about on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The process's name starts with this.
    pub process: &'static str,
    /// The line contains this.
    pub text: &'static str,
    /// Why it belongs to the scenario.
    pub reason: &'static str,
}

/// A line that must not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose log.
    pub process: String,
    /// Line number, from 1.
    pub line: usize,
    /// The line, cut at 400 characters.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.log:{}: {}", self.process, self.line, self.text)
    }
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Panics, aborts, and the like of a crashing Envoy.
    pub crashes: Vec<Finding>,
    /// WARN and ERROR lines without a rule.
    pub warnings: Vec<Finding>,
}

/// Scans the logs `dir/<name>.log`, each up to its length in `lengths` for warnings (what comes later belongs to the shutdown) and
/// to the end for crashes. A log that is missing or unreadable is itself a finding.
#[must_use]
pub fn scan_until(dir: &Path, lengths: &BTreeMap<String, u64>, allowed: &[Allowed]) -> Findings {
    let mut found = Findings::default();
    for (process, length) in lengths {
        match std::fs::read(dir.join(format!("{process}.log"))) {
            Ok(bytes) => scan(process, &bytes, usize::try_from(*length).unwrap_or(usize::MAX), allowed, &mut found),
            Err(error) => found.warnings.push(Finding {
                process: process.clone(),
                line: 0,
                text: format!("cannot read the log: {error}"),
            }),
        }
    }
    found
}

/// Crashes in one further log, such as an Envoy's own. A log that does not exist has none.
#[must_use]
pub fn crashes_in(name: &str, path: &Path) -> Vec<Finding> {
    let mut found = Findings::default();
    if let Ok(bytes) = std::fs::read(path) {
        scan(name, &bytes, 0, &[], &mut found);
    }
    found.crashes
}

fn scan(process: &str, bytes: &[u8], until: usize, allowed: &[Allowed], found: &mut Findings) {
    let mut start = 0;
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        let finding = || Finding {
            process: process.to_owned(),
            line: number + 1,
            text: text.chars().take(400).collect(),
        };
        if is_crash(&text) {
            found.crashes.push(finding());
        } else if start < until && is_warning(&text) && !allowed.iter().any(|a| process.starts_with(a.process) && text.contains(a.text)) {
            found.warnings.push(finding());
        }
        start += line.len() + 1;
    }
}

fn is_crash(line: &str) -> bool {
    // Our programs' panic hook in both formats; Rust's own; Envoy's crash handler and its RELEASE_ASSERT.
    const SIGNS: [&str; 7] = [
        " panic panic=",
        "\"panic\":",
        "panicked at",
        "fatal runtime error",
        "has overflowed its stack",
        "Caught Segmentation fault",
        "][critical][",
    ];
    SIGNS.iter().any(|sign| line.contains(sign))
}

/// A WARN or ERROR line of `tracing`: the level among the first words of a plain line, or the field `level` of a JSON line.
fn is_warning(line: &str) -> bool {
    if line.starts_with('{') {
        return ["\"level\":\"WARN\"", "\"level\":\"ERROR\""]
            .iter()
            .any(|level| line.contains(level));
    }
    line.split_whitespace().take(3).any(|word| word == "WARN" || word == "ERROR")
}

/// What a file has gained since it was `length` bytes long; a message if it cannot be read.
#[must_use]
pub fn since(path: &Path, length: u64) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let from = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
            String::from_utf8_lossy(&bytes[from..]).into_owned()
        }
        Err(error) => format!("(cannot read {}: {error})", path.display()),
    }
}

/// The last `lines` lines of a file; a message if it cannot be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(cannot read {}: {error})", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-21T04:00:00Z  INFO zone_cp: a WARN in the text is none\n\
        2026-11-21T04:00:01Z  WARN zone_cp: zone stream lost\n\
        {\"timestamp\":\"x\",\"level\":\"ERROR\",\"fields\":{}}\n\
        thread 'main' panicked at src/main.rs:1:1:\n\
        2026-11-21T04:00:01Z ERROR ursa_runtime::telemetry: panic panic=\"boom\" place=\"a.rs:1:1\" thread=\"main\"\n\
        2026-11-21T04:00:02Z  WARN zone_cp: bye\n";

    fn scanned(until: usize, allowed: &[Allowed]) -> Findings {
        let mut found = Findings::default();
        scan("zone-cp-east", LOG.as_bytes(), until, allowed, &mut found);
        found
    }

    #[test]
    fn it_finds_panics_warnings_and_errors_in_both_formats() {
        let found = scanned(usize::MAX, &[]);
        assert_eq!(found.crashes.iter().map(|f| f.line).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(found.warnings.iter().map(|f| f.line).collect::<Vec<_>>(), [2, 3, 6]);
    }

    #[test]
    fn a_rule_allows_and_the_shutdown_does_not_count() {
        let rule = Allowed {
            process: "zone-cp",
            text: "stream lost",
            reason: "the test cuts it",
        };
        let found = scanned(LOG.find("2026-11-21T04:00:02Z").unwrap(), &[rule]);
        assert_eq!(found.warnings.iter().map(|f| f.line).collect::<Vec<_>>(), [3]);
        assert_eq!(found.crashes.len(), 2);
        let other = Allowed {
            process: "global-cp",
            ..rule
        };
        assert_eq!(scanned(usize::MAX, &[other]).warnings.len(), 3);
    }

    #[test]
    fn what_is_new_in_a_log_is_told_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        std::fs::write(&path, "old\nnew\n").unwrap();
        assert_eq!((since(&path, 4).as_str(), since(&path, 99).as_str()), ("new\n", ""));
        assert!(since(&dir.path().join("none"), 0).contains("cannot read"));
    }

    #[test]
    fn a_missing_log_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        let found = scan_until(dir.path(), &BTreeMap::from([("ghost".to_owned(), 1)]), &[]);
        assert_eq!(found.warnings.len(), 1);
    }
}
