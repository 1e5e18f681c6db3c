//! The names of the adapters of a batch's rows.

/// The names of adapters, one for each row of a batch or for each of its packed documents, for
/// [`Inputs::adapter_names`](super::Inputs::adapter_names). From slices, arrays and vectors of strings.
#[derive(Debug, Clone, Copy)]
pub struct AdapterNames<'a>(Names<'a>);

#[derive(Debug, Clone, Copy)]
enum Names<'a> {
    Borrowed(&'a [&'a str]),
    Owned(&'a [String]),
}

impl<'a> AdapterNames<'a> {
    pub(super) fn listed(self) -> Vec<&'a str> {
        match self.0 {
            Names::Borrowed(names) => names.to_vec(),
            Names::Owned(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// Conversions from a type of names, as its kind.
macro_rules! from {
    ($($kind:ident $name:ty;)*) => {$(
        impl<'a> From<&'a [$name]> for AdapterNames<'a> {
            fn from(names: &'a [$name]) -> Self {
                AdapterNames(Names::$kind(names))
            }
        }

        impl<'a, const N: usize> From<&'a [$name; N]> for AdapterNames<'a> {
            fn from(names: &'a [$name; N]) -> Self {
                AdapterNames(Names::$kind(names))
            }
        }

        impl<'a> From<&'a Vec<$name>> for AdapterNames<'a> {
            fn from(names: &'a Vec<$name>) -> Self {
                AdapterNames(Names::$kind(names))
            }
        }
    )*};
}

from! {
    Borrowed &'a str;
    Owned String;
}
