//! The status of adapters and modules, and the numbers of weights.

use std::collections::BTreeMap;
use std::fmt;

use tch::Device;

use crate::adapter::attachment::Attachment;
use crate::adapter::selection::{Role, UnusedModule};
use crate::adapter::variables::Variable;
use crate::adapter::weights::Adapter;
use crate::error::Result;
use crate::names::natural::Natural;

/// The number of trainable weights. [`Display`](fmt::Display) prints PEFT's line:
/// `trainable params: 8,704 || all params: 56,378,368 || trainable%: 0.0154`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainableParameters {
    /// The weights of the active adapter; 0 while nothing trains.
    pub trainable: u64,
    /// The weights of the base and of all adapters. Buffers do not count; a tied tensor counts once.
    pub total: u64,
}

impl TrainableParameters {
    /// The trainable share, in percent.
    pub fn percent(&self) -> f64 {
        if self.total == 0 {
            0.
        } else {
            100. * self.trainable as f64 / self.total as f64
        }
    }

    pub(crate) fn of(attachment: &Attachment) -> Self {
        let active = attachment.active.as_ref().and_then(|name| attachment.adapters.get(name));
        let trains = attachment.enabled && attachment.merged.is_none();
        let active = active.filter(|adapter| adapter.trainable && trains);
        TrainableParameters {
            trainable: active.map_or(0, |adapter| adapter.numel()),
            total: total(attachment),
        }
    }

    /// The numbers if this adapter were the only one.
    pub(crate) fn of_adapter(attachment: &Attachment, name: &str) -> Result<Self> {
        let own = attachment.adapter(name)?.numel();
        Ok(TrainableParameters { trainable: own, total: base(attachment) + own })
    }
}

impl fmt::Display for TrainableParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trainable, total) = (grouped(self.trainable), grouped(self.total));
        write!(
            f,
            "trainable params: {trainable} || all params: {total} || trainable%: {:.4}",
            self.percent()
        )
    }
}

/// The adapters of one module. Returned by [`LnTuningModel::layer_status`](crate::LnTuningModel::layer_status).
#[doc(alias = "TunerLayerStatus")]
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerStatus {
    /// The path of the module.
    pub name: String,
    /// The setting that selected it; [`Role::Whole`] is PEFT's `ModulesToSaveWrapper`.
    pub role: Role,
    /// True if adapters are enabled.
    pub enabled: bool,
    /// The active adapter, if it has weights for this module; else the module uses the base.
    pub active_adapter: Option<String>,
    /// The merged adapter, if it has weights for this module.
    pub merged_adapter: Option<String>,
    /// Per adapter with weights for this module: true if it is trainable while active.
    pub requires_grad: BTreeMap<String, bool>,
    /// The adapters with weights for this module, sorted.
    pub available_adapters: Vec<String>,
    /// The device of each adapter's weights.
    pub devices: BTreeMap<String, Device>,
}

/// The status of all adapters. Returned by [`LnTuningModel::model_status`](crate::LnTuningModel::model_status).
#[doc(alias = "TunerModelStatus")]
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelStatus {
    /// The number of trainable weights.
    pub parameters: TrainableParameters,
    /// The number of modules with adapters.
    pub num_adapter_layers: usize,
    /// True if adapters are enabled.
    pub enabled: bool,
    /// The adapter that is used while adapters are enabled.
    pub active_adapter: Option<String>,
    /// The merged adapter.
    pub merged_adapter: Option<String>,
    /// Per adapter: true if it is trainable while active.
    pub requires_grad: BTreeMap<String, bool>,
    /// All adapters, sorted.
    pub available_adapters: Vec<String>,
    /// The device of each adapter's weights.
    pub devices: BTreeMap<String, Device>,
    /// Per adapter: the modules that its settings name, and that were left out because they get no gradient in this
    /// model. Known for models from a directory.
    pub unused: BTreeMap<String, Vec<UnusedModule>>,
}

pub(crate) fn layers(attachment: &Attachment) -> Vec<LayerStatus> {
    let mut layers: BTreeMap<Natural, LayerStatus> = BTreeMap::new();
    for (name, adapter) in &attachment.adapters {
        for module in adapter.selection.trained() {
            let layer = layers.entry(Natural(module.path.clone())).or_insert_with(|| LayerStatus {
                name: module.path.clone(),
                role: module.role,
                enabled: attachment.enabled,
                active_adapter: None,
                merged_adapter: None,
                requires_grad: BTreeMap::new(),
                available_adapters: Vec::new(),
                devices: BTreeMap::new(),
            });
            let this = |other: &Option<String>| other.clone().filter(|other| other == name);
            layer.active_adapter = layer.active_adapter.take().or(this(&attachment.active));
            layer.merged_adapter = layer.merged_adapter.take().or(this(&attachment.merged));
            layer.requires_grad.insert(name.clone(), adapter.trainable);
            layer.available_adapters.push(name.clone());
            layer.devices.insert(name.clone(), device(adapter));
        }
    }
    layers.into_values().collect()
}

pub(crate) fn model(attachment: &Attachment) -> ModelStatus {
    let adapters = attachment.adapters.iter();
    ModelStatus {
        parameters: TrainableParameters::of(attachment),
        num_adapter_layers: layers(attachment).len(),
        enabled: attachment.enabled,
        active_adapter: attachment.active.clone(),
        merged_adapter: attachment.merged.clone(),
        requires_grad: adapters.clone().map(|(n, a)| (n.clone(), a.trainable)).collect(),
        available_adapters: attachment.adapters.keys().cloned().collect(),
        devices: adapters.clone().map(|(name, a)| (name.clone(), device(a))).collect(),
        unused: adapters.map(|(name, a)| (name.clone(), a.selection.unused().to_vec())).collect(),
    }
}

fn device(adapter: &Adapter) -> Device {
    adapter.flat.master().device()
}

fn base(attachment: &Attachment) -> u64 {
    let variables = attachment.variables.iter().enumerate();
    let own = |(index, v): &(usize, &Variable)| v.tied_to == *index && v.copy_of.is_none();
    let counted = variables.filter(|(_, v)| v.is_parameter || v.kept.is_some()).filter(own);
    let numel = |variable: &Variable| match &variable.kept {
        Some((shape, ..)) => shape.iter().product::<i64>() as u64,
        None => variable.tensor.numel() as u64,
    };
    counted.map(|(_, v)| numel(v)).sum()
}

fn total(attachment: &Attachment) -> u64 {
    base(attachment) + attachment.adapters.values().map(|adapter| adapter.numel()).sum::<u64>()
}

/// The number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
