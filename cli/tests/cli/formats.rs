//! Rows of data in every format that is read, and the words about those that are not.

use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{json, Value};

use crate::common::run_python;
use crate::program::{text, texts, Training};
use crate::{classifier, training};

/// The report of a dry run.
fn shown(training: &Training, more: &[&str]) -> Value {
    let output = training.command(more).args(["--dry-run", "--json"]).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{more:?}: {out}\n{err}");
    serde_json::from_str(&out).unwrap()
}

/// The first document, with what is learned in brackets.
fn example(report: &Value) -> String {
    let part = |part: &Value| {
        let text = part["text"].as_str().unwrap();
        if part["learned"] == true {
            format!("[[{text}]]")
        } else {
            text.to_owned()
        }
    };
    report["example"]["parts"].as_array().unwrap().iter().map(part).collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// A table of the rows, all of whose values are strings without tabs.
fn table(rows: &[Value], delimiter: &str, end: &str) -> String {
    let quoted = |text: &str| {
        let special = text.contains(['"', ',', '\n']);
        if special {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
    let header = keys.iter().map(|key| key.to_string()).collect::<Vec<_>>().join(delimiter);
    let row = |row: &Value| {
        let cells = keys.iter().map(|key| quoted(row[key.as_str()].as_str().unwrap()));
        cells.collect::<Vec<_>>().join(delimiter) + end
    };
    header + end + &rows.iter().map(row).collect::<String>()
}

fn write_all(training: &Training, rows: &[Value]) -> Vec<&'static str> {
    let write = |name: &str, text: &str| training.write(name, text);
    write("rows.jsonl", &lines(rows));
    write("lines.json", &lines(rows));
    write("array.json", &json!(rows).to_string());
    write("ARRAY.JSON", &format!("\n{:#}\n", json!(rows)));
    write("array.jsonl", &json!(rows).to_string());
    write("objects.json", &rows.iter().map(|row| format!("{row:#}\n")).collect::<String>());
    write("marked.ndjson", &format!("\u{feff}{}", lines(rows).replace('\n', "\r\n")));
    write("rows.CSV", &table(rows, ",", "\n"));
    write("marked.csv", &format!("\u{feff}{}", table(rows, ",", "\r\n")));
    write("rows.tsv", &table(rows, "\t", "\n"));
    let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(lines(rows).as_bytes()).unwrap();
    std::fs::write(training.path("rows.jsonl.gz"), packed.finish().unwrap()).unwrap();
    let packed = zstd::encode_all(table(rows, ",", "\n").as_bytes(), 1).unwrap();
    std::fs::write(training.path("rows.csv.zst"), packed).unwrap();
    write("rows.list", &json!(rows).to_string());
    run_python("rows.py", &["write", text(training.dir.path()), text(&training.path("rows.list"))]);
    vec![
        "lines.json",
        "array.json",
        "ARRAY.JSON",
        "array.jsonl",
        "objects.json",
        "marked.ndjson",
        "rows.CSV",
        "marked.csv",
        "rows.tsv",
        "rows.jsonl.gz",
        "rows.csv.zst",
        "none.parquet",
        "snappy.parquet",
        "gzip.parquet",
        "zstd.parquet",
        "brotli.parquet",
        "lz4.parquet",
        "old.parquet",
        "pages.parquet",
        "groups.parquet",
    ]
}

#[test]
fn rows_are_the_same_in_every_format() {
    let training = training();
    let rows = [
        json!({"prompt": "to be,", "completion": " or \"not\"\nto be"}),
        json!({"prompt": "Zürich ", "completion": "is it gold?"}),
    ];
    let names = write_all(&training, &rows);
    let expected = shown(&training, &["data.train=rows.jsonl"]);
    assert_eq!(example(&expected), "<s>to be,[[ or \"not\"\nto be</s>]]");
    for name in names {
        let report = shown(&training, &[&format!("data.train={name}")]);
        assert_eq!(report["largest_batch"], expected["largest_batch"], "{name}");
        assert_eq!(example(&report), example(&expected), "{name}");
    }
}

#[test]
fn a_classifier_reads_the_same_formats() {
    let training = Training::new(&classifier::model("bert")).set(&["device=cpu"]);
    let rows = [
        json!({"text": "the fox, the \"dog\"", "label": "old"}),
        json!({"text": "a penny", "label": "wise"}),
    ];
    let names = write_all(&training, &rows);
    let expected = shown(&training, &["data.train=rows.jsonl"]);
    let few = ["ARRAY.JSON", "marked.csv", "rows.tsv", "rows.csv.zst", "snappy.parquet"];
    for name in names.into_iter().filter(|name| few.contains(name)) {
        let report = shown(&training, &[&format!("data.train={name}")]);
        assert_eq!(report["largest_batch"], expected["largest_batch"], "{name}");
        assert_eq!(example(&report), example(&expected), "{name}");
    }
}

#[test]
fn conversations_in_parquet_lose_what_arrow_adds() {
    let training = training();
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"a": {"x": 1}}}});
    let messages = json!([
        {"role": "user", "content": "is it gold?", "name": "me"},
        {"role": "assistant", "content": "it glitters", "weight": 1},
    ]);
    let rows = json!([
        {"messages": messages},
        {"text": "all that glitters"},
        {"messages": messages, "tools": [tool, {"type": "function", "function": {"name": "g"}}], "id": 3},
        {"conversations": [{"from": "human", "value": "so?"}, {"from": "gpt", "value": "no"}]},
    ]);
    training.write("rows.list", &rows.to_string());
    run_python("rows.py", &["write", text(training.dir.path()), text(&training.path("rows.list"))]);
    training.write("rows.jsonl", &lines(rows.as_array().unwrap()));
    let settings = ["batch_size=8", "data.packing=false"];
    let of =
        |name: &str| shown(&training, &[&[&*format!("data.train={name}")], &settings[..]].concat());
    let (expected, found) = (of("rows.jsonl"), of("snappy.parquet"));
    assert_eq!(found["largest_batch"], expected["largest_batch"]);
    let said = found["report"].to_string();
    for part in ["4 documents", "'id' (1 row)", "'tools (of the chat template)' (1 row)"] {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
}

