//! One, two and four ranks learn what one process learns.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ln_tuning::distributed::ProcessGroup;
use ln_tuning::{DynamicLossScale, LnTuningModel, Optimizer};
use tch::{Device, Kind, Tensor};

use crate::launch::{self, OUT};
use crate::net::{batch, optimizer, rows, Net};
use crate::rank;

pub const STEPS: i64 = 6;

/// The share of one process in a run.
pub struct Share {
    pub rank: usize,
    pub world_size: usize,
    pub group: Option<Arc<ProcessGroup>>,
}

/// The results of a run: weights, and figures of each step.
pub type Found = Vec<(String, Tensor)>;

type Way = (&'static str, fn(&Share) -> Found);

/// Ways to train. What each leaves must not depend on the number of processes.
const WAYS: [Way; 10] = [
    ("the mean over rows, clipped", mean),
    ("the mean over tokens, unequally spread", tokens),
    ("accumulation by hand", accumulated),
    ("accumulation by the optimiser, clamped", set_accumulation),
    ("a head of other random weights on each rank", head),
    ("a tensor that only one rank uses", presence),
    ("backward passes of user code", own_backward),
    ("dynamic loss scaling and one rank that overflows", dynamic),
    ("a model in bf16", bf16),
    ("several adapters at once", crate::several::at_once),
];

impl Share {
    fn train(&self, tuned: &LnTuningModel) -> Optimizer {
        let mut opt = optimizer(tuned);
        if let Some(group) = &self.group {
            opt.set_process_group(group.clone()).unwrap();
        }
        opt
    }

    fn rows(&self, step: i64, uneven: bool) -> (Tensor, Tensor) {
        rows(&batch(step, uneven), self.rank, self.world_size)
    }
}

fn weights(tuned: &LnTuningModel) -> Found {
    tuned.state_dict("default").unwrap()
}

pub fn figures(of: &[f64]) -> (String, Tensor) {
    ("figures".into(), Tensor::from_slice(of))
}

fn mean(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = share.train(&tuned);
    for step in 0..STEPS {
        opt.backward_step_clip_norm(&net.mean(&share.rows(step, false)), 0.3).unwrap();
    }
    weights(&tuned)
}

/// The last batch of the epoch has one row only, so that other ranks have none.
fn tokens(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = share.train(&tuned);
    let mut found = Vec::new();
    for step in 0..STEPS {
        let (x, y) = batch(step, true);
        let whole =
            if step == STEPS - 1 { (x.slice(0, 0, 1, 1), y.slice(0, 4, 5, 1)) } else { (x, y) };
        let own = rows(&whole, share.rank, share.world_size);
        opt.zero_grad().unwrap();
        // NaN where there is no target: the loss of such a rank does not count.
        let (loss, targets) = if own.0.size()[0] > 0 {
            let (loss, targets) = net.summed(&own);
            let loss = loss / targets as f64;
            opt.backward(&loss).unwrap();
            (loss, targets)
        } else {
            (Tensor::from(f32::NAN), 0)
        };
        let (loss, targets) = opt.all_reduce(&loss, targets).unwrap();
        let norm = opt.clip_grad_norm(0.3).unwrap();
        opt.step().unwrap();
        found.extend([loss.double_value(&[]), targets as f64, norm.double_value(&[])]);
    }
    let mut all = weights(&tuned);
    all.push(figures(&found));
    all
}

fn accumulated(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = share.train(&tuned);
    let mut found = Vec::new();
    for step in 0..STEPS {
        opt.zero_grad().unwrap();
        let parts = [share.rows(2 * step, true), share.rows(2 * step + 1, true)];
        let parts: Vec<(Tensor, i64)> = parts.iter().map(|part| net.summed(part)).collect();
        let own = parts.iter().map(|part| part.1).sum::<i64>();
        let mut sum = Tensor::from(0_f32);
        for (loss, _) in parts {
            let loss = loss / own.max(1) as f64;
            opt.backward(&loss).unwrap();
            sum += loss.detach();
        }
        let (loss, _) = opt.all_reduce(&sum, own).unwrap();
        found.push(loss.double_value(&[]));
        found.push(opt.grad_norm().unwrap().double_value(&[]));
        opt.step().unwrap();
    }
    let mut all = weights(&tuned);
    all.push(figures(&found));
    all
}

fn set_accumulation(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = optimizer(&tuned);
    opt.set_accumulation(2).unwrap();
    if let Some(group) = &share.group {
        opt.set_process_group(group.clone()).unwrap();
    }
    for part in 0..2 * STEPS {
        opt.backward_step_clip(&net.mean(&share.rows(part, false)), 0.05).unwrap();
    }
    weights(&tuned)
}

fn head(share: &Share) -> Found {
    // Rank 0 has the head of one process.
    let net = Net::new(Kind::Float, 0.3 * share.rank as f64);
    let tuned = net.attach(true);
    // The base keeps a head of its own, which must be the same.
    let mut opt = share.train(&tuned);
    for step in 0..STEPS {
        opt.backward_step(&net.mean(&share.rows(step, false))).unwrap();
    }
    weights(&tuned)
}

fn presence(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = share.train(&tuned);
    for step in 0..STEPS {
        opt.zero_grad().unwrap();
        // The first row alone has a loss that depends on `norm2`, and no row one on `norm1` at the first step.
        for row in 0..crate::net::ROWS {
            if row % share.world_size as i64 != share.rank as i64 {
                continue;
            }
            let (x, y) = rows(&batch(step, false), row as usize, crate::net::ROWS as usize);
            let weight = |name: &str| net.vs.variables()[name].shallow_clone();
            let loss = match row {
                0 => (weight("norm2.weight") * x.mean(Kind::Float)).square().sum(Kind::Float),
                _ if step == 0 => continue,
                _ => (weight("norm1.bias") * y.to_kind(Kind::Float).mean(Kind::Float))
                    .sum(Kind::Float),
            };
            opt.backward(&(loss * (share.world_size as f64 / 8.))).unwrap();
        }
        opt.step().unwrap();
    }
    let mut all = weights(&tuned);
    all.extend(opt.state_dict().unwrap().into_iter().filter(|(key, _)| key.ends_with(".step")));
    all
}

fn own_backward(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = share.train(&tuned);
    for step in 0..STEPS {
        opt.zero_grad().unwrap();
        net.mean(&share.rows(step, false)).backward();
        opt.step().unwrap();
    }
    weights(&tuned)
}

fn dynamic(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = optimizer(&tuned);
    let settings = DynamicLossScale { init_scale: 1024., growth_interval: 2, ..Default::default() };
    opt.set_dynamic_loss_scale(settings).unwrap();
    if let Some(group) = &share.group {
        opt.set_process_group(group.clone()).unwrap();
    }
    for step in 0..STEPS {
        let (x, y) = share.rows(step, false);
        // Row 0 is on rank 0.
        let x = if step == 2 && share.rank == 0 { x * f64::INFINITY } else { x };
        opt.backward_step_clip_norm(&net.mean(&(x, y)), 0.3).unwrap();
    }
    let skipped = opt.skipped_steps().unwrap().double_value(&[]);
    assert_eq!(skipped, 1.);
    let mut all = weights(&tuned);
    all.push(figures(&[skipped, opt.loss_scale().unwrap()]));
    all
}

fn bf16(share: &Share) -> Found {
    let net = Net::new(Kind::BFloat16, 0.);
    let tuned = net.attach(false);
    let mut opt = share.train(&tuned);
    for step in 0..STEPS {
        opt.backward_step_clip_norm(&net.mean(&share.rows(step, false)), 0.3).unwrap();
    }
    weights(&tuned)
}

pub fn of_one_rank() {
    let group = rank::join().unwrap();
    let (own, world_size) = (group.rank(), group.world_size());
    let share = Share { rank: own, world_size, group: Some(group) };
    let all = found(&share);
    Tensor::write_safetensors(&all, std::env::var_os(OUT).unwrap()).unwrap();
}

fn found(share: &Share) -> Found {
    let mut all = Found::new();
    for (way, train) in WAYS {
        all.extend(train(share).into_iter().map(|(key, tensor)| (format!("{way}: {key}"), tensor)));
    }
    all.extend(nan_is_seen_by_all(share));
    all
}

/// A loss that is not a number, on the last rank.
fn nan_is_seen_by_all(share: &Share) -> Found {
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = share.train(&tuned);
    let (x, y) = share.rows(0, false);
    let x = if share.rank + 1 == share.world_size { x * f64::NAN } else { x };
    let loss = net.mean(&(x, y));
    opt.backward(&loss).unwrap();
    let (loss, _) = opt.all_reduce(&loss, 40).unwrap();
    assert!(loss.double_value(&[]).is_nan());
    assert!(opt.clip_grad_norm(1.).unwrap().double_value(&[]).is_nan());
    Found::new()
}

#[test]
fn ranks_end_with_the_same_bits_and_learn_what_one_process_learns() {
    let dir = tempfile::tempdir().unwrap();
    let running: Vec<_> = [1, 2, 4]
        .map(|world_size| launch::group("training", world_size, dir.path()))
        .into_iter()
        .flatten()
        .collect();
    let alone = by_key(found(&Share { rank: 0, world_size: 1, group: None }));
    let mut of_ranks = Vec::new();
    for rank in running {
        let out = rank.out().to_owned();
        rank.succeed();
        of_ranks.push(read(&out));
    }
    assert!(alone.len() > 40, "{:?}", alone.keys());
    // A group of one changes nothing.
    for (key, expected) in &alone {
        assert_eq!(&of_ranks[0][key], expected, "{key}");
    }
    for (first, all) in [(1, 1..3), (3, 3..7)] {
        for rank in all {
            for (key, expected) in &of_ranks[first] {
                assert!(same_bits(&of_ranks[rank][key], expected), "{key} of process {rank}");
            }
        }
        for (key, expected) in &alone {
            let found = &of_ranks[first][key];
            let apart = (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max();
            let apart = apart.double_value(&[]);
            let most = if key.contains("bf16") { 0.05 } else { 1e-6 };
            assert!(apart <= most, "{key}: {apart} apart, {found:?} and {expected:?}");
        }
    }
}

fn by_key(found: Found) -> BTreeMap<String, Tensor> {
    found.into_iter().collect()
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    by_key(Tensor::read_safetensors(path).unwrap())
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let bytes = |tensor: &Tensor| {
        let tensor = tensor.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0_u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes
    };
    a.kind() == b.kind() && bytes(a) == bytes(b)
}
