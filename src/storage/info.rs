//! The name, shape and kind of a variable.

use tch::Kind;

/// The name, shape and kind of a variable, without its values: the input of a selection.
#[derive(Debug, Clone, PartialEq)]
pub struct VariableInfo {
    /// Its full name: the path of its module, a dot, its own name there.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its kind.
    pub kind: Kind,
    /// False for buffers, such as BatchNorm statistics.
    pub is_parameter: bool,
}
