//! Selected modules and their tensors.

use super::place::NormPlace;

/// The way in which a module is part of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Tuned: selected by `target_modules`.
    Tuned,
    /// Trained and saved as a whole: selected by `modules_to_save`.
    Whole,
}

/// A module that an adapter replaces, with all tensors in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedModule {
    /// The path of the module.
    pub path: String,
    /// The setting that selected it.
    pub role: Role,
    /// The full names of its variables.
    pub variables: Vec<String>,
    /// The place of a tuned norm; `None` for other modules.
    pub place: Option<NormPlace>,
    /// The module that PEFT wraps: this one or, with `modules_to_save`, one around it.
    pub(crate) wrapped: String,
}

/// One tensor of a selected module.
#[derive(Debug, Clone)]
pub(crate) struct SelectedTensor {
    /// The path of the module.
    pub(crate) module: String,
    /// The name of the tensor in the module.
    pub(crate) name: String,
    pub(crate) role: Role,
}

impl SelectedModule {
    pub(crate) fn tensors(&self) -> impl Iterator<Item = SelectedTensor> + '_ {
        self.variables.iter().map(|variable| SelectedTensor {
            module: self.path.clone(),
            name: variable[self.path.len() + 1..].to_owned(),
            role: self.role,
        })
    }
}

impl SelectedTensor {
    /// The full name of the variable.
    pub(crate) fn variable(&self) -> String {
        format!("{}.{}", self.module, self.name)
    }
}
