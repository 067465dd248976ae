"""Folders with small tokenizers of the kinds there are, and chat templates as models ship them."""

import json
from pathlib import Path

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% set date_string = strftime_now('%d %b %Y') %}"
    "{{ '<|im_start|>system\\nToday Date: ' + date_string + '\\n\\n<|im_end|>' }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n\\n' "
    "+ message['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
# Turns end with </s>, and the template ends with nothing after the last.
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
# A finished turn is not what an opened one begins with.
REASONING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# The last answer has an empty block of thoughts, earlier ones have none.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Begins the answer otherwise than it is opened, and marks it.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
TEMPLATES = {
    "llama2": LLAMA2,
    "chatml": CHATML,
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
    "reasoning": REASONING,
    "qwen3": QWEN3,
    "marked": MARKED,
}
TURN_MARKS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>")
_MERGES = (
    "▁ i",
    "▁i t",
    "t h",
    "▁ th",
    "▁th e",
    "▁ is",
    "i s",
    "▁ b",
    "b l",
    "▁ bl",
    "u e",
    "▁bl ue",
    "h e",
    "he l",
    "l o",
    "hel lo",
    "▁ hello",
    "▁ [",
    "\n \n",
)


def sentencepiece_json(prepend: str) -> dict:
    """As the tokenizers of Llama 1 and 2 are converted; prepend: `normalizer` (the older way, a
    space before each part of a text), `first` or `never`.
    """
    special = ["<unk>", "<s>", "</s>"]
    letters = ["▁", *map(chr, range(33, 127)), "\n"]
    joined = [merge.replace(" ", "", 1) for merge in _MERGES]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *joined]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    for text in TURN_MARKS:
        vocabulary[text] = len(vocabulary)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace],
    }
    metaspace = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": prepend,
        "split": False,
    }
    model = {
        "type": "BPE",
        "vocab": vocabulary,
        "merges": list(_MERGES),
        "unk_token": "<unk>",
        "byte_fallback": True,
        "fuse_unk": True,
    }
    return {
        "version": "1.0",
        "added_tokens": [added(vocabulary[text], text) for text in (*special, *TURN_MARKS)],
        "normalizer": normalizer if prepend == "normalizer" else None,
        "pre_tokenizer": None if prepend == "normalizer" else metaspace,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def byte_level_json(**flags: bool) -> dict:
    """As GPT-2, Llama 3 and Qwen have it; flags: of the special tokens, as `rstrip`."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]
    merges = ["Ġ b", "h e", "Ġ t", "Ġt he", "Ċ Ċ", "< /", "i t", "Ġ it"]
    joined = [merge.replace(" ", "") for merge in merges]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *joined])}
    special = ("<s>", "</s>", *TURN_MARKS)
    for text in special:
        vocabulary[text] = len(vocabulary)
    tokens = [added(vocabulary[text], text, **flags) for text in special]
    # A word of the vocabulary that is no special token.
    thought = len(vocabulary)
    tokens.append({**added(thought, "<think>"), "special": False})
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": {**level, "use_regex": True},
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def added(number: int, text: str, **flags: bool) -> dict:
    """A special token of a tokenizer.json."""
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **rest, **flags, "special": True}


KINDS = {
    "sentencepiece, older": sentencepiece_json("normalizer"),
    "sentencepiece": sentencepiece_json("first"),
    "sentencepiece, no space": sentencepiece_json("never"),
    "bytes": byte_level_json(),
    "bytes, spaces go": byte_level_json(rstrip=True, lstrip=True),
}


def write_folder(folder: Path, kind: str, template: str, mark: bytes = b"") -> Path:
    """A folder as transformers reads it; mark: bytes put before each text file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    content = {
        "tokenizer.json": json.dumps(KINDS[kind]),
        "tokenizer_config.json": json.dumps(config),
    }
    content["chat_template.jinja"] = template
    for name, text in content.items():
        (folder / name).write_bytes(mark + text.encode())
    return folder
