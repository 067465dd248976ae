"""Stories with marks between them, as TinyStories has them, to be trained on."""

import gzip
import json
import os
from pathlib import Path

from snake_jax.errors import UserError

END = "<|endoftext|>"


def write_stories(source: Path, target: Path, limit: int = 0) -> int:
    """Stories as JSON lines; how many.

    Args:
      source: the texts; the last one counts where it is ended too.
      target: the file, which a kill leaves absent or whole.
      limit: how many at most; 0: all.

    Raises:
      UserError: the file cannot be read, or no story ends in it.
    """
    try:
        packed = source.read_bytes()
        text = (gzip.decompress(packed) if source.suffix == ".gz" else packed).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"--stories={source}: {error}") from None
    # What follows the last mark has no end: it was cut.
    *stories, _ = text.split(END)
    found = [story.strip() for story in stories if story.strip()]
    if limit:
        found = found[:limit]
    if not found:
        raise UserError(f"--stories={source}: no {END} in it, by which stories are told apart")
    part = target.with_suffix(".part")
    part.write_text("".join(json.dumps({"text": story}) + "\n" for story in found))
    os.replace(part, target)
    return len(found)
