//! Times as people read them. In: rows. Out: an aligned table.
use std::time::Duration;

use super::Row;

/// A duration in milliseconds, with as many digits as say something.
#[must_use]
pub fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// A table with a head, a line per group and a line per row.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(20);
    let mut text = format!(
        "{:<width$}  {:>6} {:>10} {:>10} {:>10} {:>10}\n",
        "", "n", "p50", "p90", "p99", "max"
    );
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = &row.group;
            text += &format!("{group}\n");
        }
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| milliseconds(row.times.quantile(q)));
        text += &format!(
            "{:<width$}  {:>6} {p50:>10} {p90:>10} {p99:>10} {:>10}\n",
            row.name,
            row.times.count(),
            milliseconds(row.times.max())
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::stats::Times;

    #[test]
    fn digits_follow_size() {
        let shown = [1_234, 12_345, 123_456].map(|us| milliseconds(Duration::from_micros(us)));
        assert_eq!(shown, ["1.23 ms", "12.3 ms", "123 ms"]);
    }

    #[test]
    fn columns_line_up_and_a_group_is_named_once() {
        let row = |name: &str| Row {
            group: "stages".into(),
            name: name.into(),
            times: Times::default(),
        };
        let text = table(&[row("committed"), row("first request under the new rule")]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.iter().filter(|l| **l == "stages").count(), 1);
        assert_eq!(lines[0].len(), lines[2].len());
        assert_eq!(lines[2].len(), lines[3].len());
    }
}
