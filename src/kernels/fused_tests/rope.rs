use proptest::prelude::*;

use super::plain::rotated;
use super::*;

/// Queries and keys turned by tables of this shape, whose last dimension may be smaller than theirs.
fn check(q: &Tensor, k: &Tensor, tables: &[i64], side_by_side: bool) {
    let kind = q.kind();
    let (cos, sin) = (random(tables, kind), random(tables, kind));
    agree(
        "rotation",
        &[q.shallow_clone(), k.shallow_clone()],
        |of| {
            let angles = (cos.shallow_clone(), sin.shallow_clone());
            turned([&of[0], &of[1]], &angles, side_by_side).unwrap().unwrap().into()
        },
        |of| {
            let [cos, sin] = [&cos, &sin].map(|x| x.to_kind(Kind::Double));
            of.iter().map(|x| rotated(x, &cos, &sin, side_by_side)).collect()
        },
    );
}

#[test]
fn rotations_are_those_of_operators() {
    tch::manual_seed(3);
    for kind in KINDS {
        for (batch, length, heads, dim, dims) in [
            (1, 1, 1, 2, 2),
            (2, 7, 3, 14, 14),
            (2, 5, 2, 64, 64),
            (2, 5, 2, 80, 32),
            (0, 3, 2, 8, 8),
            (3, 4, 1, 22, 6),
        ] {
            for (side_by_side, tables) in
                [(false, vec![length, 1, dims]), (true, vec![batch, length, 1, dims])]
            {
                let parts = random(&[batch, length, 3 * heads, dim], kind);
                let plain = random(&[batch, length, heads, dim], kind);
                let across = random(&[batch, heads, length, dim], kind).transpose(1, 2);
                for q in [plain, across, parts.narrow(2, heads, heads)] {
                    check(&q, &parts, &tables, side_by_side);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_rotation_is_that_of_operators(
        (batch, length, heads, pairs, rest) in (0..4_i64, 1..9_i64, 1..5_i64, 1..50_i64, 0..20_i64),
        (kind, side_by_side, tables, across) in (0..3_usize, any::<bool>(), 0..4_usize, any::<bool>()),
    ) {
        let (kind, dim) = (KINDS[kind], 2 * pairs + rest);
        let q = random(&[batch, length, 3 * heads, dim], kind).narrow(2, heads, heads);
        let k = if across {
            random(&[batch, heads, length, dim], kind).transpose(1, 2)
        } else {
            random(&[batch, length, 1, dim], kind)
        };
        let tables = [
            vec![length, 1, 2 * pairs],
            vec![1, 1, 2 * pairs],
            vec![batch, length, 1, 2 * pairs],
            vec![1, length, 1, 2 * pairs],
        ][tables].clone();
        check(&q, &k, &tables, side_by_side);
    }
}
