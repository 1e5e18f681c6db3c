"""Patterns, plain and odd, and what Python's `re` makes of them; the seed and the count are arguments.

Prints the names of the modules, [[pattern, the modules that it selects or null if `re` refuses it], …], and [[pattern,
replacement, the names after `re.subn` or null], …].
"""

import json
import random
import re
import signal
import sys
import warnings

warnings.simplefilter("ignore")

NAMES = [
    "norm", "model.norm", "model.embed_tokens", "model.layers.0.input_layernorm", "model.layers.1.input_layernorm",
    "model.layers.10.input_layernorm", "model.layers.1.self_attn.q_norm", "model.layers.1.self_attn.k_norm",
    "model.layers.1.mlp.up_proj", "transformer.h.0.ln_1", "transformer.h.11.ln_2", "lm_head", "a", "aa", "aaa", "ab",
    "aab", "abab", "abc", "b", "aXb", "A", "NORM", "Layer-Norm", "x-y", "x&y", "x~y", "x|y", "x[0]", "x{2}", "x(y)",
    "x\\y", "x#y", "x y", "x\ty", "norm\n", "a\nb", "\nnorm", "n\x1fm", "n\x85m", "n\xa0m", "é", "É", "e\u0301", "ſ",
    "S", "s", "K", "k", "\u212a", "İ", "ı", "I", "i", "ß", "ẞ", "ss", "µ", "μ", "Μ", "ς", "σ", "Σ", "٣", "³", "½",
    "Ⅷ", "ⅷ", "_", "中", "𝟙", "𐐀", "𐐨", "ǅ", "ǆ", "Ǆ", "ϐ", "β", "\x07", "\x08", "\x0b", "\x0c", "\x00", "Å", "\u212b",
    "a-b", "^", "$", "]", "]a", "^a", "-", "&&", "--", "z", "Z", "\\", "0", "8", "00", "\u200d", "\u203f",
]
REAL = [
    r".*norm", r".*\.layers\.\d+\.(input|post_attention)_layernorm", r"model\.layers\.(?!0\b)\d+\..*norm",
    r"(?i).*norm$", r"transformer\.h\.[0-9]+\.ln_[12]", r"model\.layers\.(?:0|1)\..*", r"(?x) model \. norm # the last",
    r".*(?<!q_)(?<!k_)norm", r"(?P<first>\w)(?P=first)*", r".*\.(\d)\1?\..*", r".*[a-z]_norm\Z", r"^.*\bln_\d\b$",
    r".*_(q|k|v)_.*|.*norm", r"(a|b)*c?", r"[^.]*", r"(?s:.)*", r"(a)?(?(1)b|a+)", r"(?:ab?)++", r".*?norm.*+", r"(?:a|ab){2}+b",
]
TOKENS = [
    "a", "b", "x", "y", "1", "0", "norm", "model", "layers", ".", ".*", ".+", ".?", r"\.", "*", "+", "?", "*?", "+?", "??",
    "*+", "++", "?+", "{2}", "{1,2}", "{,2}", "{2,}", "{,}", "{}", "{", "}", "{2}+", "{1,2}?", "{2,1}", "{a}", "{1", "{ 1}",
    "|", "||", "(", ")", "(?:", "(?>", "(?=", "(?!", "(?<=", "(?<!", "(?P<n>", "(?P=n)", "(?P<n", "(?P>n)", "(?<n>", "(?'n'",
    "(?(1)", "(?(n)", "(?(2)", "(?i)", "(?i:", "(?-i:", "(?s)", "(?s:", "(?x)", "(?x:", "(?m)", "(?m:", "(?a)", "(?a:", "(?u)",
    "(?u:", "(?L)", "(?L:", "(?is-x:", "(?i-i:", "(?U)", "(?R)", "(?R:", "(?t)", "(?", "(?#c)", "(?#", "(?|", "(?&n)", "(?-",
    "(?i-", "(?-:", "(?ai)", "(?au:", "^", "$", r"\A", r"\Z", r"\z", r"\b", r"\B", r"\G", r"\K", r"\R", r"\X", r"\h", r"\H",
    r"\N", r"\N{DIGIT ONE}", r"\N{x}", r"\O", r"\p{L}", r"\pL", r"\P{L}", r"\p{Greek}", r"\Q", r"\E", r"\<", r"\>", r"\e",
    r"\cA", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\a", r"\f", r"\v", r"\n", r"\t", r"\r", r"\0", r"\00", r"\07",
    r"\008", r"\1", r"\2", r"\10", r"\141", r"\400", r"\8", r"\x61", r"\x6", r"\x{61}", r"\u0061", r"\u{61}", r"\u006",
    r"\U00000061", r"\U00110000", r"\ud800", r"\-", r"\#", r"\ ", r"\&", r"\~", r"\_", r"\é", r"\/", "\\", "\\\\", "#", " ",
    "\n", "\t", "-", "&&", "--", "~~", "[", "]", "[]", "[^]", "[]a]", "[^]a]", "[[]", "[[a]", "[[a]b]", "[[:alpha:]]",
    "[[:^alpha:]]", "[[.a.]]", "[a&&b]", "[a-z&&[^b]]", "[a--b]", "[+--]", "[a~~b]", "[a||b]", "[a-]", "[-a]", "[a-b-c]",
    "[z-a]", r"[\d-a]", r"[a-\d]", r"[\w]", r"[^\W\d]", r"[\b]", r"[\B]", r"[\A]", r"[\p{L}]", r"[\x61-\x63]", r"[\141]",
    r"[\8]", r"[\1]", r"[\]a]", r"[\[a]", r"[\N{DIGIT ONE}]", "[^a]", "[^\n]", "[a-zA-Z0-9_]", "[À-ÿ]", "[ -~]", "[#]", "[ ]",
    "[^^]", "[$]", "[|]", r"[\ud800-\ue000]", r"[\s\S]", r"[^\s\S]", "[ſ]", "[k-l]", "[ßa]", "[𐐀]", "[𐐀a]", "[𐐀-𐐂a]", "é", "ſ",
    "K", "k", "S", "İ", "ı", "i", "ß", "ẞ", "µ", "σ", "𐐨", "ǅ", "中", "٣", "½", "(a)", "(b)", "(a|b)", "(|a)", "()", "(?:)",
    "(a*)*", "(?:a|ab)", "(?>a|ab)", "(?:a?){2}", "(a)?", "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", r"(?<=a|b)", "(?<=a|bc)",
    "(?<=a*)", "(?<=^)", r"(?<=\b)", "(?<=(a))", r"(?<=(a)\1)", r"(?<=a{2})", "(?<=a{1,2})", "(?P<é>a)", "(?P<1>a)",
    "(?P<n>a)", "(?P<n-m>a)", "(?P<>a)", "(?(1)a|b)", "(?(1)a|b|c)", "(?(1)a)", "(?(0)a)", "(?(x)a)", "(?(+1)a)", "(?(?=a)b)",
    "(*FAIL)", "(?~a)", "(?P=m)", *["(?i:%s)" % c for c in "kKsSiIµςßǅ"], "(?i:[k-s])", "(?i:[^k-s])", "(?a:(?i:[k-s]))", "{4294967295}", "{4294967294}", "{1000000}", "{99999999999999999999}", "(?:(?:a{9}){9}){9}",
    "^*", "$+", r"\b*", r"\b?", "(?:^)*", "(?:^)", "(?=a)*", "(?i)*", "(?#c)*", "a**", "a+*", "a{2}{3}", "a{2}*", "a*{2}",
]


