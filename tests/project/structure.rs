//! The plan of the house, read off the `use` lines: arrows run downward, no two files import each other, and no rooms
//! form a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Rooms, and those that they must never import.
const NEVER: &[(&str, &[&str])] = &[
    (
        "error",
        &[
            "storage",
            "names",
            "kernels",
            "device",
            "autograd",
            "pretrained",
            "adapter",
            "models",
            "optim",
        ],
    ),
    (
        "distributed",
        &["storage", "names", "kernels", "autograd", "pretrained", "adapter", "models", "optim"],
    ),
    ("mixed", &["storage", "names", "autograd", "pretrained", "adapter", "models", "optim"]),
    ("quantised", &["storage", "names", "autograd", "pretrained", "adapter", "models", "optim"]),
    ("storage", &["pretrained", "adapter", "models", "optim"]),
    ("names", &["pretrained", "adapter", "models", "optim"]),
    ("kernels", &["autograd", "pretrained", "adapter", "models", "optim"]),
    ("device", &["kernels", "autograd", "pretrained", "adapter", "models", "optim"]),
    ("autograd", &["pretrained", "adapter", "models", "optim"]),
    ("pretrained", &["adapter", "models", "optim"]),
    ("adapter", &["models", "optim"]),
    ("models", &["adapter", "optim"]),
];

/// The sources of one crate: the path below `src`, and the text.
type Sources = BTreeMap<String, String>;

#[test]
fn arrows_run_downward_and_neither_two_files_nor_rooms_import_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = 0;
    for src in ["src", "cli/src"].map(|src| root.join(src)) {
        let sources = read(&src);
        found += sources.len();
        let faults = faults(&sources);
        assert!(faults.is_empty(), "{}:\n{}", src.display(), faults.join("\n"));
    }
    assert!(found > 60, "only {found} files were read");
}

#[test]
fn a_planted_violation_is_found() {
    let sources = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let planted = |file: &str, line: &str| {
        let mut sources = sources.clone();
        sources.entry(file.into()).or_default().insert_str(0, line);
        faults(&sources)
    };
    for (file, line, fault) in [
        (
            "storage/stored.rs",
            "use crate::adapter::flat::FlatParams;\n",
            "storage/stored.rs imports adapter/flat.rs",
        ),
        (
            "pretrained/files.rs",
            "use crate::{\n    error::Error,\n    models::AnyModel,\n};\n",
            "pretrained/files.rs imports models/mod.rs",
        ),
        (
            "names/pattern.rs",
            "fn f() { crate::optim::Optimizer::new() }\n",
            "names/pattern.rs imports optim/mod.rs",
        ),
        ("names/natural.rs", "use super::pattern::Pattern;\n", ""),
        ("optim/schedule.rs", "use crate::LnTuningModel;\n", "optim/schedule.rs imports lib.rs"),
        (
            "optim/algorithm.rs",
            "use super::group::Group;\n",
            "optim/algorithm.rs and optim/group.rs import each other",
        ),
        (
            "optim/schedule.rs",
            "use super::Optimizer;\n",
            "optim/mod.rs and optim/schedule.rs import each other",
        ),
        ("kernels/product.rs", "// use crate::adapter::flat::FlatParams;\n", ""),
        (
            "kernels/way.rs",
            "use crate::storage::info;\n",
            "these rooms form a circle: kernels, quantised, storage",
        ),
    ] {
        let faults = planted(file, line);
        let expected: Vec<&str> = [fault].into_iter().filter(|fault| !fault.is_empty()).collect();
        assert_eq!(faults, expected, "{file}: {line}");
    }
}

fn faults(sources: &Sources) -> Vec<String> {
    let mut arrows = BTreeSet::new();
    for (file, text) in sources {
        for target in paths(text).iter().filter_map(|path| target(sources, file, path)) {
            if target != *file {
                arrows.insert((file.clone(), target));
            }
        }
    }
    let forbidden = |from: &str, to: &str| {
        let never = NEVER.iter().find(|(name, _)| *name == room(from));
        (to == "lib.rs" && from != "main.rs")
            || never.is_some_and(|(_, rooms)| rooms.contains(&room(to).as_str()))
    };
    let mut faults = Vec::new();
    for (from, to) in &arrows {
        if forbidden(from, to) {
            faults.push(format!("{from} imports {to}"));
        }
        if from < to && arrows.contains(&(to.clone(), from.clone())) {
            faults.push(format!("{from} and {to} import each other"));
        }
    }
    let allowed = arrows.iter().filter(|(from, to)| !forbidden(from, to));
    let circle = circle(allowed.map(|(from, to)| (room(from), room(to))).collect());
    if !circle.is_empty() {
        faults.push(format!("these rooms form a circle: {}", circle.join(", ")));
    }
    faults
}

