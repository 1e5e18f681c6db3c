//! The targets of a configuration that names none: by the model type, by name and shape, or by a recipe.

use std::collections::BTreeSet;

use super::architectures::{has_bare_norms, is_named, model_types, norm_names, Norms};
use super::tree::{around, Tree};
use crate::adapter::config::Modules;
use crate::adapter::recipe::Recipe;
use crate::error::{refusal, refuse, Error, Result};
use crate::names::nearest::sample;
use crate::names::pattern::matches_suffix;

/// The parts between an image tower and a text model.
const CONNECTORS: [&str; 8] = [
    "multi_modal_projector",
    "connector",
    "visual.merger",
    "visual.deepstack_merger_list",
    "language_projection",
    "mm_projector",
    "embed_vision",
    "aligner",
];

/// Segments of the paths of parts that see no words, in models with a connector.
pub(super) const TOWERS: [&str; 8] = [
    "vision_tower",
    "vision_model",
    "visual",
    "vision_encoder",
    "image_tower",
    "video_tower",
    "audio_tower",
    "qformer",
];

/// The names of the embeddings of words, of which a model has the first that is found.
const EMBEDDINGS: [&str; 6] =
    ["embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared"];

/// The heads of language models.
const HEADS: [&str; 2] = ["lm_head", "embed_out"];

/// The default targets, and true if these are names and not a list of recognised paths.
pub(super) fn default_targets(
    tree: &Tree,
    model_type: Option<&str>,
    norms: Norms,
) -> Result<(Modules, bool)> {
    let known = model_type.and_then(|model_type| norm_names(model_type, norms));
    if let Some(names) = known {
        // Without the names of other variants of the architecture.
        let used = |name: &&str| tree.paths().any(|path| matches_suffix(path, name));
        let (mut used, unused): (BTreeSet<&str>, BTreeSet<&str>) =
            names.into_iter().partition(used);
        if norms == Norms::All {
            // A model in a model, such as a tower, may be of any type.
            let is_used = |path: &str| used.iter().any(|name| matches_suffix(path, name));
            let others = tree.paths().filter(|path| tree.is_norm(path) && !is_used(path));
            let others: Vec<&str> = others.collect();
            used.extend(others);
        }
        return Ok((Modules::list(if used.is_empty() { unused } else { used }), true));
    }
    let found: Vec<String> =
        tree.paths().filter(|path| tree.is_norm(path)).map(str::to_owned).collect();
    if found.is_empty() {
        return Err(no_norms(tree, model_type, norms));
    }
    Ok((Modules::List(found), false))
}

/// The targets of a recipe.
pub(super) fn recipe_targets(
    tree: &Tree,
    model_type: Option<&str>,
    recipe: Recipe,
) -> Result<Modules> {
    let is_connector = |path: &str| CONNECTORS.iter().any(|name| matches_suffix(path, name));
    let connectors: Vec<&str> = tree.paths().filter(|path| is_connector(path)).collect();
    let in_tower = |path: &str| {
        let is_tower = |segment: &str| TOWERS.contains(&segment);
        !connectors.is_empty() && !around(path).any(is_connector) && path.split('.').any(is_tower)
    };
    let with_names = |names: &[&str]| -> Vec<&str> {
        let named = |path: &&str| names.iter().any(|name| matches_suffix(path, name));
        tree.paths().filter(named).filter(|path| !in_tower(path)).collect()
    };
    let mut chosen: Vec<&str> = Vec::new();
    if recipe != Recipe::LayernormSimple {
        chosen.extend(&connectors);
    }
    if recipe == Recipe::Layernorm {
        let embeddings = EMBEDDINGS.map(|name| with_names(&[name]));
        chosen.extend(embeddings.into_iter().find(|found| !found.is_empty()).unwrap_or_default());
        chosen.extend(with_names(&HEADS));
    }
    if recipe == Recipe::Connector && connectors.is_empty() {
        refuse!(
            NoTargetModules,
            "`recipe: connector` tunes what stands between an image tower and a text model ({}), and this model has \
             none: its modules are {}. Name the modules in `target_modules`",
            CONNECTORS.join(", "),
            sample(tree.paths())
        );
    }
    if recipe != Recipe::Connector {
        let is_norm =
            |path: &str| tree.is_norm(path) || model_type.is_some_and(|t| is_named(t, path));
        let norms = tree.paths().filter(|path| is_norm(path) && !in_tower(path));
        let norms: Vec<&str> = norms.collect();
        if norms.is_empty() {
            return Err(no_norms(tree, model_type, Norms::All));
        }
        chosen.extend(norms);
    }
    // PEFT fails to wrap a module and another in it.
    let roots: BTreeSet<&str> = chosen.iter().copied().collect();
    let is_inner = |path: &&str| around(path).any(|outer| outer != *path && roots.contains(outer));
    let outermost = roots.iter().filter(|path| !is_inner(path)).map(|path| regex::escape(path));
    Ok(Modules::Pattern(outermost.collect::<Vec<_>>().join("|")))
}

/// The reason for which no norm is found.
fn no_norms(tree: &Tree, model_type: Option<&str>, norms: Norms) -> Error {
    if let Some(model_type) = model_type.filter(|model_type| has_bare_norms(model_type)) {
        return refusal!(
            NoTargetModules,
            "the norms of '{model_type}' have no weights, so there is nothing to tune: take another model, or name \
             other modules in `target_modules`"
        );
    }
    let batch_norms: Vec<&str> = tree.paths().filter(|path| tree.is_batch_norm(path)).collect();
    if let Some(first) = batch_norms.first() {
        return refusal!(
            NoTargetModules,
            "the norms of this model are BatchNorms ({} such as '{first}'), which are not tuned by default: their \
             running statistics are no weights, and change in each pass with `train`. To tune their weights, name them \
             in `target_modules`, such as '{}': the adapter then has statistics of its own",
            batch_norms.len(),
            first.rsplit('.').next().unwrap_or(first)
        );
    }
    let (sample, known) = (sample(tree.paths()), model_types(norms).join(", "));
    refusal!(
        NoTargetModules,
        "no LayerNorm or RMSNorm was found by name and shape among {sample}: name the modules in `target_modules`, or \
         give the model type ({known})"
    )
}
