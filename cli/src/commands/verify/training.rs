//! The loss of a reference, its gradients, and the weights after some steps.

use std::collections::HashMap;

use anyhow::{ensure, Context, Result};
use ln_tuning::loss::{LinearCrossEntropy, IGNORE_INDEX};
use ln_tuning::models::{AnyModel, Inputs};
use ln_tuning::{AdamW, LnTuningModel, DEFAULT_ADAPTER};
use tch::{Device, Kind, Reduction, Tensor};

use super::errors::Errors;

/// Trains as the reference says, and compares the loss, its gradients and the weights in the end.
pub fn compare(
    model: &AnyModel,
    tuned: &LnTuningModel,
    inputs: Inputs,
    reference: &HashMap<String, Tensor>,
) -> Result<Vec<Errors>> {
    let number = |name: &str| -> Result<f64> {
        let tensor = reference.get(name);
        let tensor = tensor.with_context(|| format!("the reference holds no '{name}'"))?;
        ensure!(tensor.numel() == 1, "'{name}' is {:?}, expected a number", tensor.size());
        Ok(tensor.f_to_kind(Kind::Double)?.f_double_value(&[])?)
    };
    let steps = number("steps")?;
    ensure!((1. ..=1000.).contains(&steps), "'steps' is {steps}, expected 1 to 1000");
    let mut optimizer = tuned.optimizer(AdamW::default(), number("lr")?)?;
    let mut results = Vec::new();
    for step in 0..steps as usize {
        optimizer.zero_grad()?;
        let loss = loss(model, inputs, reference)?;
        optimizer.backward(&loss)?;
        if step == 0 {
            results.push(("loss".to_owned(), loss.f_detach()?));
            let found = optimizer.gradients()?.into_iter();
            results.extend(found.filter_map(|(name, g)| Some((format!("gradients.{name}"), g?))));
        }
        optimizer.step()?;
    }
    for (key, weights) in tuned.state_dict(DEFAULT_ADAPTER)? {
        let name = key.strip_prefix("base_model.model.").unwrap_or(&key);
        let name = name.replacen(".ln_tuning_layers.", ".", 1);
        results.push((format!("weights.{name}"), weights));
    }
    let mut compared = Vec::new();
    for (name, ours) in results {
        let (theirs, exact) = (reference.get(&name), reference.get(&format!("exact.{name}")));
        let (Some(theirs), Some(exact)) = (theirs, exact) else {
            anyhow::bail!("the reference holds no '{name}', or no 'exact.{name}': was it made with this adapter?")
        };
        compared.push(Errors::of(&name, &ours, theirs, exact)?);
    }
    Ok(compared)
}

/// The loss of `labels` where there are some, else the mean of the hidden states, each multiplied by its `probe`.
fn loss(model: &AnyModel, inputs: Inputs, reference: &HashMap<String, Tensor>) -> Result<Tensor> {
    let Some(labels) = reference.get("labels") else {
        let probe = reference.get("probe");
        let probe = probe.context("the reference holds neither 'labels' nor a 'probe'")?;
        let states = model.hidden_states(inputs)?.f_to_kind(Kind::Float)?;
        return Ok(states.f_mul(probe)?.f_mean(Kind::Float)?);
    };
    let of_tokens = || labels.f_to_device(Device::Cpu);
    match (model, labels.dim()) {
        (AnyModel::Decoder(model), 2) => {
            return Ok(model.loss(inputs, &of_tokens()?, &LinearCrossEntropy::default())?)
        }
        (AnyModel::ImageTextToText(model), 2) => {
            return Ok(model.loss(inputs, &of_tokens()?, &LinearCrossEntropy::default())?)
        }
        _ => {}
    }
    let logits = model.logits(inputs)?.f_to_kind(Kind::Float)?;
    if labels.is_floating_point() {
        return Ok(logits.f_squeeze_dim(-1)?.f_mse_loss(labels, Reduction::Mean)?);
    }
    let logits = logits.f_flatten(0, -2)?;
    let labels = labels.f_reshape([-1])?;
    let none = None::<Tensor>;
    Ok(logits.f_cross_entropy_loss(&labels, none, Reduction::Mean, IGNORE_INDEX, 0.)?)
}
