"""Text to ids and back: bytes, or the tokenizer of a pretrained model from a local folder."""

import codecs
import contextlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snake_jax.data.text import bpe_files, scored_bpe
from snake_jax.data.text.chat_template import ChatTemplate, read_chat_template
from snake_jax.data.text.encoding import (
    Encode,
    bytes_encode,
    library_encode,
    slow_encode,
)
from snake_jax.data.text.files import UTF8
from snake_jax.errors import UserError

_BYTES = 256
# Names in old and new models; the first that is there.
_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "[CLS]")
# OPT opens a text with </s>, though its vocabulary has others too.
_BOS_OF_OPT = ("</s>", "<|endoftext|>")
_EOS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]")
_WANTED = (
    "tokenizer_config.json, tokenizer.json, vocab.json with merges.txt, tokenizer.model or "
    "tok*.bin (llama2.c)"
)
_TEXT_FILES = ("*.json", "*.txt", "*.jinja")


class Tokenizer(NamedTuple):
    """How a model reads text.

    Attributes:
      name: for people.
      encode_spans: text -> ids with offsets, the ids of special tokens at the given spans alone.
      decode: ids -> text, without what stands for no text.
      vocab_size: one more than the largest id.
      bos_id: of begin; None where texts have none.
      eos_id: of end.
      pad_id: of padding.
      special: ids of the special tokens by the name that stands for them in a chat template's text.
      chat_template: from messages to text, or None.
    """

    name: str
    encode_spans: Encode
    decode: Callable[[Sequence[int]], str]
    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    special: Mapping[str, int] = {}
    chat_template: ChatTemplate | None = None

    def encode(self, text: str) -> list[int]:
        """The ids of a text without begin and end; a special token that it spells stays text."""
        return self.encode_spans(text, (), ()).ids


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes of UTF-8, then begin 256, end 257 and padding 258."""

    def decode(ids: Sequence[int]) -> str:
        written = bytes(int(i) for i in ids if 0 <= i < _BYTES)
        return written.decode("utf-8", "replace")

    return Tokenizer(
        name="bytes",
        encode_spans=bytes_encode,
        decode=decode,
        vocab_size=_BYTES + 3,
        bos_id=_BYTES,
        eos_id=_BYTES + 1,
        pad_id=_BYTES + 2,
    )


def load_tokenizer(folder: str = "", template_date: str = "") -> Tokenizer:
    """The tokenizer in `folder`, from the first of the files of _WANTED that is there; "" is the
    byte tokenizer.

    Nothing is ever downloaded.

    Args:
      folder: a local one.
      template_date: the day that a chat template writes, as 2026-01-31; empty: today.

    Raises:
      UserError: no such folder, no tokenizer in it, a damaged one, or no such day.
    """
    if not folder:
        return byte_tokenizer()
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"--tokenizer={folder}: no such folder; give a local folder with {_WANTED}")
    with _without_marks(path) as read:
        return _load(path, read, template_date)._replace(name=str(path))


def _load(path: Path, read: Path, template_date: str) -> Tokenizer:
    """The tokenizer of the folder `path`, whose files are read from `read`."""
    if (read / "tokenizer_config.json").exists():
        return _from_transformers(path, read, template_date)
    if _is_fast(path, read / "tokenizer.json"):
        return _from_library(path, read, "tokenizer.json")
    if (read / "vocab.json").exists() and (read / "merges.txt").exists():
        return _from_library(path, read, "vocab.json")
    if (path / "tokenizer.model").exists():
        return _from_pieces(bpe_files.read_model(path / "tokenizer.model"))
    if found := sorted(path.glob("tok*.bin")):
        return _from_pieces(bpe_files.read_bin(found[0]))
    raise UserError(f"--tokenizer={path}: holds no tokenizer; wanted: {_WANTED}")


@contextlib.contextmanager
def _without_marks(folder: Path) -> Iterator[Path]:
    """The folder, or a copy of it whose text files begin without a byte order mark.

    The libraries refuse files with a mark, or take it for text.
    """
    marked = []
    for pattern in _TEXT_FILES:
        for file in folder.glob(pattern):
            with file.open("rb") as opened:
                beginning = opened.read(len(codecs.BOM_UTF8))
            if beginning == codecs.BOM_UTF8:
                marked.append(file)
    if not marked:
        yield folder
        return

    # Files without a mark are linked to, not copied.
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for file in folder.iterdir():
            if file in marked:
                content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
                (copy / file.name).write_bytes(content)
            elif file.is_file():
                (copy / file.name).symlink_to(file.resolve())
        yield copy


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError where the tokenizer has ids that the model has no embedding for.

    Args:
      tokenizer: the data's.
      vocab_size: rows of the model's embedding.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids but the model's "
            f"embedding only {vocab_size} rows; give the tokenizer that belongs to the model with "
            f"--tokenizer"
        )


def _from_pieces(pieces: scored_bpe.Pieces) -> Tokenizer:
    return Tokenizer(
        name="",
        encode_spans=scored_bpe.encoder(pieces),
        decode=scored_bpe.decoder(pieces),
        vocab_size=len(pieces.texts),
        bos_id=pieces.bos_id,
        eos_id=pieces.eos_id,
        pad_id=pieces.unknown_id,
        special=pieces.control,
    )


def _from_transformers(path: Path, read: Path, template_date: str) -> Tokenizer:
    """The folder's own tokenizer class, special tokens and chat template."""
    transformers = _module("transformers", path)
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(str(read), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = _one_line(error).replace(str(read), str(path))
        raise UserError(f"--tokenizer={path}: transformers cannot load it: {reason}") from None
    # An encoder's texts begin with its token for classes and end with its separator.
    bos_id, eos_id = loaded.bos_token_id, loaded.eos_token_id
    if eos_id is None and loaded.cls_token_id is not None:
        bos_id, eos_id = loaded.cls_token_id, loaded.sep_token_id
    if eos_id is None:
        raise UserError(f"--tokenizer={path}: names no eos_token; add one to tokenizer_config.json")

    # What the library calls special, and what it names as begin, end and the like.
    special = dict(zip(loaded.all_special_tokens, loaded.all_special_ids, strict=True))
    for number, token in loaded.added_tokens_decoder.items():
        if token.special:
            special[token.content] = number

    def encode_whole(text: str) -> list[int]:
        return loaded.encode(text, add_special_tokens=False)

    def encode_as_text(text: str) -> list[int]:
        return loaded.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(ids: Sequence[int]) -> str:
        return loaded.decode([int(i) for i in ids], skip_special_tokens=True)

    if loaded.is_fast:
        encode_spans = library_encode(loaded.backend_tokenizer, special)
    else:
        encode_spans = slow_encode(encode_whole, encode_as_text, special)
    if loaded.chat_template:
        _module("jinja2", path)
    pad_id = loaded.pad_token_id
    if pad_id is None:
        pad_id = eos_id
    return Tokenizer(
        name="",
        encode_spans=encode_spans,
        decode=decode,
        vocab_size=1 + max(loaded.get_vocab().values()),
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        special=special,
        chat_template=read_chat_template(loaded, str(path), template_date),
    )


def _from_library(path: Path, read: Path, file: str) -> Tokenizer:
    """tokenizer.json, or vocab.json and merges.txt (bytes as GPT-2 and OPT write them), without a
    configuration.
    """
    library = _module("tokenizers", path)
    try:
        if file == "tokenizer.json":
            loaded = library.Tokenizer.from_file(str(read / file))
            return _with_special_ids(loaded, path, read, _BOS)
        model = library.models.BPE.from_file(str(read / file), str(read / "merges.txt"))
    except Exception as error:
        # The library, written in Rust, raises nothing more special.
        if type(error) is not Exception:
            raise
        raise UserError(f"--tokenizer={path}: {file} cannot be read: {_one_line(error)}") from None
    loaded = library.Tokenizer(model)
    loaded.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    loaded.decoder = library.decoders.ByteLevel()
    return _with_special_ids(loaded, path, read, _BOS_OF_OPT)


def _with_special_ids(loaded: Any, path: Path, read: Path, bos_names: Sequence[str]) -> Tokenizer:
    """Begin, end and padding by config.json where that is there, else by their usual names."""
    # By the model's config.json first; it may list several ends, of which the first is taken.
    vocabulary = loaded.get_vocab()
    config: dict[str, Any] = {}
    if (read / "config.json").exists():
        config = _json(path, read / "config.json")
    ids: dict[str, int | None] = {}
    for field, names in (("bos", bos_names), ("eos", _EOS), ("pad", ("<pad>", "<|pad|>", "[PAD]"))):
        given = config.get(f"{field}_token_id")
        if isinstance(given, list):
            given = given[0]
        usual = next((vocabulary[name] for name in names if name in vocabulary), None)
        ids[field] = usual if given is None else given
    eos_id = ids["eos"]
    if eos_id is None:
        raise UserError(
            f"--tokenizer={path}: no end of text among {', '.join(_EOS)}; add a "
            f"tokenizer_config.json"
        )

    # Special are these, and what the library calls so.
    marks = {i for i in ids.values() if i is not None}
    special = {text: i for text, i in vocabulary.items() if i in marks}
    for number, token in loaded.get_added_tokens_decoder().items():
        if token.special:
            special[token.content] = number

    def decode(numbers: Sequence[int]) -> str:
        text_ids = [int(i) for i in numbers if i not in marks]
        return loaded.decode(text_ids, skip_special_tokens=True)

    pad_id = ids["pad"]
    if pad_id is None:
        pad_id = eos_id
    return Tokenizer(
        name="",
        encode_spans=library_encode(loaded, special),
        decode=decode,
        vocab_size=1 + max(vocabulary.values()),
        bos_id=ids["bos"],
        eos_id=eos_id,
        pad_id=pad_id,
        special=special,
    )


def _is_fast(path: Path, file: Path) -> bool:
    """Whether it is a tokenizer.json as Hugging Face writes them; others use that name for formats
    of their own.
    """
    if not file.exists():
        return False
    return isinstance(_json(path, file).get("model"), dict)


def _json(path: Path, file: Path) -> dict[str, Any]:
    """A file's JSON object; raises UserError where it holds none."""
    try:
        content = json.loads(file.read_text(encoding=UTF8))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(
            f"--tokenizer={path}: {file.name} is not a JSON object; copy the file again"
        )
    return content


def _module(name: str, path: Path) -> Any:
    """A package that only some tokenizers need; raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"--tokenizer={path} needs the package {name}: pip install {name}"
        ) from None


def _one_line(error: Exception) -> str:
    """What an error says, in one line that is not too long."""
    words = str(error).split()
    return " ".join(words)[:300]
