//! To be replaced.
use super::files::ModelFiles;
use super::head::Head;
use crate::error::Result;

impl ModelFiles {
    pub(crate) fn head(&self) -> Head {
        Head::LanguageModel
    }
    pub(crate) fn with_head(self, _head: Head) -> Result<Self> {
        Ok(self)
    }
    pub(crate) fn is_of_head(&self, name: &str) -> bool {
        name.starts_with("classifier.") || name.starts_with("pre_classifier.")
    }
}
