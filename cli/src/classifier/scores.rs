//! Scores of predictions.

/// Counts of (label, prediction).
pub struct Confusion {
    counts: Vec<Vec<u64>>,
}

impl Confusion {
    pub fn new(classes: usize) -> Self {
        Confusion { counts: vec![vec![0; classes]; classes] }
    }

    pub fn add(&mut self, label: i64, prediction: i64) {
        self.counts[label as usize][prediction as usize] += 1;
    }

    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.counts.len()).map(|class| self.counts[class][class]).sum();
        let all: u64 = self.counts.iter().flatten().sum();
        right as f64 / all.max(1) as f64
    }

    /// The mean over the classes of the harmonic mean of precision and recall; classes that neither occur nor are
    /// predicted are left out.
    pub fn f1(&self) -> f64 {
        let classes = 0..self.counts.len();
        let of = |class: usize| {
            let right = self.counts[class][class];
            let labelled: u64 = self.counts[class].iter().sum();
            let predicted: u64 = self.counts.iter().map(|row| row[class]).sum();
            (labelled + predicted > 0).then(|| 2. * right as f64 / (labelled + predicted) as f64)
        };
        let found: Vec<f64> = classes.filter_map(of).collect();
        found.iter().sum::<f64>() / found.len().max(1) as f64
    }
}

/// Pearson's correlation: 1 where predictions rise with the labels in a line. NaN where one side is constant.
pub fn pearson(labels: &[f64], predictions: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (a, b) = (mean(labels), mean(predictions));
    let pairs = || labels.iter().zip(predictions).map(|(x, y)| (x - a, y - b));
    let product: f64 = pairs().map(|(x, y)| x * y).sum();
    let squares: (f64, f64) = pairs().fold((0., 0.), |(s, t), (x, y)| (s + x * x, t + y * y));
    product / (squares.0.sqrt() * squares.1.sqrt())
}

/// Spearman's correlation: Pearson's of the ranks.
pub fn spearman(labels: &[f64], predictions: &[f64]) -> f64 {
    pearson(&ranks(labels), &ranks(predictions))
}

/// Equal values share the mean of their places.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        for place in equal {
            ranks[*place] = before as f64 + (equal.len() + 1) as f64 / 2.;
        }
        before += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of scipy.stats.
    #[test]
    fn correlations_are_those_of_scipy() {
        let labels = [0.5, 2.25, 3.0, 3.0, 4.75, 1.0];
        let predictions = [0.1, 2.0, 2.5, 9.0, 2.5, -1.0];
        assert!((pearson(&labels, &predictions) - 0.5020218813362124).abs() < 1e-12);
        assert!((spearman(&labels, &predictions) - 0.8088235294117647).abs() < 1e-12);
        assert!(pearson(&labels, &[1.; 6]).is_nan());
        assert_eq!(spearman(&labels, &labels), 1.);
    }
}
