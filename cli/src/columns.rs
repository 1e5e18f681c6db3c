//! Texts side by side.

/// Of the terminal, in characters.
pub fn width() -> usize {
    console::Term::stdout().size_checked().map_or(100, |(_, columns)| usize::from(columns))
}

/// The text with nothing in it that moves a terminal's cursor, but for ends of lines.
fn shown(text: &str) -> String {
    text.replace('\t', "    ").replace(|c: char| c.is_control() && c != '\n', "")
}

/// A column for each text, below its name.
pub fn side_by_side(texts: &[(String, String)], width: usize) -> String {
    let gap = 3;
    let column = (width.saturating_sub(gap * (texts.len() - 1)) / texts.len()).max(12);
    let wrap = |(name, text): &(String, String)| {
        let mut lines = vec![name.clone(), "─".repeat(column)];
        let text = shown(text.trim());
        lines.extend(textwrap::wrap(&text, column).into_iter().map(|line| line.into_owned()));
        lines
    };
    let columns: Vec<Vec<String>> = texts.iter().map(wrap).collect();
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    let mut whole = String::new();
    for row in 0..height {
        let cells = columns.iter().map(|lines| {
            let cell = lines.get(row).map_or("", String::as_str);
            let free = column.saturating_sub(textwrap::core::display_width(cell));
            format!("{cell}{}", " ".repeat(free))
        });
        let line = cells.collect::<Vec<_>>().join(&" ".repeat(gap));
        whole += line.trim_end();
        whole.push('\n');
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_moves_the_cursor_out_of_its_column() {
        let texts = [("a", "one\ttwo\r\n\u{1b}[2Jthree"), ("b", "four")];
        let texts = texts.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let shown = side_by_side(&texts, 35);
        let expected = [
            "a                  b",
            "────────────────   ────────────────",
            "one    two         four",
            "[2Jthree",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    }
}
