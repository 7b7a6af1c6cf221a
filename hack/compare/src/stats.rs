//! Statistics of rounds: median, spread, and ratios pair by pair.
//!
//! Pure. Must never drop a value: a round that counts is in every statistic.

use serde::Serialize;

/// Median and spread of a figure over rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of these values; `None` without any.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Some(Self { median, min, max })
    }

    /// Of the ratios of `values` to `base`, each to the one of its own round. `None` where a round lacks a counterpart,
    /// or a value of `base` is zero.
    pub(crate) fn of_ratios(values: &[f64], base: &[f64]) -> Option<Self> {
        if values.len() != base.len() || base.contains(&0.0) {
            return None;
        }
        let ratios: Vec<f64> = values.iter().zip(base).map(|(value, base)| value / base).collect();
        Self::of(&ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn the_median_is_the_middle_value_in_any_order() {
        let summary = Summary::of(&[9.0, 1.0, 5.0, 2.0, 8.0]).unwrap();
        assert_eq!(summary, Summary { median: 5.0, min: 1.0, max: 9.0 });
    }

    #[test]
    fn the_median_of_an_even_count_is_between_the_two_in_the_middle() {
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 100.0]).unwrap().median, 3.0);
    }

    #[test]
    fn without_values_there_is_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // Both builds slow down alike from round to round: the ratio is the same in each.
        let ratios = Summary::of_ratios(&[20.0, 10.0, 4.0], &[10.0, 5.0, 2.0]).unwrap();
        assert_eq!(ratios, Summary { median: 2.0, min: 2.0, max: 2.0 });
    }

    #[test]
    fn the_median_ratio_is_not_the_ratio_of_medians() {
        let ratios = Summary::of_ratios(&[1.0, 6.0, 8.0], &[1.0, 2.0, 8.0]).unwrap();
        assert_eq!(ratios, Summary { median: 1.0, min: 1.0, max: 3.0 });
    }

    #[test]
    fn there_is_no_ratio_to_zero_or_to_a_missing_round() {
        assert_eq!(Summary::of_ratios(&[1.0, 2.0], &[1.0, 0.0]), None);
        assert_eq!(Summary::of_ratios(&[1.0, 2.0], &[1.0]), None);
    }
}