def soup(rng):
    return "".join(rng.choice(TOKENS) for _ in range(rng.randint(1, 5)))


def grown(rng, depth=3):
    """A pattern that is mostly well formed."""
    kind = rng.random()
    if depth == 0 or kind < 0.25:
        return rng.choice(TOKENS)
    if kind < 0.55:
        return grown(rng, depth - 1) + grown(rng, depth - 1)
    if kind < 0.65:
        return grown(rng, depth - 1) + "|" + grown(rng, depth - 1)
    if kind < 0.85:
        group = ["(", "(?:", "(?:", "(?>", "(?=", "(?!", "(?<=", "(?<!", "(?i:", "(?P<n>", "(?s:", "(?a:", "(?x:", "(?m:"]
        return rng.choice(group) + grown(rng, depth - 1) + ")"
    repeat = ["*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,2}", "{,2}", "{2,}", "{1,2}+", "{2}+", "{0}"]
    return "(?:" + grown(rng, depth - 1) + ")" + rng.choice(repeat)


def mutated(rng):
    pattern = rng.choice(REAL)
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(len(pattern) + 1)
        pattern = pattern[:at] + rng.choice([rng.choice(TOKENS), ""]) + pattern[at + rng.randint(0, 2) :]
    return pattern


def pattern(rng):
    made = rng.choice([soup, grown, grown, mutated, mutated, lambda rng: re.escape(rng.choice(NAMES))])(rng)
    return rng.choice(["", "", "(?i)", "", "(?s).*", "(?a)", "(?i).*?", "(?x)"]) + made + rng.choice(["", "", ".*", "$", "$|" + rng.choice(TOKENS)])


