//! The products with a head's weight, chunk by chunk, in the kind that is fastest on the device.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::kernels::processor::multiplies_fast;
use crate::kernels::product::{
    linear, linear_transposed, prefers_convolution, widened, SMALL_WEIGHT,
};

/// The number of weight rows that are converted at a time.
const TILE: i64 = 8192;

/// A head outside any graph, with the buffers that chunks share.
pub(super) struct Head {
    weight: Tensor,
    bias: Option<Tensor>,
    products: Products,
}

enum Products {
    /// Plain products: the kind of the logits is the weight's.
    Same,
    /// Products in the weight's kind, whose results are converted; holds their buffer.
    Low(Tensor),
    /// Products of the weight's kind, whose results are never rounded to it: CUDA's.
    Widened,
    /// As `Same`, tile by tile: products by convolution, which reorder a weight and keep a tile in the cache.
    InTiles,
    /// The weight is converted tile by tile, since products in its kind are slower; holds the buffer of a tile.
    Tiled(Tensor),
}

impl Head {
    /// `kind` is the kind of the logits, `rows` the largest number of rows per call.
    pub(super) fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        kind: Kind,
        rows: i64,
    ) -> Result<Self> {
        let (vocab, size) = weight.size2()?;
        let (low, device) = (weight.f_kind()?, weight.device());
        let part = weight.f_narrow(0, 0, small_tile(size).min(vocab))?;
        let products = if low == kind && prefers_convolution(rows, &part)? {
            Products::InTiles
        } else if low == kind {
            Products::Same
        } else if device.is_cuda() && kind == Kind::Float {
            Products::Widened
        } else if multiplies_fast(low, device) {
            Products::Low(Tensor::f_empty([rows, vocab], (low, device))?)
        } else {
            Products::Tiled(Tensor::f_empty([TILE.min(vocab), size], (kind, device))?)
        };
        let bias = bias.map(|bias| bias.f_detach()?.f_to_kind(kind)).transpose()?;
        Ok(Head { weight: weight.f_detach()?, bias, products })
    }

    /// The kind that rows of hidden states must have.
    pub(super) fn input_kind(&self, kind: Kind) -> Result<Kind> {
        match self.products {
            Products::Low(_) | Products::Widened => Ok(self.weight.f_kind()?),
            _ => Ok(kind),
        }
    }

    /// Writes the logits of `rows` into `out`.
    pub(super) fn logits(&mut self, rows: &Tensor, out: &mut Tensor) -> Result<()> {
        match &self.products {
            Products::Same => {
                let _ = rows.f_mm_out(out, &self.weight.f_tr()?)?;
            }
            Products::Low(_) => {
                if let Some(low) = self.low_logits(rows)? {
                    out.f_copy_(&low)?;
                }
            }
            Products::Widened => widened(rows, &self.weight.f_tr()?, out)?,
            Products::InTiles => self.tiles(|start, tile| {
                let mut out = out.f_narrow(1, start, tile.size2()?.0)?;
                out.f_copy_(&linear(rows, tile, None)?)?;
                Ok(())
            })?,
            Products::Tiled(_) => self.tiles(|start, tile| {
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
        let _ = rows.f_mm_out(&buffer, &self.weight.f_tr()?)?;
        Ok(Some(buffer))
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
        if let Products::Low(_) = self.products {
            let low = logits.f_to_kind(self.weight.f_kind()?)?;
            if let Some(mut hidden) = hidden {
                hidden.f_copy_(&low.f_mm(&self.weight)?)?;
            }
            if let Some(weight) = weight {
                let _ = weight.f_add_(&low.f_tr()?.f_mm(rows)?)?;
            }
            return Ok(());
        }
        if let Products::Widened = self.products {
            let low = logits.f_to_kind(self.weight.f_kind()?)?;
            if let Some(mut hidden) = hidden {
                widened(&low, &self.weight, &mut hidden)?;
            }
            if let Some(weight) = weight {
                let mut product = weight.f_empty_like()?;
                widened(&low.f_tr()?, rows, &mut product)?;
                let _ = weight.f_add_(&product)?;
            }
            return Ok(());
        }
        if let Some(mut hidden) = hidden {
            if let Products::Same = self.products {
                let _ = logits.f_mm_out(&hidden, &self.weight)?;
            } else {
                let _ = hidden.f_zero_()?;
                self.tiles(|start, tile| {
                    let part = logits.f_narrow(1, start, tile.size2()?.0)?;
                    let _ = match self.products {
                        Products::InTiles => {
                            hidden.f_add_(&linear_transposed(&part, tile, None)?)?
                        }
                        _ => hidden.f_addmm_(&part, tile)?,
                    };
                    Ok(())
                })?;
            }
        }
        if let Some(weight) = weight {
            let _ = weight.f_addmm_(&logits.f_tr()?, rows)?;
        }
        Ok(())
    }

    /// Calls `f` with the first row and the rows of each tile, converted if necessary.
    fn tiles(&self, mut f: impl FnMut(i64, &Tensor) -> Result<()>) -> Result<()> {
        let (vocab, size) = self.weight.size2()?;
        let height = if let Products::Tiled(_) = self.products { TILE } else { small_tile(size) };
        let mut start = 0;
        while start < vocab {
            let rows = height.min(vocab - start);
            let part = self.weight.f_narrow(0, start, rows)?;
            match &self.products {
                Products::Tiled(buffer) => {
                    let mut tile = buffer.f_narrow(0, 0, rows)?;
                    tile.f_copy_(&part)?;
                    f(start, &tile)?;
                }
                _ => f(start, &part)?,
            }
            start += rows;
        }
        Ok(())
    }
}

/// The number of weight rows that fit into the cache.
fn small_tile(size: i64) -> i64 {
    (SMALL_WEIGHT / size.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

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
        let expected = [
            input.matmul(&wide.tr()) + bias.to_kind(Kind::Float),
            gradient.matmul(&wide),
            gradient.tr().matmul(&input) + 1.,
        ];
        for way in 0..5 {
            let mut head = Head::new(&weight, Some(&bias), Kind::Float, rows + 3).unwrap();
            match way {
                0 => (head.weight, head.products) = (wide.shallow_clone(), Products::Same),
                1 => {
                    let buffer = Tensor::empty([rows + 3, vocab], (Kind::BFloat16, Device::Cpu));
                    head.products = Products::Low(buffer);
                }
                2 => (head.weight, head.products) = (wide.shallow_clone(), Products::InTiles),
                3 => head.products = Products::Widened,
                _ => head.products = Products::Tiled(Tensor::empty([TILE, size], options)),
            }
            let x = x.to_kind(head.input_kind(Kind::Float).unwrap());
            let mut logits = Tensor::empty([rows, vocab], options);
            head.logits(&x, &mut logits).unwrap();
            let hidden = Tensor::empty([rows, size], options);
            let mut trained = Tensor::ones([vocab, size], options);
            let out = Some(hidden.shallow_clone());
            head.backward(&x, &gradient, out, Some(&mut trained)).unwrap();
            // bf16 rounds the results of a product, as CPUs have it in the fourth way too; the others do not.
            let tolerance = if [1, 3].contains(&way) { 1e-2 } else { 1e-5 };
            for (found, expected) in [logits, hidden, trained].iter().zip(&expected) {
                let off = (found - expected).abs().max().double_value(&[]);
                let scale = expected.abs().max().double_value(&[]);
                assert!(off <= tolerance * scale, "way {way}: {off} off, of {scale}");
            }
        }
    }
}
