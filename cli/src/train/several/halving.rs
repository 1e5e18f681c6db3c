//! Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): at some steps, the worse half of the runs stops.

/// The steps at which half of the runs stops: the last at half of all steps, each other at half of the next one's.
pub fn rungs(runs: usize, total: u64) -> Vec<u64> {
    let halvings = runs.next_power_of_two().trailing_zeros();
    let mut steps: Vec<u64> = (1..=halvings).rev().map(|power| total >> power.min(63)).collect();
    steps.retain(|step| *step > 0);
    steps.dedup();
    steps
}

/// The places of those that stop: the worse half, by the value of each, of which the lowest is the best.
pub fn worse(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // NaN is the worst. Of equals, the later one stops.
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut stopped = order.split_off(values.len().div_ceil(2));
    stopped.sort_unstable();
    stopped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_is_left_for_the_second_half_of_the_steps() {
        assert_eq!(rungs(8, 80), [10, 20, 40]);
        assert_eq!(rungs(5, 80), [10, 20, 40]);
        assert_eq!(rungs(2, 80), [40]);
        assert_eq!(rungs(1, 80), [0; 0]);
        assert_eq!(rungs(256, 3), [1]);
        for runs in 1..40 {
            let mut left = runs;
            for _ in rungs(runs, 1 << 20) {
                left -= worse(&vec![1.; left]).len();
            }
            assert_eq!(left, 1, "{runs}");
        }
    }

    #[test]
    fn the_worse_half_stops_and_no_number_is_the_worst() {
        assert_eq!(worse(&[3., 1., 2., 4.]), [0, 3]);
        assert_eq!(worse(&[f64::NAN, 1., 2.]), [0]);
        assert_eq!(worse(&[1., 1., 1.]), [2]);
        assert!(worse(&[1.]).is_empty());
    }
}
