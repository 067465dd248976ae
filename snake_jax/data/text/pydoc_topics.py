"""Real text that ships with Python: `pydoc_data.topics`, the pages behind `help("while")`.

They become questions and answers. A topic is a label of Python's documentation. Its sections, and
the methods, attributes and commands it defines, become the questions; their paragraphs, in pieces
of about `ANSWER_CHARS` characters, the answers. Topics repeat each other ("compound" holds "if"),
so a paragraph is used once. The text differs a little between Python versions.
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
# A line of a block that is more than prose, and a word that was broken at a hyphen.
_LAID_OUT = re.compile(r"(?m)^([ |>+]|\* |\d+\. )")
_BROKEN_WORD = re.compile(r"(?<=[^\W\d_])- (?=[a-z])")
_SHORTEST_CHARS = 60


def pydoc_pairs() -> tuple[Pair, ...]:
    """All questions and answers, in the order of CHAPTERS; the same on every call."""
    # Every topic with its chapter, those of a newer Python at the end.
    listed = []
    others = set(topics)
    for chapter, names in CHAPTERS.items():
        for name in names.split():
            listed.append((chapter, name))
            others.discard(name)
    for name in sorted(others):
        listed.append(("other", name))

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
    if len(lines) != 2:
        return ""
    text, ruler = lines
    if not _RULER.fullmatch(ruler.strip()):
        return ""
    return text.strip()


def _is_definition(block: str, after: str) -> bool:
    """Whether it is a signature such as `str.count(sub[, start])` or `w(here)`.

    Its description follows, indented.
    """
    if not after.startswith("   "):
        return False
    lines = block.strip("\n").split("\n")
    for line in lines:
        if not _SIGNATURE.fullmatch(line) or line.endswith((".", ",", ":", ";")):
            return False
    # A call, a dotted name, or a word alone: other lines of words are prose.
    words = lines[0].split()
    return "(" in lines[0] or "." in words[0] or len(words) == 1


def _names(block: str) -> str:
    """The first two of the signatures that share a description."""
    signatures = block.strip("\n").split("\n")
    return " and ".join(signature.strip() for signature in signatures[:2])


def _reflow(block: str, inside: bool) -> str:
    """A paragraph of prose with its lines joined.

    Code and grammar (three spaces further in), lists and tables stay as they are, but for their
    common indent.
    """
    code_indent = 6 if inside else 3
    verbatim = block.startswith(" " * code_indent)
    block = textwrap.dedent(block.strip("\n"))
    if verbatim or _LAID_OUT.search(block):
        return block
    joined = " ".join(block.split())
    return _BROKEN_WORD.sub("-", joined)


def _is_new(paragraph: str, seen: set[str]) -> bool:
    """Whether the paragraph did not come before; remembers it."""
    key = " ".join(paragraph.split())
    known = key in seen
    seen.add(key)
    return not known


def _answers(question: str, paragraphs: list[str]) -> Iterator[tuple[str, str]]:
    """(prompt, response) for every piece.

    A prompt after the first names the words that it is to go on from.
    """
    for number, piece in enumerate(_pieces(paragraphs)):
        prompt = question
        if number > 0:
            start = " ".join(piece.split()[:5])
            prompt = f'{question}\nGo on from "{start}"'
        yield prompt, piece


def _pieces(paragraphs: list[str]) -> list[str]:
    """The paragraphs joined up to ANSWER_CHARS; longer ones are cut (`_cut`).

    What would be too short to be an answer joins the piece before, or is left out where there is
    none.
    """
    pieces: list[str] = []
    for paragraph in paragraphs:
        for number, part in enumerate(_cut(paragraph)):
            joins = False
            if pieces:
                joined_chars = len(pieces[-1]) + len(part) + 2
                joins = len(part) < _SHORTEST_CHARS or joined_chars <= ANSWER_CHARS
            if joins:
                glue = "\n\n" if number == 0 else " "
                pieces[-1] += glue + part
            else:
                pieces.append(part)
    return [piece for piece in pieces if len(piece) >= _SHORTEST_CHARS]


def _cut(paragraph: str) -> list[str]:
    """A paragraph in parts up to ANSWER_CHARS, cut between lines, or, prose, between sentences."""
    if len(paragraph) <= ANSWER_CHARS:
        return [paragraph]
    if "\n" in paragraph:
        glue = "\n"
        pieces = paragraph.split("\n")
    else:
        glue = " "
        pieces = _SENTENCE_END.split(paragraph)
    parts: list[str] = []
    for part in pieces:
        if parts and len(parts[-1]) + len(part) < ANSWER_CHARS:
            parts[-1] += glue + part
        else:
            parts.append(part)
    return parts
