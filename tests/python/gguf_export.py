"""Model directories that become GGUF files, and what reads these.

`gguf_export.py make DIR`: tiny random models of four families and five ropes with tokenizers, `DIR/CASE`, and an adapter of PEFT for
one, `DIR/CASE.adapter`.
`gguf_export.py check DIR`: compares `DIR/CASE.gguf` with the models: tensors as the gguf package makes them, logits of
transformers, tokens and probabilities of llama.cpp.
"""

import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import gguf  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from gguf import GGMLQuantizationType as T  # noqa: E402
from peft import LNTuningConfig, PeftModel, get_peft_model  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, CONFIG_MAPPING, PreTrainedTokenizerFast  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
OUT = Path(sys.argv[2])
TEXT = ["the quick brown fox jumps over the lazy dog", "all that glitters is not gold", "12 or 345, isn't it?"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
SMALL = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
)
# The rule of the tokenizer, the settings, the kind of the directory, the type of the file.
CASES = {
    "llama": ("llama3", dict(rope_parameters=dict(rope_type="default", rope_theta=5e5)), torch.float32, T.F32),
    # transformers reads no file whose `general.name`, which is that of the directory, says mistral.
    "wind": ("digits", dict(sliding_window=None, head_dim=32), torch.bfloat16, T.BF16),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True), torch.float32, T.F16),
    # It reads no other size of heads either.
    "qwen3": ("gpt2", dict(head_dim=128), torch.bfloat16, T.Q8_0),
    "slowed": ("llama3", dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )), torch.float32, T.F32),
    # Others than those of Llama 3.
    "slower": ("llama3", dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=1e3, factor=5.0, low_freq_factor=2.0, high_freq_factor=9.0,
        original_max_position_embeddings=48,
    )), torch.float32, T.F32),
    "stretched": ("qwen2", dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32,
    )), torch.float32, T.F32),
    "loud": ("llama3", dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32, attention_factor=1.3,
        beta_fast=32.0, beta_slow=0,
    )), torch.float32, T.F32),
    "linear": ("gpt2", dict(head_dim=128, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)), torch.float32, T.F32),
}
# Those of other names.
MODEL_TYPES = dict(wind="mistral", slowed="llama", slower="mistral", stretched="qwen2", loud="llama", linear="qwen3")
# transformers reads their ropes as the default one.
ROPES = ["slowed", "slower", "stretched", "loud", "linear"]


def is_ascii(letter):
    """Of the letters that stand for bytes: llama.cpp leaves parts of others out of its answer."""
    return ord(letter) < 127 or 256 <= ord(letter) < 290


def tokenizer(rule):
    bpe = Tokenizer(models.BPE(ignore_merges=rule == "llama3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in ("gpt2", "digits"))
    before = {
        "llama3": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated")],
        "digits": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt2": [],
    }[rule]
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*before, level]) if before else level
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<s>", "</s>"], initial_alphabet=[c for c in sorted(alphabet) if is_ascii(c)],
    )
    bpe.train_from_iterator(TEXT * 4, trainer)
    bpe.add_tokens([AddedToken("<word>", normalized=False)])
    if rule == "llama3":
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def make():
    for case, (rule, settings, kind, _) in CASES.items():
        words = tokenizer(rule)
        words.chat_template = "{{ messages[0]['content'] }}"
        words.save_pretrained(OUT / case)
        torch.manual_seed(1)
        config = CONFIG_MAPPING[MODEL_TYPES.get(case, case)](**SMALL, **settings, vocab_size=len(words) + 3)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if tensor.dim() == 1:
                    tensor.add_(torch.randn_like(tensor) * 0.2)
        model.to(kind).save_pretrained(OUT / case)
        if case == "qwen3":
            adapt(model, case)


def adapt(model, case):
    tuned = get_peft_model(model.float(), LNTuningConfig())
    with torch.no_grad():
        for name, tensor in tuned.named_parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    tuned.save_pretrained(OUT / f"{case}.adapter")


def steps(file, prompt, count):
    from llama_cpp import greedy

    return [(s["id"], s["logprob"]) for s in greedy(file, prompt, count)]


def check():
    for case, (_, _, _, block_type) in CASES.items():
        model = AutoModelForCausalLM.from_pretrained(OUT / case, dtype=torch.float32)
        if (OUT / f"{case}.adapter").exists():
            model = PeftModel.from_pretrained(model, OUT / f"{case}.adapter").merge_and_unload()
            with torch.no_grad():
                for tensor in model.parameters():
                    # As in the directory.
                    tensor.copy_(tensor.to(CASES[case][2]))
        reader = gguf.GGUFReader(OUT / f"{case}.gguf")
        found = {t.name: t for t in reader.tensors}
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                own = T.F32 if tensor.dim() == 1 else block_type
                data = gguf.quants.quantize(tensor.numpy(), own)
                tensor.copy_(torch.from_numpy(gguf.quants.dequantize(data, own)).view_as(tensor))
                if "mlp.up_proj" in name:
                    there = found[f"blk.{name.split('.')[2]}.ffn_up.weight"]
                    assert there.tensor_type == own and there.data.tobytes() == data.tobytes(), (case, name)
        words = AutoTokenizer.from_pretrained(OUT / case)
        prompt = "the lazy fox is 12345 gold<word> it's"
        ids = words(prompt, return_tensors="pt").input_ids
        if case not in ROPES:
            read = AutoModelForCausalLM.from_pretrained(OUT, gguf_file=f"{case}.gguf", dtype=torch.float32)
            with torch.no_grad():
                off = (read(ids).logits - model(ids).logits).abs().max().item()
            assert off < 1e-4, (case, off)
        generated = steps(OUT / f"{case}.gguf", prompt, 8)
        all_ids = torch.cat([ids, torch.tensor([[token for token, _ in generated]])], 1)
        with torch.no_grad():
            logs = model(all_ids).logits.log_softmax(-1)[0, ids.shape[1] - 1 :]
        # Products with eight-bit weights round activations to eight bits, those with half ones to half.
        rounding = 0.3 if block_type == T.Q8_0 else 0.05
        for (token, log), own in zip(generated, logs):
            two = own.topk(2)
            assert abs(own[token].item() - log) < rounding, (case, own[token].item(), log)
            assert two.indices[0] == token or two.values[0] - two.values[1] < rounding, case
        fields = {key: field.contents() for key, field in reader.fields.items()}
        assert fields["tokenizer.chat_template"] == words.chat_template
        tokens = fields["tokenizer.ggml.tokens"]
        assert tokens[-4:] == ["<word>", *(f"[PAD{len(tokens) - 3 + i}]" for i in range(3))]


make() if sys.argv[1] == "make" else check()
