//! The learned parts of a conversation: each reply with its end, however a template writes it.

use serde_json::{json, Value};

use crate::conversations::{conversations, message, template, theirs, with_template, Case};
use crate::program::texts;
use crate::text::chat::ChatTemplate;
use crate::text::files::TextFiles;
use crate::training;

fn learned_of(
    template: &str,
    given: &Value,
    learned: Option<&[bool]>,
) -> Result<Vec<String>, String> {
    let dir = with_template(template);
    let case = Case::new(dir.path(), given, false);
    let mut conversation = case.conversation();
    if let Some(learned) = learned {
        conversation.learned = learned.to_vec();
    }
    let chat = ChatTemplate::open(&TextFiles::Directory(dir.path().to_owned())).unwrap().unwrap();
    let rendered = chat.render_learned(&conversation).map_err(|error| format!("{error:#}"))?;
    assert_eq!(rendered.text, case.ours().unwrap());
    Ok(rendered.learned.into_iter().map(|range| rendered.text[range].to_owned()).collect())
}

fn learned(template: &str, given: &Value) -> Result<Vec<String>, String> {
    learned_of(template, given, None)
}

fn conversation(name: &str) -> Value {
    conversations().into_iter().find(|(other, _)| *other == name).unwrap().1
}

#[test]
fn a_reply_is_found_where_a_template_rewrites_what_was_said_before() {
    let call = "{\"city\": \"Zürich <1> & 'Genf'\", \"days\": [2, 1.0, 1e-07, 1e+20], \"ok\": true, \"none\": null, \
                \"more\": {}, \"l\": []}";
    let qwen3_call = format!(
        "<tool_call>\n{{\"name\": \"weather\", \"arguments\": {call}}}\n</tool_call><|im_end|>\n"
    );
    let qwen2_call = format!(
        "<tool_call>\n{{\"name\": \"weather\", \"arguments\": {call}}}\n</tool_call><|im_end|>\n"
    );
    let llama_call = format!("{{\"name\": \"weather\", \"parameters\": {call}}}<|eot_id|>");
    let deepseek_call =
        format!("<｜call｜>function\nweather\n```json\n{call}\n```<｜end▁of▁sentence｜>");
    let thought = "<think>\n2 + 2\nis 4.\n</think>\n\nIt is 4.<|im_end|>\n";
    for (family, name, expected) in [
        ("qwen3", "one turn", vec!["<think>\n\n</think>\n\nYes, é.\n<|im_end|>\n"]),
        (
            "qwen3",
            "two turns",
            vec!["Yes, é.\n<|im_end|>\n", "<think>\n\n</think>\n\nNo.\n\nNever.<|im_end|>\n"],
        ),
        ("qwen3", "thinking", vec!["It is 4.<|im_end|>\n", thought]),
        (
            "qwen3",
            "thinking inside",
            vec!["It is 4.<|im_end|>\n", "<think>\n2 + 2\n</think>\n\nIt is 4.<|im_end|>\n"],
        ),
        ("qwen3", "thinking off", vec!["Yes, é.\n<|im_end|>\n", "No.\n\nNever.<|im_end|>\n"]),
        (
            "qwen3",
            "a call and its result",
            vec![
                &qwen3_call,
                "Yes, é.\n<|im_end|>\n",
                "<think>\n\n</think>\n\nNo.\n\nNever.<|im_end|>\n",
            ],
        ),
        ("qwen2", "two turns", vec!["Yes, é.\n<|im_end|>\n", "No.\n\nNever.<|im_end|>\n"]),
        ("qwen2", "a call", vec![&qwen2_call]),
        (
            "deepseek",
            "two turns",
            vec!["Yes, é.\n<｜end▁of▁sentence｜>", "No.\n\nNever.<｜end▁of▁sentence｜>"],
        ),
        (
            "deepseek",
            "thinking inside",
            vec!["\n\nIt is 4.<｜end▁of▁sentence｜>", "\n\nIt is 4.<｜end▁of▁sentence｜>"],
        ),
        ("deepseek", "a call", vec![&deepseek_call]),
        ("phi3", "one turn", vec!["Yes, é.\n<|end|>\n</s>"]),
        ("phi3", "two turns", vec!["Yes, é.\n<|end|>\n", "No.\n\nNever.<|end|>\n</s>"]),
        ("llama", "two turns", vec!["Yes, é.<|eot_id|>", "No.\n\nNever.<|eot_id|>"]),
        (
            "llama",
            "a call and its result",
            vec![&llama_call, "Yes, é.<|eot_id|>", "No.\n\nNever.<|eot_id|>"],
        ),
        ("mistral", "a system", vec![" Yes, é.</s>", " No.\n\nNever.</s>"]),
        ("gemma", "two turns", vec!["Yes, é.<end_of_turn>\n", "No.\n\nNever.<end_of_turn>\n"]),
        ("olmo2", "two turns", vec!["Yes, é.\n</s>", "No.\n\nNever.</s>"]),
        ("falcon", "two turns", vec![" Yes, é.", " No.\n\nNever.</s>"]),
        (
            "granite",
            "two turns",
            vec!["Yes, é.\n<|end_of_text|>\n", "No.\n\nNever.<|end_of_text|>\n"],
        ),
        ("stablelm", "two turns", vec!["Yes, é.\n</s>\n", "No.\n\nNever.</s>\n"]),
    ] {
        let found = learned(&template(family), &conversation(name));
        let found = found.as_ref().map(|all| all.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(found, Ok(expected), "{family}, {name}");
    }
}

/// Every message has words of its own, and keeps to them.
#[test]
fn a_reply_has_all_of_its_own_words_and_none_of_others() {
    let words = |place: usize| format!("<b>w{place}a</b> & w{place}b\n\nw{place}c");
    for family in [
        "deepseek", "falcon", "gemma", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2",
        "qwen3",
    ] {
        for turns in 1..5 {
            let of = |place: usize| message(["user", "assistant"][place % 2], &words(place));
            let messages: Vec<Value> = (0..2 * turns).map(of).collect();
            let found = learned(&template(family), &json!({"messages": messages}));
            let found = found.unwrap_or_else(|error| panic!("{family}, {turns} turns: {error}"));
            assert_eq!(found.len(), turns, "{family}: {found:?}");
            for (turn, reply) in found.iter().enumerate() {
                for place in 0..2 * turns {
                    let own = place == 2 * turn + 1;
                    for word in ["<b>w_a</b>", "w_b", "w_c"]
                        .map(|word| word.replace('_', &place.to_string()))
                    {
                        assert_eq!(
                            reply.contains(&word),
                            own,
                            "{family}, {turns} turns: {word} in {reply:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn marked_parts_are_those_that_transformers_marks_and_those_that_are_found_without_marks() {
    let plain = "{# not {% generation %} #}{% for m in messages %}\n<|{{ m.role }}|>\n{% if m.role == 'assistant' %}\n\
                 {{ m.content + '<|end|>' }}\n{% else %}\n{{ m.content }}<|end|>\n{% endif %}\n{% endfor %}\n\
                 {% if add_generation_prompt %}\n<|assistant|>\n{% endif %}\n";
    let marked = plain.replace(
        "{{ m.content + '<|end|>' }}\n",
        "{% generation %}\n{{ m.content + '<|end|>' }}\n{% endgeneration %}\n",
    );
    let inner = "{% set ns = namespace(n=0) %}{% for m in messages %}{{ m.role }}:{%- if m.role == 'assistant' -%} \
                 {%- generation -%}  {% set said = m.content | trim %}{% for w in said.split() %}{{ loop.index }}{{ w }}{% \
                 set ns.n = ns.n + 1 %}{% endfor %}{{ loop.index }}{{ ns.n }} {%- endgeneration %} .\n{% else %}{{ \
                 m.content }}{{ said }}\n{% endif %}{% endfor %}";
    let twice = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
                 |{% generation %}</s>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let given = ["one turn", "two turns", "a system", "thinking"].map(conversation);
    let mut texts = 0;
    for template in [&marked, inner, twice, &template("smollm3")] {
        let dir = with_template(template);
        let cases: Vec<Case> =
            given.iter().map(|given| Case::new(dir.path(), given, false)).collect();
        for (case, theirs) in cases.iter().zip(theirs(&cases)) {
            let ours = learned(template, &case.conversation).unwrap();
            assert_eq!(json!(ours), theirs["marked"], "{template}");
            texts += ours.len();
        }
    }
    assert!(texts > 20, "{texts}");
    for given in &given {
        let trimmed = |all: Result<Vec<String>, String>| {
            all.unwrap().iter().map(|text| text.trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(trimmed(learned(&marked, given)), trimmed(learned(plain, given)));
    }
}

#[test]
fn a_reply_that_is_left_out_is_not_learned_and_what_is_not_clear_is_refused() {
    let two = conversation("two turns");
    let marked = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
                  {% else %}{{ m.content }}{% endif %}{% endfor %}";
    for template in [&*template("qwen2"), marked] {
        let last = learned_of(template, &two, Some(&[false, false, false, true])).unwrap();
        assert_eq!(last, learned(template, &two).unwrap()[1..]);
    }
    let twice = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}|\
                 {% generation %}</s>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let list = "{% for m in messages %}{{ m.content }};{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% \
                endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let hidden =
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{{ loop.revindex }}{% endfor %}";
    let never = "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}{% generation %}{% endgeneration %}{% endif %}";
    for (template, learned, part) in [
        (
            twice,
            Some([false, false, false, true]),
            "marks 4 parts with {% generation %} of 2 replies",
        ),
        (
            list,
            None,
            "message 2, and what of it is learned cannot be told: mark it with {% generation %}",
        ),
        (hidden, None, "nothing of it is in the text"),
        (never, None, "marks nothing of it with {% generation %}"),
    ] {
        let error = learned_of(template, &two, learned.as_ref().map(|all| &all[..])).unwrap_err();
        assert!(error.contains(part), "{template}: {error}");
    }
}

#[test]
fn the_head_of_a_first_reply_is_not_learned() {
    let given = conversation("replies alone");
    for (family, expected) in [
        ("qwen2", ["Yes, é.\n<|im_end|>\n", "No.\n\nNever.<|im_end|>\n"]),
        ("stablelm", ["Yes, é.\n</s>\n", "No.\n\nNever.</s>\n"]),
        ("granite", ["Yes, é.\n<|end_of_text|>\n", "No.\n\nNever.<|end_of_text|>\n"]),
    ] {
        assert_eq!(learned(&template(family), &given).unwrap(), expected, "{family}");
    }
    let within = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% if loop.last and add_generation_prompt \
                  %}<|assistant|>{% endif %}{% endfor %}";
    assert_eq!(learned(within, &given).unwrap(), ["Yes, é.\n</s>", "No.\n\nNever.</s>"]);
}

/// A template without a head before some replies, behind words with an angle.
#[test]
fn an_angle_in_the_words_before_a_reply_begins_no_tag() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}\n{% else %}{% if m.content \
                    %}<|assistant|>\n{{ m.content }}{% endif %}{% if m.tool_calls %}\n{{ m.tool_calls[0].function.name \
                    }}{% endif %}</s>\n{% endif %}{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}";
    let call =
        json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]});
    for words in ["Is 2 < 3?", "a<b"] {
        let given = json!({"messages": [message("user", words), call, message("user", "So?"), message("assistant", "No")]});
        assert_eq!(learned(template, &given).unwrap(), ["f</s>\n", "No</s>\n"], "{words}");
    }
}

#[test]
fn a_run_learns_the_replies_that_a_template_rewrites_and_refuses_others_by_the_line() {
    let training =
        training().set(&["data.train=train.jsonl", "batch_size=1", "data.max_length=256"]);
    let model = training.path("qwen3");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(crate::model("llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(model.join("chat_template.jinja"), template("qwen3")).unwrap();
    training.write("train.jsonl", &conversation("thinking").to_string());
    let set = format!("model={}", model.display());
    let output = training.command(&[&set]).args(["--dry-run", "--json"]).output().unwrap();
    let (out, err) = texts(&output);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}\n{err}"));
    let parts = report["example"]["parts"].as_array().unwrap();
    let learned: Vec<&Value> =
        parts.iter().filter(|part| part["learned"] == true).map(|part| &part["text"]).collect();
    let thought = "<think>\n2 + 2\nis 4.\n</think>\n\nIt is 4.<|im_end|>\n";
    assert_eq!(learned, [&json!("It is 4.<|im_end|>\n"), &json!(thought)]);

    std::fs::write(model.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let error = training.refusal(&[&set]);
    assert!(error.contains("train.jsonl:1: the chat template rewrites message 2"), "{error}");
}
