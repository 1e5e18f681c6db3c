//! Several adapters that train at once, by one, two and four ranks: one all-reduce for all of them.

use ln_tuning::loss::{LinearCrossEntropy, Reduction, IGNORE_INDEX};
use ln_tuning::models::{Decoder, Inputs};
use ln_tuning::{AdamW, ErrorKind, Optimizer};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::nets::{llama, several};
use crate::rank::join;
use crate::training::{figures, Found, Share, STEPS};

const NAMES: [&str; 3] = ["slow", "fast", "short"];
const ROWS: i64 = 8;
/// The steps of the third adapter.
const SHORT: i64 = 3;

fn model() -> (VarStore, Decoder) {
    tch::set_num_threads(1);
    llama(16, 2)
}

/// Rows with different numbers of targets; one row in the fourth step.
fn batch(step: i64) -> (Tensor, Tensor) {
    tch::manual_seed(100 + step);
    let ids = Tensor::randint(50, [ROWS, 7], (Kind::Int64, Device::Cpu));
    let labels = ids.copy();
    for row in 0..ROWS {
        let _ = labels.get(row).narrow(0, 0, 1 + (row + step) % 6).fill_(IGNORE_INDEX);
    }
    let rows = if step == 3 { 1 } else { ROWS };
    (ids.narrow(0, 0, rows), labels.narrow(0, 0, rows))
}

pub fn at_once(share: &Share) -> Found {
    let (vs, model) = model();
    let tuned = several(&vs, &NAMES);
    let mut optimizers: Vec<Optimizer> = NAMES
        .iter()
        .zip([1e-2, 3e-2, 1e-1])
        .map(|(name, lr)| {
            let adamw = AdamW { wd: 0.1, ..AdamW::default() };
            let mut optimizer = tuned.optimizer_for(name, adamw, lr).unwrap();
            if let Some(group) = &share.group {
                optimizer.set_process_group(group.clone()).unwrap();
            }
            optimizer
        })
        .collect();
    let rows = LinearCrossEntropy::default().reduction(Reduction::SumPerRow);
    let mut found = Vec::new();
    for step in 0..STEPS {
        optimizers.truncate(if step < SHORT { 3 } else { 2 });
        let count = optimizers.len() as i64;
        let (ids, labels) = batch(step);
        let own = |all: &Tensor| all.slice(0, share.rank as i64, None, share.world_size as i64);
        let (ids, labels) = (own(&ids), own(&labels));
        optimizers.iter_mut().for_each(|optimizer| optimizer.zero_grad().unwrap());
        let targets = labels.narrow(1, 1, 6).ne(IGNORE_INDEX).sum(Kind::Int64).int64_value(&[]);
        // NaN where there is no row: such a loss does not count.
        let mut losses = Tensor::full([count], f64::NAN, (Kind::Float, Device::Cpu));
        if ids.size()[0] > 0 {
            let names: Vec<&str> = NAMES[..count as usize]
                .iter()
                .flat_map(|name| vec![*name; ids.size()[0] as usize])
                .collect();
            let [ids, labels] = [ids, labels].map(|part| part.repeat([count, 1]));
            let inputs = Inputs::new(&ids).adapter_names(&names).train(true);
            let of_rows = model.loss(inputs, &labels, &rows).unwrap().view([count, -1]);
            losses = of_rows.sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
                / targets.max(1) as f64;
            Optimizer::backward_mixed(&mut optimizers, &losses.sum(Kind::Float)).unwrap();
        }
        let losses: Vec<Tensor> = (0..count).map(|at| losses.get(at)).collect();
        let shares: Vec<(&Tensor, i64)> = losses.iter().map(|loss| (loss, targets)).collect();
        let all = Optimizer::all_reduce_mixed(&mut optimizers, &shares).unwrap();
        for (optimizer, (loss, tokens)) in optimizers.iter_mut().zip(all) {
            let norm = optimizer.clip_grad_norm(0.3).unwrap();
            optimizer.step().unwrap();
            found.extend([loss.double_value(&[]), tokens as f64, norm.double_value(&[])]);
        }
    }
    let of_adapter = |name: &&str| {
        let tensors = tuned.state_dict(name).unwrap().into_iter();
        tensors.map(|(key, tensor)| (format!("{name}.{key}"), tensor)).collect::<Found>()
    };
    let mut all: Found = NAMES.iter().flat_map(of_adapter).collect();
    all.push(figures(&found));
    all
}

/// Two ranks that do not reduce the same optimisers, and then do.
pub fn mismatches() {
    let group = join().unwrap();
    let other = group.rank() == 1;
    let (vs, _model) = model();
    let mut tuned = several(&vs, &NAMES);
    let mut made = |name: &str, joins: bool| {
        tuned.set_adapter(name).unwrap();
        let mut optimizer = tuned.optimizer_for(name, AdamW::default(), 1e-2).unwrap();
        if joins {
            optimizer.set_process_group(group.clone()).unwrap();
        }
        // A gradient without a model.
        let weight = optimizer.trainable_variables().unwrap().swap_remove(0);
        optimizer.backward(&weight.square().sum(Kind::Float)).unwrap();
        optimizer
    };
    let (mut a, mut b) = (made(NAMES[0], true), made(NAMES[1], true));
    let mut apart = made(NAMES[2], false);
    let loss = Tensor::from(1_f32);
    let one = (&loss, 3);
    let refused = |found: ln_tuning::Result<_>, kind, words: &str| {
        let error: ln_tuning::Error = found.map(|_: Vec<(Tensor, i64)>| ()).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{error:?}");
    };
    refused(
        Optimizer::all_reduce_mixed([&mut a, &mut b], &[one]),
        ErrorKind::InvalidArgument,
        "1 losses for 2 optimizers",
    );
    refused(
        Optimizer::all_reduce_mixed([&mut a, &mut apart], &[one, one]),
        ErrorKind::InvalidState,
        "of different process groups",
    );
    refused(
        Optimizer::all_reduce_mixed([&mut a], &[(&loss, -1)]),
        ErrorKind::InvalidArgument,
        "-1 tokens",
    );
    let before = a.gradients().unwrap();
    let pair = if other { [&mut b, &mut a] } else { [&mut a, &mut b] };
    refused(
        Optimizer::all_reduce_mixed(pair, &[one, one]),
        ErrorKind::Distributed,
        "rank 1 has optimizers that reduce at once",
    );
    assert_eq!(a.gradients().unwrap(), before);
    let own = if other { 5 } else { 1 };
    let all = Optimizer::all_reduce_mixed([&mut a, &mut b], &[(&loss, own), one]).unwrap();
    assert_eq!((all[0].1, all[1].1), (6, 6));
    assert_eq!(all[0].0.double_value(&[]), 1.);
    refused(
        Optimizer::all_reduce_mixed([&mut a, &mut b], &[one, one]),
        ErrorKind::InvalidState,
        "reduced already",
    );
    a.step().unwrap();
    b.step().unwrap();
}

#[test]
fn ranks_that_reduce_other_optimizers_at_once_are_refused_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let ranks = crate::launch::group("mismatches", 2, dir.path());
    ranks.into_iter().for_each(|rank| drop(rank.succeed()));
}
