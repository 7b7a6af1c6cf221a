//! Times as text.
//!
//! Must never lose a microsecond.

use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};

/// Reads RFC 3339 with any offset and at most 6 fractional digits, zeros behind them not counted.
///
/// # Errors
/// A sentence with the rule that the text breaks.
pub fn parse_time(text: &str) -> Result<DateTime<Utc>, &'static str> {
    const FORM: &str = "must be an RFC 3339 time with an offset, such as \"2026-01-31T12:00:00Z\"";
    if !text.is_ascii() || !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
        return Err(FORM);
    }
    if let Some((_, rest)) = text.split_once('.')
        && rest.bytes().take_while(u8::is_ascii_digit).skip(6).any(|digit| digit != b'0')
    {
        return Err("has more than 6 fractional digits of a second; round it to microseconds");
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| FORM)?;
    // chrono spells a leap second as more than 999,999,999 nanoseconds.
    if time.nanosecond() > 999_999_999 {
        return Err("is a leap second, which cannot be stored; give the second before or after it");
    }
    let utc = time.with_timezone(&Utc);
    if (1..=9999).contains(&utc.year()) { Ok(utc) } else { Err("must lie in the years 0001 to 9999 in UTC") }
}

/// Length of the longest text: `2026-01-31T12:00:00.123456Z`.
const LONGEST: usize = 27;

/// A time as RFC 3339 in UTC with `Z`, with as many fractional digits as needed (0, 3 or 6). It allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct TimeText {
    text: [u8; LONGEST],
    length: usize,
}

impl TimeText {
    /// The text of a time of the years 0000 to 9999. [`parse_time`] refuses every other.
    #[must_use]
    pub fn of(time: DateTime<Utc>) -> Self {
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let naive = time.naive_utc();
        let micros = naive.nanosecond() / 1_000;
        let year = u32::try_from(naive.year()).unwrap_or(0);
        digits(&mut text[..4], year);
        digits(&mut text[5..7], naive.month());
        digits(&mut text[8..10], naive.day());
        digits(&mut text[11..13], naive.hour());
        digits(&mut text[14..16], naive.minute());
        digits(&mut text[17..19], naive.second());
        digits(&mut text[20..26], micros);
        let end = match micros {
            0 => 19,
            _ if micros.is_multiple_of(1_000) => 23,
            _ => 26,
        };
        text[end] = b'Z';
        Self { text, length: end + 1 }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

/// Writes a number with leading zeros.
fn digits(to: &mut [u8], mut number: u32) {
    for digit in to.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// RFC 3339 in UTC with `Z`, as many fractional digits as needed (0, 3 or 6).
#[must_use]
pub fn render_time(time: DateTime<Utc>) -> String {
    match time.year() {
        0..=9999 => TimeText::of(time).as_str().to_owned(),
        _ => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_behind_six_fractional_digits_of_a_time_are_taken() {
        let time = parse_time("2026-01-31T12:00:00.123456Z").expect("a time");
        for zeros in ["0", "000", "000000", &"0".repeat(40)] {
            assert_eq!(parse_time(&format!("2026-01-31T12:00:00.123456{zeros}Z")), Ok(time), "{zeros}");
            assert_eq!(parse_time(&format!("2026-01-31T13:00:00.123456{zeros}+01:00")), Ok(time), "{zeros}");
        }
        for digits in ["1234561", "1234560000001", "0000000001"] {
            let refused = parse_time(&format!("2026-01-31T12:00:00.{digits}Z")).expect_err(digits);
            assert!(refused.starts_with("has more than 6 fractional digits"), "{refused}");
        }
    }

    #[test]
    fn times_of_all_years_are_rendered_with_the_digits_that_they_need() {
        let first = parse_time("0001-01-01T00:00:00Z").expect("a time").timestamp_micros();
        let last = parse_time("9999-12-31T23:59:59.999999Z").expect("a time").timestamp_micros();
        let step = (last - first) / 9_973;
        for micros in (first..=last).step_by(step as usize).chain([last, -1, 0, 1, 999, 1_000, 1_000_000, 1_010_000]) {
            let time = DateTime::from_timestamp_micros(micros).expect("in range");
            assert_eq!(render_time(time), time.to_rfc3339_opts(SecondsFormat::AutoSi, true));
            assert_eq!(parse_time(TimeText::of(time).as_str()), Ok(time));
        }
    }
}
