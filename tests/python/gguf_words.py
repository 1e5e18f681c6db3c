"""Tokenizers in the metadata of GGUF files, and the ids that other programs read with them.

`make DIR`              writes tiny models, and prints for each its name, its judge, and the texts with their ids, with the
                        special tokens around a text and without
`llama NAME...`         the same with rules of llama.cpp by name, to try them all
`odd DIR`               files that hold no language model, or no tokenizer that can be read, by their faults
`ids FILE TEXTS`        the ids of texts as llama.cpp makes them with a real file; TEXTS is a JSON list
`python DIR TEXTS`      the ids of texts in Python, of a directory that `ln-tuning train` wrote
"""

import http.client
import json
import os
import random
import sys
import tempfile

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SPACE = "\u2581"
ODD = [
    "", " ", "  ", "   ", "a", " a", "  a", "a ", "a  ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "a\n\nb", "a \n b\t\tc",
    "Hello, world!", " (x) [y] {z}", "I'll don't WE'RE it'S 'tis o'clock 've", "1", "12", "123", "1234", "1234567 89 0.5",
    "v1.2.3-rc4 10% 3/4 2^10 \u00b2\u00bd\u2167\u0663\u0664\u096a", "na\u00efve caf\u00e9 cafe\u0301", "\u00c9COLE \u00e9cole \u01c5 \u0130i",
    "\u6771\u4eac\u3067\u3059\u3002 \u30ab\u30bf\u30ab\u30ca \ud55c\uad6d\uc5b4 \u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u0627\u0644\u0633\u0644\u0627\u0645 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f", "\u200b\u200d\ufeff\u00a0\u2003\u3000x", "\u0000\u0001\u007f\u0085",
    "def f(x):\n    return x**2  # square\n\n\n\tpass", "<a href=\"http://x.y/z?q=1&r=2\">$5 + \u20ac6 <= \u00a37</a>", "__init__ snake_case camelCase HTTPServer",
    "...!!??--==>>>///\\\\", "``quoted'' \u201ccurly\u201d \u2018one\u2019", "a" * 40, " " * 17, "\n" * 5, "x\u0301\u0302\u0303", "\U00010400\U0001d400\U0010ffff",
    "word. \u2026 End\u3002\u060c \u0964", "\u2581a \u2581\u2581", "don\u2019t", "A.B.C", "e-mail@x.org", "\u00df\u00b5\u0371\u10a0\u1c90",
    "tab\tbed  and   wide    gaps", "100 000,00", "\u2160\u2161 \u00b9\u00b2\u00b3 \u2460", "#!/bin/sh\n$ ls | wc -l", "  \n  \n a",
]


def texts(special):
    """Odd texts, alone and in random rows; special tokens among them."""
    draw = random.Random(0)
    rows = ["".join(draw.choice(ODD) for _ in range(draw.randint(2, 4))) for _ in range(70)]
    around = [f"{token}a {token}\n{token}  b{token}" for token in special]
    mixed = ["".join(draw.choice(ODD + special * 5) for _ in range(4)) for _ in range(25)]
    return ODD + rows + around + mixed


def trained(corpus, start, alphabet, size=1500):
    """Merges that know no words, so that every cut of a text shows: the tokens and the pairs."""
    tokenizer = Tokenizer(models.BPE())
    if start:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


