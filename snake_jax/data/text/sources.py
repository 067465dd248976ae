"""Where text comes from: `pydoc` (ships with Python), the user's files, the Hugging Face hub."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from snake_jax import streams
from snake_jax.data.text.files import SUFFIXES, SourceRow, read_rows, source_name
from snake_jax.data.text.pydoc_topics import pydoc_pairs
from snake_jax.data.text.records import BadRow, Fields, Record, parse
from snake_jax.data.text.samples import Document, Sample, has_text, question
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


class Corpus(NamedTuple):
    """Samples to train on and held-out ones, which share no question; notes say what was left out
    of the data.
    """

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


class _Source(NamedTuple):
    """All records of one source."""

    name: str
    records: list[Record]

    @property
    def noun(self) -> str:
        """What its records are called."""
        is_text = any(isinstance(record.sample, Document) for record in self.records)
        return "texts" if is_text else "pairs"


def load_corpus(
    spec: str,
    *,
    test_share: float = 0.1,
    seed: int = 0,
    limit: int = 0,
    skip_bad_rows: bool = False,
) -> Corpus:
    """Reads comma-separated sources: `pydoc`, files (`files.SUFFIXES`), data sets of HUB, or
    `hub:NAME`.

    Held out is what a source marks as test. Where a source marks nothing, a seeded choice of
    questions (see `samples.question`) with about `test_share` of its samples is held out; so are
    the marked training samples where no source has any test sample. A question is on one side only:
    training samples whose question (but for white space) is held out are left out. Categories are
    those in the data where one source has all training samples, else the names of the sources (the
    paper's data sets).

    Args:
      spec: the sources.
      test_share: of the samples of a source without a test part, above 0 and below 1.
      seed: of the choices; not negative.
      limit: at most so many training samples of each source, chosen at random, and `test_share`
        times as many test samples; 0 means all.
      skip_bad_rows: leaves out rows that cannot be read, with a note, instead of refusing the file.

    Raises:
      UserError: an unknown name, a file that is not there or not as it should be, no samples, wrong
        numbers.
    """
    if not 0 < test_share < 1:
        raise UserError(f"--test_share={test_share:g} must be above 0 and below 1")
    if seed < 0 or limit < 0:
        raise UserError(f"--seed={seed} and --limit={limit} must not be negative")

    # Every source in two sides, which have no question in common.
    notes: list[str] = []
    sources = []
    for source in _read_all(spec, skip_bad_rows, notes):
        sources.append(_with_text(source, notes))
    sides = _sides(sources, test_share, seed, notes)

    # Limited after that: what is held out does not depend on the limit.
    test_limit = 0
    if limit:
        test_limit = max(1, round(limit * test_share))
    train = [_sampled(samples, limit, seed) for samples, _ in sides]
    test = [_sampled(samples, test_limit, seed) for _, samples in sides]
    if not any(train):
        raise UserError(
            f"--data={spec} leaves no pairs to train on: all are held out; add a source with "
            f"training pairs"
        )

    # Where one source has all of the training samples, its name would be the only category.
    names = [source.name for source in sources]
    training_sources = [samples for samples in train if samples]
    own = len(training_sources) == 1
    return Corpus(spec, _joined(train, names, own), _joined(test, names, own), tuple(notes))


def _read_all(spec: str, skip_bad_rows: bool, notes: list[str]) -> list[_Source]:
    """The sources that a specification names; raises UserError where two have one name."""
    sources = [_read(item.strip(), skip_bad_rows, notes) for item in spec.split(",")]
    names = [source.name for source in sources]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"--data={spec} has two sources named {repeated[0]}; give each once, or rename a file"
        )
    return sources


def _read(item: str, skip_bad_rows: bool, notes: list[str]) -> _Source:
    """All records of one source.

    Its name is that of a file without folder and suffix, of a hub data set without owner.
    """
    if item == "pydoc":
        return _Source(item, [Record(pair, "") for pair in pydoc_pairs()])
    if item.endswith(SUFFIXES):
        name = source_name(item)
        records = _parsed(name, read_rows(item), _record, skip_bad_rows, notes)
        return _Source(name, records)

    # A known data set, with its owner or without; any other by `hub:` alone.
    full = _known_on_hub(item)
    if not full and item.startswith("hub:"):
        full = item.removeprefix("hub:")
    if full:
        name = full.split("/")[-1]
        fields = HUB.get(full)

        def hub_record(row: SourceRow) -> Record:
            return _hub_record(row, fields)

        records = _parsed(name, _hub(full), hub_record, skip_bad_rows, notes)
        return _Source(name, records)
    raise UserError(
        f"--data={item} is unknown; give pydoc, a file ending in {', '.join(SUFFIXES)}, "
        f"{', '.join(HUB)}, or hub:NAME for another data set of the Hugging Face hub"
    )


def _known_on_hub(item: str) -> str:
    """The full name of that data set of HUB, given with its owner or without; "" for no such."""
    for full in HUB:
        _, name = full.split("/")
        if item.lower() in (full.lower(), name.lower()):
            return full
    return ""


def _parsed(
    name: str,
    rows: Iterable[SourceRow],
    make: Callable[[SourceRow], Record],
    skip_bad_rows: bool,
    notes: list[str],
) -> list[Record]:
    """The records of a source's rows.

    Args:
      name: of the source.
      rows: of it.
      make: a row to its record; raises BadRow.
      skip_bad_rows: see `load_corpus`.
      notes: what is skipped is added to them.

    Raises:
      UserError: there are bad rows and they are not to be skipped, or no others.
    """
    # What is wrong is told once, with the count of bad rows: most files that have one have more.
    records = []
    num_bad = 0
    first_fault = ""
    for row in rows:
        try:
            records.append(make(row))
        except BadRow as error:
            num_bad += 1
            first_fault = first_fault or str(error)
    if not num_bad:
        return records
    if not records:
        raise UserError(f"{first_fault} (of {num_bad} rows none can be read)")
    count = f"{num_bad} of {num_bad + len(records)} rows"
    if not skip_bad_rows:
        raise UserError(
            f"{first_fault}; leave such rows out, or say --skip_bad_rows ({count} are bad)"
        )
    notes.append(f"{name}: {count} skipped, the first: {first_fault}")
    return records


def _record(row: SourceRow) -> Record:
    """A row of a file as a record; raises BadRow."""
    if row.fault:
        raise BadRow(f"{row.where}: {row.fault}")
    return parse(row.value, row.where)


def _hub_record(row: SourceRow, fields: Fields | None) -> Record:
    """With the mark that `_hub` put where a file has its own field."""
    assert isinstance(row.value, tuple)
    mark, value = row.value
    return parse(value, row.where, fields)._replace(split=mark)


def _hub(name: str) -> Iterator[SourceRow]:
    """The rows of a data set of the hub, each a value (mark, record).

    The marks are its own train and test parts, where it has both; else they are empty.
    """
    # The package is asked for here alone: few need it.
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

    # Its test part, else its validation part.
    test = next((split for split in ("test", "validation") if split in splits), "")
    if test and "train" in splits:
        marks = {"train": "train", test: "test"}
    else:
        marks = dict.fromkeys(splits, "")

    # A field `split` of its own would be taken for a mark.
    for split, mark in marks.items():
        for number, row in enumerate(splits[split]):
            record = {key: value for key, value in row.items() if key != "split"}
            yield SourceRow(f"{name}, {split} row {number}", (mark, record))


def _with_text(source: _Source, notes: list[str]) -> _Source:
    """Without the samples that lack a prompt, a response or a text; a note says how many."""
    kept = [record for record in source.records if has_text(record.sample)]
    if not kept:
        raise UserError(f"--data: {source.name} holds no pairs with a prompt and a response")
    left_out = len(source.records) - len(kept)
    if left_out:
        lacking = "without a prompt or a response"
        if source.noun == "texts":
            lacking = "without text"
        notes.append(f"{source.name}: {left_out} {source.noun} {lacking} left out")
    return _Source(source.name, kept)


def _sides(
    sources: list[_Source], test_share: float, seed: int, notes: list[str]
) -> list[tuple[list[Sample], list[Sample]]]:
    """(train, test) of every source; no question is in the training samples of one and the test
    samples of any.
    """
    sides = [_divided(source, test_share, seed) for source in sources]

    # Marks of training alone leave nothing to evaluate on: then they count for nothing.
    if not any(test for _, test in sides):
        for number, source in enumerate(sources):
            unmarked = [record._replace(split="") for record in source.records]
            sides[number] = _divided(_Source(source.name, unmarked), test_share, seed)

    held_out: set[str] = set()
    for _, test in sides:
        for sample in test:
            held_out.add(question(sample))

    # A question held out in one source must not be trained on in another.
    apart = []
    for source, (train, test) in zip(sources, sides, strict=True):
        kept = [sample for sample in train if question(sample) not in held_out]
        left_out = len(train) - len(kept)
        if left_out:
            questions = "prompts" if source.noun == "pairs" else "texts"
            notes.append(
                f"{source.name}: {left_out} training {source.noun} left out, because their "
                f"{questions} are held out"
            )
        apart.append((kept, test))
    return apart


def _divided(source: _Source, test_share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, test): as marked; unmarked samples that share a question lie on the same side."""
    unmarked = [record.sample for record in source.records if not record.split]
    counts: dict[str, int] = {}
    for sample in unmarked:
        key = question(sample)
        counts[key] = counts.get(key, 0) + 1
    questions = list(counts)
    if len(questions) == 1 and len(unmarked) == len(source.records):
        noun = "prompt" if source.noun == "pairs" else "text"
        raise UserError(
            f"--data: {source.name} holds one {noun} only, so none can be held out; add others"
        )

    # Questions in a random order, until they have as many samples as are wanted; one stays.
    order = streams.generator(seed, "text/hold_out").permutation(len(questions))
    sizes = [counts[questions[i]] for i in order]
    samples_so_far = np.cumsum(sizes)
    wanted = max(1, round(test_share * len(unmarked)))
    enough = int(np.searchsorted(samples_so_far, wanted)) + 1
    num_held_out = max(min(enough, len(questions) - 1), 0)
    held_out = {questions[i] for i in order[:num_held_out]}

    sides: dict[str, list[Sample]] = {"train": [], "test": []}
    for sample, split in source.records:
        drawn = "test" if question(sample) in held_out else "train"
        sides[split or drawn].append(sample)
    return sides["train"], sides["test"]


def _sampled(samples: list[Sample], limit: int, seed: int) -> list[Sample]:
    """At most `limit` of them at random, in their order; 0 means all."""
    if not limit or limit >= len(samples):
        return samples
    shuffled = streams.generator(seed, "text/limit").permutation(len(samples))
    chosen = np.sort(shuffled[:limit])
    return [samples[i] for i in chosen]


def _joined(sides: Sequence[list[Sample]], names: list[str], own: bool) -> tuple[Sample, ...]:
    """All samples of all sources, each with its category.

    Args:
      sides: a source's samples each.
      names: the sources'.
      own: whether samples keep a category of their own; else all have their source's name.
    """
    joined = []
    for samples, name in zip(sides, names, strict=True):
        for sample in samples:
            category = sample.category if own and sample.category else name
            joined.append(sample._replace(category=category))
    return tuple(joined)
