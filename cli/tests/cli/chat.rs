//! Conversations are rendered byte for byte as transformers renders them.

use std::collections::HashMap;

use serde_json::{json, Value};
use tempfile::TempDir;

use crate::conversations::{
    conversations, message, template, theirs, tokenizer, with_template, Case,
};
use crate::program::texts;
use crate::text::chat::ChatTemplate;
use crate::text::files::TextFiles;
use crate::training;

/// Families of the README whose models chat, by the constructs of their templates.
const FAMILIES: [&str; 13] = [
    "cohere", "deepseek", "falcon", "gemma", "granite", "llama", "mistral", "olmo2", "phi3",
    "qwen2", "qwen3", "smollm3", "stablelm",
];

/// Each is the same text, or an error in both; so many are a text.
fn compare(cases: &[Case]) -> usize {
    let (mut texts, mut templates) = (0, HashMap::new());
    for (case, theirs) in cases.iter().zip(theirs(cases)) {
        let template = templates.entry(&case.dir).or_insert_with(|| {
            ChatTemplate::open(&TextFiles::Directory(case.dir.clone())).unwrap().unwrap()
        });
        let (ours, about) =
            (case.by(template), format!("{} {}", case.dir.display(), case.conversation));
        match theirs["text"].as_str() {
            Some(text) => assert_eq!(ours.as_deref(), Ok(text), "{about}"),
            None => assert!(ours.is_err(), "{about}: {ours:?}, transformers: {theirs}"),
        }
        texts += usize::from(ours.is_ok());
    }
    texts
}

#[test]
fn every_family_renders_as_in_transformers() {
    let dirs: Vec<TempDir> =
        FAMILIES.iter().map(|family| with_template(&template(family))).collect();
    let mut cases = Vec::new();
    for dir in &dirs {
        for (_, conversation) in conversations() {
            cases.extend([false, true].map(|open| Case::new(dir.path(), &conversation, open)));
        }
    }
    let texts = compare(&cases);
    assert!(texts > cases.len() * 3 / 4, "only {texts} of {} are a text", cases.len());
}

#[test]
fn templates_and_special_tokens_are_found_in_every_file_that_transformers_reads() {
    let template =
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let added = |text: &str| json!({"content": text, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false});
    let typed = |text: &str| json!({"__type": "AddedToken", "content": text, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    let class = "PreTrainedTokenizerFast";
    let named = |names: &[&str]| {
        names
            .iter()
            .map(|name| json!({"name": name, "template": format!("{name}: {template}")}))
            .collect::<Value>()
    };
    let config = "tokenizer_config.json";
    let map = "special_tokens_map.json";
    let tokens = json!({"bos_token": "<s>", "eos_token": added("</s>")});
    let dirs = [
        tokenizer(&[
            (config, json!({"tokenizer_class": class, "chat_template": template})),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (
                config,
                json!({"tokenizer_class": class, "chat_template": template, "bos_token": typed("<pad>"), "eos_token": "</s>"}),
            ),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (
                config,
                json!({"tokenizer_class": class, "chat_template": template, "bos_token": "<pad>", "eos_token": "</s>", "added_tokens_decoder": {}}),
            ),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (
                config,
                json!({"tokenizer_class": class, "chat_template": format!("{template}{{{{ image_token }}}}"), "image_token": "<image>"}),
            ),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (
                config,
                json!({"tokenizer_class": class, "chat_template": format!("{template}{{{{ image_token }}}}"), "extra_special_tokens": {"image_token": "<image>"}}),
            ),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (
                config,
                json!({"tokenizer_class": class, "chat_template": named(&["default", "tool_use", "rag"])}),
            ),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (
                config,
                json!({"tokenizer_class": class, "chat_template": named(&["default", "rag"])}),
            ),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (
                config,
                json!({"tokenizer_class": class, "chat_template": named(&["rag", "tool_use"])}),
            ),
            (map, tokens.clone()),
        ]),
        tokenizer(&[
            (config, json!({"tokenizer_class": class, "chat_template": "other"})),
            (map, tokens.clone()),
            ("chat_template.jinja", json!(format!("file: {template}\r\n"))),
        ]),
        tokenizer(&[
            (config, json!({"tokenizer_class": class})),
            (map, tokens.clone()),
            ("chat_template.jinja", json!(template)),
            ("additional_chat_templates/tool_use.jinja", json!("tools: {{ tools | length }}")),
        ]),
    ];
    let messages = [message("user", "Hi"), message("assistant", "Yes")];
    let plain = json!({"messages": messages});
    let tools =
        json!({"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]});
    let cases: Vec<Case> = dirs
        .iter()
        .flat_map(|dir| [&plain, &tools].map(|given| Case::new(dir.path(), given, true)))
        .collect();
    assert!(compare(&cases) > cases.len() * 3 / 4);
}

#[test]
fn a_token_that_only_the_model_or_the_tokenizer_knows_is_found_and_one_that_nobody_knows_stops() {
    let template = "{{ bos_token + 'x' }}{{ eos_token ~ 'y' }}";
    let config = ("tokenizer_config.json", json!({"chat_template": template}));
    let rendered = |files: &[(&str, Value)]| {
        let dir = tokenizer(files);
        Case::new(dir.path(), &json!({"messages": [message("user", "Hi")]}), false).ours()
    };
    let expected = Ok("<s>x</s>y".to_owned());
    let ids = json!({"bos_token_id": 0, "eos_token_id": [1, 2]});
    assert_eq!(rendered(&[config.clone(), ("config.json", ids.clone())]), expected);
    assert_eq!(rendered(&[config.clone(), ("config.json", json!({"text_config": ids}))]), expected);
    assert_eq!(rendered(&[config.clone(), ("generation_config.json", ids)]), expected);
    let around = json!({
        "added_tokens": [], "model": {"vocab": {}}, "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}},
            ]},
        ]},
    });
    assert_eq!(rendered(&[config, ("tokenizer.json", around)]), expected);

    for template in [
        "{{ bos_token }}",
        "{{ bos_token + 'x' }}",
        "{{ 'x' ~ bos_token }}",
        "{% set a = bos_token %}{{ a }}",
        "{{ bos_token ~ messages[0].content }}",
    ] {
        for given in [
            json!({"chat_template": template}),
            json!({"chat_template": template, "bos_token": null}),
        ] {
            let error = rendered(&[("tokenizer_config.json", given)]).expect_err(template);
            assert!(
                error.contains("`bos_token`") && error.contains("tokenizer_config.json"),
                "{template}: {error}"
            );
        }
    }
    for template in [
        "{% if bos_token %}{{ bos_token }}{% endif %}",
        "{{ bos_token | default('') }}",
        "{{ x_tokens }}",
    ] {
        assert_eq!(
            rendered(&[("tokenizer_config.json", json!({"chat_template": template}))]),
            Ok(String::new())
        );
    }
}

