//! GGUF files as they are written and read: what was written comes back, and what is damaged is refused.

use std::fs;
use std::path::{Path, PathBuf};

use ln_tuning::gguf::{
    BlockType, GgufFile, GgufWriter, MetadataArray, MetadataValue as Value, ValueType,
};
use ln_tuning::ErrorKind;
use proptest::collection::vec;
use proptest::prelude::*;

/// The bytes of a text in a file.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// One entry of metadata: a key, the number of a type, a value.
fn entry(key: &str, value_type: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &value_type.to_le_bytes(), value].concat()
}

/// One tensor of a list: sizes in the order of the file.
fn listed(name: &str, sizes: &[u64], block_type: u32, start: u64) -> Vec<u8> {
    let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
    let dimensions = (sizes.len() as u32 / 8).to_le_bytes();
    [&text(name)[..], &dimensions, &sizes, &block_type.to_le_bytes(), &start.to_le_bytes()].concat()
}

/// A file of these entries and tensors, and some bytes of data.
fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let counts = [tensors.len() as u64, entries.len() as u64].map(u64::to_le_bytes).concat();
    let mut bytes = [b"GGUF", &3_u32.to_le_bytes()[..], &counts].concat();
    bytes.extend(entries.concat());
    bytes.extend(tensors.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 7);
    bytes
}

fn opened(path: &Path, bytes: &[u8]) -> ln_tuning::Result<GgufFile> {
    // A new file, since the former one may be mapped still.
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
    GgufFile::open(path)
}

fn in_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.gguf");
    (dir, path)
}

