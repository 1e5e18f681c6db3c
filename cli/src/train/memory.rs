//! The memory of the process: its own, or on a GPU as the driver counts it.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tch::Device;

/// Looks every two seconds where asking takes long.
pub struct Memory {
    device: Device,
    seen: Arc<AtomicU64>,
}

impl Memory {
    pub fn of(device: Device) -> Self {
        let seen = Arc::new(AtomicU64::new(0));
        if let Device::Cuda(_) = device {
            let seen = Arc::downgrade(&seen);
            std::thread::spawn(move || {
                while let Some(seen) = seen.upgrade() {
                    seen.store(of_driver().unwrap_or(0), Ordering::Relaxed);
                    drop(seen);
                    std::thread::sleep(Duration::from_secs(2));
                }
            });
        }
        Memory { device, seen }
    }

    /// Megabytes; 0 where it cannot be known.
    pub fn megabytes(&self) -> f64 {
        match self.device {
            Device::Cuda(_) => self.seen.load(Ordering::Relaxed) as f64,
            _ => memory_stats::memory_stats().map_or(0., |s| s.physical_mem as f64 / 1e6),
        }
    }
}

/// Megabytes that this process has on a GPU.
pub fn of_driver() -> Option<u64> {
    let query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"];
    let output = Command::new("nvidia-smi").args(query).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let own = format!("{},", std::process::id());
    let line = text.lines().find(|line| line.starts_with(&own))?;
    line.split(',').nth(1)?.trim().parse().ok()
}

/// The most that the process has had in memory, in bytes.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
