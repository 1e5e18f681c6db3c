//! Labels and what they stand for: classes, of the model's own head or of a new one, or numbers.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::{anyhow, ensure, Context, Result};
use ln_tuning::pretrained::{Head, ModelFiles};
use ln_tuning::{natural_cmp, regular};
use serde_json::{json, Value};
use tch::{Kind, Tensor};

use super::problem::{number, problem_type, Own, ProblemType};
use super::rows::Rows;
use super::settings::ClassifierData;
use super::written::Written;

#[derive(Debug, Clone)]
pub struct Labels {
    /// Those of the head's outputs.
    pub names: Vec<String>,
    /// The model's own head is kept.
    pub of_model: bool,
    written: Written,
    /// Per label of the data, the number of its class, or its number.
    targets: HashMap<String, f64>,
    /// Words about labels that the head has and the data have not, or the reverse.
    note: String,
}

impl Labels {
    /// Those of the training data. The model's head is kept if it knows all of them; else there is a new one, for the
    /// labels in natural order.
    pub fn of(
        train: &Rows,
        eval: Option<&Rows>,
        files: &ModelFiles,
        data: &ClassifierData,
    ) -> Result<Self> {
        let own = Own::of(files.config())?;
        Self::chosen(&distinct(train), own, data, train.are_images())?.with_targets(train, eval)
    }

