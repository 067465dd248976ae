"""What a service's run folder holds: lines as they come, the node pool, files to fetch."""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from snake_jax.report.events import read_events

Record = dict[str, Any]

_CHUNK_BYTES = 1 << 20
_LONGEST_LOG_BYTES = 1 << 20
_END_BYTES = 2 * tarfile.BLOCKSIZE  # two empty blocks end an archive


class ReadPosition(NamedTuple):
    """How far a file of JSON lines was read.

    Attributes:
      lines: how many were given.
      offset: in bytes, where the next one begins.
      file: the number of the file on its disk, which a replaced one has anew.
    """

    lines: int = 0
    offset: int = 0
    file: int = 0


class NodeResult(NamedTuple):
    """What a node has done in a service so far.

    Attributes:
      node: its number.
      visits: that it made.
      layers: that it trained last.
      last_visit: when: a number of a line of metrics.
      bytes_sent: of the ledger.
      bytes_received: of the ledger.
    """

    node: int
    visits: int
    layers: list[str]
    last_visit: int | None
    bytes_sent: int
    bytes_received: int


class RunEvent(NamedTuple):
    """Something that happened in a run.

    Attributes:
      time_s: when, in seconds since 1970.
      visit: the turn that it concerns; None: none.
      node: of the run, whom it happened to; None: the run.
      event: what, in a word.
      cause: why, in words.
    """

    time_s: float
    visit: int | None
    node: int | None
    event: str
    cause: str


def lines_from(file: Path, place: ReadPosition) -> tuple[list[str], ReadPosition]:
    """The whole lines of a growing file that come after a place, and the place after them.

    A run that goes on cuts lines off and writes the same ones again, into a new file: then it is
    read from its beginning, and as many lines as were given are passed over.
    """
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            number, skip = status.st_ino, 0
            if number != place.file or not _ends_line(stream, place.offset):
                place, skip = ReadPosition(place.lines, 0, number), place.lines
            stream.seek(place.offset)
            # A process may be in the middle of the last line.
            whole = stream.read().rpartition(b"\n")[0]
    except FileNotFoundError:
        return [], place
    if not whole:
        return [], place
    lines = whole.decode().split("\n")
    fresh = lines[skip:]
    if len(lines) < skip:
        # Not as far as before yet: it is read again when it has grown.
        return [], ReadPosition(place.lines, 0, 0)
    return fresh, ReadPosition(place.lines + len(fresh), place.offset + len(whole) + 1, number)


def _ends_line(stream: BinaryIO, offset: int) -> bool:
    """Whether a line ends right before an offset, as in the file that it was noted for."""
    if offset == 0:
        return True
    stream.seek(offset - 1)
    return stream.read(1) == b"\n"


def records_of(file: Path) -> list[Record]:
    """All whole lines of a file, as objects; none where there is no file."""
    lines, _ = lines_from(file, ReadPosition())
    return [json.loads(line) for line in lines]


def nodes_of(run: Path) -> list[NodeResult]:
    """The node pool as metrics and ledger show it, by number."""
    nodes: dict[int, NodeResult] = {}

    def node_of(number: int) -> NodeResult:
        return nodes.get(number, NodeResult(number, 0, [], None, 0, 0))

    for line, record in enumerate(records_of(run / "metrics.jsonl")):
        visiting = record.get("node")
        numbers = visiting if isinstance(visiting, list) else [visiting]
        for number in numbers:
            if number is not None:
                one = node_of(number)
                nodes[number] = one._replace(
                    visits=one.visits + 1, layers=record["layers"], last_visit=line
                )
    for row in records_of(run / "ledger.jsonl"):
        for place, field in (
            (row["source"], "bytes_sent"),
            (row["destination"], "bytes_received"),
        ):
            number = place.removeprefix("node")
            if number.isdecimal():
                one = node_of(int(number))
                nodes[one.node] = one._replace(**{field: getattr(one, field) + row["bytes"]})
    return [nodes[number] for number in sorted(nodes)]


def events_of(run: Path) -> list[RunEvent]:
    """What happened to the nodes of a run, in order; nothing where it tells of none."""
    found = []
    for row in read_events(run):
        found.append(RunEvent(**{name: row[name] for name in RunEvent._fields}))
    return found


def files_of(run: Path) -> dict[str, Path]:
    """All files of the result by their names in it, `/` between folders; no links."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix != ".part":
            found[path.relative_to(run).as_posix()] = path
    return found


def archive(folder: str, files: dict[str, Path]) -> Iterator[bytes]:
    """A tar archive of the files, piece by piece, so that no size of a model matters.

    Args:
      folder: that they lie in within the archive.
      files: by their names; none of them changes meanwhile.
    """
    for name, path in files.items():
        entry = tarfile.TarInfo(f"{folder}/{name}")
        status = path.stat()
        entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), 0o644
        yield entry.tobuf(tarfile.PAX_FORMAT)
        with path.open("rb") as stream:
            while piece := stream.read(_CHUNK_BYTES):
                yield piece
        # A file fills whole blocks.
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)
    yield bytes(_END_BYTES)


def log_of(folder: Path, attempts: Sequence[int]) -> str:
    """What a service's process printed, the attempts one after another; the end of it if long."""
    parts = []
    for attempt in attempts:
        file = folder / f"output_{attempt}.log"
        if file.exists():
            parts.append(file.read_bytes()[-_LONGEST_LOG_BYTES:])
    return b"".join(parts)[-_LONGEST_LOG_BYTES:].decode(errors="replace")


def last_line(text: str) -> str:
    """The last line that says what went wrong, else the last one that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    return lines[-1] if lines else ""
