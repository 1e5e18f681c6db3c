//! What is known of a variable without its values.

use tch::Kind;

/// A variable without its values: what selection needs to know.
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
