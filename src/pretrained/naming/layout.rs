//! The place of each tensor in a model with a certain head.

use serde_json::Value;

use super::head::Head;
use super::row::{below, is_part_of, Row, Tied};

/// A model type and a head, for the names of one checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// `None` for a model type that the table lacks: names do not change.
    row: Option<&'static Row>,
    head: Head,
    /// The prefix of the base model in memory, or empty.
    base: &'static str,
    /// True if the checkpoint lacks that prefix.
    bare: bool,
}

impl Layout {
    /// The layout of a checkpoint with these names, saved from a class of transformers. Without a class, the head
    /// follows from the names.
    pub(in crate::pretrained) fn of(
        model_type: Option<&str>,
        class: Option<&str>,
        names: &[&str],
    ) -> Self {
        let row = model_type.and_then(Row::of);
        let head = match (class, row) {
            (Some(class), Some(row)) if row.seq2seq && class.ends_with("ForCausalLM") => {
                Head::Other
            }
            (Some(class), _) => Head::of_class(class),
            (None, Some(row)) => shown_by(row, names),
            (None, None) => Head::None,
        };
        let known = |row: &Row| head == Head::None || row.top(head).is_some();
        let head = if row.is_none_or(known) { head } else { Head::Other };
        Self::new(row, head, names)
    }

    /// The layout with another head; `None` if this model type is not known to have it.
    pub(in crate::pretrained) fn with_head(&self, head: Head, names: &[&str]) -> Option<Self> {
        let row = self.row?;
        let known = head == Head::None || row.top(head).is_some();
        known.then(|| Self::new(self.row, head, names))
    }

    fn new(row: Option<&'static Row>, head: Head, names: &[&str]) -> Self {
        let top = row.and_then(|row| match head {
            Head::None => None,
            Head::Other => row.heads.first(),
            head => row.top(head),
        });
        let base = top.map_or("", |top| top.base);
        let bases = row.map_or(&[][..], |row| row.heads).iter().map(|top| top.base);
        let prefixed = |name: &&str| bases.clone().any(|base| below(name, base).is_some());
        Layout { row, head, base, bare: !names.iter().any(prefixed) }
    }

    pub(in crate::pretrained) fn head(&self) -> Head {
        self.head
    }

    /// The heads that [`with_head`](Self::with_head) accepts.
    pub(in crate::pretrained) fn heads(&self) -> Vec<Head> {
        let own = self.row.map_or(&[][..], |row| row.heads).iter().map(|top| top.head);
        self.row.map(|_| Head::None).into_iter().chain(own).collect()
    }

    /// The name of a tensor in memory; `None` if the model has no such variable. A name in memory does not change.
    pub(in crate::pretrained) fn place(&self, name: &str) -> Option<String> {
        let Some(row) = self.row else { return Some(name.to_owned()) };
        if row.is_computed(name) {
            return None;
        }
        if row.is_of_a_head(name) {
            let own = row.top(self.head).map_or(&[][..], |top| top.modules);
            let stays = self.head == Head::Other || own.iter().any(|own| is_part_of(name, own));
            return stays.then(|| name.to_owned());
        }
        if self.head == Head::Other {
            return Some(if self.bare { self.in_base(name) } else { name.to_owned() });
        }
        let inside = row.heads.iter().find_map(|top| below(name, top.base));
        let goes = |(module, heads): &(&str, &[Head])| {
            is_part_of(inside.unwrap_or(name), module) && !heads.contains(&self.head)
        };
        if row.kept_by.iter().any(goes) {
            return None;
        }
        Some(match inside {
            Some(inside) => self.in_base(inside),
            None if self.bare => self.in_base(name),
            None => name.to_owned(),
        })
    }

    /// True if this tensor belongs to a head, and not to the base model.
    pub(crate) fn is_of_a_head(&self, name: &str) -> bool {
        self.row.is_some_and(|row| row.is_of_a_head(name))
    }

