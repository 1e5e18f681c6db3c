//! The one opaque error of the crate, and the kinds of error to match on.

#[cfg(any(feature = "kernels", feature = "distributed"))]
pub(crate) mod border;
mod out_of_memory;

use std::borrow::Cow;
use std::fmt;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
///
/// Its message names the tensor, key or file, what was expected, what was found and the cure.
/// Match on [`Error::kind`] to tell the cases apart.
///
/// ```
/// use ln_tuning::{ErrorKind, LnTuningConfig};
/// let error = LnTuningConfig::from_json(r#"{"peft_type": "LORA"}"#).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::WrongPeftType);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    cause: anyhow::Error,
}

/// The kinds of [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A configuration is not valid: bad JSON or YAML, a wrong type, an invalid value.
    InvalidConfig,
    /// A configuration is for another PEFT method.
    WrongPeftType,
    /// A pattern of `target_modules`, `exclude_modules` or a key mapping does not compile.
    InvalidPattern,
    /// An adapter name cannot be used (empty, or with `.`, `/`, `\` or `..` in it).
    InvalidAdapterName,
    /// No `target_modules` were given, and none could be derived.
    NoTargetModules,
    /// No module matches `target_modules`.
    NoMatchingModules,
    /// Every module that `target_modules` matches is excluded.
    AllModulesExcluded,
    /// The `VarStore` holds no variable.
    EmptyVarStore,
    /// A variable was selected that cannot be trained (an integer, quantised or sparse tensor, no elements …).
    UnsupportedVariable,
    /// A selected variable shares its tensor with one that is not selected.
    TiedTensors,
    /// An adapter of this name exists already.
    DuplicateAdapter,
    /// There is no adapter of this name.
    UnknownAdapter,
    /// Adapters do not tune the same modules where they must.
    SelectionsDiffer,
    /// The operation does not fit the present state (merged, disabled, not active, frozen …).
    InvalidState,
    /// User code has changed variables under the adapter in a way that cannot be followed.
    BaseChanged,
    /// The loss has no gradient for any selected variable, or is not a scalar.
    NoGradient,
    /// A file is not what it should be: truncated, malformed, unsafe to read.
    CorruptFile,
    /// A required file or directory does not exist.
    MissingFile,
    /// A file has two entries of the same name.
    DuplicateKey,
    /// A tensor has another shape than the variable.
    ShapeMismatch,
    /// A tensor has a kind that cannot be put into the variable.
    KindMismatch,
    /// Required tensors are missing.
    MissingKeys,
    /// A file holds tensors that belong to no variable.
    UnexpectedKeys,
    /// A tensor holds NaN or infinity.
    NonFinite,
    /// An architecture or an option that is not implemented.
    Unsupported,
    /// An argument is out of range.
    InvalidArgument,
    /// Memory is not enough, on a device or on the host. Less work afterwards succeeds: a smaller batch, or
    /// [`recompute::Recompute`](crate::recompute::Recompute).
    #[doc(alias = "OutOfMemoryError")]
    OutOfMemory,
    /// The processes of a group do not find each other, do not fit together, or one of them ended or does not answer.
    #[doc(alias = "DistBackendError")]
    Distributed,
    /// The operating system refused (permissions, a full disk …).
    Io,
    /// libtorch refused.
    Torch,
}

/// An [`Error`]: its kind, then its message as in `format!`.
macro_rules! refusal {
    ($kind:ident, $($message:tt)+) => {
        $crate::error::Error::new($crate::error::ErrorKind::$kind, format!($($message)+))
    };
}

/// Returns an [`Error`]: its kind, then its message as in `format!`.
macro_rules! refuse {
    ($($error:tt)+) => {
        return Err($crate::error::refusal!($($error)+))
    };
}

pub(crate) use {refusal, refuse};

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Error(Box::new(Inner { kind, cause: anyhow::anyhow!("{message}") }))
    }

    /// This error, with another one as its cause.
    pub(crate) fn caused_by(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let cause = anyhow::Error::new(source).context(self.to_string());
        Error(Box::new(Inner { kind: self.0.kind, cause }))
    }

    /// An error with another one as its cause.
    #[cfg(feature = "models")]
    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl fmt::Display + Send + Sync + 'static,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Error::new(kind, message).caused_by(source)
    }

    /// An error of the operating system about a path: `doing` completes "cannot …".
    pub(crate) fn io(doing: &str, path: &std::path::Path, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::MissingFile,
            std::io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("cannot {doing} '{}'", path.display())).caused_by(source)
    }

    /// The kind of error, to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

/// Shows the message and its causes, on one line, without what is very long in it: it may quote a file.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 4000;
        f.write_str(&shortened(&without_long_words(&format!("{:#}", self.0.cause)), MOST))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

/// The beginning of a text that has more characters than `most`.
pub(crate) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// The text with the middle of its words left out where they are longer than any path.
fn without_long_words(text: &str) -> String {
    const LONGEST: usize = 400;
    const SHOWN: usize = 60;
    let shown = |word: &str| -> String {
        let letters = word.chars().count();
        if letters <= LONGEST {
            return word.to_owned();
        }
        let start: String = word.chars().take(SHOWN).collect();
        let end: String = word.chars().skip(letters - SHOWN).collect();
        format!("{start}…{end}")
    };
    text.split(' ').map(shown).collect::<Vec<_>>().join(" ")
}

impl std::error::Error for Error {}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // A trace of C++ frames follows the message; it tells users of this crate nothing.
        let text = error.to_string();
        let message = text.split("\nException raised from").next().unwrap_or(&text);
        if message.contains("modified by an inplace operation") {
            return refusal!(
                InvalidState,
                "the loss was computed before weights changed that its gradient needs (a step, loaded weights, another \
                 adapter?): compute it again from the model as it is now, then go backward"
            );
        }
        if message.contains("backward through the graph a second time") {
            return refusal!(
                InvalidState,
                "the graph of the loss is gone: a backward pass frees it. Go backward once, through the sum of the losses \
                 that share a part of it, or compute the loss again"
            );
        }
        if let Some(message) = out_of_memory::explained(message) {
            return refusal!(OutOfMemory, "{message}");
        }
        refusal!(Torch, "libtorch refused: {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_not_longer_than_a_page_whatever_a_file_holds() {
        let error = Error::new(ErrorKind::CorruptFile, "é ".repeat(1 << 20));
        assert_eq!(error.to_string().chars().count(), 4001);
        assert!(format!("{error:?}").starts_with("CorruptFile: é é"));
        let error =
            Error::new(ErrorKind::CorruptFile, format!("no '{}' here", "é".repeat(1 << 20)));
        assert!(error.to_string().starts_with("no 'éé") && error.to_string().ends_with("é' here"));
        assert!(error.to_string().chars().count() < 200);
    }
}