#[test]
fn columns_of_every_type_of_arrow_are_read() {
    let training = training();
    run_python("rows.py", &["types", text(training.dir.path())]);
    let refused = |column: &str| {
        training.refusal(&["data.train=types.parquet", &format!("data.columns.text={column}")])
    };
    // Errors show the values.
    for (column, value) in [
        ("byte", "row 1: 'text' is -1,"),
        ("large", "row 1: 'text' is 9223372036854775809,"),
        ("half", "row 1: 'text' is 0.5,"),
        ("float", "row 1: 'text' is 0.5,"),
        ("double", "row 1: 'text' is 0.1,"),
        ("flag", "row 1: 'text' is true,"),
        ("binary", "row 2: 'text' is {\"bytes\":2},"),
        ("map", "row 1: 'text' is {\"k\":1},"),
        ("fixed", "row 1: 'text' is [1,2],"),
        ("nested", "row 1: 'text' is [[\"a\"],[],null],"),
        ("struct", "row 1: 'text' is {\"a\":1},"),
        ("struct", "row 2: 'text' is {\"b\":{\"c\":\"d\"}},"),
        ("nothing", "row 1: there is no 'nothing'"),
    ] {
        let error = refused(column);
        assert!(error.contains(value), "{column}: '{value}' is not in: {error}");
    }
    for (column, document) in [
        ("text", "<s>[[a</s>]]"),
        ("view", "<s>[[a</s>]]"),
        ("dictionary", "<s>[[x</s>]]"),
        ("binary", "<s>[[text</s>]]"),
        ("day", "<s>[[2020-01-02</s>]]"),
        ("decimal", "<s>[[1.25</s>]]"),
    ] {
        let column = format!("data.columns.text={column}");
        let report =
            shown(&training, &["data.train=types.parquet", &column, "data.bad_lines=skip"]);
        assert_eq!(example(&report), document, "{column}");
    }
}

