//! Money-like numbers: exact, bounded, their scale kept.

use std::fmt;

use rust_decimal::Decimal;

/// Most integer digits of a value.
const INTEGER_DIGITS: usize = 15;
/// Most fractional digits of a value and so of a total.
const FRACTION_DIGITS: usize = 9;

/// An unsigned decimal of at most 15 integer and 9 fractional digits. The scale is that of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(Decimal);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(Decimal::ZERO);

    /// Reads digits with an optional fraction, as they stand in a JSON number or string.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (integer, fraction) = match text.split_once('.') {
            Some((integer, fraction)) => (integer, Some(fraction)),
            None => (text, None),
        };
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if text.starts_with('-') {
            return Err("must not be negative; give the sign by type: positive or negative");
        }
        if is_exponential(text) {
            return Err(
                "has an exponent, which is not taken: write all digits out, such as \"1000\" for 1e3; where a program \
                        writes numbers with exponents by itself, send the value as a string",
            );
        }
        if !digits(integer) || !fraction.is_none_or(digits) {
            return Err("must be a plain decimal such as \"125.50\": digits, optionally a point and more digits");
        }
        if integer.len() > INTEGER_DIGITS {
            return Err("has more than 15 integer digits");
        }
        if fraction.is_some_and(|fraction| fraction.len() > FRACTION_DIGITS) {
            return Err("has more than 9 fractional digits");
        }
        Decimal::from_str_exact(text).map(Self).map_err(|_| "is not a decimal")
    }

    /// An amount that was stored, so is known to be in bounds.
    #[must_use]
    pub fn stored(value: Decimal) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> Decimal {
        self.0
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a text is a number with an exponent, such as `1e3` or `1.5E-7`.
fn is_exponential(text: &str) -> bool {
    text.split_once(['e', 'E']).is_some_and(|(mantissa, exponent)| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        !exponent.is_empty() && digits(exponent) && mantissa.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// Whether a total is within 19 integer digits.
#[must_use]
pub fn total_in_bounds(total: Decimal) -> bool {
    // 10^19 at scale 0; beyond it the 96 bits of a decimal would begin to round.
    total.abs() < Decimal::from_i128_with_scale(10_000_000_000_000_000_000, 0)
}

/// A value or total in billionths, exact: sums of any number of keys fit.
#[must_use]
pub fn total_nanos(total: Decimal) -> i128 {
    debug_assert!(total.scale() <= 9, "a total has at most nine fractional digits");
    total.mantissa() * 10_i128.pow(9_u32.saturating_sub(total.scale()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_is_kept() {
        for text in ["0", "125.50", "0.000000001", "999999999999999.999999999", "1.000"] {
            assert_eq!(Amount::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn every_width_up_to_the_bounds_is_taken_and_none_beyond() {
        for integer in 1..=17 {
            for fraction in 0..=11 {
                for digit in ["1", "9"] {
                    let mut text = digit.repeat(integer);
                    if fraction > 0 {
                        text = format!("{text}.{}", digit.repeat(fraction));
                    }
                    assert_eq!(Amount::parse(&text).is_ok(), integer <= 15 && fraction <= 9, "{text}");
                }
            }
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", ".", "1.", ".5", "+1", "-1", "1e3", "NaN", "Infinity", "1_000", " 1", "1 ", "1,5", "٣", "0x1"]
        {
            assert!(Amount::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_exponent_is_refused_with_what_to_send_instead() {
        for text in ["1e3", "1E3", "1.5e-7", "1e+30", "0e0"] {
            let refused = Amount::parse(text).expect_err(text);
            assert!(
                refused.starts_with("has an exponent") && refused.contains("send the value as a string"),
                "{refused}"
            );
        }
        for text in ["e3", "1e", "1e+", "ten", "1f3", "1e3x"] {
            assert!(Amount::parse(text).expect_err(text).starts_with("must be a plain decimal"), "{text}");
        }
    }

    #[test]
    fn the_bound_of_totals_is_exact_and_adding_at_it_does_not_round() {
        let most: Decimal = "9999999999999999999.999999999".parse().expect("28 digits fit");
        let least: Decimal = "0.000000001".parse().expect("fits");
        assert!(total_in_bounds(most) && total_in_bounds(-most));
        let beyond = most.checked_add(least).expect("one more still fits 96 bits");
        assert_eq!(beyond.to_string(), "10000000000000000000.000000000");
        assert!(!total_in_bounds(beyond) && !total_in_bounds(-beyond));
        assert_eq!(total_nanos(most), 9_999_999_999_999_999_999_999_999_999);
        let value: Decimal = "999999999999999.999999999".parse().expect("fits");
        assert_eq!(most.checked_add(value).expect("fits").to_string(), "10000999999999999999.999999998");
    }
}
