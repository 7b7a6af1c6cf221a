//! Amounts as other programs write them: thousands, a decimal comma, minor units, a sign.
//!
//! Must never turn a number into a float: an amount is a text from end to end.

use std::str::FromStr;

/// The decimal sign that `--decimal` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecimalSign {
    /// `1.234,56`
    Comma,
    /// `1,234.56`
    Point,
}

impl FromStr for DecimalSign {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "," | "comma" => Ok(Self::Comma),
            "." | "point" => Ok(Self::Point),
            _ => Err("must be , or ."),
        }
    }
}

impl DecimalSign {
    fn character(self) -> char {
        match self {
            Self::Comma => ',',
            Self::Point => '.',
        }
    }

    /// Whether a character separates thousands: the other of point and comma, blanks and apostrophes.
    fn separates(self, character: char) -> bool {
        let other = match self {
            Self::Comma => '.',
            Self::Point => ',',
        };
        character == other || matches!(character, ' ' | '\u{a0}' | '\u{202f}' | '\u{2009}' | '\'' | '\u{2019}')
    }
}

/// Notation of amounts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Numbers {
    pub(super) decimal: Option<DecimalSign>,
    /// Decimal places of minor units.
    pub(super) scale: Option<u8>,
}

/// An amount without its sign.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) is_negative: bool,
    pub(super) value: String,
}

impl Numbers {
    /// An amount as the service reads it: digits, and at most one point.
    ///
    /// # Errors
    /// The rule that the text breaks, and the remedy.
    pub(super) fn read(self, text: &str) -> Result<Amount, String> {
        let text = text.trim();
        let (is_negative, digits) = split_sign(text);
        let value = match self.decimal {
            Some(sign) => plain(digits, sign)?,
            None if digits.contains(',') => {
                return Err(
                    "holds a comma; give --decimal , where it is the decimal sign (1.234,56), or --decimal . where it \
                            separates thousands (1,234.56)"
                        .to_owned(),
                );
            }
            None => digits.to_owned(),
        };
        let (integer, fraction) =
            value.split_once('.').map_or((value.as_str(), None), |(left, right)| (left, Some(right)));
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(integer) || !fraction.is_none_or(is_number) {
            let sign = self.decimal.map_or_else(
                || "a decimal point".to_owned(),
                |sign| format!("the decimal sign {} that --decimal names", sign.character()),
            );
            return Err(format!("is no amount: it must be digits, optionally {sign} and more digits"));
        }
        let value = match self.scale {
            Some(places) => major(&value, places)?,
            None => value,
        };
        Ok(Amount { is_negative, value })
    }
}

/// Takes the sign off: before the number, or as ledgers write it, behind the number or by brackets.
fn split_sign(text: &str) -> (bool, &str) {
    const MINUS: [char; 2] = ['-', '\u{2212}'];
    let in_brackets = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    let rest = text.strip_prefix(MINUS).or_else(|| text.strip_suffix(MINUS)).or(in_brackets);
    match rest {
        Some(rest) => (true, rest.trim()),
        None => (false, text.strip_prefix('+').unwrap_or(text).trim()),
    }
}

/// A number without separators of thousands, with a decimal point.
fn plain(text: &str, sign: DecimalSign) -> Result<String, String> {
    let (integer, fraction) =
        text.split_once(sign.character()).map_or((text, None), |(left, right)| (left, Some(right)));
    let groups: Vec<&str> = integer.split(|character| sign.separates(character)).collect();
    let is_grouped = groups.iter().skip(1).all(|group| group.len() == 3) && groups[0].len() <= 3;
    if groups.len() > 1 && !is_grouped {
        return Err(format!(
            "is no amount with the decimal sign {}: what separates thousands does not stand before three digits",
            sign.character()
        ));
    }
    let mut value = groups.concat();
    if let Some(fraction) = fraction {
        value.push('.');
        value.push_str(fraction);
    }
    Ok(value)
}

/// A whole number of minor units in major ones.
fn major(value: &str, places: u8) -> Result<String, String> {
    if value.contains('.') {
        return Err(format!("holds a fraction, but --scale {places} takes whole numbers of minor units"));
    }
    let places = usize::from(places);
    let digits = format!("{:0>width$}", value.trim_start_matches('0'), width = places + 1);
    let (integer, fraction) = digits.split_at(digits.len() - places);
    Ok(format!("{integer}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, decimal: Option<DecimalSign>, scale: Option<u8>) -> Option<String> {
        let amount = Numbers { decimal, scale }.read(text).ok()?;
        Some(format!("{}{}", if amount.is_negative { "-" } else { "" }, amount.value))
    }

    #[test]
    fn amounts_with_a_decimal_comma_and_thousands_are_exact() {
        for (text, value) in [
            ("1.234,56", Some("1234.56")),
            ("-1.234.567,00", Some("-1234567.00")),
            ("0,5", Some("0.5")),
            ("12", Some("12")),
            ("1\u{a0}234,5", Some("1234.5")),
            ("1'234,5", Some("1234.5")),
            ("12,50-", Some("-12.50")),
            ("(1.200,00)", Some("-1200.00")),
            ("-(5)", None),
            ("--5", None),
            ("\u{2212} 3,1", Some("-3.1")),
            ("+7", Some("7")),
            // A point that separates no thousands: reading it either way may be wrong by a factor of 100.
            ("1234.56", None),
            ("1.23", None),
            ("1,2,3", None),
            ("1234.567,0", None),
            ("€ 5,00", None),
            ("", None),
            (",5", None),
        ] {
            assert_eq!(read(text, Some(DecimalSign::Comma), None).as_deref(), value, "{text}");
        }
        assert_eq!(read("1,234.56", Some(DecimalSign::Point), None).as_deref(), Some("1234.56"));
        assert_eq!(read("12345678901234567.890", None, None).as_deref(), Some("12345678901234567.890"));
        for text in ["1,5", "1e3", "NaN", "1.", "0x1"] {
            assert_eq!(read(text, None, None), None, "{text}");
        }
    }

    #[test]
    fn minor_units_move_the_point_and_never_round() {
        for (text, value) in [
            ("1999", Some("19.99")),
            ("5", Some("0.05")),
            ("0", Some("0.00")),
            ("-100", Some("-1.00")),
            ("000123", Some("1.23")),
            ("12345678901234599", Some("123456789012345.99")),
            ("19.99", None),
            ("1e3", None),
        ] {
            assert_eq!(read(text, None, Some(2)).as_deref(), value, "{text}");
        }
        assert_eq!(read("1.999", Some(DecimalSign::Comma), Some(3)).as_deref(), Some("1.999"));
    }
}
