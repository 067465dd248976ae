"""Real text that ships with Python: `pydoc_data.topics`, the pages behind `help("while")`, as
questions and answers.

A topic is a label of Python's documentation. Its sections, and the methods, attributes and commands
it defines, become the questions; their paragraphs, in pieces of about `ANSWER_CHARS` characters,
the answers. Topics repeat each other ("compound" holds "if"), so a paragraph is used once. The text
differs a little between Python versions.
"""

import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pydoc_data.topics import topics

from snake_jax.data.text.samples import Pair

ANSWER_CHARS = 400

# The chapter of Python's documentation that a topic is taken from: the natural groups of this text.
# The first six are chapters of the Language Reference (special methods are the larger half of its
# chapter "Data model"), the others of the Library Reference. A topic that is not here (of a newer
# Python) is of the group "other".
CHAPTERS = {
    "lexical analysis": "identifiers id-classes strings numbers integers floating imaginary",
    "data model": "types objects",
    "special methods": "specialnames customization attribute-access callable-types sequence-types "
    "numeric-types context-managers",
    "execution model": "execmodel naming exceptions dynamic-features",
    "expressions": "atom-identifiers atom-literals attribute-references await binary bitwise "
    "booleans calls comparisons conversions dict exprlists in lambda lists operator-summary power "
    "shifting slicings subscriptions unary yield",
    "simple statements": "assert assignment augassign break continue del global import nonlocal "
    "pass raise return",
    "compound statements": "compound async class else for function if try while with",
    "built-in types": "typesseq typesseq-mutable typesmapping typesmethods typesmodules "
    "typesfunctions specialattrs bltin-code-objects bltin-ellipsis-object bltin-null-object "
    "bltin-type-objects truth",
    "strings and formats": "string-methods formatstrings",
    "debugger": "debugger",
}

_RULER = re.compile(r'([*=\-~^"#])\1{2,}')
_SIGNATURE = re.compile(
    r"((class|classmethod|static|async|exception) )*!?[\w.]*[\w)]([(.\[]\S*)?( [\[(*=\w.].*)?"
)
_SENTENCE_END = re.compile(r'(?<=[.!?)”"]) +(?=[A-Z"“*])|(?<=;) +')
_SHORTEST_CHARS = 60


def pydoc_pairs() -> tuple[Pair, ...]:
    """All questions and answers, in the order of CHAPTERS; the same on every call."""
    listed = []
    for chapter, names in CHAPTERS.items():
        for name in names.split():
            listed.append((chapter, name))
    others = set(topics) - {name for _, name in listed}
    listed += [("other", name) for name in sorted(others)]
    # A paragraph is used where it comes first.
    seen: set[str] = set()
    pairs = []
    for chapter, name in listed:
        for subject, paragraphs in _sections(topics.get(name, "")):
            new = [paragraph for paragraph in paragraphs if _is_new(paragraph, seen)]
            for prompt, response in _answers(subject, new):
                pairs.append(Pair(prompt, response, chapter))
    return tuple(pairs)


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """(question, paragraphs) of every section and every definition, in the order of the text."""
    blocks = [block for block in re.split(r"\n[ ]*\n", text.strip("\n")) if block.strip()]
    title = question = ""
    paragraphs: list[str] = []
    inside = False  # a definition, whose description is indented
    for block, after in pairwise([*blocks, ""]):
        heading = _heading(block)
        defines = _is_definition(block, after)
        if block.strip() == "-[ Footnotes ]-":
            break
        if heading or defines or (inside and not block.startswith("   ")):
            yield question, paragraphs
            paragraphs = []
            inside = defines
            title = heading or title
            question = f"Explain in Python: {title}"
            if defines:
                question = f"What is {_names(block)} in Python?"
        if not heading and not defines:
            paragraphs.append(_reflow(block, inside))
    yield question, paragraphs


def _heading(block: str) -> str:
    """The heading's text where the block is one: a line and a ruler under it."""
    lines = block.strip("\n").split("\n")
    return lines[0].strip() if len(lines) == 2 and _RULER.fullmatch(lines[1].strip()) else ""


def _is_definition(block: str, after: str) -> bool:
    """A signature such as `str.count(sub[, start])` or `w(here)`, with its description indented
    below.
    """
    lines = block.strip("\n").split("\n")
    named = all(_SIGNATURE.fullmatch(line) and line[-1] not in ".,:;" for line in lines)
    first = lines[0].split()[0]
    return (
        named
        and after.startswith("   ")
        and ("(" in lines[0] or "." in first or len(lines[0].split()) == 1)
    )


def _names(block: str) -> str:
    """The first two of the signatures that share a description."""
    return " and ".join(line.strip() for line in block.strip("\n").split("\n")[:2])


def _reflow(block: str, inside: bool) -> str:
    """Lines of prose are joined; code and grammar (three spaces further in), lists and tables stay
    as they are, but for their common indent."""
    verbatim = block.startswith(" " * (6 if inside else 3))
    block = textwrap.dedent(block.strip("\n"))
    if verbatim or re.search(r"(?m)^([ |>+]|\* |\d+\. )", block):
        return block
    return re.sub(r"(?<=[^\W\d_])- (?=[a-z])", "-", " ".join(block.split()))


def _is_new(paragraph: str, seen: set[str]) -> bool:
    """Whether the paragraph did not come before; remembers it."""
    key = " ".join(paragraph.split())
    known = key in seen
    seen.add(key)
    return not known


def _answers(question: str, paragraphs: list[str]) -> Iterator[tuple[str, str]]:
    """(prompt, response) for every piece; a prompt after the first names the words it is to go on
    from.
    """
    for number, piece in enumerate(_pieces(paragraphs)):
        start = " ".join(piece.split()[:5])
        yield (question if number == 0 else f'{question}\nGo on from "{start}"'), piece


def _pieces(paragraphs: list[str]) -> list[str]:
    """The paragraphs joined up to ANSWER_CHARS; longer ones are cut between sentences, or lines
    where it is no prose; what would be too short to be an answer joins the piece before, or is left
    out where there is none.
    """
    pieces: list[str] = []
    for paragraph in paragraphs:
        for number, part in enumerate(_cut(paragraph)):
            glue = "\n\n" if number == 0 else " "
            if pieces and (
                len(part) < _SHORTEST_CHARS or len(pieces[-1]) + len(part) + 2 <= ANSWER_CHARS
            ):
                pieces[-1] += glue + part
            else:
                pieces.append(part)
    return [piece for piece in pieces if len(piece) >= _SHORTEST_CHARS]


def _cut(paragraph: str) -> list[str]:
    if len(paragraph) <= ANSWER_CHARS:
        return [paragraph]
    glue = "\n" if "\n" in paragraph else " "
    parts: list[str] = []
    for part in paragraph.split("\n") if glue == "\n" else _SENTENCE_END.split(paragraph):
        if parts and len(parts[-1]) + len(part) < ANSWER_CHARS:
            parts[-1] += glue + part
        else:
            parts.append(part)
    return parts
