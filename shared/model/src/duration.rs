//! Go's duration texts ("1h30m", "15s", "250ms", "0s"), as every Kuma resource and token request writes them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A non-negative duration with Go's text form. Bounded by Go's int64 of nanoseconds (about 292 years).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(pub Duration);

/// A text that is no Go duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    #[error("invalid duration {0:?}")]
    Syntax(String),
    #[error("duration {0:?} must not be negative")]
    Negative(String),
}

const MAX_NANOS: u128 = i64::MAX as u128;

impl FromStr for GoDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let bad = || InvalidDuration::Syntax(text.chars().take(64).collect());
        let unsigned = match text.strip_prefix('-') {
            Some("0" | "0s") => "0",
            Some(_) => return Err(InvalidDuration::Negative(text.chars().take(64).collect())),
            None => text.strip_prefix('+').unwrap_or(text),
        };
        if unsigned == "0" {
            return Ok(Self::default());
        }
        let mut rest = unsigned;
        let mut nanos: u128 = 0;
        if rest.is_empty() || rest.len() > 128 {
            return Err(bad());
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (number, tail) = rest.split_at(end);
            let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, after) = tail.split_at(unit_end);
            let scale: u128 = match unit {
                "ns" => 1,
                "us" | "µs" | "μs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return Err(bad()),
            };
            let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
            if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 19 {
                return Err(bad());
            }
            let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
            nanos += whole * scale;
            let mut place = scale;
            for digit in fraction.bytes().take(18) {
                place /= 10;
                nanos += u128::from(digit - b'0') * place;
            }
            if nanos > MAX_NANOS {
                return Err(bad());
            }
            rest = after;
        }
        let secs = u64::try_from(nanos / 1_000_000_000).map_err(|_| bad())?;
        let sub = u32::try_from(nanos % 1_000_000_000).map_err(|_| bad())?;
        Ok(Self(Duration::new(secs, sub)))
    }
}

impl fmt::Display for GoDuration {
    /// Go's `Duration.String`: "1h30m0s", "1.5s", "250ms", "0s".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn decimal(f: &mut fmt::Formatter<'_>, nanos: u128, scale: u128, unit: &str) -> fmt::Result {
            let (whole, part) = (nanos / scale, nanos % scale);
            if part == 0 {
                return write!(f, "{whole}{unit}");
            }
            let digits = scale.ilog10() as usize;
            let text = format!("{part:0digits$}");
            write!(f, "{whole}.{}{unit}", text.trim_end_matches('0'))
        }
        let nanos = self.0.as_nanos();
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => decimal(f, nanos, 1_000, "µs"),
            1_000_000..1_000_000_000 => decimal(f, nanos, 1_000_000, "ms"),
            _ => {
                let minutes = nanos / 60_000_000_000;
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                decimal(f, nanos % 60_000_000_000, 1_000_000_000, "s")
            }
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_texts() {
        for (text, millis, shown) in [
            ("1h30m", 5_400_000, "1h30m0s"),
            ("15s", 15_000, "15s"),
            ("250ms", 250, "250ms"),
            ("1.5s", 1_500, "1.5s"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("2h", 7_200_000, "2h0m0s"),
            (".5m", 30_000, "30s"),
        ] {
            let d: GoDuration = text.parse().unwrap();
            assert_eq!(d.0, Duration::from_millis(millis), "{text}");
            assert_eq!(d.to_string(), shown);
        }
        for bad in [
            "",
            "5",
            "s",
            "1x",
            "1.2.3s",
            "-5s",
            "99999999999999999999h",
            "9999999h",
            "1h-5m",
            ".",
        ] {
            assert!(bad.parse::<GoDuration>().is_err(), "{bad}");
        }
    }
}
