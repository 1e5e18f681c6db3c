//! The matrix products of a step, forwards and backwards to their inputs, and nothing else: each in the way in which
//! this processor is fastest. All numbers are random: a GPU multiplies ones faster.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
#[cfg(all(fused, feature = "models"))]
use ln_tuning::alone;
use tch::{no_grad, Cuda, Device, Kind, Tensor};

use crate::work::Shape;

/// The call of libtorch that computes a product.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Matrices(Kind),
    /// As a convolution of one pixel in f32, which goes to another library.
    Pixels,
    /// This crate's, in f32.
    #[cfg(all(fused, feature = "models"))]
    Ours,
}

impl Way {
    fn random(self, rows: i64, columns: i64, device: Device) -> Tensor {
        let kind = if let Way::Matrices(kind) = self { kind } else { Kind::Float };
        Tensor::randn([rows, columns], (kind, device)) * 0.02
    }
}

/// A weight with an input and the gradient of an output.
struct Product {
    weight: Tensor,
    x: Tensor,
    y: Tensor,
    way: Way,
}

impl Product {
    /// The two products, of the first rows.
    fn compute(&self, tokens: i64) {
        let (x, y) = (self.x.narrow(0, 0, tokens), self.y.narrow(0, 0, tokens));
        #[cfg(all(fused, feature = "models"))]
        if self.way == Way::Ours {
            let _ = alone::linear(&x, &self.weight, None);
            let _ = alone::linear_transposed(&y, &self.weight, None);
            return;
        }
        if self.way != Way::Pixels {
            let _ = (x.linear(&self.weight, None::<Tensor>), y.matmul(&self.weight));
            return;
        }
        let (rows, columns) = self.weight.size2().unwrap_or_default();
        let pixels = |x: Tensor, size: i64| {
            x.view([1, tokens, 1, size]).permute([0_i64, 3, 1, 2].as_slice())
        };
        let weight = self.weight.view([rows, columns, 1, 1]);
        let _ = pixels(x, columns).conv2d(&weight, None::<Tensor>, 1, 0, 1, 1);
        let _ = pixels(y, rows).conv_transpose2d(&weight, None::<Tensor>, 1, 0, 0, 1, 1);
    }
}

/// The products of a step of so many tokens, at most `most`.
pub fn floor(dir: &Path, kind: Kind, most: i64, device: Device) -> Result<impl FnMut(i64)> {
    let sizes = shape(dir)?.matrices();
    let mut ways = vec![Way::Matrices(kind)];
    if device == Device::Cpu {
        ways.extend([Way::Matrices(Kind::Float), Way::Pixels]);
        #[cfg(all(fused, feature = "models"))]
        ways.push(Way::Ours);
    }
    // Inputs are shared by all products of a width: a step has no memory for each of them.
    let mut fastest: HashMap<(i64, i64), Product> = HashMap::new();
    for (rows, columns) in &sizes {
        if fastest.contains_key(&(*rows, *columns)) {
            continue;
        }
        let timed = ways.iter().map(|way| {
            let product = Product {
                weight: way.random(*rows, *columns, device),
                x: way.random(most, *columns, device),
                y: way.random(most, *rows, device),
                way: *way,
            };
            (no_grad(|| seconds(&product, most, device)), product)
        });
        let best = timed.min_by(|a, b| a.0.total_cmp(&b.0)).context("no way to multiply")?;
        fastest.insert((*rows, *columns), best.1);
    }
    let product = |(rows, columns): (i64, i64)| {
        let Product { x, y, way, .. } = &fastest[&(rows, columns)];
        let weight = way.random(rows, columns, device);
        Product { weight, x: x.shallow_clone(), y: y.shallow_clone(), way: *way }
    };
    let all: Vec<Product> = sizes.into_iter().map(product).collect();
    Ok(move |tokens| no_grad(|| all.iter().for_each(|product| product.compute(tokens))))
}

fn seconds(product: &Product, tokens: i64, device: Device) -> f64 {
    let trial = |_| {
        let start = Instant::now();
        product.compute(tokens);
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        start.elapsed().as_secs_f64()
    };
    (0..4).map(trial).fold(f64::INFINITY, f64::min)
}

fn shape(dir: &Path) -> Result<Shape> {
    let config = std::fs::read_to_string(dir.join("config.json"))?;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    let number = |key: &str| config[key].as_i64().with_context(|| format!("no {key}"));
    Ok(Shape {
        hidden: number("hidden_size")?,
        inner: number("intermediate_size")?,
        layers: number("num_hidden_layers")?,
        heads: number("num_attention_heads")?,
        kv_heads: number("num_key_value_heads")?,
        vocabulary: number("vocab_size")?,
        tied: config["tie_word_embeddings"] == true,
    })
}
