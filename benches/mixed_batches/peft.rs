//! The other side: benches/peft_mixed_batches.py, transformers with LoRA adapters of PEFT.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{ensure, Context, Result};

use crate::{place, Mix, Times, NEW, SHAPE};

/// A line in, a line out.
pub struct Peft {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Peft {
    pub fn start(threads: i32) -> Result<Self> {
        let python = place::python();
        let mut command = Command::new(&python);
        command.arg(place::data().join("benches/peft_mixed_batches.py"));
        command.args([i64::from(threads), NEW].iter().chain(&SHAPE).map(i64::to_string));
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| {
            format!("cannot start '{}': run `make setup-tests`", python.display())
        })?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        let mut peft = Peft { child, answers };
        peft.answer()?;
        Ok(peft)
    }

    pub fn grow(&mut self, adapters: usize) -> Result<()> {
        self.ask(&format!("grow {adapters}")).map(drop)
    }

    pub fn time(&mut self, rows: i64, length: i64, mix: Mix) -> Result<Times> {
        let adapters = if let Mix::Each(adapters) = mix { adapters } else { 0 };
        let answer = self.ask(&format!("time {rows} {length} {adapters}"))?;
        let (prefill, decode) = answer.split_once(' ').context("expected two times")?;
        Ok(Times { prefill: prefill.parse()?, decode: decode.parse()? })
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

impl Drop for Peft {
    fn drop(&mut self) {
        // It ends with its input.
        self.child.stdin = None;
        let _ = self.child.wait();
    }
}
