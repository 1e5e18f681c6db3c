//! A small net over rows of tokens, some of which have a target: norm1 → up → relu → norm2 → head.

use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Reduction, Tensor};

pub const ROWS: i64 = 8;
const TOKENS: i64 = 5;
const WIDE: i64 = 6;
const CLASSES: i64 = 4;

pub struct Net {
    pub vs: VarStore,
    norm1: nn::LayerNorm,
    up: nn::Linear,
    norm2: nn::LayerNorm,
    head: nn::Linear,
}

/// Numbers that look random and are the same everywhere.
pub fn wave(shape: &[i64], phase: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    ((Tensor::arange(count, (Kind::Float, Device::Cpu)) * 1.7 + phase).sin() * 1.3).view(shape)
}

impl Net {
    /// With a head that depends on `seed`.
    pub fn new(kind: Kind, seed: f64) -> Net {
        tch::set_num_threads(1);
        let mut vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let norm1 = nn::layer_norm(&root / "norm1", vec![WIDE], Default::default());
        let up = nn::linear(&root / "up", WIDE, 10, Default::default());
        let norm2 = nn::layer_norm(&root / "norm2", vec![10], Default::default());
        let head = nn::linear(&root / "head", 10, CLASSES, Default::default());
        tch::no_grad(|| {
            for (name, mut tensor) in vs.variables() {
                if name.starts_with("norm") {
                    continue;
                }
                let phase = name.len() as f64 + if name.starts_with("head") { seed } else { 0. };
                tensor.copy_(&(wave(&tensor.size(), phase) * 0.4));
            }
        });
        match kind {
            Kind::BFloat16 => vs.bfloat16(),
            Kind::Half => vs.half(),
            _ => (),
        }
        Net { vs, norm1, up, norm2, head }
    }

    pub fn attach(&self, head: bool) -> LnTuningModel {
        let config = LnTuningConfig::default().target_modules(["norm1", "norm2"]);
        let config = if head { config.modules_to_save(["head"]) } else { config };
        LnTuningModel::new(&self.vs, config).unwrap()
    }

    pub fn kind(&self) -> Kind {
        self.up.ws.kind()
    }

    pub fn logits(&self, x: &Tensor) -> Tensor {
        let hidden = self.up.forward(&self.norm1.forward(&x.to_kind(self.kind()))).relu();
        self.head.forward(&self.norm2.forward(&hidden)).to_kind(Kind::Float)
    }

    /// The summed loss of rows, and the number of targets.
    pub fn summed(&self, (x, y): &(Tensor, Tensor)) -> (Tensor, i64) {
        let logits = self.logits(x).reshape([-1, CLASSES]);
        let loss =
            logits.cross_entropy_loss::<Tensor>(&y.reshape([-1]), None, Reduction::Sum, -100, 0.);
        (loss, y.ge(0).sum(Kind::Int64).int64_value(&[]))
    }

    /// The mean loss of rows.
    pub fn mean(&self, rows: &(Tensor, Tensor)) -> Tensor {
        let (loss, targets) = self.summed(rows);
        loss / targets as f64
    }
}

/// The batch of a step. If it is `uneven`, rows have different numbers of targets, some none.
pub fn batch(step: i64, uneven: bool) -> (Tensor, Tensor) {
    let x = wave(&[ROWS, TOKENS, WIDE], 3. * step as f64);
    let mut y = (wave(&[ROWS, TOKENS], step as f64) * 100.).to_kind(Kind::Int64).remainder(CLASSES);
    if uneven {
        let place = Tensor::arange(TOKENS, (Kind::Int64, Device::Cpu));
        let row = Tensor::arange(ROWS, (Kind::Int64, Device::Cpu)).view([-1, 1]);
        let targets = (row * 7 + step * 3).remainder(TOKENS + 1);
        y = y.masked_fill(&place.ge_tensor(&targets), -100);
    }
    (x, y)
}

/// The rows of one rank.
pub fn rows((x, y): &(Tensor, Tensor), rank: usize, world_size: usize) -> (Tensor, Tensor) {
    let own = |tensor: &Tensor| tensor.slice(0, rank as i64, None, world_size as i64);
    (own(x), own(y))
}

pub fn optimizer(tuned: &LnTuningModel) -> Optimizer {
    tuned.optimizer(AdamW { wd: 0.1, ..Default::default() }, 1e-1).unwrap()
}
