//! The products with a head's weight, chunk by chunk, in the kind that is fastest on the device.

use tch::{Device, Kind, Tensor};

use super::head_weight::HeadWeight;
use crate::error::Result;
use crate::kernels::processor::multiplies_fast;
use crate::kernels::product::{
    blocks_are_written, enough_rows, linear, linear_transposed, way, widened, SMALL_WEIGHT,
};
use crate::kernels::way::Way;

/// The number of weight rows that are converted at a time.
const TILE: i64 = 8192;

/// A head outside any graph, with the buffers that chunks share.
pub(super) struct Head {
    weight: HeadWeight,
    bias: Option<Tensor>,
    products: Products,
    /// The buffer of a tile, in the kind of the products, where the weight is not multiplied with as it is.
    tile: Option<Tensor>,
}

enum Products {
    /// Plain products, with the whole weight: the kind of the logits is the weight's.
    Same,
    /// Products in the weight's kind, whose results are converted; holds their buffer.
    Low(Tensor),
    /// Products of the weight's kind, whose results are never rounded to it: CUDA's.
    Widened,
    /// As `Same`, tile by tile: products by convolution, which reorder a weight and keep a tile in the cache.
    InTiles,
    /// The weight is converted tile by tile to the kind of the logits, since products in its own are slower.
    Tiled,
}

impl Head {
    /// `kind` is the kind of the logits, `rows` the largest number of rows per call.
    pub(super) fn new(
        weight: &HeadWeight,
        bias: Option<&Tensor>,
        (kind, device): (Kind, Device),
        rows: i64,
    ) -> Result<Self> {
        let (vocab, size) = weight.size2()?;
        let low = weight.kind()?;
        let weight = weight.detached()?;
        let height = small_tile(size, device).min(vocab);
        let (plain, part) = match weight.plain() {
            Some(tensor) => (true, tensor.f_narrow(0, 0, height)?),
            None => (false, Tensor::f_empty([height, size], (low, device))?),
        };
        let way = if low == kind { way(rows, &part)? } else { Way::Libtorch };
        let products = if way == Way::Convolution || way == Way::Blocks && !plain {
            Products::InTiles
        } else if low == kind && plain {
            Products::Same
        } else if low != kind && device.is_cuda() && kind == Kind::Float {
            Products::Widened
        } else if low != kind && multiplies_fast(low, device) {
            Products::Low(Tensor::f_empty([rows, vocab], (low, device))?)
        } else {
            Products::Tiled
        };
        let tile = match products {
            Products::Tiled => {
                let height = if plain { TILE.min(vocab) } else { height };
                Some(Tensor::f_empty([height, size], (kind, device))?)
            }
            _ => (!plain).then_some(part),
        };
        let bias = bias.map(|bias| bias.f_detach()?.f_to_kind(kind)).transpose()?;
        Ok(Head { weight, bias, products, tile })
    }

    /// The kind that rows of hidden states must have.
    pub(super) fn input_kind(&self, kind: Kind) -> Result<Kind> {
        match self.products {
            Products::Low(_) | Products::Widened => self.weight.kind(),
            _ => Ok(kind),
        }
    }

    /// The weight, if it is multiplied with as it is.
    fn whole(&self) -> Option<&Tensor> {
        self.weight.plain().filter(|_| self.tile.is_none())
    }

    /// Writes the logits of `rows` into `out`.
    pub(super) fn logits(&mut self, rows: &Tensor, out: &mut Tensor) -> Result<()> {
        match (&self.products, self.whole()) {
            (Products::Same, Some(weight)) => {
                if !blocks_are_written(rows, weight, false, out)? {
                    let _ = rows.f_mm_out(out, &weight.f_tr()?)?;
                }
            }
            (Products::Low(_), _) => {
                if let Some(low) = self.low_logits(rows)? {
                    out.f_copy_(&low)?;
                }
            }
            (Products::Widened, Some(weight)) => widened(rows, &weight.f_tr()?, out)?,
            (Products::Widened, None) => self.tiles(|start, tile| {
                let mut out = out.f_narrow(1, start, tile.size2()?.0)?;
                let mut wide = Tensor::f_empty(out.size(), (out.f_kind()?, out.device()))?;
                widened(rows, &tile.f_tr()?, &mut wide)?;
                out.f_copy_(&wide)?;
                Ok(())
            })?,
            (Products::InTiles, _) => self.tiles(|start, tile| {
                let mut out = out.f_narrow(1, start, tile.size2()?.0)?;
                out.f_copy_(&linear(rows, tile, None)?)?;
                Ok(())
            })?,
            (Products::Same | Products::Tiled, _) => self.tiles(|start, tile| {
                let out = out.f_narrow(1, start, tile.size2()?.0)?;
                let _ = rows.f_mm_out(&out, &tile.f_tr()?)?;
                Ok(())
            })?,
        }
        self.add_bias(out)
    }

