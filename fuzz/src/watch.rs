//! The process that watches: it starts a worker for each target, counts its rounds, and ends it when one takes too long
//! or too much memory.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::files;

/// The end of a target.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Time(Duration),
    Rounds(u64),
}

/// The end of a target, and what a round may take.
pub struct Limits {
    pub until: Until,
    pub round: Duration,
    /// In bytes.
    pub memory: u64,
}

/// The figures of a target.
#[derive(Default)]
pub struct Figures {
    name: String,
    accepted: u64,
    refused: u64,
    slowest: Duration,
    /// In bytes.
    peak: u64,
    pub findings: Vec<String>,
}

impl Figures {
    fn rounds(&self) -> u64 {
        self.accepted + self.refused + self.findings.len() as u64
    }
}

/// More findings than these end a target.
const MOST_FINDINGS: usize = 20;

/// Runs a target to its end, with a new worker after each that had to be ended.
pub fn target(name: &str, seed: u64, limits: &Limits, out: &Path) -> Result<Figures> {
    let out = std::path::absolute(out)?.join(name);
    fs::create_dir_all(&out)?;
    let mut figures = Figures { name: name.to_owned(), ..Figures::default() };
    let bar = bar(name, limits)?;
    let started = Instant::now();
    let is_over = |figures: &Figures| match limits.until {
        Until::Time(time) => started.elapsed() >= time,
        Until::Rounds(rounds) => figures.rounds() >= rounds,
    };
    while !is_over(&figures) && figures.findings.len() < MOST_FINDINGS {
        let mut worker = Worker::start(name, figures.rounds(), seed, &out)?;
        loop {
            let event = worker.event(limits)?;
            figures.slowest = figures.slowest.max(worker.slowest);
            figures.peak = figures.peak.max(worker.peak);
            let found = match event {
                Event::Nothing => None,
                Event::Accepted => {
                    figures.accepted += 1;
                    None
                }
                Event::Refused => {
                    figures.refused += 1;
                    None
                }
                Event::Found => Some(fs::read_to_string(out.join("now/finding.txt"))?),
                Event::Ended(why) => Some(why),
            };
            let ended = found.is_some() && !worker.goes_on;
            if let Some(why) = found {
                let place = out.join(format!("finding-{seed}-{}", figures.rounds()));
                let _ = fs::remove_dir_all(&place);
                files::copy(&out.join("now"), &place)?;
                fs::write(place.join("finding.txt"), &why)?;
                let line: String = why.lines().collect::<Vec<_>>().join(" ");
                let line: String = line.chars().take(200).collect();
                bar.suspend(|| eprintln!("{name}: {line}\n  {}", place.display()));
                figures.findings.push(format!("{}: {line}", place.display()));
                if !ended {
                    worker.socket.write_all(b".")?;
                }
            }
            match limits.until {
                Until::Time(_) => bar.set_position(started.elapsed().as_millis() as u64),
                Until::Rounds(_) => bar.set_position(figures.rounds()),
            }
            let counts = (figures.rounds(), figures.accepted, figures.findings.len());
            bar.set_message(format!(
                "{} rounds, {} accepted, {} findings",
                counts.0, counts.1, counts.2
            ));
            if ended || is_over(&figures) || figures.findings.len() >= MOST_FINDINGS {
                figures.peak = figures.peak.max(memory(worker.process.id()).1);
                break;
            }
        }
    }
    bar.finish();
    Ok(figures)
}

fn bar(name: &str, limits: &Limits) -> Result<ProgressBar> {
    let total = match limits.until {
        Until::Time(time) => time.as_millis() as u64,
        Until::Rounds(rounds) => rounds,
    };
    let style = ProgressStyle::with_template("{prefix:9} {bar:30} {msg} {eta} left")?;
    Ok(ProgressBar::new(total).with_style(style).with_prefix(name.to_owned()))
}

struct Worker {
    process: Child,
    socket: UnixStream,
    /// The beginning of the present round.
    since: Option<Instant>,
    /// It waits for an answer, and goes on then.
    goes_on: bool,
    slowest: Duration,
    peak: u64,
    checked: Instant,
    log: PathBuf,
}

enum Event {
    Nothing,
    Accepted,
    Refused,
    Found,
    Ended(String),
}

impl Worker {
    fn start(name: &str, first: u64, seed: u64, out: &Path) -> Result<Self> {
        let (socket, other) = UnixStream::pair()?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let log = out.join("log.txt");
        let process = Command::new(std::env::current_exe()?)
            .args(["--worker", name, &first.to_string(), "--seed", &seed.to_string(), "--out"])
            .arg(out)
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("the worker does not start")?;
        let (slowest, checked) = (Duration::ZERO, Instant::now());
        Ok(Worker { process, socket, since: None, goes_on: false, slowest, peak: 0, checked, log })
    }

    /// The worker's answer, or its end. Waits for a moment only.
    fn event(&mut self, limits: &Limits) -> Result<Event> {
        if self.checked.elapsed() > Duration::from_millis(50) {
            self.checked = Instant::now();
            let checked = self.check(limits)?;
            if !matches!(checked, Event::Nothing) {
                return Ok(checked);
            }
        }
        let mut sign = [0];
        let heard = match self.socket.read(&mut sign) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(Event::Nothing);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error.into()),
        };
        if heard == 0 {
            let status = self.process.wait()?;
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(3).collect();
            self.goes_on = false;
            return Ok(Event::Ended(format!("the process ended ({status}): {}", last.join(" | "))));
        }
        if sign == *b">" {
            self.since = Some(Instant::now());
            return Ok(Event::Nothing);
        }
        if let Some(since) = self.since.take() {
            self.slowest = self.slowest.max(since.elapsed());
        }
        self.goes_on = sign == *b"!";
        Ok(match &sign {
            b"a" => Event::Accepted,
            b"r" => Event::Refused,
            _ => Event::Found,
        })
    }

    /// Ends a worker that takes too long or too much memory.
    fn check(&mut self, limits: &Limits) -> Result<Event> {
        let (now, peak) = memory(self.process.id());
        self.peak = self.peak.max(peak);
        let why = if now > limits.memory {
            format!("{} MiB of memory, more than {}", now >> 20, limits.memory >> 20)
        } else if self.since.is_some_and(|since| since.elapsed() > limits.round) {
            format!("more than {:?} for one round", limits.round)
        } else {
            return Ok(Event::Nothing);
        };
        self.process.kill()?;
        self.process.wait()?;
        self.goes_on = false;
        Ok(Event::Ended(why))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The memory of a process, now and at most so far, in bytes; 0 where the system does not tell.
fn memory(process: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let size = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let size = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        size.unwrap_or_default() << 10
    };
    (size("VmRSS:"), size("VmHWM:"))
}

/// The figures as a table in Markdown.
pub fn table(all: &[Figures]) -> String {
    let mut table =
        "| target | rounds | accepted | refused | findings | slowest round | peak memory |\n"
            .to_owned();
    table += "|---|--:|--:|--:|--:|--:|--:|\n";
    for figures in all {
        let Figures { name, accepted, refused, findings, slowest, peak } = figures;
        let (rounds, findings, peak) = (figures.rounds(), findings.len(), peak >> 20);
        let slowest = slowest.as_millis();
        writeln!(
            table,
            "| {name} | {rounds} | {accepted} | {refused} | {findings} | {slowest} ms | {peak} MiB |"
        )
        .expect("a string takes all text");
    }
    table
}
