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
