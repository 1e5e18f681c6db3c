//! Training steps that `gpu/step_profile.py` calls, so that torch.profiler sees ours as it sees PEFT's: it records what
//! the process does, and tch has no profiler.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_char, c_int, CStr};

use anyhow::{Context, Result};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, Model};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::On;

struct Training {
    _vs: VarStore,
    model: Decoder,
    opt: Optimizer,
    device: Device,
}

thread_local! {
    static TRAINING: RefCell<Option<Training>> = const { RefCell::new(None) };
}

/// Loads a decoder in bf16 and attaches LN tuning. Gives 0, or 1 after an error, which goes to standard error.
///
/// # Safety
/// `dir` is a string that ends with a zero.
#[no_mangle]
pub unsafe extern "C" fn ln_tuning_open(dir: *const c_char, cuda: c_int) -> c_int {
    // SAFETY: as the caller promises.
    let dir = unsafe { CStr::from_ptr(dir) };
    status(|| {
        let device = if cuda == 0 { On::Cpu } else { On::Cuda }.device()?;
        let (vs, model) = Decoder::from_pretrained(dir.to_str()?, device, Kind::BFloat16)?;
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
        let opt = tuned.optimizer(AdamW::default().wd(0.01), 1e-4)?;
        TRAINING.set(Some(Training { _vs: vs, model, opt, device }));
        Ok(())
    })
}

/// One training step on the ids of `step_profile.py`, `batch` rows of `length`.
#[no_mangle]
pub extern "C" fn ln_tuning_step(batch: i64, length: i64) -> c_int {
    status(|| {
        TRAINING.with_borrow_mut(|training| {
            let Training { model, opt, device, .. } = training.as_mut().context("no model")?;
            let index = Tensor::arange(batch * length, (Kind::Int64, Device::Cpu));
            let labels = (index * 7919).remainder(model.config().vocab_size());
            let labels = labels.view([batch, length]);
            let ids = labels.to_device(*device);
            let loss = model.loss(&ids, &labels, &LinearCrossEntropy::default())?;
            opt.backward_step_clip_norm(&loss, 1.)?;
            Ok(())
        })
    })
}

fn status(body: impl FnOnce() -> Result<()>) -> c_int {
    match body() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error:#}");
            1
        }
    }
}
