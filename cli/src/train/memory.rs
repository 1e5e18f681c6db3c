//! Memory: of the process, or of a GPU as its driver counts; and errors where it is not enough.

use anyhow::{anyhow, Error};
use ln_tuning::device::memory_info;
use ln_tuning::pretrained::{BaseBytes, Frozen};
use ln_tuning::ErrorKind;
use serde_json::{json, Value};
use tch::{Device, TchError};

/// Bytes that the process has, or that all processes have of a GPU; `None` where it cannot be known.
pub fn used(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => Some(memory_stats::memory_stats()?.physical_mem as u64),
        _ => memory_info(device).ok().map(|memory| memory.total - memory.free),
    }
}

/// The most that the process has had in memory, in bytes.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// The way in which a base is kept, and its bytes, for JSON.
pub fn base(kept: Frozen, bytes: BaseBytes) -> Value {
    json!({"kept": kept, "bytes": bytes.all, "matrices": bytes.matrices})
}

/// The same for people.
pub fn base_in_words(kept: Frozen, bytes: BaseBytes) -> String {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut words = format!("base: {kept}, {:.1} MB", megabytes(bytes.all));
    if kept.is_quantised() {
        let (count, few) = (bytes.matrices, megabytes(bytes.in_few_bits));
        words += &format!(", {count} matrices in {few:.1} MB");
    }
    words
}

/// Helps where training lacks memory.
pub const SETTINGS: &str =
    "Set 'checkpointing' to all, which keeps less and changes no result, a smaller 'batch_size' with more \
     'accumulation', a smaller 'data.max_length', 'kind' to bf16, or 'base' to nf4. Checkpoints are kept: the same command resumes, \
     with another 'checkpointing' too";

/// The error with what helps, if memory was not enough.
pub fn explained(error: Error, help: &str) -> Error {
    let not_enough = error.chain().find_map(|cause| {
        let message = match (cause.downcast_ref::<ln_tuning::Error>(), cause.downcast_ref()) {
            (Some(error), _) if error.kind() == ErrorKind::OutOfMemory => error.to_string(),
            (None, Some(TchError::Torch(message))) => {
                let error = ln_tuning::Error::from(TchError::Torch(message.clone()));
                (error.kind() == ErrorKind::OutOfMemory).then(|| error.to_string())?
            }
            _ => return None,
        };
        // The rest is for those who write programs.
        Some(message.split(" Use smaller batches").next().unwrap_or_default().to_owned())
    });
    match not_enough {
        Some(message) => anyhow!("{message} {help}"),
        None => error,
    }
}
