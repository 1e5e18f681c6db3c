//! The `config.json` of a GGUF file.

use serde_json::{json, Map, Value};

use super::architecture::{Architecture, Rotary};
use super::fields::Fields;
use super::rope;
use super::settings::Config;
use super::tensors::Tensors;
use crate::error::Result;

/// The largest bias of ALiBi, which all models of this crate have.
const LARGEST_BIAS: f64 = 8.;

/// Reads the configuration. Defaults are those of llama.cpp.
pub(super) fn config(
    architecture: &Architecture,
    fields: &Fields,
    tensors: &Tensors,
) -> Result<Config> {
    let keys = &architecture.keys;
    let (width, layers) = (fields.size("embedding_length")?, fields.size("block_count")?);
    if layers > tensors.count() as i64 {
        let expected = format!("at most the number of tensors, {}", tensors.count());
        return fields.refuse("block_count", layers, &expected);
    }
    let heads = fields.size("attention.head_count")?;
    let kv_heads = fields.size_or("attention.head_count_kv", heads)?;
    let head_dim = fields.size_or("attention.key_length", width / heads)?;
    let positions = fields.size("context_length")?;
    let mut config = Config {
        value: json!({}),
        width,
        layers,
        heads,
        kv_heads,
        head_dim,
        positions,
        has_long_rope: tensors.has("rope_factors_long.weight"),
    };
    config.become_a(architecture.model_type, architecture.class);
    let intermediate = fields.size("feed_forward_length")?;
    let vocab_size = tensors.vocabulary()?;
    match fields.integer("vocab_size")? {
        Some(said) if said != vocab_size => {
            let expected = format!("{vocab_size}, the rows of 'token_embd.weight'");
            return fields.refuse("vocab_size", said, &expected);
        }
        _ => (),
    }
    let mut settings: Map<String, Value> = [
        (keys.hidden, width),
        (keys.layers, layers),
        (keys.heads, heads),
        (keys.kv_heads, kv_heads),
        (keys.intermediate, intermediate),
        (keys.positions, positions),
        ("vocab_size", vocab_size),
    ]
    .into_iter()
    .filter(|(key, _)| !key.is_empty())
    .map(|(key, size)| (key.to_owned(), size.into()))
    .collect();
    if keys.intermediate.is_empty() && intermediate != 4 * width {
        return fields.refuse("feed_forward_length", intermediate, "4 times the width");
    }
    if keys.kv_heads.is_empty() && kv_heads != heads && architecture.name != "falcon" {
        return fields.refuse("attention.head_count_kv", kv_heads, "as many as there are heads");
    }
    if architecture.grouped || architecture.transposed {
        if head_dim != width / heads {
            return fields.refuse("attention.key_length", head_dim, "the width over the heads");
        }
    } else {
        settings.insert("head_dim".into(), head_dim.into());
    }
    let value_length = fields.integer("attention.value_length")?.unwrap_or(width / heads);
    if value_length != head_dim {
        return fields.refuse("attention.value_length", value_length, "that of keys");
    }
    settings.insert("tie_word_embeddings".into(), tensors.is_tied()?.into());
    fields.tokens(&mut settings)?;
    for (key, value) in settings {
        config.set(&key, value);
    }
    epsilon(architecture, fields, &mut config)?;
    rotary(architecture, fields, tensors, &mut config)?;
    what_must_be(fields)?;
    (architecture.special)(fields, tensors, &mut config)?;
    Ok(config)
}

fn epsilon(architecture: &Architecture, fields: &Fields, config: &mut Config) -> Result<()> {
    let (own, other) = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon");
    let rms = architecture.is_rms();
    let (own, other) = if rms { (own, other) } else { (other, own) };
    fields.no_use_for(&[other]);
    match (fields.number(own)?, architecture.keys.eps) {
        (Some(eps), "") if eps != 1e-5 => return fields.refuse(own, eps, "1e-5"),
        (_, "") => (),
        (Some(eps), key) if eps > 0. => config.set(key, eps),
        (Some(eps), _) => return fields.refuse(own, eps, "a number above 0"),
        (None, _) => return fields.refuse(own, "missing", "a number above 0"),
    }
    Ok(())
}

fn rotary(
    architecture: &Architecture,
    fields: &Fields,
    tensors: &Tensors,
    config: &mut Config,
) -> Result<()> {
    if architecture.rotary == Rotary::None {
        return Ok(());
    }
    let dims = fields.integer("rope.dimension_count")?.unwrap_or(config.head_dim);
    let mut parameters = rope::parameters(fields, tensors, config, dims)?;
    if architecture.rotary == Rotary::Part && (1..=config.head_dim).contains(&dims) {
        parameters.insert("partial_rotary_factor".into(), part(dims, config.head_dim).into());
    } else if dims != config.head_dim {
        let expected = format!("{}, that of a head", config.head_dim);
        return fields.refuse("rope.dimension_count", dims, &expected);
    }
    config.set("rope_parameters", parameters);
    Ok(())
}

/// The part of a head, so that its product with the head is not rounded below the number of dimensions.
fn part(dims: i64, head_dim: i64) -> f64 {
    let part = dims as f64 / head_dim as f64;
    if ((head_dim as f64 * part) as i64) < dims {
        part.next_up()
    } else {
        part
    }
}

/// Settings of which one value is implemented.
fn what_must_be(fields: &Fields) -> Result<()> {
    if fields.flag("attention.causal")? == Some(false) {
        return fields.refuse("attention.causal", "false", "true: a decoder");
    }
    match fields.text("tensor_data_layout")? {
        None | Some("Meta AI original pth" | "jploski" | "reference") => (),
        Some(other) => return fields.refuse("tensor_data_layout", other, "none"),
    }
    match fields.number("attention.max_alibi_bias")? {
        None | Some(0. | LARGEST_BIAS) => Ok(()),
        Some(other) => fields.refuse("attention.max_alibi_bias", other, "8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_a_head_gives_its_dimensions_back() {
        for head_dim in 1..400 {
            for dims in 1..=head_dim {
                assert_eq!((head_dim as f64 * part(dims, head_dim)) as i64, dims);
            }
        }
    }
}
