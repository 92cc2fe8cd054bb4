//! Reads `GET /metrics` of our programs.
//!
//! In: the Prometheus or OpenMetrics text format. Out: sums over all label sets of one metric.
//! Invariant: a metric that is not there at all is told apart from one that is zero, so that a renamed counter cannot pass for zero.
//! Source: the OpenMetrics specification, "Text format".
use std::collections::{BTreeMap, BTreeSet};

/// Begins the name of every metric of our programs.
const PREFIX: &str = "ursa_";

/// The samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    sums: BTreeMap<String, f64>,
    /// Families that were announced by a TYPE line, with or without samples.
    families: BTreeSet<String>,
}

impl Metrics {
    /// Reads a scrape. Lines that are no samples are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                metrics.families.extend(rest.split_whitespace().next().map(str::to_owned));
            } else if !line.starts_with('#')
                && let Some((name, value)) = sample(line)
            {
                *metrics.sums.entry(name.to_owned()).or_default() += value;
            }
        }
        metrics
    }

    /// The sum of one of our metrics over all its label sets; `name` is without the prefix that all of them carry.
    /// Zero if its family is announced but has no sample yet; none if it is unknown.
    #[must_use]
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.plain(&format!("{PREFIX}{name}")).or_else(|| self.plain(name))
    }

    fn plain(&self, name: &str) -> Option<f64> {
        let announced = || {
            [name, name.strip_suffix("_total").unwrap_or(name)]
                .iter()
                .any(|n| self.families.contains(*n))
        };
        self.sums.get(name).copied().or_else(|| announced().then_some(0.0))
    }
}

fn sample(line: &str) -> Option<(&str, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let values = if rest.starts_with('{') {
        &rest[closing_brace(rest)? + 1..]
    } else {
        rest
    };
    Some((name, values.split_whitespace().next()?.parse().ok()?))
}

/// The brace that closes the labels: a `}` inside a quoted value does not.
fn closing_brace(labels: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in labels.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_sums_over_labels_and_knows_zero_from_unknown() {
        let metrics = Metrics::parse(
            "# TYPE ursa_xds_nacks counter\nursa_xds_nacks_total{type_url=\"a\"} 2\nursa_xds_nacks_total{type_url=\"b}\\\" 9\"} 1 # {x=\"y\"} 1\n\
             # TYPE ursa_kds_nack counter\nup 1\n# EOF\n",
        );
        assert_eq!(metrics.sum("xds_nacks_total"), Some(3.0));
        assert_eq!(metrics.sum("kds_nack_total"), Some(0.0));
        assert_eq!(metrics.sum("up"), Some(1.0));
        assert_eq!(metrics.sum("xds_unchanged_pushes_total"), None);
    }
}
