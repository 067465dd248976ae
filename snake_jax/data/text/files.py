"""Rows of the user's files: JSON lines (`.jsonl`) and JSON arrays (`.json`), also gzipped.

A byte order mark, which editors on Windows put before UTF-8, is passed over.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from snake_jax.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
UTF8 = "utf-8-sig"  # UTF-8 with or without a byte order mark


class SourceRow(NamedTuple):
    """A value of a file, and where it stands there; `fault` says why it could not be read."""

    where: str
    value: object
    fault: str = ""


def source_name(path: str) -> str:
    """The file's name without folder and suffix."""
    name = Path(path).name.removesuffix(".gz")
    return name.removesuffix(".jsonl").removesuffix(".json")


def read_rows(path: str) -> Iterator[SourceRow]:
    """All rows of a file with one of SUFFIXES.

    Raises:
      UserError: the file is not there, damaged, not UTF-8, or not of the form that its name says.
    """
    try:
        with _opened(path) as file:
            if path.removesuffix(".gz").endswith(".jsonl"):
                yield from _lines(path, file)
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
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding=UTF8)
    return open(path, encoding=UTF8)


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