    fn in_base(&self, name: &str) -> String {
        if self.base.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.base)
        }
    }

    /// The head whose tensors are all among these names.
    pub(crate) fn head_of(&self, names: &[&str]) -> Option<Head> {
        let has = |module: &&str| names.iter().any(|name| is_part_of(name, module));
        let found = self.row?.heads.iter().find(|top| top.modules.iter().all(has));
        found.map(|top| top.head)
    }

    /// True if this model type is known to have the head.
    pub(crate) fn has_head(&self, head: Head) -> bool {
        self.row.is_some_and(|row| row.top(head).is_some())
    }

    /// The number of outputs of this head, from the shapes of its tensors.
    pub(crate) fn rows_of_output(&self, shapes: &[(String, &[i64])]) -> Option<i64> {
        let last = self.row?.top(self.head)?.modules.last()?;
        let module = last.trim_end_matches(".bias").trim_end_matches(".weight");
        let own = |ending: &str| {
            let name = format!("{module}{ending}.weight");
            shapes.iter().find(|(tensor, _)| *tensor == name)?.1.first().copied()
        };
        own("").or_else(|| own(".out_proj"))
    }

    /// The modules without which there is no model with this head: those of the head, and of the base model those that
    /// only some heads have.
    pub(crate) fn needed(&self) -> Vec<String> {
        let Some(row) = self.row else { return Vec::new() };
        let own = row.top(self.head).map_or(&[][..], |top| top.modules);
        let kept = row.kept_by.iter().filter(|(_, heads)| heads.contains(&self.head));
        let kept = kept.map(|(module, _)| self.in_base(module));
        own.iter().map(|module| (*module).to_owned()).chain(kept).collect()
    }

    /// The key of a tensor of these files in the files of a model with this head.
    pub(crate) fn key_with_base(&self, key: &str) -> String {
        let Some(row) = self.row.filter(|row| !row.is_of_a_head(key)) else {
            return key.to_owned();
        };
        self.in_base(row.heads.iter().find_map(|top| below(key, top.base)).unwrap_or(key))
    }

    /// True if this is a matrix or a bias with a row for each token of the vocabulary, at least where such are tied.
    pub(crate) fn is_of_vocabulary(&self, name: &str) -> bool {
        let own = |tied: &str| name == tied || name == self.in_base(tied);
        let ties = self.row.map_or(&[][..], |row| row.ties);
        ties.iter().any(|(copy, original)| own(copy) || own(original))
    }

    /// The key in these files of a tensor with this name in memory.
    pub(crate) fn key(&self, name: &str) -> String {
        let of_a_head = self.row.is_none_or(|row| row.is_of_a_head(name));
        let inside = below(name, self.base).filter(|_| self.bare && !of_a_head);
        inside.unwrap_or(name).to_owned()
    }

    /// True if `tie_word_embeddings` decides whether copies are tied.
    pub(crate) fn is_tied_by_config(&self) -> bool {
        self.row.is_some_and(|row| row.tied != Tied::Always)
    }

    /// The tied pairs of this model, copy and original, by their names in memory.
    pub(in crate::pretrained) fn ties(&self, config: &Value) -> Vec<(String, String)> {
        let Some(row) = self.row.filter(|row| row_is_tied(row, config)) else { return vec![] };
        let full = |name: &str| {
            if row.is_of_a_head(name) {
                name.to_owned()
            } else {
                self.in_base(name)
            }
        };
        row.ties.iter().map(|(copy, original)| (full(copy), full(original))).collect()
    }

    /// True if a tied copy may replace its missing original. With several heads, or an unknown one, the original may be
    /// another tensor.
    pub(in crate::pretrained) fn copies_stand_alone(&self) -> bool {
        self.head != Head::Other
    }
}

/// True if the configuration says that the head of such a model is tied to its embeddings.
#[cfg(feature = "models")]
pub(crate) fn is_tied(config: &Value) -> bool {
    row_of(config).is_some_and(|row| row_is_tied(row, config))
}

fn row_of(config: &Value) -> Option<&'static Row> {
    Row::of(config.get("model_type")?.as_str()?)
}