    /// Those of the head that an adapter was trained with: a `new` one, which is in the adapter, or the model's own.
    pub fn of_adapter(
        rows: &Rows,
        files: &ModelFiles,
        new: Option<&(Head, Vec<String>)>,
        adapter: &Path,
        data: &ClassifierData,
    ) -> Result<Self> {
        let beside = regular::read_text(&adapter.join("config.json")).unwrap_or_default();
        let mut config: Value = serde_json::from_str(&beside).unwrap_or_default();
        if let (Some((head, names)), Value::Null) = (new, &config["id2label"]) {
            let id2label = names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name)));
            config = json!({"id2label": Value::Object(id2label.collect())});
            config["architectures"] = json!([format!("{head:?}")]);
        }
        if config["id2label"].is_null() {
            config = files.config().clone();
        }
        let own = Own::of(&config)?;
        let names = own.as_ref().map(|own| shown(own.names.iter().map(String::as_str)));
        let found = distinct(rows);
        let mut labels = Self::chosen(&found, own, data, rows.are_images())?;
        ensure!(
            labels.of_model,
            "the labels of the data ({}) are not those of the adapter ({})",
            shown(found.iter().copied().collect::<Vec<_>>().into_iter()),
            names.unwrap_or_else(|| "it has none".into())
        );
        let of_base = Own::of(files.config())?.map(|own| own.names);
        labels.of_model = new.is_none() && of_base.as_ref() == Some(&labels.names);
        labels.with_targets(rows, None)
    }

    fn with_targets(self, train: &Rows, eval: Option<&Rows>) -> Result<Self> {
        let mut labels = self;
        for rows in [Some(train), eval].into_iter().flatten() {
            for (place, row) in rows.rows.iter().enumerate() {
                if !labels.targets.contains_key(&row.label) {
                    let target = labels.target(&row.label);
                    let target =
                        target.map_err(|error| anyhow!("{}: {error}", rows.place(place)))?;
                    labels.targets.insert(row.label.clone(), target);
                }
            }
        }
        Ok(labels)
    }

    fn new(names: Vec<String>, of_model: bool, written: Written, note: String) -> Self {
        Labels { names, of_model, written, targets: HashMap::new(), note }
    }

    fn chosen(
        found: &BTreeSet<&str>,
        own: Option<Own>,
        data: &ClassifierData,
        images: bool,
    ) -> Result<Self> {
        match problem_type(found, own.as_ref(), data.problem_type, data.new_head, images)? {
            ProblemType::Regression => Ok(Self::numbers(own, data)),
            _ => Self::classes(found, own, data),
        }
    }

    fn numbers(own: Option<Own>, data: &ClassifierData) -> Self {
        let mut names = own.map(|own| own.names).unwrap_or_default();
        let of_model = names.len() == 1 && !data.new_head;
        let note = match names.len() {
            0 => String::new(),
            1 if of_model => String::new(),
            1 => "; the model's own head is left out, as data.new_head says".into(),
            count => format!("; the model's own head, for {count} classes, is left out"),
        };
        if !of_model {
            names = vec!["LABEL_0".into()];
        }
        Labels::new(names, of_model, Written::Numbers, note)
    }

    fn classes(found: &BTreeSet<&str>, own: Option<Own>, data: &ClassifierData) -> Result<Self> {
        let own = own.map(|own| own.names).unwrap_or_default();
        let fits = [Written::Names, Written::NamesInOtherCase, Written::Indices, Written::Booleans]
            .into_iter()
            .find(|written| found.iter().all(|label| written.index(label, &own).is_some()));
        if let Some(written) = fits.filter(|_| own.len() > 1 && !data.new_head) {
            let seen: BTreeSet<usize> =
                found.iter().filter_map(|label| written.index(label, &own)).collect();
            let absent: Vec<&str> = (0..own.len())
                .filter(|index| !seen.contains(index))
                .map(|index| own[index].as_str())
                .collect();
            let mut note = String::new();
            if written != Written::Names {
                note += &format!("; the data call them {}", shown(found.iter().copied()));
            }
            if !absent.is_empty() {
                note += &format!(
                    "; the data have no {} (data.new_head: true leaves such labels out)",
                    shown(absent.into_iter())
                );
            }
            return Ok(Labels::new(own, true, written, note));
        }
        ensure!(
            found.len() > 1,
            "all rows have the label {found:?}, expected two labels or more to tell apart"
        );
        let is_name = |label: &&str| Written::Names.index(label, &own).is_some();
        let (known, unknown): (Vec<&str>, Vec<&str>) = found.iter().copied().partition(is_name);
        let is_index = |label: &&str| Written::Indices.index(label, &own).is_some();
        ensure!(
            known.is_empty() || unknown.is_empty() || !unknown.iter().all(is_index),
            "some labels are names of the model's ({}), others their numbers ({}): write all of them in one way",
            shown(known.into_iter()),
            shown(unknown.into_iter())
        );
        let is_absent = |label: &&str| number(label).is_some_and(|n| n == -1. || n == -100.);
        ensure!(
            own.len() < 2
                || data.new_head
                || !found.iter().any(is_index)
                || !found.iter().all(|label| is_index(label) || is_absent(label)),
            "some labels are numbers of the model's names, others -1 or -100, as of rows without a label: take those rows \
             away, or set data.new_head to true if they are a class"
        );
        let own_names = shown(own.iter().map(String::as_str));
        let note = match own.len() {
            0 => String::new(),
            _ if data.new_head => {
                format!(
                    "; the model's own head, for {own_names}, is left out, as data.new_head says"
                )
            }
            1 => "; the model's own head, for a number, is left out".into(),
            _ => format!(
                "; the model's own head, for {own_names}, does not know {} and is left out",
                shown(unknown.into_iter())
            ),
        };
        let mut names: Vec<String> = found.iter().map(|label| label.to_string()).collect();
        names.sort_by(|a, b| natural_cmp(a, b));
        Ok(Labels::new(names, false, Written::Names, note))
    }

    /// True if the head for these labels is the head for those, new or not.
    pub fn same_head(&self, other: &Labels) -> bool {
        (self.of_model, &self.names, self.are_numbers())
            == (other.of_model, &other.names, other.are_numbers())
    }

    pub fn are_numbers(&self) -> bool {
        self.written == Written::Numbers
    }

    /// The targets of labels: the number of each one's class, or the numbers themselves.
    pub fn targets<'l>(&self, labels: impl Iterator<Item = &'l str>) -> Result<Tensor> {
        let target = |label: &str| self.targets.get(label).copied().context("a label is not known");
        let targets = labels.map(target).collect::<Result<Vec<f64>>>()?;
        let kind = if self.are_numbers() { Kind::Float } else { Kind::Int64 };
        Ok(Tensor::f_from_slice(&targets)?.f_to_kind(kind)?)
    }

    fn target(&self, label: &str) -> Result<f64> {
        if self.are_numbers() {
            let number = number(label)
                .with_context(|| format!("the label '{label}' is not a number, expected one"))?;
            ensure!(
                (number as f32).is_finite(),
                "the label '{label}' is too large, expected at most {:e}",
                f32::MAX
            );
            return Ok(number);
        }
        let index = self.written.index(label, &self.names).map(|index| index as f64);
        let known = if self.of_model {
            "is not one of the model's"
        } else {
            "does not occur in the training data"
        };
        index.with_context(|| format!("the label '{label}' {known}"))
    }

    /// A line about the labels and the head.
    pub fn report(&self) -> String {
        let head = if self.of_model { "the model's own head" } else { "a new head" };
        if self.are_numbers() {
            return format!("labels are numbers (regression), {head}{}", self.note);
        }
        let names = shown(self.names.iter().map(String::as_str));
        format!("{} labels, {head}: {names}{}", self.names.len(), self.note)
    }
}

