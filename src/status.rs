//! What is attached, in numbers and words.

use std::fmt;

use crate::attachment::Attachment;
use crate::error::Result;

/// How many weights train. Prints PEFT's line:
/// `trainable params: 8,704 || all params: 56,378,368 || trainable%: 0.0154`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainableParameters {
    /// Weights of the active adapter; 0 while nothing trains.
    pub trainable: u64,
    /// Weights of the base and of all adapters. Buffers do not count, a tied tensor counts once.
    pub total: u64,
}

impl TrainableParameters {
    /// The share that trains, in percent.
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

    /// As if this adapter were the only one.
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

fn base(attachment: &Attachment) -> u64 {
    let variables = attachment.variables.iter().enumerate();
    let counted = variables.filter(|(index, v)| v.is_parameter && v.tied_to == *index);
    counted.map(|(_, v)| v.tensor.numel() as u64).sum()
}

fn total(attachment: &Attachment) -> u64 {
    base(attachment) + attachment.adapters.values().map(|adapter| adapter.numel()).sum::<u64>()
}

/// Digits in groups of three.
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
