//! How often a process waits for its disk, as strace has seen it.
//!
//! In: strace's notes of one process (`-f -ttt`), a span of time. Out: calls by name. Source: strace(1).
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

/// Calls that wait for a disk, by name.
pub type Syncs = BTreeMap<String, u64>;

/// Time since 1970.
#[must_use]
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The calls that began within `from..to` (times since 1970).
///
/// # Errors
/// If the file cannot be read.
pub fn counted(path: &Path, from: Duration, to: Duration) -> anyhow::Result<Syncs> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(count(&text, from, to))
}

fn count(text: &str, from: Duration, to: Duration) -> Syncs {
    let mut syncs = Syncs::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(_pid), Some(at), Some(call)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some(at) = at.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()) else {
            continue;
        };
        // "<... fdatasync resumed>" is the end of a call that was counted at its beginning.
        if let Some((name, _)) = call.split_once('(')
            && name.contains("sync")
            && (from..to).contains(&at)
        {
            *syncs.entry(name.to_owned()).or_default() += 1;
        }
    }
    syncs
}

/// All of them.
#[must_use]
pub fn sum(syncs: &Syncs) -> u64 {
    syncs.values().sum()
}

/// "2 fdatasync, 1 fsync".
#[must_use]
pub fn shown(syncs: &Syncs) -> String {
    if syncs.is_empty() {
        return "none".to_owned();
    }
    let each: Vec<String> = syncs.iter().map(|(name, count)| format!("{count} {name}")).collect();
    each.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_each_call_of_the_span_once() {
        let text = "7  100.000000 fdatasync(5) = 0\n\
                    8  101.000000 fdatasync(5 <unfinished ...>\n\
                    7  101.100000 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
                    8  101.200000 <... fdatasync resumed>) = 0\n\
                    7  101.300000 fsync(6)            = 0\n\
                    7  102.000000 fdatasync(5) = 0\n";
        let seen = count(text, Duration::from_secs(101), Duration::from_secs(102));
        assert_eq!((shown(&seen).as_str(), sum(&seen)), ("1 fdatasync, 1 fsync", 2));
        assert_eq!(shown(&Syncs::new()), "none");
    }
}