def write(path, architecture, tokens, types, more):
    """A model of one layer of zeros."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    more(writer)
    square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {f"blk.0.{name}.weight": (32, 32) for name in square}
    shapes |= {f"{name}.weight": (32,) for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]}
    shapes["token_embd.weight"] = (len(tokens), 32)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SPECIAL = ["<|end|>", "<|start|>", "<\uff5cbegin\u2581of\u2581text\uff5c>"]
USER = ["<think>", "      "]
BYTES = {}


def bytes_file(path, pre, special=SPECIAL, user=USER, more=lambda writer: None):
    """Merges of bytes. Tokens of the user are found in a text, and are no special ones."""
    if not BYTES:
        BYTES["made"] = trained(texts([]) * 2, True, pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = BYTES["made"]

    def rest(writer):
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)
        more(writer)

    # A word that no merges make.
    whole = ["\u0120xyzzy"]
    types = [3] * len(special) + [1] * len(tokens) + [4] * len(user) + [1] * len(whole)
    write(path, "llama", special + tokens + user + whole, types, rest)


def pieces_file(path, architecture, gemma=False, name="", more=lambda writer: None):
    """SentencePiece: control tokens, bytes, then pieces by their scores. Gemma's come by their places."""
    corpus = [SPACE + text.replace(" ", SPACE) for text in texts([]) * 2 if "\0" not in text]
    alphabet = sorted({letter for text in corpus for letter in text if letter.isascii()} | {SPACE})
    tokens, merges = trained(corpus, False, alphabet)
    merged = list(dict.fromkeys("".join(pair) for pair in merges))
    # Others are bytes.
    known = lambda token: all(ord(letter) < 0x3000 for letter in token)  # noqa: E731
    letters = [token for token in tokens if token not in set(merged) and known(token)]
    merged = [token for token in merged if known(token)]
    control = ["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>"]
    codes = [f"<0x{byte:02X}>" for byte in range(256)]
    user = ["[unused1]", "<b>"]
    if gemma:
        spaces = [token for token in merged if set(token) == {SPACE} and len(token) > 1]
        merged = [token.replace(SPACE, " ") if token in spaces else token for token in merged]
    else:
        spaces = []
    pieces = merged + letters
    types = [2] + [3] * (len(control) - 1) + [6] * 256 + [4] * len(user)
    types += [4 if gemma and token.strip() == "" else 1 for token in pieces]
    start = len(control) + 256 + len(user)
    scores = [0.0] * start + [-1000.0 if gemma else -float(place) for place in range(len(pieces))]

    def rest(writer):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        if name:
            writer.add_name(name)
        more(writer)

    write(path, architecture, control + codes + user + pieces, types, rest)
    return control[1:] + user


def with_transformers(path, texts):
    from transformers import AutoTokenizer

    folder, name = os.path.split(path)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    encode = lambda special: [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]  # noqa: E731
    return encode(True), encode(False)


def with_llama_cpp(path, texts):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.n_parallel, params.port = path, 64, False, 1, 0
    params.verbosity = -1
    server = xllamacpp.Server(params)

    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))

    def ids(text, special):
        body = json.dumps({"content": text, "add_special": special, "parse_special": True}).encode()
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        return json.load(connection.getresponse())["tokens"]

    # These are about the tokens around a text alone.
    return [ids(text, True) for text in texts], [ids(text, False) for text in texts[:30]]


def answer(path, judge, texts):
    around, bare = {"transformers": with_transformers, "llama.cpp": with_llama_cpp}[judge](path, texts)
    return {"file": path, "judge": judge, "texts": texts, "around": around, "bare": bare}


# transformers reads these as the original tokenizers do; for others it has no rule, or not that of the original.
OF_TRANSFORMERS = ["gpt-2", "qwen2", "qwen35", "tekken", "gpt-4o", "dbrx"]
OF_LLAMA_CPP = [
    "llama-bpe", "glm4", "smollm", "falcon", "default", "deepseek-llm", "deepseek-coder", "deepseek-v3", "bloom", "viking",
    "seed-coder", "minicpm5", "exaone-moe", "bailingmoe", "superbpe",
]


def exact(name, text):
    """llama.cpp knows no digits but those of ASCII, and wide spaces in no range of letters."""
    if name == "superbpe":
        return text.isascii()
    return not name.startswith("deepseek") or all(letter.isascii() or not letter.isspace() for letter in text)


def llama(names, folder=None):
    folder = folder or tempfile.mkdtemp()
    words = ["<think>", " xyzzy"] + SPECIAL
    answers = []
    for name in names:
        path = f"{folder}/{name}.gguf"
        bytes_file(path, name)
        answers.append(answer(path, "llama.cpp", [text for text in texts(words) if exact(name, text)]))
    return answers


