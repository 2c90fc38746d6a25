//! The text form of timestamps: RFC 3339 in UTC with three decimals.

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

/// Formats milliseconds since 1970 UTC like `2006-01-02T15:04:05.000Z`. Years before 0 and after
/// 9999, which RFC 3339 does not have, get as many digits as they need.
pub fn format_timestamp(ms: i64) -> String {
    let (days, ms) = (ms.div_euclid(MS_PER_DAY), ms.rem_euclid(MS_PER_DAY));
    let (year, month, day) = date(days);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, ms) = (ms / 1000 % 60, ms % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// The Gregorian date of a day counted from 1970-01-01.
///
/// Years are counted from March here, so that the leap day is the last of its year, in eras of
/// 400 years = 146,097 days.
fn date(days_since_1970: i64) -> (i64, i64, i64) {
    let days = days_since_1970 + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        // Computed with `date -u -d @<seconds> +%FT%TZ`.
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(format_timestamp(ms), text);
        }
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        assert!(format_timestamp(i64::MAX).starts_with("292278994-08-17T"));
        assert!(format_timestamp(i64::MIN).starts_with("-292275055-05-16T"));
    }
}
