//! Adapters: what they select, change, save and load, and that PEFT agrees.

#[path = "../common/mod.rs"]
mod common;
#[path = "../nets/mod.rs"]
mod nets;
#[path = "../trees/mod.rs"]
mod trees;

mod adapters;
mod architectures;
mod atomic;
mod bad_input;
mod bad_places;
mod checkpoint;
mod config;
mod foreign_writes;
#[cfg(feature = "models")]
mod heads;
#[cfg(feature = "models")]
mod image_text;
mod invariants;
mod many_variables;
mod merge;
mod merge_files;
mod new_variables;
mod non_finite;
mod norms;
mod patterns;
mod peft_faults;
mod peft_interop;
#[cfg(feature = "models")]
mod recipes;
#[cfg(feature = "models")]
mod resized;
mod saved_keys;
mod scaling;
mod selection;
mod special_files;
#[cfg(feature = "models")]
mod tied;
