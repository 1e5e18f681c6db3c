//! A process that is asked for one training step after the other.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::work::{Work, THREADS};

/// A contender: this crate or PEFT, with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Ours,
    OursRecomputed,
    /// The matrix products of our step, alone.
    Floor,
    Eager,
    Compiled,
    /// With transformers' gradient checkpointing.
    Checkpointed,
}

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Who::Ours => "ours",
            Who::OursRecomputed => "ours, checkpointed",
            Who::Floor => "matrix products",
            Who::Eager => "PEFT eager",
            Who::Compiled => "PEFT compiled",
            Who::Checkpointed => "PEFT checkpointed",
        }
    }

    pub fn is_python(self) -> bool {
        matches!(self, Who::Eager | Who::Compiled | Who::Checkpointed)
    }
}

pub struct Contender {
    pub who: Who,
    child: Child,
    answers: BufReader<ChildStdout>,
    started: Instant,
    /// Milliseconds and losses of the steps so far.
    pub times: Vec<f64>,
    pub values: Vec<f64>,
    /// Milliseconds from the start of the process to the end of its first step.
    pub first: f64,
}

impl Contender {
    /// Starts the process and waits until it has loaded the model.
    pub fn start(who: Who, work: &Work, dir: &Path) -> Result<Contender> {
        let how = match (work.generates, who) {
            (true, _) => "generate",
            (_, Who::Ours) => "plain",
            (_, Who::OursRecomputed) => "recompute",
            (_, Who::Floor) => "floor",
            (_, Who::Eager) => "eager",
            (_, Who::Compiled) => "compile",
            (_, Who::Checkpointed) => "checkpoint",
        };
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = if who.is_python() {
            let python = std::env::var_os("LN_TUNING_PYTHON").map(PathBuf::from);
            let python = python.unwrap_or_else(|| here.join(".venv/bin/python"));
            anyhow::ensure!(
                python.exists(),
                "'{}' is not there: run `make setup-tests`, or give `--ours-only`",
                python.display()
            );
            let mut command = Command::new(python);
            command.arg(here.join("benches/peft_train.py"));
            command.env("HF_HUB_OFFLINE", "1").env("TORCHINDUCTOR_COMPILE_THREADS", "1");
            command
        } else {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("--child");
            command
        };
        command.arg(dir).args([work.kind, &work.batch.to_string(), &work.length.to_string()]);
        command.args([work.device, &THREADS.to_string(), how]);
        // Threads that wait by spinning would take the cores from the others.
        command.env("OMP_WAIT_POLICY", "passive").env("OMP_NUM_THREADS", THREADS.to_string());
        let started = Instant::now();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        let (times, values) = (Vec::new(), Vec::new());
        let mut this = Contender { who, child, answers, started, times, values, first: 0. };
        while this.answer()? != "ready" {}
        Ok(this)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let name = self.who.name();
        anyhow::ensure!(!line.is_empty(), "'{name}' ended: {:?}", self.child.wait()?);
        Ok(line.trim().to_owned())
    }

    /// Makes the next step.
    pub fn step(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("no input")?;
        writeln!(input, "{}", self.times.len())?;
        let answer = self.answer()?;
        let (time, value) = answer.split_once(' ').with_context(|| answer.clone())?;
        self.times.push(time.parse()?);
        self.values.push(value.parse()?);
        if self.times.len() == 1 {
            self.first = self.started.elapsed().as_secs_f64() * 1e3;
        }
        Ok(())
    }

    /// Megabytes: the most that the process has had in memory so far, or, on a GPU, what it has there now.
    pub fn megabytes(&self, device: &str) -> Result<f64> {
        let pid = self.child.id();
        if device != "cpu" {
            let query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"];
            let output = Command::new("nvidia-smi").args(query).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let line = text.lines().find(|line| line.starts_with(&format!("{pid},")));
            let value = line.and_then(|line| line.split(',').nth(1)).context("no such process")?;
            return Ok(value.trim().parse()?);
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse::<f64>()? / 1024.)
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
