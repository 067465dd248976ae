"""Text to ids and back: bytes by default, or the tokenizer of a pretrained model from a local
folder.
"""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snake_jax.data.text import scored_bpe
from snake_jax.errors import UserError

_BYTES = 256
_BOS = (
    "<s>",
    "<|begin_of_text|>",
    "<bos>",
    "<|endoftext|>",
)  # names in old and new models; the first that is there
_BOS_OF_OPT = (
    "</s>",
    "<|endoftext|>",
)  # OPT opens a text with </s>, though its vocabulary has others too
_EOS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
_WANTED = (
    "tokenizer_config.json, tokenizer.json, vocab.json with merges.txt, tokenizer.model or "
    "tok*.bin (llama2.c)"
)

Messages = Sequence[Mapping[str, str]]


class Tokenizer(NamedTuple):
    """How a model reads text.

    encode: text -> ids, without begin and end. decode: ids -> text, without what stands for no
      text.
    vocab_size: one more than the largest id. bos_id is None where texts have no begin.
    chat_template: (messages with role and content, whether the assistant's turn is to be opened) ->
      text, or None.
    space_first: whether encode puts a space before every text, as SentencePiece does.
    """

    name: str
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    chat_template: Callable[[Messages, bool], str] | None = None
    space_first: bool = False


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes of UTF-8, then begin 256, end 257 and padding 258."""

    def decode(ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= i < _BYTES).decode("utf-8", "replace")

    return Tokenizer(
        "bytes",
        lambda text: list(text.encode()),
        decode,
        _BYTES + 3,
        _BYTES,
        _BYTES + 1,
        _BYTES + 2,
    )


def load_tokenizer(folder: str = "") -> Tokenizer:
    """The tokenizer in `folder`, from the first of the files of _WANTED that is there; "" is the
    byte tokenizer.

    Nothing is ever downloaded. Raises UserError: no such folder, no tokenizer in it, or a damaged
    one.
    """
    if not folder:
        return byte_tokenizer()
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"--tokenizer={folder}: no such folder; give a local folder with {_WANTED}")
    if (path / "tokenizer_config.json").exists():
        return _from_transformers(path)
    if _is_fast(path / "tokenizer.json"):
        return _from_library(path, "tokenizer.json")
    if (path / "vocab.json").exists() and (path / "merges.txt").exists():
        return _from_library(path, "vocab.json")
    if (path / "tokenizer.model").exists():
        return _from_pieces(
            path / "tokenizer.model", scored_bpe.read_model(path / "tokenizer.model")
        )
    if found := sorted(path.glob("tok*.bin")):
        return _from_pieces(found[0], scored_bpe.read_bin(found[0]))
    raise UserError(f"--tokenizer={folder}: holds no tokenizer; wanted: {_WANTED}")


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError where the tokenizer has ids that a model of `vocab_size` has no embedding
    for.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids but the model's "
            f"embedding only "
            f"{vocab_size} rows; give the tokenizer that belongs to the model with --tokenizer"
        )


def _from_pieces(path: Path, pieces: scored_bpe.Pieces) -> Tokenizer:
    encode, decode = scored_bpe.encoder(pieces), scored_bpe.decoder(pieces)
    size, bos_id, eos_id = len(pieces.texts), pieces.bos_id, pieces.eos_id
    return Tokenizer(
        str(path), encode, decode, size, bos_id, eos_id, pieces.unknown_id, None, pieces.space_first
    )


def _from_transformers(path: Path) -> Tokenizer:
    """The folder's own tokenizer class, special tokens and chat template."""
    transformers = _module("transformers", path)
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(
            f"--tokenizer={path}: transformers cannot load it: {_one_line(error)}"
        ) from None
    if loaded.eos_token_id is None:
        raise UserError(f"--tokenizer={path}: names no eos_token; add one to tokenizer_config.json")

    def encode(text: str) -> list[int]:
        return loaded.encode(text, add_special_tokens=False)

    def decode(ids: Sequence[int]) -> str:
        return loaded.decode([int(i) for i in ids], skip_special_tokens=True)

    pad_id = loaded.eos_token_id if loaded.pad_token_id is None else loaded.pad_token_id
    template = _chat_template(loaded, path) if loaded.chat_template else None
    size, first = 1 + max(loaded.get_vocab().values()), loaded.convert_ids_to_tokens(encode("a"))[0]
    ids = (loaded.bos_token_id, loaded.eos_token_id, pad_id)
    return Tokenizer(str(path), encode, decode, size, *ids, template, str(first).startswith("▁"))


