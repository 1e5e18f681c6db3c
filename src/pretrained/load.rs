//! The tensors of a model's files as a `VarStore`.

use tch::nn::{Path, VarStore};
use tch::{no_grad, Device, Kind, Tensor};

use super::files::ModelFiles;
use super::kept::{copied, Keeping};
use super::origin::{self, Described, TiedCopy};
use super::tensor_file::is_parameter;
use crate::error::{refuse, Result};
use crate::storage::finite::check_cast;

impl ModelFiles {
    /// A `VarStore` with one variable per tensor that `wanted` accepts, on `device` and in `kind` (`None`: that of
    /// [`variables`](Self::variables); integers keep theirs). Without model code, this suffices to attach adapters, to
    /// compare them with the base and to save. It remembers its `model_type`, so that adapters tune the modules of
    /// PEFT's table by default.
    ///
    /// On the CPU and in the kind of the file, a variable is a copy-on-write memory map of the file: data is read on
    /// first use, processes share it, and a write to a variable stays in this process. So do not overwrite the files of
    /// a loaded model in place, as `VarStore::save` does; this crate replaces files by renaming, which is safe.
    /// Otherwise tensors are copied one at a time.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and `NonFinite` for a weight that is infinite in `kind`.
    ///
    /// ```no_run
    /// use ln_tuning::{pretrained::ModelFiles, LnTuningModel};
    /// let files = ModelFiles::open("llama")?;
    /// let vs = files.var_store(tch::Device::Cpu, None, |name| name.contains("norm"))?;
    /// let tuned = LnTuningModel::from_pretrained(&vs, "adapter")?;
    /// println!("{}", tuned.diff("default", None)?);
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn var_store(
        &self,
        device: Device,
        kind: impl Into<Option<Kind>>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<VarStore> {
        self.var_store_keeping(device, kind.into(), wanted, &Keeping::default())
    }

    /// [`var_store`](Self::var_store) that keeps matrices in other forms and places.
    pub(crate) fn var_store_keeping(
        &self,
        device: Device,
        kind: Option<Kind>,
        wanted: impl Fn(&str) -> bool,
        keeping: &Keeping,
    ) -> Result<VarStore> {
        self.check_form(keeping.frozen, device)?;
        let vs = VarStore::new(device);
        let wanted = self.tensors().iter().filter(|place| wanted(&place.name));
        let wanted: Vec<_> = wanted.collect();
        let total: u64 = wanted.iter().map(|place| place.stored.len).sum();
        let maps: Vec<Option<Tensor>> = self.shards().iter().map(|shard| shard.mapped()).collect();
        let (mut done, mut all_kept) = (0, Vec::new());
        for place in wanted {
            let name = &place.name;
            let shard = &self.shards()[place.shard];
            let kind = kind.or(place.own_kind);
            let in_place = device == Device::Cpu && kind.is_none_or(|kind| place.is_in(kind));
            let map = if in_place {
                maps[place.shard].as_ref().map(Tensor::shallow_clone)
            } else {
                // A map of its own, which is dropped with the tensor, so that the pages read do not accumulate.
                shard.mapped()
            };
            let read = || place.read(shard, map.as_ref());
            if let Some((kept, data)) = keeping.kept(self, place, read, (device, kind))? {
                let mut tensor = Tensor::f_empty([0], (data.f_kind()?, device))?;
                no_grad(|| tensor.f_set_data(&data))?;
                self.add(&vs, name, tensor, false)?;
                all_kept.push(kept);
                done += place.stored.len;
                self.report(done, total);
                continue;
            }
            let on_disk = read()?;
            let wanted_kind = match kind {
                Some(kind) if on_disk.is_floating_point() => kind,
                _ => on_disk.f_kind()?,
            };
            // Views of one map share a version counter: autograd would take a write to one for a write to all.
            let parameter = is_parameter(name, wanted_kind);
            let mut tensor = Tensor::f_empty([0], (wanted_kind, device))?;
            no_grad(|| -> Result<()> {
                let before = on_disk.f_to_device(device)?;
                let mut after = before.f_to_kind(wanted_kind)?;
                if in_place && keeping.is_copied(name) {
                    after = copied(&after)?;
                }
                if parameter && before.f_kind()? != wanted_kind {
                    check_cast(
                        &format!("'{name}' in '{}'", self.dir().display()),
                        &before,
                        &after,
                    )?;
                }
                tensor.f_set_data(&after)?;
                Ok(())
            })?;
            self.add(&vs, name, tensor, parameter)?;
            done += place.stored.len;
            self.report(done, total);
        }
        let mut copies = Vec::new();
        for (name, original) in self.copies() {
            if vs.variables_.lock().is_ok_and(|v| v.named_variables.contains_key(&original)) {
                let tensor = Tensor::f_empty([0], (Kind::Float, device))?;
                copies.push(TiedCopy { name, original, tensor });
            }
        }
        let model = Described { config: self.config().clone(), head: self.head() };
        origin::remember(&vs, model, copies, all_kept);
        Ok(vs)
    }

    fn add(&self, vs: &VarStore, name: &str, tensor: Tensor, parameter: bool) -> Result<()> {
        let (path, last) = place_of(&vs.root(), name);
        if path.get(last).is_some() {
            refuse!(
                DuplicateKey,
                "two tensors in '{}' are both '{name}' in the model",
                self.dir().display()
            );
        }
        let _ = path.add(last, tensor, parameter);
        Ok(())
    }

    fn report(&self, done: u64, total: u64) {
        if let Some(progress) = &self.progress {
            (progress.0)(done, total);
        }
    }
}

/// The path of a variable's module, and the variable's own name there.
pub(crate) fn place_of<'a, 'n>(root: &Path<'a>, name: &'n str) -> (Path<'a>, &'n str) {
    let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
    (path_of(root, module), last)
}

/// The path of a module, which is the root itself if the name is empty.
pub(crate) fn path_of<'a>(root: &Path<'a>, module: &str) -> Path<'a> {
    let segments = module.split('.').filter(|segment| !segment.is_empty());
    segments.fold(root.clone(), |path, segment| path / segment)
}
