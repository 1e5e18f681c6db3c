//! Tensors of GGUF files: what the `gguf` package of Python computes from the same bytes.

use std::fs;

use ln_tuning::gguf::{BlockType, GgufFile, MetadataValue};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::common::run_python;

/// The elements of a tensor in a row.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

#[test]
fn weights_and_metadata_are_those_of_the_gguf_package_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    run_python("gguf_blocks.py", &[dir.path().to_str().unwrap(), "1"]);
    let file = GgufFile::open(dir.path().join("blocks.gguf")).unwrap();
    assert_eq!((file.version(), file.alignment()), (3, 32));
    let list = fs::read_to_string(dir.path().join("expected.json")).unwrap();
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let expected = fs::read(dir.path().join("expected.bin")).unwrap();
    assert_eq!(list.len(), file.tensors().len());
    let mut at = 0;
    for row in &list {
        let name = row["name"].as_str().unwrap();
        let tensor = file.find(name).unwrap();
        assert_eq!(tensor.block_type.to_string(), row["type"].as_str().unwrap());
        let weights = file.tensor(tensor).unwrap();
        assert_eq!(serde_json::json!(weights.size()), row["shape"], "{name}");
        let own = bytes(&weights);
        let theirs = &expected[at..at + own.len()];
        at += own.len();
        let differs = own.chunks(4).zip(theirs.chunks(4)).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{name}: the place of the first that differs");
        // Blocks give the same, and their rounded values in other kinds.
        let blocks = file.blocks(tensor).unwrap();
        assert_eq!((blocks.bytes(), blocks.shape()), (tensor.len, &tensor.shape[..]));
        let half = blocks.dequantise(Kind::BFloat16).unwrap();
        assert_eq!(bytes(&half), bytes(&weights.to_kind(Kind::BFloat16)), "{name}");
    }
    assert_eq!(at, expected.len());
    let read: Vec<&str> = list.iter().map(|row| row["type"].as_str().unwrap()).collect();
    for known in BlockType::ALL.iter().filter(|known| known.is_readable()) {
        assert!(read.contains(&known.to_string().as_str()), "{known} is not compared");
    }

    let metadata = file.metadata();
    let values = [
        ("u8", MetadataValue::U8(200)),
        ("i8", MetadataValue::I8(-100)),
        ("u16", MetadataValue::U16(60000)),
        ("i16", MetadataValue::I16(-30000)),
        ("u32", MetadataValue::U32(4_000_000_000)),
        ("i32", MetadataValue::I32(-2_000_000_000)),
        ("f32", MetadataValue::F32(0.1)),
        ("bool", MetadataValue::Bool(true)),
        ("string", MetadataValue::String("né 🦀".into())),
        ("u64", MetadataValue::U64(1 << 63)),
        ("i64", MetadataValue::I64(-(1 << 62))),
        ("f64", MetadataValue::F64(0.1)),
    ];
    for (key, value) in values {
        assert_eq!(metadata.get(key), Some(&value));
    }
    let strings = metadata.strings("strings").unwrap().unwrap();
    assert_eq!(strings, ["", "a", "né"]);
    assert_eq!(metadata.integers("integers").unwrap().unwrap(), [1, -2, 3]);
    assert_eq!(metadata.numbers("numbers").unwrap().unwrap(), [0.5, -1.5]);
    assert_eq!(metadata.flags("flags").unwrap().unwrap(), [true, false]);
    assert_eq!(metadata.integer("u8").unwrap(), Some(200));
    assert_eq!(metadata.number("i8").unwrap(), Some(-100.));
    assert_eq!(metadata.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.flag("bool").unwrap(), Some(true));
    assert_eq!(metadata.str("absent").unwrap(), None);
    for refused in [metadata.integer("u64").map(drop), metadata.str("strings").map(drop)] {
        assert!(refused.unwrap_err().to_string().contains("expected a"));
    }
}
