//! Names that wrappers around Python modules put into the names of tensors.

/// Of `torch.compile`, of `DistributedDataParallel`, of FSDP, of activation checkpoints.
const WRAPPERS: [&str; 4] =
    ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The wrappers that any of these names has, each once.
pub(crate) fn wrappers_in(names: &[&str]) -> Vec<&'static str> {
    let has = |wrapper: &str| names.iter().any(|name| name.split('.').any(|part| part == wrapper));
    WRAPPERS.into_iter().filter(|wrapper| has(wrapper)).collect()
}

/// The wrapper that all of these names begin with.
#[cfg(feature = "models")]
pub(crate) fn wrapper_of_all(names: &[&str]) -> Option<&'static str> {
    let begins = |name: &str, wrapper: &str| {
        name.strip_prefix(wrapper).is_some_and(|rest| rest.starts_with('.'))
    };
    let of_all = |wrapper: &&str| names.iter().all(|name| begins(name, wrapper));
    WRAPPERS.into_iter().find(of_all).filter(|_| !names.is_empty())
}
