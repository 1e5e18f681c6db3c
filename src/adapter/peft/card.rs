//! The model card, `README.md`: a YAML header between `---` lines and text.

/// The facts on the card of an adapter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Card {
    pub(crate) base_model: Option<String>,
    pub(crate) causal_lm: bool,
    /// PEFT's line about trainable parameters.
    pub(crate) summary: String,
}

const FENCE: &str = "---";
const FRAMEWORK: &str = "- ln-tuning ";

impl Card {
    /// The text of the card. It keeps the user's text and header keys in `before`; rendering it again changes nothing.
    pub(crate) fn render(&self, before: &str) -> String {
        let (header, body) = split(before);
        let mut header: Vec<String> = header.lines().map(str::to_owned).collect();
        let base = self.base_model.clone().unwrap_or_default();
        set_key(&mut header, "library_name", &["peft".into()], false);
        set_key(&mut header, "base_model", &[quoted(&base)], false);
        if self.causal_lm {
            set_key(&mut header, "pipeline_tag", &["text-generation".into()], false);
        }
        let mut tags = vec!["layernorm".to_owned(), "ln-tuning".to_owned()];
        if !base.is_empty() {
            tags.insert(0, format!("base_model:adapter:{base}"));
        }
        set_key(&mut header, "tags", &tags.iter().map(|tag| quoted(tag)).collect::<Vec<_>>(), true);
        let body = if body.trim().is_empty() { self.body() } else { with_framework(&body) };
        format!("{FENCE}\n{}\n{FENCE}\n{body}", header.join("\n"))
    }

    fn body(&self) -> String {
        let base = self.base_model.as_deref().filter(|base| !base.is_empty());
        let base = base.map_or("its base model".to_owned(), |base| format!("`{base}`"));
        with_framework(&format!(
            "\n# LayerNorm tuning adapter\n\n\
             Tuned LayerNorm weights for {base}, in the format of Hugging Face PEFT (`LN_TUNING`).\n\n\
             `{}`\n\n\
             ## Use\n\n\
             ```python\n\
             from peft import PeftModel\n\n\
             model = PeftModel.from_pretrained(base_model, \"path/to/this/directory\")\n\
             ```\n",
            self.summary
        ))
    }
}

/// The header without its fences, and the rest.
fn split(text: &str) -> (String, String) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    if let Some(rest) = text.strip_prefix("---\n") {
        if let Some(end) = rest.strip_prefix("---\n") {
            return (String::new(), end.to_owned());
        }
        if let Some((header, body)) = rest.split_once("\n---\n") {
            return (header.to_owned(), body.to_owned());
        }
        if let Some(header) = rest.strip_suffix("\n---") {
            return (header.to_owned(), String::new());
        }
    }
    (String::new(), text)
}

/// Sets a top-level key, leaving every other line, comments included, as it is.
fn set_key(header: &mut Vec<String>, key: &str, values: &[String], list: bool) {
    let lines: Vec<String> = if list {
        let items = values.iter().map(|value| format!("- {value}"));
        std::iter::once(format!("{key}:")).chain(items).collect()
    } else {
        vec![format!("{key}: {}", values.concat())]
    };
    let own = |line: &String| {
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    let Some(start) = header.iter().position(own) else {
        header.extend(lines);
        return;
    };
    // The value continues over indented lines and list items.
    let continues =
        |line: &&String| line.starts_with([' ', '\t']) || line.starts_with("- ") || *line == "-";
    let length = 1 + header[start + 1..].iter().take_while(continues).count();
    let is_users = |line: &String| {
        list && line.starts_with("- ")
            && !lines.contains(line)
            && !line.contains("base_model:adapter:")
    };
    let before = header[start + 1..start + length].iter().map(|line| line.trim_start().to_owned());
    let user_tags: Vec<String> = before.filter(is_users).collect();
    header.splice(start..start + length, lines.into_iter().chain(user_tags));
}

/// A YAML scalar that is always a string.
fn quoted(text: &str) -> String {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:".contains(c));
    let number = text.parse::<f64>().is_ok();
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "" | "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "~"
    );
    let starts = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if plain && starts && !number && !word && !text.ends_with(':') {
        return text.to_owned();
    }
    serde_json::Value::from(text).to_string()
}

fn with_framework(body: &str) -> String {
    let line = format!("{FRAMEWORK}{}", env!("CARGO_PKG_VERSION"));
    if let Some(start) = body.lines().position(|l| l.starts_with(FRAMEWORK)) {
        let mut lines: Vec<&str> = body.lines().collect();
        lines[start] = &line;
        let end = if body.ends_with('\n') { "\n" } else { "" };
        return lines.join("\n") + end;
    }
    let heading = "### Framework versions";
    let gap = if body.ends_with('\n') { "" } else { "\n" };
    if body.contains(heading) {
        format!("{body}{gap}{line}\n")
    } else {
        format!("{body}{gap}\n{heading}\n\n{line}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card {
            base_model: Some("org/base".into()),
            causal_lm: true,
            summary: "trainable params: 1".into(),
        }
    }

    #[test]
    fn rendering_twice_changes_nothing_more() {
        for before in
            ["", "# Mine\ntext", "---\nlicence: mit\ntags:\n- mine\n---\n# Mine\n", "---\n---\n"]
        {
            let once = card().render(before);
            assert_eq!(card().render(&once), once, "{before:?}");
        }
    }

    #[test]
    fn user_text_and_header_keys_are_kept() {
        let before = "---\n# a comment\nlicense: mit\nbase_model: old\ntags:\n  - mine\nlanguage:\n- en\n---\n# Mine\n\nWords.\n";
        let after = card().render(before);
        for kept in [
            "# a comment",
            "license: mit",
            "- mine",
            "language:\n- en",
            "# Mine\n\nWords.\n",
            "base_model: org/base",
        ] {
            assert!(after.contains(kept), "{kept:?} in\n{after}");
        }
        assert!(!after.contains("base_model: old"));
    }

    #[test]
    fn strings_that_yaml_would_read_as_something_else_are_quoted() {
        assert_eq!(quoted("org/base-1.0"), "org/base-1.0");
        assert_eq!(quoted("1.0"), "\"1.0\"");
        assert_eq!(quoted("no"), "\"no\"");
        assert_eq!(quoted("a: b"), "\"a: b\"");
        assert_eq!(quoted(""), "\"\"");
    }
}
