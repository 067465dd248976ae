"""Where text comes from: `pydoc` (ships with Python), JSON lines (the user's files), the Hugging
Face hub.
"""

import gzip
import importlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.data.text.pair import Pair
from snake_jax.data.text.pydoc_topics import pydoc_pairs
from snake_jax.data.text.records import Fields, Record, parse
from snake_jax.errors import UserError

# The four data sets of the Snake Learning paper's "Fine-Tuning of LLMs". Each has answers that
# people preferred (`chosen`) and others (`rejected`): fine-tuning takes the former. The prompts of
# the last end before "Assistant:".
HUB = {
    "Dahoas/rm-static": Fields("prompt", "chosen"),
    "Dahoas/synthetic-instruct-gptj-pairwise": Fields("prompt", "chosen"),
    "Dahoas/full-hh-rlhf": Fields("prompt", "chosen"),
    "yitingxie/rlhf-reward-datasets": Fields(
        "prompt", "chosen", suffix="Assistant:", opening="Assistant:"
    ),
}
_SUFFIXES = (".jsonl", ".jsonl.gz")


class Corpus(NamedTuple):
    """Pairs to train on and held-out ones, which share no prompt; notes say what was left out of
    the data.
    """

    name: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    notes: tuple[str, ...] = ()


class _Source(NamedTuple):
    name: str
    records: list[Record]


def load(spec: str, *, test_share: float = 0.1, seed: int = 0, limit: int = 0) -> Corpus:
    """Reads comma-separated sources: `pydoc`, `FILE.jsonl`, `FILE.jsonl.gz`, a data set of HUB, or
    `hub:NAME`.

    Held out is what a source marks as test. Where a source marks nothing, a seeded choice of
    prompts with about `test_share` of its pairs is held out; so are the marked training pairs where
    no source has any test pair. A prompt is on one side only: training pairs whose prompt (but for
    white space) is held out are left out. Categories are those in the data where one source has all
    training pairs, else the names of the sources (the paper's data sets).

    Args:
      spec: the sources.
      test_share: of the pairs of a source without a test part, above 0 and below 1.
      seed: of the choices; not negative.
      limit: at most so many training pairs of each source, chosen at random, and `test_share` times
        as many test pairs; 0 means all.

    Raises:
      UserError: an unknown name, a file that is not there or not as it should be, no pairs, wrong
        numbers.
    """
    if not 0 < test_share < 1:
        raise UserError(f"--test_share={test_share:g} must be above 0 and below 1")
    if seed < 0 or limit < 0:
        raise UserError(f"--seed={seed} and --limit={limit} must not be negative")
    notes: list[str] = []
    sources = [_with_text(source, notes) for source in _read_all(spec)]
    sides = _sides(sources, test_share, seed, notes)
    train = [_sampled(pairs, limit, seed) for pairs, _ in sides]
    test = [
        _sampled(pairs, limit and max(1, round(limit * test_share)), seed) for _, pairs in sides
    ]
    if not any(train):
        raise UserError(
            f"--data={spec} leaves no pairs to train on: all are held out; add a source with "
            f"training pairs"
        )
    names, own = [source.name for source in sources], sum(map(bool, train)) == 1
    return Corpus(spec, _joined(train, names, own), _joined(test, names, own), tuple(notes))


def _read_all(spec: str) -> list[_Source]:
    sources = [_read(item.strip()) for item in spec.split(",")]
    names = [source.name for source in sources]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"--data={spec} has two sources named {repeated[0]}; give each once, or rename a file"
        )
    return sources


def _read(item: str) -> _Source:
    """All records of one source, and its name: of a file without folder and suffix, of a hub data
    set without owner.
    """
    if item == "pydoc":
        return _Source(item, [Record(pair, "") for pair in pydoc_pairs()])
    if item.endswith(_SUFFIXES):
        name = Path(item).name.removesuffix(".gz").removesuffix(".jsonl")
        return _Source(name, [parse(record, where) for where, record in _lines(item)])
    full = next(
        (full for full in HUB if item.lower() in (full.lower(), full.split("/")[1].lower())), ""
    )
    if full or item.removeprefix("hub:") not in ("", item):
        name = full or item.removeprefix("hub:")
        return _Source(name.split("/")[-1], list(_hub(name, HUB.get(name))))
    raise UserError(
        f"--data={item} is unknown; give pydoc, a file ending in .jsonl or .jsonl.gz, "
        f"{', '.join(HUB)}, or hub:NAME "
        "for another data set of the Hugging Face hub"
    )


