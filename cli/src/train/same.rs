//! The weights of all ranks, which are the same in the end.

use anyhow::Result;
use ln_tuning::LnTuningModel;
use tch::{Device, Kind};

use super::ranks::Ranks;
use crate::records::digest::Digest;

/// Refuses an adapter whose weights are not those of the other ranks, bit for bit.
pub fn check(ranks: &Ranks, tuned: &LnTuningModel, adapter: &str) -> Result<()> {
    if ranks.are_one() {
        return Ok(());
    }
    let mut digest = Digest::new();
    for (_, weights) in tuned.state_dict(adapter)? {
        let values = weights.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        let values = Vec::<f32>::try_from(values.f_reshape([-1])?)?;
        values.iter().for_each(|value| digest.add(&value.to_le_bytes()));
    }
    ranks.check_same("trained weights", &digest.text())
}
