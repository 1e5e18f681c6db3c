//! The nearest names to one that was not found, for error messages.

/// The edit distance of an entry to the end of a path, ignoring case, so that `layernorm` finds `ln.layer_norm`.
pub(crate) fn distance(needle: &str, path: &str) -> usize {
    let needle: String =
        needle.chars().filter(|c| c.is_alphanumeric() || "._".contains(*c)).collect();
    let depth = needle.matches('.').count() + 1;
    let segments: Vec<&str> = path.split('.').collect();
    let end = segments[segments.len().saturating_sub(depth)..].join(".");
    edit_distance(&needle.to_lowercase(), &end.to_lowercase())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

pub(crate) fn sample<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    let shown: Vec<String> = paths.take(5).map(|path| format!("'{path}'")).collect();
    if shown.is_empty() {
        "no modules".into()
    } else {
        shown.join(", ")
    }
}