fn row_is_tied(row: &Row, config: &Value) -> bool {
    let said = |config: &Value| config.get("tie_word_embeddings").and_then(Value::as_bool);
    let text = config.get("text_config");
    match row.tied {
        Tied::Always => true,
        Tied::Default(default) => said(config).or_else(|| said(text?)).unwrap_or(default),
        Tied::Own(default) => said(config).unwrap_or(default),
        Tied::ByEither => {
            let by_default = || row_of(text?).map(|row| row.tied == Tied::Default(true));
            said(config) == Some(true) || text.and_then(said).or_else(by_default) == Some(true)
        }
    }
}

/// The head whose tensors are among the names; if there are none, the base model's prefix decides.
fn shown_by(row: &Row, names: &[&str]) -> Head {
    let has = |module: &&str| names.iter().any(|name| is_part_of(name, module));
    let whole = row.heads.iter().find(|top| top.modules.iter().all(&has));
    let part = || row.heads.iter().find(|top| top.modules.iter().any(&has));
    if let Some(top) = whole.or_else(part) {
        return top.head;
    }
    let prefixed = |base: &str| names.iter().any(|name| below(name, base).is_some());
    match row.heads.first() {
        // A tied head is not in the file.
        Some(top) if prefixed(top.base) && top.head == Head::LanguageModel => top.head,
        Some(top) if prefixed(top.base) || row.other_heads.iter().any(has) => Head::Other,
        _ => Head::None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::table::ROWS;
    use super::*;

    fn placed(layout: &Layout, names: &[&str]) -> Vec<String> {
        names.iter().filter_map(|name| layout.place(name)).collect()
    }

    #[test]
    fn the_prefix_is_that_of_the_class_whatever_the_file_has() {
        for (model_type, class, file, memory) in [
            ("gpt2", "GPT2LMHeadModel", "h.0.ln_1.weight", "transformer.h.0.ln_1.weight"),
            ("gpt2", "GPT2LMHeadModel", "transformer.ln_f.bias", "transformer.ln_f.bias"),
            ("gpt2", "GPT2Model", "h.0.ln_1.weight", "h.0.ln_1.weight"),
            ("gpt2", "GPT2DoubleHeadsModel", "h.0.ln_1.weight", "transformer.h.0.ln_1.weight"),
            ("qwen3", "Qwen3ForCausalLM", "norm.weight", "model.norm.weight"),
            ("mistral", "MistralModel", "model.norm.weight", "norm.weight"),
            (
                "opt",
                "OPTForCausalLM",
                "decoder.embed_tokens.weight",
                "model.decoder.embed_tokens.weight",
            ),
            ("t5", "T5ForConditionalGeneration", "shared.weight", "shared.weight"),
            ("t5", "T5ForSequenceClassification", "shared.weight", "transformer.shared.weight"),
            ("vit", "ViTForImageClassification", "layernorm.weight", "vit.layernorm.weight"),
            // Not in the table.
            ("mamba", "MambaForCausalLM", "layers.0.norm.weight", "layers.0.norm.weight"),
        ] {
            let layout = Layout::of(Some(model_type), Some(class), &[file]);
            assert_eq!(layout.place(file).as_deref(), Some(memory), "{class}");
            let again = Layout::of(Some(model_type), Some(class), &[memory]);
            assert_eq!(again.place(memory).as_deref(), Some(memory), "{class}");
        }
    }

    #[test]
    fn what_a_class_lacks_is_left_out() {
        let names = [
            "bert.pooler.dense.bias",
            "bert.embeddings.position_ids",
            "bert.encoder.layer.0.output.LayerNorm.bias",
            "cls.predictions.bias",
            "cls.seq_relationship.bias",
            "classifier.bias",
        ];
        let left = |class: &str| placed(&Layout::of(Some("bert"), Some(class), &names), &names);
        assert_eq!(left("BertForPreTraining"), [0, 2, 3, 4, 5].map(|i| names[i]));
        assert_eq!(left("BertForMaskedLM"), [2, 3].map(|i| names[i]));
        assert_eq!(left("BertForSequenceClassification"), [0, 2, 5].map(|i| names[i]));
        assert_eq!(left("BertForTokenClassification"), [2, 5].map(|i| names[i]));
        let base = ["pooler.dense.bias", "encoder.layer.0.output.LayerNorm.bias"];
        assert_eq!(left("BertModel"), base);
        // One whose head is another tensor of the same module.
        let names = ["classifier.dense.weight", "classifier.out_proj.weight", "classifier.weight"];
        let left = |class: &str| placed(&Layout::of(Some("roberta"), Some(class), &names), &names);
        assert_eq!(left("RobertaForSequenceClassification"), names[..2]);
        assert_eq!(left("RobertaForTokenClassification"), names[2..]);
    }

    #[test]
    fn without_a_class_the_tensors_tell_the_head() {
        for (model_type, names, head) in [
            ("llama", &["model.norm.weight"][..], Head::LanguageModel),
            ("llama", &["norm.weight"], Head::None),
            ("llama", &["model.norm.weight", "score.weight"], Head::SequenceClassification),
            ("llama", &["score.bias", "score.weight"], Head::TokenClassification),
            ("bert", &["bert.encoder.layer.0.output.dense.bias"], Head::Other),
            ("bert", &["bert.pooler.dense.bias", "cls.predictions.bias"], Head::MaskedLm),
            (
                "roberta",
                &["roberta.x", "classifier.bias", "classifier.weight"],
                Head::TokenClassification,
            ),
            ("distilbert", &["distilbert.x", "classifier.bias"], Head::TokenClassification),
            (
                "distilbert",
                &["pre_classifier.bias", "classifier.bias"],
                Head::SequenceClassification,
            ),
            ("t5", &["shared.weight"], Head::None),
            ("bart", &["model.shared.weight", "final_logits_bias"], Head::LanguageModel),
            ("mamba", &["backbone.norm_f.weight"], Head::None),
        ] {
            assert_eq!(Layout::of(Some(model_type), None, names).head(), head, "{names:?}");
        }
    }

    #[test]
    fn names_of_memory_stay() {
        for row in &ROWS {
            let model_type = row.model_types.split(' ').next();
            let all = Layout::of(model_type, Some("AnyModel"), &[]);
            for head in all.heads() {
                let originals = row.ties.iter().map(|(_, original)| *original);
                let parts =
                    ["pooler.dense.bias", "decoder.norm.weight", "x.norm.weight", "surplus"];
                let heads = row.heads.iter().flat_map(|top| top.modules).copied();
                let file: Vec<&str> = originals.chain(parts).chain(heads).collect();
                let layout = all.with_head(head, &file).unwrap();
                let memory = placed(&layout, &file);
                let names: Vec<&str> = memory.iter().map(String::as_str).collect();
                let again = layout.with_head(head, &names).unwrap();
                assert_eq!(placed(&again, &names), memory, "{model_type:?} {head:?}");
                // There and back.
                let none = all.with_head(Head::None, &names).unwrap();
                let base = placed(&none, &names);
                let base: Vec<&str> = base.iter().map(String::as_str).collect();
                let back = none.with_head(head, &base).unwrap();
                let of_base: Vec<_> = memory.iter().filter(|n| !row.is_of_a_head(n)).collect();
                assert_eq!(placed(&back, &base).iter().collect::<Vec<_>>(), of_base);
            }
        }
    }

    #[test]
    fn the_configuration_says_what_is_tied() {
        let ties = |model_type: &str, config: Value| {
            let layout = Layout::of(Some(model_type), Some("AnyForCausalLM"), &["model.x"]);
            layout.ties(&config).first().cloned()
        };
        let pair = Some(("lm_head.weight".to_owned(), "model.embed_tokens.weight".to_owned()));
        let said = |tied: bool| json!({ "tie_word_embeddings": tied });
        assert_eq!(ties("llama", json!({})), None);
        assert_eq!(ties("llama", said(true)), pair);
        assert_eq!(ties("llama", json!({ "text_config": said(true) })), pair);
        assert_eq!(ties("gemma", json!({})), pair);
        assert_eq!(ties("gemma", said(false)), None);
        assert!(ties("t5", said(false)).is_some());
    }
}