fn distinct(rows: &Rows) -> BTreeSet<&str> {
    rows.rows.iter().map(|row| row.label.as_str()).collect()
}

/// The first ten.
pub fn shown<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let more = if names.len() > 10 { ", …" } else { "" };
    format!("{}{more}", names.take(10).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(found: &[&str], config: &Value, data: &str, images: bool) -> Result<Labels> {
        let sample: Value = serde_yaml::from_str(super::super::SAMPLE)?;
        let mut all = sample["data"].clone();
        let given: Value = serde_yaml::from_str(data)?;
        all.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
        let data: ClassifierData = serde_json::from_value(all)?;
        Labels::chosen(&found.iter().copied().collect(), Own::of(config)?, &data, images)
    }

    fn classifier(names: &[&str]) -> Value {
        let names: serde_json::Map<_, _> =
            names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
        json!({"architectures": ["BertForSequenceClassification"], "id2label": names})
    }

    #[test]
    fn a_head_that_knows_the_labels_is_kept_and_another_one_is_replaced_with_words() {
        let three = classifier(&["NEG", "NEUTRAL", "POS"]);
        let (base, kept) =
            (json!({"architectures": ["BertModel"]}), "numbers (regression), the model's own head");
        let number = json!({
            "architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "problem_type": "regression",
        });
        let unnamed = json!({"architectures": ["BertForSequenceClassification"]});
        // The labels of the data, the model, the settings; if its head is kept, the target of the last label, a word.
        for (found, config, data, of_model, target, word) in [
            (&["NEG", "NEUTRAL", "POS"][..], &three, "{}", true, 2., "own head: NEG, NEUTRAL, POS"),
            (&["0", "1", "2"], &three, "{}", true, 2., "the data call them 0, 1, 2"),
            (&["1", "2"], &three, "{}", true, 2., "the data have no NEG"),
            (&["NEG", "POS"], &three, "{}", true, 2., "the data have no NEUTRAL"),
            (&["POS"], &three, "{}", true, 2., "the data have no NEG, NEUTRAL"),
            (&["neg", "pos"], &three, "{}", true, 2., "the data call them neg, pos"),
            (
                &["1.0", "2.0"],
                &three,
                "problem_type: single_label_classification",
                true,
                2.,
                "1.0, 2.0",
            ),
            (
                &["False", "True"],
                &classifier(&["NO", "YES"]),
                "{}",
                true,
                1.,
                "the data call them False, True",
            ),
            // Names go before numbers.
            (&["1", "2"], &classifier(&["1", "2"]), "{}", true, 1., "own head: 1, 2"),
            (&["0", "1"], &classifier(&["LABEL_0", "LABEL_1"]), "{}", true, 1., "own head"),
            (&["0", "1"], &unnamed, "{}", true, 1., "own head: LABEL_0, LABEL_1"),
            (&["0.5", "3"], &number, "{}", true, 3., kept),
            (&["1", "2", "3"], &number, "{}", true, 3., kept),
            (&["1.0", "2.0"], &number, "{}", true, 2., kept),
            (&["NEG", "SAD"], &three, "{}", false, 1., "for NEG, NEUTRAL, POS, does not know SAD"),
            (&["1", "2", "3"], &three, "{}", false, 2., "does not know 1, 2, 3"),
            (&["0", "1"], &three, "new_head: true", false, 1., "as data.new_head says"),
            (&["false", "true"], &three, "{}", false, 1., "does not know false, true"),
            (&["-0.5", "1e1"], &three, "{}", false, 10., "for 3 classes, is left out"),
            (&["1", "2"], &base, "problem_type: regression", false, 2., "a new head"),
            (&["1", "2"], &number, "new_head: true", false, 1., "2 labels, a new head: 1, 2"),
            (&["bad", "good"], &number, "{}", false, 1., "for a number, is left out"),
            (&["0", "1", "2+"], &base, "{}", false, 2., "3 labels, a new head"),
        ] {
            let labels = chosen(found, config, data, false).unwrap();
            let report = labels.report();
            assert_eq!(labels.of_model, of_model, "{found:?}: {report}");
            assert_eq!(
                labels.target(found.last().unwrap()).unwrap(),
                target,
                "{found:?}: {report}"
            );
            assert!(report.contains(word), "{found:?}: {report}");
        }
        let rated = classifier(&["0.5", "1.5"]);
        assert_eq!(
            chosen(&["0.5", "1.5"], &rated, "{}", false).unwrap().target("1.5").unwrap(),
            1.
        );
        // Folders have names, whatever they look like.
        assert!(!chosen(&["0.5", "1.5"], &three, "{}", true).unwrap().are_numbers());
    }

    #[test]
    fn labels_that_may_mean_two_things_are_refused() {
        let config = classifier(&["NEG", "POS"]);
        let several = json!({
            "architectures": ["BertForSequenceClassification"], "problem_type": "multi_label_classification",
            "id2label": {"0": "a", "1": "b"},
        });
        for (found, config, word) in [
            (&["0.0", "1.0"][..], &config, "set data.problem_type to regression, or to"),
            (&["0", "1", "1e30"], &config, "in the form of fractions, such as 1e30"),
            (&["-1", "0", "1"], &config, "-1 or -100, as of rows without a label"),
            (&["-100", "1"], &config, "set data.new_head to true"),
            (&["0.5", "good"], &config, "numbers and words at once, such as 0.5 and 'good'"),
            (&["1", "NEG"], &config, "names of the model's (NEG), others their numbers (1)"),
            (&["x"], &config, "expected two labels or more"),
            (&["a", "b"], &several, "set data.problem_type to single_label_classification"),
        ] {
            let error = chosen(found, config, "{}", false).unwrap_err().to_string();
            assert!(error.contains(word), "{found:?}: {error}");
        }
        let labels =
            chosen(&["a", "b"], &several, "problem_type: single_label_classification", false);
        assert!(labels.unwrap().of_model);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// Whatever the labels and the model's names are: each label that is taken has a target that the head has.
        #[test]
        fn every_label_that_is_taken_has_a_target_of_the_head(
            found in proptest::collection::btree_set("[0-3]|-1|0\\.5|1\\.0|NEG|neg|true|False|x|nan|1e999", 1..6),
            names in proptest::collection::btree_set("[0-3]|NEG|neg|POS|x|0\\.5", 0..5),
            new_head in proptest::prelude::any::<bool>(),
            images in proptest::prelude::any::<bool>(),
        ) {
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let config = if names.is_empty() { json!({}) } else { classifier(&names) };
            let Ok(labels) = chosen(&found, &config, &format!("new_head: {new_head}"), images) else {
                return Ok(());
            };
            proptest::prop_assert!(!labels.of_model || labels.names == names && !new_head);
            for label in &found {
                let target = labels.target(label).unwrap();
                let count = labels.names.len() as f64;
                proptest::prop_assert!(labels.are_numbers() || target < count, "{label}");
            }
        }
    }
}