def _lines(path: str) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of every line that is not blank."""
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.endswith(".gz")
            else open(path, encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}: is not JSON ({error.msg}); want one object on each line"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: is not UTF-8 text after line {number}; save it as UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(
            f"{path}: is damaged, or not a gzip file, after line {number}; make it again"
        ) from None
    except OSError as error:
        raise UserError(
            f"--data={path}: {error.strerror}; give the path of a .jsonl or .jsonl.gz file"
        ) from None


def _hub(name: str, fields: Fields | None) -> Iterator[Record]:
    """The records of a data set of the hub, with its own train and test parts where it has both."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"--data={name} needs the package datasets: pip install datasets, or give a .jsonl file"
        ) from None
    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--data={name}: cannot be loaded from the Hugging Face hub: {reason}"
        ) from None
    test = next((split for split in ("test", "validation") if split in splits), "")
    if not test or "train" not in splits:
        rows: Iterable[tuple[str, str]] = [(split, "") for split in splits]
    else:
        rows = [("train", "train"), (test, "test")]
    for split, mark in rows:
        for number, row in enumerate(splits[split]):
            record = {key: value for key, value in row.items() if key != "split"}
            yield parse(record, f"{name}, {split} row {number}", fields)._replace(split=mark)


def _with_text(source: _Source, notes: list[str]) -> _Source:
    """Without the pairs that lack a prompt or a response; a note says how many."""
    kept = [
        record for record in source.records if record.pair.prompt and record.pair.response.strip()
    ]
    if not kept:
        raise UserError(f"--data: {source.name} holds no pairs with a prompt and a response")
    if left_out := len(source.records) - len(kept):
        notes.append(f"{source.name}: {left_out} pairs without a prompt or a response left out")
    return _Source(source.name, kept)


def _sides(
    sources: list[_Source], test_share: float, seed: int, notes: list[str]
) -> list[tuple[list[Pair], list[Pair]]]:
    """(train, test) of every source; no prompt is in the training pairs of one and the test pairs
    of any.
    """
    sides = [_divided(source, test_share, seed) for source in sources]
    if not any(test for _, test in sides):
        unmarked = [
            _Source(s.name, [record._replace(split="") for record in s.records]) for s in sources
        ]
        sides = [_divided(source, test_share, seed) for source in unmarked]
    held_out = {_key(pair) for _, test in sides for pair in test}
    trains = [
        _apart(s.name, train, held_out, notes) for s, (train, _) in zip(sources, sides, strict=True)
    ]
    return [(train, test) for train, (_, test) in zip(trains, sides, strict=True)]


def _divided(source: _Source, test_share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(train, test): as marked; of the unmarked pairs, all that share a prompt lie on the same
    side.
    """
    unmarked = [record.pair for record in source.records if not record.split]
    prompts = list(dict.fromkeys(map(_key, unmarked)))
    if len(prompts) == 1 and len(unmarked) == len(source.records):
        raise UserError(
            f"--data: {source.name} holds one prompt only, so none can be held out; add others"
        )
    counts = dict.fromkeys(prompts, 0)
    for pair in unmarked:
        counts[_key(pair)] += 1
    order = streams.generator(seed, "text/hold_out").permutation(len(prompts))
    sizes = np.cumsum([counts[prompts[i]] for i in order])
    wanted = max(1, round(test_share * len(unmarked)))
    held_out = {
        prompts[i] for i in order[: min(int(np.searchsorted(sizes, wanted)) + 1, len(prompts) - 1)]
    }
    sides: dict[str, list[Pair]] = {"train": [], "test": []}
    for pair, split in source.records:
        sides[split or ("test" if _key(pair) in held_out else "train")].append(pair)
    return sides["train"], sides["test"]


def _apart(name: str, train: list[Pair], held_out: set[str], notes: list[str]) -> list[Pair]:
    kept = [pair for pair in train if _key(pair) not in held_out]
    if left_out := len(train) - len(kept):
        notes.append(
            f"{name}: {left_out} training pairs left out, because their prompts are held out"
        )
    return kept


def _sampled(pairs: list[Pair], limit: int, seed: int) -> list[Pair]:
    """At most `limit` of them at random, in their order; 0 means all."""
    if not limit or limit >= len(pairs):
        return pairs
    chosen = streams.generator(seed, "text/limit").permutation(len(pairs))[:limit]
    return [pairs[i] for i in np.sort(chosen)]


def _joined(sides: Sequence[list[Pair]], names: list[str], own: bool) -> tuple[Pair, ...]:
    """All pairs of all sources, in the categories that they have of their own, or each in that of
    its source's name.
    """
    return tuple(
        pair._replace(category=(own and pair.category) or name)
        for pairs, name in zip(sides, names, strict=True)
        for pair in pairs
    )


def _key(pair: Pair) -> str:
    return " ".join(pair.prompt.split())
