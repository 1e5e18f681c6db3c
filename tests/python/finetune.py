"""Models, tokenizers and loss curves of PEFT for the tests of the program (cli/tests).

`make-lm DIR llama|gpt2`        a tiny random language model with a tokenizer
`make-bert DIR LABELS`          a tiny random classifier with a tokenizer; with one label, for a number
`make-dinov2 DIR`               a tiny random DINOv2 without a head
`make-seq2seq DIR PROMPTS`      a tiny random T5 and a BART, each with adapters a and b in a folder beside it, and their answers
`curve-lm MODEL ROWS STEPS LR WD CLIP`    PEFT's losses on the rows of token ids in ROWS, a batch per line
`curve-bert MODEL ROWS STEPS LR WD CLIP`  the same; a row is ids, mask, types and label
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LNTuningConfig, PeftModel, get_peft_model  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "a stitch in time saves nine, and a penny saved is a penny earned",
    "all that glitters is not gold; often have you heard that told",
    "to be, or not to be, that is the question",
]
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def words(template):
    """A tokenizer of bytes; `<s>` is token 0, `</s>` token 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = CHAT
    return fast


def make_lm(directory, family):
    fast = words("<s> $A" if family == "llama" else None)
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    common = {"vocab_size": len(fast), "bos_token_id": 0, "eos_token_id": 1}
    if family == "llama":
        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, initializer_range=0.2, **common,
        )
        model = LlamaForCausalLM(config)
    else:
        config = GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, **common,
        )
        model = GPT2LMHeadModel(config)
    model.save_pretrained(directory)


def make_bert(directory, labels):
    # Written out: a vocabulary that is trained differs from run to run.
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in TEXT for word in text.replace(",", " , ").replace(";", " ; ").split()})
    letters = sorted({letter for word in words for letter in word})
    known = [*special, *letters, *("##" + letter for letter in letters), *(word for word in words if len(word) > 1)]
    vocabulary = {token: i for i, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = {name: tokenizer.token_to_id(name) for name in special}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        problem_type="regression" if len(labels) == 1 else None, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(directory)


def make_seq2seq(directory, prompts):
    answers = {}
    for family, template in [("t5", "$A </s>"), ("bart", "<s> $A </s>")]:
        base, fast = f"{directory}/{family}", words(template)
        fast.save_pretrained(base)
        torch.manual_seed(0)
        common = {"vocab_size": len(fast), "d_model": 32, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 0}
        if family == "t5":
            model = T5ForConditionalGeneration(T5Config(d_kv=8, d_ff=64, num_layers=2, num_heads=4, **common))
        else:
            layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
            config = BartConfig(
                encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, forced_eos_token_id=1, bos_token_id=0,
                **layers, **common,
            )
            model = BartForConditionalGeneration(config)
        with torch.no_grad():
            # Weak embeddings and strong positions, or the model says one token again and again.
            for name, parameter in model.named_parameters():
                strong = 2 if "relative_attention_bias" in name or "embed_positions" in name else 0.15
                parameter.mul_(0.1 if "shared" in name else 1).add_(torch.randn_like(parameter) * strong)
        model.save_pretrained(base)
        answers[family] = [answer(model, fast, prompts)]
        for name in ("a", "b"):
            # T5 keeps `wo` in f32 beside norms in f16.
            targets = ["layer_norm", "wo"] if (family, name) == ("t5", "b") else None
            tuned = get_peft_model(type(model).from_pretrained(base), LNTuningConfig(target_modules=targets))
            with torch.no_grad():
                for parameter in tuned.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * 0.3)
            tuned.save_pretrained(f"{directory}/{family}-{name}")
            answers[family].append(answer(tuned, fast, prompts))
    print(json.dumps(answers))


def answer(model, tokenizer, prompts):
    """Each alone."""
    given = [tokenizer(prompt, return_tensors="pt", return_token_type_ids=False) for prompt in json.loads(prompts)]
    new = [model.eval().generate(**ids, max_new_tokens=10, do_sample=False, num_beams=1)[0] for ids in given]
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]


