//! The tokenizers of GGUF files beside those of transformers and of llama.cpp.

use ln_tuning::gguf::GgufFile;
use serde::Deserialize;

use crate::common::{run_python, shared};
use crate::text::files::TextFiles;
use crate::text::tokenizer;

/// A file, and the ids of texts as another program makes them.
#[derive(Deserialize)]
struct Case {
    file: String,
    judge: String,
    texts: Vec<String>,
    /// With the tokens that go around a text, and without.
    around: Vec<Vec<u32>>,
    bare: Vec<Vec<u32>>,
}

impl Case {
    /// The texts whose ids are not the same.
    fn faults(&self) -> Vec<String> {
        let words = TextFiles::of_gguf(&GgufFile::open(&self.file).unwrap()).unwrap();
        let tokenizer = tokenizer::open(&words, None).unwrap();
        let mut faults = Vec::new();
        for (special, all) in [(true, &self.around), (false, &self.bare)] {
            for (text, expected) in self.texts.iter().zip(all) {
                let ours = tokenizer.encode(text.as_str(), special).unwrap();
                if ours.get_ids() != expected {
                    let theirs: Vec<_> =
                        expected.iter().map(|id| tokenizer.id_to_token(*id)).collect();
                    faults.push(format!("{text:?}:\n  {:?}\n  {theirs:?}", ours.get_tokens()));
                }
            }
        }
        faults
    }
}

#[test]
fn a_gguf_file_cuts_texts_as_transformers_and_llama_cpp_do() {
    let folder = shared("gguf-words");
    let cases = run_python("gguf_words.py", &["make", folder.to_str().unwrap()]);
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        assert!(
            case.texts.len() > 40 && case.around.iter().any(|ids| ids.len() > 5),
            "{}",
            case.file
        );
        let faults = case.faults();
        if let Some(fault) = faults.first() {
            wrong.push(format!("{} ({}): {} texts, {fault}", case.file, case.judge, faults.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
