//! A process that is asked for one training step after the other.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::options::Options;
use crate::place;
use crate::task::{Ready, Task};
use crate::who::Who;
use crate::work::{Work, THREADS};

pub struct Contender {
    pub who: Who,
    pub ready: Ready,
    child: Child,
    answers: Receiver<String>,
    /// The last line of standard error that names an error, or the last one.
    last_error: Arc<Mutex<String>>,
    patience: Duration,
    started: Instant,
    /// Milliseconds and losses of the steps so far.
    pub times: Vec<f64>,
    pub values: Vec<f64>,
    /// Milliseconds of processors that the steps took, in tens.
    pub work: Vec<f64>,
    /// Milliseconds from the start of the process to the end of its first step.
    pub first: f64,
}

impl Contender {
    /// Starts the process and waits until it has its model.
    pub fn start(who: Who, work: &Work, options: &Options) -> Result<Contender> {
        let task = Task {
            dir: work.directory(&options.out)?,
            kind: work.kind.to_owned(),
            device: work.device.to_owned(),
            threads: THREADS,
            how: if work.generates { "generate" } else { who.how() }.to_owned(),
            base: if who == Who::OursPacked { "packed" } else { "mapped" }.to_owned(),
            batch: work.batch,
        };
        let mut command = if who.is_python() {
            let python = place::python();
            ensure!(
                python.exists(),
                "'{}' is not there: run `make setup-tests`, set LN_TUNING_PYTHON, or give `--ours-only`",
                python.display()
            );
            let mut command = Command::new(python);
            command.arg(place::data().join("benches/peft_train.py"));
            command.env("HF_HUB_OFFLINE", "1").env("TQDM_DISABLE", "1");
            if work.device == "cpu" {
                command.env("TORCHINDUCTOR_COMPILE_THREADS", "1");
            }
            command
        } else {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("--child");
            if who == Who::OursUnfused {
                command.env("LN_TUNING_FUSED", "0");
            }
            command
        };
        command.arg(serde_json::to_string(&task)?);
        // Threads that wait by spinning would take the cores from the others.
        command.env("OMP_WAIT_POLICY", "passive").env("OMP_NUM_THREADS", THREADS.to_string());
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?} does not start"))?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let (lines, answers) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });
        let errors = BufReader::new(child.stderr.take().context("no standard error")?);
        let last_error = Arc::new(Mutex::new(String::new()));
        let kept = last_error.clone();
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok).filter(|line| !line.trim().is_empty())
            {
                eprintln!("{line}");
                if let Ok(mut kept) = kept.lock() {
                    // Advice may follow the error.
                    let names_one = |line: &str| !line.starts_with(' ') && line.contains("Error");
                    if names_one(&line) || !names_one(&kept) {
                        *kept = line;
                    }
                }
            }
        });
        let (times, values, work, ready) = Default::default();
        let patience = Duration::from_secs(options.patience);
        let mut this = Contender {
            who,
            ready,
            child,
            answers,
            last_error,
            patience,
            started,
            times,
            values,
            work,
            first: 0.,
        };
        // Libraries may print something of their own.
        let mut line = this.answer()?;
        while !line.starts_with('{') {
            line = this.answer()?;
        }
        this.ready = serde_json::from_str(&line)?;
        Ok(this)
    }

    fn answer(&mut self) -> Result<String> {
        match self.answers.recv_timeout(self.patience) {
            Ok(line) => Ok(line.trim().to_owned()),
            Err(RecvTimeoutError::Timeout) => {
                self.child.kill()?;
                bail!("no answer within {} s", self.patience.as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                // The last that it wrote may still be on its way.
                std::thread::sleep(Duration::from_millis(100));
                let last = self.last_error.lock().map_or(String::new(), |last| last.clone());
                bail!("it ended ({status}): {last}")
            }
        }
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        let input = self.child.stdin.as_mut().context("no input")?;
        // A process that has ended is found by the missing answer.
        let _ = writeln!(input, "{question}");
        self.answer()
    }

    /// Makes the next step.
    pub fn step(&mut self) -> Result<()> {
        let before = self.processor_time();
        let answer = self.ask(&self.times.len().to_string())?;
        self.work.push(self.processor_time() - before);
        let (time, value) = answer.split_once(' ').with_context(|| answer.clone())?;
        self.times.push(time.parse()?);
        self.values.push(value.parse()?);
        if self.times.len() == 1 {
            self.first = self.started.elapsed().as_secs_f64() * 1e3;
        }
        Ok(())
    }

    /// Milliseconds of processors that the process has taken so far.
    fn processor_time(&self) -> f64 {
        let path = Path::new("/proc").join(self.child.id().to_string()).join("stat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // Behind the name, which may hold anything. Linux counts hundredths of a second.
        let behind = text.rsplit(')').next().unwrap_or_default();
        let fields = behind.split_whitespace().skip(11).take(2);
        fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.
    }

    /// Megabytes: the most that the process has had in memory so far. On a GPU what it keeps there beside its context,
    /// as the driver counts, which is the most that its tensors have taken: libtorch gives nothing back.
    pub fn megabytes(&mut self, device: &str) -> Result<f64> {
        if device != "cpu" {
            return Ok(self.ask("memory")?.parse()?);
        }
        let status = Path::new("/proc").join(self.child.id().to_string()).join("status");
        let status = std::fs::read_to_string(status)?;
        let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse::<f64>()? / 1024.)
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // The end of its input ends it; what does not listen any more is killed.
        drop(self.child.stdin.take());
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
