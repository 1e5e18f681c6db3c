//! The weights of the adapters of a batch, for models.

use std::sync::Mutex;

use tch::{no_grad, Tensor};

use crate::adapter::attachment::{lock, Attachment};
use crate::adapter::stack::{is_vector, Stack};
use crate::adapter::variables::Variable;
use crate::error::{refusal, refuse, Error, Result};
use crate::mixed::{self, Adapters, Column, Differing, Matrix, Pass, Use, BASE};
use crate::names::nearest::{listed, nearest};

impl Adapters for Mutex<Attachment> {
    fn has(&self, name: &str, tensor: &Tensor) -> bool {
        let attachment = lock(self);
        let Some(index) = attachment.variables.position(name) else { return false };
        let own = &attachment.variables.get(index).tensor;
        own.size() == tensor.size() && own.data_ptr() == tensor.data_ptr()
    }

    fn of(&self, names: &[&str], uses: &dyn Fn(&str) -> Use) -> Result<Differing> {
        let mut attachment = lock(self);
        no_grad(|| {
            attachment.sync()?;
            attachment.check_mixable(names)?;
            let by_row = attachment.by_row(names, uses)?;
            attachment.differing(names, &by_row)
        })
    }

    fn note(&self, pass: Pass) {
        let mut attachment = lock(self);
        // Those that nobody went back through.
        if attachment.passes.len() >= MOST_PASSES {
            attachment.passes.remove(0);
        }
        attachment.passes.push(pass);
    }
}

/// Forward passes between two backward passes: each keeps the vectors of its rows.
const MOST_PASSES: usize = 1024;

impl Attachment {
    /// Refuses names for rows that have no adapter, or whose adapter cannot be used now.
    pub(super) fn check_mixable(&self, names: &[&str]) -> Result<()> {
        self.check_unmerged("pass `adapter_names`")?;
        if !self.enabled {
            refuse!(
                InvalidState,
                "cannot pass `adapter_names`: adapters are disabled. Drop the guard of `disable` first, or call \
                 `enable` if it was forgotten"
            );
        }
        let is_unknown = |name: &&&str| **name != BASE && !self.adapters.contains_key(**name);
        let unknown: Vec<&str> = names.iter().filter(is_unknown).copied().collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(self.unknown_in_batch(&unknown))
    }

    fn unknown_in_batch(&self, unknown: &[&str]) -> Error {
        let known: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { nearest(unknown, &known) };
        refusal!(
            UnknownAdapter,
            "`adapter_names` holds names of no adapter: {}; nearest of those attached: {known}. '{BASE}' is the base",
            listed(unknown)
        )
    }

    /// The variables that adapters replace and the model uses by row.
    fn by_row(&self, names: &[&str], uses: &dyn Fn(&str) -> Use) -> Result<Vec<usize>> {
        let mut by_row = Vec::new();
        for &variable in self.base.keys() {
            let name = |index: usize| self.variables.get(index).name.as_str();
            let all = self.variables.tied_with(variable);
            let used = |wanted: Use| all.iter().copied().find(|index| uses(name(*index)) == wanted);
            if let Some(as_one) = used(Use::AsOne) {
                self.check_unused(as_one, variable, names)?;
            }
            if used(Use::ByRow).is_some() {
                by_row.push(variable);
            }
        }
        by_row.sort_unstable();
        Ok(by_row)
    }

    /// Refuses a variable that is the same for all rows if an adapter of the batch has its own, or the one in use.
    fn check_unused(&self, index: usize, variable: usize, names: &[&str]) -> Result<()> {
        let shown = self.shown.as_deref();
        let mut named = names.iter().copied().chain(shown);
        let Some(name) =
            named.find(|name| self.adapters.get(*name).is_some_and(|a| a.has(variable)))
        else {
            return Ok(());
        };
        refuse!(
            Unsupported,
            "adapter '{name}' has its own '{}', which the model cannot use for some rows only: run the rows of each adapter \
             by themselves with `by_adapter`{}",
            self.variables.get(index).name,
            if names.contains(&name) { "" } else { ", or make another adapter active" }
        )
    }