#[test]
fn formats_that_are_not_read_are_named_with_the_way_out() {
    let training = training();
    let dir = training.dir.path();
    run_python("rows.py", &["arrow", text(dir)]);
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    write("book.xlsx", b"PK\x03\x04\x14\0\0\0");
    write("a.zip", b"PK\x03\x04\x14\0\0\0");
    write("tokens.bin", &[0, 1, 0, 2]);
    write("named.txt", b"{\"messages\": []}\n");
    write(
        "wide.jsonl",
        &"{\"text\": \"a\"}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
    );
    write("latin.jsonl", b"{\"text\": \"Z\xfcrich\"}\n");
    write("rows.json", b"{\"data\": [{\"text\": \"a\"}]}");
    write("columns.json", b"{\"text\": [\"a\", \"b\"], \"n\": [1, 2]}");
    write("index.json", b"{\"0\": {\"text\": \"a\"}, \"1\": {\"text\": \"b\"}}");
    write("half.json", b"[{\"text\": \"a\"}, {\"te");
    write("europe.csv", b"prompt;completion\na;b\n");
    write("no.parquet", b"text");
    std::fs::create_dir(dir.join("shards")).unwrap();
    write("shards/a.parquet", b"PAR1");
    std::fs::create_dir(dir.join("saved")).unwrap();
    write("saved/dataset_info.json", b"{}");
    let pipe = std::process::Command::new("mkfifo").arg(dir.join("pipe.jsonl")).status().unwrap();
    assert!(pipe.success());
    for (name, parts) in [
        ("file.arrow", ["an Arrow file", "to_parquet"]),
        ("stream.dat", ["an Arrow file", "to_parquet"]),
        ("packed.bz2", ["bzip2", "bunzip2"]),
        ("packed.xz", ["xz", "unxz"]),
        ("book.xlsx", ["a spreadsheet", "as CSV"]),
        ("a.zip", ["a ZIP archive", "unpack it"]),
        ("tokens.bin", ["binary file", "texts"]),
        ("named.txt", ["looks like lines of JSON", "data.format"]),
        ("wide.jsonl", ["UTF-16", "iconv"]),
        ("latin.jsonl", ["latin.jsonl:1", "iconv -f LATIN1"]),
        ("rows.json", ["'data' holds the rows", "jq .data"]),
        ("columns.json", ["columns rather than rows", "records"]),
        ("index.json", ["columns rather than rows", "records"]),
        ("absent.csv", ["cannot read the data", "No such file"]),
        ("half.json", ["the JSON array has no end", "cut off"]),
        ("europe.csv", ["'prompt;completion'", "semicolons"]),
        ("no.parquet", ["named as a Parquet file", "is none"]),
        ("shards", ["shards/a.parquet", "name one file"]),
        ("saved", ["save_to_disk", "to_parquet"]),
        ("pipe.jsonl", ["pipe.jsonl", "expected a regular file"]),
    ] {
        let error = training.refusal(&[&format!("data.train={name}"), "task=language"]);
        for part in parts {
            assert!(error.contains(part), "{name}: '{part}' is not in: {error}");
        }
        assert!(error.contains(name) && !Path::new("out").exists(), "{error}");
    }
}

#[test]
fn bad_rows_have_their_place_in_every_format() {
    let training = training();
    training.write("a.csv", "prompt,completion\r\n\r\n\"a\nb\",c\r\n\r\nd\r\n");
    training.write(
        "a.json",
        "[\n{\"text\": \"a\"},\n{\"text\": 7},\n{\"text\": NaN, \"prompt\": \"b\"}]",
    );
    // The quote takes the rest of the file along.
    training.write("open.csv", "prompt,completion\na,\"b\nc,d\ne,f\n");
    training.write("a.list", "[{\"text\": \"a\"}, {\"text\": null}]");
    run_python("rows.py", &["write", text(training.dir.path()), text(&training.path("a.list"))]);
    for (name, parts) in [
        (
            "a.csv",
            ["1 bad lines", "a.csv:6: this row has 1 fields, expected 2", "(prompt, completion)"],
        ),
        (
            "open.csv",
            ["1 bad lines", "open.csv:2: a double quote", "nothing closes: the rest of the file"],
        ),
        (
            "a.json",
            [
                "2 bad lines",
                "a.json:3 (row 2): 'text' is 7",
                "a.json:4 (row 3): there is a 'prompt'",
            ],
        ),
        ("snappy.parquet", ["1 bad lines", "snappy.parquet, row 2:", "the row is empty"]),
    ] {
        let error = training.refusal(&[&format!("data.train={name}")]);
        for part in parts {
            assert!(error.contains(part), "{name}: '{part}' is not in: {error}");
        }
    }
}

