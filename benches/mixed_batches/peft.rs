//! The other side: benches/peft_mixed_batches.py, transformers with LoRA adapters of PEFT.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde_json::json;
use tch::{Device, Kind};

use crate::clock::is_of_processors;
use crate::task::{new_tokens, torch_name, Shape, Targets};
use crate::{place, Mix, Side, Times};

/// A line in, a line out.
pub struct Peft {
    child: Child,
    answers: Receiver<String>,
    /// Nothing is waited for after this.
    until: Instant,
}

impl Peft {
    pub fn start(shape: &Shape, kind: Kind, targets: Targets, threads: i32) -> Result<Self> {
        let day = Instant::now() + Duration::from_secs(24 * 3600);
        let mut peft = Self::spawn(shape, kind, targets, threads, Device::Cpu, day)?;
        peft.ready()?;
        Ok(peft)
    }

    /// Does not wait for the process, which imports its libraries meanwhile, and touches no device before the first
    /// command.
    pub fn spawn(
        shape: &Shape,
        kind: Kind,
        targets: Targets,
        threads: i32,
        device: Device,
        until: Instant,
    ) -> Result<Self> {
        let python = place::python();
        let mut command = Command::new(&python);
        command.arg(place::data().join("benches/peft_mixed_batches.py"));
        let task = json!({
            "threads": threads, "config": shape.config(), "kind": torch_name(kind)?, "cpu": is_of_processors(),
            "targets": targets.to_value(), "device": if device.is_cuda() { "cuda" } else { "cpu" },
        });
        command.arg(task.to_string());
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| {
            format!("cannot start '{}': run `make setup-tests`", python.display())
        })?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Peft { child, answers, until })
    }

    /// Waits until the libraries are there.
    pub fn ready(&mut self) -> Result<()> {
        self.answer().map(drop)
    }

    /// Loads adapters from a directory; gives the seconds.
    pub fn grow(&mut self, adapters: usize) -> Result<f64> {
        Ok(self.ask(&format!("grow {adapters}"))?.parse()?)
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        // A process that has ended is found by the missing answer.
        let _ = writeln!(self.child.stdin.as_mut().context("no input")?, "{line}");
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let left = self.until.saturating_duration_since(Instant::now());
        match self.answers.recv_timeout(left) {
            Ok(line) => match line.strip_prefix("error: ") {
                Some(error) => bail!("{error}"),
                None => Ok(line),
            },
            Err(RecvTimeoutError::Timeout) => {
                self.child.kill()?;
                bail!("it was not done in the time that there is");
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the Python process ended: {}", self.child.wait()?)
            }
        }
    }
}

impl Side for Peft {
    fn time(&mut self, rows: i64, length: i64, mix: Mix) -> Result<Times> {
        let adapters = match mix {
            Mix::Base => 0,
            Mix::One => 1,
            Mix::Each(adapters) => adapters,
        };
        let answer = self.ask(&format!("time {rows} {length} {adapters} {}", new_tokens(rows)))?;
        let (prefill, decode) = answer.split_once(' ').context("expected two times")?;
        Ok(Times { prefill: prefill.parse()?, decode: decode.parse()? })
    }
}

impl Drop for Peft {
    fn drop(&mut self) {
        // It ends with its input, or late.
        self.child.stdin = None;
        let late = Instant::now() + Duration::from_secs(5);
        while Instant::now() < late {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