def make(folder):
    os.makedirs(folder, exist_ok=True)
    answers = llama(OF_LLAMA_CPP, folder)
    for name in OF_TRANSFORMERS:
        path = f"{folder}/{name}.gguf"
        # It leaves out special tokens with letters that are no byte's.
        special = SPECIAL[:2] + ["<|text|>"]
        adds = name in ("gpt-2", "tekken")
        bytes_file(path, name, special, USER[:1], lambda writer: writer.add_add_bos_token(adds))
        answers.append(answer(path, "transformers", texts(["<think>", *special])))
    for name, architecture, more in [
        ("llama", "llama", lambda writer: None),
        ("llama-eos", "llama", lambda writer: (writer.add_add_bos_token(False), writer.add_add_eos_token(True))),
        ("phi3", "phi3", lambda writer: None),
        ("gemma", "gemma2", lambda writer: writer.add_add_space_prefix(False)),
    ]:
        path = f"{folder}/{name}.gguf"
        special = pieces_file(path, architecture, name == "gemma", more=more)
        answers.append(answer(path, "transformers", texts(special)))
    path = f"{folder}/no-prefix.gguf"
    # By its name, spaces behind special tokens go.
    special = pieces_file(path, "llama", name="Phi-3 mini", more=lambda writer: writer.add_add_space_prefix(False))
    answers.append(answer(path, "llama.cpp", texts(special)))
    return answers


def bare(path, architecture, more):
    """Metadata alone."""
    writer = gguf.GGUFWriter(path, architecture)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def words(writer, model="gpt2", pre="gpt-2", tokens=("a", "b", "ab", "<e>"), types=(1, 1, 1, 3), merges=("a b",), **ids):
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    if types:
        writer.add_token_types(list(types))
    if merges:
        writer.add_token_merges(list(merges))
    for name, number in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)


def odd(folder):
    os.makedirs(folder, exist_ok=True)
    for name, architecture, more in [
        ("architecture", "zebra", lambda writer: words(writer)),
        ("vision", "clip", lambda writer: None),
        ("mmproj", "clip", lambda writer: writer.add_type("mmproj")),
        ("adapter", "llama", lambda writer: writer.add_type("adapter")),
        ("imatrix", "llama", lambda writer: writer.add_type("imatrix")),
        ("without", "llama", lambda writer: None),
        ("rule", "llama", lambda writer: words(writer, pre="zebra", eos=3)),
        ("kind", "llama", lambda writer: words(writer, model="rwkv")),
        ("merge", "llama", lambda writer: words(writer, merges=["ab"])),
        ("parts", "llama", lambda writer: words(writer, merges=["a x"])),
        ("merges", "llama", lambda writer: words(writer, merges=[])),
        ("twice", "llama", lambda writer: words(writer, tokens=["a", "b", "ab", "a"])),
        ("types", "llama", lambda writer: words(writer, types=[1, 1])),
        ("id", "llama", lambda writer: words(writer, eos=4)),
        ("scores", "llama", lambda writer: words(writer, model="llama", merges=[])),
        ("none", "llama", lambda writer: words(writer, padding=2**32 - 1, bos=3)),
    ]:
        bare(f"{folder}/{name}.gguf", architecture, more)

    def named(writer):
        words(writer, eos=3)
        writer.add_chat_template([
            {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"},
            {"name": "tool_use", "template": "tools: {{ tools | length }}"},
        ])

    bare(f"{folder}/named.gguf", "llama", named)


if __name__ == "__main__":
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "make":
        print(json.dumps(make(*arguments)))
    elif command == "odd":
        odd(*arguments)
    elif command == "llama":
        print(json.dumps(llama(arguments)))
    elif command == "ids":
        print(json.dumps(with_llama_cpp(arguments[0], json.loads(arguments[1]))[0]))
    elif command == "python":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(arguments[0])
        print(json.dumps([tokenizer(text)["input_ids"] for text in json.loads(arguments[1])]))
    else:
        sys.exit(f"unknown command {command}")
