//! The vectors of many adapters in one buffer, so that a batch takes those of its rows with one call.

use std::collections::{BTreeMap, HashMap, HashSet};

use tch::{Kind, Tensor};

use crate::adapter::weights::Adapter;
use crate::error::Result;
use crate::storage::info::is_float;

/// A copy of the live vectors of the base and of every adapter that a batch has named so far. It takes as much memory
/// again as these live vectors do.
#[derive(Debug)]
pub(crate) struct Stack {
    parts: Vec<Part>,
    /// Of each adapter, by its number.
    rows: HashMap<u64, Row>,
    /// Rows that nobody uses.
    free: Vec<i64>,
}

/// The vectors of one kind.
#[derive(Debug)]
pub(crate) struct Part {
    /// `[rows, size]`; the first row is the base's.
    pub(crate) rows: Tensor,
    /// The variable, its start in a row, its shape.
    pub(crate) columns: Vec<(usize, i64, Vec<i64>)>,
}

#[derive(Debug)]
struct Row {
    at: i64,
    /// The version of the weights that it holds; `None`: they may have changed without a mark.
    version: Option<i64>,
}

/// The rows of a new stack.
const FIRST: i64 = 8;

impl Stack {
    /// For the variables that adapters replace, with the storage of each without adapters.
    pub(crate) fn new(base: &HashMap<usize, Tensor>) -> Result<Self> {
        let mut by_kind: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (variable, data) in base {
            if is_vector(data)? {
                let place = format!("{:?} {:?}", data.f_kind()?, data.device());
                by_kind.entry(place).or_default().push(*variable);
            }
        }
        let mut parts = Vec::new();
        for mut variables in by_kind.into_values() {
            variables.sort_unstable();
            let (mut columns, mut start) = (Vec::new(), 0);
            for variable in &variables {
                let data = &base[variable];
                columns.push((*variable, start, data.size()));
                start += data.numel() as i64;
            }
            let like = &base[&variables[0]];
            let place = (like.f_kind()?, like.device());
            parts.push(Part { rows: Tensor::f_zeros([FIRST, start], place)?, columns });
        }
        let free = (1..FIRST).rev().collect();
        let stack = Stack { parts, rows: HashMap::new(), free };
        stack.write(0, base, |_| None)?;
        Ok(stack)
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The row of an adapter, with its weights of now; `all`: the number of adapters that there are. What the model uses
    /// now, user code may write to without a mark.
    pub(crate) fn row(
        &mut self,
        adapter: &Adapter,
        base: &HashMap<usize, Tensor>,
        in_use: bool,
        all: usize,
    ) -> Result<i64> {
        let version = adapter.version()?;
        let known = self.rows.get(&adapter.id);
        if let Some(row) = known.filter(|row| !in_use && row.version == Some(version)) {
            return Ok(row.at);
        }
        let at = match known {
            Some(row) => row.at,
            None => self.free_row(all)?,
        };
        let own: HashMap<usize, &Tensor> = adapter.all_storages(base).collect();
        self.write(at, base, |variable| own.get(&variable).copied())?;
        self.rows.insert(adapter.id, Row { at, version: Some(version) });
        Ok(at)
    }

    /// Weights of this adapter may have changed without a mark.
    pub(crate) fn outdate(&mut self, adapter: u64) {
        if let Some(row) = self.rows.get_mut(&adapter) {
            row.version = None;
        }
    }

    /// Forgets adapters that are no longer there. False if most of the stack is empty then.
    pub(crate) fn keep(&mut self, adapters: impl Iterator<Item = u64>) -> bool {
        let there: HashSet<u64> = adapters.collect();
        let free = &mut self.free;
        self.rows.retain(|id, row| {
            there.contains(id) || {
                free.push(row.at);
                false
            }
        });
        let capacity = (self.rows.len() + self.free.len() + 1) as i64;
        capacity <= FIRST || self.rows.len() * 4 > self.free.len()
    }

    /// True if it has a row for an adapter that is not one of so many.
    pub(crate) fn has_more_than(&self, adapters: usize) -> bool {
        self.rows.len() > adapters
    }

    fn free_row(&mut self, all: usize) -> Result<i64> {
        if self.free.is_empty() {
            let rows = self.rows.len() as i64 + 1;
            let grown = rows + more(rows, all as i64 + 1);
            for part in &mut self.parts {
                let place = (part.rows.f_kind()?, part.rows.device());
                let new = Tensor::f_zeros([grown, part.rows.size2()?.1], place)?;
                new.f_narrow(0, 0, rows)?.f_copy_(&part.rows)?;
                part.rows = new;
            }
            self.free.extend((rows..grown).rev());
        }
        Ok(self.free.pop().unwrap_or(0))
    }

    fn write<'a>(
        &self,
        at: i64,
        base: &'a HashMap<usize, Tensor>,
        own: impl Fn(usize) -> Option<&'a Tensor>,
    ) -> Result<()> {
        for Part { rows, columns } in &self.parts {
            let vectors = columns.iter().map(|(variable, ..)| {
                Ok(own(*variable).unwrap_or(&base[variable]).f_reshape([-1])?)
            });
            let vectors = vectors.collect::<Result<Vec<_>>>()?;
            let _ = Tensor::f_cat_out(&rows.f_select(0, at)?, &vectors, 0)?;
        }
        Ok(())
    }
}

/// The rows to add to so many: as many again, but no more than can be needed in the end, `all`.
fn more(rows: i64, all: i64) -> i64 {
    let left = (all - rows).max(1);
    if left < rows + rows / 2 {
        left
    } else {
        rows
    }
}

/// True for what stands in a stack: weights and biases of norms and layers.
pub(crate) fn is_vector(data: &Tensor) -> Result<bool> {
    let kind: Kind = data.f_kind()?;
    Ok(data.dim() == 1 && data.numel() > 0 && is_float(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_of_all_adapters_has_no_row_too_many_and_is_copied_few_times() {
        for adapters in 1..3000 {
            let (mut rows, mut copies) = (FIRST, 0);
            while rows < adapters + 1 {
                rows += more(rows, adapters + 1);
                copies += 1;
            }
            assert!(rows == FIRST.max(adapters + 1) && copies <= 9, "{adapters}: {rows}, {copies}");
        }
        // A few of very many are named.
        assert_eq!(more(FIRST, 1025), FIRST);
    }
}
