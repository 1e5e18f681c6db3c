//! The first bytes of a GGUF file, and those of what is taken for one.

use super::cursor::Cursor;
use crate::error::Result;

/// All GGUF files start so.
const MAGIC: &[u8; 4] = b"GGUF";

/// Passes the first bytes; other ones are shown, with the kind of file that they are of.
pub(super) fn check(cursor: &mut Cursor) -> Result<()> {
    let start = cursor.rest();
    if &cursor.array("the start of a GGUF file")? == MAGIC {
        return Ok(());
    }
    Err(cursor.refuse(format!(
        "it starts with \"{}\", expected \"GGUF\": {}",
        start[..4].escape_ascii(),
        kind(start)
    )))
}

/// A kind of file by its start, and the cure.
fn kind(start: &[u8]) -> &'static str {
    match start {
        // Numbers in the order of a little-endian machine: ggml, ggmf, ggjt, ggla.
        [b'l', b'm', b'g', b'g', ..]
        | [b'f', b'm', b'g', b'g', ..]
        | [b't', b'j', b'g', b'g', ..]
        | [b'a', b'l', b'g', b'g', ..] => {
            "it looks like a GGML file, which came before GGUF: take the model as GGUF, or convert it with llama.cpp's \
             convert_llama_ggml_to_gguf.py"
        }
        [b'P', b'K', 3 | 5, 4 | 6, ..] | [0x80, 2..=5, ..] => {
            "it looks like a zip or a pickle, as PyTorch saves it, which can run code when it is read: take the model as \
             GGUF or safetensors"
        }
        [.., _] if start.get(8) == Some(&b'{') && start[4..8] == [0; 4] => {
            "it looks like a safetensors file: give the directory that it is in, with its config.json"
        }
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', ..] => {
            "it looks compressed: unpack it"
        }
        _ if start.starts_with(b"version https://git-lfs") => {
            "it is a pointer of Git LFS to the file: `git lfs pull` fetches that"
        }
        [b'<', ..] => "it looks like a web page: download the file itself",
        [0, 0, 0, 0, ..] => "it was not written whole: download it again",
        _ => "is it another kind of file?",
    }
}
