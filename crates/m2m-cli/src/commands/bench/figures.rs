//! Figures of rounds, and what they come to.

/// The middle one; the mean of both where there are two. None of none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    match values.len() % 2 {
        0 => Some((upper + values.get(values.len() / 2 - 1)?) / 2.0),
        _ => Some(upper),
    }
}

/// The value below which `part` (of 1) of them lie. None of none.
pub(super) fn quantile(values: &mut [u32], part: f64) -> Option<u32> {
    let at = ((values.len() as f64 * part) as usize).min(values.len().checked_sub(1)?);
    Some(*values.select_nth_unstable(at).1)
}

/// So many digits behind the point.
pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

/// The number with a space before each group of three digits.
pub(super) fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value <= -0.5 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_lie_in_the_middle() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let mut values: Vec<u32> = (0..100).rev().collect();
        assert_eq!(quantile(&mut values, 0.5), Some(50));
        assert_eq!(quantile(&mut values, 0.99), Some(99));
        assert_eq!(quantile(&mut values, 1.0), Some(99));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn numbers_are_read_by_people() {
        assert_eq!(rounded(1.23456, 2), 1.23);
        for (value, text) in
            [(0.0, "0"), (999.4, "999"), (1000.0, "1 000"), (1_234_567.0, "1 234 567"), (-1234.0, "-1 234")]
        {
            assert_eq!(grouped(value), text);
        }
    }
}
