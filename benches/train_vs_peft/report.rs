//! The results: a table for people, and a line of JSON for each contender of each row.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use serde_json::{json, Value};

use crate::measure::{median, Measured, WARM_UP};
use crate::options::Options;
use crate::who::Who;
use crate::work::{Work, THREADS};

/// Files of lines, written as the results come: what is killed loses nothing.
pub struct Report {
    files: Vec<File>,
}

impl Report {
    /// `train_vs_peft.jsonl` in the folder for reports is begun anew; the file that was asked for grows.
    pub fn new(options: &Options) -> Result<Report> {
        std::fs::create_dir_all(&options.out)
            .with_context(|| format!("'{}'", options.out.display()))?;
        let mut files = vec![File::create(Report::path(options))?];
        if let Some(path) = &options.json {
            let file = OpenOptions::new().create(true).append(true).open(path);
            files.push(file.with_context(|| format!("'{}'", path.display()))?);
        }
        Ok(Report { files })
    }

    pub fn path(options: &Options) -> std::path::PathBuf {
        options.out.join("train_vs_peft.jsonl")
    }

    pub fn line(&mut self, line: &Value) -> Result<()> {
        for file in &mut self.files {
            writeln!(file, "{line}")?;
        }
        Ok(())
    }
}

/// The result of a contender, or its error.
pub fn line(work: &Work, who: Who, result: &Result<Measured>) -> Value {
    let mut line = json!({
        "row": work.name, "who": who.name(), "device": work.device, "kind": work.kind, "threads": THREADS,
        "batch": work.batch, "generates": work.generates, "warm_up": WARM_UP,
        "environment": environment(),
    });
    let more = match result {
        Ok(measured) => json!({
            "device_name": device_name(work, measured), "library": measured.ready.library,
            "attention": measured.ready.attention, "steps": measured.times.len(), "tokens": measured.tokens,
            "ms": median(measured.times.clone()), "times": measured.times, "cpu_ms": median(measured.work.clone()),
            "tokens_per_second": measured.tokens as f64 / measured.times.iter().sum::<f64>() * 1e3,
            "first_step_ms": measured.first, "megabytes": measured.megabytes,
            "weights_megabytes": measured.ready.weights as f64 / 1e6, "losses": measured.losses,
        }),
        Err(error) => json!({"error": format!("{error:#}")}),
    };
    let more = more.as_object().cloned().unwrap_or_default();
    line.as_object_mut().expect("an object").extend(more);
    line
}

/// Settings of libtorch that choose kernels.
fn environment() -> Value {
    let set = std::env::vars().filter(|(name, _)| {
        ["TORCH_", "PYTORCH_", "CUDA_", "CUBLAS_", "NVIDIA_TF32_"]
            .iter()
            .any(|p| name.starts_with(p))
    });
    Value::Object(set.map(|(name, value)| (name, value.into())).collect())
}

/// Beside the first one, which is ours.
pub fn table(work: &Work, all: &[(Who, Result<Measured>)]) {
    let done = || all.iter().filter_map(|(_, result)| result.as_ref().ok());
    let named = done().find(|measured| measured.ready.device_name.is_some()).or(done().next());
    let on = named.map(|measured| device_name(work, measured));
    println!(
        "\n{} ({} steps{})",
        work.name,
        done().map(|measured| measured.times.len()).max().unwrap_or(0),
        on.map_or(String::new(), |on| format!("; {on}"))
    );
    println!(
        "  {:<20}{:>10}{:>9}{:>10}{:>11}{:>10}{:>9}  losses",
        "", "ms", "ratio", "CPU ms", "tokens/s", "MB", "ratio"
    );
    let own = all.iter().find(|(who, _)| *who == Who::Ours);
    let own = own.and_then(|(_, result)| result.as_ref().ok());
    for (who, result) in all {
        let name = who.name();
        let measured = match result {
            Ok(measured) => measured,
            Err(error) => {
                println!("  {name:<20} failed: {error:#}");
                continue;
            }
        };
        let times = &measured.times;
        let ratios = |own: &Measured| -> Vec<f64> {
            times.iter().zip(&own.times).map(|(other, own)| other / own).collect()
        };
        let (time, ratio) = (median(times.clone()), own.map_or(f64::NAN, |o| median(ratios(o))));
        if *who == Who::Floor {
            println!("  {name:<20}{time:>10.1}{ratio:>9.3}{:>10.0}", median(measured.work.clone()));
            continue;
        }
        let speed = measured.tokens as f64 / times.iter().sum::<f64>() * 1e3;
        let work = median(measured.work.clone());
        let megabytes = measured.megabytes;
        let memory = own.map_or(f64::NAN, |own| own.megabytes / megabytes);
        let shown = |value: Option<&f64>| value.map_or(String::new(), |v| format!("{v:.7}"));
        let (first, last) = (shown(measured.losses.first()), shown(measured.losses.last()));
        println!(
            "  {name:<20}{time:>10.1}{ratio:>8.2}x{work:>10.0}{speed:>11.0}{megabytes:>10.0}{memory:>8.2}x  {first} … {last}"
        );
    }
}

/// The name of the GPU or the processor.
fn device_name(work: &Work, measured: &Measured) -> String {
    static GPU: OnceLock<String> = OnceLock::new();
    if work.device == "cpu" {
        return processor();
    }
    let asked = || {
        let query = ["--query-gpu=name", "--format=csv,noheader"];
        let output = Command::new("nvidia-smi").args(query).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.lines().next()?.trim().to_owned())
    };
    let named = measured.ready.device_name.clone();
    named.unwrap_or_else(|| GPU.get_or_init(|| asked().unwrap_or("an unknown GPU".into())).clone())
}

/// The processor's name, and the instructions for bf16 that it has.
pub fn processor() -> String {
    let info = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let field = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown").trim().to_owned()
    };
    let flags = field("flags");
    let bf16 = ["avx512_bf16", "amx_bf16"];
    let found: Vec<&str> =
        bf16.into_iter().filter(|flag| flags.split(' ').any(|f| f == *flag)).collect();
    match found.is_empty() {
        true => format!("{}, without instructions for bf16", field("model name")),
        false => format!("{}, {}", field("model name"), found.join(", ")),
    }
}
