//! Expressions of templates, made by a seed and from a list, have the values that Jinja gives them.

use serde_json::{json, Value};

use crate::conversations::{message, theirs, tokenizer, Case};
use crate::text::chat::{ChatTemplate, Conversation};
use crate::text::files::TextFiles;

fn variables() -> Value {
    json!({
        "s": "Hello <World>", "e": "", "w": "  a b  c\n", "q": "it's \"q\" & \\ é\t\u{1}\u{2028} 😀", "n": null, "t": true,
        "f": false, "i": 3, "z": 0, "m": -7, "x": 2.5, "one": 1.0, "big": 1e20, "tiny": 1e-7, "l": [3, 1, 2],
        "ls": ["b", "A", "c d"], "lm": [1, "a", null, true, 2.0, [1e-5], {"k": 1}], "el": [], "ed": {},
        "d": {"b": 1, "a": [1, "x"], "c": null},
        "ms": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " yes\n", "n": 2}, {"role": "tool"}],
    })
}

/// Each template that has a value has the same here.
fn compare(templates: &[String], least: usize) {
    let dir = tokenizer(&[(
        "tokenizer_config.json",
        json!({"tokenizer_class": "PreTrainedTokenizerFast"}),
    )]);
    let given = |template: &String| json!({"messages": [message("user", "x")], "kwargs": variables(), "template": template});
    let cases: Vec<Case> =
        templates.iter().map(|template| Case::new(dir.path(), &given(template), false)).collect();
    let theirs = theirs(&cases);
    let all = templates.iter().zip(&theirs);
    let all: Vec<_> =
        all.filter_map(|(template, theirs)| Some((template, theirs["text"].as_str()?))).collect();
    assert!(all.len() >= least, "only {} of {} have a value", all.len(), templates.len());
    // At once, since it is cheaper; and alone where that is not the same.
    let at_once: String = all.iter().map(|(template, _)| format!("{template}\u{1f}")).collect();
    if ours(&at_once) == Ok(all.iter().map(|(_, text)| format!("{text}\u{1f}")).collect()) {
        return;
    }
    let different = all.iter().filter_map(|(template, theirs)| {
        let ours = ours(template);
        (ours.as_deref() != Ok(*theirs))
            .then(|| format!("{template}\n    {ours:?}\n    Ok({theirs:?})"))
    });
    panic!("different:\n{}", different.collect::<Vec<_>>().join("\n"));
}

fn ours(template: &str) -> Result<String, String> {
    let dir = tokenizer(&[("chat_template.jinja", json!(template))]);
    let mut conversation = Conversation::new(vec![message("user", "x")]);
    conversation.kwargs = variables().as_object().unwrap().clone();
    let chat = ChatTemplate::open(&TextFiles::Directory(dir.path().to_owned())).unwrap().unwrap();
    chat.render(&conversation, false).map_err(|error| format!("{error:#}"))
}

/// Random expressions of a type, with parts of some depth.
struct Maker(u64);

impl Maker {
    fn below(&mut self, count: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % count
    }

