//! Adapters whose keys are those of another layout of the model: of a former version of transformers, of the text model
//! alone, of the class without a head.

use std::collections::{HashMap, HashSet};

use super::keys::{
    carried, file_key, match_keys, prefixed, unprefixed, variable_of, KeyMapping, Matched,
};
use crate::adapter::config::LnTuningConfig;
use crate::adapter::selection::{Norms, SelectedTensor, Selection};
use crate::error::{refusal, Error, Result};
use crate::names::nearest::listed;
use crate::storage::info::VariableInfo;

/// Names of another layout.
struct Layout {
    /// Patterns of names here, and what they are there: the first that matches is applied. Names that none matches are
    /// the same there.
    rules: &'static [(&'static str, &'static str)],
    /// The beginnings of names here that are there too; all names if there are none.
    only: &'static [&'static str],
    /// The beginning of a name that is here in each model that has this layout.
    sign: &'static str,
}

const fn all(rules: &'static [(&'static str, &'static str)]) -> Layout {
    Layout { rules, only: &[], sign: "" }
}

const fn seeing(rules: &'static [(&'static str, &'static str)]) -> Layout {
    Layout { rules, only: &[], sign: "model.language_model." }
}

const fn part(
    rules: &'static [(&'static str, &'static str)],
    only: &'static [&'static str],
) -> Layout {
    Layout { rules, only, sign: "" }
}

/// The beginnings of names of the text model in one of images and texts, with its head and without, and of the tower.
const TEXT: &[&str] =
    &["lm_head.", "model.language_model.", "model.text_model.", "language_model.", "text_model."];
const BARE_TEXT: &[&str] =
    &["model.language_model.", "model.text_model.", "language_model.", "text_model."];
const TOWER: &[&str] =
    &["model.vision_tower.", "model.vision_model.", "vision_tower.", "vision_model."];