    /// The logits of `rows` in the weight's kind and without the bias, in a reused buffer; `None` if products are in
    /// the kind of the logits.
    pub(super) fn low_logits(&self, rows: &Tensor) -> Result<Option<Tensor>> {
        let Products::Low(buffer) = &self.products else { return Ok(None) };
        let buffer = buffer.f_narrow(0, 0, rows.size2()?.0)?;
        match self.whole() {
            Some(weight) => {
                let _ = rows.f_mm_out(&buffer, &weight.f_tr()?)?;
            }
            None => self.tiles(|start, tile| {
                let mut out = buffer.f_narrow(1, start, tile.size2()?.0)?;
                out.f_copy_(&rows.f_mm(&tile.f_tr()?)?)?;
                Ok(())
            })?,
        }
        Ok(Some(buffer))
    }

    /// In the kind of the logits.
    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(super) fn add_bias(&self, logits: &mut Tensor) -> Result<()> {
        if let Some(bias) = &self.bias {
            let _ = logits.f_add_(bias)?;
        }
        Ok(())
    }

    /// Takes the gradient `logits` of the logits, in their kind or the weight's; writes the gradient of the hidden
    /// states into `hidden`, and adds that of the weight to `weight`.
    pub(super) fn backward(
        &mut self,
        rows: &Tensor,
        logits: &Tensor,
        hidden: Option<Tensor>,
        weight: Option<&mut Tensor>,
    ) -> Result<()> {
        let is_low = matches!(self.products, Products::Low(_) | Products::Widened);
        let logits =
            if is_low { logits.f_to_kind(self.weight.kind()?)? } else { logits.shallow_clone() };
        if let Some(mut hidden) = hidden {
            let (count, size) = hidden.size2()?;
            let enough = enough_rows(&logits)?;
            if enough.size2()?.0 == count {
                self.add_up(&enough, &mut hidden)?;
            } else {
                let place = (hidden.f_kind()?, hidden.device());
                let mut more = Tensor::f_empty([enough.size2()?.0, size], place)?;
                self.add_up(&enough, &mut more)?;
                hidden.f_copy_(&more.f_narrow(0, 0, count)?)?;
            }
        }
        let Some(weight) = weight else { return Ok(()) };
        let _ = match self.products {
            Products::Low(_) => weight.f_add_(&logits.f_tr()?.f_mm(rows)?)?,
            Products::Widened => {
                let mut product = weight.f_empty_like()?;
                widened(&logits.f_tr()?, rows, &mut product)?;
                weight.f_add_(&product)?
            }
            _ => weight.f_addmm_(&logits.f_tr()?, rows)?,
        };
        Ok(())
    }

    /// Writes the gradient of the hidden states, from that of the logits.
    fn add_up(&self, logits: &Tensor, hidden: &mut Tensor) -> Result<()> {
        match (&self.products, self.whole()) {
            (Products::Same, Some(weight)) => {
                if !blocks_are_written(logits, weight, true, hidden)? {
                    let _ = logits.f_mm_out(hidden, weight)?;
                }
            }
            (Products::Low(_), Some(weight)) => hidden.f_copy_(&logits.f_mm(weight)?)?,
            (Products::Widened, Some(weight)) => widened(logits, weight, hidden)?,
            _ => {
                let _ = hidden.f_zero_()?;
                self.tiles(|start, tile| {
                    let part = logits.f_narrow(1, start, tile.size2()?.0)?;
                    self.add_product(hidden, &part, tile)
                })?;
            }
        }
        Ok(())
    }

    /// Adds the product of a part of the logits' gradient with its tile.
    fn add_product(&self, hidden: &mut Tensor, part: &Tensor, tile: &Tensor) -> Result<()> {
        let _ = match self.products {
            Products::InTiles => hidden.f_add_(&linear_transposed(part, tile, None)?)?,
            Products::Low(_) => hidden.f_add_(&part.f_mm(tile)?)?,
            Products::Widened => {
                let mut product = hidden.f_empty_like()?;
                widened(part, tile, &mut product)?;
                hidden.f_add_(&product)?
            }
            _ => hidden.f_addmm_(part, tile)?,
        };
        Ok(())
    }

    /// Calls `f` with the first row and the rows of each tile, converted if necessary.
    fn tiles(&self, mut f: impl FnMut(i64, &Tensor) -> Result<()>) -> Result<()> {
        let (vocab, size) = self.weight.size2()?;
        let height = match &self.tile {
            Some(buffer) => buffer.size2()?.0,
            None => small_tile(size, Device::Cpu),
        };
        let mut start = 0;
        while start < vocab {
            let rows = height.min(vocab - start);
            match (&self.tile, self.weight.plain()) {
                (None, Some(weight)) => f(start, &weight.f_narrow(0, start, rows)?)?,
                (buffer, _) => {
                    let buffer = buffer.as_ref().map(|buffer| buffer.f_narrow(0, 0, rows));
                    let mut tile = buffer.transpose()?.unwrap_or_default();
                    self.weight.rows_into(start, &mut tile)?;
                    f(start, &tile)?;
                }
            }
            start += rows;
        }
        Ok(())
    }
}