/// The folder or the file below `src` that a file belongs to.
fn room(file: &str) -> String {
    file.split(['/', '.']).next().unwrap_or_default().to_owned()
}

/// The rooms that are left when those without an arrow in, or without one out, are taken away again and again.
fn circle(mut arrows: BTreeSet<(String, String)>) -> Vec<String> {
    arrows.retain(|(from, to)| from != to);
    loop {
        let ends = |room: &String| {
            arrows.iter().all(|(from, _)| from != room) || arrows.iter().all(|(_, to)| to != room)
        };
        let left: BTreeSet<_> =
            arrows.iter().filter(|(from, to)| !ends(from) && !ends(to)).cloned().collect();
        if left.len() == arrows.len() {
            let mut rooms: Vec<String> = left.into_iter().map(|(from, _)| from).collect();
            rooms.dedup();
            return rooms;
        }
        arrows = left;
    }
}

/// The paths that a file imports or names from the root, without its unit tests.
fn paths(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: Vec<&str> =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut found = BTreeSet::new();
    for statement in code.split(';') {
        let start = statement.rfind("\nuse ").or(statement.rfind(" use ")).map(|at| at + 5);
        let start = start.or(statement.strip_prefix("use ").map(|_| 4));
        if let Some(start) = start {
            expand(&statement[start..], &mut found);
        }
    }
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| !code[..*at].ends_with("in ")) {
        let named = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let end = code[at..].find(|c| !named(c)).map_or(code.len(), |end| at + end);
        // `crate::{…}` was expanded above.
        if end > at + "crate::".len() {
            found.insert(code[at..end].trim_end_matches(':').to_owned());
        }
    }
    found
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn expand(tree: &str, found: &mut BTreeSet<String>) {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        found.insert(path.trim().to_owned());
        return;
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in inner.char_indices().chain([(inner.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inner.get(start..at).unwrap_or_default().trim();
                if !part.is_empty() {
                    expand(&format!("{}{part}", prefix.trim()), found);
                }
                start = at + 1;
            }
            _ => (),
        }
    }
}

/// The file that a path leads to: that of the deepest module in it. None for another crate.
fn target(sources: &Sources, file: &str, path: &str) -> Option<String> {
    let mut module: Vec<&str> = file.strip_suffix(".rs")?.split('/').collect();
    if matches!(module.last(), Some(&("mod" | "lib" | "main"))) {
        module.pop();
    }
    let here = |module: &[&str]| {
        let base = module.join("/");
        let candidates = match base.is_empty() {
            true => ["lib.rs".to_owned(), "main.rs".to_owned()],
            false => [format!("{base}.rs"), format!("{base}/mod.rs")],
        };
        candidates.into_iter().find(|file| sources.contains_key(file))
    };
    let segments: Vec<&str> = path.split("::").collect();
    let mut rest = segments.as_slice();
    match rest.first()? {
        &"crate" => module.clear(),
        &"super" => (),
        &"self" => (),
        first => {
            let child: Vec<&str> = module.iter().copied().chain([*first]).collect();
            here(&child)?;
        }
    }
    while let Some((first, more)) = rest.split_first() {
        match *first {
            "crate" | "self" => (),
            "super" => drop(module.pop()),
            _ => break,
        }
        rest = more;
    }
    for segment in rest {
        module.push(segment);
        if here(&module).is_none() {
            module.pop();
            break;
        }
    }
    here(&module)
}

fn read(src: &Path) -> Sources {
    let mut sources = Sources::new();
    let mut dirs = vec![src.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(src).unwrap().to_str().unwrap().replace('\\', "/");
                sources.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    sources
}
