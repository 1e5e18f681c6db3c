//! TensorBoard's event files: records of protocol buffers with checksums.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

pub struct TensorBoard {
    file: File,
}

impl TensorBoard {
    /// A new file in `out/tensorboard`; those of earlier parts of a run stay beside it.
    pub fn create(out: &Path) -> Result<Self> {
        let dir = out.join("tensorboard");
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("cannot make '{}'", dir.display()))?;
        let name = format!("events.out.tfevents.{:.6}.{}", now(), std::process::id());
        let path = dir.join(name);
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot write '{}'", path.display()))?;
        let mut this = TensorBoard { file };
        let mut event = field_f64(1, now());
        event.extend(field_bytes(3, b"brain.Event:2"));
        this.record(&event)?;
        Ok(this)
    }

    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = field_bytes(1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((*value as f32).to_le_bytes());
            summary.extend(field_bytes(1, &entry));
        }
        let mut event = field_f64(1, now());
        event.push(2 << 3);
        event.extend(varint(step));
        event.extend(field_bytes(5, &summary));
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length));
        record.extend(data);
        record.extend(masked(data));
        Ok(self.file.write_all(&record)?)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0., |time| time.as_secs_f64())
}

fn masked(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn field_bytes(number: u8, data: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    field.extend(varint(data.len() as u64));
    field.extend(data);
    field
}

fn field_f64(number: u8, value: f64) -> Vec<u8> {
    let mut field = vec![number << 3 | 1];
    field.extend(value.to_le_bytes());
    field
}
