//! Growth over the number of resident adapters.

use anyhow::Result;
use serde_json::{json, Value};
use tch::{Device, Kind};

use crate::ours::Ours;
use crate::peft::Peft;
use crate::task::{Targets, SMALL};
use crate::{medians, Mix, Side, Times, THREADS};

/// The most adapters that PEFT gets: it takes 0.3 s and more to add one where there are a thousand.
const MOST_OF_PEFT: usize = 16;

/// Medians in seconds: one adapter for all rows and one for each, here and with PEFT.
pub struct Row {
    pub rows: i64,
    pub adapters: usize,
    pub length: i64,
    pub one: Times,
    pub each: Times,
    pub peft: Option<[Times; 2]>,
}

impl Row {
    pub fn speeds(&self, times: Times) -> [f64; 2] {
        times.speeds(self.rows, self.length)
    }
}

/// Measures and prints; gives the rows and a report.
pub fn measure(
    batches: &[i64],
    resident: &[usize],
    rounds: usize,
    beside: bool,
) -> Result<(Vec<Row>, Value)> {
    let (shape, kind) = (SMALL, Kind::Float);
    let start = || Peft::start(&shape, kind, Targets::Default, THREADS);
    let mut peft = beside.then(start).transpose()?;
    let mut ours = Ours::new(shape, kind, Device::Cpu)?;
    println!(
        "\nA llama of {}, f32. One adapter for all rows, and each resident adapter in turn; tokens a second. PEFT: LoRA, \
         r = 8, queries and values; ours ÷ PEFT.\n",
        shape.name
    );
    println!("| rows | adapters | prefill | mixed | ratio | decode | mixed | ratio | PEFT prefill | ours | PEFT decode | ours |");
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let (mut all, mut memory): (Vec<Row>, Vec<Value>) = Default::default();
    for adapters in resident {
        let before = rss();
        let seconds = ours.grow(*adapters)?;
        let grown = rss() - before;
        let mut peft = peft.as_mut().filter(|_| *adapters <= MOST_OF_PEFT);
        let theirs = match &mut peft {
            Some(peft) => Some(peft.grow(*adapters)?),
            None => None,
        };
        for rows in batches {
            // About as many tokens in all, within what texts have.
            let length = (2048 / rows).clamp(4, 64);
            let mut sides: Vec<&mut dyn Side> = vec![&mut ours];
            let mut asked = vec![(0, Mix::One), (0, Mix::Each(*adapters))];
            if let Some(peft) = &mut peft {
                sides.push(*peft);
                asked.extend([(1, Mix::One), (1, Mix::Each(*adapters))]);
            }
            let times = medians(&mut sides, &asked, (*rows, length), rounds, None)?;
            let peft = times.get(2).zip(times.get(3)).map(|(one, each)| [*one, *each]);
            let row = Row {
                rows: *rows,
                adapters: *adapters,
                length,
                one: times[0],
                each: times[1],
                peft,
            };
            print(&row);
            all.push(row);
        }
        let used = rss() - before;
        let mb = |bytes: i64| bytes as f64 / 1e6;
        memory.push(json!({
            "adapters": adapters, "seconds": seconds, "peft_seconds": theirs, "grown_mb": mb(grown), "used_mb": mb(used),
        }));
    }
    println!("\nAdapters from a directory, each with the time that its loading took; megabytes of the process that came with");
    println!("them, and with the batches behind them.\n");
    println!("| adapters | seconds | PEFT | MB | with batches |\n|--:|--:|--:|--:|--:|");
    for step in &memory {
        let theirs = step["peft_seconds"].as_f64();
        println!(
            "| {} | {:.2} | {} | {:.1} | {:.1} |",
            step["adapters"],
            step["seconds"].as_f64().unwrap_or(0.),
            theirs.map_or("–".to_owned(), |seconds| format!("{seconds:.2}")),
            step["grown_mb"].as_f64().unwrap_or(0.),
            step["used_mb"].as_f64().unwrap_or(0.),
        );
    }
    println!("\nThe weights of an adapter take {:.0} kB.", shape.weights() as f64 * 4. / 1e3);
    let rows: Vec<Value> = all.iter().map(json_of).collect();
    Ok((all, json!({"shape": shape.config(), "rows": rows, "memory": memory})))
}

fn print(row: &Row) {
    let ([prefill, decode], mixed) = (row.speeds(row.one), row.speeds(row.each));
    let peft = row.peft.map(|[_, each]| row.speeds(each));
    let theirs = |at: usize| match peft {
        Some(speeds) => format!("{:.0} | {:.1}×", speeds[at], mixed[at] / speeds[at]),
        None => "– | –".to_owned(),
    };
    println!(
        "| {} | {} | {prefill:.0} | {:.0} | {:.3} | {decode:.0} | {:.0} | {:.3} | {} | {} |",
        row.rows,
        row.adapters,
        mixed[0],
        mixed[0] / prefill,
        mixed[1],
        mixed[1] / decode,
        theirs(0),
        theirs(1)
    );
}

fn json_of(row: &Row) -> Value {
    let of = |times: Times| {
        let [prefill, decode] = row.speeds(times);
        json!({"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode})
    };
    json!({
        "rows": row.rows, "adapters": row.adapters, "length": row.length, "one": of(row.one), "mixed": of(row.each),
        "peft_one": row.peft.map(|[one, _]| of(one)), "peft_mixed": row.peft.map(|[_, each]| of(each)),
    })
}

/// Memory of this process in bytes.
fn rss() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).unwrap_or(0) * 4096
}
