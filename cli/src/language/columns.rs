//! The names that the columns, or keys, of rows have in a file.

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::records::keys::{near, KeyCounts};
use crate::records::Row;

/// For each name of ours the file's own, or none where that is the same.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Columns(BTreeMap<String, Option<String>>);

impl Columns {
    /// The file's name for one of ours.
    pub fn name<'n>(&'n self, ours: &'n str) -> &'n str {
        self.mapped(ours).unwrap_or(ours)
    }

    pub fn mapped(&self, ours: &str) -> Option<&str> {
        self.0.get(ours)?.as_deref()
    }

    /// Something is mapped to the file's name.
    pub fn takes(&self, name: &str) -> bool {
        self.0.values().flatten().any(|mapped| mapped == name)
    }

    /// Refuses a name that two of ours are mapped to.
    pub fn check_distinct(&self) -> Result<()> {
        let mut taken = BTreeMap::new();
        for (ours, name) in self.0.iter().filter_map(|(ours, name)| Some((ours, name.as_ref()?))) {
            if let Some(other) = taken.insert(name, ours) {
                bail!("'data.columns.{other}' and 'data.columns.{ours}' are both {name}, expected a column for each")
            }
        }
        Ok(())
    }

    /// Refuses a name that no row has; `absent` counts the rows without each, `unread` has the keys that are left.
    pub fn check(&self, absent: &KeyCounts, rows: usize, unread: &KeyCounts) -> Result<()> {
        let nowhere = |ours: &&String| rows > 0 && absent.rows(ours) == rows;
        let Some(ours) = absent.keys().find(nowhere) else { return Ok(()) };
        let name = self.name(ours);
        let near = near(name, unread.keys());
        let near = near.map_or(String::new(), |near| format!(": is it '{near}'?"));
        bail!("'data.columns.{ours}' is {name}, and no row has it{near}")
    }

    /// Our names that are mapped to something that is not among a row's keys.
    pub fn absent(&self, row: &Row) -> Vec<String> {
        let mapped = self.0.iter().filter_map(|(ours, name)| Some((ours, name.as_ref()?)));
        mapped.filter(|(_, name)| !row.contains_key(*name)).map(|(ours, _)| ours.clone()).collect()
    }

    /// Takes what a row has under our names, null apart.
    pub fn take(&self, row: &mut Row) -> BTreeMap<&str, Value> {
        let (mapped, own): (Vec<_>, Vec<_>) = self.0.iter().partition(|(_, name)| name.is_some());
        let names = mapped.into_iter().chain(own);
        let mut taken = BTreeMap::new();
        for (ours, name) in names {
            let value = row.remove(name.as_ref().unwrap_or(ours)).filter(|value| !value.is_null());
            taken.extend(value.map(|value| (ours.as_str(), value)));
        }
        taken
    }
}
