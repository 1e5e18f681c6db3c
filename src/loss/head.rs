//! The products with a head's weight, chunk by chunk, in the kind that the device is fast in.

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// How many rows of the weight are converted at a time.
const TILE: i64 = 8192;

/// A head, outside any graph, and what is kept from chunk to chunk.
pub(super) struct Head {
    weight: Tensor,
    bias: Option<Tensor>,
    products: Products,
}

enum Products {
    /// The kind of the logits is the weight's.
    Same,
    /// Products in the weight's kind, whose results are converted; the buffer for them.
    Low(Tensor),
    /// The weight is converted tile by tile, as products in its kind would be slower than that; the buffer for a tile.
    Tiled(Tensor),
}

impl Head {
    /// `kind` is that of the logits, `rows` the most that will be asked for at a time.
    pub(super) fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        kind: Kind,
        rows: i64,
    ) -> Result<Self> {
        let (vocab, size) = weight.size2()?;
        let (low, device) = (weight.f_kind()?, weight.device());
        let products = if low == kind {
            Products::Same
        } else if multiplies_fast(low, device) {
            Products::Low(Tensor::f_empty([rows, vocab], (low, device))?)
        } else {
            Products::Tiled(Tensor::f_empty([TILE.min(vocab), size], (kind, device))?)
        };
        let bias = bias.map(|bias| bias.f_detach()?.f_to_kind(kind)).transpose()?;
        Ok(Head { weight: weight.f_detach()?, bias, products })
    }

    /// The kind in which rows of hidden states are to be given.
    pub(super) fn input_kind(&self, kind: Kind) -> Result<Kind> {
        match self.products {
            Products::Low(_) => Ok(self.weight.f_kind()?),
            _ => Ok(kind),
        }
    }

    /// Writes the logits of `rows` into `out`.
    pub(super) fn logits(&mut self, rows: &Tensor, out: &mut Tensor) -> Result<()> {
        match &self.products {
            Products::Same => {
                let _ = rows.f_mm_out(out, &self.weight.f_tr()?)?;
            }
            Products::Low(buffer) => {
                let buffer = buffer.f_narrow(0, 0, out.size2()?.0)?;
                let _ = rows.f_mm_out(&buffer, &self.weight.f_tr()?)?;
                out.f_copy_(&buffer)?;
            }
            Products::Tiled(_) => self.tiles(|start, tile| {
                let out = out.f_narrow(1, start, tile.size2()?.0)?;
                let _ = rows.f_mm_out(&out, &tile.f_tr()?)?;
                Ok(())
            })?,
        }
        if let Some(bias) = &self.bias {
            let _ = out.f_add_(bias)?;
        }
        Ok(())
    }

    /// Given the gradient of the logits, writes that of the hidden states into `hidden`, and adds that of the weight
    /// to `weight`.
    pub(super) fn backward(
        &mut self,
        rows: &Tensor,
        logits: &Tensor,
        hidden: Option<Tensor>,
        weight: Option<&mut Tensor>,
    ) -> Result<()> {
        match &self.products {
            Products::Same => {
                if let Some(hidden) = hidden {
                    let _ = logits.f_mm_out(&hidden, &self.weight)?;
                }
                if let Some(weight) = weight {
                    let _ = weight.f_addmm_(&logits.f_tr()?, rows)?;
                }
            }
            Products::Low(buffer) => {
                let mut low = buffer.f_narrow(0, 0, logits.size2()?.0)?;
                low.f_copy_(logits)?;
                if let Some(mut hidden) = hidden {
                    hidden.f_copy_(&low.f_mm(&self.weight)?)?;
                }
                if let Some(weight) = weight {
                    let _ = weight.f_add_(&low.f_tr()?.f_mm(rows)?)?;
                }
            }
            Products::Tiled(_) => {
                if let Some(mut hidden) = hidden {
                    let _ = hidden.f_zero_()?;
                    self.tiles(|start, tile| {
                        let part = logits.f_narrow(1, start, tile.size2()?.0)?;
                        let _ = hidden.f_addmm_(&part, tile)?;
                        Ok(())
                    })?;
                }
                if let Some(weight) = weight {
                    let _ = weight.f_addmm_(&logits.f_tr()?, rows)?;
                }
            }
        }
        Ok(())
    }

    /// Calls `f` with the first row and the converted rows of each tile.
    fn tiles(&self, mut f: impl FnMut(i64, &Tensor) -> Result<()>) -> Result<()> {
        let Products::Tiled(buffer) = &self.products else { return Ok(()) };
        let vocab = self.weight.size2()?.0;
        let mut start = 0;
        while start < vocab {
            let rows = TILE.min(vocab - start);
            let mut tile = buffer.f_narrow(0, 0, rows)?;
            tile.f_copy_(&self.weight.f_narrow(0, start, rows)?)?;
            f(start, &tile)?;
            start += rows;
        }
        Ok(())
    }
}

/// Whether libtorch multiplies matrices of this kind at least about as fast as those in f32.
fn multiplies_fast(kind: Kind, device: Device) -> bool {
    if device != Device::Cpu {
        return true;
    }
    match kind {
        // Without instructions for it, bf16 is several times slower than f32.
        #[cfg(target_arch = "x86_64")]
        Kind::BFloat16 => std::arch::is_x86_feature_detected!("avx512bf16"),
        #[cfg(target_arch = "aarch64")]
        Kind::BFloat16 => std::arch::is_aarch64_feature_detected!("bf16"),
        Kind::Float | Kind::Double => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which products are used depends on the processor, so that each is tried here.
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
        for way in 0..3 {
            let mut head = Head::new(&weight, Some(&bias), Kind::Float, rows + 3).unwrap();
            match way {
                0 => (head.weight, head.products) = (wide.shallow_clone(), Products::Same),
                1 => {
                    let buffer = Tensor::empty([rows + 3, vocab], (Kind::BFloat16, Device::Cpu));
                    head.products = Products::Low(buffer);
                }
                _ => head.products = Products::Tiled(Tensor::empty([TILE, size], options)),
            }
            let x = x.to_kind(head.input_kind(Kind::Float).unwrap());
            let mut logits = Tensor::empty([rows, vocab], options);
            head.logits(&x, &mut logits).unwrap();
            let hidden = Tensor::empty([rows, size], options);
            let mut trained = Tensor::ones([vocab, size], options);
            let out = Some(hidden.shallow_clone());
            head.backward(&x, &gradient, out, Some(&mut trained)).unwrap();
            // bf16 rounds what comes out of a product; the others do not.
            let tolerance = if way == 1 { 1e-2 } else { 1e-5 };
            for (found, expected) in [logits, hidden, trained].iter().zip(&expected) {
                let off = (found - expected).abs().max().double_value(&[]);
                let scale = expected.abs().max().double_value(&[]);
                assert!(off <= tolerance * scale, "way {way}: {off} off, of {scale}");
            }
        }
    }
}