    /// One of the forms, in which T, L, N, D, B and A stand for a text, list, number, map, condition and anything.
    fn of(&mut self, kind: char, depth: usize) -> String {
        let (leaves, forms) = match kind {
            'T' => (
                "s ; w ; q ; e ; 'a b' ; 'l' ; ms[0].role ; d|tojson",
                "T.upper() ; T.lower() ; T.title() ; T.capitalize() ; T.strip() ; T.lstrip('H ') ; \
                 T.rstrip() ; T.swapcase() ; T.replace('l', 'L') ; T.replace('l', '', 1) ; \
                 T.removeprefix('He') ; T.removesuffix('>') ; T|upper ; T|title ; T|capitalize ; T|trim ; \
                 T|replace('a', 'b') ; T|indent(2) ; T|default('q') ; A|string ; (T ~ A) ; (T + T) ; \
                 (T * 2) ; T[1:] ; T[:-1] ; T[::-1] ; T[:N] ; L|map('string')|join(', ') ; ', '.join(ls) ; \
                 A|tojson ; L|tojson(indent=2) ; D|tojson(sort_keys=true) ; T|tojson(ensure_ascii=true) ; \
                 A|tojson(separators=(',', ':')) ; (T if B else T) ; '%s|%s'|format(A, A) ; \
                 T.split('l')[-1] ; T.split(' ', 1)[0] ; T.center(20) ; T.zfill(9) ; T.ljust(9) ; \
                 T.rsplit(' ', 1)[0] ; T.partition(' ')[0] ; T|list|join('.') ; (T or T) ; T|lower|trim ; \
                 '{} {}'.format(T, T) ; T|safe ; T|first|string ; T|reverse",
            ),
            'L' => (
                "l ; ls ; lm ; el ; ms ; [1, 'b'] ; range(4)|list ; d.keys()|list",
                "(L + L) ; L[1:] ; L[::-1] ; T.split() ; T.split(',') ; L|reverse|list ; \
                 l|sort(reverse=true) ; ls|sort ; D|items|list ; D|dictsort ; D|dictsort(true) ; \
                 ls|sort(true) ; ms|map(attribute='role')|list ; \
                 ms|selectattr('role', 'equalto', 'user')|list ; ms|rejectattr('content', 'defined')|list ; \
                 ms|selectattr('n')|list ; lm|select('string')|list ; L|list ; [A, A] ; T|list ; \
                 l|map('string')|list ; ls|map('upper')|list ; L|batch(2)|list ; (L * 2) ; (L or L) ; \
                 T.splitlines() ; D.items()|list ; D.values()|list ; ls|unique|list ; (L if B else L) ; \
                 lm|reject('none')|list ; (A, A)",
            ),
            'N' => (
                "i ; z ; m ; x ; one ; 4 ; 2.5",
                "(N + N) ; (N - N) ; (N * N) ; N // 2 ; N % 4 ; N / 4 ; -i ; L|length ; T|length ; \
                 T.find('l') ; l|sum ; '12'|int ; T|int ; N|int ; N|float ; N|round(1)|string|float ; \
                 N|abs ; l|max ; l|min ; T.count('l') ; ls.index('A') ; 2 ** i ; (N if B else N) ; \
                 l[N|int % 3]",
            ),
            'D' => (
                "d ; ed ; ms[0] ; ms[-1] ; {'k': 1, 'b': [none, true]}",
                "{'k': A} ; dict(a=A) ; (D if B else D) ; (D or D)",
            ),
            'B' => (
                "t ; f ; true",
                "(N < N) ; (N >= N) ; (A == A) ; (A != A) ; not A ; (B and B) ; (B or B) ; (T in T) ; \
                 (T not in T) ; (A in L) ; ('a' in D) ; (A is none) ; (A is string) ; (A is mapping) ; \
                 (A is sequence) ; (A is iterable) ; (A is number) ; (A is defined) ; (zz is defined) ; \
                 (i is odd) ; (A is boolean) ; (A is integer) ; (A is float) ; T.startswith('H') ; \
                 T.endswith(('>', 'x')) ; T.isdigit() ; (T < T) ; (D.zz is undefined) ; (A is sameas none) ; \
                 (N is divisibleby 2)",
            ),
            _ => (
                "n ; t ; zz ; d.zz ; d.c ; lm ; big ; tiny ; ms ; q",
                "T ; L ; N ; D ; B ; D.get('k', A) ; (A or A) ; D['b'] ; L[0] ; L|last",
            ),
        };
        let one = |of: &'static str, place: usize| {
            of.split(" ; ").nth(place % of.split(" ; ").count()).unwrap()
        };
        if depth == 0 || self.below(4) == 0 {
            return one(leaves, self.below(1 << 20)).to_owned();
        }
        let form = one(forms, self.below(1 << 20));
        let mut made = String::new();
        let mut rest = form.chars().peekable();
        let mut quoted = false;
        while let Some(c) = rest.next() {
            quoted ^= c == '\'';
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let alone = !made.ends_with(word) && !rest.peek().is_some_and(|next| word(*next));
            if "TLNDBA".contains(c) && alone && !quoted {
                let part = self.of(c, depth - 1);
                // A filter or an operator inside comes first.
                let open = part.contains(['|', ' ', '-', '/']);
                made += &if open { format!("({part})") } else { part };
            } else {
                made.push(c);
            }
        }
        made
    }
}

#[test]
fn random_expressions_have_the_values_of_jinja() {
    let mut maker = Maker(1);
    let templates: Vec<String> = (0..1000)
        .map(|_| {
            format!(
                "{{{{ {} }}}}",
                maker.of(['T', 'L', 'N', 'D', 'B', 'A'][maker.0 as usize % 6], 3)
            )
        })
        .collect();
    compare(&templates, 700);
}