/// The number of weight rows that fit into the cache; on other devices, those that are worth a call.
fn small_tile(size: i64, device: Device) -> i64 {
    let weights = if device == Device::Cpu { SMALL_WEIGHT } else { 1 << 26 };
    (weights / size.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantised::{Encoding, Quantised};

    /// The processor decides on the kind of products, so the test sets each.
    #[test]
    fn all_ways_to_multiply_agree() {
        tch::set_num_threads(1);
        let (vocab, size, rows) = (TILE + 37, 8, 5);
        let options = (Kind::Float, Device::Cpu);
        let weight = Tensor::randn([vocab, size], options).to_kind(Kind::BFloat16);
        let bias = Tensor::randn([vocab], options).to_kind(Kind::BFloat16);
        let x = Tensor::randn([rows, size], options).to_kind(Kind::BFloat16);
        let upstream = Tensor::randn([rows, vocab], options).to_kind(Kind::BFloat16);
        let (wide, gradient) = (weight.to_kind(Kind::Float), upstream.to_kind(Kind::Float));
        let input = x.to_kind(Kind::Float);
        let encoded = Quantised::of(&weight, Encoding::Int8).unwrap();
        let decoded = encoded.dequantise(Kind::Float).unwrap();
        let plain = |tensor: &Tensor| HeadWeight::Plain(tensor.shallow_clone());
        let kept = |kind: Kind| HeadWeight::Quantised(encoded.shallow_clone(), kind);
        let (low, float) = (Kind::BFloat16, Kind::Float);
        let buffer = || Products::Low(Tensor::empty([rows + 3, vocab], (low, Device::Cpu)));
        let tile =
            |height: i64, kind: Kind| Some(Tensor::empty([height, size], (kind, Device::Cpu)));
        for (way, (weight, products, tile)) in [
            (plain(&wide), Products::Same, None),
            (plain(&weight), buffer(), None),
            (plain(&wide), Products::InTiles, None),
            (plain(&weight), Products::Widened, None),
            (plain(&weight), Products::Tiled, tile(TILE, float)),
            (kept(float), Products::Tiled, tile(1000, float)),
            (kept(low), buffer(), tile(1000, low)),
            (kept(float), Products::InTiles, tile(1000, float)),
            (kept(low), Products::Widened, tile(1000, low)),
        ]
        .into_iter()
        .enumerate()
        {
            let wide = if weight.plain().is_some() { &wide } else { &decoded };
            let expected = [
                input.matmul(&wide.tr()) + bias.to_kind(Kind::Float),
                gradient.matmul(wide),
                gradient.tr().matmul(&input) + 1.,
            ];
            let rows_at_most = rows + 3;
            let place = (Kind::Float, Device::Cpu);
            let mut head = Head::new(&weight, Some(&bias), place, rows_at_most).unwrap();
            (head.products, head.tile) = (products, tile);
            let x = x.to_kind(head.input_kind(Kind::Float).unwrap());
            let mut logits = Tensor::empty([rows, vocab], options);
            head.logits(&x, &mut logits).unwrap();
            let hidden = Tensor::empty([rows, size], options);
            let mut trained = Tensor::ones([vocab, size], options);
            let out = Some(hidden.shallow_clone());
            head.backward(&x, &gradient, out, Some(&mut trained)).unwrap();
            // bf16 rounds the results of a product, as CPUs have it where they are widened too; the others do not.
            let tolerance = if [1, 3, 6, 8].contains(&way) { 1e-2 } else { 1e-5 };
            for (found, expected) in [logits, hidden, trained].iter().zip(&expected) {
                let off = (found - expected).abs().max().double_value(&[]);
                let scale = expected.abs().max().double_value(&[]);
                assert!(off <= tolerance * scale, "way {way}: {off} off, of {scale}");
            }
        }
    }
    /// Targets of a few tokens: a long sum for each, whose terms have one sign but for the target's.
    #[test]
    fn gradients_of_few_tokens_are_as_exact_as_those_of_many() {
        tch::set_num_threads(1);
        tch::manual_seed(5);
        let (vocab, size, place) = (49_152, 64, (Kind::Float, Device::Cpu));
        let weight: Tensor = Tensor::randn([vocab, size], place) * 0.1 + 0.05;
        let plain = HeadWeight::Plain(weight.shallow_clone());
        for rows in [1, 2, 3, 4, 9] {
            let targets = Tensor::randint(vocab, [rows, 1], (Kind::Int64, Device::Cpu));
            let gradient = (Tensor::randn([rows, vocab], place) * 2.).softmax(-1, Kind::Float);
            let gradient = gradient.scatter_add(1, &targets, &-Tensor::ones([rows, 1], place));
            let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let expected = wide(&gradient).matmul(&wide(&weight));
            let mut head = Head::new(&plain, None, place, rows).unwrap();
            let x = Tensor::zeros([rows, size], place);
            let hidden = Tensor::empty([rows, size], place);
            let out = Some(hidden.shallow_clone());
            head.backward(&x, &gradient, out, None).unwrap();
            let off = (wide(&hidden) - &expected).norm().double_value(&[]);
            let off = off / expected.norm().double_value(&[]);
            assert!(off <= 1e-6, "{rows} rows: {off} off");
        }
    }
}
