//! Several documents in a row of tokens.

use std::collections::BTreeMap;

use crate::train::order::Random;

/// Pieces that are packed together: more would fill the rows hardly better.
const WINDOW: usize = 8192;

/// The stream of random numbers that rows are made with.
pub const ROWS: u64 = 2;

/// Fills rows of `capacity` with pieces, which are given by their lengths, none above `capacity`. In order or, with
/// random numbers, the longest first into the fullest row that has the space.
pub fn pack(lengths: &[u32], capacity: u32, random: Option<Random>) -> Vec<Vec<usize>> {
    let mut pieces: Vec<usize> = (0..lengths.len()).collect();
    let Some(mut random) = random else {
        let mut rows: Vec<Vec<usize>> = Vec::new();
        let mut space = 0;
        for piece in pieces {
            match rows.last_mut() {
                Some(row) if lengths[piece] <= space => row.push(piece),
                _ => {
                    rows.push(vec![piece]);
                    space = capacity;
                }
            }
            space -= lengths[piece];
        }
        return rows;
    };
    random.shuffle(&mut pieces);
    let mut all = Vec::new();
    for window in pieces.chunks_mut(WINDOW) {
        window.sort_by_key(|piece| std::cmp::Reverse(lengths[*piece]));
        let mut rows: Vec<Vec<usize>> = Vec::new();
        // Rows by the space that they have left.
        let mut spaces: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for piece in window.iter().copied() {
            let length = lengths[piece];
            let fitting = spaces.range_mut(length..).next();
            let fitting =
                fitting.and_then(|(space, rows)| Some((*space, rows.pop()?, rows.is_empty())));
            let (space, row) = match fitting {
                Some((space, row, last)) => {
                    if last {
                        spaces.remove(&space);
                    }
                    (space, row)
                }
                None => {
                    rows.push(Vec::new());
                    (capacity, rows.len() - 1)
                }
            };
            rows[row].push(piece);
            spaces.entry(space - length).or_default().push(row);
        }
        all.extend(rows);
    }
    random.shuffle(&mut all);
    all
}
