//! From the files of a model into a `VarStore`.

use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};

use super::files::{is_parameter, ModelFiles};
use super::origin;
use crate::error::{refuse, Result};

impl ModelFiles {
    /// A `VarStore` with one variable per tensor that `wanted` accepts, on `device` and in `kind` (`None`: each as on
    /// disk; integers stay what they are). Without any model code that is enough to attach adapters, to compare them
    /// with the base, and to save. The `VarStore` is known to be of this `model_type`: adapters then tune what PEFT's
    /// table says of it.
    ///
    /// On the CPU and in the kind of the file a variable is the file's own memory, mapped copy-on-write: nothing is read
    /// until it is used, processes share what they read, and what is written to a variable is this process's alone.
    /// So do not save over the files that a model was loaded from in place, as `VarStore::save` does; this crate
    /// replaces files by renaming, which leaves the loaded ones whole. Elsewhere tensors pass through one at a time.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
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
        let kind = kind.into();
        let vs = VarStore::new(device);
        let wanted = self.tensors().iter().filter(|place| wanted(&place.name));
        let wanted: Vec<_> = wanted.collect();
        let total: u64 = wanted.iter().map(|place| place.stored.len).sum();
        let maps: Vec<Option<Tensor>> = self.shards().iter().map(|shard| shard.mapped()).collect();
        let mut done = 0;
        for place in wanted {
            let name = &place.name;
            let shard = &self.shards()[place.shard];
            let in_place =
                device == Device::Cpu && kind.is_none_or(|kind| place.kind() == Some(kind));
            let map = match in_place {
                true => maps[place.shard].as_ref().map(Tensor::shallow_clone),
                // One of its own, which goes with the tensor: what was read does not add up.
                false => shard.mapped(),
            };
            let on_disk = match &map {
                Some(map) => shard.view(map, &place.stored)?,
                None => shard.read(&place.stored)?,
            };
            let wanted_kind = match kind {
                Some(kind) if on_disk.is_floating_point() => kind,
                _ => on_disk.f_kind()?,
            };
            // Views of one file would share a version counter, and autograd would take a write to one for a write to all.
            let mut tensor = Tensor::f_empty([0], (wanted_kind, device))?;
            no_grad(|| -> Result<()> {
                tensor.set_data(&on_disk.f_to_device(device)?.f_to_kind(wanted_kind)?);
                Ok(())
            })?;
            let parameter = is_parameter(name, wanted_kind);
            let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
            let segments = module.split('.').filter(|segment| !segment.is_empty());
            let path = segments.fold(vs.root(), |path, segment| path / segment);
            if path.get(last).is_some() {
                refuse!(
                    DuplicateKey,
                    "two tensors in '{}' are both '{name}' in the model",
                    self.dir().display()
                );
            }
            let _ = path.add(last, tensor, parameter);
            done += place.stored.len;
            if let Some(progress) = &self.progress {
                (progress.0)(done, total);
            }
        }
        if let Some(model_type) = self.model_type() {
            origin::remember(&vs, model_type);
        }
        Ok(vs)
    }
}
