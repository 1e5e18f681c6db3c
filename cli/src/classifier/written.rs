//! The way labels stand in the data.

use super::problem::number;

/// The way labels stand in the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Names,
    NamesInOtherCase,
    /// The number of a name, from 0, as ClassLabel of datasets has it.
    Indices,
    /// false and true, of two names.
    Booleans,
    /// Numbers that are learned as such.
    Numbers,
}

impl Written {
    /// The number of a label's name among these.
    pub fn index(self, label: &str, names: &[String]) -> Option<usize> {
        match self {
            Written::Names => names.iter().position(|name| name == label),
            Written::NamesInOtherCase => {
                let label = label.trim().to_lowercase();
                let mut same =
                    (0..names.len()).filter(|index| names[*index].to_lowercase() == label);
                same.next().filter(|_| same.next().is_none())
            }
            Written::Indices => {
                let number =
                    number(label).filter(|number| number.fract() == 0. && *number >= 0.)?;
                Some(number as usize).filter(|index| *index < names.len())
            }
            Written::Booleans if names.len() == 2 => {
                ["false", "true"].iter().position(|word| label.trim().eq_ignore_ascii_case(word))
            }
            Written::Booleans | Written::Numbers => None,
        }
    }
}