def _chat_template(loaded: Any, path: Path) -> Callable[[Messages, bool], str]:
    """The folder's template, which is in Jinja; what it refuses (roles, order of turns) becomes one
    line.
    """
    errors = _module("jinja2", path).TemplateError

    def apply(messages: Messages, open_answer: bool) -> str:
        try:
            return loaded.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=open_answer
            )
        except errors as error:
            raise UserError(
                f"--tokenizer={path}: its chat template fails: {_one_line(error)}; try "
                f"--template=plain"
            ) from None

    return apply


def _from_library(path: Path, file: str) -> Tokenizer:
    """tokenizer.json, or vocab.json and merges.txt (bytes as GPT-2 and OPT write them), without a
    configuration.
    """
    library = _module("tokenizers", path)
    try:
        if file == "tokenizer.json":
            return _with_special_ids(library.Tokenizer.from_file(str(path / file)), path, _BOS)
        model = _module("tokenizers.models", path).BPE.from_file(
            str(path / file), str(path / "merges.txt")
        )
    except Exception as error:
        if (
            type(error) is not Exception
        ):  # the library, written in Rust, raises nothing more special
            raise
        raise UserError(f"--tokenizer={path}: {file} cannot be read: {_one_line(error)}") from None
    loaded = library.Tokenizer(model)
    loaded.pre_tokenizer = _module("tokenizers.pre_tokenizers", path).ByteLevel(
        add_prefix_space=False
    )
    loaded.decoder = _module("tokenizers.decoders", path).ByteLevel()
    return _with_special_ids(loaded, path, _BOS_OF_OPT)


def _with_special_ids(loaded: Any, path: Path, bos_names: Sequence[str]) -> Tokenizer:
    """Begin, end and padding by config.json where that is there, else by their usual names."""
    vocabulary = loaded.get_vocab()
    config = _json(path / "config.json") if (path / "config.json").exists() else {}
    ids = {}
    for field, names in (("bos", bos_names), ("eos", _EOS), ("pad", ("<pad>", "<|pad|>"))):
        given = config.get(f"{field}_token_id")
        usual = next((vocabulary[name] for name in names if name in vocabulary), None)
        ids[field] = (
            (given[0] if isinstance(given, list) else given) if given is not None else usual
        )
    if ids["eos"] is None:
        raise UserError(
            f"--tokenizer={path}: no end of text among {', '.join(_EOS)}; add a "
            f"tokenizer_config.json"
        )
    special = {i for i in ids.values() if i is not None}

    def encode(text: str) -> list[int]:
        return loaded.encode(text, add_special_tokens=False).ids

    def decode(numbers: Sequence[int]) -> str:
        return loaded.decode(
            [int(i) for i in numbers if i not in special], skip_special_tokens=True
        )

    pad_id = ids["eos"] if ids["pad"] is None else ids["pad"]
    size, first = (
        1 + max(vocabulary.values()),
        loaded.encode("a", add_special_tokens=False).tokens[0],
    )
    return Tokenizer(
        str(path), encode, decode, size, ids["bos"], ids["eos"], pad_id, None, first.startswith("▁")
    )


def _is_fast(path: Path) -> bool:
    """Whether it is a tokenizer.json as Hugging Face writes them; others use that name for formats
    of their own.
    """
    if not path.exists():
        return False
    return isinstance(_json(path).get("model"), dict)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(
            f"--tokenizer={path.parent}: {path.name} is not a JSON object; copy the file again"
        )
    return content


def _module(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"--tokenizer={path} needs the package {name}: pip install {name}"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
