//! The other side: benches/peft_mixed_batches.py, transformers with LoRA adapters of PEFT.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{ensure, Context, Result};
use serde_json::json;
use tch::Kind;

use crate::clock::is_of_processors;
use crate::task::{new_tokens, torch_name, Shape, Targets};
use crate::{place, Mix, Side, Times};

/// A line in, a line out.
pub struct Peft {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Peft {
    pub fn start(shape: &Shape, kind: Kind, targets: Targets, threads: i32) -> Result<Self> {
        let python = place::python();
        let mut command = Command::new(&python);
        command.arg(place::data().join("benches/peft_mixed_batches.py"));
        let task = json!({
            "threads": threads, "config": shape.config(), "kind": torch_name(kind)?, "cpu": is_of_processors(),
            "targets": targets.to_value(),
        });
        command.arg(task.to_string());
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| {
            format!("cannot start '{}': run `make setup-tests`", python.display())
        })?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        let mut peft = Peft { child, answers };
        peft.answer()?;
        Ok(peft)
    }

    /// Loads adapters from a directory; gives the seconds.
    pub fn grow(&mut self, adapters: usize) -> Result<f64> {
        Ok(self.ask(&format!("grow {adapters}"))?.parse()?)
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.child.stdin.as_mut().context("no input")?, "{line}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the Python process ended: {:?}", self.child.wait()?);
        Ok(line.trim().to_owned())
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
        // It ends with its input.
        self.child.stdin = None;
        let _ = self.child.wait();
    }
}