/// The layouts, those of one class before those of another.
const LAYOUTS: &[Layout] = &[
    // Models of images and texts before transformers 4.52, whose CLIP and SigLIP towers have a level more, or not.
    seeing(&[
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(vision_tower|image_tower|video_tower)\.", r"\1.vision_model."),
        (r"^model\.", ""),
    ]),
    seeing(&[
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.", ""),
    ]),
    // From 4.52 on, before the level went.
    seeing(&[(r"^model\.(vision_tower|image_tower|video_tower)\.", r"model.\1.vision_model.")]),
    // Qwen2-VL and Qwen2.5-VL before 4.52.
    seeing(&[(r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")]),
    // The first LLaVA.
    seeing(&[
        (r"^model\.language_model\.", "model."),
        (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    ]),
    // A tower that stands alone, then and now.
    all(&[("^", "vision_model.")]),
    all(&[("^", "text_model.")]),
    // ViT and its relatives before transformers 5.
    all(&[(r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2.")]),
    // The text model alone, with a head and without.
    part(&[(r"^(model\.)?(language_model|text_model)\.", "model.")], TEXT),
    part(&[(r"^(model\.)?(language_model|text_model)\.", "")], BARE_TEXT),
    // The image tower alone, then and now.
    part(&[(r"^(model\.)?(vision_tower|vision_model)\.", "vision_model.")], TOWER),
    part(&[(r"^(model\.)?(vision_tower|vision_model)\.", "")], TOWER),
    // Here the text model alone, there one of images and texts.
    all(&[(r"^model\.", "model.language_model.")]),
    all(&[(r"^model\.", "model.text_model.")]),
    all(&[(r"^model\.", "language_model.model."), (r"^lm_head\.", "language_model.lm_head.")]),
    all(&[(r"^", "model.language_model.")]),
];

/// The class without a head there, and here.
const CLASSES: &[Layout] = &[all(&[(r"^model\.", "")]), all(&[("^", "model.")])];

/// The variables of a model for which an adapter may be.
pub(crate) struct Known<'a> {
    pub(crate) variables: &'a [VariableInfo],
    pub(crate) model_type: Option<&'a str>,
    pub(crate) norms: Norms,
    /// True if the names cannot be those of another class.
    pub(crate) of_one_class: bool,
    /// True if the adapter may lack tensors, but not all.
    pub(crate) may_lack: bool,
}

/// The way in which an adapter fits a model.
pub(crate) enum Fit {
    /// Its names are those of the model, or of none that is known.
    AsItIs,
    /// All of it is that of another layout of the model.
    Renamed(Renamed),
    /// All that its settings select is found in another layout, beside tensors that have no place here.
    InPart(Renamed, Error),
}

/// The keys and the configuration of an adapter in the names of the model.
pub(crate) struct Renamed {
    pub(crate) keys: Vec<String>,
    pub(crate) config: LnTuningConfig,
}

/// An adapter's keys among variables.
struct Found {
    selection: Selection,
    matched: Matched,
    /// The keys, by their places, of tensors of the base that it brings along, and the variables that they mean.
    carried: Vec<(usize, String)>,
}

/// True if each key is that of a variable, or a copy of the base's.
pub(crate) fn all_known(
    keys: &[&str],
    mapping: &KeyMapping,
    is_known: impl Fn(&str) -> bool,
) -> Result<bool> {
    for key in keys {
        let name = variable_of(&mapping.apply(unprefixed(key))?);
        if name.is_some_and(|name| !is_known(&name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The keys of tensors for an adapter in the names of its model, if they are those of another layout, all of them.
pub(crate) fn keys_here(
    wanted: &[&SelectedTensor],
    keys: &[&str],
    adapter: &str,
    mapping: &KeyMapping,
) -> Result<Option<Vec<String>>> {
    for layout in LAYOUTS.iter().chain(CLASSES) {
        let rules = KeyMapping::new(layout.rules)?;
        let there = |tensor: &&SelectedTensor| -> Result<Option<SelectedTensor>> {
            let name = rules.apply(&tensor.variable())?;
            let module = name.strip_suffix(&tensor.name).and_then(|name| name.strip_suffix('.'));
            Ok(module
                .map(|module| SelectedTensor { module: module.to_owned(), ..(*tensor).clone() }))
        };
        let there = wanted.iter().map(there).collect::<Result<Option<Vec<_>>>>()?;
        let Some(there) = there else { continue };
        let Ok(matched) = match_keys(&there.iter().collect::<Vec<_>>(), keys, adapter, mapping)
        else {
            continue;
        };
        if matched.missing.is_empty() && matched.unexpected.is_empty() {
            let mut keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            for (tensor, place) in wanted.iter().zip(matched.found) {
                if let Some(place) = place {
                    keys[place] = file_key(tensor);
                }
            }
            return Ok(Some(keys));
        }
    }
    Ok(None)
}

impl Known<'_> {
    /// Compares an adapter, which was saved or is to be loaded under the name `adapter`, with every layout.
    pub(crate) fn fit(
        &self,
        keys: &[&str],
        config: &LnTuningConfig,
        adapter: &str,
        mapping: &KeyMapping,
    ) -> Result<Fit> {
        let find =
            |variables: &[VariableInfo]| self.found(variables, keys, config, adapter, mapping);
        let here: HashSet<&str> = self.variables.iter().map(|v| v.name.as_str()).collect();
        if all_known(keys, mapping, |name| here.contains(name))? {
            return Ok(Fit::AsItIs);
        }
        let fits = |found: &Found| {
            let Matched { missing, found, .. } = &found.matched;
            missing.is_empty() || (self.may_lack && found.iter().any(Option::is_some))
        };
        let is_full = |found: &Found| fits(found) && found.matched.unexpected.is_empty();
        let as_it_is = find(self.variables)?;
        if as_it_is.as_ref().is_some_and(is_full) {
            return Ok(Fit::AsItIs);
        }
        let fits_as_it_is = as_it_is.as_ref().is_some_and(fits);
        let mut in_part = None;
        let classes = CLASSES.iter().filter(|_| self.of_one_class);
        for layout in LAYOUTS.iter().chain(classes) {
            let Some((there, back)) = self.there(layout)? else { continue };
            let Some(found) = find(&there)?.filter(fits) else { continue };
            let unexpected = &found.matched.unexpected;
            if !unexpected.is_empty() && (in_part.is_some() || fits_as_it_is) {
                continue;
            }
            let Some(renamed) = self.renamed(&found, &back, keys, config)? else { continue };
            if unexpected.is_empty() {
                return Ok(Fit::Renamed(renamed));
            }
            let error = refusal!(
                UnexpectedKeys,
                "the adapter is for a model of another class: {} of its tensors have no place here, such as those of an \
                 image tower: {}. Load it into a model of its class, or leave them out with \
                 `LoadOptions::allow_unexpected`",
                unexpected.len(),
                listed(unexpected)
            );
            in_part = Some(Fit::InPart(renamed, error));
        }
        Ok(in_part.unwrap_or(Fit::AsItIs))
    }

    /// The variables under the names of a layout, and the names here; `None` if none differs.
    #[allow(clippy::type_complexity)]
    fn there(&self, layout: &Layout) -> Result<Option<(Vec<VariableInfo>, HashMap<String, &str>)>> {
        if !self.variables.iter().any(|variable| variable.name.starts_with(layout.sign)) {
            return Ok(None);
        }
        let rules = KeyMapping::new(layout.rules)?;
        let is_there = |name: &str| {
            layout.only.is_empty() || layout.only.iter().any(|start| name.starts_with(start))
        };
        let (mut there, mut back, mut changed) = (Vec::new(), HashMap::new(), false);
        for variable in self.variables.iter().filter(|v| is_there(&v.name)) {
            let name = rules.apply(&variable.name)?;
            changed |= name != variable.name;
            if back.insert(name.clone(), variable.name.as_str()).is_some() {
                return Ok(None);
            }
            there.push(VariableInfo { name, ..variable.clone() });
        }
        Ok(changed.then_some((there, back)))
    }

    /// The keys among these variables; `None` if the settings select nothing there.
    fn found(
        &self,
        variables: &[VariableInfo],
        keys: &[&str],
        config: &LnTuningConfig,
        adapter: &str,
        mapping: &KeyMapping,
    ) -> Result<Option<Found>> {
        let selection = Selection::of_saved(variables, config, self.model_type, self.norms);
        let Ok(selection) = selection else { return Ok(None) };
        let wanted: Vec<SelectedTensor> = selection.tensors().collect();
        let wanted: Vec<&SelectedTensor> = wanted.iter().collect();
        let Ok(mut matched) = match_keys(&wanted, keys, adapter, mapping) else { return Ok(None) };
        let names: HashSet<&str> = variables.iter().map(|v| v.name.as_str()).collect();
        let places: HashMap<&str, usize> =
            keys.iter().enumerate().map(|(i, key)| (*key, i)).collect();
        let mut brought = Vec::new();
        for key in std::mem::take(&mut matched.unexpected) {
            match carried(&key, mapping)?.filter(|name| names.contains(name.as_str())) {
                Some(name) => brought.push((places[key.as_str()], name)),
                None => matched.unexpected.push(key),
            }
        }
        Ok(Some(Found { selection, matched, carried: brought }))
    }

    /// The adapter in the names here, to which `back` leads.
    fn renamed(
        &self,
        found: &Found,
        back: &HashMap<String, &str>,
        keys: &[&str],
        config: &LnTuningConfig,
    ) -> Result<Option<Renamed>> {
        let Some(selection) = found.selection.moved(self.variables, config, back)? else {
            return Ok(None);
        };
        let mut keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        for (tensor, place) in selection.tensors().zip(&found.matched.found) {
            if let Some(place) = place {
                keys[*place] = file_key(&tensor);
            }
        }
        for (place, name) in &found.carried {
            keys[*place] = prefixed(back[name]);
        }
        Ok(Some(Renamed { keys, config: selection.export_config(config) }))
    }
}