def stop(*_):
    raise TimeoutError


signal.signal(signal.SIGALRM, stop)


def judged(judge):
    """What `judge` gives, None if `re` refuses, or ... if it takes long."""
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return judge()
    except (re.error, ValueError, OverflowError, IndexError, RecursionError):
        return None
    except (TimeoutError, MemoryError):
        return ...
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def selected(pattern):
    """The modules whose own path or the path of whose container `pattern` matches."""
    regex = re.compile(pattern)
    memo = {}

    def matches(path):
        if path not in memo:
            memo[path] = bool(regex.fullmatch(path))
        return memo[path]

    paths = [[name[: m.start()] for m in re.finditer(r"\.", name)] + [name] for name in NAMES]
    return [index for index, ways in enumerate(paths) if any(matches(path) for path in ways)]


def renamed(pattern, replacement):
    return [re.sub(pattern, replacement, name) for name in NAMES]


REPLACEMENTS = ["", "-", r"\1", r"<\g<0>>", r"\g<n>", r"\g<1>\2", r"$1\\", r"\0", r"\x", r"\n", r"\101", r"\11", r"\g<a", "{}", r"\.\-"]
rng = random.Random(int(sys.argv[1]))

# Letters, and those that are the same without regard to case.
cased = [c for c in map(chr, range(0x180, 0x10000)) if c.lower() != c or c.upper() != c]
for letter in rng.sample(cased, 4):
    family = [c for c in cased if letter in (c, c.lower(), c.upper()) or c.upper() == letter.upper()]
    NAMES += [c for c in family if c not in NAMES]
    TOKENS += ["(?i:%s)" % c for c in family] + ["(?i:[%s-%s])" % (family[0], family[-1])]

patterns, rules, seen = [], [], set()
while len(patterns) < int(sys.argv[2]):
    made = pattern(rng)
    if made and made not in seen:
        seen.add(made)
        answer = judged(lambda: selected(made))
        if answer is not ...:
            patterns.append([made, answer])
while len(rules) < int(sys.argv[2]) // 10:
    rule = (pattern(rng), rng.choice(REPLACEMENTS))
    answer = judged(lambda: renamed(*rule))
    paths = answer is None or answer is not ... and all(all(name.split(".")) for name in answer)
    if paths and (answer is None or len(set(answer)) == len(NAMES)):
        rules.append([*rule, answer])
print(json.dumps([NAMES, patterns, rules]))
