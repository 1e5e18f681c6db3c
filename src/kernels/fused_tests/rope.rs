use super::*;

pub(super) fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor, side_by_side: bool) -> Tensor {
    let dims = cos.size()[cos.dim() - 1];
    let part = x.narrow(-1, 0, dims);
    let other = if side_by_side {
        part.unflatten(-1, [dims / 2, 2]).flip([-1]).flatten(-2, -1)
    } else {
        part.roll([dims / 2], [-1])
    };
    let rest = x.narrow(-1, dims, x.size()[3] - dims);
    Tensor::cat(&[part * cos + other * sin, rest], -1)
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
                let (cos, sin) = (random(&tables, kind), random(&tables, kind));
                let parts = random(&[batch, length, 3 * heads, dim], kind);
                let plain = random(&[batch, length, heads, dim], kind);
                let across = random(&[batch, heads, length, dim], kind).transpose(1, 2);
                for q in [plain, across, parts.narrow(2, heads, heads)] {
                    let inputs = [q, parts.shallow_clone()];
                    agree(
                        "rotation",
                        &inputs,
                        |of| {
                            let angles = (cos.shallow_clone(), sin.shallow_clone());
                            turned([&of[0], &of[1]], &angles, side_by_side).unwrap().unwrap().into()
                        },
                        |of| {
                            let turn = |x: &Tensor| {
                                let wide = |x: &Tensor| x.to_kind(x.kind()).to_kind(Kind::Double);
                                rotated(x, &wide(&cos), &wide(&sin), side_by_side)
                            };
                            vec![turn(&of[0]), turn(&of[1])]
                        },
                    );
                }
            }
        }
    }
}
