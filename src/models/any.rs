//! Whichever model a directory holds.

use std::path::Path;

use tch::nn::VarStore;
use tch::{Device, Kind};

use super::clip::{Clip, ClipConfig};
use super::decoder::{Decoder, DecoderConfig};
use super::dinov2::{Dinov2, Dinov2Config};
use super::encoder::{Encoder, EncoderConfig};
use super::seq2seq::{Seq2Seq, Seq2SeqConfig};
use super::vit::{ViTConfig, ViTForImageClassification};
use crate::error::{Error, ErrorKind, Result};
use crate::pretrained::ModelFiles;

/// One of the models, by the `model_type` of a directory's `config.json`.
#[doc(alias = "AutoModel")]
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyModel {
    /// A decoder-only language model.
    Decoder(Box<Decoder>),
    /// A text encoder.
    Encoder(Box<Encoder>),
    /// An encoder-decoder.
    Seq2Seq(Box<Seq2Seq>),
    /// An image classifier.
    ViT(Box<ViTForImageClassification>),
    /// A DINOv2, with or without a classifier.
    Dinov2(Box<Dinov2>),
    /// A CLIP.
    Clip(Box<Clip>),
}

impl AnyModel {
    /// Opens a model directory of transformers and fills a `VarStore` with its weights, on `device` and in `kind`
    /// (`None`: each as on disk).
    ///
    /// # Errors
    /// `Unsupported` for a `model_type` that is none of [`model_types`](Self::model_types); otherwise as the
    /// `from_pretrained` of the model.
    ///
    /// ```no_run
    /// use ln_tuning::models::AnyModel;
    /// let (vs, model) = AnyModel::from_pretrained("some-model", tch::Device::Cpu, None)?;
    /// if let AnyModel::Encoder(encoder) = &model {
    ///     println!("{}", encoder.config().model_type());
    /// }
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn from_pretrained(
        dir: impl AsRef<Path>,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        Self::from_files(ModelFiles::open(dir)?, device, kind)
    }

    /// [`from_pretrained`](Self::from_pretrained) from files that are open already, for
    /// [`with_progress`](ModelFiles::with_progress).
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_files(
        files: ModelFiles,
        device: Device,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(VarStore, Self)> {
        let (kind, dir) = (kind.into(), files.dir().to_owned());
        let model_type = files.model_type().unwrap_or_default().to_owned();
        let is = |types: &[&str]| types.contains(&model_type.as_str());
        if is(&DecoderConfig::model_types()) {
            let (vs, model) = Decoder::from_files(&files, device, kind)?;
            Ok((vs, AnyModel::Decoder(Box::new(model))))
        } else if is(&EncoderConfig::model_types()) {
            let (vs, model) = Encoder::open(files, device, kind)?;
            Ok((vs, AnyModel::Encoder(Box::new(model))))
        } else if is(&Seq2SeqConfig::model_types()) {
            let (vs, model) = Seq2Seq::open(files, device, kind)?;
            Ok((vs, AnyModel::Seq2Seq(Box::new(model))))
        } else if is(&ViTConfig::model_types()) {
            let (vs, model) = ViTForImageClassification::open(files, device, kind)?;
            Ok((vs, AnyModel::ViT(Box::new(model))))
        } else if is(&Dinov2Config::model_types()) {
            let (vs, model) = Dinov2::open(files, device, kind)?;
            Ok((vs, AnyModel::Dinov2(Box::new(model))))
        } else if is(&ClipConfig::model_types()) {
            let (vs, model) = Clip::open(files, device, kind)?;
            Ok((vs, AnyModel::Clip(Box::new(model))))
        } else {
            Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "'{}' has the model_type '{model_type}', expected one of {}",
                    dir.display(),
                    Self::model_types().join(", ")
                ),
            ))
        }
    }

    /// The `model_type`s that are known, in alphabetical order.
    pub fn model_types() -> Vec<&'static str> {
        let mut all = DecoderConfig::model_types();
        all.extend(EncoderConfig::model_types());
        all.extend(Seq2SeqConfig::model_types());
        all.extend(ViTConfig::model_types());
        all.extend(Dinov2Config::model_types());
        all.extend(ClipConfig::model_types());
        all.sort_unstable();
        all
    }
}