#[test]
fn a_damaged_header_is_refused_with_a_sentence_that_names_the_fault() {
    use ErrorKind::{CorruptFile, DuplicateKey, InvalidConfig, Unsupported};
    let (_dir, path) = in_dir();
    let f32s = |sizes: &[u64], start| vec![listed("t", sizes, 0, start)];
    let alignment = |value_type: u32, value: &[u8]| entry("general.alignment", value_type, value);
    let u64s = |number: u64| number.to_le_bytes().to_vec();
    let array = |element: u32, len: u64| [&element.to_le_bytes()[..], &u64s(len)].concat();
    let nested = |depth: usize| [array(9, 1).repeat(depth), array(0, 0)].concat();
    let mut counts = file(&[], &f32s(&[4], 0), 16);
    counts[8..16].copy_from_slice(&u64s(1 << 63));
    let mut keys = file(&[], &f32s(&[4], 0), 16);
    keys[16..24].copy_from_slice(&u64s(u64::MAX));
    let version = |version: [u8; 4]| [&b"GGUF"[..], &version, &[0; 16]].concat();
    let not_utf8 = {
        let mut bytes = file(&[], &f32s(&[4], 0), 16);
        bytes[32] = 0xff;
        bytes
    };
    let long = "n".repeat(65);
    let cases: &[(ErrorKind, &str, Vec<u8>)] = &[
        (CorruptFile, "takes 4 bytes", vec![]),
        (CorruptFile, "takes 4 bytes", b"GGU".to_vec()),
        (
            CorruptFile,
            "starts with \"once\", expected \"GGUF\": is it another kind",
            b"once upon".to_vec(),
        ),
        (
            CorruptFile,
            r#"starts with "PK\x03\x04", expected "GGUF": it looks like a zip"#,
            b"PK\x03\x04 and so on".to_vec(),
        ),
        (CorruptFile, "or a pickle", b"\x80\x02}q".to_vec()),
        (
            CorruptFile,
            "safetensors file: give the directory",
            b"\x08\0\0\0\0\0\0\0{}      ".to_vec(),
        ),
        (
            CorruptFile,
            r#""tjgg", expected "GGUF": it looks like a GGML file"#,
            b"tjgg\x03\0\0\0".to_vec(),
        ),
        (CorruptFile, "compressed: unpack", b"\x1f\x8b\x08\0".to_vec()),
        (CorruptFile, "`git lfs pull`", b"version https://git-lfs.github.com/spec/v1\n".to_vec()),
        (CorruptFile, "a web page", b"<!DOCTYPE html>".to_vec()),
        (CorruptFile, "download it again", vec![0; 99]),
        (Unsupported, "version 1 of GGUF, expected 2 or 3", version([1, 0, 0, 0])),
        (Unsupported, "version 4 of GGUF", version([4, 0, 0, 0])),
        (Unsupported, "big-endian", version([0, 0, 0, 3])),
        (CorruptFile, "the number of tensors is 9223372036854775808", counts),
        (CorruptFile, "the number of entries", keys),
        (CorruptFile, "is not UTF-8", not_utf8),
        (CorruptFile, "'a' has type 13", file(&[entry("a", 13, &[0; 8])], &[], 64)),
        (CorruptFile, "has 0 bytes", file(&[entry("", 0, &[0])], &[], 64)),
        (CorruptFile, "has 65536 bytes", file(&[entry(&"k".repeat(1 << 16), 0, &[0])], &[], 64)),
        (DuplicateKey, "'a' twice", file(&[entry("a", 0, &[0]), entry("a", 7, &[1])], &[], 0)),
        (
            CorruptFile,
            "takes 9223372036854775807 bytes",
            file(&[entry("a", 8, &u64s(i64::MAX as u64))], &[], 0),
        ),
        (CorruptFile, "the length of 'a' is", file(&[entry("a", 9, &array(0, u64::MAX))], &[], 64)),
        (CorruptFile, "the length of 'a' is", file(&[entry("a", 9, &array(10, 1 << 61))], &[], 64)),
        (CorruptFile, "the length of 'a' is", file(&[entry("a", 9, &array(8, 1 << 32))], &[], 64)),
        (CorruptFile, "'a' has type 99", file(&[entry("a", 9, &array(99, 1))], &[], 64)),
        (CorruptFile, "deeper than 8", file(&[entry("a", 9, &nested(1000))], &[], 64)),
        (CorruptFile, "deeper than 8", file(&[entry("a", 9, &nested(100_000))], &[], 64)),
        (CorruptFile, "expected a power of two", file(&[alignment(4, &[0; 4])], &[], 0)),
        (CorruptFile, "expected a power of two", file(&[alignment(4, &[48, 0, 0, 0])], &[], 0)),
        (CorruptFile, "as U32", file(&[alignment(10, &u64s(32))], &[], 0)),
        (CorruptFile, "the file ends", file(&[alignment(4, &[0, 0, 0, 0x80])], &f32s(&[4], 0), 16)),
        (Unsupported, "one of 3 parts", file(&[entry("split.count", 2, &[3, 0])], &[], 0)),
        (InvalidConfig, "'split.count'", file(&[entry("split.count", 8, &text("3"))], &[], 0)),
        (CorruptFile, "has 65 bytes", file(&[], &[listed(&long, &[4], 0, 0)], 16)),
        (CorruptFile, "has 0 bytes", file(&[], &[listed("", &[4], 0, 0)], 16)),
        (CorruptFile, "5 dimensions", file(&[], &f32s(&[1; 5], 0), 16)),
        (CorruptFile, "sizes of at least 1", file(&[], &f32s(&[0], 0), 16)),
        (CorruptFile, "sizes of at least 1", file(&[], &f32s(&[4, 0], 0), 16)),
        (CorruptFile, "sizes of at least 1", file(&[], &f32s(&[1 << 63], 0), 16)),
        (CorruptFile, "sizes of at least 1", file(&[], &f32s(&[1 << 32, 1 << 32], 0), 16)),
        (CorruptFile, "sizes of at least 1", file(&[], &f32s(&[1 << 62], 0), 16)),
        (CorruptFile, "the file ends", file(&[], &f32s(&[1 << 40], 0), 16)),
        (CorruptFile, "the file ends", file(&[], &f32s(&[4], 32), 32)),
        (CorruptFile, "the file ends", file(&[], &f32s(&[4], u64::MAX - 31), 32)),
        (CorruptFile, "multiple of the alignment 32", file(&[], &f32s(&[4], 16), 64)),
        (
            CorruptFile,
            "overlap",
            file(&[], &[listed("a", &[9], 0, 0), listed("b", &[4], 0, 32)], 64),
        ),
        (
            CorruptFile,
            "overlap",
            file(&[], &[listed("a", &[1], 0, 0), listed("b", &[1], 0, 0)], 64),
        ),
        (
            DuplicateKey,
            "tensor 'a' twice",
            file(&[], &[listed("a", &[1], 0, 0), listed("a", &[1], 0, 32)], 64),
        ),
        (Unsupported, "type 4, which", file(&[], &[listed("t", &[32], 4, 0)], 64)),
        (Unsupported, "type 4294967295", file(&[], &[listed("t", &[32], u32::MAX, 0)], 64)),
        (CorruptFile, "expected a multiple of 32", file(&[], &[listed("t", &[33, 2], 2, 0)], 64)),
        (CorruptFile, "expected a multiple of 256", file(&[], &[listed("t", &[32], 12, 0)], 64)),
    ];
    for (kind, sentence, bytes) in cases {
        let error = opened(&path, bytes).expect_err(sentence);
        assert!(error.to_string().contains(sentence), "{sentence}: {error}");
        assert_eq!(error.kind(), *kind, "{error}");
        assert!(error.to_string().contains("file.gguf"), "{error}");
    }
    // A vocabulary alone, and arrays in arrays as deep as they may be.
    let whole = opened(&path, &file(&[entry("a", 9, &nested(7))], &[], 0)).unwrap();
    assert_eq!((whole.tensors().len(), whole.metadata().len()), (0, 1));
    for cause in [path.with_file_name("absent.gguf"), path.parent().unwrap().to_owned()] {
        assert!(GgufFile::open(cause).is_err());
    }
}