#[test]
fn a_template_without_an_end_is_stopped_and_bad_values_are_named() {
    let rendered = |template: &str, more: Value| {
        let mut given = json!({"messages": [message("user", "Hi")]});
        given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Case::new(with_template(template).path(), &given, false).ours().unwrap_err()
    };
    let twice = "{% set ns = namespace(a='ab') %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}";
    for template in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ range(10000000000) | list | length }}",
        twice,
    ] {
        let start = std::time::Instant::now();
        let error = rendered(template, json!({}));
        assert!(error.starts_with("the chat template"), "{template}: {error}");
        assert!(start.elapsed().as_secs() < 20, "{template}: {:?}", start.elapsed());
    }
    // However deep it nests, it is an answer or an error.
    let nested = "{% set ns = namespace(a=[]) %}{% for i in range(50000) %}{% set ns.a = [ns.a] %}{% endfor %}";
    let not = format!("{{{{ {}1 }}}}", "not ".repeat(10_000));
    for template in [nested, &not] {
        let given = json!({"messages": [message("user", "Hi")]});
        let _ = Case::new(with_template(template).path(), &given, false).ours();
    }
    for (template, more, part) in [
        ("{{ raise_exception('take turns') }}", json!({}), "take turns"),
        ("{{ messages[0].x.y }}", json!({}), "`messages[0].x` is undefined"),
        ("{% if %}", json!({}), "cannot be read"),
        (&"x".repeat(300_000), json!({}), "it has 300000 bytes, expected at most 262144"),
        ("{{ strftime_now('%Q') }}", json!({}), "'%Q' is not a format"),
        (
            "x",
            json!({"tools": {"type": "function"}}),
            "'tools' is {\"type\":\"function\"}, expected a list of objects",
        ),
        ("x", json!({"documents": ["a"]}), "'documents' is [\"a\"], expected a list"),
        ("x", json!({"kwargs": {"messages": []}}), "'chat_template_kwargs' holds 'messages'"),
    ] {
        let error = rendered(template, more);
        assert!(error.contains(part), "{template}: {error}");
    }
}

#[test]
fn a_broken_template_stops_conversations_and_not_plain_text() {
    let training = training().set(&["max_steps=1"]);
    let broken = training.path("broken");
    std::fs::create_dir(&broken).unwrap();
    for entry in std::fs::read_dir(crate::model("llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, broken.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(broken.join("chat_template.jinja"), "{% what %}").unwrap();
    let model = format!("model={}", broken.display());
    training.run(&[&model]);
    training.write(
        "chat.jsonl",
        &json!({"messages": [message("user", "a"), message("assistant", "b")]}).to_string(),
    );
    let (_, error) = texts(&training.output(&[&model, "data.train=chat.jsonl", "out=chat"]));
    assert!(error.contains("chat.jsonl:1: the chat template 'default' cannot be read"), "{error}");
}
