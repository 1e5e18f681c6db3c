//! From the names of adapters in inputs to the weights of rows, for each model.

use std::collections::HashMap;

use tch::Tensor;

use super::adapter_names::AdapterNames;
use super::inputs::Inputs;
use super::nn::{Entered, Rows, Sites};
use crate::device::trace::numbers_of;
use crate::error::{refuse, Result};
use crate::mixed::{self, OwnMatrix, Pass, BASE};

impl<'a> Inputs<'a> {
    /// The weights of the adapters that are named, of the model that has these variables. Those that are there already
    /// where one model runs another.
    pub(super) fn named_rows(&self, sites: &Sites) -> Result<Option<Rows>> {
        match self.adapter_names {
            Some(names) => self.rows_of(&names.listed(), sites),
            None => Ok(self.rows.cloned()),
        }
    }

    /// With these weights in the place of names.
    pub(super) fn with_rows<'b>(self, rows: Option<&'b Rows>) -> Inputs<'b>
    where
        'a: 'b,
    {
        Inputs { adapter_names: None, rows, ..self }
    }

    /// [`named_rows`](Self::named_rows) for texts and images, of which a name counts for the text and the image of a
    /// row.
    pub(super) fn named_pairs(&self, sites: &Sites) -> Result<Option<Rows>> {
        let count = |x: Option<&Tensor>| x.and_then(|x| x.size().first().copied()).unwrap_or(0);
        let (texts, images) = (count(self.ids), count(self.pixel_values));
        if self.adapter_names.is_some() && texts != images {
            refuse!(
                ShapeMismatch,
                "`adapter_names` are given for {texts} texts and {images} images: give as many texts as images, or ask for \
                 the features of each by themselves"
            );
        }
        self.named_rows(sites)
    }

    /// Uses these weights on this thread until the guard is dropped; without names, those of the variables.
    pub(super) fn enter(&self) -> Entered {
        Rows::enter(self.rows.cloned())
    }

    fn rows_of(&self, names: &[&str], sites: &Sites) -> Result<Option<Rows>> {
        // Patches of images of any size stand one after the other: there is a grid for each image.
        let batch = self.ids.or(self.image_grid_thw).or(self.pixel_values);
        let batch = batch.and_then(|x| x.size().first().copied()).unwrap_or(0);
        let parts = match self.documents {
            Some(documents) => of_documents(documents, names.len())?,
            None => of_rows(batch, names.len())?,
        };
        rows_of_parts(names, parts, sites)
    }
}

/// The weights of rows that are `batch` in number.
pub(super) fn rows_of_batch(
    names: AdapterNames,
    batch: i64,
    sites: &Sites,
) -> Result<Option<Rows>> {
    let names = names.listed();
    rows_of_parts(&names, of_rows(batch, names.len())?, sites)
}

/// `parts`: their shape, and the number of the name of each.
fn rows_of_parts(
    names: &[&str],
    (lead, choices): (Vec<i64>, Vec<usize>),
    sites: &Sites,
) -> Result<Option<Rows>> {
    let mut distinct: Vec<&str> = Vec::new();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let adapters = names.iter().map(|name| {
        *numbers.entry(name).or_insert_with(|| {
            distinct.push(name);
            distinct.len() - 1
        })
    });
    let adapters: Vec<usize> = adapters.collect();
    let Some(attached) = sites.with_known(mixed::on).flatten() else {
        if distinct.iter().all(|name| *name == BASE) {
            return Ok(None);
        }
        refuse!(
                InvalidState,
                "there are `adapter_names`, and no adapter is attached to the variables of this model: attach with \
                 `LnTuningModel` to the VarStore that it was made of"
            );
    };
    let differing = attached.of(&distinct, &|name| sites.use_of(name))?;
    let rows = Rows::new(differing, adapters, lead, choices)?;
    let vectors = rows.trained();
    let matrices = rows.trained_matrices().into_iter().map(|(adapter, variable, tensor)| {
        OwnMatrix { adapter: distinct[adapter].to_owned(), variable, tensor }
    });
    let matrices: Vec<OwnMatrix> = matrices.collect();
    if !vectors.is_empty() || !matrices.is_empty() {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        attached.note(Pass { names, vectors, matrices });
    }
    Ok(Some(rows))
}

/// A name for each row.
fn of_rows(batch: i64, names: usize) -> Result<(Vec<i64>, Vec<usize>)> {
    if names as i64 != batch {
        refuse!(
            ShapeMismatch,
            "`adapter_names` has {names} names, and the batch has {batch} rows: give one for each row, '{BASE}' for the \
             base"
        );
    }
    Ok((vec![batch], (0..names).collect()))
}

/// A name for each row, or for each document: in their order, without those of a number below 0, which pad.
fn of_documents(documents: &Tensor, names: usize) -> Result<(Vec<i64>, Vec<usize>)> {
    let (batch, length) = documents.size2()?;
    let numbers = numbers_of(documents, "the documents of adapters")?;
    let (mut choices, mut each, mut count) = (Vec::with_capacity(numbers.len()), true, 0_usize);
    for row in numbers.chunks(length.max(1) as usize) {
        let before = count;
        for (place, number) in row.iter().enumerate() {
            count += usize::from(*number >= 0 && (place == 0 || row[place - 1] != *number));
            choices.push(count.saturating_sub(1));
        }
        each &= count == before + 1;
    }
    if names == count && (count as i64 != batch || each) {
        return Ok((vec![batch, length], choices));
    }
    if names as i64 != batch || names == count {
        refuse!(
            ShapeMismatch,
            "`adapter_names` has {names} names, and the batch has {batch} rows with {count} documents: give one for each \
             row or for each document, and leave out rows that hold padding alone"
        );
    }
    of_rows(batch, names)
}
