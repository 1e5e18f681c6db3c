//! A target with every fault that the fuzzer is there to find, for its own tests.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Result};
use fastrand::Rng;

use super::Target;

pub struct Faulty;

impl Target for Faulty {
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        Ok(fs::write(dir.join("fault.txt"), [rng.u8(..12)])?)
    }

    fn run(&self, dir: &Path) -> Result<()> {
        match fs::read(dir.join("fault.txt"))?[0] {
            0 => panic!("planted"),
            1 => std::process::abort(),
            2 => std::thread::sleep(Duration::from_secs(3600)),
            3 => {
                let mut kept = Vec::new();
                loop {
                    kept.push(vec![1_u8; 1 << 20]);
                }
            }
            4 => bail!("{}", "long ".repeat(100_000)),
            5..8 => bail!("no"),
            _ => {}
        }
        Ok(())
    }
}