    fn differing(&mut self, names: &[&str], by_row: &[usize]) -> Result<Differing> {
        let mut stack = match self.stack.take() {
            Some(stack) => stack,
            None => Stack::new(&self.base)?,
        };
        if stack.has_more_than(self.adapters.len())
            && !stack.keep(self.adapters.values().map(|a| a.id))
        {
            stack = Stack::new(&self.base)?;
        }
        let all = self.adapters.len();
        let rows = names.iter().map(|name| match self.adapters.get(*name) {
            Some(adapter) => {
                let in_use = self.shown.as_deref() == Some(*name);
                stack.row(adapter, &self.base, in_use, all)
            }
            None => Ok(0),
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let column = |(variable, start, shape): &(usize, i64, Vec<i64>)| Column {
            variable: *variable,
            address: self.variables.get(*variable).tensor.data_ptr() as usize,
            start: *start,
            shape: shape.clone(),
        };
        let stacks = stack.parts().iter().map(|part| {
            let columns = part.columns.iter().filter(|(v, ..)| by_row.binary_search(v).is_ok());
            mixed::Stack { rows: part.rows.shallow_clone(), columns: columns.map(column).collect() }
        });
        let stacks = stacks.collect();
        let mut matrices = Vec::new();
        for variable in by_row {
            if !is_vector(&self.base[variable])? {
                matrices.extend(self.matrix(*variable, names));
            }
        }
        self.stack = Some(stack);
        let trains = names.iter().any(|name| self.trains_by_name(name));
        Ok(Differing { trains, stacks, rows, matrices })
    }

    /// The values of a variable; `None` if neither an adapter of the batch nor the one in use replaces the base's.
    fn matrix(&self, variable: usize, names: &[&str]) -> Option<Matrix> {
        let adapter = |name: &str| self.adapters.get(name);
        let mut all = names.iter().copied().chain(self.shown.as_deref());
        all.find(|name| adapter(name).is_some_and(|adapter| adapter.has(variable)))?;
        let Variable { name, tensor, .. } = self.variables.get(variable);
        let value = |name: &&str| {
            let own = adapter(name).and_then(|adapter| adapter.storage(variable, &self.base));
            own.unwrap_or(&self.base[&variable]).shallow_clone()
        };
        let trains = |name: &&str| {
            let own = adapter(name).is_some_and(|a| a.slot_variables.contains(&variable));
            own && self.trains_by_name(name)
        };
        Some(Matrix {
            name: name.clone(),
            variable,
            address: tensor.data_ptr() as usize,
            values: names.iter().map(value).collect(),
            train: names.iter().map(trains).collect(),
        })
    }

    fn trains_by_name(&self, name: &str) -> bool {
        let adapter = self.adapters.get(name);
        adapter.is_some_and(|a| a.trainable && self.trained_by_name.contains(&a.id))
    }
}

#[cfg(test)]
mod tests {
    use tch::nn::{self, VarStore};
    use tch::Device;

    use super::*;
    use crate::{LnTuningConfig, LnTuningModel};

    #[test]
    fn a_variable_that_all_rows_share_is_refused_where_one_adapter_has_its_own() {
        let vs = VarStore::new(Device::Cpu);
        let _norm = nn::layer_norm(vs.root() / "norm", vec![2], Default::default());
        let config = LnTuningConfig::default().target_modules(["norm"]);
        let mut tuned = LnTuningModel::with_adapter_name(&vs, config.clone(), "a").unwrap();
        tuned.add_adapter("b", config).unwrap();
        let weight = vs.variables().remove("norm.weight").unwrap();
        let adapters = mixed::on("norm.weight", &weight).unwrap();
        for (names, parts) in [
            (&[BASE, "b"][..], &["adapter 'b' has its own 'norm.", "with `by_adapter`"][..]),
            (&[BASE], &["adapter 'a' has its own 'norm.", "or make another adapter active"]),
        ] {
            let error = adapters.of(names, &|_| Use::AsOne).map(drop).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
            parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{error}"));
        }
        assert!(adapters.of(&[BASE, "b"], &|_| Use::ByRow).is_ok());
    }
}
