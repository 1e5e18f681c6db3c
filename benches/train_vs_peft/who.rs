//! Those who are compared.

/// A contender: this crate or PEFT, with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Ours,
    /// Without the feature `kernels`, as far as that can be told at run time.
    OursUnfused,
    /// With `base: packed`.
    OursPacked,
    OursRecomputed,
    /// With the step as a CUDA graph.
    OursGraphed,
    /// The matrix products of our step, alone.
    Floor,
    Eager,
    Compiled,
    /// With transformers' gradient checkpointing.
    Checkpointed,
}

impl Who {
    pub const ALL: [Who; 9] = [
        Who::Ours,
        Who::OursUnfused,
        Who::OursPacked,
        Who::OursRecomputed,
        Who::OursGraphed,
        Who::Floor,
        Who::Eager,
        Who::Compiled,
        Who::Checkpointed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Who::Ours => "ours",
            Who::OursUnfused => "ours, unfused",
            Who::OursPacked => "ours, packed",
            Who::OursRecomputed => "ours, checkpointed",
            Who::OursGraphed => "ours, as a CUDA graph",
            Who::Floor => "matrix products",
            Who::Eager => "PEFT eager",
            Who::Compiled => "PEFT compiled",
            Who::Checkpointed => "PEFT checkpointed",
        }
    }

    pub fn is_python(self) -> bool {
        matches!(self, Who::Eager | Who::Compiled | Who::Checkpointed)
    }

    /// For `Task::how`.
    pub fn how(self) -> &'static str {
        match self {
            Who::Ours | Who::OursUnfused | Who::OursPacked => "plain",
            Who::OursRecomputed => "recompute",
            Who::OursGraphed => "graph",
            Who::Floor => "floor",
            Who::Eager => "eager",
            Who::Compiled => "compile",
            Who::Checkpointed => "checkpoint",
        }
    }
}