def make_dinov2(directory):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7, initializer_range=0.2
    )
    Dinov2Model(config).save_pretrained(directory)


def train(model, batches, steps, lr, weight_decay, clip, loss_of):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 5, steps)
    losses, norms = [], []
    for step in range(steps):
        loss = loss_of(model, batches[step % len(batches)])
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, clip)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    print(json.dumps({"loss": losses, "grad_norm": norms}))


def curve_lm(directory, rows, steps, lr, weight_decay, clip):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM"))
    batches = [json.loads(line) for line in open(rows)]

    def loss_of(model, batch):
        longest = max(len(row["ids"]) for row in batch)
        pad = lambda row, key, fill: row[key] + [fill] * (longest - len(row[key]))  # noqa: E731
        ids = torch.tensor([pad(row, "ids", 0) for row in batch])
        labels = torch.tensor([pad(row, "labels", -100) for row in batch])
        mask = torch.tensor([[1] * len(row["ids"]) + [0] * (longest - len(row["ids"])) for row in batch])
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    train(model, batches, int(steps), float(lr), float(weight_decay), float(clip), loss_of)


def curve_bert(directory, rows, steps, lr, weight_decay, clip):
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    model = get_peft_model(model, LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]))
    batches = [json.loads(line) for line in open(rows)]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)

    def loss_of(model, batch):
        texts = [row["text"] for row in batch]
        pairs = [row["pair"] for row in batch]
        given = tokenizer(texts, pairs, padding=True, return_tensors="pt", return_token_type_ids=True)
        numbers = model.config.num_labels == 1
        labels = torch.tensor([row["label"] if numbers else model.config.label2id[row["label"]] for row in batch])
        return model(**given, labels=labels).loss

    train(model, batches, int(steps), float(lr), float(weight_decay), float(clip), loss_of)


def loads_bert(base, adapter, texts):
    """PEFT's predictions, as the names of the labels or as numbers, with an adapter of ours on a base without its head."""
    config = AutoConfig.from_pretrained(adapter)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, config=config, dtype=torch.float32, ignore_mismatched_sizes=True,
    )
    model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    with torch.no_grad():
        given = tokenizer(json.load(open(texts)), padding=True, return_tensors="pt", return_token_type_ids=True)
        logits = model(**given).logits
    if config.problem_type == "regression":
        print(json.dumps(logits.squeeze(-1).tolist()))
    else:
        print(json.dumps([config.id2label[prediction] for prediction in logits.argmax(-1).tolist()]))


def generate(base, prompt, count, *adapters):
    """The answers of transformers and PEFT: without an adapter, then with each."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    answers = []
    for adapter in [None, *adapters]:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter)
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        new = model.generate(**given, max_new_tokens=int(count), do_sample=False, pad_token_id=1)
        answers.append(tokenizer.decode(new[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
    print(json.dumps(answers))


def loads_lm(base, adapter, ids):
    """PEFT's logits with an adapter of ours, for the ids in a JSON file; their sum and their largest."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits = model(torch.tensor([json.load(open(ids))])).logits
    print(json.dumps(logits.flatten().tolist()))


command, arguments = sys.argv[1], sys.argv[2:]
if command == "make-lm":
    make_lm(*arguments)
elif command == "make-bert":
    make_bert(arguments[0], arguments[1].split(","))
elif command == "make-dinov2":
    make_dinov2(*arguments)
elif command == "make-seq2seq":
    make_seq2seq(*arguments)
elif command == "curve-lm":
    curve_lm(*arguments)
elif command == "curve-bert":
    curve_bert(*arguments)
elif command == "loads-bert":
    loads_bert(*arguments)
elif command == "generate":
    generate(*arguments)
elif command == "loads-lm":
    loads_lm(*arguments)
else:
    sys.exit(f"unknown command {command}")
