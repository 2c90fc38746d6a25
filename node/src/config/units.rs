//! Durations and sizes as they are written in a configuration.

use std::time::Duration;

const DURATION_UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Longest duration that a configuration may ask for: 100 years.
const MAX_SECONDS: f64 = 100.0 * 366.0 * 86_400.0;

const SIZE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1000),
    ("MB", 1000 * 1000),
    ("GB", 1000 * 1000 * 1000),
    ("TB", 1000 * 1000 * 1000 * 1000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
];

/// Reads a duration as Go writes it: `10m`, `1.5s`, `1h30m`, `250ms`, or plain `0`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write it like 500ms, 1.5s, 10m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = DURATION_UNITS.iter().find(|(name, _)| *name == &rest[..end]);
        seconds += number * unit.ok_or_else(bad)?.1;
        rest = &rest[end..];
    }
    if text.is_empty() || seconds > MAX_SECONDS {
        return Err(bad());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Reads a size: `64MB` (decimal), `64MiB` (binary), or plain bytes. Case does not matter.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: write it like 64MB, 1GiB or 1048576");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = text[digits..].trim().to_ascii_uppercase();
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    number.checked_mul(*factor).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("10m", 600_000),
            ("1.5s", 1500),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            (".5s", 500),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "10", "s", "1x", "-1s", "1.2.3s", "1e3s", "999999999h", "1s ", "10m5"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_tell_decimal_from_binary() {
        for (text, bytes) in [
            ("64MB", 64_000_000),
            ("64mb", 64_000_000),
            ("64 MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("4096", 4096),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "MB", "1.5GB", "-1", "64M", "99999999999GB", "18446744073709551616"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
