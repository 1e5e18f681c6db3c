//! Operations on adapters, alone; benches/adapters_vs_peft.rs stands them beside PEFT's.

mod shapes;

use criterion::{criterion_group, criterion_main, BatchSize, Criterion};
use ln_tuning::{LnTuningModel, LoadOptions};
use shapes::{base, config};

fn resident(adapters: usize) -> LnTuningModel {
    let mut tuned = LnTuningModel::new(&base(), config()).unwrap();
    for index in 1..adapters {
        tuned.add_adapter(&format!("a{index}"), config()).unwrap();
    }
    tuned
}

fn operations(c: &mut Criterion) {
    tch::set_num_threads(2);
    c.bench_function("attach", |b| {
        b.iter_batched(
            base,
            |vs| LnTuningModel::new(&vs, config()).unwrap(),
            BatchSize::PerIteration,
        )
    });
    let mut tuned = resident(2);
    c.bench_function("add + delete", |b| {
        b.iter(|| {
            tuned.add_adapter("extra", config()).unwrap();
            tuned.delete_adapter("extra").unwrap();
        })
    });
    c.bench_function("disable + enable", |b| b.iter(|| drop(tuned.disable().unwrap())));
    c.bench_function("merge + unmerge", |b| {
        b.iter(|| {
            tuned.merge_adapter("default").unwrap();
            tuned.unmerge_adapter().unwrap();
        })
    });
    let dir = tempfile::tempdir().unwrap();
    c.bench_function("save 2, fsync included", |b| {
        b.iter(|| tuned.save_pretrained(dir.path()).unwrap())
    });
    c.bench_function("load + delete", |b| {
        b.iter(|| {
            tuned.load_adapter(dir.path(), "loaded", &LoadOptions::default()).unwrap();
            tuned.delete_adapter("loaded").unwrap();
        })
    });
    for adapters in [2, 55, 1000] {
        let mut tuned = resident(adapters);
        c.bench_function(&format!("switch there and back, {adapters} resident"), |b| {
            b.iter(|| {
                tuned.set_adapter("a1").unwrap();
                tuned.set_adapter("default").unwrap();
            })
        });
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
