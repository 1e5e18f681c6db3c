//! Operations of a group for programs of their own.

use ln_tuning::distributed::{ProcessGroup, ReduceOp};
use ln_tuning::{Error, ErrorKind};
use tch::{Device, Kind, Tensor};

use crate::launch::group;
use crate::rank::join;

const CPU: Device = Device::Cpu;
const SIZE: usize = 3;

pub fn of_one_rank() {
    let group = join().unwrap();
    assert_eq!((group.world_size(), group.local_rank()), (SIZE, 0));
    let rank = group.rank() as i64;
    reduces(&group, rank);
    broadcasts_and_gathers(&group, rank);
    calls_that_do_not_fit(&group, rank);
    // The group is as before.
    let mut count = Tensor::from(1_i64);
    group.all_reduce(&mut count, ReduceOp::Sum).unwrap();
    assert_eq!(count, Tensor::from(SIZE as i64));
    group.barrier().unwrap();
}

fn reduces(group: &ProcessGroup, rank: i64) {
    let kinds = [
        Kind::Float,
        Kind::Double,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int8,
        Kind::Uint8,
    ];
    for kind in kinds {
        for (operation, expected) in [
            (ReduceOp::Sum, [6, 9]),
            (ReduceOp::Product, [6, 24]),
            (ReduceOp::Min, [1, 2]),
            (ReduceOp::Max, [3, 4]),
            (ReduceOp::Mean, [2, 3]),
        ] {
            let mut own = Tensor::from_slice(&[rank + 1, rank + 2]).to_kind(kind);
            if operation == ReduceOp::Mean && !own.is_floating_point() {
                let error = group.all_reduce(&mut own, operation).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::KindMismatch);
                continue;
            }
            group.all_reduce(&mut own, operation).unwrap();
            let expected = Tensor::from_slice(&expected.map(i64::from)).to_kind(kind);
            assert_eq!((own.kind(), &own), (kind, &expected), "{operation:?}");
        }
    }
    // Columns of a matrix: c10d would reduce other elements. Those beside them stay.
    let whole = Tensor::arange(6, (Kind::Float, CPU)).view([2, 3]);
    group.all_reduce(&mut whole.select(1, 1), ReduceOp::Sum).unwrap();
    assert_eq!(whole, Tensor::from_slice2(&[[0_f32, 3., 2.], [3., 12., 5.]]));
    group.all_reduce(&mut whole.tr(), ReduceOp::Mean).unwrap();
    assert_eq!(whole, Tensor::from_slice2(&[[0_f32, 3., 2.], [3., 12., 5.]]));
    // A leaf that trains, a scalar, and nothing.
    let mut leaf = Tensor::from_slice(&[rank as f32]).set_requires_grad(true);
    group.all_reduce(&mut leaf, ReduceOp::Mean).unwrap();
    assert_eq!((leaf.double_value(&[0]), leaf.requires_grad()), (1., true));
    group.all_reduce(&mut Tensor::zeros([0, 3], (Kind::Float, CPU)), ReduceOp::Sum).unwrap();
}

fn broadcasts_and_gathers(group: &ProcessGroup, rank: i64) {
    for kind in [Kind::Float, Kind::Bool, Kind::Int64] {
        let mut own = Tensor::from_slice(&[rank, 0, rank * 2]).to_kind(kind);
        let all = group.all_gather(&own).unwrap();
        for (other, found) in all.iter().enumerate() {
            let expected = Tensor::from_slice(&[other as i64, 0, 2 * other as i64]).to_kind(kind);
            assert_eq!((found.kind(), found), (kind, &expected));
        }
        group.broadcast(&mut own, 2).unwrap();
        assert_eq!(own, all[2]);
    }
    let strided = Tensor::arange(4, (Kind::Int64, CPU)).view([2, 2]).tr() + rank;
    for (other, found) in group.all_gather(&strided).unwrap().iter().enumerate() {
        assert_eq!(found, &(&strided - rank + other as i64));
    }
    assert_eq!(group.all_gather(&Tensor::zeros([0], (Kind::Float, CPU))).unwrap().len(), SIZE);
}

