"""Rows of the user's files: JSON lines (`.jsonl`), JSON arrays (`.json`) and tables with a header
(`.csv`), also gzipped, and `.parquet`.

A byte order mark, which editors on Windows put before UTF-8, is passed over.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from snake_jax.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
_CELL_CHARACTERS = 2**24
"""A cell of a .csv may hold so many; Python's own limit is below the length of a book."""
UTF8 = "utf-8-sig"  # UTF-8 with or without a byte order mark


class SourceRow(NamedTuple):
    """A value of a file, and where it stands there; `fault` says why it could not be read."""

    where: str
    value: object
    fault: str = ""


def source_name(path: str) -> str:
    """The file's name without folder and suffix."""
    name = Path(path).name.removesuffix(".gz")
    for suffix in (".jsonl", ".json", ".csv", ".parquet"):
        name = name.removesuffix(suffix)
    return name


def read_rows(path: str) -> Iterator[SourceRow]:
    """All rows of a file with one of SUFFIXES.

    Raises:
      UserError: the file is not there, damaged, not UTF-8, or not of the form that its name says.
    """
    kind = Path(path.removesuffix(".gz")).suffix
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        with _opened(path) as file:
            if kind == ".jsonl":
                yield from _lines(path, file)
            elif kind == ".csv":
                yield from _table(path, file)
            else:
                yield from _array(path, file)
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path}: is damaged, or not a gzip file; make it again") from None
    except OSError as error:
        kinds = ", ".join(SUFFIXES)
        raise UserError(
            f"--data={path}: {error.strerror}; give the path of a file ({kinds})"
        ) from None


def _opened(path: str) -> TextIO:
    # A table's cells keep the line ends within them, as the csv module wants it.
    newline = "" if path.removesuffix(".gz").endswith(".csv") else None
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding=UTF8, newline=newline)
    return open(path, encoding=UTF8, newline=newline)


def _lines(path: str, file: TextIO) -> Iterator[SourceRow]:
    """A row of every line that is not blank."""
    is_first = True
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        # Whoever has an array in such a file has all rows in it: one word of that, not of a row.
        if is_first and line.lstrip().startswith("["):
            raise UserError(
                f"{where}: want an object on each line, but here begins a JSON array; "
                f"let the file's name end in .json"
            )
        is_first = False
        try:
            yield SourceRow(where, json.loads(line))
        except json.JSONDecodeError as error:
            yield SourceRow(where, None, f"is not JSON ({error.msg}); want one object on each line")


def _array(path: str, file: TextIO) -> Iterator[SourceRow]:
    """A row of every element of the array; some programs give JSON lines this name too."""
    text = file.read()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            file.seek(0)
            yield from _lines(path, file)
            return
        raise UserError(
            f"{path}:{error.lineno}: is not JSON ({error.msg}); want an array of objects"
        ) from None
    if isinstance(value, dict):
        yield SourceRow(path, value)
        return
    if not isinstance(value, list):
        raise UserError(f"{path}: want an array of objects")
    for number, element in enumerate(value):
        yield SourceRow(f"{path}[{number}]", element)


def _table(path: str, file: TextIO) -> Iterator[SourceRow]:
    """A row of every line of a table, or of several where a cell has line ends in it."""
    csv.field_size_limit(_CELL_CHARACTERS)
    lines = csv.reader(file, strict=True)
    try:
        header = next(lines, [])
        if not header or len(set(header)) < len(header):
            raise UserError(f"{path}:1: want a header, a name of its own for every column")
        for cells in lines:
            where = f"{path}:{lines.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                fault = f"has {len(cells)} cells where the header has {len(header)}"
                yield SourceRow(where, None, fault)
                continue
            yield SourceRow(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(
            f"{path}:{lines.line_num}: is not CSV ({error}); want commas, and quotes around cells "
            f"that have commas, quotes or line ends"
        ) from None


def _parquet(path: str) -> Iterator[SourceRow]:
    """A row of every row of the table, read part by part."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with open(path, "rb") as opened, parquet.ParquetFile(opened) as file:
            number = 0
            for batch in file.iter_batches():
                for value in batch.to_pylist():
                    yield SourceRow(f"{path}[{number}]", value)
                    number += 1
    except arrow.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: is damaged, or no parquet file ({reason})") from None
