"""Files of JSON in a run's folder: read, replaced whole, cut to their first lines."""

import json
from typing import Any

from etils import epath

from snake_jax.errors import UserError
from snake_jax.runs import storage

Record = dict[str, Any]


def keep_lines(file: epath.Path, count: int) -> list[Record]:
    """Cuts a file of JSON lines to its first `count` and returns them.

    Raises:
      UserError: it has fewer, or one is no JSON.
    """
    try:
        lines = file.read_text().splitlines()[:count] if file.exists() else []
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); give another --workdir") from error
    if len(lines) < count:
        raise UserError(
            f"{file} has {len(lines)} lines, its checkpoint knows {count}; give another --workdir"
        )
    kept = "".join(line + "\n" for line in lines)
    storage.replace(file, kept)
    return records


def write_json(file: epath.Path, content: Record) -> None:
    """Writes the whole file; a kill meanwhile leaves the old one as it was."""
    text = json.dumps(content, indent=2, allow_nan=False)
    storage.replace(file, text + "\n")


def read_object(file: epath.Path) -> Record | None:
    """The JSON object in the file, None where there is no file.

    Raises:
      UserError: something else is in it.
    """
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); give another --workdir") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged (a JSON object was expected); give another --workdir")
    return content