#[test]
fn types_that_are_known_and_not_implemented_are_named_when_their_weights_are_asked_for() {
    let (_dir, path) = in_dir();
    let whole = opened(&path, &file(&[], &[listed("blk.0.w", &[256], 16, 0)], 66)).unwrap();
    let tensor = whole.find("blk.0.w").unwrap();
    assert_eq!((tensor.block_type, whole.bytes(tensor).unwrap().len()), (BlockType::IQ2_XXS, 66));
    for error in [whole.tensor(tensor).unwrap_err(), whole.blocks(tensor).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        for part in ["'blk.0.w'", "IQ2_XXS", "Q4_K", "llama-quantize"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
    // A tensor of another file is refused where it is out of this one.
    let other = opened(&path.with_file_name("other"), &file(&[], &[listed("b", &[9], 0, 0)], 36));
    let longer = other.unwrap().tensors()[0].clone();
    let short = opened(&path.with_file_name("short"), &file(&[], &[listed("b", &[1], 0, 0)], 4));
    assert_eq!(short.unwrap().bytes(&longer).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// A file with values of every type.
fn written(path: &Path) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    let strings: Vec<Value> = ["", "né", "🦀"].map(Value::from).to_vec();
    let array = MetadataArray::new(ValueType::String, &strings).unwrap();
    let nested = MetadataArray::new(ValueType::Array, &vec![array.clone().into(); 2]).unwrap();
    let entries = [
        ("general.architecture", Value::from("llama")),
        ("flag", Value::Bool(true)),
        ("number", Value::F64(-0.5)),
        ("array", array.into()),
        ("nested", nested.into()),
    ];
    for (key, value) in entries {
        writer.set(key, value).unwrap();
    }
    writer.add("a", BlockType::F32, &[3], vec![1; 12]).unwrap();
    writer.add("b", BlockType::Q4_0, &[2, 32], vec![2; 36]).unwrap();
    writer.write(path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused_and_one_with_any_byte_changed_does_no_harm() {
    let (_dir, path) = in_dir();
    let whole = written(&path);
    for end in 0..whole.len() {
        opened(&path, &whole[..end]).expect_err("cut off");
    }
    let mut accepted = 0;
    for at in 0..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            let Ok(file) = opened(&path, &bytes) else { continue };
            accepted += 1;
            for (key, _) in file.metadata().iter() {
                let _ = file.metadata().strings(key);
            }
            for tensor in file.tensors() {
                let _ = file.tensor(tensor);
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}

#[test]
fn a_copy_differs_in_what_is_replaced_and_nowhere_else() {
    let (dir, path) = in_dir();
    written(&path);
    let file = GgufFile::open(&path).unwrap();
    let copy = dir.path().join("new/copy.gguf");
    let mut writer = GgufWriter::copy_of(&file).unwrap();
    writer.write(&copy).unwrap();
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&path).unwrap());
    assert_eq!(writer.len(), fs::metadata(&path).unwrap().len());

    writer.replace("a", 4, &[9; 8]).unwrap();
    writer.set("flag", Value::Bool(false)).unwrap();
    writer.set("new", "né").unwrap();
    writer.set("general.alignment", Value::U32(64)).unwrap();
    writer.write(&copy).unwrap();
    let changed = GgufFile::open(&copy).unwrap();
    assert_eq!(changed.alignment(), 64);
    assert_eq!(changed.bytes(&changed.tensors()[0]).unwrap(), [[1; 4], [9; 4], [9; 4]].concat());
    assert_eq!(changed.bytes(&changed.tensors()[1]).unwrap(), [2; 36]);
    assert_eq!(changed.metadata().flag("flag").unwrap(), Some(false));
    assert_eq!(changed.metadata().str("new").unwrap(), Some("né"));
    for key in ["number", "array", "nested"] {
        assert_eq!(changed.metadata().get(key), file.metadata().get(key), "{key}");
    }

    for refused in [
        writer.replace("c", 0, &[]),
        writer.replace("a", 8, &[0; 5]),
        writer.replace("a", usize::MAX, &[0; 5]),
        writer.set("", Value::Bool(true)),
        writer.set("general.alignment", Value::U32(24)),
        writer.add("a", BlockType::F32, &[1], vec![0; 4]),
        writer.add("c", BlockType::F32, &[2], vec![0; 4]),
        writer.add("c", BlockType::F32, &[-1], vec![0; 4]),
        writer.add("c", BlockType::Q8_0, &[31], vec![0; 34]),
        MetadataArray::new(ValueType::U8, &[Value::I8(1)]).map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    // Nothing is left behind where writing fails, and nothing is replaced that is no file.
    let error = writer.write(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let error = writer.write(copy.join("below")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Any value that is not an array.
fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

fn array() -> impl Strategy<Value = Value> {
    (scalar(), 0..5_usize, 0..4_usize).prop_map(|(value, len, depth)| {
        let array = MetadataArray::new(value.value_type(), &vec![value; len]).unwrap();
        let deeper = |array: MetadataArray, _| {
            MetadataArray::new(ValueType::Array, &[array.clone().into(), array.into()]).unwrap()
        };
        (0..depth).fold(array, deeper).into()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_metadata_and_tensors_that_are_written_come_back(
        entries in vec((".{1,12}", prop_oneof![scalar(), array()]), 0..8),
        tensors in vec((".{1,16}", 0..BlockType::ALL.len(), vec(1..4_i64, 0..4)), 0..6),
        alignment in 0..8_u32,
    ) {
        let (_dir, path) = in_dir();
        let mut writer = GgufWriter::new();
        let mut expected = std::collections::BTreeMap::new();
        for (key, value) in &entries {
            writer.set(key, value.clone()).unwrap();
            expected.insert(key.as_str(), value);
        }
        let alignment = Value::U32(1 << alignment);
        writer.set("general.alignment", alignment.clone()).unwrap();
        expected.insert("general.alignment", &alignment);
        let mut added = Vec::new();
        for (name, block_type, shape) in &tensors {
            let block_type = BlockType::ALL[*block_type];
            let mut shape = shape.clone();
            if let Some(width) = shape.last_mut() {
                *width *= block_type.block_len() as i64;
            } else if block_type.block_len() > 1 {
                continue;
            }
            let weights: i64 = shape.iter().product();
            let len = block_type.row_bytes(weights as u64).unwrap() as usize;
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            if writer.add(name, block_type, &shape, bytes.clone()).is_ok() {
                added.push((name, block_type, shape, bytes));
            }
        }
        writer.write(&path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        prop_assert_eq!(writer.len(), fs::metadata(&path).unwrap().len());
        prop_assert_eq!(file.metadata().len(), expected.len());
        for (key, value) in expected {
            let read = file.metadata().get(key).unwrap();
            prop_assert_eq!(format!("{read:?}"), format!("{value:?}"));
            if let (Value::Array(read), Value::Array(value)) = (read, value) {
                let all = |array: &MetadataArray| -> Vec<String> {
                    array.iter().map(|value| format!("{:?}", value.unwrap())).collect()
                };
                prop_assert_eq!(all(read), all(value));
                prop_assert_eq!(read, value);
            }
        }
        prop_assert_eq!(file.tensors().len(), added.len());
        for (tensor, (name, block_type, shape, bytes)) in file.tensors().iter().zip(&added) {
            prop_assert_eq!((&tensor.name, &tensor.block_type, &tensor.shape), (*name, block_type, shape));
            prop_assert_eq!(file.bytes(tensor).unwrap(), &bytes[..]);
            prop_assert_eq!(tensor.start % file.alignment(), 0);
            if tensor.block_type.is_readable() {
                prop_assert_eq!(&file.tensor(tensor).unwrap().size(), shape);
            }
        }
    }
}