/// Refused on all ranks, before c10d sees tensors that do not fit.
fn calls_that_do_not_fit(group: &ProcessGroup, rank: i64) {
    let last = rank == 2;
    let zeros = |size: i64, kind| Tensor::zeros([size], (kind, CPU));
    let refused = |result: Result<(), Error>, words: &[&str]| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Distributed);
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    };
    let size = if last { 5 } else { 4 };
    refused(
        group.all_reduce(&mut zeros(size, Kind::Float), ReduceOp::Sum),
        &[
            "rank 2 calls all_reduce Sum of a tensor [5] of kind Float",
            "rank 0 all_reduce Sum of a tensor [4]",
        ],
    );
    let kind = if last { Kind::Double } else { Kind::Float };
    refused(
        group.broadcast(&mut zeros(4, kind), 0),
        &["rank 2 calls broadcast from 0 of a tensor [4] of kind Double"],
    );
    refused(
        group.broadcast(&mut zeros(4, Kind::Float), if last { 1 } else { 0 }),
        &["broadcast from 1"],
    );
    refused(group.all_gather(&zeros(size, Kind::Float)).map(drop), &["all_gather of a tensor [5]"]);
    let different = match rank {
        0 => group.barrier(),
        1 => group.all_gather(&zeros(1, Kind::Float)).map(drop),
        _ => group.all_reduce(&mut zeros(1, Kind::Float), ReduceOp::Max),
    };
    refused(
        different,
        &["rank 1 calls all_gather of a tensor [1] of kind Float, but rank 0 barrier"],
    );
    let number = rank.to_string();
    refused(
        group.verify_equal([("rows", "7"), ("seed", number.as_str())]),
        &["rank 1 has seed 1, but rank 0 has 0; rank 2 has seed 2, but rank 0 has 0"],
    );
    group.verify_equal([("rows", "7")]).unwrap();
    // Alone, without a word to the others.
    let mine = |result: Result<(), Error>| result.unwrap_err().kind();
    assert_eq!(mine(group.broadcast(&mut zeros(1, Kind::Float), 3)), ErrorKind::InvalidArgument);
    let mut complex = zeros(1, Kind::ComplexFloat);
    assert_eq!(mine(group.all_reduce(&mut complex, ReduceOp::Sum)), ErrorKind::KindMismatch);
    let mut boolean = zeros(1, Kind::Bool);
    assert_eq!(mine(group.all_reduce(&mut boolean, ReduceOp::Sum)), ErrorKind::KindMismatch);
    let mut sparse = zeros(1, Kind::Float).to_sparse_sparse_dim(1);
    assert_eq!(mine(group.broadcast(&mut sparse, 0)), ErrorKind::KindMismatch);
    assert_eq!(mine(group.broadcast(&mut Tensor::new(), 0)), ErrorKind::InvalidArgument);
}

#[test]
fn operations_give_all_ranks_the_same_or_are_refused_on_all() {
    let dir = tempfile::tempdir().unwrap();
    group("collectives", SIZE, dir.path()).into_iter().for_each(|rank| drop(rank.succeed()));
}

#[test]
fn a_group_of_one_needs_no_launcher() {
    assert!(!ProcessGroup::is_launched());
    assert_eq!(ProcessGroup::from_env().unwrap_err().kind(), ErrorKind::InvalidConfig);
    let group = ProcessGroup::alone();
    assert_eq!((group.rank(), group.world_size(), group.local_rank()), (0, 1, 0));
    let mut own = Tensor::from_slice(&[1.5_f32]);
    for operation in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max] {
        group.all_reduce(&mut own, operation).unwrap();
    }
    group.broadcast(&mut own, 0).unwrap();
    assert_eq!(group.all_gather(&own).unwrap(), [Tensor::from_slice(&[1.5_f32])]);
    group.barrier().unwrap();
    group.verify_equal([("anything", "")]).unwrap();
    assert_eq!(
        ProcessGroup::from_env_with(std::time::Duration::ZERO).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}