#[test]
fn keys_that_nobody_reads_are_reported_once_with_their_rows() {
    let rows = [
        json!({"text": "the fox", "label": "old", "id": 1, "source": "x", "none": null}),
        json!({"text": "a penny", "label": "wise", "id": 2}),
    ];
    let language = training().set(&["task=language"]);
    let classifier = Training::new(&classifier::model("bert")).set(&["device=cpu"]);
    for (training, label) in [(language, "'label' (2 rows), "), (classifier, "")] {
        training.write("rows.jsonl", &lines(&rows));
        let printed = training.run(&["data.train=rows.jsonl", "max_steps=1", "out=run"]);
        let expected = format!("keys that are not read: 'id' (2 rows), {label}'source' (1 row)\n");
        assert_eq!(printed.matches(&expected).count(), 1, "{printed}");
    }
    let messages = json!([
        {"role": "user", "content": "so?", "timestamp": 1, "annotations": []},
        {"role": "assistant", "content": "no", "reasoning": "is it gold?"},
    ]);
    let chat = training();
    chat.write("rows.jsonl", &json!({"messages": messages}).to_string());
    let report = shown(&chat, &["data.train=rows.jsonl"])["report"].to_string();
    let expected =
        "'reasoning (of the chat template)' (1 row), 'timestamp (of the chat template)' (1 row)";
    assert!(report.contains(&format!("keys that are not read: {expected}\"")), "{report}");
    let training = training().set(&["data.train=rows.jsonl", "data.columns.system=persona"]);
    training.write("rows.jsonl", &json!({"messages": [], "text": "a", "person": "b"}).to_string());
    let error = training.refusal(&[]);
    let twice = training.refusal(&["data.columns.prompt=a", "data.columns.completion=a"]);
    let words = "'data.columns.completion' and 'data.columns.prompt' are both a, expected a column";
    assert!(twice.contains(words), "{twice}");
    let part = "'data.columns.system' is persona, and no row has it: is it 'person'?";
    assert!(error.contains(part), "{error}");
}

#[test]
fn parts_are_given_to_a_template_that_renders_them_and_joined_for_others() {
    let training = training().set(&["data.train=rows.jsonl"]);
    let part = |text: &str| json!({"type": "text", "text": text});
    let messages = json!([
        {"role": "user", "content": [part("is it "), part("gold? ")]},
        {"role": "assistant", "content": [part("no")]},
    ]);
    training.write("rows.jsonl", &json!({"messages": messages}).to_string());
    let model = training.path("parts");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(crate::model("llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let each = "{% for m in messages %}<|{{ m.role }}|>";
    for (content, expected) in [
        ("{{ m.content }}", "is it gold? </s><|assistant|>[[no</s>]]"),
        ("{{ m['content'] | trim }}", "is it gold?</s><|assistant|>[[no</s>]]"),
        (
            "{% for part in m.content %}{{ part.text | trim }};{% endfor %}",
            "is it;gold?;</s><|assistant|>[[no;</s>]]",
        ),
        (
            "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'text' \
             %}{{ part.text }}.{% endif %}{% endfor %}{% endif %}",
            "is it .gold? .</s><|assistant|>[[no.</s>]]",
        ),
    ] {
        let end = "</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
        std::fs::write(model.join("chat_template.jinja"), format!("{each}{content}{end}")).unwrap();
        let report = shown(&training, &["model=parts"]);
        assert_eq!(example(&report), format!("<|user|>{expected}"), "{content}");
    }
}
