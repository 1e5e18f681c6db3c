"""Conversations through chat templates, as transformers renders them.

`render CASES`  for each case of a JSON file, an object with the text and the parts marked with {% generation %}, or
                with the error. A case is the directory of a tokenizer, `messages`, perhaps `template`, `tools`,
                `documents`, `kwargs`, and `open`: with a generation prompt
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")
import transformers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

transformers.logging.set_verbosity(transformers.logging.CRITICAL)


def render(file):
    tokenizers, answers = {}, []
    for case in json.load(open(file)):
        directory, tools = case["dir"], case.get("tools")
        if directory not in tokenizers:
            tokenizers[directory] = PreTrainedTokenizerFast.from_pretrained(directory)
        tokenizer, kwargs = tokenizers[directory], case.get("kwargs") or {}
        given = {"tools": tools, "documents": case.get("documents"), "add_generation_prompt": case.get("open", False)}
        try:
            template = tokenizer.get_chat_template(case.get("template"), tools)
            text = tokenizer.apply_chat_template(
                case["messages"], chat_template=template, tokenize=False, **given, **kwargs
            )
            marked = []
            if "endgeneration" in template:
                # `apply_chat_template` gives the marks of tokens only.
                messages = [{key: value for key, value in m.items() if value is not None} for m in case["messages"]]
                (again,), (places,) = render_jinja_template(
                    [messages], chat_template=template, return_assistant_tokens_mask=True, **given,
                    **{**tokenizer.special_tokens_map, **kwargs},
                )
                assert again == text
                marked = [text[start:end] for start, end in places if end > start]
            answers.append({"text": text, "marked": marked})
        except Exception as error:  # noqa: BLE001
            answers.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(answers))


command, arguments = sys.argv[1], sys.argv[2:]
if command == "render":
    render(*arguments)
else:
    sys.exit(f"unknown command {command}")
