//! The nearest names to those that were not found, for error messages, within bounds: names come from files.

use crate::names::natural::natural_cmp;

/// The number of names that a message lists.
const LISTED: usize = 5;

/// The number of letters of a name that count, from its end.
const LETTERS: usize = 64;

/// The number of names that are compared letter by letter.
const COMPARED: usize = 100_000;

/// The paths that are nearest to the first of these names, in quotes: a few, the nearest first. Names are compared with
/// the ends of paths, ignoring case, so that `layernorm` finds `ln.layer_norm`.
pub(crate) fn nearest(names: &[&str], paths: &[&str]) -> String {
    let names: Vec<Vec<char>> = names.iter().take(LISTED).map(|name| letters(name)).collect();
    let depths: Vec<usize> =
        names.iter().map(|name| name.iter().filter(|c| **c == '.').count() + 1).collect();
    let mut best: Vec<(usize, &str)> = Vec::new();
    let mut compared = 0;
    for path in paths.iter().copied() {
        for (name, depth) in names.iter().zip(&depths) {
            // A name of which no letter fits is not near.
            let limit = if best.len() < LISTED { name.len() } else { best[LISTED - 1].0 };
            let mut dots = path.rmatch_indices('.').map(|(at, _)| at);
            let end = letters(dots.nth(depth - 1).map_or(path, |at| &path[at + 1..]));
            if end.len().abs_diff(name.len()) > limit || compared == COMPARED {
                continue;
            }
            compared += 1;
            let Some(distance) = edit_distance(name, &end, limit) else { continue };
            let place = |known: &(usize, &str)| {
                known.0.cmp(&distance).then_with(|| natural_cmp(known.1, path)).is_lt()
            };
            match best.iter().position(|(_, known)| *known == path) {
                Some(known) if best[known].0 <= distance => continue,
                Some(known) => drop(best.remove(known)),
                None => {}
            }
            best.insert(best.partition_point(place), (distance, path));
            best.truncate(LISTED);
        }
    }
    if best.is_empty() {
        return sample(paths.iter().copied());
    }
    sample(best.into_iter().map(|(_, path)| path))
}

/// The last letters of a name in lower case, without the marks of a pattern.
fn letters(name: &str) -> Vec<char> {
    let counted = name.chars().rev().filter(|c| c.is_alphanumeric() || "._".contains(*c));
    let mut letters: Vec<char> = counted.flat_map(char::to_lowercase).take(LETTERS).collect();
    letters.reverse();
    letters
}

/// The edit distance, or `None` if it is above `limit`.
fn edit_distance(a: &[char], b: &[char], limit: usize) -> Option<usize> {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
        if row.iter().all(|distance| *distance > limit) {
            return None;
        }
    }
    Some(row[b.len()]).filter(|distance| *distance <= limit)
}

/// The first of these paths, in quotes.
pub(crate) fn sample<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    let shown: Vec<String> =
        paths.take(LISTED).map(|path| format!("'{}'", shortened(path))).collect();
    if shown.is_empty() {
        "no modules".into()
    } else {
        shown.join(", ")
    }
}

/// A few of these names, in quotes, and the number of the others.
pub(crate) fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let shown = sample(names.iter().map(AsRef::as_ref));
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        others => format!("{shown} and {others} more"),
    }
}

/// A name of bearable length: a long one without its middle.
pub(crate) fn shortened(name: &str) -> String {
    const HALF: usize = 60;
    let count = name.chars().count();
    if count <= 2 * HALF {
        return name.to_owned();
    }
    let start: String = name.chars().take(HALF).collect();
    let end: String = name.chars().skip(count - HALF).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, paths: &[&str]) -> String {
        nearest(&[name], paths)
    }

    #[test]
    fn the_nearest_come_first_and_equals_in_natural_order() {
        let paths = ["up", "h.10.ln_1", "h.9.ln_1", "h.9.layer_norm", "x.ln_2"];
        assert_eq!(found("ln_1", &paths), "'h.9.ln_1', 'h.10.ln_1', 'x.ln_2', 'up'");
        assert!(found("LayerNorm", &paths).starts_with("'h.9.layer_norm'"));
        assert!(found(r"h\.10\.ln_l", &paths).starts_with("'h.10.ln_1'"));
    }

    #[test]
    fn without_anything_near_the_first_are_shown() {
        assert_eq!(found("q", &["up", "down"]), "'up', 'down'");
        assert_eq!(found("", &["up", "down"]), "'up', 'down'");
        assert_eq!(found("q", &[]), "no modules");
    }

    #[test]
    fn many_and_long_names_take_no_time() {
        let paths: Vec<String> = (0..50_000).map(|i| format!("blocks.{i}.norm{i}")).collect();
        let long =
            ["norm".repeat(2_500), "nrom".into(), format!("blocks.7.nrom{}", "7".repeat(99))];
        let long: Vec<&str> = long.iter().map(String::as_str).cycle().take(200).collect();
        let start = std::time::Instant::now();
        let message = nearest(&long, &paths.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
        assert!(message.len() < 200 && message.contains("norm"), "{message}");
    }

    #[test]
    fn a_bounded_distance_is_the_distance_up_to_the_bound() {
        let words = ["", "a", "norm", "nrom", "layer_norm", "ln"].map(letters);
        for a in &words {
            for b in &words {
                let whole = edit_distance(a, b, 99).unwrap();
                for limit in 0..12 {
                    let expected = Some(whole).filter(|distance| *distance <= limit);
                    assert_eq!(edit_distance(a, b, limit), expected, "{a:?} {b:?} {limit}");
                }
            }
        }
    }

    #[test]
    fn lists_and_names_in_messages_are_short() {
        assert_eq!(listed(&["a", "b"]), "'a', 'b'");
        let many: Vec<String> = (0..1_000).map(|i| "ü".repeat(i)).collect();
        assert!(listed(&many).ends_with("and 995 more") && listed(&many).len() < 100);
        assert_eq!(shortened("norm"), "norm");
        assert_eq!(shortened(&"é".repeat(10_000)).chars().count(), 121);
    }
}
