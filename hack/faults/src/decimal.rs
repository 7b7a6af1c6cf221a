//! Decimals as whole billionths: for the campaign's own sums, which share no code with those of the product.

/// Digits behind the point.
const SCALE: usize = 9;

/// The billionths of a decimal text; `None` where it is no decimal, or has more than nine digits behind the point.
pub(crate) fn parse(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > SCALE || !plain(whole) || !plain(part) {
        return None;
    }
    let billionths: i128 = format!("{whole}{part:0<SCALE$}").parse().ok()?;
    Some(sign * billionths)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn digits_are_kept() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("-12.5"), Some(-12_500_000_000));
        assert_eq!(parse("999999999999999.000000001"), Some(999_999_999_999_999_000_000_001));
        for wrong in ["", "-", "1e3", "1.0000000001", "+1", ".5", "1.2.3"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
