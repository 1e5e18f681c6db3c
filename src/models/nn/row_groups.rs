//! The rows of a batch in groups: those whose adapters share a weight are computed together.

use std::collections::HashMap;
use std::hash::Hash;

use tch::Tensor;

use super::rows::Rows;
use crate::device::trace::sent_numbers;
use crate::error::Result;
use crate::mixed::{back, groups, Groups};

impl Rows {
    /// Of each adapter, the first that has the same of these variables: the base's, for instance.
    pub(super) fn sharing<'t>(
        &self,
        variables: impl IntoIterator<Item = Option<&'t Tensor>>,
    ) -> Vec<usize> {
        let variables: Vec<&Tensor> = variables.into_iter().flatten().collect();
        self.sharing_by(|adapter| {
            variables.iter().map(|variable| self.identity(variable, adapter)).collect::<Vec<_>>()
        })
    }

    /// Of each adapter, the first with the same key.
    pub(in crate::models) fn sharing_by<K: Eq + Hash>(
        &self,
        key: impl Fn(usize) -> K,
    ) -> Vec<usize> {
        let mut first = HashMap::new();
        (0..self.adapters()).map(|adapter| *first.entry(key(adapter)).or_insert(adapter)).collect()
    }

    /// Calls `f` for the parts of `x` of adapters that share these variables, with the number of one of them, and puts
    /// the results in order.
    pub(in crate::models) fn grouped<'t>(
        &self,
        x: &Tensor,
        variables: impl IntoIterator<Item = Option<&'t Tensor>>,
        f: impl Fn(&Tensor, usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.grouped_by(x, &self.sharing(variables), f)
    }

    /// [`grouped`](Self::grouped) where `sharing` gives, for each adapter, the first that shares with it.
    pub(in crate::models) fn grouped_by(
        &self,
        x: &Tensor,
        sharing: &[usize],
        f: impl Fn(&Tensor, usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        // The function has the weights of one adapter.
        let _one = Rows::enter(None);
        let (adapters, lead) = self.adapters_of(&x.size())?;
        let groups = groups(adapters.iter().map(|adapter| sharing[*adapter]));
        if let [(adapter, _)] = groups[..] {
            return f(x, adapter);
        }
        let flat = x.f_flatten(0, lead.len() as i64 - 1)?;
        let place = |places: &[i64]| sent_numbers(places, x.device());
        let mut results = Vec::with_capacity(groups.len());
        for (adapter, places) in &groups {
            results.push(f(&flat.f_index_select(0, &place(places)?)?, *adapter)?);
        }
        let all = Tensor::f_cat(&results, 0)?.f_index_select(0, &place(&back(&groups))?)?;
        let whole = [&lead[..], &all.size()[1..]].concat();
        Ok(all.f_view(&whole[..])?)
    }

    /// The result of `f` for the adapter of each part of `x`, `[parts…, …]`: once for each adapter.
    pub(in crate::models) fn of_each(
        &self,
        x: &Tensor,
        f: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let _one = Rows::enter(None);
        let (adapters, lead) = self.adapters_of(&x.size())?;
        let groups = groups(adapters.iter().copied());
        let values = groups.iter().map(|(adapter, _)| f(*adapter)).collect::<Result<Vec<_>>>()?;
        let mut index = vec![0_i64; adapters.len()];
        for (number, (_, parts)) in (0..).zip(&groups) {
            parts.iter().for_each(|part| index[*part as usize] = number);
        }
        let all = Tensor::f_stack(&values, 0)?;
        let all = all.f_index_select(0, &sent_numbers(&index, all.device())?)?;
        let whole = [&lead[..], &all.size()[1..]].concat();
        Ok(all.f_view(&whole[..])?)
    }

    /// The parts of adapters that share, `[rows]` or `[rows · places]`, by the number of one of them.
    pub(in crate::models) fn groups(&self, sharing: &[usize]) -> Groups<usize> {
        groups((0..self.parts()).map(|part| sharing[self.adapter(part)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixed::{Differing, Matrix};

    /// One product for all rows whose adapters have no head of their own, and one for each that has.
    #[test]
    fn adapters_that_share_a_matrix_are_computed_together() {
        let (base, own) = (Tensor::from_slice(&[1_i64]), Tensor::from_slice(&[2_i64]));
        let values = [&base, &own, &base, &base].map(Tensor::shallow_clone);
        let address = base.data_ptr() as usize;
        let (variable, train) = (0, vec![false; 4]);
        let values = values.into();
        let matrix = Matrix { name: "head".to_owned(), variable, address, values, train };
        let (trains, stacks, rows) = (false, Vec::new(), vec![0, 1, 2, 3]);
        let differing = Differing { trains, stacks, rows, matrices: vec![matrix] };
        let adapters = vec![0, 1, 2, 1, 3];
        let rows = Rows::new(differing, adapters, vec![5], (0..5).collect()).unwrap();
        let x = Tensor::from_slice(&[10_i64, 20, 30, 40, 50]);
        let calls = std::cell::Cell::new(0);
        let found = rows.grouped(&x, [Some(&base)], |x, adapter| {
            calls.set(calls.get() + 1);
            Ok(x + rows.of(&base, adapter)?)
        });
        assert_eq!(Vec::<i64>::try_from(found.unwrap()).unwrap(), [11, 22, 31, 42, 51]);
        assert_eq!(calls.get(), 2);
    }
}
